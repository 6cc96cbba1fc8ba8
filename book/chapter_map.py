"""The directive `{chapter-map}`: a drawing of which chapter needs which.

It is drawn from the imports of the notebooks while the book is built, so it
cannot be out of date. The chapters stand in one column, so that a phone shows
them at full size; each is a link. Left of them every chapter that others need
has a line of its own, which leads down to all of them. A chapter that is
pointed at, or reached by the keyboard, keeps its lines while the others fade.
The parts, each with a color, are those of the table of contents.
"""

import html
import re

import chapters
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

WIDTH, HEIGHT, STEP = 292, 26, 32  # of a box, and from one to the next
CAPTION, LANE, MARGIN, BEND = 30, 13, 4, 6
COLORS = 8  # book.css has as many


def direct(needs):
    """`needs` without what is already needed by something needed."""
    def reach(stem):
        return set(needs[stem]).union(*map(reach, needs[stem]))

    return {stem: [other for other in others
                   if not any(other in reach(o) for o in others)]
            for stem, others in needs.items()}


def users(needs):
    """For each chapter that others need, the ones that need it."""
    found = {}
    for stem, others in needs.items():
        for other in others:
            found.setdefault(other, []).append(stem)
    return found


def lanes(used):
    """A lane for each chapter with users, counted from the boxes.

    Short lines come first, and get the lanes next to the boxes.
    """
    taken = []  # for each lane, its (first, last)
    lane_of = {}
    spans = {stem: (stem, max(others)) for stem, others in used.items()}
    order = list(used)
    for stem in sorted(order, key=lambda s: (sum(
            spans[s][0] <= other <= spans[s][1] for other in order), s)):
        first, last = spans[stem]
        lane = next((i for i, lane in enumerate(taken) if all(
            last < start or end < first for start, end in lane)), len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((first, last))
        lane_of[stem] = lane
    return lane_of


def parts():
    """The captions of the table of contents, with the chapters under each."""
    index = (chapters.NBS / "index.md").read_text(encoding="utf-8")
    found = re.findall(r"^:caption: (.+)\n:hidden:\n\n((?:\d.*\n)+)", index,
                       re.M)
    return {caption: stems.split() for caption, stems in found}


def color(i):
    """The style of the i-th part."""
    return f"part-{i % COLORS}"


def note_chapters(env):
    """Have what is being read be read again when a chapter changes."""
    for path in chapters.chapters():
        env.note_dependency(str(path))


def heights(contents):
    """From the top: where each caption stands, and the middle of each box."""
    y, captions, middles = MARGIN + HEIGHT / 2, {}, {}
    for caption, stems in contents.items():
        captions[caption] = y
        y += CAPTION
        for stem in stems:
            middles[stem] = y
            y += STEP
    return captions, middles


def line(x, lane, start, end):
    """The path from a box at height `start` to the one at `end`."""
    turn = x - LANE * (lane + 1)
    return (f"M{x} {start + 5} H{turn + BEND} Q{turn} {start + 5} "
            f"{turn} {start + 5 + BEND} V{end - 5 - BEND} "
            f"Q{turn} {end - 5} {turn + BEND} {end - 5} H{x}")


def arrow_head(x, y):
    return f"M{x} {y - 5} l-6 -3.5 v7 z"


def box(x, y, path, needs):
    """A linked box with the number and the title of a chapter."""
    number, _, name = chapters.title(path).partition(" · ")
    needed = ", ".join(stem.split("_")[0] for stem in needs)
    label = f"{number} {name}" + (f", builds on {needed}" if needed else "")
    top, left = y - HEIGHT / 2, x + 10
    return (f'<a href="{path.stem}.html" class="at-{number}" '
            f'aria-label="{html.escape(label)}">'
            f'<rect x="{x}" y="{top}" width="{WIDTH}" height="{HEIGHT}" '
            f'rx="5"/><path class="mark" d="M{x + 2} {top + 5} '
            f'v{HEIGHT - 10}"/><text x="{left}" y="{y + 4.5}">'
            f'<tspan class="number">{number}</tspan> {html.escape(name)}'
            '</text></a>')


def lit(numbers):
    """The style by which a chapter's lines stay while the others fade."""
    return "".join(
        f".chapter-map:has(.at-{n}:is(:hover, :focus)) "
        f".edge:not(.from-{n}, .to-{n}) {{ opacity: 0.1 }}" for n in numbers)


def draw():
    """The map as SVG, in the colors of the theme."""
    paths = {path.stem: path for path in chapters.chapters()}
    number = {stem: stem.split("_")[0] for stem in paths}
    needs = direct(chapters.dependencies())
    used = users(needs)
    lane_of = lanes(used)
    contents = parts()
    part = {stem: color(i) for i, stems in enumerate(contents.values())
            for stem in stems}
    captions, middle = heights(contents)
    x = MARGIN + LANE * (max(lane_of.values()) + 1) + 4
    edges = [
        f'<g class="edge {part[stem]} from-{number[stem]} to-{number[other]}">'
        f'<path d="{line(x, lane_of[stem], middle[stem], middle[other])}"/>'
        f'<path class="head" d="{arrow_head(x, middle[other])}"/></g>'
        for stem, others in sorted(used.items()) for other in others]
    boxes = [f'<g class="{part[stem]}">'
             f'{box(x, middle[stem], path, needs[stem])}</g>'
             for stem, path in paths.items()]
    boxes += [f'<text x="{x}" y="{y + 7}">{html.escape(caption)}</text>'
              for caption, y in captions.items()]
    width = x + WIDTH + MARGIN
    height = max(middle.values()) + HEIGHT / 2 + MARGIN
    return (f'<svg class="chapter-map" viewBox="0 0 {width} {height}" '
            f'style="max-width: {width}px" role="group" aria-label="Map: an '
            'arrow leads from each chapter to the chapters that build on '
            f'it"><style>{lit(number.values())}</style>'
            f'{"".join(edges)}{"".join(boxes)}</svg>')


class ChapterMap(SphinxDirective):
    """Put the map where the directive stands."""

    def run(self):
        note_chapters(self.env)
        return [nodes.raw("", draw(), format="html")]


def setup(app):
    app.add_directive("chapter-map", ChapterMap)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
