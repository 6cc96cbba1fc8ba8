"""Execute a notebook as another processor would, and compare its outputs.

Sums of floats come out differently with other vector instructions or another
number of threads, and training multiplies the difference. A setting is a set
of environment variables that makes this processor behave like another one.
"""

import configparser
import copy
import itertools
import os
import re
from pathlib import Path

from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
HOMES = ROOT / ".cache/portable"
IGNORED = {"nbval-ignore-output", "nbval-skip"}

ONE = {"OMP_NUM_THREADS": "1"}
SETTINGS = {
    "sse": ONE | {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": ONE | {  # a processor without AVX-512
        "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OPENBLAS_CORETYPE": "Haswell"},
    "avx512": ONE | {"ATEN_CPU_CAPABILITY": "avx512"},
    "two-threads": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    "libraries": ONE | {  # what torch and NumPy multiply matrices with
        "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "MKL_CBWR": "COMPATIBLE", "OPENBLAS_CORETYPE": "Nehalem"},
    "shifted": ONE, "shifted-twice": ONE, "shifted-down": ONE,
}
SHIFTS = {"shifted": 1e-6, "shifted-twice": 2e-6, "shifted-down": -1e-6}
# the ones that find most of what there is to find: `make run` tries these
TELLING = ("sse", "shifted")

# pictures with two pixels for each one that they take on a page
SHARP = "--InlineBackend.figure_formats={'retina'}"
# run by the kernel before the notebook: what is trained starts from matrices
# that are larger by a millionth, say, as after other roundings; not from a
# few numbers, whose steps a chapter may compare with those taken by hand
SHIFT = """
def shift(by):
    import torch

    start = torch.optim.Optimizer.__init__

    def shifted(self, params, defaults):
        start(self, params, defaults)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.numel() >= 64:
                        parameter.mul_(1 + by)

    torch.optim.Optimizer.__init__ = shifted


shift(by={})
del shift
"""


def numpy_core():
    """NumPy's module that knows what this processor has."""
    try:
        from numpy._core import _multiarray_umath as core
    except ImportError:  # NumPy 1
        from numpy.core import _multiarray_umath as core
    return core


def available():
    """The names of the settings that this processor can be put into."""
    has = numpy_core().__cpu_features__
    return [name for name in SETTINGS
            if has.get({"avx512": "AVX512F", "avx2": "AVX2"}.get(name), True)]


def environment(setting):
    """The variables of a kernel in this setting.

    It has a home of its own, so that models of the zoo are trained in the
    setting too: the usual ones come from this processor as it is.
    """
    home = HOMES / setting
    startup = home / ".ipython/profile_default/startup"
    startup.mkdir(parents=True, exist_ok=True)
    if setting in SHIFTS:
        (startup / "shift.py").write_text(SHIFT.format(SHIFTS[setting]))
    known = {name for values in SETTINGS.values() for name in values}
    kept = {k: v for k, v in os.environ.items() if k not in known}
    if setting == "libraries":  # all that NumPy has beyond its baseline
        core = numpy_core()
        kept["NPY_DISABLE_CPU_FEATURES"] = " ".join(
            name for name in core.__cpu_dispatch__
            if core.__cpu_features__.get(name))
    return kept | SETTINGS[setting] | {
        "HOME": str(home), "IPYTHONDIR": str(home / ".ipython"),
        "MPLCONFIGDIR": str(Path.home() / ".cache/matplotlib"),
        "TQDM_DISABLE": "1"}


def execute(nb, *, env=None, timeout=1800, allow_errors=False):
    """Run all cells of a notebook in a fresh kernel, in place."""
    client = NotebookClient(nb, timeout=timeout, kernel_name="python3",
                            extra_arguments=[SHARP],
                            coalesce_streams=True, allow_errors=allow_errors,
                            resources={"metadata": {"path": str(NBS)}})
    client.execute(**({"env": env} if env else {}))


def sanitizers():
    """The pairs (pattern, replacement) that nbval is given, too."""
    parser = configparser.RawConfigParser()
    parser.read(NBS / "nbval_sanitize.cfg", encoding="utf-8")
    return [(section["regex"], section["replace"])
            for section in map(parser.__getitem__, parser.sections())]


def shown(cell):
    """The text that a cell has printed or shown; pictures are left out."""
    streams, texts = {}, []
    for output in cell.outputs:
        if output.output_type == "stream":  # in pieces, or in one
            streams[output.name] = streams.get(output.name, "") + output.text
        elif output.output_type == "error":
            texts.append(f"{output.ename}: {output.evalue}")
        else:
            texts += [str(text) for kind, text in sorted(output.data.items())
                      if not kind.startswith("image/")]
    text = "\n".join([*(streams[name] for name in sorted(streams)), *texts])
    for pattern, replacement in sanitizers():
        text = re.sub(pattern, replacement, text)
    return text


def differences(saved, setting):
    """What comes out otherwise in a setting.

    Args:
        saved: a notebook with the outputs of this processor as it is.
        setting: a name in `SETTINGS`.

    Returns:
        A list of texts, one for each cell that differs.
    """
    fresh = copy.deepcopy(saved)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    try:
        execute(fresh, env=environment(setting), allow_errors=True)
    except (CellTimeoutError, DeadKernelError) as error:
        return [f"ended early: {str(error).splitlines()[0]}"]
    found = []
    pairs = [(old, new) for old, new in
             zip(saved.cells, fresh.cells, strict=True)
             if old.cell_type == "code"]
    for i, (old, new) in enumerate(pairs):  # nbval counts them like this
        if not IGNORED & set(old.metadata.get("tags", ())) \
                and shown(old) != shown(new):
            found.append(f"cell {i}: {first_difference(old, new)}")
    return found


def first_difference(old, new):
    """The first line that differs, as it was and as it is."""
    pairs = itertools.zip_longest(shown(old).split("\n"),
                                  shown(new).split("\n"), fillvalue="")
    was, now = next((a, b) for a, b in pairs if a != b)
    start = max(0, len(os.path.commonprefix([was, now])) - 40)
    return f"saved {was[start:start + 80]!r}, now {now[start:start + 80]!r}"
