"""What the compiled versions have beyond the tests of chapters 12 and 13."""

import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import lmcourse
from lmcourse.tokenizers.fast import pieces as fast_pieces
from lmcourse.tokenizers import unigram
from lmcourse.tokenizers import wordpiece as chapter
from lmcourse.tokenizers.base import ENGINES, manual
from lmcourse.tokenizers.unigram import Unigram, seed_pieces, segment_unigram
from lmcourse.tokenizers.wordpiece import (
    BertNormalizer,
    WordPiece,
    learn_wordpiece_loop,
)


def test_trie_finds_what_it_holds():
    rng = random.Random(0)
    pieces = {bytes(rng.choices(rng.choice([b"ab", bytes(range(256))]),
                                k=rng.randint(1, 6))): i
              for i in range(5_000)}
    links, owner = fast_pieces._trie(pieces)

    def find(text):
        node = 0
        for byte in text:
            child = links[node, 0] + byte
            if links[child, 1] != node:
                return None
            node = child
        return owner[node]

    for piece, i in pieces.items():
        assert find(piece) == i
        for other in (piece[:-1], piece + b"a", piece[::-1]):
            assert find(other) in (None, pieces.get(other, -1))


def test_empty_trie():
    links, owner = fast_pieces._trie({})
    assert all(links[links[0, 0] + byte, 1] != 0 for byte in range(256))


def test_substrings_of_random_languages():
    """Against all substrings, counted one by one."""
    rng = random.Random(1)
    for letters in ("ab", "abcdefgh", [chr(c) for c in range(256, 900)]):
        words = ["".join(rng.choices(letters, k=rng.randint(1, 30)))
                 for _ in range(30)]
        corpus = {word: rng.randint(1, 3) for word in words}
        for length in (2, 5, 16):
            sizes = np.array([*map(len, corpus)])
            home, score, _ = fast_pieces._start(
                "".join(corpus), sizes, np.array([*corpus.values()]), length,
                10_000)
            starts = np.append(0, np.cumsum(sizes))
            text = "".join(corpus)
            found = [text[starts[word] + at:][:size]
                     for word, at, size in home.tolist()]
            seeds = seed_pieces(corpus, 10_000, max_length=length)
            assert found == list(seeds)
            np.testing.assert_allclose(score, list(seeds.values()))


def test_pairs_that_do_not_fit():
    with pytest.raises(ValueError, match="that does not fit"):
        fast_pieces._first_pairs(np.zeros(9, np.int32), np.zeros(9), 1 << 31)


@pytest.mark.parametrize("score", fast_pieces.SCORES)
def test_wordpiece_in_stages(score):
    """Enough merges for several surveys, on words of the manual."""
    words = chapter._count_words(manual()[0][:3], None)
    corpus = dict(list(words.items())[:400])
    learned = fast_pieces.learn_wordpiece(corpus, 500, score=score)
    assert learned == learn_wordpiece_loop(corpus, 500, score=score)
    assert len(learned) == 500


def test_blanks_and_marks_of_unigram():
    """A mark in the text is no place for a cut, but is a mark.

    And a piece with a blank of its own, which no word has, is never found.
    """
    scores = {"\u2581": -1.0, "a": -2.0, "\u2581a": -2.5, "b": -2.0,
              "  ": -0.1, " a": -0.1}
    own = Unigram(vocab={p: i for i, p in enumerate(scores)},
                  special_tokens={"<unk>": 9}, unk_token="<unk>",
                  scores=scores, byte_fallback=False, prefix_space=False)
    for text in ("\u2581a", " a", "b\u2581a b", "  a\u2581", "\u2581", ""):
        ids = [i for word in own._words(text)
               for i in own._ids(segment_unigram(word, scores))]
        assert own.encode(text) == ids
        assert own._encoder._words(text)[0].count(b" ") == sum(
            map(text.count, " \u2581"))


@pytest.mark.parametrize("normalizer", [None, str.lower, BertNormalizer()])
def test_words_are_counted_as_without_numba(normalizer, monkeypatch):
    """Strange characters in many short texts, the empty one included."""
    rng = random.Random(2)
    pool = ["a", "b", " ", "  ", "\u2581", "\xe9", "\u5b57", "\U0001f642", ",",
            "\n", "\t", "\x1c", "\0", "\xff", "I\u0307", "\u302e\u0301", "$"]
    texts = ["".join(rng.choices(pool, k=rng.randint(0, 9)))
             for _ in range(9_000)]

    def count():
        yield chapter._count_words(texts, normalizer)
        for prefix_space in (True, False):
            yield unigram._count_spaced(texts, normalizer, prefix_space)

    fast = [list(counts.items()) for counts in count()]
    monkeypatch.setitem(ENGINES, "pieces", lambda: None)
    assert fast == [list(counts.items()) for counts in count()]


def test_encoders_forget():
    pages, unseen = manual()
    for kind in (WordPiece, Unigram):
        tokenizer = kind.train(pages[:5], 600)
        right = tokenizer.encode_batch(unseen)
        encoder = tokenizer._encoder
        encoder.forget()
        encoder.rows = 16  # so few that it forgets all the time
        assert tokenizer.encode_batch(unseen) == right
        encoder.forget()
        assert encoder.idle == []
        with pytest.raises(TypeError, match="pickle the tokenizer instead"):
            pickle.dumps(encoder)


def test_count_words_grows():
    """More words than the first tables hold, and long ones."""
    texts = [" ".join(f"{i:x}" * (1 + i % 3) for i in range(k, 40_000, 7))
             for k in (0, 3, 7)]
    counted = fast_pieces.count_spaced(texts)
    expected = {}
    for text in texts:
        for word in text.replace(" ", " \u2581").split(" "):
            expected[word] = expected.get(word, 0) + 1
    assert counted == expected and list(counted) == list(expected)


def test_two_threads_share_an_encoder():
    pages, unseen = manual()
    for kind in (WordPiece, Unigram):
        tokenizer = kind.train(pages, 1_500)
        right, found = tokenizer.encode_batch(unseen), [None, None]

        def work(i, tokenizer=tokenizer, found=found):
            found[i] = tokenizer.encode_batch(unseen)

        threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [right, right]


def test_cache_of_a_package_that_cannot_be_written(tmp_path):
    """numba then keeps what it compiled in the user's cache folder."""
    package = tmp_path / "site" / "lmcourse"
    shutil.copytree(Path(lmcourse.__file__).parent, package,
                    ignore=shutil.ignore_patterns("__pycache__"))
    # a file where the folder would be: nobody, not even root, can write there
    (package / "tokenizers" / "fast" / "__pycache__").write_text("")
    code = ("from lmcourse.tokenizers.fast import pieces as f; import numpy;"
            "f._grown(numpy.zeros(2), 0.0); print(f.__file__)")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        check=True, env=os.environ | {
            "PYTHONPATH": str(package.parent), "HOME": str(tmp_path),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1"}, cwd=tmp_path)
    assert done.stdout.startswith(str(package))
    assert list((tmp_path / "cache").rglob("*.nbi"))


@pytest.mark.parametrize("n", [1, 3 * 10 ** 9, 2 ** 31, 2 ** 32, 2 ** 40])
@pytest.mark.parametrize("score", fast_pieces.SCORES)
def test_counts_may_be_large(score, n):
    """The product of two counts fits no integer of 64 bits any more."""
    corpus = {"hug": 10 * n, "pug": 5 * n, "pun": 12 * n, "hugs": 5 * n}
    learned = fast_pieces.learn_wordpiece(corpus, 18, score=score)
    assert learned == learn_wordpiece_loop(corpus, 18, score=score)
    assert len(learned) > 14
