"""Chapter 02: files that are whole or not there, also when killed."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lmcourse import files
from lmcourse.files import (
    MANIFEST,
    check_files,
    check_writable,
    finish_writing,
    read_json,
    write_atomically,
    write_files,
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
    if len(times) == 4:  # the manifest; in vain; aside; into place
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
    # the manifest has been synced and renamed inside the folder before
    assert {"w", "lmcourse-m"} <= {x[:10] for x in done[:-3]
                                   if isinstance(x, str)}
    assert [x if isinstance(x, tuple) else x[:10] for x in done[-3:]] == [
        ".writing-m", ("rename", "m"), tmp_path.name[:10]]


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
    assert {p.name for p in (tmp_path / "x/m").iterdir()} == {
        "new", MANIFEST}


# manifests


def saved(folder):
    """Three files of 300 bytes, one of them in a folder."""
    def write(temporary):
        (temporary / "inner").mkdir()
        for name in ("a", "b", "inner/c"):
            (temporary / name).write_bytes(os.urandom(300))

    write_folder(folder, write)
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_every_flipped_bit_is_noticed(tmp_path):
    """200 flips in all files, the manifest included."""
    paths = saved(tmp_path / "m")
    check_files(tmp_path / "m")
    draws = random.Random(0)
    for _ in range(200):
        path = draws.choice(paths)
        data = path.read_bytes()
        place, bit = draws.randrange(len(data)), draws.randrange(8)
        changed = bytearray(data)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        with pytest.raises((ValueError, OSError)) as error:
            check_files(tmp_path / "m")
        assert str(tmp_path / "m") in str(error.value)
        assert len(str(error.value).splitlines()) == 1
        path.write_bytes(data)
    check_files(tmp_path / "m")


@pytest.mark.parametrize("damage, message", [
    (lambda m: (m / "a").write_bytes(b""), "a: has changed since"),
    (lambda m: (m / "inner/c").unlink(), "inner/c: is missing, lmcourse-m"),
    (lambda m: write_json(m / MANIFEST, {}), "must list digests"),
    (lambda m: write_json(m / MANIFEST, []), "must list digests"),
    (lambda m: (m / MANIFEST).unlink(), "manifest.json: is not there"),
])
def test_what_a_manifest_finds(tmp_path, damage, message):
    saved(tmp_path / "m")
    (tmp_path / "m/notes").write_text("not ours")  # and not looked at
    check_files(tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises((ValueError, OSError), match=message):
        check_files(tmp_path / "m")


# several files of a folder

NAMES = ("config", "weights-1", "weights-2")


def text(name, version):
    return f"{name} of version {version}"


def writes(version, names=NAMES):
    return {name: lambda path, name=name: path.write_text(text(name, version))
            for name in names}


def version_of(folder, names=NAMES):
    """The version of all files; they must agree."""
    finish_writing(folder)
    check_files(folder)
    found = {(folder / name).read_text().split()[-1] for name in names}
    assert len(found) == 1, found
    return found.pop()


KILLED = """
from tests.test_files import writes
left = int(sys.argv[2])
def counted(function):
    def call(*arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return function(*arguments, **options)
    return call
for name in ("replace", "unlink", "fsync"):
    setattr(os, name, counted(getattr(os, name)))
files.write_files(path, writes("new"), remove=["old-weights"])
"""


def test_killed_at_every_step(tmp_path):
    """Before each renaming, deletion and sync of a save, one after the other:
    the old version or the new one, never some of each.
    """
    seen = []
    for step in range(100):
        folder = tmp_path / str(step)
        write_files(folder, writes("old"))
        (folder / "old-weights").write_text("goes")
        (folder / "README").write_text("stays")
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(body=KILLED), str(folder),
             str(step)], cwd=Path(__file__).parents[1])
        seen.append(version_of(folder))
        assert (folder / "old-weights").exists() == (seen[-1] == "old")
        assert (folder / "README").read_text() == "stays"
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert seen == ["old"] * seen.count("old") + ["new"] * seen.count("new")
    assert seen.count("old") > 5 and seen.count("new") > 5


def test_a_failing_save_leaves_the_old_one(tmp_path):
    def fail(path):
        path.write_text("half")
        raise OSError("the disk is full")

    write_files(tmp_path, writes("old"))
    with pytest.raises(OSError, match="the disk is full"):
        write_files(tmp_path, {**writes("new"), "weights-2": fail})
    assert version_of(tmp_path) == "old"
    assert {p.name for p in tmp_path.iterdir()} == {*NAMES, MANIFEST}


@pytest.mark.parametrize("journal", [
    '{"rename": {"../a": "b"}, "remove": []}',
    '{"rename": {"a": "/etc/b"}, "remove": []}',
    '{"rename": {}, "remove": ["../victim"]}',
    "{}", "[]", '{"rename": [], "remove": []}', '{"rename"'])
def test_a_journal_names_files_of_its_folder(tmp_path, journal):
    """It may have been downloaded."""
    (tmp_path / "m").mkdir()
    (tmp_path / "victim").write_text("lives")
    (tmp_path / "m/.renaming.json").write_text(journal)
    with pytest.raises(ValueError, match=".renaming.json: is damaged, must"):
        finish_writing(tmp_path / "m")
    assert (tmp_path / "victim").read_text() == "lives"


TOGETHER = """
from tests.test_files import writes
for i in range(60):
    files.write_folder(path, lambda t: [
        write(t / name) for name, write in writes(sys.argv[2]).items()])
"""


def test_two_processes_write_one_folder(tmp_path):
    """At the same moments, 60 times each; the last one's files stay."""
    path = tmp_path / "m"
    both = [subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=TOGETHER), str(path), who],
        cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True)
        for who in ("one", "other")]
    for process in both:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    assert version_of(path) in ("one", "other")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_folder_that_cannot_be_written_to(tmp_path):
    check_writable(tmp_path / "new/one")
    assert [*(tmp_path / "new").rglob("*")] == [tmp_path / "new/one"]
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file/inside",
                  Path("/proc/nowhere")):
        with pytest.raises(OSError, match=f"^{place}: cannot be written to"):
            check_writable(place)


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
