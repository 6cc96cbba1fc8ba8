"""Texts that several tests encode, and that share no bias with training."""

import pickle
import random
import re
from pathlib import Path

from lmcourse.tokenizers.base import manual
from lmcourse.tokenizers.unigram import BYTES, SPACE

CHARACTERS = [chr(c) for c in range(1, 0x110000)
              if not 0xD800 <= c < 0xE000 and chr(c) != SPACE]


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
