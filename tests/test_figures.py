"""What the drawing functions leave on the axes."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt  # noqa: E402

from lmcourse.figures import draw_arrow, draw_box, draw_sum  # noqa: E402


def test_a_drawing_has_what_was_drawn():
    _, ax = plt.subplots()
    draw_box(ax, 1, 2, "norm", width=2, height=1, color="C1")
    draw_arrow(ax, (1, 0), (1, 1), (0, 1))
    draw_sum(ax, 1, 3)
    assert [t.get_text() for t in ax.texts] == ["norm", "", "+"]
    corners = ax.patches[0].get_xy()[:4].tolist()
    assert corners == [[0, 1.5], [2, 1.5], [2, 2.5], [0, 2.5]]
    assert ax.lines[0].get_xydata().tolist() == [[1, 0], [1, 1], [0, 1]]
    assert ax.texts[1].xy == (0, 1)  # where the head points to
    plt.close()
