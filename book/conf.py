"""Render the notebooks with their saved outputs; nothing is executed.

What is done to a notebook on its way to a page stands in `dressing.py`.

    sphinx-build -b html -c book nbs _site
"""

import configparser
import hashlib
import html
import importlib.util
import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from PIL import Image
from sphinx.transforms import SphinxTransform

import lmcourse

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tools")]
dressing = importlib.import_module("dressing")
SETTINGS = configparser.ConfigParser()
SETTINGS.read(HERE.parent / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]

HAS_HOME = SETTINGS["user"] != "example-owner"  # else buttons lead nowhere
if HAS_HOME:
    tags.add("public")  # noqa: F821, given by Sphinx

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
    "home",
    "live_model",
    "reference",
    "terms",
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
python_maximum_signature_line_length = 120  # longer ones: a line for each
add_module_names = False  # an entry stands on the page of its module
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"no-value": True}  # a table of words is no page
napoleon_use_ivar = True  # an attribute with a property is described once
copybutton_selector = "div.cell_input div.highlight pre"
copybutton_exclude = ".unfold"
numfig = True
numfig_format = {"figure": "Figure %s."}
templates_path = ["templates"]

# MathJax comes from a wheel, so that the book reads offline. Its Sphinx
# extension copies all of it and is not parallel-safe; we copy what is used.
html_static_path = ["static"]
html_css_files = ["book.css"]
html_js_files = [("book.js", {"defer": "defer"})]
mathjax_path = "mathjax/tex-chtml.js"
html_favicon = "static/favicon.svg"
html_context = {"default_mode": "auto"}
html_theme = "sphinx_book_theme"
html_title = "lmcourse"
html_theme_options = {
    "use_download_button": True,
    "show_toc_level": 2,
    "navbar_persistent": [],  # else a second search box in a bar of its own
}
if HAS_HOME:
    html_theme_options |= {
        "repository_url": f"https://github.com/{SETTINGS['user']}"
                          f"/{SETTINGS['repo']}",
        "repository_branch": SETTINGS["branch"],
        "path_to_docs": "nbs",
        "use_repository_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }


class FactsTable(SphinxTransform):
    """A table whose header is empty has none; its first column is one."""

    default_priority = 500

    def apply(self):
        for table in self.document.findall(nodes.table):
            group = table.next_node(nodes.tgroup)
            head = group.next_node(nodes.thead)
            if head is not None and not head.astext().strip():
                group.remove(head)
                group.next_node(nodes.colspec)["stub"] = 1


def finish_page(app, pagename, templatename, context, doctree):
    """What search engines and screen readers are told of a page."""
    context["description"] = html.escape(summary(doctree))
    # the line that opens a fold is its name; this would hide it
    context["body"] = context.get("body", "").replace(
        ' aria-label="Toggle hidden content"', "")


def summary(doctree):
    """The first paragraph that is not emphasized as a whole."""
    if doctree is not None:
        for paragraph in doctree.findall(nodes.paragraph):
            if not isinstance(paragraph[0], nodes.emphasis):
                return " ".join(paragraph.astext().split())
    return SETTINGS["description"]


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


def shrink_pictures(app, exception):
    """Give each drawing a palette: it has few colors, and is sent often."""
    for path in Path(app.outdir, "_images").glob("*.png"):
        picture = Image.open(path)
        if picture.mode != "P":  # else it has been through here
            flat = picture.convert("RGB").quantize(
                256, dither=Image.Dither.NONE)
            flat.save(path, optimize=True)


def setup(app):
    # a change of a file here, or of a run time, has all pages read again
    app.add_config_value("read_with", hashlib.sha256(b"".join(
        path.read_bytes() for path in
        [*sorted(HERE.glob("*.py")), dressing.RUNTIMES])).hexdigest(), "env")
    app.add_transform(FactsTable)
    app.connect("source-read", dressing.dress_notebook)
    app.connect("html-page-context", finish_page)
    app.connect("autodoc-process-docstring", render_docstring)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", shrink_pictures)
