"""What the benchmarks share: texts, turns, tables, the machine."""

import datetime
import hashlib
import os
import platform
import random
import subprocess
import sysconfig
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]


def texts_of_this_machine(megabytes, kinds):
    """Documents of about 10,000 characters, no paragraph twice."""
    roots = [Path(sysconfig.get_path("purelib")),
             Path(sysconfig.get_path("stdlib")), Path("/usr/share/doc")]
    files = sorted({p for root in roots if root.is_dir()
                    for p in root.rglob("*")
                    if p.suffix in kinds and p.is_file()})
    random.Random(0).shuffle(files)
    seen, texts, size = set(), [], 0
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        kept = []
        for paragraph in text.split("\n\n"):
            digest = hashlib.blake2b(paragraph.encode(), digest_size=8)
            if digest.digest() not in seen:
                seen.add(digest.digest())
                kept.append(paragraph)
        text = "\n\n".join(kept)
        for start in range(0, len(text), 10_000):
            texts.append(text[start:start + 10_000])
            size += len(texts[-1].encode())
            if size >= 1e6 * megabytes:
                return texts
    return texts


def take_turns(candidates, rounds):
    """Median CPU and wall seconds of each candidate."""
    found = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, (prepare, job) in candidates.items():
            prepare()
            cpu, wall = time.process_time(), time.perf_counter()
            job()
            found[name].append((time.process_time() - cpu,
                                time.perf_counter() - wall))
    return {name: [median(column) for column in zip(*runs, strict=True)]
            for name, runs in found.items()}


def nothing():
    pass


def table(title, seconds, size, against, note=""):
    """Markdown: rates, and ratios of CPU seconds to the peers in `against`."""
    lines = [f"### {title}", "",
             "| | CPU s | wall s | MB/s of CPU | "
             + " | ".join(f"x {name}" for name in against) + " |",
             "|---|" + "---|" * (3 + len(against))]
    for name, (cpu, wall) in seconds.items():
        ratios = [f"{seconds[peer][0] / cpu:.2f}" for peer in against]
        lines.append(f"| {name} | {cpu:.3f} | {wall:.3f} | "
                     f"{size / cpu / 1e6:.1f} | " + " | ".join(ratios) + " |")
    text = "\n".join([*lines, "", note, ""])
    print(text, flush=True)
    return text


def machine(packages):
    """Date, processor, versions, commit and load, in a sentence."""
    try:
        model = next(line.split(":")[1].strip() for line in
                     Path("/proc/cpuinfo").read_text().splitlines()
                     if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} not installed")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"],
                            cwd=ROOT, text=True, capture_output=True)
    return (f"{datetime.date.today()}, {os.cpu_count()} cores of {model}, "
            f"Python {platform.python_version()}, {', '.join(versions)}; "
            f"commit {commit.stdout.strip() or 'unknown'}; load average at "
            f"the start {os.getloadavg()[0]:.1f}.")


def write_results(name, sections):
    """Write `results/name`, in one step."""
    path = ROOT / "benchmarks" / "results" / name
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(sections), encoding="utf-8")
    os.replace(temporary, path)
