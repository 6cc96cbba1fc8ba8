"""What the drawings hold, apart from how they look."""

import json
import re

import matplotlib
import pytest

from lmcourse.figures import (
    Interactive,
    draw_arrow,
    draw_box,
    draw_sum,
    show_matrix,
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


def test_a_moving_figure_carries_its_data_whatever_it_says():
    data = {"text": "</script><b>", "numbers": [1, 2.5]}
    html = Interactive("<p></p>", script="data.text", data=data)._repr_html_()
    held = re.search(r'-data">(.*?)</script>', html)[1]
    assert json.loads(held) == data
    assert html.count("</script>") == 2


def test_a_moving_figure_is_the_same_in_every_run():
    one, two, other = (Interactive("", script="", data=x)._repr_html_()
                       for x in (1, 1, 2))
    assert one == two != other
