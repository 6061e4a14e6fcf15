"""The molecule adapter: geometry, types, sizes, and what it refuses."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data

from unite.errors import UserError
from unite.modalities.atoms import centre, pair_distances, random_rotations
from unite.modalities.base import Template
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.modalities.molecule.layers import pairs_to_matrix
from unite.modalities.molecule.preparation import MoleculePrediction, PreparedMolecules
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder

WATER = Data(z=torch.tensor([8, 1, 1]), pos=torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.8, 0.7], [0.0, -0.8, 0.7]]))
METHANOL = Data(
    z=torch.tensor([6, 8]), pos=torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 4.4]]), num_hydrogens=torch.tensor([3, 1])
)


def built(**settings: object) -> MoleculeAdapter:
    adapter = MoleculeAdapter(**settings)  # type: ignore[arg-type]
    adapter.build(width=32, latent_channels=4)
    return adapter


@given(st.integers(0, 1000))
def test_rotations_are_proper(seed: int) -> None:
    torch.manual_seed(seed)
    rotations = random_rotations(4, torch.device("cpu"))
    identity = torch.eye(3).expand(4, 3, 3)
    torch.testing.assert_close(rotations @ rotations.mT, identity, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(4), atol=1e-5, rtol=0)


def test_rotations_cover_the_sphere_evenly() -> None:
    pole = random_rotations(20_000, torch.device("cpu"))[:, 2]
    assert pole.mean(0).abs().max() < 0.02
    torch.testing.assert_close(pole.T @ pole / len(pole), torch.eye(3) / 3, atol=0.02, rtol=0)


@given(st.integers(0, 1000))
def test_centring_moves_the_mean_of_real_atoms_to_zero(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randn(2, 4, 3, generator=generator)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    centred = centre(positions, mask)
    torch.testing.assert_close(centred.sum(1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    assert not centred[~mask].any()
    torch.testing.assert_close(
        pair_distances(centred)[0, 0, 1], (positions[0, 0] - positions[0, 1]).norm(), atol=1e-5, rtol=1e-5
    )


def test_pair_distances_have_a_finite_gradient_at_zero() -> None:
    positions = torch.zeros(1, 3, 3, requires_grad=True)
    pair_distances(positions).sum().backward()
    assert positions.grad is not None
    assert positions.grad.isfinite().all()


def test_vocabulary_of_united_atoms_has_the_13_classes_of_qm9() -> None:
    assert len(MoleculeAdapter(hydrogens="counted").vocabulary) == 13
    assert MoleculeAdapter(hydrogens="explicit").vocabulary == [(1, 0), (6, 0), (7, 0), (8, 0), (9, 0)]


@pytest.mark.parametrize(("hydrogens", "molecule"), [("explicit", WATER), ("counted", METHANOL)])
def test_types_survive_the_way_in_and_out(hydrogens: str, molecule: Data) -> None:
    adapter = built(hydrogens=hydrogens).eval()
    prepared = adapter.prepare(Batch.from_data_list([molecule]))
    logits = torch.nn.functional.one_hot(prepared.types, len(adapter.vocabulary)).float()
    prediction = MoleculePrediction(logits, prepared.positions, prepared.mask)
    (finished,) = adapter.finish(prediction, adapter.template(prepared))
    assert finished.atomic_numbers.tolist() == molecule.z.tolist()
    if hydrogens == "counted":
        assert finished.num_hydrogens is not None
        assert finished.num_hydrogens.tolist() == molecule.num_hydrogens.tolist()
    else:
        assert finished.num_hydrogens is None


def test_molecules_are_rotated_in_training_only() -> None:
    adapter = built()
    batch = Batch.from_data_list([WATER])
    adapter.eval()
    still = adapter.prepare(batch).positions
    torch.testing.assert_close(adapter.prepare(batch).positions, still)
    adapter.train()
    turned = adapter.prepare(batch).positions
    assert not torch.allclose(turned, still)
    torch.testing.assert_close(pair_distances(turned), pair_distances(still), atol=1e-5, rtol=1e-5)


def test_loss_of_a_perfect_prediction_is_zero_and_ignores_padding() -> None:
    adapter = built().eval()
    prepared = adapter.prepare(Batch.from_data_list([WATER, Data(z=torch.tensor([8]), pos=torch.zeros(1, 3))]))
    logits = 100 * torch.nn.functional.one_hot(prepared.types, 5).float()
    positions = torch.where(prepared.mask[..., None], prepared.positions, torch.tensor(1e3))
    logits[1, 1:] = 1e3 * torch.randn(2, 5)
    terms = adapter.reconstruction_loss(MoleculePrediction(logits, positions, prepared.mask), prepared)
    for name, term in terms.items():
        assert term < 1e-6, name


def test_distance_term_is_the_mean_squared_error_of_near_pairs() -> None:
    adapter = built(distance_cutoff=1.5)
    true = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0]]])
    predicted = torch.tensor([[[0.0, 0, 0], [1.2, 0, 0], [9.0, 0, 0]]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    terms = adapter.reconstruction_loss(
        MoleculePrediction(torch.zeros(1, 3, 5), predicted, mask),
        PreparedMolecules(torch.zeros(1, 3, dtype=torch.long), true, mask),
    )
    assert terms["distances"] == pytest.approx(0.04, abs=1e-5)


def test_sizes_are_drawn_from_the_training_histogram(tiny_csv: Path, tmp_path: Path) -> None:
    data = QM9DataModule(str(tmp_path), batch_size=4, csv_files=[str(tiny_csv)])
    data.setup("fit")
    adapter = built()
    adapter.fit_statistics(data)
    sizes = adapter.draw_template(4000, generator=torch.Generator().manual_seed(0)).sizes
    expected = data.size_histogram().float()
    drawn = torch.bincount(sizes, minlength=len(expected)).float()
    torch.testing.assert_close(drawn / drawn.sum(), expected / expected.sum(), atol=0.03, rtol=0)


def test_training_data_is_checked_as_a_whole_before_training(tiny_csv: Path, tmp_path: Path) -> None:
    data = QM9DataModule(str(tmp_path), batch_size=4, csv_files=[str(tiny_csv)])
    data.setup("fit")
    for settings, message in (
        ({"elements": ["H", "C", "O", "F"]}, "element 7 is not among"),
        ({"max_atoms": 5}, "max_atoms is 5"),
        ({"max_atoms": 9, "hydrogens": "counted"}, "hydrogens is 'explicit' in the data but 'counted' in the adapter"),
        ({"bonds": True}, "set data.init_args.bonds to true"),
    ):
        with pytest.raises(UserError, match=message):
            built(**settings).fit_statistics(data)
    graphs = QM9DataModule(str(tmp_path), bonds=True, csv_files=[str(tiny_csv)])
    graphs.setup("fit")
    with pytest.raises(UserError, match="but max_charge is 0"):
        built(bonds=True, max_charge=0).fit_statistics(graphs)


def test_what_is_no_training_data_is_checked_after_it(tiny_csv: Path, tmp_path: Path) -> None:
    data = QM9DataModule(str(tmp_path), batch_size=4, csv_files=[str(tiny_csv)])
    data.setup("fit")
    adapter = built()
    adapter.fit_statistics(data)
    unknown = Data(z=torch.tensor([16]), pos=torch.zeros(1, 3))
    refuse(adapter.train(), unknown, "element 16")
    own = next(iter(data.train_dataloader()))["molecule"]
    own.z[0] = 16
    with pytest.raises(UserError, match="element 16"):
        adapter.eval().prepare(own)


@pytest.mark.parametrize("hydrogens", ["explicit", "counted"])
def test_atoms_come_to_their_places_whoever_made_the_batch(tiny_csv: Path, tmp_path: Path, hydrogens: str) -> None:
    data = QM9DataModule(str(tmp_path), batch_size=4, hydrogens=hydrogens, bonds=True, csv_files=[str(tiny_csv)])  # type: ignore[arg-type]
    data.setup("fit")
    adapter = built(bonds=True, hydrogens=hydrogens, rotate=False)
    adapter.fit_statistics(data)
    own = next(iter(data.train_dataloader()))["molecule"]
    molecules = own.to_data_list()
    for batch in (own, Batch.from_data_list(molecules)):
        prepared = adapter.prepare(batch)
        assert prepared.graph is not None
        matrices = pairs_to_matrix(prepared.graph.bonds, prepared.mask.shape[1])
        assert prepared.mask.sum(1).tolist() == [len(molecule.z) for molecule in molecules]
        assert adapter.template(prepared).mask.equal(prepared.mask)
        for i, molecule in enumerate(molecules):
            size = len(molecule.z)
            kinds = adapter.vocabulary_tensor[prepared.types[i, :size]]
            assert kinds[:, 0].tolist() == molecule.z.tolist()
            torch.testing.assert_close(prepared.positions[i, :size], molecule.pos - molecule.pos.mean(0))
            assert prepared.graph.charges[i, :size].tolist() == molecule.charge.tolist()
            bonds = torch.zeros(size, size, dtype=torch.long)
            bonds[molecule.edge_index[0], molecule.edge_index[1]] = molecule.edge_attr
            assert matrices[i, :size, :size].equal(bonds)
            assert not prepared.types[i, size:].any()
            assert not prepared.positions[i, size:].any()
            assert not prepared.graph.charges[i, size:].any()


def test_fixed_registers_are_all_real_whatever_the_size() -> None:
    adapter = built(registers_per_molecule=3)
    registers = adapter.registers(Template(torch.tensor([2, 9])))
    assert registers.values.shape == (1, 3, 32)
    assert registers.mask is None
    prediction = adapter.decode(torch.randn(2, 3, 4), Template(torch.tensor([2, 9])))
    assert prediction.positions.shape == (2, 9, 3)


def refuse(adapter: MoleculeAdapter, molecule: Data, message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapter.prepare(Batch.from_data_list([molecule]))


def test_unknown_atoms_and_sizes_are_refused_by_name() -> None:
    sulfur = Data(z=torch.tensor([16]), pos=torch.zeros(1, 3))
    refuse(built(), sulfur, "element 16")
    refuse(built(max_atoms=2), WATER, "3 atoms, but max_atoms is 2")
    refuse(built(hydrogens="counted"), WATER, "carry no num_hydrogens")
    refuse(built(hydrogens="explicit"), METHANOL, "united atoms")
    crowded = Data(z=torch.tensor([6]), pos=torch.zeros(1, 3), num_hydrogens=torch.tensor([5]))
    refuse(built(hydrogens="counted"), crowded, "element 6 with 5 hydrogens")
    many = Data(z=torch.tensor([6]), pos=torch.zeros(1, 3), num_hydrogens=torch.tensor([50]))
    refuse(built(hydrogens="counted"), many, "element 6 with 50 hydrogens")


def test_empty_and_endless_molecules_are_refused_by_number() -> None:
    empty = Data(z=torch.zeros(0, dtype=torch.long), pos=torch.zeros(0, 3))
    far = Data(z=torch.tensor([8, 1]), pos=torch.tensor([[0.0, 0, 0], [0, torch.inf, 0]]))
    for molecule, message in ((empty, "molecule 1 of the batch has no atoms"), (far, "molecule 1 .* is not finite")):
        with pytest.raises(UserError, match=message):
            built().prepare(Batch.from_data_list([WATER, molecule]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"elements": ["C", "Xx"]}, "'Xx', which is no element"),
        ({"registers_per_molecule": 0}, "registers_per_molecule is 0"),
        ({"max_atoms": 0}, "max_atoms is 0"),
        ({"elements": ["H"], "hydrogens": "counted"}, "no type of atom"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MoleculeAdapter(**settings)  # type: ignore[arg-type]


def test_an_untrained_model_does_not_guess_sizes() -> None:
    with pytest.raises(UserError, match="has seen no data"):
        built().draw_template(3)


def test_labels_are_refused_without_classes(tmp_path: Path) -> None:
    adapter = built()
    adapter.size_counts[3] = 1
    with pytest.raises(UserError, match="without classes"):
        adapter.draw_template(3, labels=[1])


def test_a_single_molecule_of_any_float_type_will_do() -> None:
    adapter = built().eval()
    single = Data(z=WATER.z, pos=WATER.pos.double())
    prepared = adapter.prepare(single)
    assert prepared.positions.dtype == torch.float32
    torch.testing.assert_close(prepared.positions, adapter.prepare(Batch.from_data_list([WATER])).positions)


def test_mixed_precision_does_not_round_positions() -> None:
    adapter = built().eval()
    prepared = adapter.prepare(WATER)
    template = adapter.template(prepared)
    latents = torch.randn(1, 3, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tokens = adapter.tokens(prepared)
        prediction = adapter.decode(latents, template)
    assert tokens.values.dtype == prediction.positions.dtype == prediction.type_logits.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(tokens.values, adapter.tokens(prepared).values, atol=0, rtol=0)


def test_odd_decoder_widths_and_loaders_without_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="decoder_width is 33"):
        built(decoder_width=33, decoder_heads=3)
    with pytest.raises(UserError, match="size_histogram"):
        built().fit_statistics(None)


def test_guidance_is_refused_without_classes() -> None:
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=1, width=32, num_heads=2)
    module = UniteModule(encoder, {"molecule": MoleculeAdapter()})
    with pytest.raises(UserError, match=r"guidance_scale is 2\.0, but this model was trained without classes"):
        module.generate("molecule", 2, guidance_scale=2.0)
