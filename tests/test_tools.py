"""The tools behind the Makefile, on a small project of their own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
PATIENT = 300  # seconds: a busy machine is no fault
HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
    format_version: 0.13
kernelspec:
  display_name: python3
  language: python
  name: python3
---
"""
CELL = "\n```{{code-cell}}\n{}\n```\n"


@pytest.fixture
def project(tmp_path):
    """A book of one chapter, and a function that runs its tools."""
    for name in ("settings.ini", "pyproject.toml", "tools"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for name in ("nbs/text", "book", "lmcourse"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lmcourse/__init__.py").touch()
    return tmp_path


def write_chapter(project, *cells):
    text = HEADER + "\n# 05 · A chapter\n" + "".join(map(CELL.format, cells))
    (project / "nbs/text/05_chapter.md").write_text(text)
    return project / "nbs/05_chapter.ipynb"


def start(project, *arguments):
    return subprocess.Popen(
        [sys.executable, project / "tools/chapters.py", *arguments],
        cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True)


def test_run_writes_outputs_module_and_run_time(project):
    path = write_chapter(project, "#| default_exp small",
                         "#| export\ndef double(x):\n    return 2 * x",
                         "double(21)")
    run = start(project, "run", "05")
    output, _ = run.communicate(timeout=PATIENT)
    assert run.returncode == 0, output
    nb = nbformat.read(path, as_version=4)
    assert nb.cells[-1].outputs[0].data["text/plain"] == "42"
    assert nb.cells[-1].execution_count is None
    assert "def double" in (project / "lmcourse/small.py").read_text()
    assert "05_chapter" in (project / "book/runtimes.json").read_text()


def test_interrupted_run_leaves_the_notebook_as_it_was(project):
    marker = project / "started"
    path = write_chapter(project, "1 + 1")
    assert start(project, "run").wait(timeout=PATIENT) == 0
    write_chapter(project, f"import pathlib, time\npathlib.Path("
                           f"{str(marker)!r}).touch()\ntime.sleep(600)")
    os.utime(project / "nbs/text/05_chapter.md", (2e9, 2e9))
    assert start(project, "sync").wait(timeout=PATIENT) == 0
    before = path.read_bytes()
    run = start(project, "run")
    for _ in range(10 * PATIENT):
        if marker.exists():
            break
        time.sleep(0.1)
    assert marker.exists()
    os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=PATIENT)
    assert run.returncode != 0
    assert output.endswith("Interrupted: 05_chapter.ipynb is as it was.\n")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.glob(".*ipynb")] == []


def test_failing_cell_is_reported_and_changes_nothing(project):
    path = write_chapter(project, "1 / 0")
    assert start(project, "sync").wait(timeout=PATIENT) == 0
    before = path.read_bytes()
    run = start(project, "run")
    output, _ = run.communicate(timeout=PATIENT)
    assert run.returncode == 1
    assert "ZeroDivisionError" in output
    assert "05_chapter.ipynb failed and is as it was." in output
    assert path.read_bytes() == before


def test_a_fork_edits_one_file(project):
    """`owner` carries the address into chapters, package and metadata."""
    install = "#| hide\nimport sys"
    path = write_chapter(project, install, "#| default_exp small",
                         "#| export\ndef double(x):\n    return 2 * x")
    settings = project / "settings.ini"
    text = settings.read_text()
    settings.write_text(text.replace("example-owner", "somebody"))
    run = start(project, "owner")
    output, _ = run.communicate(timeout=PATIENT)
    assert run.returncode == 0, output
    home = "https://github.com/somebody/lmcourse"
    assert f"git+{home}@main" in path.read_text()
    assert f"git+{home}@main" in (
        project / "nbs/text/05_chapter.md").read_text()
    assert f'"{home}"' in (project / "pyproject.toml").read_text()
    assert f"'{home}'" in (project / "lmcourse/_modidx.py").read_text()


def test_unknown_chapter_is_named(project):
    write_chapter(project, "1")
    run = start(project, "run", "77")
    output, _ = run.communicate(timeout=PATIENT)
    assert run.returncode == 1
    assert "CH=77 is no chapter; there are: 05_chapter" in output


DIFFERS = """import os
import torch
print("here", os.environ.get("ATEN_CPU_CAPABILITY"))"""


def test_run_refuses_what_other_processors_do_not_print(project):
    path = write_chapter(project, "print('the same')", DIFFERS)
    run = start(project, "run", "05")
    output, _ = run.communicate(timeout=PATIENT)
    assert run.returncode == 1
    assert "[sse] cell 1: saved 'here None', now 'here default'" in output
    assert output.endswith("05_chapter.ipynb differs on other processors and "
                           "is as it was; print what stays.\n")
    assert "here None" not in path.read_text()
    run = start(project, "draft", "05")
    output, _ = run.communicate(timeout=PATIENT)
    assert run.returncode == 0, output
    assert "here None" in path.read_text()
    done = subprocess.run(
        [sys.executable, project / "tools/portable.py", "05", "--settings",
         "sse", "two-threads"], capture_output=True, text=True)
    assert done.stdout.count("05_chapter [sse] cell 1: saved 'here N") == 1
    assert "05_chapter [two-threads] " in done.stdout
    assert done.stdout.count("no differences") == 1
    assert done.stderr.endswith("outputs differ in: 05_chapter\n")


TRAINS = """import torch
from pathlib import Path
few, many = (torch.nn.Parameter(torch.ones(n)) for n in (63, 64))
optimizer = torch.optim.AdamW([few, many], lr=0.1)
print(f"{few[0].item():.6f} {many[0].item():.6f}", Path.home().name)"""


def test_what_is_trained_starts_elsewhere_in_the_shifted_setting(project):
    path = write_chapter(project, "1 + 1", TRAINS, "1 / 0  # NBVAL_SKIP")
    assert start(project, "sync").wait(timeout=PATIENT) == 0
    code = (f"import arithmetic, nbformat\n"
            f"nb = nbformat.read({str(path)!r}, 4)\n"
            f"print(*arithmetic.differences(nb, 'shifted'), sep='\\n')")
    done = subprocess.run([sys.executable, "-c", code], text=True,
                          cwd=project / "tools", capture_output=True)
    assert done.returncode == 0, done.stderr
    one, two, three = done.stdout.splitlines()
    assert one == "cell 0: saved '', now '2'"
    assert two == "cell 1: saved '', now '1.000000 1.000001 shifted'"
    assert three.startswith("cell 2: saved '', now 'ZeroDivisionError")


SMALL = """
__all__ = ["used", "left", "Base", "Used", "Left", "MADE"]
import functools
def used(x, *, y=1):
    return x + y
def left():
    return used(1)
class Base:
    def method(self):
        return 1
class Used(Base):
    pass
class Left(tuple):
    pass
@functools.cache
def kept(x):
    return x
"""
CALLS = """
import inspect
from lmcourse.small import Used, used
def test_used():
    assert str(inspect.signature(used)) == "(x, *, y=1)"
    assert [used(1), used(1, y=5)] == [2, 6]
    assert str(inspect.signature(used)) == "(x, *, y=1)"
def test_class():
    assert Used().method() == Used().method() == 1
"""


def test_public_names_that_no_test_calls_are_listed(project):
    (project / "lmcourse/small.py").write_text(SMALL)
    (project / "tests").mkdir()
    (project / "tests/test_small.py").write_text(CALLS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p",
         "tools.called"], cwd=project, capture_output=True, text=True,
        timeout=PATIENT)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    listed = [line for line in done.stdout.splitlines()
              if line.startswith("lmcourse.")]
    assert listed == ["lmcourse.small.Left", "lmcourse.small.left"]
    assert done.returncode == 1


def serve(folder, port):
    return subprocess.Popen(
        [sys.executable, "-u", ROOT / "tools/serve.py", folder, str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_serve_prints_the_address(tmp_path):
    (tmp_path / "index.html").write_text("the book")
    server = serve(tmp_path, 0)
    try:
        line = server.stdout.readline()
        address = line.split()[4]
        with urllib.request.urlopen(address, timeout=PATIENT) as page:
            assert page.read() == b"the book"
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=PATIENT)
    assert server.returncode == 0


@pytest.mark.parametrize("port", ["99999", "-1", "here"])
def test_serve_on_no_port_says_so(tmp_path, port):
    server = serve(tmp_path, port)
    output, _ = server.communicate(timeout=PATIENT)
    assert server.returncode == 1
    assert output.startswith(f"PORT={port} cannot be served on: ")
    assert len(output.splitlines()) == 1


def test_serve_on_a_taken_port_says_so(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = serve(tmp_path, port)
        output, _ = server.communicate(timeout=PATIENT)
    assert server.returncode == 1
    assert output.startswith(f"PORT={port} cannot be served on: ")
    assert len(output.splitlines()) == 1


APT = """#!/bin/sh
echo "$@" >> {folder}/calls
{case}
echo '#!/bin/sh' > {folder}/chromium; chmod +x {folder}/chromium
"""
LOCKED = "E: Could not get lock /var/lib/apt/lists/lock. It is held by 7"


@pytest.fixture
def browser(tmp_path):
    """Runs browser.sh where only this apt-get is, and no Playwright."""
    def write(name, script):
        path = tmp_path / name
        path.write_text(script)
        path.chmod(0o755)

    def run(case, **environment):
        for name in ("mktemp", "rm", "grep", "tail", "sed", "chmod"):
            (tmp_path / name).symlink_to(shutil.which(name))
        write("id", "#!/bin/sh\necho 0")
        write("sleep", "#!/bin/sh")
        write("python", "#!/bin/sh\necho 'no such browser'; exit 1")
        write("apt-get", APT.format(folder=tmp_path, case=case))
        done = subprocess.run(
            [shutil.which("sh"), ROOT / "tools/browser.sh"], text=True,
            capture_output=True, timeout=PATIENT, env={
                "PATH": str(tmp_path), "PYTHON": "python", **environment})
        return done, (tmp_path / "calls").read_text().splitlines()

    return run


def test_browser_waits_for_the_lock_of_apt(browser, tmp_path):
    case = f"""
    [ -e {tmp_path}/again ] || {{ : > {tmp_path}/again
        echo "{LOCKED}" >&2; exit 100; }}"""
    done, calls = browser(case, CI="true")
    assert done.returncode == 0, done.stdout
    assert LOCKED in done.stdout
    assert [call.split()[0] for call in calls] == [
        "update", "update", "install"]


def test_browser_says_why_there_is_none(browser):
    done, calls = browser(f'echo "{LOCKED}" >&2; exit 100', LOCK_WAIT="10")
    assert len(calls) == 3
    assert "apt-get failed; the last lines of what it said:\n" in done.stdout
    assert "playwright install failed" in done.stdout
    assert "    no such browser" in done.stdout
    assert done.stdout.endswith("the page tests cannot run.\n")
    assert done.returncode == 0  # a reader's machine; on CI it is an error


def test_no_browser_is_an_error_on_ci(browser):
    done, calls = browser('echo "E: Unable to locate it" >&2; exit 100',
                          CI="true")
    assert "    E: Unable to locate it" in done.stdout
    assert len(calls) == 1 and done.returncode == 1
