"""Sync, export, execute and clean the chapters: what `make run` does.

    python tools/chapters.py run [CH ...]   execute these chapters, or all
    python tools/chapters.py draft [CH ...] the same, on this processor only
    python tools/chapters.py sync           text <-> notebooks, then export
    python tools/chapters.py owner          write the address of settings.ini

A notebook is executed in memory and replaces the committed one in a single
rename: interrupt the run, and the file is as it was. Before that, `run` sees
to it that its outputs are the same on other processors (`arithmetic.py`).
"""

import argparse
import ast
import configparser
import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import arithmetic
import nbformat
from nbclient.exceptions import CellExecutionError, DeadKernelError
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
TEXT = NBS / "text"
RUNTIMES = ROOT / "book" / "runtimes.json"
BIN = Path(sys.executable).parent

COLAB = """\
#| hide
# On Colab this installs the book's package; elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    %pip install -q --no-deps "lmcourse @ git+{url}@{branch}"
"""


def address():
    """Where the book lives, from settings.ini: `url` and `branch`."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    s = parser["DEFAULT"]
    url = f"https://github.com/{s['user']}/{s['repo']}"
    return {"url": url, "branch": s["branch"]}


def colab_cell():
    """The first code cell of every chapter."""
    return COLAB.format(**address()).rstrip()


def chapters(names=()):
    """Paths of the notebooks named by number or stem, or of all."""
    paths = sorted(NBS.glob("*.ipynb"))
    unknown = [name for name in names
               if not any(is_named(p, name) for p in paths)]
    if unknown:
        stems = ", ".join(p.stem for p in paths)
        sys.exit(f"CH={' '.join(unknown)} is no chapter; there are: {stems}")
    return [p for p in paths
            if not names or any(is_named(p, name) for name in names)]


def is_named(path, name):
    """Whether `name` is the stem of `path` or the number it starts with."""
    return name in (path.stem, path.stem.split("_")[0])


def source_of(path):
    """The code of a notebook as Python."""
    return "\n".join(re.sub(r"%pip .*", "pass", cell.source)
                     for cell in code_cells(path))


def code_cells(path):
    """The code cells of a notebook."""
    nb = nbformat.v4.reads(path.read_text(encoding="utf-8"))
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def title(path):
    """The first heading of a notebook."""
    nb = nbformat.read(path, as_version=4)
    return nb.cells[0].source.splitlines()[0].lstrip("# ")


def module_of(path):
    """The module that a notebook writes, or None."""
    for cell in code_cells(path):
        if match := re.match(r"#\| default_exp (\S+)", cell.source):
            return "lmcourse." + match[1]


def imported(source, package=()):
    """Full names of what `source` imports, inside functions as well.

    Args:
        package: the parts of the package that it stands in.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1]
            base = [*(above if node.level else ()), node.module]
            names |= {".".join(filter(None, [*base, alias.name]))
                      for alias in node.names}
    return names


def holder(name, known):
    """The module in `known` that holds what is called `name`, or None."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def dependencies():
    """For each chapter's stem, the stems of the chapters that it imports.

    What a package's `__init__` offers does not count: there, and only there,
    something that comes later may be wired in.
    """
    paths = chapters()
    written = {module_of(path): path.stem for path in paths}
    written.pop(None, None)
    needed = {}
    for path in paths:
        names = imported(source_of(path))
        found = {holder(name, written) for name in names} - {None}
        needed[path.stem] = sorted({written[m] for m in found} - {path.stem})
    return needed


def modules():
    """The path of each module of the package, by its full name."""
    found = {}
    for path in sorted((ROOT / "lmcourse").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def public_names(path):
    """What stands in a module's `__all__`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) \
                and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def exported(path):
    """A module's public functions and classes, as syntax trees by name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set(public_names(path))
    return {node.name: node for node in tree.body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
            and node.name in names}


def import_graph():
    """For each module of the package, the ones that it imports."""
    paths = modules()
    graph = {}
    for name, path in paths.items():
        package = name.split(".")
        if path.name != "__init__.py":
            package.pop()
        found = {holder(other, paths) for other in imported(
            path.read_text(encoding="utf-8"), package)}
        graph[name] = sorted(found - {None, name})
    return graph


def reaches(path, package):
    """Whether a chapter imports a package, or a module that does."""
    paths, graph = modules(), import_graph()
    names = imported(source_of(path))
    waiting, seen = {holder(name, paths) for name in names} - {None}, set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        waiting |= set(graph[module]) - seen
        names |= imported(paths[module].read_text(encoding="utf-8"))
    return any(name.split(".")[0] == package for name in names)


def replace(path, text):
    """Write `text` to a temporary name beside `path`, then rename it."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync():
    """Bring notebook and text of each chapter to the newer of the two."""
    paths = [*NBS.glob("*.ipynb"), *TEXT.glob("*.md")]
    newest = {}
    for path in sorted(paths, key=lambda p: p.stat().st_mtime):
        newest[path.stem] = path
    command = [sys.executable, "-m", "jupytext", "--quiet", "--sync"]
    subprocess.run(command + sorted(map(str, newest.values())), cwd=ROOT,
                   check=True)


def export():
    """Write the exported cells of all notebooks to `lmcourse/`."""
    subprocess.run([BIN / "nbdev_export"], cwd=ROOT, check=True)


def execute(path, *, settings):
    """Run one notebook in a fresh kernel; return the seconds it took.

    It is left as it was where its outputs are others in one of `settings`.
    """
    nb = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    arithmetic.execute(nb, timeout=900)
    seconds = time.perf_counter() - start
    found = [f"[{setting}] {text}" for setting in settings
             for text in arithmetic.differences(nb, setting)]
    if found:
        sys.exit("\n".join([*found, f"{path.name} differs on other processors"
                            " and is as it was; print what stays."]))
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
    replace(path, nbformat.writes(nb) + "\n")
    subprocess.run([BIN / "nbdev_clean", "--fname", path], cwd=ROOT,
                   check=True)
    return seconds


def record(stem, seconds):
    """Keep the measured run time, which the rendered page shows."""
    runtimes = json.loads(RUNTIMES.read_text()) if RUNTIMES.exists() else {}
    runtimes[stem] = round(seconds)
    replace(RUNTIMES, json.dumps(runtimes, indent=1, sort_keys=True) + "\n")


def run(names, *, portable):
    """Sync, export, execute, clean and sync again."""
    os.environ["TQDM_DISABLE"] = "1"  # no progress bars in saved outputs
    sync()
    export()
    for path in tqdm(chapters(names), desc="chapters", disable=False):
        try:
            settings = (arithmetic.TELLING if portable
                        and reaches(path, "torch") else ())
            record(path.stem, execute(path, settings=settings))
        except CellExecutionError as error:
            sys.exit(f"{error}\n{path.name} failed and is as it was.")
        except (KeyboardInterrupt, AssertionError, DeadKernelError):
            # on Ctrl-C nbclient ends its kernel, and then stumbles over that
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            sys.exit(f"\nInterrupted: {path.name} is as it was.")
        if path.stem == "32_pretraining":
            subprocess.run([sys.executable, ROOT / "tools/page_model.py"],
                           check=True)
    sync()


def owner():
    """Write the address wherever it stands; only settings.ini is edited."""
    sync()
    for path in chapters():
        nb = nbformat.read(path, as_version=4)
        first = next(c for c in nb.cells if c.cell_type == "code")
        if first.source != colab_cell():
            first.source = colab_cell()
            replace(path, nbformat.writes(nb) + "\n")
    sync()
    export()  # the index of the package knows the address too
    project = ROOT / "pyproject.toml"
    line = f'Source = "{address()["url"]}"'
    replace(project, re.sub(r'^Source = ".*"$', line, project.read_text(),
                            flags=re.MULTILINE))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "draft", "sync", "owner"])
    parser.add_argument("chapters", nargs="*")
    arguments = parser.parse_args()
    if arguments.command in ("run", "draft"):
        run(arguments.chapters, portable=arguments.command == "run")
    elif arguments.command == "owner":
        owner()
    else:
        sync()
        export()


if __name__ == "__main__":
    main()
