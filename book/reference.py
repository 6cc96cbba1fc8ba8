"""The API's pages: tables of modules and of names, and links to the entries.

`{module-table}`: the modules in reading order, with what each holds and the
chapter that explains it. `{module-names}`: the names of a module, one line
each, as its docstrings begin. Both are made from the sources while the book
is built. Whatever stands in `code` letters and is a public name of the
package leads to its entry.
"""

import ast
import functools
import re

import chapters
from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

NAME = re.compile(r"(\w+(?:\.\w+)*)(?:\(\))?")


@functools.cache
def explained():
    """For each module that a chapter writes, the chapter."""
    found = {chapters.module_of(path): path for path in chapters.chapters()}
    found.pop(None, None)
    return found


@functools.cache
def entries():
    """The full name of each public function, class and module, by its name.

    Methods go by the name of their class, too: `Record.mean`.
    """
    found = {module: module for module in explained()}
    for module in explained():
        for name, node in chapters.exported(path_of(module)).items():
            if is_experiment(node):
                continue
            found[name] = f"{module}.{name}"
            for method in getattr(node, "body", ()):
                if isinstance(node, ast.ClassDef) and isinstance(
                        method, ast.FunctionDef):
                    full = f"{name}.{method.name}"
                    if ast.get_docstring(method):
                        found[full] = f"{module}.{full}"
    return found


def path_of(module):
    """The file of a module."""
    return chapters.modules()[module]


def is_experiment(node):
    """Whether a name is run over seeds, and so is no function any more."""
    return any(ast.unparse(part).startswith("experiment(")
               for part in node.decorator_list)


@functools.cache
def other_names(stem):
    """What the code of a chapter calls by a name, but does not export."""
    path = chapters.NBS / f"{stem}.ipynb"
    tree = ast.parse(chapters.source_of(path))
    found = {getattr(node, "name", None) or getattr(node, "arg", None)
             or getattr(node, "id", None) for node in ast.walk(tree)
             if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.arg)
             or isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    module = chapters.module_of(path)
    return found - set(chapters.public_names(path_of(module))
                       if module else ())


def table(rows, *looks):
    """A table without a header, whose first column is one."""
    group = nodes.tgroup(cols=len(rows[0]))
    group += [nodes.colspec(colwidth=1) for _ in rows[0]]
    group[0]["stub"] = 1
    body = nodes.tbody()
    group += body
    for cells in rows:
        row = nodes.row()
        row += [nodes.entry("", nodes.paragraph("", "", *cell))
                for cell in cells]
        body += row
    return nodes.table("", group, classes=["api-table", *looks])


class ModuleTable(SphinxDirective):
    """Each module that a chapter writes, in reading order."""

    def run(self):
        rows = []
        for module, path in explained().items():
            for source in (path, path_of(module)):
                self.env.note_dependency(str(source))
            tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
            name = module.removeprefix("lmcourse.")
            line = (f"{ast.get_docstring(tree)} "
                    f"[{chapters.title(path)}]({path.name})")
            link = f"[`{name}`](api/{name}.md)"
            rows.append([self.parse_inline(text)[0] for text in (link, line)])
        return [table(rows)]


class ModuleNames(SphinxDirective):
    """The names of a module and the first lines of their docstrings."""

    required_arguments = 1

    def run(self):
        (module,) = self.arguments
        path = path_of(module)
        self.env.note_dependency(str(path))
        defined = chapters.exported(path)
        rows = []
        for name, node in defined.items():
            line = ast.get_docstring(node).splitlines()[0]
            if is_experiment(node):
                line = f"An experiment. {line}"
            rows.append([[nodes.literal("", name)],
                         self.parse_inline(line)[0]])
        found = [table(rows)]
        rest = [f"`{name}`" for name in chapters.public_names(path)
                if name not in defined]
        if rest:
            text = "Constants and tables: " + ", ".join(rest)
            found.append(nodes.paragraph("", "", *self.parse_inline(
                text + ".")[0]))
        return found


class LinkNames(SphinxTransform):
    """A public name of the package in `code` letters leads to its entry.

    In a chapter that happens once in a section, and not for a name by which
    its code calls something else. In a docstring it does not happen for the
    parameters, nor for the name that is documented.
    """

    default_priority = 610

    def apply(self):
        name = self.env.docname
        chapter = name[0].isdigit()
        if not chapter and not name.startswith("api"):
            return
        others = other_names(name) if chapter else set()
        linked = set()
        for literal in list(self.document.findall(nodes.literal)):
            match = NAME.fullmatch(literal.astext())
            target = entries().get(match[1]) if match else None
            if target is None or match[1].split(".")[0] in others:
                continue
            around = list(parents(literal))
            if any(isinstance(node, (nodes.title, nodes.reference,
                                     addnodes.pending_xref,
                                     addnodes.desc_signature))
                   for node in around):
                continue
            if match[1] in parameters(around) or target in documented(around):
                continue
            section = next((id(node) for node in around
                            if isinstance(node, nodes.section)), None)
            if chapter and (target, section) in linked:
                continue
            linked.add((target, section))
            link = addnodes.pending_xref(
                "", refdomain="py", reftarget=target, refexplicit=True,
                reftype="mod" if match[1] in explained() else "obj",
                refdoc=name, refwarn=False)
            literal.replace_self(link)
            literal["classes"] += ["xref", "py"]
            link += literal


def parents(node):
    """What a node stands in, from the inside to the outside."""
    while node.parent is not None:
        node = node.parent
        yield node


def parameters(around):
    """The parameters of the functions whose docstrings these are."""
    return {name.astext().split("=")[0].split(":")[0].strip("* ")
            for desc in around if isinstance(desc, addnodes.desc)
            for name in desc[0].findall(addnodes.desc_parameter)}


def documented(around):
    """The full names of what these docstrings are about."""
    return {full for desc in around if isinstance(desc, addnodes.desc)
            for full in desc[0]["ids"]}


def skip_fields(app, what, name, obj, skip, options):
    """A field of a named tuple that only says that it is one."""
    if str(getattr(obj, "__doc__", "")).startswith("Alias for field"):
        return True
    return None


def drop_module_docstring(app, what, name, obj, options, lines):
    """The page of a module says more, above its example."""
    if what == "module":
        lines.clear()


def mend_signatures(app, pagename, templatename, context, doctree):
    """A list of parameters, one a line, is no list of definitions."""
    context["body"] = context.get("body", "").replace(
        '<dl>\n<dd><em class="sig-param">',
        '<dl role="none">\n<dd><em class="sig-param">')


def setup(app):
    app.add_directive("module-table", ModuleTable)
    app.add_directive("module-names", ModuleNames)
    app.add_transform(LinkNames)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", drop_module_docstring)
    app.connect("html-page-context", mend_signatures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
