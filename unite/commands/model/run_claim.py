"""The folder of a training run: claimed before the run begins, and restored if the run did not begin."""

import os
import shutil
from pathlib import Path

from unite.console import info, shown
from unite.files import require_writable
from unite.files.locks import LOCK_FILE, was_killed
from unite.runs.folder import CONFIG_FILE


class RunClaim:
    """``root`` if no run is there, else a new folder ``root/version_N``; no two runs share one.

    A run that was killed before it had a checkpoint or logged a number is none: its place is taken.

    Args:
        root: The folder asked for.
        is_continued: Take ``root`` if its run was killed before its first checkpoint.
    """

    def __init__(self, root: Path, is_continued: bool) -> None:
        self.folder, number = root, 0
        while not self._takes(self.folder, is_continued):
            number += 1
            self.folder = root / f"version_{number}"
        if number:
            has_checkpoint = any(root.glob("*.ckpt"))
            begun = "continue the old one" if has_checkpoint else "begin that one, which has no checkpoint, anew"
            info(
                f"{shown(root)} holds a run already: it stays, this one goes to {shown(self.folder)}; to {begun}: "
                "--ckpt_path last"
            )

    def _takes(self, folder: Path, is_continued: bool) -> bool:
        require_writable(folder)
        self._found = set(folder.iterdir())
        self._config = folder / CONFIG_FILE
        if any(folder.glob("*.ckpt")):
            return False
        is_remnant = was_killed(folder) and self._config.is_file() and not _has_numbers(folder)
        if is_remnant and not is_continued:
            info(f"{shown(folder)}: its run was killed before its first numbers; this one takes its place")
        try:
            # Atomic: of two runs that start together only one gets it.
            self._config.touch(exist_ok=is_continued or is_remnant)
        except FileExistsError:
            return False
        return True

    def withdraw_run(self) -> None:
        """Remove what a run that ended before its first step has written: settings, and logs without numbers."""
        for path in set(self.folder.iterdir()) - self._found - {self._config, self.folder / LOCK_FILE}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self._config not in self._found:
            self._config.write_text("")

    def withdraw(self) -> None:
        """Leave no trace of a run that did not begin."""
        if self._config.is_file() and self._config.stat().st_size == 0:
            self._config.unlink()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()


def _has_numbers(folder: Path) -> bool:
    """Whether a run has logged anything: to metrics.csv, TensorBoard, or by a logger whose files are not known."""
    others = [path for path in folder.iterdir() if path.name not in (CONFIG_FILE, LOCK_FILE)]
    return any(not path.name.startswith("events.") or b"train/loss" in path.read_bytes() for path in others)


def home_of(run_config: Path | None, root: Path) -> Path | None:
    """The run folder of a run that is continued where it is, or one above it; None for a new run.

    Raises:
        UserError: It cannot be written to.
    """
    home = run_config.parent.resolve() if run_config else None
    if home is None or root.resolve() not in (home, *home.parents):
        return None
    require_writable(home)
    return Path(os.path.relpath(home))
