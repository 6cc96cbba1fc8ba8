"""What the compiled versions have beyond the tests of chapters 12 and 13."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

import lmcourse
from lmcourse.tokenizers import fast_pieces
from lmcourse.tokenizers.base import manual
from lmcourse.tokenizers.unigram import Unigram
from lmcourse.tokenizers.wordpiece import WordPiece


def test_table_of_integers_finds_what_it_holds():
    rng = np.random.default_rng(0)
    entries = {int(k): i for i, k in enumerate(
        rng.integers(0, 2 ** 50, 5_000))}
    keys = np.full(1 << 13, -1, np.int64)
    values = np.empty(1 << 13, np.int32)
    for key, value in entries.items():
        slot = fast_pieces._slot(keys, np.int64(key))
        keys[slot], values[slot] = key, value
    keys, values = fast_pieces._rehashed(keys, values)
    for key, value in entries.items():
        slot = fast_pieces._slot(keys, np.int64(key))
        assert keys[slot] == key and values[slot] == value
    assert keys[fast_pieces._slot(keys, np.int64(-2))] == -1


def test_table_spreads_nodes_and_letters():
    """Keys (node, letter) of few letters and many nodes do not pile up."""
    keys = np.full(1 << 14, -1, np.int64)
    moved = 0
    for node in range(2_000):
        for letter in (97, 98, 101, 116):
            key = fast_pieces._join(node, letter)
            slot = fast_pieces._slot(keys, key)
            mixed = (int(key) * int(fast_pieces._MIX)) % 2 ** 64
            mixed -= 2 ** 64 * (mixed >= 2 ** 63)
            moved += slot != (mixed ^ (mixed >> 32)) & (len(keys) - 1)
            keys[slot] = key
    assert moved < 4_000  # half of the keys at the most, at half load


def test_heap_gives_the_best_first():
    rng = np.random.default_rng(1)
    scores, keys = rng.integers(0, 50, 500), rng.permutation(500)
    heap, order = np.empty(500), []
    heap_keys, pairs = np.empty(500, np.int64), np.empty(500, np.int32)
    for n, (score, key) in enumerate(zip(scores, keys, strict=True)):
        fast_pieces._push(heap, heap_keys, pairs, n, float(score), key, n)
    for n in range(500, 0, -1):
        order.append((-heap[0], heap_keys[0]))
        fast_pieces._pop(heap, heap_keys, pairs, n)
    assert order == sorted(order)


def test_count_words_grows():
    """More words than the first tables hold, and long ones."""
    texts = [" ".join(f"{i:x}" * (1 + i % 3) for i in range(k, 40_000, 7))
             for k in (0, 3, 7)]
    counted = fast_pieces.count_spaced(texts)
    expected = {}
    for word in " ".join(texts).split(" "):
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
    (package / "tokenizers" / "__pycache__").write_text("")
    code = ("from lmcourse.tokenizers import fast_pieces as f; import numpy;"
            "f._grown(numpy.zeros(2)); print(f.__file__)")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        check=True, env=os.environ | {
            "PYTHONPATH": str(package.parent), "HOME": str(tmp_path),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1"}, cwd=tmp_path)
    assert done.stdout.startswith(str(package))
    assert list((tmp_path / "cache").rglob("*.nbi"))
