"""What a person sees of many metrics."""

from pathlib import Path

import pytest

from tests.support.commands import RunCli
from unite.runs.headlines import as_short_table, headlines, in_a_line, tensorboard_tag

MOLECULE = {
    "val/molecule/types": 0.1,
    "val/molecule/novelty": 0.625,
    "val/molecule/validity": 0.489,
    "val/molecule/uniqueness": 0.992,
    "val/molecule/match_rate": 0.9998,
    "val/molecule/rmsd": 0.021,
    "val/molecule/reject/clash": 0.0,
    "val/molecule/reject/no_bond_orders": 0.4,
    "val/molecule/reject/radical": 0.012,
}


def test_a_line_has_the_shares_of_samples_and_reconstructions() -> None:
    assert in_a_line(MOLECULE) == "match 100.0%, valid 48.9%, unique 99.2%, novel 62.5%"
    assert in_a_line({"val/image/psnr": 25.04, "val/image/fid_digits": 0.5}) == "psnr 25.04, fid_digits 0.5"
    both = in_a_line({**MOLECULE, "val/image/psnr": 25.04, "val/image/fid": float("nan")})
    assert both.startswith("molecule: match")
    assert both.endswith("; image: psnr 25.04")
    assert not in_a_line({"val/loss": 3.0})


def test_a_table_has_what_matters_and_one_line_of_rejects() -> None:
    lines = as_short_table(MOLECULE).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == headlines(list(MOLECULE))
    assert lines[-1] == "rejected: 40.0% no bond orders, 1.2% radical"
    own = as_short_table({name.removeprefix("val/molecule/"): value for name, value in MOLECULE.items()})
    assert own.splitlines()[0].split() == ["match_rate", "0.9998"]
    assert own.splitlines()[-1] == lines[-1]
    # A modality that has none of them shows all it has.
    assert as_short_table({"mean_radius": 1.0}) == "mean_radius  1"


def test_tensorboard_has_samples_first_and_rejects_apart() -> None:
    names = ["val/molecule/rmsd", "test/image/fid_digits", "val/molecule/novelty_bonds", "val/molecule/validity"]
    assert sorted(map(tensorboard_tag, names)) == [
        "1 quality/01 validity (val molecule)",
        "1 quality/03 novelty_bonds (val molecule)",
        "1 quality/06 fid_digits (test image)",
        "1 quality/14 rmsd (val molecule)",
    ]
    assert tensorboard_tag("val/molecule/reject/clash") == "rejects/val molecule/clash"
    for name in ("train/loss", "lr/muon", "val/molecule/positions", "step"):
        assert tensorboard_tag(name) == name


@pytest.mark.usefixtures("in_toy_folder")
def test_training_talks(run_cli: RunCli, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("--trainer.default_root_dir", folder, "--max_epochs", "1", "--trainer.enable_progress_bar", "false")
    first = run_cli("fit", "curves.yaml", *options)
    assert first.code == 0, first.err
    line = next(line for line in first.out.splitlines() if line.startswith("step "))
    assert line.startswith("step 4, 00:0")
    assert ": points " in line
    assert "next: unite sample" in first.out
    assert "step " not in run_cli("fit", "curves.yaml", *options, "--quiet").out
    again = run_cli("fit", "curves.yaml", *options)
    assert "to continue the old one: --ckpt_path last" in again.out
    ended = run_cli("fit", folder, "--trust", "--trainer.enable_progress_bar", "false")
    assert "this run has ended at step" in ended.out
    assert "no metrics" not in ended.out
