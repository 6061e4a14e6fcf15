"""One at a time: commands that write to the same folder, and processes that make the same cache.

The operating system holds the locks, so that they are released however their owner ends, kill -9 included. The library
`filelock` closes them in forked processes: workers that outlive their parent hold nothing.

Imports nothing heavy: commands that need no network begin at once.
"""

import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from unite.console import info, is_first_process, shown
from unite.errors import UserError
from unite.files import remove_leftovers

if TYPE_CHECKING:
    from filelock import FileLock


LOCK_FILE = ".unite.lock"
RUN_HINT = "wait until it ends, or stop it: two trainings in one run folder would spoil each other's files"
OUTPUT_HINT = "wait until it ends, or choose another --output"
#: Seconds to wait for a cache before saying so.
PATIENCE = 1.0

_held: dict[Path, int] = {}  # how often this process, or the one it was forked from, has each folder
_held_lock = threading.Lock()


@contextmanager
def only_one(folder: Path, hint: str) -> Iterator[None]:
    """Keep other processes from writing to a folder within the block; what dead ones left half written is removed.

    Within another block for the same folder, it does nothing. So it does in processes that train together, but for the
    first: that one has the folder for all of them.

    Args:
        folder: The folder, which exists.
        hint: What the user can do if another process has it.

    Raises:
        UserError: Another process has it.
    """
    place = folder.resolve()
    with _held_lock:
        is_nested = place in _held
        if is_nested:
            _held[place] += 1
    if is_nested or not is_first_process():
        try:
            yield
        finally:
            if is_nested:
                _forget(place)
        return
    from filelock import Timeout

    path = place / LOCK_FILE
    lock = _new_lock(path)
    try:
        is_locked = _acquire(lock, folder, timeout=0)
    except Timeout:
        raise UserError(f"{shown(folder)} is in use by {_holder(path)}; {hint}") from None
    with _held_lock:
        _held[place] = 1
    try:
        if is_locked:
            _sign(path)
            remove_leftovers(place)
        yield
    finally:
        _forget(place)
        if is_locked:
            _release(lock, path)


def was_killed(folder: Path) -> bool:
    """Whether the last process that had a folder to itself (:func:`only_one`) was killed, and no other has it now."""
    from filelock import Timeout

    path = folder / LOCK_FILE
    if not path.is_file():
        return False
    lock = _new_lock(path)
    try:
        is_locked = _acquire(lock, folder, timeout=0)
    except Timeout:
        return False
    lock.release()
    return is_locked


@contextmanager
def one_after_another(file: Path) -> Iterator[None]:
    """Wait until no other process is making a cache, then keep others from it within the block.

    After waiting, a process has to check again whether the cache is there.

    Args:
        file: The cache, in a folder that exists; what dead processes left half written of it is removed.
    """
    from filelock import Timeout

    path = file.with_name(f".{file.name}.lock")
    lock = _new_lock(path)
    try:
        is_locked = _acquire(lock, file, timeout=PATIENCE)
    except Timeout:
        info(f"waiting for {_holder(path)}, which is making {shown(file)}")
        is_locked = _acquire(lock, file, timeout=-1)
    try:
        if is_locked:
            _sign(path)
            remove_leftovers(file.parent, file.stem)
        yield
    finally:
        if is_locked:
            _release(lock, path)


def _new_lock(path: Path) -> "FileLock":
    from filelock import FileLock

    # A lock of the library's own making, where the file system has none, would outlive its owner.
    return FileLock(path, thread_local=False, fallback_to_soft=False)


def _acquire(lock: "FileLock", what: Path, timeout: float) -> bool:
    """Take a lock, or say that none can be had here, which is no reason not to work.

    Args:
        lock: The lock.
        what: What it is for.
        timeout: Seconds to wait; below 0 for ever.

    Raises:
        filelock.Timeout: Another process has it.
    """
    from filelock import Timeout

    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        warnings.warn(f"cannot lock {shown(what)} ({reason}): let no other command write to it", stacklevel=1)
        return False
    return True


def _release(lock: "FileLock", path: Path) -> None:
    with suppress(OSError):  # first, for behind the lock the file may be another's; those that wait look for a new one
        path.unlink()
    lock.release()


def _forget(place: Path) -> None:
    with _held_lock:
        _held[place] -= 1
        if not _held[place]:
            del _held[place]


def _sign(path: Path) -> None:
    """Write into a lock who holds it."""
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    with suppress(OSError):  # a full disk: the lock holds all the same
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {started}\n", encoding="utf8")


def _holder(path: Path) -> str:
    """Who holds a lock."""
    for _ in range(100):
        with suppress(OSError, UnicodeError):
            if text := path.read_text(encoding="utf8").strip():
                return text.splitlines()[0]
        time.sleep(0.02)  # it has the lock, and is about to sign
    return "another process"
