"""WordPiece and Unigram beside `tokenizers` and sentencepiece.

    python benchmarks/pieces.py [MB]

Candidates take turns inside one process; medians of five rounds; CPU seconds
of the process and wall seconds. The text comes from the documentation and
the source files of this machine, distinct and not repeated; half of it
trains, and the other half is encoded, so that no encoder has seen it. Encoders
are made anew for each round, so that no cache is warm. Writes
results/pieces.md.
"""

import importlib.metadata
import io
import os
import platform
import statistics
import sys
import time
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import sentencepiece  # noqa: E402
from tokenizers import (  # noqa: E402
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from lmcourse.tokenizers.unigram import Unigram  # noqa: E402
from lmcourse.tokenizers.wordpiece import (  # noqa: E402
    WordPiece,
    frequency_score,
    likelihood_score,
)

ROUNDS = 5
RESULTS = Path(__file__).parent / "results" / "pieces.md"


def collect(megabytes):
    """Distinct documents of about 10 kB from this machine's files."""
    folders = [Path("/usr/share/doc"), Path("/usr/share/perl"),
               Path(os.__file__).parent, *map(Path, sys.path[1:])]
    seen, size, documents = set(), 0, []
    paths = (path for folder in folders if folder.is_dir()
             for pattern in ("*.rst", "*.md", "*.txt", "*.pod", "*.py")
             for path in sorted(folder.rglob(pattern)))
    for path in paths:
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if len(text) < 2_000 or hash(text) in seen:
            continue
        seen.add(hash(text))
        documents += [text[i:i + 10_000] for i in range(0, len(text), 10_000)]
        size += len(text.encode())
        if size > megabytes * 1e6:
            break
    return documents


def interleaved(candidates):
    """Median CPU and wall seconds of each, the candidates by turns."""
    times = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, (prepare, work) in candidates.items():
            ready = prepare()
            cpu, wall = time.process_time(), time.perf_counter()
            work(ready)
            times[name].append((time.process_time() - cpu,
                                time.perf_counter() - wall))
    return {name: [statistics.median(column) for column in
                   zip(*values, strict=True)]
            for name, values in times.items()}


def nothing():
    return None


def hf_wordpiece(model):
    other = Tokenizer(model)
    other.normalizer = normalizers.BertNormalizer()
    other.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return other


def hf_train(documents, size):
    other = hf_wordpiece(models.WordPiece(unk_token="[UNK]"))
    other.train_from_iterator(documents, trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=["[UNK]"], show_progress=False))


def sp_train(documents, size):
    """sentencepiece; it cannot read more than a line at a time."""
    model = io.BytesIO()
    lines = (line for text in documents for line in text.split("\n") if line)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=size,
        model_type="unigram", normalization_rule_name="identity",
        remove_extra_whitespaces=False, byte_fallback=True, num_threads=1,
        minloglevel=2, hard_vocab_limit=False)
    return model.getvalue()


def fresh(tokenizer):
    """A copy without any cache, but with its tables made."""
    copy = tokenizer.__reduce__()
    copy = copy[0](*copy[1])
    copy.encode("warm")
    return copy


def table(title, times, base, megabytes):
    rows = [f"\n## {title}\n", "| | CPU s | wall s | MB/s (CPU) | against "
            f"{base} |", "|---|---|---|---|---|"]
    for name, (cpu, wall) in times.items():
        rows.append(f"| {name} | {cpu:.3f} | {wall:.3f} | "
                    f"{megabytes / cpu:.1f} | {times[base][0] / cpu:.1f}x |")
    return rows


def main():
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 8
    documents = collect(2 * megabytes)
    learn, read = documents[::2], documents[1::2]
    mb = [sum(len(t.encode()) for t in part) / 1e6 for part in (learn, read)]
    lines = [[line for t in part for line in t.split("\n") if line]
             for part in (learn, read)]
    size = 8_000

    word = WordPiece.train(learn, size)
    unigram = Unigram.train(learn, size)
    hf = hf_wordpiece(models.WordPiece(
        {**word.vocab, "[UNK]": word._unk_id}, unk_token="[UNK]"))
    sp = sentencepiece.SentencePieceProcessor(
        model_proto=sp_train(learn, size))

    rows = []
    rows += table("WordPiece, encoding", interleaved({
        "tokenizers": (nothing, lambda _: [hf.encode(t) for t in read]),
        "tokenizers, batch fast": (
            nothing, lambda _: hf.encode_batch_fast(read)),
        "lmcourse, lists": (lambda: fresh(word), lambda own: [
            own.encode(t) for t in read]),
        "lmcourse, arrays": (lambda: fresh(word), lambda own: [
            own.encode_to_numpy(t) for t in read]),
    }), "tokenizers, batch fast", mb[1])
    rows += table("WordPiece, training", interleaved({
        "tokenizers (frequency)": (nothing, lambda _: hf_train(learn, size)),
        "lmcourse, frequency_score": (nothing, lambda _: WordPiece.train(
            learn, size, score=frequency_score)),
        "lmcourse, likelihood_score": (nothing, lambda _: WordPiece.train(
            learn, size, score=likelihood_score)),
    }), "tokenizers (frequency)", mb[0])
    rows += table("Unigram, encoding (documents)", interleaved({
        "sentencepiece": (nothing, lambda _: [sp.encode(t) for t in read]),
        "lmcourse, lists": (lambda: fresh(unigram), lambda own: [
            own.encode(t) for t in read]),
        "lmcourse, arrays": (lambda: fresh(unigram), lambda own: [
            own.encode_to_numpy(t) for t in read]),
    }), "sentencepiece", mb[1])
    rows += table("Unigram, training (lines)", interleaved({
        "sentencepiece": (nothing, lambda _: sp_train(learn, size)),
        "lmcourse": (nothing, lambda _: Unigram.train(lines[0], size)),
    }), "sentencepiece", mb[0])

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}"
                         for name in ("tokenizers", "sentencepiece", "numba",
                                      "numpy"))
    cpu = next((line.split(":")[1].strip() for line in
                Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())
    head = [
        "# WordPiece and Unigram", "",
        f"{cpu}, {os.cpu_count()} cores; Python "
        f"{platform.python_version()}, {versions}. One thread each, "
        f"vocabulary of {size:,}, {mb[0]:.1f} MB to learn from and "
        f"{mb[1]:.1f} MB to read, of this machine's documentation and "
        f"sources; medians of {ROUNDS} rounds, candidates by turns. Load "
        f"average at the end: {os.getloadavg()[0]:.1f}.", "",
        "Encoders are new in each round, so that nothing is cached. The "
        "vocabularies of WordPiece are equal; sentencepiece has its own."]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(head + rows) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
