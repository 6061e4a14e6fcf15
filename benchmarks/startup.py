"""Wall time until a command answers, warm: the best of several fresh processes.

python benchmarks/startup.py
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from measure import report

CASES = {
    "python -c pass": ["-c", "pass"],
    "import unite": ["-c", "import unite"],
    "unite --help": ["-m", "unite", "--help"],
    "unite version": ["-m", "unite", "version"],
    "unite fit --help": ["-m", "unite", "fit", "--help"],
}
TARGETS = {"import unite": 0.2, "unite --help": 1.0}
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    for name, options in CASES.items():
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            subprocess.run([sys.executable, *options], stdout=subprocess.DEVNULL, check=True)
            times.append(time.perf_counter() - start)
        rows[name] = {"s": min(times)} | ({"target s": TARGETS[name]} if name in TARGETS else {})
    report(rows, arguments.output)


if __name__ == "__main__":
    main()
