"""The API's pages: one for each module, with an example that runs."""

import doctest
import importlib
import importlib.util
import re
import sys
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
chapters = importlib.import_module("chapters")
PAGES = sorted((ROOT / "nbs" / "api").glob("*.md"))
FENCE = re.compile(r"^```pycon\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMPILED = importlib.util.find_spec("numba") is not None

matplotlib.use("agg")


def example_of(page):
    """What stands in the page's block of code."""
    (example,) = FENCE.findall(page.read_text(encoding="utf-8"))
    return example


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_example_runs(page):
    """What is typed gives what is printed, on any machine."""
    if ".fast." in page.name and not COMPILED:
        pytest.skip("numba is not installed")
    test = doctest.DocTestParser().get_doctest(
        example_of(page), {}, page.name, str(page), 0)
    said = []
    failed, tried = doctest.DocTestRunner(verbose=False).run(
        test, out=said.append)
    assert tried >= 3
    assert not failed, "".join(said)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_example_uses_the_module_of_its_page(page):
    names = set(re.findall(r"\w+", example_of(page)))
    module = chapters.modules()[f"lmcourse.{page.stem}"]
    assert names & set(chapters.public_names(module))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_example_fits(page):
    assert max(map(len, example_of(page).splitlines())) <= 79
