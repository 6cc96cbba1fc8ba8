"""Execute chapters as other processors would: what `make portable` does.

    python tools/portable.py [CH ...]      these chapters, or all
        --settings NAME ...                some of those of arithmetic.py
        --jobs N                           notebooks side by side

The outputs are compared with the saved ones as `make test` does, and each
cell that differs is listed in one line; nothing is written.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

import arithmetic
import nbformat
from chapters import chapters


def compared(path, setting):
    """The differences of a chapter in a setting, and the seconds."""
    start = time.perf_counter()
    saved = nbformat.read(path, as_version=4)
    found = arithmetic.differences(saved, setting)
    return found, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--settings", nargs="+", metavar="NAME",
                        choices=list(arithmetic.SETTINGS),
                        default=arithmetic.available())
    arguments = parser.parse_args()
    differing = set()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        waiting = {pool.submit(compared, path, setting): (path, setting)
                   for path in chapters(arguments.chapters)
                   for setting in arguments.settings}
        for future in as_completed(waiting):
            path, setting = waiting[future]
            found, seconds = future.result()
            print(f"{path.stem} [{setting}] {seconds:.0f} s: "
                  f"{len(found) or 'no'} differences", flush=True)
            for text in found:
                print(f"{path.stem} [{setting}] {text}", flush=True)
                differing.add(path.stem)
    if differing:
        sys.exit(f"outputs differ in: {', '.join(sorted(differing))}")


if __name__ == "__main__":
    main()
