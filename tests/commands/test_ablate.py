"""``unite ablate``: a list of trainings that may fail or be interrupted, and the overlays that we ship."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import instantiate_module

from tests.support.commands import PATIENCE, RunCli, shell, steps, tiny, until
from tests.support.paths import TESTS
from unite.cli import main
from unite.commands import ablate
from unite.commands.ablate import make_trials
from unite.console import quiet
from unite.module import UniteModule
from unite.runs import folder as run_folder
from unite.runs.folder import read_checkpoint

pytestmark = pytest.mark.usefixtures("in_toy_folder")

CONFIGS = TESTS.parent / "configs"
OVERLAYS = sorted((CONFIGS / "ablations").glob("*.yaml"))


@pytest.fixture
def overlays(tmp_path: Path) -> dict[str, Path]:
    """Files that change the toy: what works, what does not, and a long run."""
    contents = {
        "one": {"model": {"flow_steps": 1}},
        "data": {"model": {"flow_loss": "data"}},
        "wrong": {"model": {"flow_steps": 0}},
        "endless": {"trainer": {"max_epochs": 100_000}},
        "misspelt": {"model": {"flow_step": 1}},
    }
    files = {name: tmp_path / f"{name}.yaml" for name in contents}
    for name, content in contents.items():
        files[name].write_text(yaml.safe_dump(content))
    return files


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands that ablate runs, here in this process: fast, and visible."""
    made: list[str] = []

    def call(*args: str) -> int:
        made.append(args[0])
        return main(list(args))

    monkeypatch.setattr(ablate, "call", call)
    return made


def test_variants_and_seeds_are_trained_and_summed_up(
    run_cli: RunCli, tmp_path: Path, overlays: dict[str, Path], calls: list[str]
) -> None:
    joined = f"{overlays['one']}+{overlays['data']}"
    variants = ["--overlays", overlays["one"], overlays["wrong"], joined, "--seeds", "0", "1"]
    command = [
        "ablate",
        "--config",
        "curves.yaml",
        *variants,
        "--output",
        tmp_path / "out",
        "--trainer.max_epochs",
        "1",
    ]
    result = run_cli(*command)
    assert result.code == 1
    assert "2 of 8 trainings failed: wrong, seed 0; wrong, seed 1" in result.err
    assert "wrong, seed 0 failed (exit code 2); the others go on" in result.err
    assert calls == ["fit"] * 8

    found = json.loads((tmp_path / "out" / "ablations.json").read_text())
    assert {name: list(by_seed) for name, by_seed in found.items()} == {
        "base": ["0", "1"],
        "one": ["0", "1"],
        "wrong": [],
        "one+data": ["0", "1"],
    }
    for variant, (flow_steps, flow_loss) in {"base": (2, "velocity"), "one+data": (1, "data")}.items():
        for seed in (0, 1):
            config = yaml.safe_load((tmp_path / "out" / variant / f"seed_{seed}" / "config.yaml").read_text())
            assert (config["seed_everything"], config["model"]["flow_steps"]) == (seed, flow_steps)
            assert config["model"]["flow_loss"] == flow_loss
    values = [found["base"][seed]["val/curve/points"] for seed in ("0", "1")]
    mean, spread = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    table = (tmp_path / "out" / "ablations.md").read_text()
    assert f"{mean:.4g} ± {spread:.2g}" in table
    assert "| wrong    | 0 " in table
    assert table in result.out

    calls.clear()
    assert "finished already" in run_cli(*command).out
    assert calls == ["fit"] * 2  # only what failed


def test_a_training_that_ends_without_validation_is_validated(
    run_cli: RunCli, tmp_path: Path, overlays: dict[str, Path], calls: list[str]
) -> None:
    command = ["ablate", "--config", "curves.yaml", "--overlays", overlays["one"], "--output", tmp_path / "out"]
    result = run_cli(*command, "--trainer.max_steps", "6")
    assert result.code == 0, result.err
    assert calls == ["fit", "validate"] * 2
    assert json.loads((tmp_path / "out" / "ablations.json").read_text())["one"]["0"]["val/curve/points"] > 0


@pytest.mark.slow
def test_alignment_follows_each_training_and_is_not_repeated(
    run_cli: RunCli, tmp_path: Path, overlays: dict[str, Path], calls: list[str]
) -> None:
    command: list[str | Path] = ["ablate", "--config", "curves.yaml", "--overlays", overlays["one"]]
    command += ["--output", tmp_path / "out", "--trainer.max_epochs", "1"]
    assert run_cli(*command).code == 0
    assert run_cli(*command, "--align").code == 0
    assert calls == ["fit", "fit", "align", "align"]
    calls.clear()
    runs = [tmp_path / "out" / name / "seed_0" for name in ("base", "one")]
    (runs[1] / "align" / "align.json").unlink()
    assert run_cli(*command, "--align").code == 0
    assert calls == ["align"]
    result = run_cli("compare", *runs, "--output", tmp_path / "compare")
    assert "| curve, trained " in result.out
    assert "| normalization " in result.out


def test_each_modality_is_aligned_where_compare_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (trial,) = make_trials(["curves.yaml"], [], [0], tmp_path, [])
    checkpoint: dict[str, Any] = {"hyper_parameters": {"adapters": {"image": {}, "molecule": {}, "crystal": {}}}}
    monkeypatch.setattr(run_folder, "read_checkpoint", lambda path: checkpoint)
    done = trial.folder / "align_image" / "align.json"
    done.parent.mkdir(parents=True)
    done.touch()
    made: list[tuple[str, ...]] = []

    def call(*args: str) -> int:
        made.append(args)
        return 130

    monkeypatch.setattr(ablate, "call", call)
    assert ablate.align_trial(trial) == 130
    folder = str(trial.folder / "align_molecule")
    assert made == [("align", "--ckpt_path", str(trial.folder), "--modality", "molecule", "--output", folder)]


@pytest.mark.slow
def test_an_interrupted_training_continues_where_it_stopped(
    run_cli: RunCli, tmp_path: Path, overlays: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As typed, in processes of their own: the base is finished, the endless variant gets Ctrl-C."""
    command: list[str | Path] = ["ablate", "--config", "curves.yaml", "--overlays", overlays["endless"]]
    command += ["--output", tmp_path / "out"]
    process = shell(*command)
    folder = tmp_path / "out" / "endless" / "seed_0"
    until(lambda: (folder / "metrics.csv").is_file() and len(steps(folder)) > 5, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "interrupted in endless, seed 0; the same command continues there" in err
    assert "Traceback" not in err
    stopped_at = read_checkpoint(folder / "last.ckpt")["global_step"]
    assert stopped_at > 5

    made: list[tuple[str, ...]] = []

    def call(*args: str) -> int:
        made.append(args)
        return main([*args, f"--trainer.max_epochs={stopped_at // 4 + 2}"] if args[0] == "fit" else list(args))

    monkeypatch.setattr(ablate, "call", call)
    result = run_cli(*command)
    assert result.code == 0, result.err
    assert made[0] == ("fit", "--ckpt_path", str(folder))
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 4 * (stopped_at // 4 + 2)
    assert json.loads((tmp_path / "out" / "ablations.json").read_text()).keys() == {"base", "endless"}


def test_a_training_stopped_before_its_first_checkpoint_begins_anew(
    run_cli: RunCli, tmp_path: Path, overlays: dict[str, Path], calls: list[str]
) -> None:
    (trial,) = make_trials(["curves.yaml"], [], [0], tmp_path / "out", [])
    trial.note(metrics=None)
    (trial.folder / "config.yaml").write_text("model: {}\n")
    command = ["ablate", "--config", "curves.yaml", "--overlays", overlays["one"], "--output", tmp_path / "out"]
    assert run_cli(*command).code == 0
    assert not (trial.folder / "version_1").exists()
    assert steps(trial.folder) == list(range(8))


def test_other_settings_do_not_mix_with_what_is_there(
    run_cli: RunCli, tmp_path: Path, overlays: dict[str, Path], calls: list[str]
) -> None:
    (trial,) = make_trials(["curves.yaml"], [], [0], tmp_path / "out", [])
    trial.note(metrics={"val/curve/points": 1.0})
    command = ["ablate", "--config", "curves.yaml", "--overlays", overlays["one"], "--output", tmp_path / "out"]
    result = run_cli(*command, "--trainer.max_epochs", "1")
    assert result.code == 2
    assert "was made with other settings: choose another --output" in result.err
    (tmp_path / "full" / "one" / "seed_0").mkdir(parents=True)
    (tmp_path / "full" / "one" / "seed_0" / "thesis.tex").touch()
    result = run_cli(*command[:-1], tmp_path / "full")
    assert result.code == 2
    assert "holds something else" in result.err
    assert not calls


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "arguments are required: -c/--config, --overlays"),
        (("--config", "no.yaml", "--overlays", "curves.yaml"), "no.yaml is not a file"),
        (("--config", "curves.yaml", "--overlays", "curves.yaml+no.yaml"), "no.yaml is not a file"),
        (("--config", "curves.yaml", "--overlays", "a.yaml", "b/a.yaml"), "two variants called a"),
        (("--config", "curves.yaml", "--overlays", "base.yaml"), "two variants called base"),
        (("--config", "curves.yaml", "--overlays", "curves.yaml", "--seeds", "1", "1"), "names a seed twice"),
        (("--config", "curves.yaml", "--overlays", "curves.yaml", "--seeds", "-1"), "--seeds has -1"),
        (("--config", "curves.yaml", "--overlays", "curves.yaml", "--seeds", "x"), "invalid int value: 'x'"),
        (("--config", "curves.yaml", "--overlays", "curves.yaml", "--seed", "3"), "--seed is set for each training"),
        (("--config", "curves.yaml", "--overlays", "curves.yaml", "--ckpt_path=x"), "--ckpt_path=x is set for each"),
    ],
)
def test_wrong_input_is_told_in_one_line(
    run_cli: RunCli, tmp_path: Path, args: tuple[str, ...], message: str, calls: list[str]
) -> None:
    result = run_cli("ablate", *args, "--output", tmp_path / "out")
    assert result.code == 2
    (line,) = result.err.strip().splitlines()
    assert message in line
    assert not calls
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("{one}", "--trainer.max_step", "20"), "variant base: unknown option: --trainer.max_step"),
        (("{one}", "{one}+{data}", "{misspelt}"), "variant misspelt: "),
        (("{one}", "--config", "{data}", "{one}"), "variant base: unknown option: {one}"),
    ],
)
def test_settings_of_all_variants_are_checked_before_the_first_training(
    run_cli: RunCli,
    tmp_path: Path,
    overlays: dict[str, Path],
    calls: list[str],
    options: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    command = ["ablate", "--config", "curves.yaml", "--output", tmp_path / "out", "--seeds", "3", "--overlays"]
    result = run_cli(*command, *(option.format(**overlays) for option in options))
    assert result.code == 2
    (line,) = result.err.strip().splitlines()
    assert message.format(**overlays) in line
    assert "flow_step" in line or "misspelt" not in message
    assert not result.out
    assert not calls
    assert not (tmp_path / "out").exists()
    assert "PL_GLOBAL_SEED" not in os.environ  # trainings would inherit it


def test_quiet_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **kwargs: Any) -> None:
            made.append(command)

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    for is_asked in (False, True):
        with quiet(is_asked):
            assert ablate.call("align", "--seeds", "1") == 0
    assert [command[3:] for command in made] == [
        ["align", "--seeds", "1", "--trust"],
        ["align", "--seeds", "1", "--trust", "--quiet"],
    ]


def test_quiet_leaves_the_table(run_cli: RunCli, tmp_path: Path, overlays: dict[str, Path], calls: list[str]) -> None:
    trials = make_trials(["curves.yaml"], [str(overlays["one"])], [0], tmp_path / "out", [])
    for trial in trials:
        trial.note(metrics={"val/curve/points": 1.0})
    command = ["ablate", "--config", "curves.yaml", "--overlays", overlays["one"], "--output", tmp_path / "out"]
    loud, quiet_one = run_cli(*command), run_cli(*command, "--quiet")
    assert "[1/2] base, seed 0\nfinished already\n" in loud.out
    table = (tmp_path / "out" / "ablations.md").read_text()
    assert quiet_one.out.startswith(table)


# Of the two losses each base has one.
BASE_OF_LOSS = {"flow_loss_data": ["qm9_small"], "flow_loss_velocity": ["digits"]}


def bases(overlay: Path) -> list[str]:
    """Configs that an overlay may change; one that names a modality has its own."""
    if overlay.stem in BASE_OF_LOSS:
        return BASE_OF_LOSS[overlay.stem]
    return [base for name, base in (("molecule", "qm9_small"), ("image", "digits")) if name in overlay.stem] or [
        "qm9_small",
        "digits",
    ]


@pytest.fixture(scope="module")
def plain() -> dict[str, str]:
    """Settings of the bases without an overlay, as printed."""
    return {}


def holds(settings: Any, part: Any) -> bool:
    """Whether settings have all that a part of them names; ``name+`` adds to a list."""
    if isinstance(part, dict):
        return all(holds(settings[name.removesuffix("+")], value) for name, value in part.items())
    if isinstance(part, list):
        return all(any(holds(item, value) for item in settings) for value in part)
    return bool(settings == part)


@pytest.mark.parametrize(
    ("base", "overlay"),
    [(base, overlay) for overlay in OVERLAYS for base in bases(overlay)],
    ids=lambda value: value if isinstance(value, str) else value.stem,
)
def test_overlay_changes_its_bases_and_nothing_else_and_makes_a_model(
    run_cli: RunCli, base: str, overlay: Path, plain: dict[str, str]
) -> None:
    config = CONFIGS / f"{base}.yaml"
    if base not in plain:
        plain[base] = run_cli("fit", "--config", config, "--print_config").out
    changed = run_cli("fit", "--config", config, "--config", overlay, "--print_config").out
    before, after = yaml.safe_load(plain[base]), yaml.safe_load(changed)
    content = yaml.safe_load(overlay.read_text())
    assert holds(after, content)
    assert not holds(before, content)
    assert {**after, "model": None, "trainer": None} == {**before, "model": None, "trainer": None}
    if "trainer" in content:
        callbacks = [part["trainer"].pop("callbacks") for part in (before, after)]
        assert callbacks[1][: len(callbacks[0])] == callbacks[0]
    assert after["trainer"] == before["trainer"]
    assert isinstance(instantiate_module(UniteModule, after["model"]), UniteModule)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_overlay_trains(run_cli: RunCli, tmp_path: Path, overlay: Path) -> None:
    config = CONFIGS / f"{bases(overlay)[0]}.yaml"
    small = {
        "model": {"encoder": {"init_args": {"depth": 2}}},
        "data": tiny(yaml.safe_load(config.read_text())["data"], tmp_path / "data"),
        "trainer": {"accelerator": "cpu", "fast_dev_run": 2, "limit_val_batches": 0, "callbacks": []},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(small))
    result = run_cli("fit", "--config", config, "--config", tmp_path / "tiny.yaml", "--config", overlay)
    assert result.code == 0, result.err
