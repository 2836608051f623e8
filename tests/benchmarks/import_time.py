"""How long `import hf_align` and `--help` of every recipe take, and which imports cost most.

Each is timed from a fresh process, start of the interpreter included; the limit is 1 s.

    python tests/benchmarks/import_time.py
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import hf_align

LIMIT = 1.0


def commands() -> dict[str, list[str]]:
    """What is timed: the import, and the help of each recipe found in the package."""
    recipes = sorted((Path(hf_align.__file__).parent / "recipes").glob("[!_]*.py"))
    helps = {
        f"hf_align.recipes.{path.stem} --help": ["-m", f"hf_align.recipes.{path.stem}", "--help"]
        for path in recipes
    }
    return {"import hf_align": ["-c", "import hf_align"]} | helps


def clock(arguments: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one fresh interpreter."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - wall, cpu


def costliest(arguments: list[str], count: int = 3) -> str:
    """The modules with the largest time of their own, from `-X importtime`, in milliseconds."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    own = []
    for line in done.stderr.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if len(fields) == 3 and fields[0].strip().isdigit():
            own.append((int(fields[0]), fields[2].strip()))
    own.sort(reverse=True)
    total = sum(cost for cost, _ in own) / 1000
    named = ", ".join(f"{name} {cost / 1000:.0f}" for cost, name in own[:count])
    return f"{total:.0f} ms in {len(own)} modules; {named}"


def main() -> None:
    """Measures, prints the table, and exits with 1 where a median is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(f"hf_align {version('hf_align')}, Python {platform.python_version()}, ", end="")
    print(f"{os.cpu_count()} cores, median of {repeats}; limit {LIMIT} s\n")
    print(f"{'command':<34} {'wall s':>7} {'cpu s':>7}  imports")
    slow = []
    for name, arguments in commands().items():
        clock(arguments)  # once for the byte code
        walls, cpus = zip(*(clock(arguments) for _ in range(repeats)), strict=True)
        wall, cpu = statistics.median(walls), statistics.median(cpus)
        print(f"{name:<34} {wall:>7.3f} {cpu:>7.3f}  {costliest(arguments)}", flush=True)
        if wall > LIMIT:
            slow.append(name)
    if slow:
        sys.exit(f"over {LIMIT} s: {', '.join(slow)}")


if __name__ == "__main__":
    main()
