"""The parts without torch give the same in another version of Python.

`make env` prepares `.venv/other` where a second Python is installed; where
there is none, `tools/other_python.py` has said so, and this file is empty.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OTHER = ROOT / ".venv/other/bin/python"
PYTHONS = [str(OTHER)] if OTHER.exists() else []
DIGEST = """
import hashlib, sys
from lmcourse.tokenizers import (
    ByteBPE, Characters, Unigram, WordPiece, Words, learn_bpe)
from lmcourse.world import documents
read = list(documents(60))
asked = [*documents(20, seed=1), "", "Straße, 3 + 8 = 11?",
         "\\t\\n\\x00 e\\u0301"]
digest = hashlib.sha256()
for tokenizer in (
        Words.train(read), Characters.train(read), ByteBPE.train(read, 400),
        WordPiece.train(read, 400), Unigram.train(read, 400)):
    ids = [tokenizer.encode(text) for text in asked]
    texts = [tokenizer.decode(row) for row in ids]
    digest.update(repr((ids, texts)).encode("utf-8", "backslashreplace"))
digest.update(repr(learn_bpe({"low": 5, "newer": 6, "wider": 3}, 8)).encode())
assert "torch" not in sys.modules
print(digest.hexdigest())
"""


CODE = """
import ast, hashlib, pathlib
from lmcourse.experiments import deciding_code
digest = hashlib.sha256()
for path in sorted(pathlib.Path("lmcourse").rglob("*.py")):
    source = path.read_text()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            digest.update(deciding_code(source, node.name).encode())
print(digest.hexdigest())
"""


def run(python, *arguments):
    done = subprocess.run([python, *arguments], capture_output=True,
                          text=True, cwd=ROOT, env={"TQDM_DISABLE": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("python", PYTHONS)
def test_it_is_another_version(python):
    code = "import sys; print(sys.version_info[:2])"
    assert run(python, "-c", code) != run(sys.executable, "-c", code)


@pytest.mark.parametrize("python", PYTHONS)
def test_tokenizers_give_the_same_ids(python):
    assert run(python, "-c", DIGEST) == run(sys.executable, "-c", DIGEST)


@pytest.mark.parametrize("python", PYTHONS)
def test_fingerprints_are_the_same(python):
    """Of every function: their form does not depend on the Python."""
    assert run(python, "-c", CODE) == run(sys.executable, "-c", CODE)


@pytest.mark.parametrize("python", PYTHONS)
def test_every_module_compiles(python, tmp_path):
    """Also those that need torch are written in that Python's language."""
    code = ("import pathlib, sys\n"
            "for path in pathlib.Path('lmcourse').rglob('*.py'):\n"
            "    compile(path.read_bytes(), str(path), 'exec')\n")
    run(python, "-W", "error", "-c", code)
