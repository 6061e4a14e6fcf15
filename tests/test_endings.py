"""How a command ends that is interrupted again, loses a loader, or has no room left."""

import errno
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.support.commands import RunCli
from tests.support.modules import curves, make_module, make_trainer
from unite import cli
from unite.callbacks.interrupts import checkpoint_on_interrupt
from unite.errors import TrainingError
from unite.files import write_whole


def raising(*errors: BaseException) -> Any:
    remaining = iter(errors)

    def run(*arguments: Any, **options: Any) -> None:
        for error in remaining:
            raise error

    return run


def test_ctrl_c_while_the_one_before_is_told_says_nothing_more(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "run_command", raising(KeyboardInterrupt("interrupted at step 3")))
    monkeypatch.setattr(cli, "print", raising(KeyboardInterrupt()), raising=False)
    result = run_cli("fit")
    assert result.code == 130
    assert not result.err


def test_sigterm_is_told_in_a_line(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "run_command", lambda args: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        result = run_cli("score")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.code == 143
    assert result.err.strip() == "unite: terminated"


def test_a_lost_loader_is_told_in_a_line(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    monkeypatch.setattr(cli, "run_command", raising(lost))
    result = run_cli("validate")
    assert result.code == 1
    assert (
        "worker (pid 7) is killed by signal: Killed, most often for want of memory: lower data.init_args" in result.err
    )
    assert len(result.err.strip().splitlines()) == 1


class Deadly(Dataset[Tensor]):
    """Ends the process that asks for its eleventh item."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Tensor:
        if index == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(8, 2)


def test_training_that_loses_a_loader_says_how_to_go_on(tmp_path: Path) -> None:
    batches = DataLoader(Deadly(), batch_size=2, num_workers=1, collate_fn=lambda items: {"curve": curves()})
    trainer = make_trainer(tmp_path, max_steps=40)
    with (
        pytest.raises(
            TrainingError, match=r"(killed by|exited unexp).*lower data\.init_args.*no checkpoint was written"
        ),
        checkpoint_on_interrupt(trainer),
    ):
        trainer.fit(make_module(), batches)


class Broken:
    """An item whose hand-over breaks, as it does if the process that sends it dies meanwhile."""

    def __reduce__(self) -> Any:
        return breaking, ()


def breaking() -> None:
    raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def test_a_loader_lost_while_it_hands_over_a_batch_is_told_alike(tmp_path: Path) -> None:
    batches = DataLoader(Deadly(), batch_size=2, num_workers=1, collate_fn=lambda items: Broken())
    trainer = make_trainer(tmp_path, max_steps=40)
    with (
        pytest.raises(TrainingError, match=r"exited unexpectedly.*lower data\.init_args"),
        checkpoint_on_interrupt(trainer),
    ):
        trainer.fit(make_module(), batches)


@pytest.mark.parametrize("error", [ConnectionResetError(), EOFError(), FileNotFoundError()])
def test_a_connection_that_is_no_loader_s_is_left_alone(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), checkpoint_on_interrupt(make_trainer(tmp_path)):
        raise error


def test_a_full_disk_is_told_with_the_name_of_the_file(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_bytes", raising(OSError(errno.ENOSPC, "No space left on device")))
    monkeypatch.setattr(cli, "run_command", lambda args: write_whole(tmp_path / "metrics.json", b"{}"))
    result = run_cli("score")
    assert result.code == 1
    assert result.err.strip() == f"unite: failed: [Errno 28] No space left on device: '{tmp_path / 'metrics.json'}'"


def test_a_full_disk_in_another_thread_is_left_to_the_main_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: told.append(arguments.exc_value))
    others = KeyError("another")

    class InAThread(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            for error in (OSError(errno.ENOSPC, "full"), others):
                thread = threading.Thread(target=raising(error))
                thread.start()
                thread.join()
            yield {"curve": curves()}

    trainer = make_trainer(tmp_path, max_steps=1)
    with checkpoint_on_interrupt(trainer):
        trainer.fit(make_module(), DataLoader(InAThread(), batch_size=None))
    assert set(told) == {others}


def test_ctrl_c_in_a_finalizer_comes_once_more(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    class Held:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def run(args: list[str]) -> None:
        Held()
        time.sleep(30)  # which the second one ends

    monkeypatch.setattr(cli, "run_command", run)
    result = run_cli("score")
    assert (result.code, result.err.strip()) == (130, "unite: interrupted")


def test_a_loader_that_is_told_to_end_first_is_no_loss(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")
    monkeypatch.setattr(cli, "run_command", raising(ended))
    assert run_cli("validate").code == 143
    trainer = SimpleNamespace(default_root_dir="nowhere", global_step=3, is_global_zero=True, callbacks=[])
    with pytest.raises(SystemExit, match="143"), checkpoint_on_interrupt(trainer):  # type: ignore[arg-type]
        raise ended
