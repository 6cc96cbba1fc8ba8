"""What a page makes of a notebook's cells, and of its words in bold."""

import base64
import importlib
import io
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "book"), str(ROOT / "tools")]
dressing = importlib.import_module("dressing")
terms = importlib.import_module("terms")


def cell(source, *, tags=(), outputs=()):
    return {"cell_type": "code", "source": source,
            "metadata": {"tags": list(tags)}, "outputs": list(outputs)}


def prompt(source, **options):
    """The line that opens the cell's fold; None if it is open."""
    dressed = cell(source, **options)
    assert dressing.dress_cell(dressed)
    return dressed["metadata"]["mystnb"].get("code_prompt_show")


@pytest.mark.parametrize("source, expected", [
    ("x = 1", None),
    ("import math\nfrom x import y", "Imports"),
    ("import math\nx = 1", None),
    ("#| export\ndef _a(): pass\n\n\n_B = 1", "Helpers: _a, _B"),
    ("#| export\n_A, _b = 1, 2", "Helpers: _A, _b"),
    ("#| export\n_A: int = 1", "Helpers: _A"),
    ("#| export\ndef _a(): pass\n\n\ndef b(): pass", None),
    ("def _a(): pass", None),
    ("_a()", None),
    ('#| fig-alt: "A line."\nplot()', "Code of the figure"),
    ("#| code-fold: true\nx = 1", "Code"),
    ('#| code-fold: true\n#| code-summary: "Words"\nx = 1', "Words"),
    ("#| code-fold: false\nimport math", None),
    ('#| code-fold: false\n#| fig-alt: "A line."\nplot()', None),
    ("%pip install x", None),
    ("", None),
])
def test_what_folds_and_under_which_name(source, expected):
    assert prompt(source) == expected


def test_a_solution_says_so():
    assert prompt("x = 1", tags=["hide-cell"]) == "Show a solution"


@pytest.mark.parametrize("source", ["#| hide\nx = 1", "#| default_exp a.b"])
def test_cells_that_are_not_on_the_page(source):
    assert not dressing.dress_cell(cell(source))


@pytest.mark.parametrize("source, expected", [
    ("#| fold-bodies: crop, n_bytes\nclass A: pass",
     ["fold-crop", "fold-n_bytes"]),
    ("def check_1(answer):\n    assert answer == 42", ["fold-check_1"]),
    ("def check_all(x):\n    pass", []),
])
def test_definitions_that_show_their_first_line(source, expected):
    dressed = cell(source)
    dressing.dress_cell(dressed)
    assert dressed["metadata"]["tags"] == expected


def test_directives_are_not_on_the_page():
    dressed = cell('#| export\n#| fig-alt: "A line."\nx = 1  #| no')
    dressing.dress_cell(dressed)
    assert dressed["source"] == "x = 1  #| no"
    assert dressed["metadata"]["mystnb"]["image"]["alt"] == "A line."


def picture(width):
    from PIL import Image
    written = io.BytesIO()
    Image.new("RGB", (width, 10)).save(written, "png")
    return base64.b64encode(written.getvalue()).decode()


@pytest.mark.parametrize("pixels, metadata, expected", [
    (300, {}, {"width": "300px"}),
    (800, {}, {"width": "800px", "classes": "wide"}),
    (800, {"image/png": {"width": 400}}, {"width": "400px"}),
    (1600, {"image/png": {"width": 800}},
     {"width": "800px", "classes": "wide"}),
])
def test_a_sharp_picture_is_shown_at_its_own_size(pixels, metadata, expected):
    output = {"data": {"image/png": picture(pixels)}, "metadata": metadata}
    assert dressing.size(cell("", outputs=[output])) == expected


def test_a_caption_makes_a_numbered_figure():
    dressed = cell('#| fig-alt: "A"\n#| fig-cap: "B: c"\nplot()')
    dressing.dress_cell(dressed)
    assert dressed["metadata"]["mystnb"]["figure"] == {"caption": "B: c"}


def test_times_count_what_is_read():
    words = {"cell_type": "markdown", "source": "word " * 400,
             "metadata": {}}
    lines = cell("x = 1\n" * 39 + "x = 1")
    folded = cell("x = 1\n" * 1000, tags=["hide-input"])
    cells = [words, lines, folded]
    assert re.fullmatch(r"4 min to read, \d+ s to run",
                        dressing.times(cells, "00_world"))
    assert dressing.times(cells, "not measured") == "4 min to read"


@pytest.mark.parametrize("text, expected", [
    ("attention", ["attention"]),
    ("rotary position embedding (RoPE)",
     ["rotary position embedding", "RoPE"]),
    ("Attention", ["attention"]), ("Warm-up", ["warm-up"]),
    ("KV cache", ["KV cache"]), ("RMSNorm", ["RMSNorm"]),
    ("gradient\naccumulation", ["gradient accumulation"]),
    ("The lecture says", []), ("Read it.", []), ("1.", []), ("2", []),
    ("a sentence that somebody printed in bold", []),
])
def test_bold_terms_make_the_index(text, expected):
    assert terms.entries(text) == expected
