"""Everything worth knowing of a GPU, in minutes: versions, rates, tests, throughput, memory, and a model trained there.

    python benchmarks/gpu.py --minutes 9 --output gpu                       # united atoms, 4.9 M parameters
    python benchmarks/gpu.py --minutes 9 --output gpu --train qm9           # the paper's S model instead
    python benchmarks/gpu.py --minutes 9 --output gpu --package build/gpu   # on a machine without network: pack_gpu.py
    python benchmarks/gpu.py --dry --output gpu                             # all of it, tiny, on a CPU

Each stage runs in a process of its own with a limit of its own; what it has found is kept when it hangs, runs out of
memory or is interrupted. The output folder gets gpu.json, gpu.md (one page), gpu.log, and model/, float16 weights below
16 MB; with what was unpacked and the run in the folder --work. This script itself needs nothing but Python.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).parent
END_SECONDS = 5.0
"""Left at the end for the page."""
SHARE_OF_CHECKS = 0.55
"""Share of all time that the stages before the training may take; where their limits are more, all are cut alike."""


@dataclass(frozen=True)
class Stage:
    """A part with a process of its own.

    Attributes:
        name: Of the stage, and its heading.
        script: Python file beside this one, which is given the name.
        limit: Seconds; None for what is left.
        reserve: Seconds to leave for later stages, if the limit is None.
        dry_limit: Seconds with ``--dry``.
    """

    name: str
    script: str
    limit: float | None
    dry_limit: float
    reserve: float = 0.0


STAGES = (
    Stage("versions", "gpu_stages.py", 20, 60),
    Stage("rates", "gpu_stages.py", 25, 60),
    Stage("tests", "gpu_stages.py", 100, 150),
    Stage("throughput", "gpu_stages.py", 120, 60),
    Stage("largest", "gpu_stages.py", 45, 60),
    Stage("training", "gpu_training.py", None, 60, reserve=55),
    Stage("samples", "gpu_training.py", None, 60),
)


class StoppedError(Exception):
    """A signal asked to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def limit_of(stage: Stage, minutes: float, left: float, dry: bool) -> float:
    """Seconds that a stage may take.

    Args:
        stage: The stage.
        minutes: Of all stages together.
        left: Seconds left of them.
        dry: Whether the stages are tiny.
    """
    if dry:
        return min(stage.dry_limit, left)
    checks = sum(other.limit for other in STAGES if other.limit is not None)
    scale = min(1.0, SHARE_OF_CHECKS * 60 * minutes / checks)
    # A short run leaves less for the last stages as well.
    wanted = left - stage.reserve * min(1.0, minutes / 5) if stage.limit is None else stage.limit * scale
    return max(min(wanted, left), 0.0)


def run_stage(stage: Stage, limit: float, options: argparse.Namespace, log: Any) -> dict[str, Any]:
    """What a stage has found when it ends, or at its limit."""
    part = options.work / f"{stage.name}.json"
    part.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / stage.script), stage.name, "--part", str(part)]
    command += ["--output", str(options.output), "--work", str(options.work), "--seconds", f"{limit:.0f}"]
    command += ["--train", options.train] + ["--dry"] * options.dry
    log.write(f"\n=== {stage.name}, at most {limit:.0f} s\n".encode())
    log.flush()
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=log, stderr=log, env=options.environment, start_new_session=True)
    status = "interrupted"
    try:
        code = child.wait(timeout=limit)
        status = "done" if code == 0 else f"failed with exit code {code}"
    except subprocess.TimeoutExpired:
        status = "stopped at its limit"
    finally:  # also of whatever the stage has started
        end(child)
        options.stages[stage.name] = {
            "status": status,
            "seconds": round(time.monotonic() - start, 1),
            "limit": round(limit, 1),
            "results": read_part(part),
        }
    if status.startswith("failed"):
        options.stages[stage.name]["error"] = last_line(Path(log.name))
    found: dict[str, Any] = options.stages[stage.name]
    return found


def end(child: "subprocess.Popen[bytes]") -> None:
    """Stop a process and those it has started: politely, then not."""
    for number, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        try:
            os.killpg(child.pid, number)
            child.wait(patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        if number == signal.SIGTERM and not group_is_alive(child.pid):
            return


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def read_part(part: Path) -> dict[str, Any]:
    """What a stage has noted so far."""
    try:
        found: dict[str, Any] = json.loads(part.read_text())
    except (OSError, ValueError):
        return {}
    return found


def last_line(log: Path) -> str:
    """The error, as far as a line tells it."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


# ------------------------------------------------------------------ results


def write_results(options: argparse.Namespace) -> None:
    """Write gpu.json and gpu.md, each in one go."""
    content = {
        "command": " ".join(["python", "benchmarks/gpu.py", *options.given]),
        "dry": options.dry,
        "minutes": options.minutes,
        "seconds": round(time.monotonic() - options.start, 1),
        "stages": options.stages,
    }
    write_whole(options.output / "gpu.json", json.dumps(content, indent=2) + "\n")
    write_whole(options.output / "gpu.md", page(content))


def write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    temporary.replace(path)


def page(content: dict[str, Any]) -> str:
    """The results as one page of Markdown."""
    title = "A dry run on a CPU: figures mean nothing" if content["dry"] else "Measured on a GPU"
    lines = [f"# {title}", "", f"`{content['command']}`, {content['seconds']:.0f} s.", ""]
    for stage in STAGES:
        found = content["stages"].get(stage.name)
        lines += [f"## {stage.name.capitalize()}", ""]
        if found is None:
            lines += ["Not begun.", ""]
            continue
        error = f": {found['error']}" if "error" in found else ""
        lines += [f"{found['status'].capitalize()}{error} ({found['seconds']:.0f} of {found['limit']:.0f} s).", ""]
        for name, value in found["results"].items():
            lines += table(name, value) if isinstance(value, list) else [f"- {name}: {cell(value)}"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def table(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Rows as a table whose columns are the names that occur."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["", f"{name}:", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return [*lines, ""]


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {cell(item)}" for name, item in value.items())
    return str(value).replace("|", "/").replace("\n", " ")


# ------------------------------------------------------------------ the run


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Of all stages: the repository and unpacked wheels are importable."""
    paths = [str(HERE.parent), str(options.work / "site"), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    if options.dry:
        found |= {"CUDA_VISIBLE_DEVICES": "", "UNITE_TEST_DEVICE": "cpu"}
    else:
        found["UNITE_TEST_DEVICE"] = "cuda"
    return found


def unpack(options: argparse.Namespace, log: Any) -> None:
    """Install the wheels of a package into a folder, without network; data is unpacked where it is needed."""
    wheels = [str(path) for path in (options.package / "wheels").glob("*.whl")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--no-cache-dir", "--target", str(options.work / "site"), *wheels]
    if wheels and subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
        raise SystemExit(f"the wheels in {options.package} cannot be installed: see {log.name}")
    # Beside the package, so that stages need not be told where it is.
    for data in options.package.glob("*.xz"):
        (options.work / data.name).unlink(missing_ok=True)
        (options.work / data.name).symlink_to(data.resolve())


def stop_on(number: int, _: FrameType | None) -> None:
    raise StoppedError(number)


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("gpu"), help="folder of the results (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="folder of what is not worth keeping (default: a temporary one)")
    parser.add_argument("--package", type=Path, help="folder that pack_gpu.py made, for a machine without network")
    parser.add_argument("--train", choices=["united", "qm9"], default="united", help="model (default: %(default)s)")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--stages", nargs="+", choices=names, dest="stages_wanted", help="only these")
    parser.add_argument("--dry", action="store_true", help="tiny, on a CPU")
    options = parser.parse_args(given)
    if not options.minutes > 0:
        parser.error(f"--minutes is {options.minutes}; it must be above 0")
    if options.package is not None and not options.package.is_dir():
        parser.error(f"--package {options.package} is no folder; make it with benchmarks/pack_gpu.py")
    options.given = sys.argv[1:] if given is None else given
    return options


def main(given: list[str] | None = None) -> int:
    """Run the stages; returns the exit code: 1 if a stage failed, 128 and the signal's number if stopped."""
    options = parse(given)
    options.start, options.stages = time.monotonic(), {}
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_on)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        options.work = (options.work or Path(temporary)).resolve()
        options.work.mkdir(parents=True, exist_ok=True)
        options.environment = environment(options)
        with (options.output / "gpu.log").open("ab") as log:
            try:
                if options.package is not None:
                    unpack(options, log)
                for stage in STAGES:
                    if options.stages_wanted is None or stage.name in options.stages_wanted:
                        one_stage(stage, options, log)
            except StoppedError as interruption:
                print(f"stopped by {interruption}; what was found is in {options.output}")
                return 128 + interruption.number
            finally:
                write_results(options)
    print(f"wrote {options.output / 'gpu.md'}, {options.output / 'gpu.json'}")
    return int(any(found["status"].startswith("failed") for found in options.stages.values()))


def one_stage(stage: Stage, options: argparse.Namespace, log: Any) -> None:
    """Run a stage if there is time, and write what is known then."""
    left = options.minutes * 60 - (time.monotonic() - options.start) - END_SECONDS
    limit = limit_of(stage, options.minutes, left, options.dry)
    if limit < 1:
        return
    found = run_stage(stage, limit, options, log)
    print(f"{stage.name}: {found['status']}, {found['seconds']:.0f} s", flush=True)
    write_results(options)


if __name__ == "__main__":
    sys.exit(main())
