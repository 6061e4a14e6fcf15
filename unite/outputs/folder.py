"""Where a command puts its results: nothing is overwritten unasked, and an interrupted command can continue.

Imports nothing heavy: commands that need no network begin at once.
"""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unite.errors import UserError
from unite.files import leaving_no_empty_folders, require_writable
from unite.files.checked_json import DamagedFileError, read_checked_json, write_checked_json
from unite.files.locks import OUTPUT_HINT, only_one

PARTS = "parts"
SETTINGS_FILE = "settings.json"


class OutputFolder:
    """A folder for the results of one command.

    What is finished of a longer work waits in the folder ``parts`` within it. The same command, typed again after an
    interruption, finds it there, and may replace files that it had begun to write; :meth:`finish` removes the parts.

    Args:
        path: The folder; made if need be.
        settings: Whatever determines the results, as JSON can hold it. Parts that were made with other settings are
            not continued; they stand in the way unless nothing of them is finished.
        overwrite: Whether files that are there may be replaced, and parts of another command thrown away.

    Raises:
        UserError: The folder cannot be written to, has files already, or parts that are damaged or of another command.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        self.path = path
        self.parts = path / PARTS
        wanted = json.loads(json.dumps(dict(settings)))  # lists for tuples, as the file has them
        found = self._settings_of_parts()
        # Files beside parts of the same command are its own, or --overwrite was given.
        require_empty(path, overwrite or found == wanted)
        if found is not None and found != wanted:
            if not overwrite and self._has_parts():
                name = next(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
                raise UserError(
                    f"{self.parts} belongs to an interrupted command with another {name} ({_short(found.get(name))}, "
                    f"now {_short(wanted.get(name))}): repeat that one to continue it, or start anew with --overwrite"
                )
            shutil.rmtree(self.parts)
            found = None
        if found is None:
            if self.parts.is_dir() and any(self.parts.iterdir()):
                raise UserError(f"{self.parts} holds files that no command of this kind wrote; choose another --output")
            self.parts.mkdir(exist_ok=True)
            write_checked_json(self.parts / SETTINGS_FILE, wanted)

    def _settings_of_parts(self) -> dict[str, Any] | None:
        file = self.parts / SETTINGS_FILE
        try:
            return read_checked_json(file) if file.is_file() else None
        except DamagedFileError as error:
            message = f"{file} is damaged ({error}); remove {self.parts}, and the same command starts over"
            raise UserError(message) from error

    @contextmanager
    def kept_on_interrupt(self) -> Iterator[None]:
        """Say on Ctrl-C whether the work can go on; leave no parts folder in which nothing is kept.

        Raises:
            KeyboardInterrupt: In place of one without a message.
        """
        try:
            yield
        except Exception:
            if not self._has_parts():
                self.finish()
            raise
        except KeyboardInterrupt:
            message = f"interrupted; {self.how_to_continue()}"
            if not self._has_parts() and self._has_nothing_else():
                self.finish()
            raise KeyboardInterrupt(message) from None

    def how_to_continue(self) -> str:
        """Message about work that was not finished."""
        if self._has_parts():
            return f"what is done lies in {self.parts}, and the same command continues"
        return "the same command starts over"

    def _has_nothing_else(self) -> bool:
        return [path.name for path in self.path.iterdir() if not path.name.startswith(".")] == [PARTS]

    def _has_parts(self) -> bool:
        # Hidden ones are half written, by a command that was killed.
        return any(
            path.is_file() and path.name != SETTINGS_FILE and not path.name.startswith(".")
            for path in self.parts.rglob("*")
        )

    def finish(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self.parts)


def folder_name(results: str, modality: str | None, modalities: Collection[str]) -> str:
    """Default name of a folder of results; of one modality out of several it carries the name of that one."""
    return f"{results}_{modality}" if modality is not None and len(modalities) > 1 else results


def is_begun(path: Path) -> bool:
    """Whether an interrupted command has left its parts in a folder."""
    return (path / PARTS / SETTINGS_FILE).is_file()


def require_empty(path: Path, overwrite: bool) -> None:
    """Make a folder that results can be written to, and be sure that none are replaced unasked.

    Raises:
        UserError: It cannot be written to, or holds files other than hidden ones and parts.
    """
    require_writable(path)
    found = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(".") and entry.name != PARTS)
    if found and not overwrite:
        some = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise UserError(f"{path} has files already ({some}); choose another --output, or replace them with --overwrite")


@contextmanager
def new_results(path: Path, overwrite: bool) -> Iterator[Path]:
    """A folder for the files of one command, which no other process writes to meanwhile; none is left if it fails.

    Raises:
        UserError: It cannot be written to, has files already, or another process has it.
    """
    with leaving_no_empty_folders(path):
        require_writable(path)
        with only_one(path, OUTPUT_HINT):
            require_empty(path, overwrite)
            yield path


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
