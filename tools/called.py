"""A plugin of pytest: which public names of the package does no test call?

    python -m pytest -p tools.called tests

A function is given other code, which at the first call notes the name, puts
the function's own code back, and calls it; so it costs nothing after that. A
class counts as called when an object of it or of a subclass is made, by a
test or while the package is imported. At the end the names that were not
called are listed, and if all tests passed the session fails on them.
"""

import functools
import gc
import importlib
import inspect
import sys
import types
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import chapters  # noqa: E402

called = set()
compiled = {}  # what numba has compiled: it keeps count itself
classes = {}


def watch_function(name, function):
    own = function.__code__

    def back():
        called.add(name)
        function.__code__ = own
        vars(function).pop("__signature__", None)
        return function

    hook = f"__first_call_of_{function.__name__}__"
    function.__globals__[hook] = back
    function.__signature__ = inspect.signature(function)
    scope = {}
    exec(f"def first(*args, **kwargs):\n"
         f"    return {hook}()(*args, **kwargs)", scope)
    function.__code__ = scope["first"].__code__


def watch_class(name, cls):
    """Watch `__init__`, or `__new__` where that makes the objects."""
    which = "__new__" if issubclass(cls, tuple) else "__init__"
    own = getattr(cls, which)
    inherited = which not in vars(cls)

    @functools.wraps(own)
    def first(*args, **kwargs):
        called.add(name)
        if inherited:
            delattr(cls, which)
        else:
            setattr(cls, which, own)
        return own(*args, **kwargs)

    setattr(cls, which, first)


def dispatchers():
    """What numba compiles, by the plain function that it is made from."""
    return {value.py_func: value for module in chapters.modules()
            for value in vars(importlib.import_module(module)).values()
            if hasattr(value, "py_func")}


def watch(name, value, compiles):
    function = getattr(value, "__wrapped__", value)  # inside of a cache
    if hasattr(value, "confirm"):  # an experiment, which its chapter runs
        called.add(name)
    elif isinstance(value, type):
        classes[name] = value
        watch_class(name, value)
    elif hasattr(value, "signatures"):
        compiled[name] = value
    elif function in compiles:  # numba must find its own code
        compiled[name] = compiles[function]
    elif isinstance(function, types.FunctionType) \
            and not function.__code__.co_freevars:
        watch_function(name, function)


def public():
    """Full names of the functions and classes that the modules export."""
    return {f"{module}.{name}" for module, path in chapters.modules().items()
            for name in chapters.exported(path)}


def note_the_rest():
    called.update(n for n, value in compiled.items() if value.signatures)
    made = [classes[n] for n in called & classes.keys()]
    called.update(n for n, base in classes.items()
                  if any(issubclass(cls, base) for cls in made))


def pytest_configure(config):
    if not getattr(config.option, "numprocesses", None):  # no controller
        compiles = dispatchers()
        for full in sorted(public()):
            module, _, name = full.rpartition(".")
            watch(full, getattr(sys.modules[module], name), compiles)
        made = set(map(type, gc.get_objects()))
        called.update(n for n, cls in classes.items() if cls in made)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    note_the_rest()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["called"] = sorted(called)
    elif exitstatus == 0 and public() - called:
        session.exitstatus = 1


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    called.update(getattr(node, "workeroutput", {}).get("called", ()))


def pytest_terminal_summary(terminalreporter):
    if left := sorted(public() - called):
        terminalreporter.section("public names that no test calls")
        terminalreporter.write_line("\n".join(left))
