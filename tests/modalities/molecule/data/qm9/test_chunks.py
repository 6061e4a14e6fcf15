"""The name of what was perceived of a data set."""

import shutil
from pathlib import Path

import pytest
import torch

from unite.modalities.molecule.data.qm9 import chunks


@pytest.mark.parametrize("file", ["perceive.py", "bond_orders.py", "elements.py", "distances.py", "molecule.py"])
def test_the_name_changes_with_every_rule_of_perception(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a cache would keep what older rules found."""
    molecules = {"positions": torch.zeros(2, 3)}
    before = chunks.fingerprint(molecules)
    assert chunks.fingerprint(molecules) == before
    assert chunks.fingerprint({"positions": torch.ones(2, 3)}) != before
    rules = Path(shutil.copytree(chunks.RULES, tmp_path / "rules"))
    monkeypatch.setattr(chunks, "RULES", rules)
    assert chunks.fingerprint(molecules) == before
    with (rules / file).open("a") as lines:
        lines.write("# another rule\n")
    assert chunks.fingerprint(molecules) != before
