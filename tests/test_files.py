"""Chapter 02: files that are whole or not there, also when killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lmcourse import files
from lmcourse.files import (
    read_json,
    write_atomically,
    write_folder,
    write_json,
)

PROGRAM = """
import os, signal, sys
from pathlib import Path
from lmcourse import files

path = Path(sys.argv[1])
{body}
"""


def killed(body, path):
    """Run a program that kills itself; what lies beside `path` then."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body), str(path)],
        cwd=Path(__file__).parents[1])
    assert done.returncode == -signal.SIGKILL
    return sorted(p.name[:9] for p in path.parent.iterdir())


def test_killed_while_writing_a_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, "old")
    assert killed("""
def write(temporary):
    temporary.write_text('"ne')
    os.kill(os.getpid(), signal.SIGKILL)

files.write_atomically(path, write)
""", path) == [".writing-", "a.json"]
    assert read_json(path) == "old"


@pytest.mark.parametrize("before, left", [
    # before the old folder is moved aside, and before the new one comes
    ("os.kill(os.getpid(), signal.SIGKILL)", [".writing-", "model"]),
    ("""
rename, times = os.replace, []
def replace(old, new):
    times.append(0)
    if len(times) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(old, new)
os.replace = replace
""", [".writing-", ".writing-"]),
])
def test_killed_while_writing_a_folder(tmp_path, before, left):
    path = tmp_path / "model"
    write_folder(path, lambda t: (t / "a").write_text("old"))
    assert killed(f"""
def write(temporary):
    (temporary / "a").write_text("new")
    exec({before!r}, globals())

files.write_folder(path, write)
""", path) == left
    if path.exists():
        assert (path / "a").read_text() == "old"
    write_folder(path, lambda t: (t / "a").write_text("newer"))
    assert (path / "a").read_text() == "newer"


def test_synced_before_renamed(tmp_path, monkeypatch):
    """Else the name may reach the disk before the bytes do."""
    done = []
    fsync, rename = os.fsync, os.replace

    def note_sync(descriptor):
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def note_rename(old, new):
        done.append(("rename", Path(new).name))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    write_json(tmp_path / "a", 1)
    assert [x if isinstance(x, tuple) else x[:10] for x in done] == [
        ".writing-a", ("rename", "a"), tmp_path.name[:10]]
    done.clear()
    write_folder(tmp_path / "m", lambda t: (t / "w").write_text("1"))
    assert [x if isinstance(x, tuple) else x[:10] for x in done] == [
        "w", ".writing-m", ("rename", "m"), tmp_path.name[:10]]


def test_what_fails_leaves_nothing(tmp_path):
    def fail(temporary):
        if temporary.is_dir():
            temporary = temporary / "file"
        temporary.write_text("half")
        raise OSError("the disk is full")

    write_json(tmp_path / "a", "old")
    write_folder(tmp_path / "m", lambda t: (t / "w").write_text("old"))
    for write, name in [(write_atomically, "a"), (write_folder, "m"),
                        (write_atomically, "b"), (write_folder, "n")]:
        with pytest.raises(OSError, match="the disk is full"):
            write(tmp_path / name, fail)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "m"]
    assert read_json(tmp_path / "a") == "old"
    assert (tmp_path / "m/w").read_text() == "old"


def test_a_folder_is_replaced_whole(tmp_path):
    write_folder(tmp_path / "x/m", lambda t: (t / "old").touch())
    write_folder(tmp_path / "x/m", lambda t: (t / "new").touch())
    assert [p.name for p in (tmp_path / "x/m").iterdir()] == ["new"]


@pytest.mark.parametrize("value", [
    {"a": [1, 2.5, None, True], "b": {"ü": "猫"}}, [], "text", 3,
    float("inf")])
def test_json_comes_back(tmp_path, value):
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    text = (tmp_path / "a.json").read_text("utf-8")
    assert text.endswith("\n") and json.loads(text) == value


@pytest.mark.parametrize("value, error", [
    ({"a": {1, 2}}, TypeError), ("\ud800", ValueError)])
def test_what_json_cannot_say(tmp_path, value, error):
    with pytest.raises(error):
        write_json(tmp_path / "a.json", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data, message", [
    (b'{"a": 1', "is not whole JSON, Expecting"),
    (b"", "is not whole JSON, Expecting value"),
    (b'"\xff"', "is not whole JSON, .utf-8. codec"),
    (b'{"a": 1, "b": 2, "a": 3}', "is not whole JSON, .a. is there twice"),
    (b"[" * 10 ** 6, "nests too deeply"),
    (b"1" * 10 ** 5, "is not whole JSON, Exceeds the limit"),
])
def test_damaged_json_is_named(tmp_path, data, message):
    path = tmp_path / "some.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="some.json: " + message) as error:
        read_json(path)
    assert "\n" not in str(error.value)


def test_json_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="a.json: is not there"):
        read_json(tmp_path / "a.json")


def test_temporary_names_differ():
    names = {files._temporary(Path("a/b")) for _ in range(100)}
    assert len(names) == 100 and {n.parent for n in names} == {Path("a")}
