"""Notebooks, texts, exported modules and pages agree with each other.

What `make check` runs: quick, and nothing here imports the package.
"""

import ast
import filecmp
import json
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import jupytext
import pytest
from jupytext.config import load_jupytext_config

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
sys.path.insert(0, str(ROOT / "tools"))
import chapters  # noqa: E402
from chapters import code_cells, module_of  # noqa: E402

NOTEBOOKS = sorted(NBS.glob("*.ipynb"))
STEMS = sorted({p.stem for p in NOTEBOOKS}
               | {p.stem for p in (NBS / "text").glob("*.md")})
WRITTEN_BY = {module_of(p): p.stem for p in NOTEBOOKS if module_of(p)}


def path_of(module):
    """Where an exported module lies."""
    return ROOT / (module.replace(".", "/") + ".py")


@pytest.mark.parametrize("stem", STEMS)
def test_notebook_and_text_hold_the_same_cells(stem):
    path = NBS / f"{stem}.ipynb"
    config = load_jupytext_config(str(path))
    text = jupytext.writes(jupytext.read(path), fmt="md:myst", config=config)
    saved = (NBS / "text" / f"{stem}.md").read_text(encoding="utf-8")
    assert saved == text, "run `make sync`"


def test_export_leaves_no_difference(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbs", "lmcourse"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "settings.ini", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run([chapters.BIN / "nbdev_export"], cwd=tmp_path, check=True)
    fresh = sorted((tmp_path / "lmcourse").rglob("*.py"))
    for path in fresh:
        committed = ROOT / path.relative_to(tmp_path)
        assert filecmp.cmp(path, committed, shallow=False), committed
    existing = (ROOT / "lmcourse").rglob("*.py")
    assert len(fresh) == len(list(existing))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_clean(path):
    nb = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in nb["metadata"]
    for cell in nb["cells"]:
        assert set(cell["metadata"]) <= {"tags"}
        if cell["cell_type"] == "code":
            assert cell["execution_count"] is None, "run `make run`"
            names = {output.get("name") for output in cell["outputs"]}
            assert "stderr" not in names, "a warning, with somebody's path"
    assert path.stat().st_size < 3e6, "outputs too large for a page"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_first_code_cell_installs_on_colab(path):
    first = code_cells(path)[0].source
    assert first == chapters.colab_cell(), "run `make owner`"


def test_project_address_is_the_one_of_settings():
    project = (ROOT / "pyproject.toml").read_text()
    assert f'Source = "{chapters.address()["url"]}"' in project


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_figures_have_alt_text(path):
    for cell in code_cells(path):
        draws = any(name.startswith("image/")
                    for output in cell.outputs
                    for name in output.get("data", {}))
        if draws:
            assert re.search(r"^#\| fig-alt: \S", cell.source, re.M), \
                cell.source[:80]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_code_fits_a_page(path):
    """Longer lines scroll sideways; an alt text is one line, not shown."""
    lines = [line for cell in code_cells(path)
             if not cell.source.startswith("#| hide")
             for line in cell.source.splitlines()]
    assert [line for line in lines
            if len(line) > 79 and not line.startswith("#| f")] == []


def test_chapters_import_only_what_came_before():
    """The reading order is an order of imports, inside functions as well."""
    for stem, needed in chapters.dependencies().items():
        assert [other for other in needed if other > stem] == [], stem


def test_no_circle_of_imports():
    """Neither at the top of modules nor inside their functions."""
    TopologicalSorter(chapters.import_graph()).prepare()  # or CycleError


def test_each_public_name_is_defined_once():
    where = {}
    for module in WRITTEN_BY:
        for name in chapters.public_names(path_of(module)):
            where.setdefault(name, []).append(module)
    assert {n: m for n, m in where.items() if len(m) > 1} == {}


def test_public_names_have_docstrings():
    bare = [f"{module}.{name}" for module in WRITTEN_BY
            for name, node in chapters.exported(path_of(module)).items()
            if not (ast.get_docstring(node) or "").strip()]
    assert bare == []


@pytest.mark.parametrize("module", sorted(WRITTEN_BY))
def test_module_begins_with_one_line_that_says_what_it_holds(module):
    """nbdev takes it from the title's cell: the line `> What it holds.`"""
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    first = ast.get_docstring(tree) or ""
    assert re.fullmatch(r"\S.{10,72}\.", first), first


def test_every_chapter_is_in_the_contents_and_every_module_has_its_page():
    index = (NBS / "index.md").read_text(encoding="utf-8")
    api = (NBS / "api.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert re.search(rf"^{path.stem}$", index, re.M), path.stem
    for module, stem in WRITTEN_BY.items():
        path, name = NBS / f"{stem}.ipynb", module.removeprefix("lmcourse.")
        assert f"{name} <api/{name}>\n" in api, module
        page = (NBS / "api" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {module}\n"), module
        link = f"[{chapters.title(path)}](../{path.name})"
        assert link in " ".join(page.split()), module
        assert f"{{module-names}} {module}\n" in page, module
        assert f".. automodule:: {module}\n   :members:\n" in page, module


def test_layers_hold():
    linter = chapters.BIN / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def ruff(*arguments, **keywords):
    return subprocess.run(
        [chapters.BIN / "ruff", "check", "--no-cache", *arguments], cwd=ROOT,
        capture_output=True, text=True, **keywords)


def test_style():
    done = ruff(".")
    assert done.returncode == 0, done.stdout


def test_a_name_that_the_module_lacks_is_found():
    """Its notebook may have it all the same, from a cell not exported."""
    done = ruff("--stdin-filename", "lmcourse/models/new.py", "-",
                input="def of_text(config):\n    return cache_bytes(config)\n")
    assert done.returncode == 1
    assert "F821 Undefined name `cache_bytes`" in done.stdout


# how many are left, by module, may only shrink: torch's `_parameters`
BORROWED = {"checkpoints.base": 1}
NAMEDTUPLE = {"_asdict", "_fields", "_make", "_replace"}  # documented


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def defined(tree):
    """Names that a source defines or assigns, as attributes as well."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Name, ast.Attribute)) \
                and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def borrowed(tree):
    """Private names of others: imported, or read from other than `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) \
                and ast.unparse(node.value) not in ("self", "cls", "super()"):
            yield node.attr


@pytest.mark.parametrize("module", sorted(WRITTEN_BY))
def test_no_private_name_crosses_modules(module):
    """A subclass may use what it inherits; all else has a public name."""
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    found = {name for name in borrowed(tree) if is_private(name)}
    found -= NAMEDTUPLE | set(defined(tree))
    allowed = BORROWED.get(module.removeprefix("lmcourse."), 0)
    assert len(found) <= allowed, sorted(found)


FORBIDDEN = re.compile(
    r"\b(?:import (?:socket|urllib|requests|http|pickle)|from (?:socket"
    r"|urllib|requests|http|pickle)|huggingface_hub|torch\.hub|os\.environ"
    r"|eval\(|exec\()")


@pytest.mark.parametrize("module", sorted(WRITTEN_BY))
def test_exported_code_keeps_to_itself(module):
    """No network, no environment, nothing evaluated or unpickled."""
    if module == "lmcourse.checkpoints.base":
        return  # the one module that may reach the network
    source = path_of(module).read_text(encoding="utf-8")
    source = source.replace("model.eval(", "")
    found = [line for line in source.splitlines() if FORBIDDEN.search(line)
             and ".eval(" not in line]
    assert found == []


BRITISH = re.compile(
    r"\b(?:colour|behaviour|neighbour|favour|labell|modell|centre\b"
    r"|\w+(?:okenis|ptimis|ormalis|nitialis|eneralis|aximis|inimis|ummaris"
    r"|ecognis|egularis|arameteris|ectoris|iscretis)(?:e|ed|es|er|ing"
    r"|ation|ations))", re.IGNORECASE)


@pytest.mark.parametrize(
    "path", [*sorted((NBS / "text").glob("*.md")), *sorted(NBS.glob("*.md")),
             *sorted((NBS / "api").glob("*.md")), ROOT / "README.md",
             ROOT / "CONTRIBUTING.md"],
    ids=lambda p: p.stem)
def test_one_spelling(path):
    """The book is written in American English."""
    assert BRITISH.findall(path.read_text(encoding="utf-8")) == []
