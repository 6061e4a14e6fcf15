"""What is left of a run that is interrupted before its first checkpoint, and how to start it again."""

import os
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.support.commands import RunCli, steps
from tests.support.processes import run_forked
from unite import UniteModule
from unite.files.locks import LOCK_FILE

pytestmark = pytest.mark.usefixtures("in_toy_folder")


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize("before", [(), ("config.yaml",)])
def test_a_run_interrupted_before_its_first_checkpoint_leaves_nothing_and_says_how_to_start_again(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: BaseException, before: tuple[str, ...]
) -> None:
    def interrupt(self: UniteModule, *args: Any) -> None:
        raise ending

    monkeypatch.setattr(UniteModule, "training_step", interrupt)
    folder = tmp_path / "runs" / "mine"
    for name in before:  # of another run: this one goes to version_1
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("model: {}\n")
    result = run_cli("fit", "--config", "curves.yaml", "--trainer.default_root_dir", folder)
    assert result.code == (130 if isinstance(ending, KeyboardInterrupt) else 143)
    if isinstance(ending, KeyboardInterrupt):
        command = f"unite fit --config curves.yaml --trainer.default_root_dir {folder}"
        assert f"interrupted at step 0; no checkpoint was written; start again with: {command}\n" in result.err
    assert [path.name for path in folder.iterdir()] == list(before) if before else not (tmp_path / "runs").exists()


def test_a_run_interrupted_within_its_second_step_goes_on_in_the_same_folder(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: UniteModule, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 1:
            raise KeyboardInterrupt
        return train(self, batch, batch_idx)

    train = UniteModule.training_step
    args = ("fit", "--config", "curves.yaml", "--trainer.default_root_dir", str(tmp_path / "run"))
    with monkeypatch.context() as patched:
        patched.setattr(UniteModule, "training_step", interrupt)
        (said,) = re.findall("interrupted at step 1; .*start again with: unite (.*)", run_cli(*args).err)
    assert said.endswith("--ckpt_path last")
    assert run_cli(*shlex.split(said), "--trainer.max_steps", "2").code == 0
    assert steps(tmp_path / "run") == [0, 1]
    assert not (tmp_path / "run" / "version_1").exists()


@pytest.mark.parametrize("num_steps", [0, 1])
def test_the_place_of_a_run_killed_before_its_first_checkpoint(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_steps: int
) -> None:
    def kill(self: UniteModule, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == num_steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(self, batch, batch_idx)

    train = UniteModule.training_step
    folder = tmp_path / "run"
    args = ("fit", "--config", "curves.yaml", "--trainer.default_root_dir", folder)
    with monkeypatch.context() as patched:
        patched.setattr(UniteModule, "training_step", kill)
        assert run_forked(*args, output=tmp_path / "out") == [-signal.SIGKILL]
    assert (folder / LOCK_FILE).is_file()
    assert (folder / "metrics.csv").is_file() == (num_steps == 1)
    again = run_cli(*args, "--trainer.max_steps", "2")
    assert again.code == 0
    if num_steps == 0:
        assert "its run was killed before its first numbers; this one takes its place" in again.out
        assert (folder / "last.ckpt").is_file()
        assert not (folder / "version_1").exists()
        return
    assert "to begin that one, which has no checkpoint, anew: --ckpt_path last" in again.out
    assert steps(folder) == [0]
    assert steps(folder / "version_1") == [0, 1]
