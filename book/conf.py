"""Render the notebooks with their saved outputs; nothing is executed.

    sphinx-build -b html -c book nbs _site
"""

import base64
import configparser
import hashlib
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import lmcourse

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tools")]
SETTINGS = configparser.ConfigParser()
SETTINGS.read(HERE.parent / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]
RUNTIMES = json.loads((HERE / "runtimes.json").read_text())

project = SETTINGS["lib_name"]
author = SETTINGS["author"]
copyright = f"2026, {author}"
release = lmcourse.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "chapter_map",
]
exclude_patterns = ["text/**", "**.ipynb_checkpoints", "conftest.py"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # "commonmark" knows no tables
nb_output_stderr = "remove"
nb_ipywidgets_js = {}  # the default loads two scripts from elsewhere
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"no-value": True}  # a table of words is no page
napoleon_use_ivar = True  # an attribute with a property is described once
copybutton_selector = "div.cell_input div.highlight pre"

# MathJax comes from a wheel, so that the book reads offline. Its Sphinx
# extension copies all of it and is not parallel-safe; we copy what is used.
html_static_path = ["static"]
html_css_files = ["book.css"]
mathjax_path = "mathjax/tex-chtml.js"
html_favicon = "static/favicon.svg"
html_context = {"default_mode": "auto"}
html_theme = "sphinx_book_theme"
html_title = "lmcourse"
html_theme_options = {
    "repository_url": f"https://github.com/{SETTINGS['user']}"
                      f"/{SETTINGS['repo']}",
    "repository_branch": SETTINGS["branch"],
    "path_to_docs": "nbs",
    "use_repository_button": True,
    "use_download_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "show_toc_level": 2,
    "navbar_persistent": [],  # else a second search box in a bar of its own
}

DIRECTIVE = re.compile(r"^#\|[ \t]*([\w-]+):?[ \t]*(.*)\n?", re.MULTILINE)


def dress_notebook(app, docname, source):
    """Turn nbdev's directives into what a page needs; drop their lines.

    `hide` and `default_exp` cells do not appear; `fig-alt` becomes the alt
    text of the cell's figures; `code-fold` folds the code away.
    """
    if app.env.doc2path(docname).suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            text = "".join(cell["source"])
            directives = dict(DIRECTIVE.findall(text))
            if directives.keys() & {"hide", "default_exp"}:
                continue
            metadata = cell["metadata"]
            if "fig-alt" in directives:
                alt = directives["fig-alt"].strip("\"' ")
                image = {"alt": alt}
                if max(map(picture_width, cell["outputs"])) > 760:
                    image["classes"] = "wide"
                metadata["mystnb"] = {"image": image}
            if "code-fold" in directives:
                metadata.setdefault("tags", []).append("hide-input")
            cell["source"] = DIRECTIVE.sub("", text)
        cells.append(cell)
    notebook["cells"] = cells
    if docname in RUNTIMES:
        show_runtime(cells[0], RUNTIMES[docname])
    source[0] = json.dumps(notebook)


def picture_width(output):
    """Pixels from left to right, as a PNG says in its bytes 16 to 19."""
    png = "".join(output.get("data", {}).get("image/png", ""))
    return int.from_bytes(base64.b64decode(png[:32])[16:20])


def show_runtime(cell, seconds):
    """Put the measured run time below the chapter's title."""
    title, _, rest = "".join(cell["source"]).partition("\n")
    cell["source"] = (f"{title}\n\n*Runs in {max(seconds, 1)} s on two CPU "
                      f"cores.*\n{rest}")


def render_docstring(app, what, name, obj, options, lines):
    """Docstrings hold Markdown's `code` and `$math$`; Sphinx wants reST.

    In reST a letter may follow such a part only behind an escaped space.
    """
    for i, line in enumerate(lines):
        line = re.sub(r"(?<![`:])`([^`\n]+)`(?!`)(\w?)", literal, line)
        lines[i] = re.sub(r"\$([^$\n]+)\$", r":math:`\1`", line)


def literal(match):
    """Markdown's `code`, perhaps with a letter behind it, as reST."""
    return f"``{match[1]}``" + (f"\\ {match[2]}" if match[2] else "")


def copy_mathjax(app, exception):
    """Copy the part of MathJax that a page loads."""
    if exception is not None or app.builder.format != "html":
        return
    package = importlib.util.find_spec("sphinx-mathjax-offline").origin
    unused = shutil.ignore_patterns(
        "tex-svg*", "tex-mml*", "mml-*", "tex-chtml-*", "svg", "svg.js",
        "adaptors", "core.js", "latest.js", "node-main.js")
    shutil.copytree(Path(package).parent / "static/mathjax",
                    Path(app.outdir, "_static/mathjax"),
                    ignore=unused, dirs_exist_ok=True)


def setup(app):
    # a change of this file, or of a run time, has all pages read again
    app.add_config_value("read_with", hashlib.sha256(b"".join(
        (HERE / name).read_bytes() for name in ("conf.py", "runtimes.json")
    )).hexdigest(), "env")
    app.connect("source-read", dress_notebook)
    app.connect("autodoc-process-docstring", render_docstring)
    app.connect("build-finished", copy_mathjax)
