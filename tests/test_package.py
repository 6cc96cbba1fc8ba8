"""The package as somebody meets it who only installed it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORACLES = {"transformers", "tokenizers", "sentencepiece", "tiktoken", "peft",
           "nbdev", "fastcore", "IPython"}


def loaded_after(statement):
    """Top-level names of the modules that a fresh Python has loaded."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True,
                          capture_output=True, text=True, cwd=ROOT)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("module", ["lmcourse", "lmcourse.world",
                                    "lmcourse.experiments",
                                    "lmcourse.tokenizers"])
def test_import_without_torch(module):
    loaded = loaded_after(f"import {module}")
    assert not loaded & {"torch", "numba", "matplotlib"}


def test_no_module_imports_an_oracle():
    statement = """
import importlib, pkgutil, lmcourse
for m in pkgutil.walk_packages(lmcourse.__path__, "lmcourse."):
    importlib.import_module(m.name)
"""
    assert not loaded_after(statement) & ORACLES


def test_all_dependencies_are_lower_bounds():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        assert ">=" in requirement and "==" not in requirement
