"""Run the experiments and write their records: what `make records` does.

    python tools/records.py                make what is missing or outdated
    python tools/records.py CH [CH ...]    make these chapters' in any case
        --jobs N      seeds side by side; as many as there are cores
        --same WHY    run nothing: the code has changed, and what comes out
                      cannot have; the record keeps the reason

CH is a chapter's number or a record's name. Each seed runs in a process of
its own with one thread. It needs the package's sources and what they import,
and may run on another machine than the one where the book is built.
"""

import argparse
import datetime
import importlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from lmcourse.experiments import (  # noqa: E402
    find_experiments,
    run_seed,
    write_record,
)
from lmcourse.files import read_json, write_json  # noqa: E402

ONE_THREAD = {name: "1" for name in (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "TQDM_DISABLE")}


def load(name):
    """The experiment of this name."""
    module, function = find_experiments()[name]
    return getattr(importlib.import_module(module), function)


def chosen(chapters):
    """The names of the experiments of these chapters, or of all."""
    known = sorted(find_experiments())
    unknown = [chapter for chapter in chapters if not any(
        chapter in (name, name.split("_")[0]) for name in known)]
    if unknown:
        sys.exit(f"CH={' '.join(unknown)} has no experiments; there are: "
                 f"{', '.join(known)}")
    return [name for name in known if not chapters
            or {name, name.split("_")[0]} & set(chapters)]


def fits(experiment):
    """Whether the record needs not be made; says why."""
    try:
        made = experiment.record().made
    except (FileNotFoundError, ValueError) as error:
        print(error, flush=True)
        return False
    print(f"{experiment.name}: fits, made {made}, left as it is", flush=True)
    return True


def measure(name, seed):
    """Run one seed in a fresh process: what `run_seed` returns."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, __file__, name, "--seed", str(seed)], text=True,
        capture_output=True,
        env=os.environ | ONE_THREAD | {"PYTHONPATH": path})
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError("\n".join(lines[-12:])
                           or f"ended with {done.returncode}")
    return json.loads(done.stdout)


def make(experiments, jobs):
    """Run all seeds and write each record when it is complete.

    Returns:
        The names of the experiments of which a seed failed.
    """
    runs = {name: {} for name in experiments}
    failed = set()
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(measure, name, seed): (name, seed)
                   for name, e in experiments.items() for seed in e.seeds}
        for future in as_completed(waiting):
            name, seed = waiting[future]
            try:
                runs[name][seed] = future.result()
                print(f"{name} seed {seed}: "
                      f"{runs[name][seed]['seconds']:.1f} s", flush=True)
                if len(runs[name]) == len(experiments[name].seeds):
                    write_record(experiments[name], runs[name])
                    print(f"{name}: written", flush=True)
            except Exception as error:
                failed.add(name)
                print(f"{name} seed {seed} failed: {error}", flush=True)
    return sorted(failed)


def keep(experiment, why):
    """Let a record fit the code of today, and say in it why it does."""
    content = read_json(experiment.path)
    content["fingerprint"] = experiment.fingerprint()
    content["kept"] = [*content.get("kept", []),
                       {"on": datetime.date.today().isoformat(), "why": why}]
    write_json(experiment.path, content)
    print(f"{experiment.name}: kept")


def cores():
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*")
    parser.add_argument("--jobs", type=int, default=cores())
    parser.add_argument("--same", metavar="WHY")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.seed is not None:  # one of the processes of `measure`
        with redirect_stdout(sys.stderr):
            run = run_seed(load(*arguments.chapters), arguments.seed)
        return print(json.dumps(run))
    if arguments.jobs < 1:
        sys.exit(f"--jobs {arguments.jobs}: must be at least 1")
    if arguments.same is not None:
        if not arguments.chapters or not arguments.same.strip():
            sys.exit("--same WHY: must name the records, and give a reason")
        for name in chosen(arguments.chapters):
            keep(load(name), arguments.same)
        return None
    start = time.perf_counter()
    experiments, failed = {}, []
    for name in chosen(arguments.chapters):
        try:
            experiment = load(name)
        except Exception as error:  # the module of one chapter
            failed.append(name)
            print(f"{name} failed: {error!r}", flush=True)
        else:
            if arguments.chapters or not fits(experiment):
                experiments[name] = experiment
    failed += make(experiments, arguments.jobs)
    print(f"{time.perf_counter() - start:.0f} s in all")
    if failed:
        sys.exit(f"no record was written of: {', '.join(failed)}")


if __name__ == "__main__":
    main()
