"""Texts that several tests encode, and that share no bias with training."""

import pickle
import random
import re
import time
from pathlib import Path

import pytest

from lmcourse.tokenizers.base import manual
from lmcourse.tokenizers.unigram import BYTES, SPACE

CHARACTERS = [chr(c) for c in range(1, 0x110000)
              if not 0xD800 <= c < 0xE000 and chr(c) != SPACE]


def few_or_many(few, many):
    """Run a test with n = `few`, and at night with n = `many`."""
    return pytest.mark.parametrize(
        "n", [few, pytest.param(many, marks=pytest.mark.nightly)])


def assert_linear(work, n, times=3):
    """Ten times the size costs less than 40 times the CPU; n^2 costs 100."""
    def seconds(n):
        start = time.process_time()
        work(n)
        return time.process_time() - start

    small = min(seconds(n) for _ in range(times))
    assert min(seconds(10 * n) for _ in range(times)) < 40 * small


def lines():
    """The manual's lines, as sentencepiece wants them."""
    text = "\n".join(page for pages in manual() for page in pages)
    stripped = (re.sub(" +", " ", line).strip() for line in text.split("\n"))
    return [line for line in stripped if line]


def sources():
    """Some of the files that Python is made of."""
    folder = Path(pickle.__file__).parent
    names = ["argparse", "ast", "pickle", "inspect", "tarfile", "typing"]
    return [(folder / f"{name}.py").read_text("utf-8") for name in names]


def strings(n, seed, specials=("<s>", "<unk>", "</s>", "<|endoftext|>")):
    """Random strings of all planes, marks, spaces, words and specials."""
    rng = random.Random(seed)
    words = " ".join(manual()[0][:5]).split()
    pools = [
        lambda: chr(rng.randrange(32, 127)),
        lambda: rng.choice(words),
        lambda: " " + rng.choice(words),
        lambda: rng.choice(CHARACTERS),
        lambda: chr(rng.randrange(0x300, 0x370)),
        lambda: chr(rng.randrange(0xC0, 0x600)),
        lambda: rng.choice([" ", "  ", "\n", "\t\t", "\u3000", "\xa0"]),
        lambda: chr(rng.randrange(1, 32)),
        lambda: str(rng.randrange(10 ** 6)),
        lambda: rng.choice(specials),
    ]
    for _ in range(n):
        some = rng.sample(pools, rng.randint(1, 4))
        yield "".join(rng.choice(some)() for _ in range(rng.randint(0, 8)))


def same_score(own, a, b):
    """Whether two cuts are equally probable in 32-bit sums."""
    low = min(own.scores.values()) - 10
    byte = {own.vocab.get(name) for name in BYTES}

    def total(ids):
        return sum(0 if i in byte else own.scores.get(own.by_id.get(i), low)
                   for i in ids)

    return ([i for i in a if i in byte] == [i for i in b if i in byte]
            and abs(total(a) - total(b)) < 1e-5 * max(1, abs(total(a))))
