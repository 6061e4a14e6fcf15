"""What the commands that make something with a model have in common: a folder, and processes that share the work."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from tqdm import tqdm

from unite.console import info, shown
from unite.engine.processes import ALONE, LostProcessError, Processes, run_together
from unite.files import require_writable
from unite.files.checked import require_finite
from unite.files.locks import OUTPUT_HINT, only_one
from unite.module import UniteModule
from unite.outputs.folder import OutputFolder

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Job:
    """Where a command's results go, and how they are made.

    Attributes:
        folder: Where to; only the first process writes.
        autocast: Gives the precision of the network.
        processes: The processes that share the work.
        show_progress: Show a progress bar.
    """

    folder: OutputFolder
    autocast: Autocast = nullcontext
    processes: Processes = ALONE
    show_progress: bool = False

    def progress(self, **options: Any) -> "tqdm[Any]":
        """A progress bar, which one process shows for all."""
        return tqdm(**options, disable=not self.show_progress or not self.processes.is_first)

    def finish(self, written: Sequence[Path]) -> None:
        """End the work: say what was written, and how to look at it."""
        self.folder.finish()
        for path in written:
            print(f"wrote {shown(path)}")
        info(f"to look at them: unite report {shown(self.folder.path)}")

    @contextmanager
    def kept_on_interrupt(self) -> Iterator[None]:
        """Say on Ctrl-C, and when a process is lost, whether the work can go on; see :class:`OutputFolder`.

        Raises:
            KeyboardInterrupt: In place of one without a message.
            LostProcessError: In place of one that does not say so.
        """
        if not self.processes.is_first:
            yield
            return
        try:
            with self.folder.kept_on_interrupt():
                yield
        except LostProcessError as error:
            raise LostProcessError(f"{error}; {self.folder.how_to_continue()}") from error


def run_job(
    trainer: Trainer,
    model: UniteModule,
    output: str | Path | None,
    name: str,
    settings: Mapping[str, Any],
    overwrite: bool,
    work: Callable[[Job], None],
) -> None:
    """Have the processes of a trainer make something, in a folder that no other command writes to meanwhile.

    Args:
        trainer: Says how many processes, which precision, and whether there is a progress bar.
        model: The model, on its device.
        output: The folder; None for one in the run folder.
        name: What that one is called.
        settings: What determines the results beside weights and precision, see :class:`OutputFolder`.
        overwrite: Whether files that are there may be replaced.
        work: Makes the results.

    Raises:
        UserError: The folder cannot be used, or the trainer has processes that cannot share the work.
    """
    path = Path(output or Path(trainer.default_root_dir) / name)

    def in_each(processes: Processes) -> None:
        def folder() -> OutputFolder:
            decisive = {**settings, "precision": str(trainer.precision), "weights": fingerprint(model)}
            return OutputFolder(path, decisive, overwrite)

        with ExitStack() as locks:
            with processes.agreed():
                require_writable(path)
                locks.enter_context(only_one(path, OUTPUT_HINT))
            job = Job(
                processes.from_first(folder),
                trainer.precision_plugin.forward_context,
                processes,
                trainer.progress_bar_callback is not None,
            )
            work(job)

    run_together(trainer, in_each)


def load_weights(
    model: UniteModule, ckpt_path: str | Path | None, weights_only: bool | None, device: torch.device
) -> None:
    """Fill a model with a checkpoint's weights, and bring it to a device.

    Args:
        model: The model.
        ckpt_path: The checkpoint; None leaves the model as it is.
        weights_only: Passed to torch.load; None is the safe way.
        device: The device.

    Raises:
        UserError: The weights are infinite or not a number.
    """
    if ckpt_path is not None:
        checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=weights_only is not False)
        require_finite(checkpoint["state_dict"], Path(ckpt_path))
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        info(f"checkpoint {shown(Path(ckpt_path))}, step {checkpoint.get('global_step', 0)}")
    model.to(device)


def fingerprint(model: UniteModule) -> str:
    """Short name of a model's weights, by which a continued command knows that they are the same."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
