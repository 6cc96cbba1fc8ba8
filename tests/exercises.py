"""Runs right and wrong answers against the checks of the exercises.

For the chapter NN the answers stand in `answers/NN.toml`, a table for each
exercise; each string is code that calls the check:

    [2]
    right = ["check_2(0.5)", "check_2(1 / 2)"]
    wrong = ["check_2(0.25)", "check_2(1.0)"]

An answer sees what the notebook has defined when a reader meets the exercise,
but only the cells are run that its check needs, or it names itself: a
backward slice of the notebook. What a function does to its arguments cannot
be seen in a slice; where it matters, name what the cell defines as well:

    needs = ["record"]  # record = fit(model, ...), and the check asks model
"""

import ast
import builtins
import contextlib
import io
import linecache
import re
import sys
import symtable
import tomllib
import types
from pathlib import Path

ROOT = Path(__file__).parents[1]
ANSWERS = ROOT / "tests/answers"
sys.path.insert(0, str(ROOT / "tools"))
from chapters import chapters, code_cells  # noqa: E402

COMPREHENSIONS = {"listcomp", "setcomp", "dictcomp", "genexpr"}


class Code:
    """What a piece of code binds, and which names it needs from before.

    Attributes:
        binds: names that it defines, or whose value it changes.
        needs: names that must be there when it runs.
        asks: names that its functions look up when they are called.
    """

    def __init__(self, source):
        self.source = re.sub(r"%pip .*", "pass", source)  # is no Python
        self.binds, self.needs, self.asks = set(), set(), set()
        imports = set()
        for node in ast.parse(self.source).body:
            table = symtable.symtable(ast.unparse(node), "cell", "exec")
            now, later = referenced(table)
            self.needs |= now - self.binds
            self.asks |= later
            imports |= {s.get_name() for s in table.get_symbols()
                        if s.is_imported()}
            self.binds |= {s.get_name() for s in table.get_symbols()
                           if s.is_assigned() or s.is_imported()}
            self.binds |= changed(node) - imports
        self.asks -= self.binds
        self.needs -= set(dir(builtins)) - self.binds
        self.asks -= set(dir(builtins))


def referenced(table):
    """Names of the module that a scope looks up: at once, and when called."""
    inside = table.get_type() != "module"
    now = {s.get_name() for s in table.get_symbols() if s.is_referenced()
           and (s.is_global() or not inside)}
    later = set()
    for child in table.get_children():
        first, then = referenced(child)
        at_once = (child.get_type() == "class"
                   or child.get_name() in COMPREHENSIONS)
        now |= first if at_once else set()
        later |= then if at_once else first | then
    return now, later


def changed(node):
    """Names whose value a statement changes: x[0] = 1, x.a = 1, x.f()."""
    names, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
            continue  # runs later, if at all
        waiting += ast.iter_child_nodes(node)
        targets = {ast.Assign: lambda n: n.targets,
                   ast.AugAssign: lambda n: [n.target],
                   ast.Delete: lambda n: n.targets,
                   ast.Expr: lambda n: [n.value.func] if isinstance(
                       n.value, ast.Call) else []}.get(type(node))
        for target in targets(node) if targets else []:
            inner = target
            while isinstance(inner, (ast.Attribute, ast.Subscript)):
                inner = inner.value
            if isinstance(inner, ast.Name) and inner is not target:
                names.add(inner.id)
    return names


class Exercise:
    """One table of an answers file.

    Attributes:
        number: which exercise.
        right, wrong: strings of code.
        needs: further names whose cells are to be run.
    """

    def __init__(self, number, *, right=(), wrong=(), needs=()):
        self.number, self.right, self.wrong = number, right, wrong
        self.needs = set(needs)

    def cells(self, cells):
        """The places of the cells that the answers need, sorted."""
        check = f"check_{self.number}"
        stop = 1 + max(i for i, cell in enumerate(cells)
                       if check in cell.binds)
        answers = [Code(answer) for answer in (*self.right, *self.wrong)]
        asked = {check} | self.needs.union(
            *(answer.needs | answer.asks for answer in answers))
        found, waiting = set(), [(name, stop) for name in asked]
        seen = set()
        while waiting:
            name, before = waiting.pop()
            if (name, before) in seen:
                continue
            seen.add((name, before))
            place = definer(cells, name, before)
            if place is None:
                continue  # a name that only one branch needs
            found.add(place)
            waiting += [(n, place) for n in cells[place].needs]
            # a function may be called here, and again by the check
            waiting += [(n, at) for n in cells[place].asks
                        for at in (place, stop)]
        return sorted(found)


def definer(cells, name, before):
    """The last cell before `before` that binds a name, or the next one."""
    earlier = [i for i in range(before) if name in cells[i].binds]
    later = (i for i in range(before, len(cells)) if name in cells[i].binds)
    return earlier[-1] if earlier else next(later, None)


def exercises(stem):
    """The exercises of a chapter's answers file; none where it has none."""
    path = ANSWERS / f"{stem.split('_')[0]}.toml"
    if not path.exists():
        return []
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return [Exercise(number, **table) for number, table in tables.items()]


def checks(path):
    """The numbers of the exercises that a notebook has checks for."""
    return [match for cell in code_cells(path) for match in
            re.findall(r"^def check_(\d+)\(", cell.source, re.M)]


def run(stem):
    """Run the cells that the exercises of a chapter need, and the answers.

    Returns:
        A dict from exercise number to a list of (answer, whether it is
        right, the exception that it raised or None).
    """
    path, = chapters([stem])
    cells = [Code(cell.source) for cell in code_cells(path)]
    needed = {e: e.cells(cells) for e in exercises(stem)}
    module = types.ModuleType(f"exercises_{stem}")
    sys.modules[module.__name__] = module  # where dataclasses look
    outcomes = {}
    for place in sorted(set().union(*needed.values())):
        execute(cells[place].source, f"{stem}, cell {place}", module)
        for exercise, places in needed.items():
            if places[-1] == place:
                outcomes[exercise.number] = [
                    (answer, right, attempt(answer, module))
                    for right, answers in ((True, exercise.right),
                                           (False, exercise.wrong))
                    for answer in answers]
    return outcomes


def execute(source, name, module):
    """Run code in a module; its lines are kept, for `inspect`."""
    name = f"<ipython-{name}>"  # numba keeps what it compiles in a notebook
    linecache.cache[name] = (len(source), None,
                             source.splitlines(keepends=True), name)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(source, name, "exec"), vars(module))


def attempt(answer, module):
    """The exception that an answer raises, or None; its names are removed."""
    before = dict(vars(module))
    try:
        execute(answer, f"answer {answer}", module)
    except Exception as error:
        return error
    finally:
        vars(module).clear()
        vars(module).update(before)
