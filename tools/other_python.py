"""Prepare a second Python for the tests of the parts without torch.

    python tools/other_python.py FOLDER

Where a Python of another version (3.11 or newer) is installed, FOLDER becomes
a virtual environment of it that has what these parts import. Where there is
none, or it cannot be prepared, this says so in one line and all is well.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDS = ["numpy", "regex", "tqdm"]  # what world and tokenizers import
MINE = sys.version_info[:2]


def installed():
    """Paths of other Pythons, newest first: on PATH, or kept by pyenv."""
    folders = [Path(p) for p in os.environ.get("PATH", "").split(os.pathsep)]
    folders += Path.home().glob(".pyenv/versions/*/bin")
    found = {}
    for path in (p for folder in folders for p in folder.glob("python3.*")):
        match = re.fullmatch(r"python3\.(\d+)", path.name)
        if match and int(match[1]) >= 11 and (3, int(match[1])) != MINE:
            found.setdefault(int(match[1]), []).append(path)
    return [path for minor in sorted(found, reverse=True)
            for path in found[minor]]


def prepare(python, folder):
    """Whether `folder` is now a virtual environment of `python`."""
    pip = [folder / "bin/python", "-m", "pip", "install", "-q",
           "--only-binary", ":all:", "-c", ROOT / "constraints.txt", *NEEDS]
    return all(subprocess.run(command, capture_output=True).returncode == 0
               for command in ([python, "-m", "venv", "--clear", folder],
                               pip))


def main(folder):
    for python in installed():
        if prepare(python, folder):
            print(f"Parts without torch are also tested with {python}")
            return
    print("No second Python could be prepared: one version is tested")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
