"""Seconds per step of a small transformer, with and without other work: threads that spin against threads that sleep.

    python benchmarks/threads.py

On two cores with other work: 2 threads that spin 0.9 to 5.2 s, 2 that sleep 0.39 to 0.94 s, 1 thread 0.38 to 0.59 s.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import time

THREADS = str(os.cpu_count() or 1)
CASES = {"spinning": ("ACTIVE", THREADS), "sleeping": ("PASSIVE", THREADS), "one thread": ("PASSIVE", "1")}


def measure() -> float:
    """Median seconds of a step."""
    import torch  # reads the variables now

    layers = [torch.nn.TransformerEncoderLayer(192, 6, 768, batch_first=True) for _ in range(4)]
    model, data, seconds = torch.nn.Sequential(*layers), torch.randn(128, 20, 192), []
    for _ in range(8):
        start = time.perf_counter()
        model(data).square().mean().backward()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def spin() -> None:
    """Other work."""
    while True:
        pass


def main() -> None:
    """Print a row per case, without other work and with a process per core."""
    for others in (0, os.cpu_count() or 1):
        work = [multiprocessing.Process(target=spin, daemon=True) for _ in range(others)]
        for process in work:
            process.start()
        for name, (policy, threads) in CASES.items():
            variables = {**os.environ, "OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": threads}
            command = [sys.executable, __file__, "measure"]
            done = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
            print(f"{others} other processes, {name:<10}  {float(done.stdout):.2f} s per step", flush=True)
        for process in work:
            process.terminate()


if __name__ == "__main__":
    print(measure()) if sys.argv[1:] == ["measure"] else main()
