"""What the drawings hold, apart from how they look."""

import json
import re

import matplotlib
import pytest

from matplotlib.colors import to_rgba

from lmcourse.figures import (
    PARTS,
    Interactive,
    choice,
    draw_arrow,
    draw_box,
    draw_frame,
    draw_sum,
    draw_tokens,
    show_matrix,
    slider,
)

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

LABELS = {"rows": ["a", "b"], "columns": ["x", "y", "z"],
          "xlabel": "letters (one each)", "ylabel": "rows"}


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_a_matrix_shows_its_numbers_and_leaves_nan_empty(ax):
    show_matrix(ax, [[0, 0.5, 1], [float("nan"), 2, 3]], **LABELS, decimals=1)
    shown = {text.get_position(): text.get_text() for text in ax.texts}
    assert shown == {(0, 0): "0.0", (1, 0): "0.5", (2, 0): "1.0",
                     (1, 1): "2.0", (2, 1): "3.0"}
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["x", "y", "z"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("letters (one each)", "rows")


def test_a_number_stands_out_from_its_cell(ax):
    """White on the dark half of the colors, black on the other."""
    show_matrix(ax, [[0, 4, 10], [6, 4, 10]], **LABELS, vmin=0, vmax=10)
    colors = [text.get_color() for text in ax.texts]
    assert colors == ["white", "white", "black", "black", "white", "black"]


def test_a_matrix_without_numbers(ax):
    show_matrix(ax, [[0, 1, 2], [3, 4, 5]], **LABELS, decimals=None)
    assert len(ax.texts) == 0


def test_labels_must_be_as_many_as_rows_and_columns(ax):
    with pytest.raises(ValueError, match=r"^matrix: the shape is \(3, 2\)"):
        show_matrix(ax, [[0, 1], [2, 3], [4, 5]], **LABELS)


def test_a_drawing_of_boxes_and_arrows(ax):
    draw_box(ax, 1, 2, "norm", width=2, height=1, color="C1")
    draw_arrow(ax, (1, 0), (1, 1), (0, 1))
    draw_sum(ax, 1, 3)
    assert [t.get_text() for t in ax.texts] == ["norm", "", "+"]
    corners = ax.patches[0].get_xy()[:4].tolist()
    assert corners == [[0, 1.5], [2, 1.5], [2, 2.5], [0, 2.5]]
    assert ax.lines[0].get_xydata().tolist() == [[1, 0], [1, 1], [0, 1]]
    assert ax.texts[1].xy == (0, 1)  # where the head points to


def test_boxes_arrows_and_sums_stand_where_they_are_put(ax):
    draw_box(ax, 2, 3, "norm")
    draw_sum(ax, 2, 5)
    draw_arrow(ax, (2, 3), (2, 4), (1, 4))
    shown = {text.get_text(): text for text in ax.texts}
    assert shown["norm"].get_position() == (2, 3)
    assert shown["+"].get_position() == (2, 5)
    assert [line.get_xydata().tolist() for line in ax.lines] == [
        [[2, 5]], [[2, 3], [2, 4], [1, 4]]]


HOSTILE = '</script><b title="x">'


def moving(html="", *, script="", data=None, still=""):
    return Interactive(html, script=script, data=data,
                       still=still)._repr_html_()


def test_a_moving_figure_carries_its_data_whatever_it_says():
    data = {"text": HOSTILE, "numbers": [1, 2.5]}
    html = moving("<p></p>", script="data.text", data=data, still=HOSTILE)
    held = re.search(r'-data">(.*?)</script>', html)[1]
    assert json.loads(held) == data
    assert html.count("</script>") == 2  # its own two, no third
    assert "<b" not in html


def test_a_moving_figure_is_the_same_in_every_run():
    one, two, other = (moving(data=x) for x in (1, 1, 2))
    assert one == two != other


def test_a_moving_figure_has_words_where_no_script_runs():
    html = moving("<hr>", still="The bar is long.")
    assert '<p class="still">The bar is long.</p>' in html
    assert re.search(r'<div [^>]*hidden><hr></div>', html)


def attributes(html, tag):
    return [dict(re.findall(r'([\w-]+)="(.*?)"', found))
            for found in re.findall(rf"<{tag}\b(.*?)>", html, re.S)]


def test_a_slider_has_a_button_at_either_end():
    html = slider("p", 'top-"p"', start=0.01, stop=1, step=0.01, value=0.9,
                  jump=5)
    (knob,) = attributes(html, "input")
    assert {"name": "p", "min": "0.01", "max": "1", "step": "0.01",
            "value": "0.9"}.items() <= knob.items()
    back, on = attributes(html, "button")
    assert (back["value"], on["value"]) == ("-5", "5")
    assert back["aria-label"] != on["aria-label"]
    assert all("top-&quot;p&quot;" in x["aria-label"]
               for x in (knob, back, on))


def test_a_slider_begins_at_its_smallest_value_and_moves_by_one():
    html = slider("row", "row", start=2, stop=9)
    (knob,) = attributes(html, "input")
    assert knob["value"] == knob["min"] == "2" and knob["step"] == "1"
    assert [x["value"] for x in attributes(html, "button")] == ["-1", "1"]


def test_a_menu_shows_texts_and_hands_over_values():
    html = choice("ties", "rule <1>", {0: HOSTILE, "b": "two"}, value="b")
    assert [x["value"] for x in attributes(html, "option")] == ["0", "b"]
    assert re.search(r'value="b" selected>two<', html)
    assert "rule &lt;1&gt;" in html and "<b" not in html
    assert " selected" not in choice("x", "x", {0: "a", 1: "b"})


def test_tokens_stand_in_a_row_and_a_frame_around_them(ax):
    centers = draw_tokens(ax, 2, 1, ["a", "b", "c"], width=1.5)
    assert centers == [0.5, 2.0, 3.5]
    assert [t.get_text() for t in ax.texts] == ["a", "b", "c"]
    assert [t.get_position() for t in ax.texts] == [(x, 1) for x in centers]
    draw_frame(ax, 0, 0, 4, 2, "× L")
    corners = ax.patches[-1].get_xy()
    assert corners.min() == 0 and corners.max(axis=0).tolist() == [4, 2]
    assert ax.texts[-1].get_text() == "× L"


def test_a_part_has_its_color_and_the_rest_is_gray(ax):
    for name in ["norm", "softmax"]:
        draw_box(ax, 0, 0, name)
    draw_box(ax, 0, 0, "norm", color="C0")
    edges = [patch.get_edgecolor() for patch in ax.patches[1::2]]
    assert edges == [to_rgba(PARTS["norm"]), to_rgba("0.5"), to_rgba("C0")]
