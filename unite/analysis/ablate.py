"""``unite ablate``: train, align and compare one setting after another; the same command continues."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from unite.errors import UserError

BASE = "base"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('unite ')}: {message}; see {self.prog} --help")


def run(args: list[str]) -> None:
    """Run the ablations that the arguments name.

    Args:
        args: `ablate` and its options; what it does not know goes to `unite fit`.

    Raises:
        UserError: An option is wrong.
        SystemExit: A run failed; the others are done.
        KeyboardInterrupt: A run was interrupted.
    """
    options, fit_options = _parser().parse_known_args(args[1:])
    stems = [overlay.stem for overlay in options.overlays]
    for path in (*options.config, *options.overlays):
        if not path.is_file():
            raise UserError(f"{path} is not a file; --config and --overlays take config files")
    for stem in stems:
        if stem == BASE or stems.count(stem) > 1:
            raise UserError(f"two of the runs would be called {stem}; rename one of the overlays")
    if "--ckpt_path" in fit_options or "--trainer.default_root_dir" in fit_options:
        raise UserError("ablate names the run folders itself: leave out --ckpt_path and --trainer.default_root_dir")
    overlays = {BASE: None, **dict(zip(stems, options.overlays, strict=True))}
    finished, failed = [], []
    for number, (name, overlay) in enumerate(overlays.items(), 1):
        folder = options.output / name
        print(f"[{number}/{len(overlays)}] {folder}", flush=True)
        if _run_one(folder, [*options.config, *([overlay] if overlay else [])], fit_options, options.num_samples):
            finished.append(folder)
        else:
            failed.append(folder)
    if len(finished) > 1:
        comparison = ["--output", str(options.output / "comparison"), "--overwrite"]
        _unite("compare", *map(str, finished), *comparison)
    if failed:
        print(f"unite: failed: {', '.join(map(str, failed))}; the same command tries again", file=sys.stderr)
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="unite ablate",
        description="Train the base config, then the base with each overlay, one after the other; align each "
        "(unite align) and put all side by side (unite compare). The same command continues where it was interrupted: "
        "what is finished stays, a run that was begun goes on with the settings it was begun with.",
        epilog="All other options go to unite fit, for instance --trainer.max_steps 500.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", "-c", action="append", type=Path, required=True, metavar="FILE", help="base; several are merged"
    )
    parser.add_argument(
        "--overlays", nargs="+", type=Path, required=True, metavar="FILE", help="such as configs/ablations/*.yaml"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/ablations"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument("--num_samples", type=int, default=1000, metavar="N", help="of unite align (default: 1000)")
    return parser


def _run_one(folder: Path, configs: list[Path], fit_options: list[str], num_samples: int) -> bool:
    """Train and align one run unless that is done; whether it is done now."""
    from unite.run_folder import LAST_CHECKPOINT

    if (folder / "align" / "align.json").is_file():  # written last
        print("finished before")
        return True
    if (folder / LAST_CHECKPOINT).is_file():
        fit = ["--ckpt_path", str(folder)]
    else:
        fit = [f"--config={config}" for config in configs]
        fit += [f"--trainer.default_root_dir={folder}", *fit_options]
    return _unite("fit", *fit) and _unite("align", "--ckpt_path", str(folder), "--num_samples", str(num_samples))


def _unite(*args: str) -> bool:
    """Run a command in a process of its own, which leaves no memory and no random state behind."""
    code = subprocess.run([sys.executable, "-m", "unite", *args], check=False).returncode
    if code in (130, 143, -2, -15):
        raise KeyboardInterrupt("interrupted; the same command continues")
    return code == 0
