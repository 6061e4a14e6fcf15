"""``unite score files``, by an adapter that is not of the package."""

import json
from pathlib import Path

import pytest

from tests.support.commands import RunCli


def test_files_of_any_modality_are_scored_by_its_adapter(run_cli: RunCli, tmp_path: Path) -> None:
    file = tmp_path / "curves.json"
    file.write_text(json.dumps([[[1, 0], [0, 1]], [[3, 0], [0, 3]], [1, 2]]))
    result = run_cli("score", "files", "curves.CurveAdapter", file)
    assert result.code == 0, result.err
    assert "3 records in" in result.out
    values = json.loads((tmp_path / "curves_json_scores" / "metrics.json").read_text())
    assert values["mean_radius"] == 2
    rejects = json.loads((tmp_path / "curves_json_scores" / "rejects.json").read_text())
    assert rejects["rejected"] == [{"file": "curves.json", "record": 3, "reason": "no_curve"}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.Adapter", "FILE"), "nowhere.Adapter is no class that can be imported"),
        (("curves.CurveDataModule", "FILE"), "curves.CurveDataModule is no ModalityAdapter"),
        (("unite.modalities.image.ImageAdapter", "FILE"), "ImageAdapter reads no files"),
        (("curves.CurveAdapter", "nothing.json"), "nothing.json does not exist"),
        (("curves.CurveAdapter", "FILE", "--num_workers", "0"), "--num_workers is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    run_cli: RunCli, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    file = tmp_path / "curves.json"
    file.write_text("[]")
    result = run_cli("score", "files", *(str(file) if word == "FILE" else word for word in arguments))
    assert result.code == 2
    assert words in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]
