"""People's own molecules through the commands as they are typed: prepare, fit, sample, continue, start from a model."""

import json
from pathlib import Path

import pytest
import yaml
from rdkit import Chem
from torch import Tensor

from tests.support.commands import RunCli
from tests.support.paths import REPOSITORY
from tests.support.samples.molecule_files import DRUG_LIKE, with_shape, write_sdf, write_text
from unite.modalities.molecule.data.files.selection import View, select
from unite.modalities.molecule.data.files.table import FileTable

SMALLER = [
    *("--model.encoder.init_args.depth", "1", "--model.adapters.molecule.init_args.decoder_depth", "1"),
    *("--trainer.limit_val_batches", "0", "--trainer.callbacks", "null", "--max_steps", "2", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def own_sdf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sdf(tmp_path_factory.mktemp("own") / "own.sdf", [with_shape(smiles) for smiles in DRUG_LIKE])


def fit(run_cli: RunCli, folder: Path, *args: str | Path, config: str = "molecules_small") -> str:
    place = ["--trainer.default_root_dir", folder / "run", "--data.cache", folder / "cache"]
    result = run_cli("fit", config, *place, *SMALLER, *args)
    assert result.code == 0, result.err
    return result.out


def adapter_settings(run: Path) -> dict[str, object]:
    config = yaml.safe_load((run / "config.yaml").read_text())
    settings: dict[str, object] = config["model"]["adapters"]["molecule"]["init_args"]
    return settings


def test_a_path_is_enough_to_train_and_samples_have_its_elements(
    run_cli: RunCli, own_sdf: Path, tmp_path: Path
) -> None:
    out = fit(run_cli, tmp_path, "--data.path", own_sdf)
    assert "12 molecules of" in out
    assert "(random split, seed 0)" in out
    run = tmp_path / "run"
    settings = adapter_settings(run)
    assert settings["elements"] == ["B", "C", "N", "O", "Si", "P", "S", "Cl", "Br", "I"]
    assert (settings["max_atoms"], settings["max_charge"]) == (13, 0)

    own_sdf.rename(own_sdf.with_suffix(".moved"))  # what was found is in the run: no data is needed
    try:
        result = run_cli("export", run, tmp_path / "exported")
        assert result.code == 0, result.err
        result = run_cli(
            "sample", tmp_path / "exported", "-n", "4", "--num_steps", "2", "--output", tmp_path / "samples"
        )
        assert result.code == 0, result.err
    finally:
        own_sdf.with_suffix(".moved").rename(own_sdf)
    lines = (tmp_path / "samples" / "samples.xyz").read_text().splitlines()
    symbols = {line.split()[0] for line in lines if line[:1].isalpha() and "=" not in line}
    assert symbols <= {*settings["elements"], "H"}

    result = run_cli("fit", "--ckpt_path", run, "--max_steps", "3", "--device", "cpu")
    assert result.code == 0, result.err


def test_the_data_of_another_config_can_be_replaced(run_cli: RunCli, own_sdf: Path, tmp_path: Path) -> None:
    args = ["--data", "MoleculeFilesDataModule", "--data.path", own_sdf, "--data.cache", tmp_path / "cache"]
    place = ["--trainer.default_root_dir", tmp_path / "run"]
    result = run_cli("fit", REPOSITORY / "configs" / "qm9_small.yaml", *args, *place, *SMALLER)
    assert result.code == 0, result.err
    assert adapter_settings(tmp_path / "run")["max_atoms"] == 13


def test_what_the_model_says_is_left_out_of_the_data(
    run_cli: RunCli, own_sdf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(table: FileTable, view: View) -> tuple[Tensor, dict[str, int]]:
        views.append(view)
        return select(table, view)

    views: list[View] = []
    monkeypatch.setattr("unite.modalities.molecule.data.files.datamodule.select", counted)
    given: list[str | Path] = ["--model.adapters.molecule.init_args.elements", "[C,N,O]", "--data.path", own_sdf]
    out = fit(run_cli, tmp_path, *given, "--model.adapters.molecule.init_args.max_atoms", "6")
    assert len(views) == 1, "what was read to fill in settings is used again"
    assert "4 of more atoms than the model has places for (too_large)" in out
    assert "1 with P, which the model does not know (element_P)" in out
    assert adapter_settings(tmp_path / "run")["elements"] == ["C", "N", "O"]


def test_bonds_and_smiles_need_no_shapes(run_cli: RunCli, tmp_path: Path) -> None:
    path = write_text(
        tmp_path / "own.csv", "logS,smiles", *(f"{number},{text}" for number, text in enumerate(DRUG_LIKE))
    )
    view = [
        "--model.adapters.molecule.init_args.positions",
        "false",
        "--model.adapters.molecule.init_args.bonds",
        "true",
    ]
    fit(run_cli, tmp_path, "--data.path", path, *view)
    data = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["init_args"]
    assert (data["positions"], data["bonds"], data["hydrogens"]) == (False, True, "counted")


def test_a_run_can_begin_with_a_trained_model(run_cli: RunCli, own_sdf: Path, tmp_path: Path) -> None:
    whole = [arg for arg in SMALLER if not arg.startswith("--model") and arg != "1"]
    place = ["--trainer.default_root_dir", tmp_path / "run", "--data.cache", tmp_path / "cache"]
    result = run_cli("fit", "molecules_small", "--data.path", own_sdf, "--init_from", "qm9", *place, *whole)
    assert result.code == 0, result.err
    assert "starting from" in result.out
    assert "adapters.molecule.type_embedding.weight: 12 of 31 rows taken; new: BH0" in result.out
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["init_from"] == "qm9"
    result = run_cli("fit", "--ckpt_path", tmp_path / "run", "--max_steps", "3", "--device", "cpu")
    assert result.code == 0, result.err
    assert "starting from" not in result.out
    result = run_cli("fit", "--ckpt_path", tmp_path / "run", "--init_from", "qm9")
    assert (result.code, "give one of them" in result.err) == (2, True)


def test_prepare_tells_what_is_in_a_file(run_cli: RunCli, own_sdf: Path, tmp_path: Path) -> None:
    result = run_cli("prepare", "molecules", own_sdf, "--cache", tmp_path / "cache", "--output", tmp_path / "out")
    assert result.code == 0, result.err
    assert "12 records, 12 molecules, 12 shapes" in result.out
    found = json.loads((tmp_path / "out" / "findings.json").read_text())
    assert found["molecules_with_element"]["Si"] == 1
    assert (tmp_path / "out" / "findings.png").is_file()


@pytest.mark.parametrize(
    ("name", "lines", "args", "message"),
    [
        ("a.sdf", [""], [], "has no molecule: it is empty"),
        ("a.smi", ["CCO"], [], "has 1 molecule to learn from"),
        ("a.csv", ["name,logS", "x,1"], [], "has no column called smiles"),
        ("a.csv", ["smiles", "CC"], ["--data.smiles_column", "SMILE"], "smiles_column is 'SMILE', but"),
        ("a.smi", ["C" * 500] * 4, [], "(too_large_to_read)"),
    ],
)
def test_bad_files_are_one_line_and_leave_no_run(
    run_cli: RunCli, tmp_path: Path, name: str, lines: list[str], args: list[str], message: str
) -> None:
    path = write_text(tmp_path / name, *lines)
    place = ["--trainer.default_root_dir", tmp_path / "run", "--data.cache", tmp_path / "cache"]
    result = run_cli("fit", "molecules_small", "--data.path", path, *place, *args)
    assert result.code == 2
    assert message in result.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_drawing_in_an_sdf_is_given_a_shape(run_cli: RunCli, tmp_path: Path) -> None:
    path = write_sdf(tmp_path / "flat.sdf", [Chem.MolFromSmiles(smiles) for smiles in DRUG_LIKE[4:]])
    result = run_cli("prepare", "molecules", path, "--cache", tmp_path / "cache", "--num_conformers", "1")
    assert result.code == 0, result.err
    assert "8 shapes made by ETKDG and MMFF94" in result.out


def test_a_config_that_leaves_sizes_to_the_data_takes_those_of_a_trained_model(run_cli: RunCli, tmp_path: Path) -> None:
    options = ["-n", "2", "--num_steps", "2", "--device", "cpu", "--output", tmp_path / "samples"]
    result = run_cli("sample", "qm9", "--config", "qm9_small", "--data", "null", *options)
    assert result.code == 0, result.err
