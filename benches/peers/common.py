"""What the comparisons share: running our binary, the machine's limits, medians, results that are kept between calls."""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def median(values):
    return statistics.median(values) if values else float("nan")


def sphinx(binary, *arguments, env=None):
    """Runs our binary and returns what it prints."""
    run = subprocess.run([str(binary), *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **(env or {})})
    if run.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))}: {run.stderr.strip()}")
    return run.stdout


def bench(binary, model, *arguments, threads, env=None):
    """One repetition of `sphinx bench`, after its warm-up."""
    return json.loads(sphinx(binary, "bench", model, "--threads", threads, "--repeat", 1, "--output", "json", *arguments, env=env))


def limits(binary, threads, *words):
    """Highest rates on `threads` threads in bytes and operations per second, by the bench of that name; `words` choose."""
    text = subprocess.run([str(binary), "--rounds", "3", *words], capture_output=True, text=True, check=True,
                          env={**os.environ, "SPHINX_THREADS": str(threads)}).stdout
    found = {}
    for line in text.splitlines():
        m = re.match(rf"{threads} threads  (.{{20}}) +([0-9.]+) (\S+)", line)
        if m:
            found[m[1].strip()] = float(m[2]) * (1e9 if m[3] == "GB/s" else 1e12)
    return found


def int8(binary, threads, isa=None):
    """The limit of 8-bit instructions: of AVX2 when that is asked for, or of the best there are."""
    found = limits(binary, threads, "int8")
    names = ["int8 vpmaddubsw ymm"] if isa == "avx2" else ["int8 vpdpbusd zmm", "int8 vpdpbusd ymm", "int8 vpmaddubsw ymm"]
    return next(found[name] for name in names if name in found)


def read(binary, threads):
    """The limit of reading memory."""
    return limits(binary, threads, "read")["memory read"]


def bench_binary(name):
    """Builds a bench and says where it is."""
    build = subprocess.run(["cargo", "bench", "-q", "-p", "sphinx-targets", "--no-default-features", "--bench", name, "--no-run",
                            "--message-format=json"], capture_output=True, text=True, cwd=ROOT)
    for line in build.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message.get("target", {}).get("name") == name:
            return message["executable"]
    sys.exit(f"the bench {name} does not build: {build.stderr}")


def touch(*files):
    """Reads files, so that they are in memory: some systems drop what was not used for a minute."""
    for file in files:
        with open(file, "rb", buffering=0) as f:
            while f.read(8 << 20):
                pass


def options(parser):
    """Arguments of every comparison."""
    parser.add_argument("--sphinx", default=ROOT / "target/release/sphinx", help="our binary")
    parser.add_argument("--limits", help="the bench of the limits, when it need not be built")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="rounds are added to this file, and the report is of all that are in it")


class Rounds:
    """Rounds of a comparison, which may be collected over several calls."""

    def __init__(self, keep):
        self.keep = keep
        self.all = json.loads(keep.read_text()) if keep and keep.exists() else []

    def add(self, one):
        self.all.append(one)
        if self.keep:
            self.keep.write_text(json.dumps(self.all, indent=1))

    def of(self, name):
        return [r[name] for r in self.all if r.get(name) is not None]

    def median(self, name):
        return median(self.of(name))

    def ratio(self, a, b):
        """Median of the ratios of each round."""
        return median([r[a] / r[b] for r in self.all if r.get(a) and r.get(b)])


class Steady:
    """Repeats what was measured while something else took a processor, which the limit before or after it shows."""

    def __init__(self, limit, tries=3):
        self.limit, self.tries, self.best = limit, tries, 0.0

    def measure(self, work):
        """The mean limit around `work`, and what it answers."""
        for _ in range(self.tries):
            before, found, after = self.limit(), work(), self.limit()
            self.best = max(self.best, before, after)
            if min(before, after) >= 0.9 * self.best:
                break
        return (before + after) / 2, found


def pause():
    """Lets the threads of whoever ran last go to sleep."""
    time.sleep(0.3)
