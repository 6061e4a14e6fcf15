"""Graphs on the command line, as a user types it: fit and sample with the configs that ship."""

import json
from pathlib import Path

import pytest
from PIL import Image
from rdkit import Chem

from tests.support.commands import RunCli, write_overlay
from tests.support.paths import REPOSITORY

CONFIGS = REPOSITORY / "configs"
SMALL = {
    "qm9_graph": [],
    "qm9_bonds": ["--model.encoder.init_args.depth", "2", "--trainer.check_val_every_n_epoch", "1"],
}


@pytest.mark.parametrize("config", SMALL)
def test_fit_and_sample(run_cli: RunCli, tmp_path: Path, tiny_csv: Path, config: str) -> None:
    overlay = write_overlay(tmp_path, tiny_csv)
    result = run_cli(
        *("fit", "--config", CONFIGS / f"{config}.yaml", "--config", overlay, *SMALL[config]),
        *("--trainer.callbacks.monitor", "val/molecule/validity_bonds", "--trainer.max_steps", "4"),
        *("--trainer.val_check_interval", "2"),
        *("--trainer.log_every_n_steps", "1", "--trainer.default_root_dir", tmp_path / "run"),
    )
    assert result.code == 0, result.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    names = {"exact_graph", "bond_accuracy/single", "validity_bonds", "uniqueness_bonds", "novelty_bonds"}
    both = {"validity", "novelty", "match_rate", "bonds_agree"}
    assert {f"val/molecule/{name}" for name in names} <= metrics.keys()
    assert ({f"val/molecule/{name}" for name in both} <= metrics.keys()) == (config == "qm9_bonds")

    samples = tmp_path / "samples"
    result = run_cli(
        "sample", "--ckpt_path", tmp_path / "run", "--num_samples", "5", "--num_steps", "3", "--output", samples
    )
    assert result.code == 0, result.err
    entries = list(Chem.SDMolSupplier(str(samples / "samples.sdf"), sanitize=False))
    assert len(entries) == 5
    assert all(entry.HasProp("valid_bonds") for entry in entries)
    assert (samples / "samples.xyz").exists() == (config == "qm9_bonds")
    assert Image.open(samples / "grid.png").size[0] > 100
    assert {"validity_bonds", "novelty_bonds"} <= json.loads((samples / "metrics.json").read_text()).keys()


def test_a_model_of_graphs_refuses_data_without_bonds_in_one_line(
    run_cli: RunCli, tmp_path: Path, tiny_csv: Path
) -> None:
    result = run_cli(
        *("fit", "--config", CONFIGS / "qm9_graph.yaml", "--config", write_overlay(tmp_path, tiny_csv)),
        *("--data.init_args.bonds", "false", "--trainer.fast_dev_run", "1"),
    )
    assert result.code == 2
    assert "set data.init_args.bonds to true" in result.err
    assert "Traceback" not in result.err
