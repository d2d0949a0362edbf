"""How long the terminal waits before packshot has said anything: `packshot --help`, start to exit.

Every figure is the median over interleaved runs in fresh processes, beside `python -c pass`, which
is what the interpreter itself takes. Run it with

    ./packshot python benchmarks/import_time.py

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHON = [sys.executable, "-P"]
COMMANDS = {
    "python -c pass": [*PYTHON, "-c", "pass"],
    "import packshot": [*PYTHON, "-c", "import packshot"],
    "python -m packshot --help": [*PYTHON, "-m", "packshot", "--help"],
    "./packshot --help": [str(ROOT / "packshot"), "--help"],
}


def seconds(command: list[str]) -> float:
    """Return the wall time of one run, from the start of the process to its end."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(runs: int) -> dict[str, list[float]]:
    """Run every command once to warm the disk's cache, then ``runs`` times, in turns."""
    for command in COMMANDS.values():
        seconds(command)
    rounds = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(runs)]
    return {name: [taken[name] for taken in rounds] for name in COMMANDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="runs of each command (default 15)")
    times = measure(parser.parse_args().runs)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"Python {platform.python_version()}, {platform.machine()}, milliseconds")
    print(f"{'':28}{'median':>8}{'fastest':>9}{'slowest':>9}")
    for name, values in times.items():
        figures = (medians[name], min(values), max(values))
        print(f"{name:28}" + "".join(f"{1000 * value:>8.0f} " for value in figures))
    report = {name: round(1000 * value, 1) for name, value in medians.items()}
    print(json.dumps({"benchmark": "import_time", "median_ms": report}))


if __name__ == "__main__":
    main()
