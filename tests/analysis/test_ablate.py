"""``unite ablate``: which commands it runs, how it continues, and the overlays that we ship."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import TESTS, RunCli
from unite.analysis import ablate

TOY = TESTS / "toy_modality"
CONFIGS = TESTS.parent / "configs"
OVERLAYS = sorted((CONFIGS / "ablations").glob("*.yaml"))


@pytest.fixture
def overlays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(TOY)
    files = [tmp_path / "one_step.yaml", tmp_path / "separate.yaml"]
    files[0].write_text("model: {flow_steps: 1}\n")
    files[1].write_text("model: {weight_sharing: false}\n")
    return files


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that would have run; they leave the files that tell a finished run."""
    found: list[tuple[str, ...]] = []

    def pretend(*args: str) -> bool:
        found.append(args)
        joined = " ".join(args)
        if args[0] == "align":
            marker = Path(args[2]) / "align" / "align.json"
            marker.parent.mkdir(parents=True)
            marker.write_text("{}")
        return not (args[0] == "fit" and FAILING["one_step"] and "one_step" in joined)

    monkeypatch.setitem(FAILING, "one_step", False)
    monkeypatch.setattr(ablate, "_unite", pretend)
    return found


FAILING = {"one_step": False}


def test_base_and_overlays_run_one_after_the_other(
    run_cli: RunCli, overlays: list[Path], commands: list[tuple[str, ...]], tmp_path: Path
) -> None:
    args = ("ablate", "--config", "curves.yaml", "--overlays", *overlays, "--output", tmp_path / "out")
    result = run_cli(*args, "--trainer.max_epochs", "1")
    assert result.code == 0, result.err
    assert [command[0] for command in commands] == ["fit", "align"] * 3 + ["compare"]
    fit = commands[2]
    assert fit[1:3] == ("--config=curves.yaml", f"--config={overlays[0]}")
    assert fit[3:] == (f"--trainer.default_root_dir={tmp_path / 'out' / 'one_step'}", "--trainer.max_epochs", "1")
    folders = [str(tmp_path / "out" / name) for name in ("base", "one_step", "separate")]
    assert list(commands[-1][1:4]) == folders
    commands.clear()
    assert run_cli(*args).code == 0
    assert [command[0] for command in commands] == ["compare"]


def test_what_was_begun_is_continued_and_what_fails_is_named(
    run_cli: RunCli, overlays: list[Path], commands: list[tuple[str, ...]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "separate").mkdir(parents=True)
    (out / "separate" / "last.ckpt").touch()
    FAILING["one_step"] = True
    result = run_cli("ablate", "--config", "curves.yaml", "--overlays", *overlays, "--output", out)
    assert result.code == 1
    assert f"failed: {out / 'one_step'}" in result.err
    fits = {command[-1]: command for command in commands if command[0] == "fit"}
    assert fits[str(out / "separate")] == ("fit", "--ckpt_path", str(out / "separate"))
    assert [str(out / "base"), str(out / "separate")] == list(commands[-1][1:3])


def test_interruption_says_how_to_continue(
    run_cli: RunCli, overlays: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Interrupted:
        returncode = 130

    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: Interrupted())
    result = run_cli("ablate", "--config", "curves.yaml", "--overlays", *overlays, "--output", tmp_path / "out")
    assert result.code == 130
    assert "the same command continues" in result.err


def test_wrong_input_is_refused_before_any_run(
    run_cli: RunCli, overlays: list[Path], commands: list[tuple[str, ...]], tmp_path: Path
) -> None:
    good = ("ablate", "--config", "curves.yaml", "--overlays", *overlays)
    for args, word in (
        (("ablate", "--overlays", *overlays), "--config"),
        (("ablate", "--config", "curves.yaml"), "--overlays"),
        ((*good, tmp_path / "no.yaml"), "no.yaml is not a file"),
        ((*good, overlays[0]), "would be called one_step"),
        ((*good, "--ckpt_path", "x"), "--ckpt_path"),
    ):
        result = run_cli(*args)
        assert result.code == 2
        assert word in result.err
    assert not commands


@pytest.mark.slow
def test_ablation_of_curves_as_typed(run_cli: RunCli, overlays: list[Path], tmp_path: Path) -> None:
    args = ("ablate", "--config", "curves.yaml", "--overlays", *overlays, "--output", tmp_path / "out")
    result = run_cli(*args, "--num_samples", "20", "--trainer.max_epochs", "1")
    assert result.code == 0, result.err
    comparison = json.loads((tmp_path / "out" / "comparison" / "compare.json").read_text())
    assert comparison["runs"] == ["base", "one_step", "separate"]
    assert comparison["sections"]["settings that differ"] == {
        "weight_sharing": [True, True, False],
        "flow_steps": [2, 1, 2],
    }
    assert all(comparison["sections"]["alignment of tokenization and denoising"]["cosine of the outputs at t = 0.5"])


def test_overlays_change_what_they_name_and_nothing_else(run_cli: RunCli) -> None:
    def settings(*configs: Path) -> dict[str, Any]:
        arguments = [f"--config={config}" for config in (CONFIGS / "qm9_small.yaml", *configs)]
        result = run_cli("fit", *arguments, "--print_config")
        assert result.code == 0, result.err
        content: dict[str, Any] = yaml.safe_load(result.out)
        return content

    assert len(OVERLAYS) > 10
    base = settings()
    for overlay in OVERLAYS:
        changed = settings(overlay)
        expected = json.loads(json.dumps(base))
        merge(expected, yaml.safe_load(overlay.read_text()))
        assert changed == expected, overlay.name
        assert changed != base, overlay.name
        assert overlay.read_text().startswith("# ")


def merge(into: dict[str, Any], overlay: dict[str, Any]) -> None:
    for key, value in overlay.items():
        assert key in into, key
        if isinstance(value, dict):
            merge(into[key], value)
        else:
            into[key] = value
