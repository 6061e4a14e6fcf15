"""``unite tune`` as it is typed."""

from pathlib import Path

import pytest
import torch

from tests.support.commands import RunCli
from tests.support.paths import TINY_CSV
from unite.files import read_json
from unite.module import UniteModule

CONFIG = """
model:
  encoder:
    class_path: unite.nn.GenerativeEncoder
    init_args: {size: XS, depth: 1, width: 32, num_heads: 2, latent_channels: 4}
  adapters:
    molecule:
      class_path: unite.modalities.molecule.MoleculeAdapter
      init_args: {hydrogens: counted, decoder_depth: 1}
  optimizer: {lr: 1.0e-2, warmup_steps: 1}
data:
  class_path: unite.modalities.molecule.QM9DataModule
  init_args: {root: ROOT, csv_files: [CSV], batch_size: 8, hydrogens: counted, num_val: 4}
trainer:
  accelerator: cpu
  max_steps: 2
  callbacks:
    - class_path: unite.callbacks.WeightAveraging
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.replace("ROOT", str(tmp_path / "data")).replace("CSV", str(TINY_CSV)))
    return path


def test_a_run_is_tuned_in_a_run_of_its_own(run_cli: RunCli, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "small"
    quiet = ("--trainer.enable_progress_bar", "false")
    assert run_cli("fit", config, "--trainer.default_root_dir", run, *quiet).code == 0
    before = (run / "last.ckpt").read_bytes()
    options = ("--rounds", 2, "--steps_per_round", 2, "--num_samples", 8, "--trainer.callbacks.num_steps", 2)

    result = run_cli("tune", run, *map(str, options), *quiet)

    assert result.code == 0, result.err
    tuned = tmp_path / "small_tuned"
    assert [told["step"] for told in read_json(tuned / "tuning.json")] == [0, 2, 4]
    assert (run / "last.ckpt").read_bytes() == before
    weights = UniteModule.load_from_checkpoint(tuned / "last.ckpt").state_dict()
    start = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert weights.keys() == start.keys()
    assert not weights["encoder.latent_in.weight"].equal(start["encoder.latent_in.weight"])
    assert run_cli("sample", tuned, "-n", 2, "--num_steps", 2).code == 0

    assert run_cli("fit", "--ckpt_path", tuned, "--trainer.max_steps", 5, *quiet).code == 0
    assert [told["step"] for told in read_json(tuned / "tuning.json")] == [0, 2, 4, 5]


def test_what_cannot_be_tuned_is_refused(run_cli: RunCli, config: Path, tmp_path: Path) -> None:
    run_cli("tune", tmp_path / "none").assert_refused("none")
    run_cli("tune", "qm9").assert_refused("qm9 has no settings of data: give --config, such as --config qm9_small")
    run_cli("tune", "qm9", "--rounds", 0).assert_refused("--rounds is 0; it must be at least 1")
    run_cli("tune", "qm9", "--max_steps", 9).assert_refused("--max_steps is set by unite tune: see --ckpt_path")
    run = ("tune", "qm9", "--config", "qm9_small", "--config", config, "--output", tmp_path / "out")
    small = ("--model.encoder.init_args.width", 96, "--model.encoder.init_args.depth", 4)
    refused = run_cli(*run, *map(str, small), "--model.encoder.init_args.latent_channels", "16", "--reward", "beauty")
    assert "reward is 'beauty'; MoleculeAdapter has validity, neutral, strain" in refused.err
    assert not (tmp_path / "out").exists()
    run_cli("tune").assert_refused("--ckpt_path")
