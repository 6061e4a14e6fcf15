"""Weights of a trained model in a new one: what is equal, what is matched, what stays new."""

import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unite import GenerativeEncoder, UniteModule
from unite.errors import UserError
from unite.files.shipped import shipped_model
from unite.modalities.image import ImageAdapter
from unite.modalities.molecule import MoleculeAdapter
from unite.runs.warm_start import warm_start


def module(width: int = 96, depth: int = 4, **settings: Any) -> UniteModule:
    arguments = {"hydrogens": "counted", "decoder_depth": 3, **settings}
    encoder = GenerativeEncoder("XS", latent_channels=16, width=width, depth=depth)
    return UniteModule(encoder, {"molecule": MoleculeAdapter(**arguments)})


def test_a_model_of_the_same_settings_is_the_same_model() -> None:
    new, trained = module(max_atoms=9), UniteModule.from_pretrained("qm9")
    found = warm_start(new, "qm9")
    theirs = dict(trained.named_parameters())
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in new.named_parameters())
    assert (found.new, found.dropped, found.matched) == ([], [], {})
    buffers = dict(new.named_buffers())
    assert not buffers["adapters.molecule.size_counts"].any()  # statistics are of the new data
    frequencies = dict(trained.named_buffers())["encoder.time_embedding.frequencies"]
    assert torch.equal(buffers["encoder.time_embedding.frequencies"], frequencies)  # drawn once, whatever the seed


def test_rows_are_matched_by_element_and_hydrogens() -> None:
    new, trained = module(elements=["B", "N", "C", "S", "O"], max_atoms=12), UniteModule.from_pretrained("qm9")
    fresh = {name: parameter.clone() for name, parameter in new.named_parameters()}
    found = warm_start(new, "qm9")
    here, there = new.adapter("molecule"), trained.adapter("molecule")
    assert isinstance(here, MoleculeAdapter)
    assert isinstance(there, MoleculeAdapter)
    for row, kind in enumerate(here.vocabulary):
        for name in ("type_embedding.weight", "type_head.weight", "type_head.bias"):
            expected = fresh[f"adapters.molecule.{name}"][row]
            if kind in there.vocabulary:
                expected = there.get_parameter(name)[there.vocabulary.index(kind)]
            assert torch.equal(here.get_parameter(name)[row], expected), (name, kind)
    assert torch.equal(here.register_embedding[:9], there.register_embedding)
    assert torch.equal(here.register_embedding[9:], fresh["adapters.molecule.register_embedding"][9:])
    number, total, new_rows = found.matched["adapters.molecule.type_embedding.weight"]
    assert (number, total) == (12, 19)  # N, C, O with their hydrogens
    assert new_rows == ["BH0", "BH1", "BH2", "BH3", "SH0", "SH1", "SH2"]
    assert found.new == []
    assert torch.equal(new.encoder.latent_in.weight, trained.encoder.latent_in.weight)
    told = "\n".join(found.lines())
    assert "12 of 19 rows taken; new: BH0" in told


def test_what_the_other_model_does_not_have_is_new() -> None:
    new = module(bonds=True, max_atoms=9)
    found = warm_start(new, "qm9")
    assert "adapters.molecule.pairs.bond_head.weight" in found.new
    deeper = warm_start(module(depth=5, max_atoms=9), "qm9")
    assert {name.split(".")[2] for name in deeper.new} == {"4"}
    assert {name.split(".")[2] for name in warm_start(module(depth=3, max_atoms=9), "qm9").dropped} == {"3"}


def test_a_model_of_which_nothing_fits_is_refused() -> None:
    with pytest.raises(UserError, match="--init_from qm9: nothing of its encoder fits"):
        warm_start(module(width=64), "qm9")
    with pytest.raises(UserError, match="no such checkpoint"):
        warm_start(module(), "nothing/of/the/kind")


def test_a_model_on_the_hub_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        asked.append(repo_id)
        return str(shipped_model("qm9"))

    hub = SimpleNamespace(__spec__=find_spec("json"), snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert warm_start(module(max_atoms=9), "owner/name").new == []
    assert asked == ["owner/name"]


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="no such checkpoint"):
        warm_start(module(), "runs/qm8")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'owner/name is no folder here.*pip install "unite-lightning\[hub\]"'):
        warm_start(module(), "owner/name")


def test_other_classes_are_other_rows() -> None:
    def names(num_classes: int) -> list[Any]:
        adapter = ImageAdapter(image_size=8, patch_size=4, channels=1, num_classes=num_classes)
        return adapter.row_names()["condition_embedding.weight"]

    assert set(names(10)) & set(names(3)) == {"no class"}
    assert names(10) == names(10)


def test_a_checkpoint_that_names_foreign_classes_is_refused(tmp_path: Path) -> None:
    trained = module(depth=1, decoder_depth=1, max_atoms=5)
    hparams = {**trained.hparams, "encoder": {"class_path": "os.path.join", "init_args": {}}}
    torch.save({"hyper_parameters": hparams, "state_dict": trained.state_dict(), "global_step": 1}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"names os\.path\.join"):
        warm_start(module(depth=1, decoder_depth=1), str(tmp_path / "x.ckpt"))
