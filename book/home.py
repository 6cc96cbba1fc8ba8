"""The directives of the first page, drawn from the notebooks.

`{chapter-cards}`: one card for each chapter, by the parts of the table of
contents, with what it is about and how long it takes. `{notebook-output}`:
what a cell of a notebook printed or drew, found by a tag of the cell.
"""

import html
import json
import re

import chapters
import dressing
from chapter_map import color, note_chapters, parts
from docutils import nodes
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective


def card(stem):
    """A linked card: number and name, what for, how long."""
    notebook = json.loads((chapters.NBS / f"{stem}.ipynb").read_text())
    cells = dressing.shown_cells(notebook)
    title, goal = "".join(cells[0]["source"]).split("\n\n")[:2]
    goal = re.sub(r"\[(.*?)\]\(.*?\)|[*`]", r"\1", " ".join(goal.split()))
    return (f'<a href="{stem}.html"><strong>{html.escape(title[2:])}</strong>'
            f'<span>{html.escape(goal)}</span>'
            f'<small>{dressing.times(cells, stem)}</small></a>')


class ChapterCards(SphinxDirective):
    """Put the cards where the directive stands, a heading over each part."""

    def run(self):
        note_chapters(self.env)
        found = []
        for i, (caption, stems) in enumerate(parts().items()):
            cards = "".join(map(card, stems))
            found += [nodes.rubric("", caption), nodes.raw(
                "", f'<div class="chapter-cards {color(i)}">{cards}</div>',
                format="html")]
        return found


class NotebookOutput(SphinxDirective):
    """Put what the cell with a tag printed, or its picture, here."""

    required_arguments = 2  # the notebook's stem, the cell's tag

    def run(self):
        stem, tag = self.arguments
        path = chapters.NBS / f"{stem}.ipynb"
        self.env.note_dependency(str(path))
        cells = json.loads(path.read_text())["cells"]
        cell = next((cell for cell in cells
                     if tag in cell["metadata"].get("tags", ())), None)
        if cell is None:
            raise ExtensionError(f"{tag!r} is no tag of a cell in {stem}")
        alt = dressing.directives_of("".join(cell["source"])).get(
            "fig-alt", "")
        return [shown(output, alt) for output in cell["outputs"]]


def shown(output, alt):
    """A picture or a text, as a node."""
    png = "".join(output.get("data", {}).get("image/png", ""))
    if not png:
        return nodes.literal_block("", "".join(output["text"]).strip(),
                                   language="none")
    png = png.replace("\n", "")
    return nodes.raw("", f'<img class="from-notebook" alt="{html.escape(alt)}"'
                         f' src="data:image/png;base64,{png}"/>',
                     format="html")


def setup(app):
    app.add_directive("chapter-cards", ChapterCards)
    app.add_directive("notebook-output", NotebookOutput)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
