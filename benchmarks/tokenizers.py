"""Byte-level BPE side by side with the compiled libraries.

    .venv/bin/python benchmarks/tokenizers.py [--rounds 5]

Text is taken from the documentation and source files of this machine; no
paragraph is in it twice. All candidates of a table take turns in one process,
and a table shows medians over the rounds. "Cold" is text that was not seen
before: memories of words are emptied ahead of each round.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
# not the folder of this file, whose name is a library's
sys.path[0] = str(Path(__file__).parents[1])

import numpy as np  # noqa: E402
import tiktoken  # noqa: E402
import tokenizers  # noqa: E402

from benchmarks.side_by_side import (  # noqa: E402
    machine,
    nothing,
    table,
    take_turns,
    texts_of_this_machine,
    write_results,
)
from benchmarks.vocabularies import (  # noqa: E402
    PATTERNS,
    Quick,
    open_vocabulary,
    peers_of,
    seconds_to_first_ids,
    write_vocabulary,
)
from lmcourse.tokenizers import bpe  # noqa: E402
from lmcourse.tokenizers.bpe import (  # noqa: E402
    GPT2_ALPHABET,
    GPT2_PATTERN,
    GPT4_PATTERN,
    ByteBPE,
)
from lmcourse.tokenizers.fast import bpe as fast_bpe  # noqa: E402

try:
    import gigabpe
    import rustbpe
except ImportError:
    sys.exit("the peers are not installed: pip install -e '.[bench]' "
             "-c constraints.txt")

VOCAB_SIZE = 32_768
TIKTOKEN_GPT2 = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"
    r"|\s++$|\s+(?!\S)|\s")


def peers(tokenizer):
    """The same vocabulary in tiktoken and in `tokenizers`."""
    # tiktoken's own spelling of GPT-2's pattern is the faster one for it
    pattern = (TIKTOKEN_GPT2 if tokenizer.pattern == GPT2_PATTERN
               else tokenizer.pattern)
    tik = tiktoken.Encoding("x", pat_str=pattern, special_tokens={},
                            mergeable_ranks=dict(tokenizer.vocab))
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    shown = dict(zip(GPT2_ALPHABET, sorted(letters), strict=True))

    def show(token):
        return "".join(shown[b] for b in token)

    hf = tokenizers.Tokenizer(tokenizers.models.BPE(
        vocab={show(t): i for t, i in tokenizer.vocab.items()},
        merges=[(show(a), show(b)) for a, b in tokenizer.merges]))
    hf.pre_tokenizer = pre_tokenizer(tokenizer.pattern)
    return tik, hf


def pre_tokenizer(pattern):
    pre = tokenizers.pre_tokenizers
    return pre.Sequence([
        pre.Split(tokenizers.Regex(pattern), "isolated"),
        pre.ByteLevel(add_prefix_space=False, use_regex=False)])


def training(texts, rounds, name):
    size = sum(len(t.encode()) for t in texts)

    def with_rust():
        learner = rustbpe.Tokenizer()
        learner.train_from_iterator(texts, VOCAB_SIZE, pattern=GPT2_PATTERN)
        return learner

    def with_hf():
        hf = tokenizers.Tokenizer(tokenizers.models.BPE())
        hf.pre_tokenizer = pre_tokenizer(GPT2_PATTERN)
        hf.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE, show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
        return hf

    def ours(alphabet=bytes(range(256))):
        return fast_bpe.learn_bytes(texts, VOCAB_SIZE, GPT2_PATTERN, alphabet)

    def plain():
        return bpe._learn_bytes(texts, VOCAB_SIZE, GPT2_PATTERN,
                                bytes(range(256)))

    def with_giga():
        return gigabpe.train_bpe([file.name], VOCAB_SIZE, threads=1,
                                 pretokenizer="bytelevel")

    file = tempfile.NamedTemporaryFile(suffix=".txt")
    file.write("".join(texts).encode())
    file.flush()
    candidates = {"lmcourse": ours, "`tokenizers`": with_hf,
                  "gigabpe, its reading of the file included": with_giga,
                  "rustbpe": with_rust}
    tokens, _ = ours()
    theirs = [bytes(t) for t, _ in sorted(
        with_rust().get_mergeable_ranks(), key=lambda item: item[1])]
    same = [f"tokens equal to rustbpe's, in order: {theirs == tokens}"]
    hf = with_hf().get_vocab()
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    back = dict(zip(letters, GPT2_ALPHABET, strict=True))
    theirs = [bytes(back[c] for c in t) for t in sorted(hf, key=hf.get)]
    in_its_order, _ = ours(GPT2_ALPHABET)
    same.append("to those of `tokenizers`, when the alphabet is in its order:"
                f" {theirs == in_its_order}")
    seconds = take_turns({k: (nothing, job) for k, job in candidates.items()},
                         rounds)
    slow = take_turns({"lmcourse without numba": (nothing, plain)}, 1)
    against = [k for k in candidates if k != "lmcourse"]
    return table(
        f"Training, {name}, {size / 1e6:.0f} MB, {VOCAB_SIZE:,} tokens",
        {**seconds, **slow}, size, against,
        "; ".join(same) + ". (The row without numba is a single run.)")


def encoding(texts, rounds, name, tokenizer):
    size = sum(len(t.encode()) for t in texts)
    tik, hf = peers(tokenizer)
    ours = tokenizer._encoder.read(1 << 20)
    tokenizer._decoder.read(1 << 20)
    parts = tokenizer.vocab, tokenizer.merges, tokenizer.pattern
    slow = bpe._Encoder(*parts)
    for text in texts:
        ids = ours.encode(text)
        assert ids == tik.encode_ordinary(text) == slow.encode(text)
    for text in texts[:200]:
        assert ours.encode(text) == hf.encode(text).ids
    tik_array = {"disallowed_special": ()}
    candidates = {
        "lmcourse, lists, cold": (
            ours.forget, lambda: [tokenizer.encode(t) for t in texts]),
        "lmcourse, arrays, cold": (
            ours.forget, lambda: [tokenizer.encode_to_numpy(t)
                                  for t in texts]),
        "lmcourse, arrays, warm": (
            nothing, lambda: [tokenizer.encode_to_numpy(t) for t in texts]),
        "lmcourse without numba, lists, cold": (
            slow.memory.clear, lambda: [slow.encode(t) for t in texts]),
        "tiktoken, lists": (
            nothing, lambda: [tik.encode_ordinary(t) for t in texts]),
        "tiktoken, arrays": (
            nothing, lambda: [tik.encode_to_numpy(t, **tik_array)
                              for t in texts]),
    }
    seconds = take_turns(candidates, rounds)
    seconds |= take_turns({"`tokenizers`, lists": (
        nothing, lambda: [hf.encode(t).ids for t in texts])},
        min(rounds, 3) if size > 1e7 else rounds)
    return table(f"Encoding, {name}, {size / 1e6:.0f} MB, one thread",
                 seconds, size, ["tiktoken, lists", "tiktoken, arrays",
                                 "`tokenizers`, lists"],
                 "Ids asserted equal in all (`tokenizers`: 200 documents).")


def real(rounds, texts, name, folder):
    """A published vocabulary beside the fastest that read it."""
    size = sum(len(t.encode()) for t in texts)
    path = write_vocabulary(name, folder)
    tokenizer = open_vocabulary(name, path)
    ours = tokenizer._encoder.read(1 << 20)
    others, quick = peers_of(name, dict(tokenizer.vocab)), Quick(name)
    different = dict.fromkeys(["quicktok", *others], 0)
    for text in texts:
        ids = tokenizer.encode(text)
        for peer, encode in [("quicktok", quick.encode), *others.items()]:
            different[peer] += list(encode(text)) != ids
    seconds = take_turns({
        "lmcourse, lists, cold": (
            ours.forget, lambda: [tokenizer.encode(t) for t in texts]),
        "lmcourse, arrays, cold": (
            ours.forget, lambda: [tokenizer.encode_to_numpy(t)
                                  for t in texts]),
        "quicktok, lists, cold": (
            quick.forget, lambda: [quick.encode(t) for t in texts]),
        "quicktok, one array, cold": (
            quick.forget, lambda: quick.encode_batch(texts)),
        **{f"{peer}, lists": (nothing, lambda encode=encode: [
            encode(t) for t in texts]) for peer, encode in others.items()},
    }, rounds)
    first, more = (median(seconds_to_first_ids(path, times)
                          for _ in range(rounds)) for times in (1, 2500))
    return table(
        f"{name}, {size / 1e6:.0f} MB, one thread", seconds, size,
        [key for key in seconds if not key.startswith("lmcourse")],
        f"Documents whose ids differ from ours: {different}. From the start "
        f"of a process to the first ids: {first:.2f} s of CPU; to those of "
        f"100 kB, with the compiled code loaded: {more:.2f} s.")


def threads(texts, rounds, name, tokenizer):
    size = sum(len(t.encode()) for t in texts)
    ours = tokenizer._encoder.read(1 << 20)

    def run(n, encode, documents):
        def job():
            with ThreadPoolExecutor(n) as pool:
                for _ in pool.map(lambda part: [encode(t) for t in part],
                                  [documents[i::n] for i in range(n)]):
                    pass
        return job

    def prepare():
        ours.idle[:] = [fast_bpe.empty_answers(ours.rows) for _ in range(2)]

    longer = ["".join(texts[i:i + 10]) for i in range(0, len(texts), 10)]
    candidates = {
        f"{n} thread{'s' * (n > 1)}, {kind}, documents of {length}":
            (prepare, run(n, encode, documents))
        for kind, encode in (("arrays", tokenizer.encode_to_numpy),
                             ("lists", tokenizer.encode))
        for length, documents in (("10 kB", texts), ("100 kB", longer))
        for n in (1, 2)}
    seconds = take_turns(candidates, 2 * rounds)
    lines = [f"### Two threads, {name}, {size / 1e6:.0f} MB, cold", "",
             "| | CPU s | wall s | wall, x one thread |", "|---|---|---|---|"]
    for key, (cpu, wall) in seconds.items():
        one = seconds["1 thread, " + key.split(", ", 1)[1]][1]
        lines.append(f"| {key} | {cpu:.3f} | {wall:.3f} | {one / wall:.2f} |")
    load = os.getloadavg()[0]
    text = "\n".join([*lines, "", f"Load average at the end: {load:.1f} on "
                      f"{os.cpu_count()} cores.", ""])
    print(text, flush=True)
    return text


def decoding(texts, rounds, name, tokenizer):
    size = sum(len(t.encode()) for t in texts)
    tik, hf = peers(tokenizer)
    lists = [tokenizer.encode(t) for t in texts]
    arrays = [np.array(ids, np.int32) for ids in lists]
    for text, ids, array in zip(texts, lists, arrays, strict=True):
        assert tokenizer.decode(ids) == tokenizer.decode(array) == text
    seconds = take_turns({
        "lmcourse, from arrays": (
            nothing, lambda: [tokenizer.decode(a) for a in arrays]),
        "lmcourse, from lists": (
            nothing, lambda: [tokenizer.decode(ids) for ids in lists]),
        "tiktoken, from lists": (
            nothing, lambda: [tik.decode(ids) for ids in lists]),
        "tiktoken, from arrays": (
            nothing, lambda: [tik.decode(a) for a in arrays]),
        "`tokenizers`, from lists": (
            nothing, lambda: [hf.decode(ids) for ids in lists]),
    }, rounds)
    return table(f"Decoding, {name}, {size / 1e6:.0f} MB", seconds, size,
                 ["tiktoken, from lists", "tiktoken, from arrays"])


STREAM = """
import itertools, re, time
from pathlib import Path
from lmcourse.tokenizers import ByteBPE
from lmcourse.world import documents

def stream(size):
    for seed in itertools.count():
        for text in documents(20_000, seed):
            yield text
            size -= len(text)
            if size <= 0:
                return

start = time.process_time()
tokenizer = ByteBPE.train(stream(250_000_000), 32_768)
# ru_maxrss would count the process that started this one
status = Path("/proc/self/status").read_text()
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1000
print(f"{tokenizer.vocab_size:,} tokens, {time.process_time() - start:.0f} s "
      f"of CPU (writing the world included), peak memory {peak:.0f} MB.")
"""


def streaming():
    """Peak memory of learning from a stream, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", STREAM], text=True,
                          capture_output=True, check=True)
    text = "\n".join(["### 250 MB of the world, streamed", "",
                      done.stdout])
    print(text, flush=True)
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    compiled = fast_bpe.compile_kernels()
    sections = [
        "# Byte-level BPE: lmcourse and its compiled peers", "",
        machine(["numba", "numpy", "regex", "tiktoken", "tokenizers",
                 "rustbpe", "gigabpe", "quicktok-v1", "riptoken",
                 "bpe-openai"]), "",
        f"Medians of {rounds} rounds, all candidates of a table taking "
        "turns in one process. MB are millions of UTF-8 bytes. A column "
        "\"x peer\" divides the peer's CPU seconds by the row's: above 1 is "
        "faster than the peer. The machine may have been shared; a ratio "
        "below 1.15 is parity.", "",
        f"Compiling, or loading what was compiled before: {compiled:.1f} s, "
        "not counted below.", ""]
    for name, kinds in (("documentation", {".md", ".rst", ".txt", ".html"}),
                        ("Python source", {".py"})):
        large = texts_of_this_machine(25, kinds)
        small = texts_of_this_machine(8, kinds)
        sections.append(training(large, rounds, name))
        tokenizer = ByteBPE.train(large, VOCAB_SIZE, special_tokens=())
        sections.append(encoding(small, rounds, name, tokenizer))
        sections.append(threads(large, rounds, name, tokenizer))
        sections.append(decoding(small, rounds, name, tokenizer))
        gpt4 = ByteBPE.train(small, VOCAB_SIZE, pattern=GPT4_PATTERN,
                             special_tokens=())
        sections.append(encoding(small, rounds,
                                 f"{name}, GPT-4's pattern", gpt4))
    mixed = texts_of_this_machine(8, {".md", ".rst", ".txt", ".py"})
    with tempfile.TemporaryDirectory() as folder:
        for name in PATTERNS:
            sections.append(real(rounds, mixed, name, Path(folder)))
    sections.append(streaming())
    write_results("tokenizers.md", sections)


if __name__ == "__main__":
    main()
