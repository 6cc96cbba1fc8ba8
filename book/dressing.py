"""What is done to a notebook on its way to a page.

A page shows the idea: what serves it is folded under a line that names it.
nbdev's directives, and Quarto's, are first-line comments in a code cell:

    #| hide, #| default_exp     the cell is not on the page
    #| code-fold: true          its code is folded; `false` leaves it open
    #| code-summary: "Names"    what the line says that opens it
    #| fold-bodies: crop, copy  these definitions show their first line only
    #| fig-alt: "A line ..."    the alt text of its figures
    #| fig-cap: "What to see"   a caption, numbered through the book

Without `code-fold`, three kinds of cells fold by themselves: imports, the
drawing of a figure, and exported names that are all private. The check of an
exercise shows its first line.
"""

import ast
import base64
import json
import re
from pathlib import Path

RUNTIMES = Path(__file__).parent / "runtimes.json"
DIRECTIVE = re.compile(r"^#\|[ \t]*([\w-]+):?[ \t]*(.*)\n?", re.MULTILINE)
WORDS_PER_MINUTE = 200  # of prose
LINES_PER_MINUTE = 20  # of code that is not folded


def dress_notebook(app, docname, source):
    """Carry out the directives of a notebook's cells."""
    if app.env.doc2path(docname).suffix != ".ipynb":
        return
    notebook = json.loads(source[0].replace(
        "<!-- live-model -->", "```{live-model}\\n```"))
    notebook["cells"] = cells = shown_cells(notebook)
    title, _, rest = "".join(cells[0]["source"]).partition("\n")
    cells[0]["source"] = f"{title}\n\n*{times(cells, docname)}*\n{rest}"
    source[0] = json.dumps(notebook)


def directives_of(text):
    """The directives of a cell, with their values."""
    return {name: value.strip("\"' ")
            for name, value in DIRECTIVE.findall(text)}


def dress_cell(cell):
    """Carry out the directives of a code cell; False if it is not shown."""
    text = "".join(cell["source"])
    directives = directives_of(text)
    if directives.keys() & {"hide", "default_exp"}:
        return False
    cell["source"] = text = DIRECTIVE.sub("", text)
    tags = cell["metadata"].setdefault("tags", [])
    options = cell["metadata"]["mystnb"] = {}
    if "hide-cell" in tags:
        options["code_prompt_show"] = options["code_prompt_hide"] = (
            directives.get("code-summary", "Show a solution"))
    elif (summary := fold_name(text, directives)) is not None:
        tags.append("hide-input")
        options["code_prompt_show"] = options["code_prompt_hide"] = summary
    # a tag becomes a class of the cell, which book.js reads; the check of an
    # exercise would tell its answer
    tags += [f"fold-{name}" for name in
             re.findall(r"\w+", directives.get("fold-bodies", ""))
             + re.findall(r"^def (check_\d+)\(", text, re.MULTILINE)]
    if "fig-alt" in directives:
        options["image"] = {"alt": directives["fig-alt"]} | size(cell)
    if "fig-cap" in directives:
        options["figure"] = {"caption": directives["fig-cap"]}
    return True


def fold_name(text, directives):
    """The line under which a cell's code is folded; None leaves it open."""
    fold = directives.get("code-fold")
    if fold == "false":
        return None
    if "code-summary" in directives:
        return directives["code-summary"]
    if "fig-alt" in directives:
        return "Code of the figure"
    body = [] if text.startswith("%") else ast.parse(text).body
    names = [name for statement in body for name in defined(statement)]
    if body and all(isinstance(statement, ast.Import | ast.ImportFrom)
                    for statement in body):
        return "Imports"
    if "export" in directives and names and all(
            name.startswith("_") for name in names):
        return "Helpers: " + ", ".join(names)
    return "Code" if fold else None


def defined(statement):
    """The names that a statement at the top of a cell defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    targets = getattr(statement, "targets", [getattr(statement, "target",
                                                     None)])
    return [name.id for target in targets if target is not None
            for name in ast.walk(target) if isinstance(name, ast.Name)]


def size(cell):
    """The options of an image that say how large it is shown.

    A picture for dense screens has more pixels than it takes on the page;
    the notebook says then how wide it is to be shown.
    """
    for output in cell["outputs"]:
        png = "".join(output.get("data", {}).get("image/png", ""))
        if png:
            shown = output["metadata"].get("image/png", {}).get("width")
            width = shown or pixels(png)
            wide = {"classes": "wide"} if width > 760 else {}
            return {"width": f"{width}px"} | wide
    return {}


def pixels(png):
    """From left to right, as a PNG says in its bytes 16 to 19."""
    return int.from_bytes(base64.b64decode(png[:32])[16:20])


def times(cells, docname):
    """How long a chapter takes to read, and to run if it was measured."""
    words = sum(len("".join(cell["source"]).split()) for cell in cells
                if cell["cell_type"] == "markdown")
    lines = sum(cell["source"].count("\n") + 1 for cell in cells
                if cell["cell_type"] == "code"
                and not {"hide-cell", "hide-input"}
                & set(cell["metadata"]["tags"]))
    read = round(words / WORDS_PER_MINUTE + lines / LINES_PER_MINUTE)
    run = json.loads(RUNTIMES.read_text()).get(docname)
    return f"{read} min to read" + (
        "" if run is None else f", {max(run, 1)} s to run")


def shown_cells(notebook):
    """The cells of a notebook that are on its page, dressed."""
    return [cell for cell in notebook["cells"]
            if cell["cell_type"] != "code" or dress_cell(cell)]
