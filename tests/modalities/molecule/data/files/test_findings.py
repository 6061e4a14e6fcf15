"""What `unite prepare molecules` tells of a file that was made for it."""

from pathlib import Path

from rdkit import Chem

from tests.support.samples.molecule_files import datamodule, with_shape, write_sdf
from unite.modalities.molecule.data.files.findings import as_picture, as_screen, findings


def test_findings_of_a_file(tmp_path: Path) -> None:
    mols = [
        with_shape("CCO", logS=1.5),
        with_shape("c1ccccc1", logS=-0.5),
        Chem.RemoveHs(with_shape("CCN")),
        Chem.MolFromSmiles("CCO"),
        Chem.MolFromSmiles("C[NH3+]"),
        Chem.MolFromSmiles("CC.O"),
    ]
    data = datamodule(write_sdf(tmp_path / "a.sdf", mols))
    found = findings(data, num_perceived=10)
    assert (found["records"], found["molecules"], found["conformers"]) == (6, 5, 5)
    assert found["left_out"] == {"mixture": 1}
    assert found["molecules_with_element"] == {"H": 5, "C": 5, "N": 2, "O": 2}
    assert found["molecules_by_charge"] == {"0": 4, "+1": 1}
    assert found["heavy_atoms"] == {"smallest": 2, "median": 3, "largest": 6}
    assert (found["duplicates"], found["scaffolds"]) == (1, 2)
    assert found["notes"] == {"hydrogens_added": 1, "conformers_made": 2}
    assert found["properties"] == {"logS": {"known": 2, "smallest": -0.5, "mean": 0.5, "largest": 1.5}}
    assert found["perception"]["looked_at"] == 5
    assert found["perception"] == {"looked_at": 5, "valid": 1.0, "same_bonds": 1.0, "reasons": {}}  # the cation, too
    text = as_screen(found)
    assert "a.sdf: 6 records, 5 molecules, 5 shapes" in text
    assert "1 of several pieces: salts, solvents, mixtures (mixture)" in text
    assert max(map(len, text.splitlines())) < 240
    assert as_picture(found, data.table).size == (1200, 330)
