"""The directive `{chapter-map}`: a drawing of which chapter needs which.

It is drawn from the imports of the notebooks while the book is built, so it
cannot be out of date. Each box is a link.
"""

import html
import textwrap

import chapters
from docutils import nodes
from docutils.parsers.rst import Directive

COLUMNS, WIDTH, HEIGHT = 3, 128, 46  # boxes in a row, and their size
GAP_X, GAP_Y, MARGIN = 12, 34, 4


def direct(needs):
    """`needs` without what is already needed by something needed."""
    def reach(stem):
        return set(needs[stem]).union(*map(reach, needs[stem]))

    return {stem: [other for other in others
                   if not any(other in reach(o) for o in others)]
            for stem, others in needs.items()}


def positions(stems):
    """The upper left corner of each box: a new row for each part."""
    places, row, column, part = {}, -1, COLUMNS, None
    for stem in stems:
        if stem[0] != part or column == COLUMNS:
            row, column, part = row + 1, 0, stem[0]
        places[stem] = (MARGIN + column * (WIDTH + GAP_X),
                        MARGIN + row * (HEIGHT + GAP_Y))
        column += 1
    return places


def box(place, path):
    """A linked box with the number and the title of a chapter."""
    x, y = place
    number, _, name = chapters.title(path).partition(" · ")
    lines = textwrap.wrap(f"{number} {name}", 19, max_lines=2,
                          placeholder=" …")
    top = y + HEIGHT / 2 - 8 * len(lines) + 12
    text = "".join(
        f'<text x="{x + WIDTH / 2}" y="{top + 16 * i}">'
        f'{html.escape(line)}</text>' for i, line in enumerate(lines))
    return (f'<a href="{path.stem}.html"><title>{html.escape(name)}</title>'
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" '
            f'rx="6"/>{text}</a>')


def arrow(start, end):
    """A line from the box that is needed to the box that needs it."""
    (x0, y0), (x1, y1) = start, end
    if y0 == y1:
        x0, y0, y1 = x0 + WIDTH, y0 + HEIGHT / 2, y1 + HEIGHT / 2
    else:
        x0, y0, x1 = x0 + WIDTH / 2, y0 + HEIGHT, x1 + WIDTH / 2
    bend = (y1 - y0) / 2
    return (f'<path d="M{x0} {y0} C{x0} {y0 + bend} {x1} {y1 - bend} '
            f'{x1} {y1}" marker-end="url(#tip)"/>')


def draw():
    """The map as SVG, in the colors of the theme."""
    paths = {path.stem: path for path in chapters.chapters()}
    places = positions(paths)
    arrows = [arrow(places[other], places[stem])
              for stem, others in direct(chapters.dependencies()).items()
              for other in others]
    boxes = [box(place, paths[stem]) for stem, place in places.items()]
    width = 2 * MARGIN + COLUMNS * (WIDTH + GAP_X) - GAP_X
    height = MARGIN * 2 + HEIGHT + max(y for _, y in places.values())
    return (f'<svg class="chapter-map" viewBox="0 0 {width} {height}" '
            'role="group" aria-label="Map: an arrow leads from each chapter '
            'to the chapters that build on it"><defs><marker id="tip" '
            'viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z"/>'
            f'</marker></defs>{"".join(arrows)}{"".join(boxes)}</svg>')


class ChapterMap(Directive):
    """Put the map where the directive stands."""

    def run(self):
        return [nodes.raw("", draw(), format="html")]


def setup(app):
    app.add_directive("chapter-map", ChapterMap)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
