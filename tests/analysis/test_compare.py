"""``unite compare``: what is read from run folders, and how it is put side by side."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TESTS, RunCli
from unite import UniteModule
from unite.analysis.alignment import late_layer
from unite.analysis.compare import RunSummary, as_markdown, compare, summarise
from unite.cli import main

TOY = TESTS / "toy_modality"
QUICK = ("--num_samples", "20", "--seeds", "1", "--times", "0.3", "0.8", "--neighbours", "3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run that was aligned, and one with other settings that was not."""
    folder = tmp_path_factory.mktemp("runs")
    shared, separate = folder / "shared", folder / "separate"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(TOY)
        fit = ["fit", "--config", "curves.yaml", "--trainer.default_root_dir"]
        assert main([*fit, str(shared)]) == 0
        assert main([*fit, str(separate), "--model.weight_sharing", "false", "--trainer.max_epochs", "1"]) == 0
        assert main(["align", "--ckpt_path", str(shared), *QUICK]) == 0
    return [shared, separate]


@pytest.fixture(autouse=True)
def _in_toy_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOY)


def test_compare_writes_table_numbers_and_figure(run_cli: RunCli, runs: list[Path], tmp_path: Path) -> None:
    result = run_cli("compare", *runs, "--output", tmp_path)
    assert result.code == 0, result.err
    assert {path.name for path in tmp_path.iterdir()} == {"compare.md", "compare.json", "compare.png"}
    sections = json.loads((tmp_path / "compare.json").read_text())["sections"]
    assert sections["run"]["steps"] == [8, 4]
    assert sections["settings that differ"] == {"weight_sharing": [True, False]}
    assert (
        sections["metrics"]["val/curve/points"][0]
        == json.loads((runs[0] / "metrics.json").read_text())["val/curve/points"]
    )
    text = (tmp_path / "compare.md").read_text()
    assert "| | shared | separate |" in text
    assert "| steps | 8 | 4 |" in text
    assert "| weight_sharing | true | false |" in text
    assert text in result.out
    assert "no alignment and compression of separate" in result.out
    refused = run_cli("compare", *runs, "--output", tmp_path)
    assert refused.code == 2
    assert "--overwrite" in refused.err


def test_summary_is_what_the_run_holds(runs: list[Path]) -> None:
    shared, separate = (summarise(path, path.name) for path in runs)
    module = UniteModule.load_from_checkpoint(runs[1] / "last.ckpt")
    assert module.separate_denoiser is not None
    encoder = sum(value.numel() for value in module.encoder.state_dict().values())
    for summary, denoiser in ((shared, 0), (separate, encoder)):
        assert summary.facts["modalities"] == "curve"
        assert summary.facts["parameters: encoder"] == encoder
        assert summary.facts["parameters: separate denoiser"] == denoiser
        assert 0 < summary.facts["minutes of training"] < 10
    assert separate.facts["parameters: total"] == sum(value.numel() for value in module.state_dict().values())
    content = json.loads((runs[0] / "align" / "align.json").read_text())
    assert shared.alignment["CKA behind the last block, trained"] == pytest.approx(
        late_layer(content["alignment"], "cka_within")["trained"]
    )
    assert math.isnan(late_layer({"measures": {"cka": {"trained": [[[None, None]]]}}}, "cka")["trained"])
    outputs = content["alignment"]["measures"]["cosine"]["trained"][0]
    assert shared.alignment["cosine of the outputs at t = 0.8"] == pytest.approx(outputs[1][-1])
    parts = content["compression"]["networks"]["encoder"]["trained"]["parts"]
    assert shared.compression["MB of weights, total, trained"] == parts["total"]["megabytes"]
    assert separate.alignment == separate.compression == {}


def test_rows_of_different_modalities_do_not_mix() -> None:
    def summary(name: str, **metrics: Any) -> RunSummary:
        return RunSummary(name, {"steps": 1}, {"flow_steps": 2}, metrics, {}, {})

    comparison = compare([summary("a", **{"val/x": 0.5}), summary("b", **{"val/y": None, "val/m/reject/clash": 0.1})])
    assert comparison["sections"]["metrics"] == {
        "val/x": [0.5, None],
        "val/y": [None, None],
        "val/m/reject/clash": [None, 0.1],
    }
    assert "settings that differ" not in comparison["sections"]
    text = as_markdown(comparison)
    assert "| val/x | 0.5 | - |" in text
    assert "clash" not in text


def test_wrong_runs_are_told_in_one_line(run_cli: RunCli, runs: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(runs[0], broken)
    (broken / "metrics.json").write_text("{")
    for args, word in (
        ((runs[0],), "two or more"),
        ((runs[0], tmp_path / "no"), "no such checkpoint"),
        ((runs[0], broken), "metrics.json is no JSON"),
        ((*runs, "--outputs", tmp_path), "--outputs"),
    ):
        result = run_cli("compare", *args, "--output", tmp_path / "out")
        assert result.code == 2
        (line,) = result.err.strip().splitlines()
        assert word in line


def test_runs_of_one_name_keep_as_much_path_as_it_takes(run_cli: RunCli, runs: list[Path], tmp_path: Path) -> None:
    for parent in ("a", "b"):
        shutil.copytree(runs[1], tmp_path / parent / "run")
    result = run_cli(
        "compare", tmp_path / "a" / "run", tmp_path / "b" / "run" / "last.ckpt", "--output", tmp_path / "c"
    )
    assert result.code == 0, result.err
    assert "| | a/run | b/run |" in result.out
