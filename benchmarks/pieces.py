"""WordPiece and Unigram side by side with `tokenizers` and sentencepiece.

    .venv/bin/python benchmarks/pieces.py [--rounds 5] [--part NAME]

Text is taken from the documentation and source files of this machine; no
paragraph is in it twice. All candidates of a table take turns in one process,
and a table shows medians over the rounds. What is encoded was not learned
from, and memories of words are emptied ahead of each round. With `--part`
(wordpiece-encode, wordpiece-train, unigram-encode, unigram-train) only that
table is measured, and no file is written.
"""

import argparse
import io
import os
import sys
import tempfile
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
# not the folder of this file, where a file has a library's name
sys.path[0] = str(Path(__file__).parents[1])

import sentencepiece  # noqa: E402
import tokenizers  # noqa: E402
from flash_tokenizer._core import FlashBertTokenizer  # noqa: E402

from benchmarks.side_by_side import (  # noqa: E402
    machine,
    nothing,
    table,
    take_turns,
    texts_of_this_machine,
    write_results,
)
from lmcourse.tokenizers.unigram import Unigram  # noqa: E402
from lmcourse.tokenizers.wordpiece import (  # noqa: E402
    WordPiece,
    frequency_score,
    likelihood_score,
)

VOCAB_SIZE = 8_000
KINDS = {".md", ".rst", ".txt", ".html", ".py"}


def bytes_of(texts):
    return sum(len(text.encode()) for text in texts)


def part_of(texts, size):
    """The first texts of about `size` megabytes."""
    kept, n = [], 0
    for text in texts:
        if n >= 1e6 * size:
            break
        kept.append(text)
        n += len(text.encode())
    return kept


def hf_wordpiece(model):
    hf = tokenizers.Tokenizer(model)
    hf.normalizer = tokenizers.normalizers.BertNormalizer()
    hf.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return hf


def hf_train(texts, size):
    hf = hf_wordpiece(tokenizers.models.WordPiece(unk_token="[UNK]"))
    hf.train_from_iterator(texts, tokenizers.trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=["[UNK]"], show_progress=False))


def flash_wordpiece(own):
    """flash-tokenizer with the same pieces; it adds one id at each end."""
    names = {**own.vocab, **own.special_tokens}
    names = [*sorted(names, key=names.get),
             "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(names) + "\n")
        file.flush()
        flash = FlashBertTokenizer(file.name, True, 1 << 20, True)
    return lambda text: flash.encode(text, "longest", -1)


def lines_of(texts):
    """sentencepiece cannot read more than a line at a time."""
    return [line for text in texts for line in text.split("\n") if line]


def sp_train(lines):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model,
        vocab_size=VOCAB_SIZE, model_type="unigram",
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        byte_fallback=True, num_threads=1, minloglevel=2,
        hard_vocab_limit=False)
    return model.getvalue()


def as_unigram(sp):
    """A sentencepiece model as one of ours."""
    names = [sp.id_to_piece(i) for i in range(sp.get_piece_size())]
    special = {name: i for i, name in enumerate(names)
               if sp.is_control(i) or sp.is_unknown(i)}
    return Unigram(
        vocab={n: i for i, n in enumerate(names) if n not in special},
        special_tokens=special, unk_token="<unk>",
        scores={name: sp.get_score(i) for i, name in enumerate(names)
                if name not in special and not sp.is_byte(i)})


def readers(own, texts):
    """Our two candidates for encoding."""
    forget = own._encoder.forget
    return {
        "lmcourse, lists, cold": (
            forget, lambda: [own.encode(t) for t in texts]),
        "lmcourse, arrays, cold": (
            forget, lambda: [own.encode_to_numpy(t) for t in texts])}


def wordpiece_encode(learn, read, rounds):
    own = WordPiece.train(part_of(learn, 8), VOCAB_SIZE)
    hf = hf_wordpiece(tokenizers.models.WordPiece(
        {**own.vocab, "[UNK]": own.unk_id}, unk_token="[UNK]"))
    for text, other in zip(read, hf.encode_batch_fast(read), strict=True):
        assert own.encode(text) == other.ids
    flash = flash_wordpiece(own)
    different = sum(flash(t)[1:-1] != own.encode(t) for t in read)
    seconds = take_turns({
        **readers(own, read),
        "flash-tokenizer": (nothing, lambda: [flash(t) for t in read]),
        "`tokenizers`": (nothing, lambda: [hf.encode(t).ids for t in read]),
        "`tokenizers`, encode_batch_fast": (
            nothing, lambda: hf.encode_batch_fast(read)),
    }, rounds)
    size = bytes_of(read)
    return table(f"WordPiece, encoding, {size / 1e6:.0f} MB", seconds, size,
                 ["flash-tokenizer", "`tokenizers`",
                  "`tokenizers`, encode_batch_fast"],
                 "Ids asserted equal to those of `tokenizers` in all "
                 f"documents; flash-tokenizer's differ in {different} of "
                 f"{len(read)}.")


def wordpiece_train(learn, read, rounds):
    size, tables = bytes_of(learn), []
    for vocab_size in (VOCAB_SIZE, 30_000):
        seconds = take_turns({
            score.__name__: (nothing, lambda score=score, n=vocab_size:
                             WordPiece.train(learn, n, score=score))
            for score in (frequency_score, likelihood_score)
        } | {"`tokenizers` (frequency)": (
            nothing, lambda n=vocab_size: hf_train(learn, n))}, rounds)
        tables.append(table(
            f"WordPiece, training, {size / 1e6:.0f} MB, {vocab_size:,} "
            "tokens", seconds, size, ["`tokenizers` (frequency)"]))
    return "\n".join(tables)


def unigram_encode(learn, read, rounds):
    sp = sentencepiece.SentencePieceProcessor(
        model_proto=sp_train(lines_of(part_of(learn, 4))))
    own = as_unigram(sp)
    different = sum(own.encode(text) != sp.encode(text) for text in read)
    seconds = take_turns({
        **readers(own, read),
        "sentencepiece": (nothing, lambda: [sp.encode(t) for t in read]),
    }, rounds)
    size = bytes_of(read)
    return table(
        f"Unigram, encoding, {size / 1e6:.0f} MB", seconds, size,
        ["sentencepiece"], f"Ids are equal in all but {different} of "
        f"{len(read)} documents; those have cuts with equal scores, and "
        "sentencepiece adds up in 32 bits. The model is its own.")


def unigram_train(learn, read, rounds):
    lines = lines_of(part_of(learn, 8))
    size = bytes_of(lines)
    seconds = take_turns({
        "lmcourse": (nothing, lambda: Unigram.train(lines, VOCAB_SIZE)),
        "sentencepiece": (nothing, lambda: sp_train(lines)),
    }, rounds)
    return table(f"Unigram, training, {size / 1e6:.0f} MB of lines", seconds,
                 size, ["sentencepiece"])


PARTS = {"wordpiece-encode": wordpiece_encode,
         "wordpiece-train": wordpiece_train,
         "unigram-encode": unigram_encode, "unigram-train": unigram_train}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=PARTS)
    options = parser.parse_args()
    texts = texts_of_this_machine(33, KINDS)
    read = part_of(texts, 8)
    learn = texts[len(read):]
    WordPiece.train(learn[:9], 1_000).encode("é")  # compile
    Unigram.train(learn[:9], 1_000).encode("é")
    sections = [
        "# WordPiece and Unigram: lmcourse and its compiled peers", "",
        machine(["numba", "numpy", "tokenizers", "sentencepiece",
                 "flash-tokenizer"]), "",
        f"Medians of {options.rounds} rounds, all candidates of a table "
        "taking turns in one process, one thread each; vocabularies of "
        f"{VOCAB_SIZE:,} where nothing else is said. MB are millions of "
        "UTF-8 bytes. A column \"x peer\" divides the peer's CPU seconds by "
        "the row's: above 1 is faster than the peer. \"Cold\" means that "
        "the memory of words was empty.", ""]
    for name, part in PARTS.items():
        if options.part in (None, name):
            sections.append(part(learn, read, options.rounds))
    if not options.part:
        write_results("pieces.md", sections)


if __name__ == "__main__":
    main()
