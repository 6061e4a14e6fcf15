"""The table of MOSES and FCD, against values computed in other ways."""

import csv
import importlib.util
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.Scaffolds import MurckoScaffold

from tests.support.samples.conformers import MANY_ELEMENTS
from unite.errors import UserError
from unite.modalities.frechet import distance_of_normals
from unite.modalities.molecule.metrics import moses
from unite.modalities.molecule.metrics.fcd import MAX_LENGTH, FrechetChemNetDistance
from unite.modalities.molecule.metrics.moses import describe, describe_all, keys_of_all, moses_table
from unite.modalities.molecule.perception.molecule import hash_key

DRUGS = (
    "CC(=O)Oc1ccccc1C(=O)O",
    "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "CC(=O)Nc1ccc(O)cc1",
    "c1ccc(cc1)C(=O)NC2CC2",
    "COc1ccc2[nH]cc(CCN(C)C)c2c1",
    "O=C(Nc1ccccn1)c1ccco1",
    "Cc1ccc(cc1)S(=O)(=O)NC(=O)NN1CC2CCCC2C1",
    "FC(F)(F)c1ccc(cc1)C(=O)N1CCOCC1",
    "Clc1ccccc1CN1CCc2sccc2C1",
    "CCOC(=O)c1ccc(N)cc1",
    "c1ccc2c(c1)ncn2CC1CCCO1",
)


def molecules(smiles: str) -> Chem.Mol:
    return Chem.MolFromSmiles(smiles)


def test_table_against_other_ways_to_count() -> None:
    generated: list[str | None] = [*DRUGS[:8], DRUGS[0], None, "C1CC"]
    reference, train = list(DRUGS[4:]), keys_of_all(DRUGS[:3], 1, "read")
    found = moses_table(describe(generated), describe(reference), train)
    assert found["valid"] == 9 / 11
    assert found["novelty"] == 5 / 8
    assert not {"unique@1k", "unique@10k"} & set(found)
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    valid = [molecules(smiles) for smiles in [*DRUGS[:8], DRUGS[0]]]
    bits = [generator.GetFingerprint(mol) for mol in valid]
    reference_bits = [generator.GetFingerprint(molecules(smiles)) for smiles in reference]
    pairs = np.array([DataStructs.BulkTanimotoSimilarity(one, bits) for one in bits])
    nearest = [max(DataStructs.BulkTanimotoSimilarity(one, reference_bits)) for one in bits]
    assert found["snn"] == pytest.approx(np.mean(nearest), abs=1e-6)
    assert found["int_div"] == pytest.approx(1 - pairs.mean(), abs=1e-6)
    assert found["int_div2"] == pytest.approx(1 - np.sqrt((pairs**2).mean(1)).mean(), abs=1e-6)
    scaffolds = []
    for mols in (valid, list(map(molecules, reference))):
        cores = [MurckoScaffold.GetScaffoldForMol(mol) for mol in mols]
        scaffolds.append(Counter(Chem.MolToSmiles(core) for core in cores if core.GetRingInfo().NumRings() > 1))
    names = sorted(set(scaffolds[0]) | set(scaffolds[1]))
    first, second = (np.array([counts[name] for name in names]) for counts in scaffolds)
    assert found["scaf"] == pytest.approx(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    assert 0 < found["scaf"] < 1
    assert 0 < found["frag"] < 1


def test_a_set_beside_itself() -> None:
    described = describe(DRUGS)
    found = moses_table(described, described, keys_of_all([], 1, "read"))
    assert {name: found[name] for name in ("valid", "novelty", "snn", "frag", "scaf")} == pytest.approx(
        dict.fromkeys(("valid", "novelty", "snn", "frag", "scaf"), 1.0)
    )


def test_fragments_are_those_of_brics() -> None:
    (found,) = describe(["CCOC(=O)c1ccccc1"])
    assert found is not None
    assert sorted(found.fragments) == sorted(["[4*]CC", "[3*]O[3*]", "[1*]C([6*])=O", "[16*]c1ccccc1"])


def test_unique_counts_the_first_thousand() -> None:
    chains = [
        f"{'C' * left}{middle}{'C' * right}"
        for middle in "NO"
        for right in range(1, 25)
        for left in range(1, right + 1)
    ]
    described = [item for item in describe(chains[:600]) if item]
    assert moses_table([*described, *described], described)["unique@1k"] == 0.6


def test_processes_find_what_one_does_and_order_is_kept() -> None:
    smiles: list[str | None] = [*DRUGS, None, "no molecule", *MANY_ELEMENTS] * 8
    assert describe_all(smiles, num_workers=2) == describe(smiles)


def test_stereochemistry_does_not_count() -> None:
    first, second = describe(["C/C=C/[C@H](F)Cl", "C/C=C\\[C@@H](F)Cl"])
    assert first == second


@pytest.mark.parametrize(
    "text", [*MANY_ELEMENTS, "[H]/C(C)=C/F", "C[C@H](N)O", "[CH3:1][OH:2]", "c1cc[nH]c1", "[H]c1ccccc1"]
)
def test_keys_of_training_molecules_are_those_that_describe_gives(text: str) -> None:
    described = describe([text])[0]
    assert described is not None
    found = keys_of_all([text, None, "no molecule", text], 1, "read")
    assert found.tolist() == [hash_key(described.smiles)]


def test_filters_are_read_from_the_package_of_moses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moses._filters.cache_clear()
    (tmp_path / "moses" / "metrics").mkdir(parents=True)
    (tmp_path / "moses" / "__init__.py").write_text("raise ImportError('its code is not imported')")
    with (tmp_path / "moses" / "metrics" / "mcf.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("names", "smarts"), ("MCF1", "[#6]=&!@[#6]-[#6]#[#7]")])
    (tmp_path / "moses" / "metrics" / "wehi_pains.csv").write_text('"[#7]=[#7]" ,"<regId=azo>"\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    cases = {
        "CCO": True,
        "C=CC#N": False,
        "CN=NC": False,
        "C1CCCCCCC1": False,
        "C1CCCCCC1": True,
        "C[NH3+]": False,
        "CI": False,
    }
    assert {smiles: moses.passes_filters(molecules(smiles)) for smiles in cases} == cases
    moses._filters.cache_clear()


def test_filters_are_left_out_where_they_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    moses._filters.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    described = describe(DRUGS)
    assert "filters" not in moses_table(described, described)
    moses._filters.cache_clear()


# ---------------------------------------------------------------------- FCD


def test_fcd_is_that_of_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    # fcd 1.2 calls what NumPy 2.5 and later SciPy are without; what the metric takes from the package works there.
    monkeypatch.setattr(np, "row_stack", np.vstack, raising=False)
    from fcd import get_predictions, load_ref_model

    first, second = list(DRUGS), [smiles for smiles in MANY_ELEMENTS if "@" not in smiles]
    metric = FrechetChemNetDistance()
    metric.update(first)
    metric.update(second, is_reference=True)
    network = load_ref_model()
    features = [
        get_predictions(network, smiles, n_jobs=0, device="cpu").astype(np.float64) for smiles in (first, second)
    ]
    means, covariances = zip(*[(part.mean(0), np.cov(part.T)) for part in features], strict=True)
    # The trace of the root of a product is the sum of the roots of its eigenvalues.
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(min=0))
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * roots.sum()
    assert float(metric.compute()) == pytest.approx(float(expected), rel=2e-3)


def test_fcd_of_shares_is_that_of_the_whole() -> None:
    whole, parts = FrechetChemNetDistance(), [FrechetChemNetDistance() for _ in range(2)]
    for is_reference, smiles in ((False, DRUGS[:8]), (True, DRUGS[4:])):
        whole.update(smiles, is_reference)
        for part, (start, end) in zip(parts, pairwise((0, 3, 8)), strict=True):
            part.update(smiles[start:end], is_reference)
    for name in whole.metric_state:
        setattr(parts[0], name, getattr(parts[0], name) + getattr(parts[1], name))
    torch.testing.assert_close(parts[0].compute(), whole.compute())


def test_fcd_of_equal_sets_is_zero_whatever_the_order() -> None:
    metric = FrechetChemNetDistance()
    metric.update(DRUGS)
    metric.update(random.Random(0).sample(DRUGS, len(DRUGS)), is_reference=True)
    assert float(metric.compute()) == pytest.approx(0, abs=1e-6)


def test_long_smiles_and_small_sets() -> None:
    metric = FrechetChemNetDistance()
    metric.update(["C" * (MAX_LENGTH + 1), "", "CCO"])
    assert int(metric.num_left_out) == 2
    assert torch.isnan(metric.compute())


def test_without_its_package_fcd_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "unite-lightning\[fcd\]"'):
        FrechetChemNetDistance()


def test_distance_of_normals_in_one_dimension() -> None:
    one, four = torch.tensor([[1.0]]).double(), torch.tensor([[4.0]]).double()
    found = distance_of_normals(torch.tensor([1.0]).double(), one, torch.tensor([3.0]).double(), four)
    assert float(found) == pytest.approx((1 - 3) ** 2 + (1 - 2) ** 2)
