"""What the command line says, and what it keeps quiet about."""

import io
import logging
import os
import pty
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from torch import Tensor
from torchmetrics import MeanMetric

from tests.support.commands import PATIENCE, RunCli
from tests.support.paths import TESTS, TOY
from unite.cli import main
from unite.commands.line.options import OptionParser, torch_device, trainer_options
from unite.console import coloured, info, quiet, silence_noise
from unite.errors import UserError
from unite.files import leaving_no_empty_folders, require_writable

UNITE = [sys.executable, "-m", "unite"]
FIT = ["fit", "--config", "curves.yaml", "--trainer.enable_progress_bar", "true"]


@pytest.fixture
def in_toy_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOY)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# ---------------------------------------------------------------------- quiet, colours


def test_quiet_shows_results_and_errors_only(tmp_path: Path) -> None:
    outputs = {}
    for name, more in (("loud", []), ("quiet", ["--quiet"])):
        command = [*UNITE, *FIT, "--trainer.default_root_dir", str(tmp_path / name), "--trainer.max_epochs", "1", *more]
        outputs[name] = subprocess.run(command, cwd=TOY, capture_output=True, text=True, timeout=PATIENCE)
        assert outputs[name].returncode == 0, outputs[name].stderr
    loud, quiet_ = outputs["loud"], outputs["quiet"]
    assert "run folder: " in loud.stdout
    assert "it/s" in loud.stdout + loud.stderr
    assert "`Trainer.fit` stopped" in loud.stderr
    assert loud.stdout.count("wrote ") == 1
    assert [line.split()[0] for line in quiet_.stdout.splitlines()] == [
        "val/curve/points",
        "val/curve/flow",
        "wrote",
    ]
    # A warning stays, in one line, without the place in our code.
    assert quiet_.stderr == (
        "unite: warning: warmup_steps 1000 is longer than the 4 steps of this run: shortened to 3\n"
    )
    for output in (loud, quiet_):
        for advertisement in ("Tip:", "litlogger", "TPU available", "Seed set", "num_workers"):
            assert advertisement not in output.stdout + output.stderr


@pytest.mark.usefixtures("in_toy_folder")
def test_what_follows_a_bar_begins_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a file, where nothing moves the cursor."""

    command = [*UNITE, *FIT, "--trainer.default_root_dir", str(tmp_path)]
    fit = subprocess.run(
        command, cwd=TOY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE, check=True
    )
    told = fit.stdout.splitlines()  # a carriage return begins a line, too
    assert any(line.startswith("`Trainer.fit` stopped") for line in told)
    assert any(line.startswith("val/curve/points") for line in told)

    import curves  # type: ignore[import-not-found]  # as the command line imports it

    class MeanPoint(MeanMetric):
        def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
            return {"mean_point": super().compute()}

    monkeypatch.setattr(curves.CurveAdapter, "reconstruction_metric", lambda self, data: MeanPoint())
    monkeypatch.setattr(curves.CurveAdapter, "metric_arguments", lambda self, prediction, prepared: (prediction,))
    both = io.StringIO()
    with redirect_stdout(both), redirect_stderr(both):
        assert main(["reconstruct", "--ckpt_path", str(tmp_path), "--trainer.enable_progress_bar", "true"]) == 0
    (bar,) = [line for line in both.getvalue().split("\n") if "64/64" in line]
    assert "mean_point" not in bar
    assert "\nmean_point" in both.getvalue()


def test_quiet_ends_with_its_block(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    # The one tells of devices and the end of a run, the other of several processes ("Initializing distributed").
    names = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.distributed")
    loggers = [logging.getLogger(name) for name in names]
    note, warning = (
        logging.makeLogRecord({"msg": "said", "levelno": level}) for level in (logging.INFO, logging.WARNING)
    )
    silence_noise()
    with quiet():
        info("hidden")
        assert os.environ["TQDM_DISABLE"] == "1"
        assert not any(logger.filter(note) for logger in loggers)
        assert all(logger.filter(warning) for logger in loggers)
    with quiet(False):
        info("shown")
        assert all(logger.filter(note) for logger in loggers)
    assert capsys.readouterr().out == "shown\n"
    assert "TQDM_DISABLE" not in os.environ


def test_bars_of_other_commands_are_quiet_too(tmp_path: Path, tiny_csv: Path) -> None:
    package = tmp_path / "qm9pack"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(tiny_csv, package / "data" / "qm9_part1.csv")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(TESTS.parent)])}
    for number, more in enumerate(([], ["--quiet"])):
        command = [*UNITE, "prepare", "qm9", "--root", str(tmp_path / str(number)), *more]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
        assert result.returncode == 0, result.stderr
        assert ("reading molecules" in result.stderr) == (not more)
        assert "64 molecules in" in result.stdout


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert coloured("error:", "red", Terminal()) == "\033[31merror:\033[0m"
    assert coloured("error:", "red", io.StringIO()) == "error:"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("error:", "red", Terminal()) == "error:"


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}])
def test_errors_are_red_on_a_terminal(variables: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    environment = {
        **{key: value for key, value in os.environ.items() if key != "NO_COLOR"},
        "TERM": "xterm",
        **variables,
    }
    subprocess.run([*UNITE, "fitt"], stderr=theirs, env=environment, timeout=PATIENCE, check=False)
    os.close(theirs)
    said = os.read(ours, 1000).decode()
    os.close(ours)
    assert ("\033[31merror:\033[0m no command 'fitt'" in said) == (not variables)
    assert "did you mean fit?" in said


# ---------------------------------------------------------------------- names nearly right


@pytest.mark.usefixtures("in_toy_folder")
@pytest.mark.parametrize(
    ("option", "value", "meant"),
    [
        ("--data", "curves.CurveDataModul", "curves.CurveDataModule"),
        (
            "--data",
            "unite.modalities.molecule.QM9Datamodule",
            "unite.modalities.molecule.QM9DataModule",
        ),
        ("--data", "unite.modalities.qm8.QM9DataModule", "unite.modalities.molecule.QM9DataModule"),
        ("--data", "QM9DataModul", "unite.modalities.molecule.QM9DataModule"),
        ("--model.adapters.curve", "curves.CurveAdaptr", "curves.CurveAdapter"),
        (
            "--trainer.callbacks+",
            "unite.callbacks.WeightAveragin",
            "unite.callbacks.WeightAveraging",
        ),
        ("--trainer.callbacks+", "lightning.pytorch.callbacks.Timr", "lightning.pytorch.callbacks.Timer"),
        ("--data", "no.such.Data", None),
    ],
)
def test_a_misspelt_class_is_recognised(
    run_cli: RunCli, tmp_path: Path, option: str, value: str, meant: str | None
) -> None:
    result = run_cli(
        "fit", "--config", "curves.yaml", "--trainer.default_root_dir", tmp_path / "run", f"{option}={value}"
    )
    assert result.code == 2
    assert len(result.err.strip().splitlines()) == 1
    assert value in result.err
    assert ("did you mean" in result.err) == (meant is not None)
    assert meant is None or result.err.strip().endswith(f"did you mean {meant}?")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("prepare", "image", "a", "b"), "prepare: argument WHAT: invalid choice: 'image'"),
        (("prepare", "image", "a", "b"), "; did you mean images?; see unite prepare --help"),
        (("prepare", "images", "a", "b", "--imagesize", "3"), "; did you mean --image_size?"),
        (
            ("import-official", "a", "b", "--weight", "ema"),
            "; did you mean --weights?; see unite import-official --help",
        ),
        (("prepare",), "the following arguments are required: WHAT; see"),
    ],
)
def test_small_commands_share_one_parser(run_cli: RunCli, args: tuple[str, ...], words: str) -> None:
    result = run_cli(*args)
    assert result.code == 2
    assert words in result.err


def test_parser_names_itself() -> None:
    with pytest.raises(UserError, match=r"^thing: unrecognized arguments: x; see unite thing --help$"):
        OptionParser(prog="unite thing").parse_args(["x"])


# ---------------------------------------------------------------------- devices


def test_device_becomes_options_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trainer_options("cpu") == ["--trainer.accelerator=cpu", "--trainer.devices=1"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert trainer_options("cuda") == ["--trainer.accelerator=cuda", "--trainer.devices=[0]"]
    assert trainer_options("cuda:1") == ["--trainer.accelerator=cuda", "--trainer.devices=[1]"]
    assert trainer_options("mps") == ["--trainer.accelerator=mps", "--trainer.devices=1"]
    with pytest.raises(UserError, match=r"--device is cuda:2, but .* there are cpu, cuda:0, cuda:1, mps$"):
        torch_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_other_words_are_no_device(name: str) -> None:
    with pytest.raises(UserError, match="it must be cpu, cuda, cuda:N or mps"):
        torch_device(name)


@pytest.mark.usefixtures("in_toy_folder")
def test_device_on_the_command_line(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    args = ["fit", "--config", "curves.yaml", "--trainer.default_root_dir", tmp_path / "run"]
    for more, words in (
        (["--device", "cuda"], "--device is cuda, but PyTorch finds no such device here; there are cpu"),
        (["--device", "cpu", "--trainer.accelerator", "cpu"], "--device and --trainer.accelerator say the same"),
    ):
        result = run_cli(*args, *more)
        assert result.code == 2
        assert words in result.err
        assert not (tmp_path / "run").exists()
    result = run_cli(*args, "--device", "cpu", "--trainer.max_steps", "1")
    assert result.code == 0, result.err
    assert "no metrics: the run ended at step 1, before its first validation" in result.out
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "accelerator: cpu" in config
    assert "devices: '1'" in config


# ---------------------------------------------------------------------- folders


def test_a_refused_command_leaves_no_empty_folders(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(TOY)
    root = tmp_path / "a" / "b" / "run"
    assert (
        run_cli("fit", "--config", "curves.yaml", "--trainer.default_root_dir", root, "--model.flow_steps", "0").code
        == 2
    )
    assert list(tmp_path.iterdir()) == []
    assert run_cli("fit", "--config", "curves.yaml", "--trainer.default_root_dir", root, "--quiet").code == 0
    before = {path.name for path in root.iterdir()}
    for args in (
        ("test", "--model.encoder.width", "64"),
        ("test", "--output", tmp_path / "new" / "out", "--model.encoder.width", "64"),
        ("sample", "--labels", "7"),
        ("sample", "--output", tmp_path / "new" / "out", "--labels", "7"),
    ):
        assert run_cli(*args, "--ckpt_path", root).code == 2
        assert not (tmp_path / "new").exists()
        assert {path.name for path in root.iterdir()} == before


def test_folders_with_something_in_them_stay(tmp_path: Path) -> None:
    (tmp_path / "old" / "empty").mkdir(parents=True)
    new = tmp_path / "new" / "out"

    def fail_halfway(folder: Path) -> None:
        with leaving_no_empty_folders(folder):
            require_writable(folder)
            (folder / "child").mkdir()
            if folder == new:
                (folder / "file").touch()
            raise RuntimeError("halfway")

    for folder in (tmp_path / "old", new):
        with pytest.raises(RuntimeError, match="halfway"):
            fail_halfway(folder)
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["empty"]
    assert [path.name for path in new.iterdir()] == ["file"]


def test_an_unwritable_folder_is_told_with_what_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"^cannot write shards to .*out: .*file is a file, not a folder; choose another$"
    ):
        require_writable(tmp_path / "file" / "out", "choose another", "shards")


def test_waiting_threads_sleep_unless_somebody_said_otherwise(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    run_cli("info")
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    run_cli("info")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
