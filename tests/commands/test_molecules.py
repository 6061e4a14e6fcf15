"""The commands as a user types them, on real molecules: fit, validate, test, sample."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from rdkit import Chem
from safetensors.torch import load_file

from tests.support.commands import RunCli, write_overlay
from tests.support.paths import REPOSITORY
from unite import UniteModule
from unite.modalities.molecule.perception.molecule import Molecule

FAST = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1"]


@pytest.fixture(scope="module", params=["qm9_small", "qm9"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from unite.cli import main

    folder = tmp_path_factory.mktemp(request.param)
    overlay = write_overlay(folder, REPOSITORY / "tests" / "data" / "qm9_tiny.csv")
    config = REPOSITORY / "configs" / f"{request.param}.yaml"
    smaller = ["--model.encoder.init_args.depth", "2", "--trainer.max_epochs", "1"] if request.param == "qm9" else []
    command = ["fit", "--config", config, "--config", overlay, *FAST, *smaller]
    if request.param == "qm9":
        command += ["--trainer.check_val_every_n_epoch", "1"]
    command += ["--trainer.default_root_dir", folder / "run"]
    assert main([str(part) for part in command]) == 0
    return folder / "run"


def test_fit_leaves_checkpoints_metrics_and_pictures(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "last.ckpt", "best-validity.ckpt", "metrics.csv", "metrics.json", "pictures"} <= names
    metrics = json.loads((run / "metrics.json").read_text())
    assert {
        "val/molecule/validity",
        "val/molecule/uniqueness",
        "val/molecule/novelty",
        "val/molecule/match_rate",
        "val/molecule/atom_stability",
        "val/molecule/flow",
        "val/molecule/distances",
    } <= metrics.keys()
    for kind in ("samples", "reconstructions"):
        assert Image.open(next((run / "pictures").glob(f"val_molecule_{kind}_*.png"))).size[0] > 100


@pytest.mark.parametrize(("command", "stage"), [("validate", "val"), ("test", "test")])
def test_evaluation_needs_only_the_checkpoint(
    run_cli: RunCli, run: Path, tmp_path: Path, command: str, stage: str
) -> None:
    result = run_cli(command, "--ckpt_path", run / "last.ckpt", "--output", tmp_path)
    assert result.code == 0, result.err
    assert f"{stage}/molecule/match_rate" in result.out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 <= metrics[f"{stage}/molecule/type_accuracy"] <= 1


def test_sample_writes_files_that_others_can_read(run_cli: RunCli, run: Path, tmp_path: Path) -> None:
    result = run_cli("sample", "--ckpt_path", run, "--num_samples", "5", "--num_steps", "3", "--output", tmp_path)
    assert result.code == 0, result.err
    supplier = Chem.SDMolSupplier(str(tmp_path / "samples.sdf"), sanitize=False)
    assert len(supplier) == 5
    assert all(molecule.HasProp("valid") for molecule in supplier)
    lines = (tmp_path / "samples.xyz").read_text().splitlines()
    assert int(lines[0]) == sum(1 for line in lines[2 : 2 + int(lines[0])] if len(line.split()) >= 4)
    assert Image.open(tmp_path / "grid.png").size[0] > 100
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {"validity", "uniqueness", "novelty", "valid_unique"} <= metrics.keys()


def test_checkpoint_loads_without_arguments_and_is_the_averaged_model(run: Path) -> None:
    path = run / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    module = UniteModule.load_from_checkpoint(path)
    name = "encoder.latent_in.weight"
    torch.testing.assert_close(module.state_dict()[name], checkpoint["state_dict"][name])
    assert not torch.equal(checkpoint["state_dict"][name], checkpoint["current_model_state"][name])
    molecules = module.generate("molecule", 3, num_steps=2, seed=0)
    assert all(isinstance(molecule, Molecule) for molecule in molecules)


def test_a_run_continues_where_it_stopped(run_cli: RunCli, tmp_path: Path, tiny_csv: Path) -> None:
    overlay = write_overlay(tmp_path, tiny_csv)
    config = REPOSITORY / "configs" / "qm9_small.yaml"
    folder = tmp_path / "run"
    first = run_cli("fit", "--config", config, "--config", overlay, *FAST, "--trainer.default_root_dir", folder)
    assert first.code == 0, first.err
    again = run_cli("fit", "--ckpt_path", folder, "--trainer.max_steps", "6")
    assert again.code == 0, again.err
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 6


def wrong(run_cli: RunCli, tmp_path: Path, tiny_csv: Path, *options: str) -> str:
    """The one line that a mistake gives."""
    result = run_cli(
        "fit",
        "--config",
        REPOSITORY / "configs" / "qm9_small.yaml",
        "--config",
        write_overlay(tmp_path, tiny_csv),
        "--trainer.default_root_dir",
        tmp_path / "run",
        *options,
    )
    assert result.code == 2, result.err
    lines = [line for line in result.err.splitlines() if line.startswith("unite: error:")]
    assert len(lines) == 1
    assert "Traceback" not in result.err
    return lines[0]


ADAPTER = "--model.adapters.molecule.init_args"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.flow_stepps", "3"], "flow_stepps"),
        (["--model.encoder.init_args.width", "100", "--model.encoder.init_args.num_heads", "7"], "width 100"),
        ([f"{ADAPTER}.registers_per_molecule", "0"], "registers_per_molecule is 0"),
        ([f"{ADAPTER}.max_atoms", "4"], "max_atoms is 4"),
        (["--data.init_args.hydrogens", "explicit"], "hydrogens is 'explicit' in the data but 'counted' in the"),
        (["--model.encoder.class_path", "unite.nowhere.Encoder"], "unite.nowhere"),
        (["--data.init_args.batch_size", "0"], "batch_size is 0"),
    ],
)
def test_mistakes_are_told_in_one_line(
    run_cli: RunCli, tmp_path: Path, tiny_csv: Path, options: list[str], message: str
) -> None:
    assert message in wrong(run_cli, tmp_path, tiny_csv, *options)
    assert not (tmp_path / "run").exists()


def test_a_refused_run_leaves_what_was_in_its_folder_before(run_cli: RunCli, tmp_path: Path, tiny_csv: Path) -> None:
    (tmp_path / "run" / "notes").mkdir(parents=True)
    (tmp_path / "run" / "notes" / "mine.txt").write_text("mine")
    wrong(run_cli, tmp_path, tiny_csv, "--data.init_args.hydrogens", "explicit")
    assert [path.name for path in (tmp_path / "run").rglob("*")] == ["notes", "mine.txt"]


def test_a_damaged_cache_is_rebuilt_and_said_so(
    run_cli: RunCli, tmp_path: Path, tiny_csv: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = ["fit", "--config", REPOSITORY / "configs" / "qm9_small.yaml", "--trainer.fast_dev_run", "1"]
    command += ["--config", write_overlay(tmp_path, tiny_csv)]
    assert run_cli(*command).code == 0
    cache = next(path for path in (tmp_path / "data").glob("*.safetensors") if "keys" not in path.name)
    cache.write_bytes(cache.read_bytes()[:1000])
    result = run_cli(*command)
    assert result.code == 0, result.err
    assert "rebuil" in (result.out + result.err + caplog.text)


def test_reconstruct_writes_inputs_beside_reconstructions(run_cli: RunCli, run: Path, tmp_path: Path) -> None:
    options = ["--num_samples", "4", "--split", "train", "--output", tmp_path]
    result = run_cli("reconstruct", "--ckpt_path", run, *options)
    assert result.code == 0, result.err
    for name in ("originals", "reconstructions"):
        assert len(Chem.SDMolSupplier(str(tmp_path / name / "samples.sdf"), sanitize=False)) == 4
    originals = [mol.GetProp("valid") for mol in Chem.SDMolSupplier(str(tmp_path / "originals" / "samples.sdf"))]
    assert originals == ["True"] * 4
    assert Image.open(tmp_path / "reconstructions.png").size == (2 * 3 * 224, 18 + 2 * 206)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {"match_rate", "rmsd", "type_accuracy"} <= metrics.keys()


def test_predict_writes_latents_with_the_numbers_of_the_molecules(run_cli: RunCli, run: Path, tmp_path: Path) -> None:
    result = run_cli("predict", "--ckpt_path", run, "--split", "test", "--output", tmp_path)
    assert result.code == 0, result.err
    found = load_file(tmp_path / "molecule-test-00000.safetensors")
    module = UniteModule.load_from_checkpoint(run / "last.ckpt", map_location="cpu")
    num_molecules = len(found["molecule_id"])
    assert found["index"].tolist() == list(range(num_molecules))
    assert found["latents"].shape[2] == module.encoder.latent_channels
    assert found["mask"].shape == found["latents"].shape[:2]
    assert f"latents of {num_molecules} samples of test" in result.out


def test_scores_of_the_written_files_are_those_of_the_samples(run_cli: RunCli, run: Path, tmp_path: Path) -> None:
    made = run_cli("sample", "--ckpt_path", run, "--num_samples", "12", "--num_steps", "3", "--output", tmp_path / "s")
    assert made.code == 0, made.err
    expected = json.loads((tmp_path / "s" / "metrics.json").read_text())
    for name in ("samples.sdf", "samples.xyz"):
        options = ["--no_novelty", "--output", tmp_path / name]
        result = run_cli("score", "molecules", tmp_path / "s" / name, *options)
        assert result.code == 0, result.err
        found = json.loads((tmp_path / name / "metrics.json").read_text())
        assert {metric: found[metric] for metric in expected if metric != "novelty"} == pytest.approx(
            {metric: value for metric, value in expected.items() if metric != "novelty"}
        )
