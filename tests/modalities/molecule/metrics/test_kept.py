"""What comparisons need of files is kept beside them, and made again when it has to be."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.samples.conformers import MANY_ELEMENTS
from unite.errors import UserError
from unite.modalities.molecule.metrics import kept
from unite.modalities.molecule.metrics.kept import as_tensors, from_tensors, kept_beside
from unite.modalities.molecule.metrics.moses import describe


def test_molecules_come_back_as_they_were() -> None:
    described = describe(["c1ccccc1CC1CC1", *MANY_ELEMENTS, "no molecule"], with_filters=False)
    assert from_tensors(as_tensors(described)) == described[:-1]


def test_it_is_made_once_and_again_when_files_settings_or_bits_change(tmp_path: Path) -> None:
    file = tmp_path / "train.smi"
    made: list[int] = []

    def make() -> dict[str, Tensor]:
        made.append(len(made))
        return {"keys": torch.tensor(made[-1:])}

    def number(*settings: object) -> int:
        return int(kept_beside([file], "keys", settings, make)["keys"])

    file.write_text("CCO")
    assert [number(), number(), number("other"), number()] == [0, 0, 1, 0]
    file.write_text("CCN")
    assert [number(), number()] == [2, 2]
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert [number(), number()] == [3, 3]


def test_a_folder_that_cannot_be_written_to_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object) -> None:
        raise UserError("cannot write what is compared with")

    monkeypatch.setattr(kept, "require_writable", refuse)
    (tmp_path / "a.smi").write_text("C")
    found = kept_beside([tmp_path / "a.smi"], "keys", (), lambda: {"keys": torch.tensor(1)})
    assert int(found["keys"]) == 1
    assert "cannot write" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a.smi"]
