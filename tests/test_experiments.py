"""Experiments: verdicts, fingerprints, records, and the tool that makes them.

The gate at the end holds for every experiment of the package.
"""

import json
import math
import subprocess
import sys
import tomllib
import types
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from lmcourse import experiments
from lmcourse.experiments import (
    Record,
    compare,
    deciding_code,
    experiment,
    find_experiments,
    run_seed,
    t_quantile,
    two_rules,
    write_record,
)
from lmcourse.files import read_json, write_json

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("df, expected", [
    (1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262),
    (30, 2.042), (1000, 1.962)])
def test_quantiles_are_those_of_the_tables(df, expected):
    assert t_quantile(df) == pytest.approx(expected, abs=6e-4)


def test_quantiles_of_another_coverage():
    stats = pytest.importorskip("scipy.stats")
    for df in range(1, 40):
        for coverage in (0.5, 0.9, 0.99):
            expected = stats.t.ppf(0.5 + coverage / 2, df)
            found = t_quantile(df, coverage=coverage)
            assert found == pytest.approx(expected, rel=1e-9)


def test_comparison_by_hand():
    found = compare([5, 7, 9], [3, 4, 5])
    reach = 4.302653 / math.sqrt(3)
    assert found.mean == 3 and found.n_seeds == 3
    assert found.low == pytest.approx(3 - reach, abs=1e-5)
    assert found.high == pytest.approx(3 + reach, abs=1e-5)
    assert str(found) == "+3 (0.516 to 5.48, 3 seeds): holds"
    wider = compare([5, 7, 9], [3, 4, 5], coverage=0.99)
    assert wider.verdict == "not seen here"


@pytest.mark.parametrize("differences, verdict", [
    ([1, 2, 3, 2, 1], "holds"), ([-1, -2, -3, -2, -1], "the opposite holds"),
    ([1, 1, 1, 1, 20], "not seen here"), ([0] * 5, "not seen here"),
    ([5, 5, 5, 5, 0], "not seen here"), ([5, 5, 5, 5, -0.1], "not seen here"),
    ([5, 6] * 4 + [5, -1], "holds"), ([5, 6] * 4 + [0, -1], "not seen here"),
    ([5, 6] * 3 + [5, -1], "not seen here")])
def test_verdicts(differences, verdict):
    other = np.linspace(1, 2, len(differences))
    assert compare(other + differences, other).verdict == verdict


@pytest.mark.parametrize("a, b", [
    ([1, 2], [1, 2, 3]), ([1], [2]), ([[1, 2]], [[3, 4]])])
def test_what_does_not_pair_is_refused(a, b):
    with pytest.raises(ValueError, match=r"^larger, smaller: .* \(S,\)"):
        compare(a, b)


MODULE = '''
from .helpers import loss
from lmcourse.experiments import experiment

RATE, UNUSED = 0.1, 1
TABLE = {}
TABLE["b"] = 2

class Net:
    """A docstring."""

    def forward(self):
        return RATE

def help_out(x):
    """Another."""
    return Net, loss(x), f"{x:>{4}} {TABLE!r}"

@experiment("99_test", tolerance=0.1)
def run(seed):
    """What it does."""
    from .more import thing
    return {"a": help_out(seed), "b": thing}

def unused():
    return UNUSED
'''
SAME = [('"""Another."""', '"""Better."""'), ('"""A docstring."""', ""),
        ("RATE, UNUSED = 0.1, 1", "# comment\nRATE, UNUSED = 0.1, 1"),
        ("tolerance=0.1", "tolerance=0.2"), ("return UNUSED", "return 7"),
        ("from .more", "from pack.more"), ("{4}", "{  4}")]
OTHER = [("0.1, 1", "0.2, 1"), ("help_out(seed)", "help_out(1)"),
         ("return RATE", "return 2 * RATE"), ('TABLE["b"] = 2', ""),
         ('"a":', '"c":'), ("from .more", "from .less"),
         ("{x:>", "{x:<"), ("class Net:", "class Net(dict):")]


@pytest.mark.parametrize("old, new", SAME)
def test_what_does_not_decide_leaves_the_code_as_it_is(old, new):
    assert old in MODULE
    code = deciding_code(MODULE, "run", package="pack")
    changed = MODULE.replace(old, new)
    assert deciding_code(changed, "run", package="pack") == code


@pytest.mark.parametrize("old, new", OTHER)
def test_what_decides_changes_the_code(old, new):
    code = deciding_code(MODULE, "run")
    assert deciding_code(MODULE.replace(old, new), "run") != code


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="^name='walk': is not in"):
        deciding_code(MODULE, "walk")


SMALL = '''
import sys
from lmcourse.experiments import experiment

OFFSET = {offset}

@experiment("98_small", seeds={seeds}, tolerance={tolerance}, settings=[1])
def small(seed):
    if {fails}:
        {failure}
    print("noise")
    return {{"one": OFFSET + seed, "row": [0.25, 1 / 3 + seed]}}
'''


@pytest.fixture
def package(tmp_path):
    """A package `lmcourse` of its own, and the tool on it."""
    for name in ("tools", "lmcourse"):
        (tmp_path / name).mkdir()
    for name in ("tools/records.py", "lmcourse/experiments.py",
                 "lmcourse/files.py", "lmcourse/__init__.py"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())

    def write(offset=1, seeds=3, tolerance=0.1, fails="False",
              failure="raise OSError('broken')"):
        (tmp_path / "lmcourse/small.py").write_text(SMALL.format(**locals()))

    def run(*arguments, code=None):
        script = ["-c", code] if code else [tmp_path / "tools/records.py"]
        return subprocess.run(
            [sys.executable, *script, *arguments], cwd=tmp_path,
            capture_output=True, text=True, timeout=300,
            env={"PYTHONDONTWRITEBYTECODE": "1"})

    write()
    return types.SimpleNamespace(
        path=tmp_path / "lmcourse/records", run=run, write=write)


def test_a_record_is_kept_for_a_reason(package):
    """The code has changed, and nobody can run it again."""
    assert package.run().returncode == 0
    before = read_json(package.path / "98_small.json")
    package.write(offset=2)
    for arguments in (["--same", "why"], ["98_small", "--same", " "]):
        done = package.run(*arguments)
        assert done.returncode == 1 and "give a reason" in done.stderr
    done = package.run("98_small", "--same", "only the name of a file")
    assert done.stdout == "98_small: kept\n", done.stderr
    after = read_json(package.path / "98_small.json")
    assert after["outcomes"] == before["outcomes"]
    assert after["fingerprint"] != before["fingerprint"]
    assert [kept["why"] for kept in after["kept"]] == [
        "only the name of a file"]
    done = package.run()
    assert "98_small: fits" in done.stdout


def test_plain_call_makes_what_is_missing_and_leaves_what_fits(package):
    done = package.run("--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "record 98_small: is not there, run: make records CH=98" in \
        done.stdout
    assert "98_small seed 2: 0.0 s" in done.stdout
    content = read_json(package.path / "98_small.json")
    assert content["outcomes"]["2"] == {"one": 3, "row": [0.25, 2.33333333]}
    assert content["versions"].keys() == {"python", "numpy"}  # no torch
    (package.path / "03_two_rules.json").write_text("not JSON")
    done = package.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "98_small: fits, made 2" in done.stdout
    assert "03_two_rules.json: is not whole JSON" in done.stdout
    assert "03_two_rules: written" in done.stdout


def test_a_chapter_that_is_named_is_made_in_any_case(package):
    for _ in range(2):
        done = package.run("98")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "98_small: written" in done.stdout
        assert "03_two_rules" not in done.stdout
    done = package.run("97")
    assert done.returncode == 1
    assert done.stderr == ("CH=97 has no experiments; there are: "
                           "03_two_rules, 98_small\n")


@pytest.mark.parametrize("failure, said", [
    ("raise OSError('broken')", "OSError: broken"),
    ("import os; os._exit(3)", "ended with 3"),
    ("return {'one': float('nan')}", "98_small, seed 1: 'one' is nan")])
def test_a_seed_that_fails_costs_no_other_record(package, failure, said):
    package.write(fails="seed == 1", failure=failure)
    done = package.run()
    assert done.returncode == 1
    assert "98_small seed 1 failed: " in done.stdout
    assert said in done.stdout
    assert "no record was written of: 98_small" in done.stderr
    assert [p.name for p in package.path.glob("*")] == ["03_two_rules.json"]


def test_a_module_that_fails_costs_no_other_record(package):
    package.write(offset="1 / 0")
    done = package.run()
    assert done.returncode == 1
    assert "98_small failed: ZeroDivisionError" in done.stdout
    assert (package.path / "03_two_rules.json").exists()


CONFIRM = "from lmcourse.small import small; print(small.confirm(1))"


@pytest.mark.parametrize("changed, said", [
    ({}, ""), ({"tolerance": 0.2}, ""),
    ({"seeds": 4}, "ValueError: record 98_small: code, settings or seeds have"
     " changed since it was made, run: make records CH=98"),
    ({"offset": 2}, "ValueError: record 98_small: code, settings or seeds "),
    ({"fails": "seed == 1"}, "ValueError: record 98_small: code, settings")])
def test_a_record_of_other_code_is_refused(package, changed, said):
    assert package.run("98").returncode == 0
    package.write(**changed)
    done = package.run(code=CONFIRM)
    assert (done.returncode == 0) == (not said), done.stderr
    assert said in done.stderr


def test_a_seed_without_a_row_is_refused_before_it_is_run(package):
    assert package.run("98").returncode == 0
    done = package.run(code=CONFIRM.replace("(1)", "(99)"))
    assert done.returncode != 0
    assert "ValueError: seed=99: must be one of the record's, 0, 1" \
        in done.stderr


def test_a_live_run_must_be_near_the_record(package):
    assert package.run("98").returncode == 0
    path = package.path / "98_small.json"
    content = read_json(path)
    content["outcomes"]["1"]["row"][1] += 0.2
    write_json(path, content)
    done = package.run(code=CONFIRM)
    assert ("AssertionError: 98_small, seed 1: 'row' is 0.2 from the record, "
            "the tolerance is 0.1") in done.stderr
    package.write(tolerance={"one": 0, "row": 0.21})
    done = package.run(code=CONFIRM)
    assert done.returncode == 0, done.stderr


def test_a_part_is_compared_with_its_part(package, tmp_path):
    """And a key that the record has not is refused all the same."""
    made = experiment("98_part", seeds=2, tolerance=0.1)(
        lambda seed, names=("a", "b"): {name: seed + 0.05 for name in names})
    made.record = lambda: Record({
        "made": "", "device": "", "versions": {}, "seconds": {},
        "outcomes": {s: {"a": int(s), "b": 7} for s in ("0", "1")}})
    assert made.confirm(1, names=("a",)) == {"a": 1.05}
    for names, said in [(("b",), "'b' is 5.95 from"), (("c",), "other keys"),
                        (None, "'b' is 5.95")]:
        part = {"names": names} if names else {}
        with pytest.raises(AssertionError, match=said):
            made.confirm(1, **part)


def in_a_notebook(source):
    """Run cells as a kernel does: in a module without a file."""
    import linecache

    module = types.ModuleType("a_notebook")
    sys.modules["a_notebook"] = module
    linecache.cache["<cell>"] = (
        len(source), None, source.splitlines(keepends=True), "<cell>")
    exec(compile(source, "<cell>", "exec"), vars(module))
    return module


def cell_of_two_rules():
    """The cell of chapter 03, with the rest of its module around it."""
    return Path(experiments.__file__).read_text(encoding="utf-8").replace(
        "from .files", "from lmcourse.files")


def test_a_notebook_has_the_fingerprint_of_its_module():
    module = in_a_notebook(cell_of_two_rules())
    assert module.two_rules.fingerprint() == two_rules.fingerprint()
    assert module.two_rules.record()["nearest mean"].shape == (5, 4)


def test_a_changed_cell_no_longer_fits():
    changed = cell_of_two_rules().replace("_points(1000", "_points(1001")
    module = in_a_notebook(changed)
    with pytest.raises(ValueError, match="^record 03_two_rules: code, sett"):
        module.two_rules.record()


def test_an_experiment_that_is_not_exported_says_so():
    module = in_a_notebook(
        "from lmcourse.experiments import experiment\n"
        "@experiment('97_new', tolerance=0)\ndef new(seed):\n    return {}\n")
    with pytest.raises(ValueError, match="^experiment 97_new: is in no modu"):
        module.new.fingerprint()


def test_form_of_names_and_seeds():
    for name in ("depth", "2_depth", "22-depth"):
        with pytest.raises(ValueError, match="^name="):
            experiment(name, tolerance=0)
    with pytest.raises(ValueError, match="^seeds="):
        experiment("22_depth", seeds=1, tolerance=0)
    made = experiment("22_depth", seeds=[3, 5], tolerance=0)(len)
    assert made.seeds == (3, 5)
    assert repr(made) == "<experiment 22_depth>"


def test_outcomes_of_other_kinds_are_refused():
    for value in (float("inf"), [[1]], np.nan):
        made = experiment("22_depth", tolerance=0)(
            lambda seed, value=value: {"a": value})
        with pytest.raises(ValueError, match="^22_depth, seed 4: 'a' is "):
            made(4)


def test_a_record_needs_all_seeds_and_the_same_keys(tmp_path):
    runs = {seed: run_seed(two_rules, seed) for seed in two_rules.seeds}
    with pytest.raises(ValueError, match="^runs: are of the seeds"):
        write_record(two_rules, {0: runs[0]})
    runs[2]["outcome"]["nearest mean"].pop()
    with pytest.raises(ValueError, match="^03_two_rules: keys or lengths"):
        write_record(two_rules, runs)


def test_a_record_is_a_mapping():
    content = {"made": "2026-01-31", "device": "a chip", "versions": {},
               "seconds": {"0": 1.5, "7": 2.0},
               "outcomes": {"0": {"a": 1, "b": [1, 2]},
                            "7": {"a": 3, "b": [5, 6]}}}
    record = Record(json.loads(json.dumps(content)))
    assert record.seeds == (0, 7) and record.seconds == (1.5, 2.0)
    assert {k: v.tolist() for k, v in record.items()} == {
        "a": [1, 3], "b": [[1, 2], [5, 6]]}
    assert repr(record) == "<record of 2 seeds, made 2026-01-31 on a chip>"


@pytest.mark.parametrize("name", sorted(find_experiments()))
def test_each_experiment_has_a_record_that_fits(name):
    module, function = find_experiments()[name]
    found = getattr(import_module(module), function)
    assert found.name == name
    record = found.record()
    assert record.seeds == found.seeds
    if isinstance(found.tolerance, dict):
        assert found.tolerance.keys() == record.keys()


def test_records_are_part_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    data = project["tool"]["setuptools"]["package-data"]["lmcourse"]
    assert "records/*.json" in data


def test_each_record_has_an_experiment():
    files = {p.stem for p in (ROOT / "lmcourse/records").iterdir()}
    assert files == find_experiments().keys()
