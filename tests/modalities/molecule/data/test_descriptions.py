"""What is said of molecules, and the captions of QM9 that are made of it."""

from pathlib import Path

import pytest
import torch
from rdkit import Chem
from torch_geometric.data import Batch

from tests.support.paths import TINY_CSV
from unite.modalities.batches import part_of
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.data.descriptions import FACTS, HELD_OUT, describe, facts_of, sentence
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.nn.text import ByteTextEncoder


@pytest.mark.parametrize(
    ("smiles", "facts"),
    [
        ("OC1CC1", {"a three-membered ring", "an alcohol", "one oxygen atom"}),
        ("C1OC1C#N", {"a three-membered ring", "an ether", "a nitrile", "one oxygen atom", "one nitrogen atom"}),
        ("CC(=O)CC=O", {"no ring", "a ketone", "an aldehyde", "two oxygen atoms"}),
        ("NC(=O)CN", {"no ring", "an amide", "an amine", "two nitrogen atoms", "one oxygen atom"}),
        ("CC(=O)OCF", {"no ring", "an ester", "fluorine", "two oxygen atoms"}),
        ("C#CC1CCC1", {"a four-membered ring", "an alkyne"}),
        ("c1ccncc1", {"a six-membered ring", "an aromatic ring", "one nitrogen atom"}),
        ("C1CC2CCCC2C1", {"a five-membered ring"}),
        ("C=CC=N", {"no ring", "an alkene", "an imine", "one nitrogen atom"}),
        ("OC(=O)C", {"no ring", "two oxygen atoms"}),  # an acid is no alcohol
    ],
)
def test_facts_are_those_of_chemistry_whether_hydrogens_are_atoms_or_not(smiles: str, facts: set[str]) -> None:
    mol = Chem.MolFromSmiles(smiles)
    assert facts_of(mol) == facts
    assert facts_of(Chem.AddHs(mol)) == facts
    assert facts <= set(FACTS)


def test_captions_name_up_to_three_facts_and_no_pair_that_is_held_out() -> None:
    facts = facts_of(Chem.MolFromSmiles("OC1CC1C#N"))
    made = {describe(facts, number) for number in range(300)}
    assert len(made) > 100
    counts = set()
    for caption in made:
        assert caption is not None
        named = {fact for fact in FACTS if fact in caption}
        assert named <= facts
        assert not any(pair <= named for pair in HELD_OUT)
        counts.add(len(named))
    assert counts == {1, 2, 3}
    assert describe(facts, 5) == describe(facts, 5)
    assert describe([], 5) is None
    assert sentence(["a three-membered ring", "an alcohol"]) == "a three-membered ring with an alcohol"
    assert all(pair <= set(FACTS) for pair in HELD_OUT)


def test_batches_of_qm9_have_captions_that_are_true(tmp_path: Path) -> None:
    data = QM9DataModule(str(tmp_path), 8, hydrogens="counted", csv_files=[str(TINY_CSV)], captions=True)
    data.setup("fit")
    samples = next(iter(data.val_dataloader()))["molecule"]
    smiles = dict(zip(data.table().molecule_id.tolist(), data.table().smiles, strict=True))
    for number, caption in zip(samples.molecule_id.tolist(), samples.caption, strict=True):
        facts = facts_of(Chem.MolFromSmiles(smiles[number]))
        assert {fact for fact in FACTS if caption and fact in caption} <= facts
        assert caption == describe(facts, number)
    adapter = MoleculeAdapter(hydrogens="counted", max_atoms=9, decoder_depth=1, text=ByteTextEncoder(1))
    adapter.build(96, 4)
    adapter.fit_text(data)
    assert adapter.template(adapter.prepare(samples)).captions == tuple(samples.caption)
    for part in (part_of(samples, [2, 0], len(samples)), Batch.from_data_list([samples[2], samples[0]])):
        assert part.caption == [samples.caption[2], samples.caption[0]]
    assert samples.to(torch.device("cpu"), non_blocking=True).caption == samples.caption
    assert (
        next(iter(QM9DataModule(str(tmp_path), 8, csv_files=[str(TINY_CSV)]).val_dataloader()))["molecule"].get(
            "caption"
        )
        is None
    )
