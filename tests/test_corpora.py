"""Documents from files, tokens on disk, shuffled blocks."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lmcourse.corpora import BlockBatches, Corpus, read_documents, write_tokens
from lmcourse.tokenizers import Characters
from lmcourse.tokenizers.base import END_OF_TEXT
from lmcourse.world import documents

ROOT = Path(__file__).parents[1]
TEXTS = ["Anna ran.", "été 😀", 'Tom said "no".', "x" * 300]


@pytest.fixture(scope="module")
def tokenizer():
    return Characters.train([*TEXTS, *documents(200)])


def write_all(folder):
    """The same texts in every form."""
    import pyarrow
    from pyarrow import parquet

    lines = "\n".join([TEXTS[0], "", *TEXTS[1:], "  "])
    objects = "\n".join(json.dumps({"id": 1, "text": text}) + "\n"
                        for text in TEXTS)
    (folder / "a.txt").write_text(lines, encoding="utf-8")
    (folder / "b.jsonl").write_text(objects, encoding="utf-8")
    for name, text in [("c.txt.gz", lines), ("d.jsonl.gz", objects)]:
        with gzip.open(folder / name, "wt", encoding="utf-8") as file:
            file.write(text)
    table = pyarrow.table({"n": [1, 2, 3, 4], "text": TEXTS})
    parquet.write_table(table, folder / "e.parquet", row_group_size=2)


def test_every_form_gives_the_same_documents(tmp_path):
    write_all(tmp_path)
    for path in tmp_path.iterdir():
        assert list(read_documents(path)) == TEXTS, path.name
    assert list(read_documents(tmp_path)) == 5 * TEXTS
    assert list(read_documents([tmp_path / "b.jsonl",
                                str(tmp_path / "a.txt")])) == 2 * TEXTS


def test_the_library_streams_the_same(tmp_path):
    """datasets, streaming local files, as it would those of the Hub."""
    datasets = pytest.importorskip("datasets")
    write_all(tmp_path)
    for kind, name in [("json", "b.jsonl"), ("parquet", "e.parquet")]:
        rows = datasets.load_dataset(
            kind, data_files=str(tmp_path / name), split="train",
            streaming=True, cache_dir=str(tmp_path / "cache"))
        assert [row["text"] for row in rows] == TEXTS


@pytest.mark.parametrize("name, content, message", [
    ("a.jsonl", '{"text": "x"}\n{"txt": 1}', r"object 2: must be JSON with"),
    ("a.jsonl", "{", r"object 1: must be JSON with a 'text'"),
    ("a.jsonl", "[1]", r"object 1: must be JSON with a 'text'"),
    ("a.jsonl", '{"text": 7}', r"object 1: 'text' is 7, must be text"),
    ("a.parquet", "no", "is no parquet file"),
    ("a.csv", "x", r"must end in \.txt, \.jsonl, \.parquet"),
    ("a.gz", "x", r"must end in \.txt, \.jsonl, \.parquet")])
def test_bad_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        list(read_documents(path))
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.txt: is not there"):
        list(read_documents(tmp_path / "none.txt"))
    write_all(tmp_path)
    with pytest.raises(ValueError, match=r"field='body': must be one of its "
                                         r"columns, \['n', 'text'\]"):
        list(read_documents(tmp_path / "e.parquet", field="body"))


def test_tokens_come_back(tmp_path, tokenizer):
    n = write_tokens(tmp_path / "c", iter(TEXTS), tokenizer)
    corpus = Corpus(tmp_path / "c")
    assert n == len(corpus) and corpus.vocab_size == tokenizer.vocab_size
    assert isinstance(corpus.input_ids, np.memmap)
    assert corpus.input_ids.dtype == np.uint16
    end, start = tokenizer.special_tokens[END_OF_TEXT], 0
    for text, stop in zip(TEXTS, corpus.ends.tolist(), strict=True):
        assert corpus.input_ids[start:stop].tolist() == [
            *tokenizer.encode(text), end]
        start = stop
    assert start == n


def test_parts_are_joined(tmp_path, tokenizer, monkeypatch):
    """Whatever is in memory at a time."""
    from lmcourse import corpora

    write_tokens(tmp_path / "a", documents(30), tokenizer)
    monkeypatch.setattr(corpora, "_BUFFER", 100)
    write_tokens(tmp_path / "b", documents(30), tokenizer)
    for name in ("tokens.bin", "ends.bin", "corpus.json"):
        assert (tmp_path / "a" / name).read_bytes() == (
            tmp_path / "b" / name).read_bytes()


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    class Wide:
        special_tokens, vocab_size = {END_OF_TEXT: 70_000}, 70_001

        def encode(self, text):
            return [69_999, 1]

    write_tokens(tmp_path / "c", ["x"], Wide())
    corpus = Corpus(tmp_path / "c")
    assert corpus.input_ids.tolist() == [69_999, 1, 70_000]
    assert corpus.input_ids.itemsize == 4


def test_nothing_to_write_leaves_nothing(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="^texts: must hold at least one"):
        write_tokens(tmp_path / "c", [], tokenizer)
    with pytest.raises(ValueError, match=r"^end_token='\[SEP\]': must be"):
        write_tokens(tmp_path / "c", TEXTS, tokenizer, end_token="[SEP]")
    assert not [*tmp_path.iterdir()]
    with pytest.raises(FileNotFoundError):
        Corpus(tmp_path / "c")


@pytest.mark.parametrize("name", ["tokens.bin", "ends.bin"])
def test_a_file_cut_short_is_named(tmp_path, tokenizer, name):
    write_tokens(tmp_path / "c", TEXTS, tokenizer)
    path = tmp_path / "c" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{name}: has .* bytes, must have"):
        Corpus(tmp_path / "c")


WRITE = """
import os, resource, signal, sys
from pathlib import Path
from lmcourse.corpora import write_tokens
from lmcourse.tokenizers import Words
from lmcourse.world import documents

class Plain:
    special_tokens, vocab_size = {{"<|endoftext|>": 0}}, 256
    def encode(self, text):
        return list(text.encode())

def texts(n):
    for i, text in enumerate(documents(n)):
        if i == {kill}:
            os.kill(os.getpid(), signal.SIGKILL)
        yield text

write_tokens(Path({folder!r}) / "c", texts({n}), Plain())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def run(folder, n, kill=-1):
    return subprocess.run(
        [sys.executable, "-c", WRITE.format(folder=str(folder), n=n,
                                            kill=kill)],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Ten times the documents, 20 MB more of ids: at most 12 MB more."""
    peaks = []
    for n in (8000, 80_000):
        done = run(tmp_path, n)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) / 1024)
    size = (tmp_path / "c/tokens.bin").stat().st_size / 2 ** 20
    assert size > 20
    assert peaks[1] - peaks[0] < 12, peaks


def test_killed_while_writing_leaves_no_corpus(tmp_path):
    write_tokens(tmp_path / "c", ["old"], Old())
    done = run(tmp_path, 3000, kill=2500)
    assert done.returncode == -signal.SIGKILL
    assert Corpus(tmp_path / "c").input_ids.tolist() == [5, 0]
    left = [p.name for p in tmp_path.iterdir() if p.name != "c"]
    assert all(re.match(r"\.writing-", name) for name in left)


class Old:
    special_tokens, vocab_size = {END_OF_TEXT: 0}, 9

    def encode(self, text):
        return [5]


@pytest.mark.parametrize("N, length, B", [(20, 3, 2), (100, 7, 3), (9, 8, 4),
                                          (50, 1, 5)])
def test_every_block_comes_once_an_epoch(N, length, B):
    batches = BlockBatches(np.arange(N), batch_size=B, length=length, seed=4)
    n = (N - 1) // length
    firsts = torch.cat([batches(step)[:, 0] for step in range(3 * n)])
    for step in range(3):
        for row in batches(step).tolist():
            assert row == list(range(row[0], row[0] + length + 1))
    orders = [firsts[i * n:(i + 1) * n].tolist() for i in range(3)]
    for order in orders:
        assert sorted(order) == [i * length for i in range(n)]
    if n > 10:
        assert orders[0] != orders[1] != orders[2]


def test_batches_follow_from_seed_and_step():
    def blocks(seed):
        return BlockBatches(np.arange(999), batch_size=4, length=9, seed=seed)

    one = blocks(1)
    far = one(70), one(3), one(40)  # in any order, across epochs
    for step, batch in zip((70, 3, 40), far, strict=True):
        assert torch.equal(batch, blocks(1)(step))
    assert not torch.equal(blocks(1)(3), blocks(2)(3))


def test_documents_are_told_apart():
    ends = np.array([4, 5, 11, 30])
    batches = BlockBatches(np.arange(30), batch_size=3, length=6, ends=ends)
    for step in range(4):
        batch = batches(step)
        for ids, owners in zip(batch["input_ids"].tolist(),
                               batch["document_ids"].tolist(), strict=True):
            assert owners == [sum(i >= end for end in ends) for i in ids]


@pytest.mark.parametrize("options, message", [
    ({"batch_size": 0}, "^batch_size=0: must be a whole number, at least 1"),
    ({"length": 2.5}, "^length=2.5: must be a whole number"),
    ({"length": 10}, "^length=10: must be below the text's 10 tokens$")])
def test_sizes_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        BlockBatches(np.arange(10), **{"batch_size": 1, "length": 3,
                                       **options})
