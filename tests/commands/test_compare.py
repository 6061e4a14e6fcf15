"""``unite compare``: runs of any modality side by side."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from tests.support.commands import RunCli
from tests.support.paths import TOY
from unite.analysis.comparison import RunSummary, comparison, draw_comparison, markdown_table
from unite.cli import main
from unite.commands.compare import read_run, training_seconds
from unite.runs.definitions import MISSING
from unite.runs.headlines import headlines

pytestmark = pytest.mark.usefixtures("in_toy_folder")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs of the toy: with one network, and with a separate denoiser."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(TOY)
        for name, option in (("shared", "true"), ("separate", "false")):
            command = ["fit", "--config", "curves.yaml", "--trainer.default_root_dir", str(folder / name)]
            assert main([*command, "--model.weight_sharing", option]) == 0
    return {name: folder / name for name in ("shared", "separate")}


def late(values: list[float]) -> Any:
    """Similarities (seeds, times, layers) of which the last but one layer counts."""
    return [[[0.0, value, 0.0] for value in values]]


def align_json(trained: list[float]) -> dict[str, Any]:
    parts = {"normalization": {"megabytes": 0.25}, "total": {"megabytes": 1.5}}
    return {
        "modality": "curve",
        "alignment": {"measures": {"cka_within": {"trained": late(trained), "shuffled": late([0.01, 0.03])}}},
        "compression": {"networks": {"encoder": {"trained": {"parts": parts}}}},
    }


def test_runs_side_by_side_as_typed(run_cli: RunCli, runs: dict[str, Path], tmp_path: Path) -> None:
    aligned = tmp_path / "aligned"
    shutil.copytree(runs["shared"], aligned)
    (aligned / "align").mkdir()
    (aligned / "align" / "align.json").write_text(json.dumps(align_json([0.5, 0.7])))
    (aligned / "metrics.json").write_text('{"test/curve/points": 0.25, "test/curve/flow": null}\n')
    out = tmp_path / "out"
    result = run_cli("compare", aligned, runs["separate"] / "last.ckpt", "--output", out)
    assert result.code == 0, result.err
    table = {
        cells[0]: cells[1:]
        for line in (out / "compare.md").read_text().splitlines()
        if line.startswith("|") and (cells := [cell.strip() for cell in line.strip("|").split("|")])
    }
    assert table["modalities"] == ["curve", "curve"]
    assert table["steps"] == ["8", "8"]
    assert table["parameters, denoiser"][0] == MISSING
    assert table["parameters, denoiser"][1] == table["parameters, encoder"][1]
    assert table["test/curve/points"] == ["0.25", MISSING]
    assert table["test/curve/flow"] == [MISSING, MISSING]
    assert float(table["val/curve/points"][0]) > 0
    assert table["curve, trained"] == ["0.6", MISSING]
    assert table["curve, shuffled"] == ["0.02", MISSING]
    assert table["normalization"] == ["0.25", MISSING]
    assert all(line in result.out for line in (out / "compare.md").read_text().splitlines()[2:])
    values = json.loads((out / "compare.json").read_text())
    assert [value["name"] for value in values] == ["aligned", "separate"]
    assert [(out / value["folder"]).resolve() for value in values] == [aligned, runs["separate"].resolve()]
    assert values[0]["metrics"]["test/curve/flow"] is None
    assert Image.open(out / "compare.png").size[0] > 500


def test_a_comparison_of_other_runs_is_not_replaced_unasked(
    run_cli: RunCli, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("shared", "separate", "elsewhere/shared"):
        shutil.copytree(runs[name.rpartition("/")[2]], name)
    assert run_cli("compare", "shared", "separate").code == 0
    files = {path: path.read_bytes() for path in Path("runs/compare").iterdir()}
    assert len(files) == 3

    for others in (["shared"], ["elsewhere/shared", "separate"]):  # the second pair has the names of what is there
        result = run_cli("compare", *others)
        assert result.code == 2
        (line,) = result.err.strip().splitlines()
        assert "runs/compare/compare.md is there and not of these runs; add --overwrite to replace it" in line
        assert not result.out
        assert {path: path.read_bytes() for path in Path("runs/compare").iterdir()} == files

    (tmp_path / "shared" / "metrics.json").write_text('{"test/curve/points": 0.25}\n')
    result = run_cli("compare", "separate", tmp_path / "shared" / "last.ckpt")
    assert result.code == 0, result.err
    assert "0.25" in Path("runs/compare/compare.md").read_text()

    assert run_cli("compare", "shared", "--overwrite").code == 0
    assert run_cli("compare", "shared").code == 0
    Path("runs/compare/compare.json").unlink()
    Path("runs/compare/compare.md").unlink()
    assert "compare.png is there and not of these runs" in run_cli("compare", "shared").err


def test_nothing_is_left_of_a_comparison_that_is_refused(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("damaged").mkdir()
    Path("damaged/last.ckpt").write_bytes(b"nothing")
    assert run_cli("compare", "damaged").code == 2
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("values", "limits", "labels"),
    [
        ((0.0, None), (0, 1), ["0", MISSING]),
        ((None, math.nan), (0, 1), [MISSING, MISSING]),
        ((0.0, math.inf), (0, 1), ["0", "inf"]),
        ((0.4, None), (0, 0.5), ["0.4", MISSING]),
        ((-0.4, 0.4), (-0.6, 0.6), ["-0.4", "0.4"]),
    ],
)
def test_axes_begin_at_zero_and_values_are_written_beside_bars(
    tmp_path: Path,
    values: tuple[float | None, ...],
    limits: tuple[float, float],
    labels: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    runs = [
        RunSummary(
            str(index), ["image"], {} if value is None else {"val/image/psnr": value}, 8, 1, 60.0, {"total": 1_000_000}
        )
        for index, value in enumerate(values)
    ]
    draw_comparison(runs, tmp_path / "compare.png")
    panel = drawn[0].axes[0]
    assert panel.get_title() == "val/image/psnr / dB"
    assert panel.get_xlim() == pytest.approx(limits)
    assert [text.get_text() for text in panel.texts] == labels


def test_parameters_are_those_of_the_model(runs: dict[str, Path]) -> None:
    summary = read_run(runs["separate"])
    state = torch.load(runs["separate"] / "last.ckpt", weights_only=True)["state_dict"]
    named = {name: value for name, value in state.items() if not name.endswith("time_embedding.frequencies")}
    assert summary.parameters["total"] == sum(value.numel() for value in named.values())
    encoder = sum(value.numel() for name, value in named.items() if name.startswith("encoder."))
    assert summary.parameters["encoder"] == summary.parameters["denoiser"] == encoder


def test_training_time_is_that_of_all_parts_without_pauses(runs: dict[str, Path], tmp_path: Path) -> None:
    once = training_seconds(runs["shared"])
    assert once is not None
    assert 0 < once < 60
    (events,) = runs["shared"].glob("events*")
    for number in (1, 2):
        shutil.copy(events, tmp_path / f"{events.name}.{number}")
    assert training_seconds(tmp_path) == pytest.approx(2 * once)
    assert training_seconds(tmp_path / "nothing") is None


def test_runs_of_different_modalities_have_dashes_for_each_others_metrics() -> None:
    images = {"val/image/fid_digits": 0.5, "val/image/psnr": 20.0, "val/image/flow": 1.0}
    molecules = {"val/molecule/validity": 0.25, "val/molecule/reject/empty": 0.0}
    runs = [
        RunSummary("a", ["image"], images, 10, 1, 60.0, {"encoder": 5, "total": 5}),
        RunSummary("b", ["molecule"], molecules, 1000, 1, None, {"encoder": 5, "total": 5}),
        RunSummary("c", ["image", "molecule"], {**images, **molecules}, 10, 1, 7200.0, {"encoder": 5, "total": 5}),
    ]
    tables = comparison(runs)
    assert tables["## Reconstruction"] == [["", "a", "b", "c"], ["val/image/psnr / dB", "20", MISSING, "20"]]
    assert tables["## Generation"][1:] == [
        ["val/image/fid_digits", "0.5", MISSING, "0.5"],
        ["val/molecule/validity", MISSING, "0.25", "0.25"],
    ]
    assert tables["## Training"][1:5] == [
        ["modalities", "image", "molecule", "image, molecule"],
        ["steps", "10", "1,000", "10"],
        ["epochs", "1", "1", "1"],
        ["training time", "1 min 0 s", MISSING, "2 h 0 min"],
    ]
    assert not any("Alignment" in title for title in tables)


def test_a_modality_without_known_metrics_shows_all() -> None:
    names = ["val/curve/points", "val/image/flow", "val/image/psnr", "val/curve/mean_radius"]
    assert headlines(names) == ["val/curve/points", "val/curve/mean_radius", "val/image/psnr"]


def test_columns_are_aligned() -> None:
    assert markdown_table([["", "a"], ["long", "1"]]).splitlines() == [
        "|      | a   |",
        "|------|-----|",
        "| long | 1   |",
    ]


def test_an_align_json_of_another_form_is_left_out_and_said_so(
    run_cli: RunCli, runs: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["shared"], folder)
    for content in (
        "{}",
        "no json",
        '{"modality": "curve", "alignment": {"measures": {"cka_within": {"trained": 1}}}}',
    ):
        (folder / "align.json").write_text(content)
        result = run_cli("compare", folder, "--output", tmp_path / "out")
        assert result.code == 0, result.err
        assert "align.json is not as unite align writes it, and is left out" in result.err
        assert "## Alignment" not in result.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "arguments are required: RUN"),
        (("{tmp}/nowhere",), "nowhere is no run: name run folders, each with a last.ckpt"),
        (("{tmp}",), "is no run"),
        (("{run}", "{run}/last.ckpt"), "is named twice"),
        (("{tmp}/damaged",), "is not a unite checkpoint, or is damaged"),
        (("{run}", "--colour"), "--colour"),
        (("{run}", "--output", "{tmp}/file/out"), "cannot write to"),
    ],
)
def test_wrong_input_is_told_in_one_line(
    run_cli: RunCli, runs: dict[str, Path], tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "last.ckpt").write_bytes(b"nothing")
    result = run_cli("compare", *(arg.format(tmp=tmp_path, run=runs["shared"]) for arg in args))
    assert result.code == 2
    (line,) = result.err.strip().splitlines()
    assert message in line
