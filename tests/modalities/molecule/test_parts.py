"""Parts of molecules that generation keeps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from scipy.spatial.transform import Rotation

from tests.support.cases import awake, tiny_image_adapter
from unite import UniteModule, UserError
from unite.modalities.atoms import superposed
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.parts import read_part
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.template import Wanted
from unite.nn.generative_encoder import GenerativeEncoder


def molecule_of(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(mol, randomSeed=0)
    return mol


@pytest.fixture(scope="module")
def furan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2-methylfuran: C0 is the methyl, C1 C2 C3 C4 O5 the ring; hydrogens follow."""
    path = tmp_path_factory.mktemp("part") / "furan.sdf"
    path.write_text(Chem.MolToMolBlock(molecule_of("Cc1ccco1")))
    return path


def make_module(**settings: Any) -> UniteModule:
    torch.manual_seed(0)
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=1, width=32, num_heads=2)
    adapter = MoleculeAdapter(**{"hydrogens": "counted", "max_atoms": 9, "decoder_depth": 1, **settings})
    module = awake(UniteModule(encoder, {"molecule": adapter}))
    adapter.size_counts[2:] = 1
    return module


@pytest.fixture(scope="module")
def module() -> UniteModule:
    return make_module()


def generate(module: UniteModule, num_samples: int = 6, **asked: Any) -> list[Molecule]:
    return module.generate("molecule", num_samples, seed=0, num_steps=2, **asked)


def places_of(module: UniteModule, num_samples: int, **asked: Any) -> np.ndarray[Any, Any]:
    adapter = module.adapters["molecule"]
    part = adapter.wanted_template(num_samples, Wanted(**asked), torch.Generator().manual_seed(0)).part
    assert part is not None
    return part.places.numpy()


@pytest.mark.parametrize("registers", [None, 3])
def test_all_samples_have_the_part(furan: Path, registers: int | None) -> None:
    module = make_module(registers_per_molecule=registers)
    made = generate(module, fix=furan, fix_atoms=[5, 1, 2, 3, 4])

    original = Chem.MolFromMolFile(str(furan)).GetConformer().GetPositions()[1:6]
    places = places_of(module, len(made), fix=furan, fix_atoms=[5, 1, 2, 3, 4])
    for molecule, place in zip(made, places, strict=True):
        assert len(molecule.atomic_numbers) > 5
        assert molecule.atomic_numbers[place].tolist() == [6, 6, 6, 6, 8]
        assert molecule.num_hydrogens is not None
        assert (molecule.num_hydrogens[place] <= [2, 2, 2, 2, 0]).all()  # each has two bonds in the ring
        found = molecule.positions[place]
        _, rssd = Rotation.align_vectors(original - original.mean(0), found - found.mean(0))
        assert rssd < 1e-4
        np.testing.assert_allclose(molecule.positions.mean(0), 0, atol=1e-5)
    assert len({tuple(place) for place in places}) > 1  # not always the same atoms of the samples


def test_the_rest_follows_the_part(module: UniteModule, furan: Path) -> None:
    """The part is seen by the network at each step, not only written over its result."""
    free, held = generate(module, sizes=[8]), generate(module, sizes=[8], fix=furan, fix_atoms=[1, 2])
    places = places_of(module, 6, sizes=[8], fix=furan, fix_atoms=[1, 2])
    for one, other, place in zip(free, held, places, strict=True):
        rest = np.setdiff1d(np.arange(8), place)
        first, second = (
            np.linalg.norm(item.positions[rest[:1]] - item.positions[rest], axis=1) for item in (one, other)
        )
        assert not np.allclose(first, second, atol=1e-3)


def test_samples_depend_on_seed_and_index_alone(module: UniteModule, furan: Path) -> None:
    many = generate(module, fix=furan, fix_atoms=[1, 2])
    few = generate(module, 3, fix=furan, fix_atoms=[1, 2], batch_size=2)

    for one, other in zip(few, many, strict=False):
        assert one.atomic_numbers.tolist() == other.atomic_numbers.tolist()
        np.testing.assert_allclose(one.positions, other.positions, atol=1e-4)


def test_hydrogens_that_are_atoms_are_kept_where_they_are_named(furan: Path) -> None:
    module = make_module(hydrogens="explicit", max_atoms=12)
    hydroxyl = molecule_of("CO")  # C0, O1, hydrogens of carbon 2 3 4, of oxygen 5
    made = generate(module, fix=hydroxyl, fix_atoms=[0, 1, 5])

    for molecule in made:
        assert molecule.atomic_numbers[[0, 1, -1]].tolist() == [6, 8, 1]
    unnamed = read_part(hydroxyl, None, are_hydrogens_counted=False)
    assert unnamed.atomic_numbers.tolist() == [6, 8]


def test_a_superposed_set_of_points_is_no_mirror_image() -> None:
    torch.manual_seed(0)
    points = torch.randn(4, 3)
    turn = torch.from_numpy(Rotation.random(random_state=0).as_matrix()).float()
    there = torch.stack([points @ turn.T + 3.0, (points * torch.tensor([1.0, 1.0, -1.0])) @ turn.T])

    found = superposed(points, there)

    torch.testing.assert_close(found[0], there[0], atol=1e-5, rtol=0)
    distances = torch.cdist(points[None], points[None])[0]
    torch.testing.assert_close(torch.cdist(found, found), distances.expand(2, -1, -1), atol=1e-4, rtol=0)
    assert not torch.allclose(found[1], there[1], atol=0.1)


def test_what_cannot_be_kept_is_refused(module: UniteModule, furan: Path, tmp_path: Path) -> None:
    bromide, two = tmp_path / "bromide.sdf", tmp_path / "two.sdf"
    bromide.write_text(Chem.MolToMolBlock(molecule_of("CBr")))
    two.write_text((furan.read_text() + "$$$$\n") * 2)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"fix": furan, "fix_atoms": [0, 13]}, r"fix_atoms has 13, but .*furan.sdf has the atoms 0 .. 11"),
        ({"fix": furan, "fix_atoms": [1, 1]}, "fix_atoms names atom 1 twice"),
        ({"fix": furan, "fix_atoms": [0, 3]}, "the atoms 0, 3 of .* are in several pieces"),
        ({"fix": furan, "fix_atoms": [0, 6]}, "fix_atoms has 6, a hydrogen of .* counts hydrogens"),
        ({"fix": furan, "fix_atoms": []}, "fix_atoms names no atom"),
        ({"fix": furan, "sizes": [6]}, "sizes has 6, but the part has 6 atoms: nothing is left"),
        ({"fix": molecule_of("CCCCCCCCC")}, "the part has 9 atoms, and training data had 2 .. 9: nothing is left"),
        ({"fix": bromide}, "the part has Br, but this model knows C, N, O, F"),
        ({"fix": two}, "two.sdf has 2 molecules; it takes a file of one"),
        ({"fix": tmp_path / "none.sdf"}, "none.sdf: no such file"),
        ({"fix": Chem.MolFromSmiles("CCO")}, "without a conformer in space"),
        ({"fix": 3}, "fix is a int; it takes a file"),
        ({"fix_atoms": [0]}, "fix_atoms is given, but not fix"),
    ]
    for asked, message in refused:
        with pytest.raises(UserError, match=message):
            module.adapters["molecule"].wanted_template(2, Wanted(**asked))


def test_models_without_positions_and_other_modalities_keep_no_parts(furan: Path) -> None:
    graphs = make_module(positions=False, bonds=True).adapters["molecule"]
    with pytest.raises(UserError, match="this model has bonds: it takes positions alone"):
        graphs.wanted_template(2, Wanted(fix=furan))
    with pytest.raises(UserError, match="fix is given, but ImageAdapter keeps no parts"):
        tiny_image_adapter().wanted_template(2, Wanted(fix=furan))
