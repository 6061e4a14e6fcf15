"""``unite score`` of molecules that kill or do not end, and told to end."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from rdkit import Chem

from tests.support.commands import PATIENCE, RunCli, start_score, until
from tests.support.samples.graphs import ladder
from tests.support.samples.qm9_rows import tiny_molecules
from unite.modalities.molecule.files.reading import Record
from unite.modalities.molecule.files.writing import write_sdf, write_xyz
from unite.modalities.molecule.metrics import routes, scores
from unite.modalities.molecule.perception.distances import short_pairs
from unite.modalities.molecule.perception.molecule import Molecule

REALS = [real for real, _ in tiny_molecules()]


def score(run_cli: RunCli, path: Path, output: Path, *options: str | Path) -> tuple[dict[str, float], dict[str, Any]]:
    result = run_cli("score", "molecules", path, "--output", output, "--no_novelty", *options)
    assert result.code == 0, result.err
    return json.loads((output / "metrics.json").read_text()), json.loads((output / "rejects.json").read_text())


def test_a_record_that_kills_its_process_is_named_and_the_others_are_judged(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sdf(REALS[:5], tmp_path / "m.sdf")

    def judge(records: list[Record], as_written: bool, with_shapes: bool) -> list[scores.Judged]:
        if any(record.number == 3 for record in records):
            os.kill(os.getpid(), signal.SIGKILL)
        return judge_really(records, as_written, with_shapes)

    judge_really = scores.judge
    monkeypatch.setattr(scores, "judge", judge)
    found, rejects = score(run_cli, tmp_path / "m.sdf", tmp_path / "out", "--bonds", "as_written")
    assert found["validity"] == found["validity_as_written"] == 0.8
    assert found["reject/crashed"] == found["reject_as_written/crashed"] == 0.2
    (reject,) = rejects["rejected"]
    assert (reject["file"], reject["record"]) == (str(tmp_path / "m.sdf"), 3)
    assert reject["detail"] == "its process was ended by SIGKILL"
    assert found["atoms/min"] == min(real.num_atoms for real in REALS[:5])
    command = ("score", "molecules", tmp_path / "m.sdf", "--no_novelty", "--output", tmp_path / "again")
    assert f"crashed: record 3 of {tmp_path / 'm.sdf'}, its process was ended" in run_cli(*command).out


def test_a_ladder_of_a_hundred_rungs_is_too_slow_by_every_definition(run_cli: RunCli, tmp_path: Path) -> None:
    write_xyz([REALS[0], ladder(100)], tmp_path / "m.xyz")
    found, rejects = score(run_cli, tmp_path / "m.xyz", tmp_path / "out")
    assert found["validity"] == found["reject/too_slow"] == 0.5
    assert [reject["reason"] for reject in rejects["rejected"]] == ["too_slow"]
    (tmp_path / "m.sdf").write_text(Chem.MolToMolBlock(as_mol(ladder(100)), kekulize=False))
    found, _ = score(run_cli, tmp_path / "m.sdf", tmp_path / "sdf", "--bonds", "as_written")
    assert found["reject/too_slow"] == found["reject_as_written/too_slow"] == 1


def as_mol(molecule: Molecule) -> Chem.Mol:
    """The atoms with single bonds wherever atoms are close."""
    mol = Chem.RWMol()
    conformer = Chem.Conformer(len(molecule.positions))
    conformer.SetPositions(molecule.positions.astype(float))
    for number in molecule.atomic_numbers.tolist():
        mol.AddAtom(Chem.Atom(number))
    for first, second in short_pairs(molecule):
        mol.AddBond(first, second, Chem.BondType.SINGLE)
    mol.AddConformer(conformer)
    return mol.GetMol()


def test_what_a_terminal_would_obey_is_not_printed(run_cli: RunCli, tmp_path: Path) -> None:
    atoms = "".join(f"2\n\n{symbol} 0 0 0\nH 1 0 0\n" for symbol in ("\x1b[2J", *(f"X{n}" for n in range(20))))
    (tmp_path / "m.xyz").write_text(atoms)
    result = run_cli("score", "molecules", tmp_path / "m.xyz", "--no_novelty", "--output", tmp_path / "out")
    assert r"unknown element '\x1b[2J': in 1 molecules" in result.out
    assert "\x1b" not in result.out
    assert "and 11 more unknown elements; see rejects.json" in result.out


def test_a_molecule_that_kills_its_process_is_not_valid_by_other_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(molecule: Molecule | None) -> str | None:
        if molecule is REALS[2]:
            os.kill(os.getpid(), signal.SIGKILL)
        return None if molecule is None else str(molecule.num_atoms)

    monkeypatch.setattr(routes, "_adit_smiles", judge)
    monkeypatch.setattr(routes, "_MOLECULES_AT_ONCE", 2)
    monkeypatch.setattr(routes, "_judge_each", lambda judge, chunk: [judge(REALS[number]) for number in chunk])
    found = routes.adit_metrics(range(5), num_workers=2)  # type: ignore[arg-type]  # so that they stay the same objects
    assert found["validity_adit"] == 0.8


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_command_that_is_told_to_end(tmp_path: Path, ending: signal.Signals) -> None:
    write_xyz([ladder(14)], tmp_path / "one.xyz")
    (tmp_path / "m.xyz").write_text((tmp_path / "one.xyz").read_text() * 20_000)
    process = start_score(tmp_path / "m.xyz")
    until(lambda: len(_children(process.pid)) == 2, process)
    process.send_signal(ending)
    _, err = process.communicate(timeout=PATIENCE)  # to the end of the pipes, which the workers hold as well
    if ending == signal.SIGTERM:
        assert process.returncode == 143
        assert err.strip() == "unite: terminated"
        assert not (tmp_path / "m_xyz_scores").exists()


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
