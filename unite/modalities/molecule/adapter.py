"""Molecules: PyG ``Batch`` in, latents of one register per atom, atom types, positions and bonds out.

The paper fixes explicit hydrogens, element and position, zero centre of mass and the latent width (arXiv:2603.22283,
section 4.3); how registers relate to atoms and the losses are ours. Two readings of an atom:

- ``hydrogens="explicit"``: every atom is a token; its type is its element.
- ``hydrogens="counted"``: *united atoms*: only heavy atoms are tokens; the type is element and number of hydrogens.

Three views of a molecule, by two booleans: ``positions`` (its shape; the paper), ``bonds`` (its graph, with formal
charges), or both. The encoder never sees a bond: atoms see theirs in a graph convolution before they become tokens.
The numbers of the atoms are places for the transformer (rotary, as for the paper's registers) and tell neighbours apart
in the convolution, so another order of the atoms is another input: what is learned depends on the order of the data.

Letters: B molecules, A atoms of the largest one, K registers, D width, T atom types.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from unite.errors import UserError, require
from unite.modalities.atoms import ATOMIC_NUMBERS, centre, draw_sizes, full_precision
from unite.modalities.base import Template
from unite.modalities.molecule.batches import known_largest
from unite.modalities.molecule.generated import GeneratedGraph, GeneratedMolecule, batch_of
from unite.modalities.molecule.layers import (
    BondReader,
    GraphConvolution,
    GraphPrediction,
    PairHead,
)
from unite.modalities.molecule.losses import reconstruction_terms
from unite.modalities.molecule.parts import PartKeepingMolecules, with_part_in_place
from unite.modalities.molecule.preparation import (
    MoleculePrediction,
    Preparation,
    PreparedMolecules,
    row_names,
    type_table,
    vocabulary,
)
from unite.nn.blocks import sinusoidal_embedding
from unite.nn.decoder import LatentDecoder
from unite.nn.generative_encoder import Tokens
from unite.nn.text import TextEncoder


class MoleculeAdapter(PartKeepingMolecules):
    """Molecules: element (and hydrogen count) of every atom, with its position, its bonds, or both.

    Args:
        positions: Whether molecules have positions.
        bonds: Whether molecules have bonds and formal charges; the datamodule must have them, too.
        hydrogens: ``explicit``: hydrogens are atoms. ``counted``: united atoms; the datamodule must count, too.
        elements: Symbols of the elements that occur; None for those of the data, which `unite fit` fills in (in Python,
            ``MoleculeAdapter(**datamodule.adapter_settings())`` does), and without data QM9's: H, C, N, O, F.
        max_atoms: Most tokens of a molecule; None as for ``elements``, without data 29. QM9 has 29 atoms, 9 of them
            heavy.
        registers_per_molecule: Number of registers, or None for one per atom.
        rotate: Rotate each training molecule at random.
        decoder_depth: Blocks of the decoder.
        decoder_width: Channels of the decoder; None for those of the encoder.
        decoder_heads: Attention heads of the decoder.
        decoder_gradient_checkpointing: Recompute the decoder's blocks in the backward pass instead of keeping their
            activations; the encoder has a switch of its own.
        position_weight: Weight of the squared error of the centred positions (Å squared, summed over x, y, z).
        distance_weight: Weight of the squared error of pair distances (Å squared).
        distance_cutoff: Pairs farther apart than this (Å) are left out of the distance term.
        bond_depth: Layers of the graph convolution.
        pair_width: Channels of a pair of atoms in the head of bonds. It costs A (A - 1) / 2 times as much for A atoms:
            with 64 channels 0.6 MB per molecule of 29 atoms in training, 21 MB for one of 200.
        max_charge: Largest formal charge of an atom, of either sign; None as for ``elements``, without data 1.
        bond_weight: Weight of the cross-entropy of bonds.
        none_weight: Weight, in that term, of a pair without a bond against one with.
        charge_weight: Weight of the cross-entropy of charges.
        types_from_bonds: Tell types and charges of the atoms beside their bonds, so that they agree: beside the true
            ones in the loss, beside the decoded ones elsewhere.
        properties: Properties of the data that molecules can be asked for by, such as gap; see the datamodule's.
        condition_dropout: Share of training molecules of which each property is hidden, for guidance, and as often all.
        text: What reads captions, such as :class:`~unite.nn.text.ByteTextEncoder`; None for a model without text.

    Raises:
        UserError: A setting is outside its range.
    """

    from_data: ClassVar[Mapping[str, Any]] = {"elements": ["H", "C", "N", "O", "F"], "max_atoms": 29, "max_charge": 1}
    for_data: ClassVar[tuple[str, ...]] = ("hydrogens", "positions", "bonds", "properties")
    adamw_parameters: ClassVar[tuple[str, ...]] = (
        "_embedding",
        "position_in",
        "counts_in",
        "_head",
    )
    size_counts: Tensor
    type_table: Tensor
    places: Tensor
    vocabulary_tensor: Tensor

    def __init__(
        self,
        positions: bool = True,
        bonds: bool = False,
        hydrogens: Literal["explicit", "counted"] = "explicit",
        elements: Sequence[str] | None = None,
        max_atoms: int | None = None,
        registers_per_molecule: int | None = None,
        rotate: bool = True,
        decoder_depth: int = 4,
        decoder_width: int | None = None,
        decoder_heads: int = 4,
        decoder_gradient_checkpointing: bool = False,
        position_weight: float = 1.0,
        distance_weight: float = 10.0,
        distance_cutoff: float = 3.0,
        bond_depth: int = 3,
        pair_width: int = 64,
        max_charge: int | None = None,
        bond_weight: float = 1.0,
        none_weight: float = 1.0,
        charge_weight: float = 1.0,
        types_from_bonds: bool = False,
        properties: Sequence[str] | None = None,
        condition_dropout: float = 0.1,
        text: TextEncoder | None = None,
    ) -> None:
        super().__init__()
        elements = self.from_data["elements"] if elements is None else elements
        max_atoms = self.from_data["max_atoms"] if max_atoms is None else max_atoms
        max_charge = self.from_data["max_charge"] if max_charge is None else max_charge
        require(positions or bonds, "positions and bonds are both false; set at least one of them to true")
        require(bonds or not types_from_bonds, "types_from_bonds is true, but bonds is false; set bonds to true, too")
        if unknown := [symbol for symbol in elements if symbol not in ATOMIC_NUMBERS]:
            raise UserError(f"elements has {unknown[0]!r}, which is no element")
        if registers_per_molecule is not None:
            require(
                registers_per_molecule >= 1,
                f"registers_per_molecule is {registers_per_molecule}; it must be at least 1, or null",
            )
        for name, value in {"max_atoms": max_atoms, "bond_depth": bond_depth, "pair_width": pair_width}.items():
            require(value >= 1, f"{name} is {value}; it must be at least 1")
        require(max_charge >= 0, f"max_charge is {max_charge}; it must not be negative")
        require(none_weight > 0, f"none_weight is {none_weight}; it must be above 0, or every pair becomes a bond")
        require(0 <= condition_dropout <= 1, f"condition_dropout is {condition_dropout}; it must lie in [0, 1]")
        self.properties = list(properties or ())
        self.condition_dropout = condition_dropout
        self.text = text
        self.positions = positions
        self.bonds = bonds
        self.hydrogens = hydrogens
        self.max_atoms = max_atoms
        self.registers_per_molecule = registers_per_molecule
        self.rotate = rotate
        self.decoder_depth = decoder_depth
        self.decoder_width = decoder_width
        self.decoder_heads = decoder_heads
        self.decoder_gradient_checkpointing = decoder_gradient_checkpointing
        self.position_weight = position_weight
        self.distance_weight = distance_weight
        self.distance_cutoff = distance_cutoff
        self.bond_depth = bond_depth
        self.pair_width = pair_width
        self.max_charge = max_charge
        self.bond_weight = bond_weight
        self.none_weight = none_weight
        self.charge_weight = charge_weight
        self.types_from_bonds = types_from_bonds
        self.vocabulary = vocabulary(elements, hydrogens)
        """Atomic number and hydrogen count of each type; the count is 0 where hydrogens are explicit."""
        leftover = f"elements is {list(elements)} and hydrogens is {hydrogens!r}, which leaves no type of atom"
        require(bool(self.vocabulary), leftover)
        self.preparation = Preparation(hydrogens, positions, bonds, max_atoms, max_charge)
        self._training_data_is_checked = False

    def build(self, width: int, latent_channels: int) -> None:
        """Make the layers; see the base class."""
        super().build(width, latent_channels)
        decoder_width = self.decoder_width or width
        require(decoder_width % 2 == 0, f"decoder_width is {decoder_width}; it must be even, for sines and cosines")
        num_registers = self.registers_per_molecule or self.max_atoms
        self.type_embedding = nn.Embedding(len(self.vocabulary), width)
        self.register_embedding = nn.Parameter(sinusoidal_embedding(torch.arange(num_registers), width))
        self.decoder = LatentDecoder(
            latent_channels,
            decoder_width,
            self.decoder_depth,
            self.decoder_heads,
            gradient_checkpointing=self.decoder_gradient_checkpointing,
        )
        self.type_head = nn.Linear(decoder_width, len(self.vocabulary))
        nn.init.normal_(self.type_embedding.weight, std=1.0)
        if self.positions:
            self.position_in = nn.Linear(3, width)
            self.position_head = nn.Linear(decoder_width, 3)
        if self.bonds:
            num_charges = 2 * self.max_charge + 1
            self.charge_embedding = nn.Embedding(num_charges, width)
            # Atoms tell their neighbours who they are, or the decoder could not know which of two like atoms is meant.
            self.place_embedding = nn.Embedding(self.max_atoms, width)
            self.graph_convolution = GraphConvolution(width, self.bond_depth)
            self.pairs = PairHead(decoder_width, self.pair_width)
            self.charge_head = nn.Linear(decoder_width, num_charges)
            if self.types_from_bonds:
                self.bond_reader = BondReader(decoder_width)

        self.register_buffer("size_counts", torch.zeros(self.max_atoms + 1, dtype=torch.long))
        self.register_buffer("type_table", type_table(self.vocabulary), persistent=False)
        places = sinusoidal_embedding(torch.arange(num_registers + self.max_atoms), decoder_width)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("vocabulary_tensor", torch.tensor(self.vocabulary), persistent=False)

    def row_names(self) -> dict[str, list[Hashable]]:
        """Types of atoms, charges and places, so that models of other elements and sizes can start from one another."""
        num_registers = self.registers_per_molecule or self.max_atoms
        return super().row_names() | row_names(self.vocabulary, self.max_charge, self.max_atoms, num_registers)

    # ------------------------------------------------------------------ data in

    def fit_statistics(self, datamodule: LightningDataModule | None) -> None:
        """Keep the histogram of training sizes, from which generation draws, and statistics of the properties.

        If the datamodule has ``training_molecules()``, all are checked here, and not again during training.

        Raises:
            UserError: The data does not fit the model; with ``training_molecules()`` also as in :meth:`prepare`.
        """
        if datamodule is None or not hasattr(datamodule, "size_histogram"):
            raise UserError("molecules need a datamodule with size_histogram(), from which new sizes are drawn")
        hydrogens = getattr(datamodule, "hydrogens", self.hydrogens)
        if hydrogens != self.hydrogens:
            raise UserError(
                f"hydrogens is {hydrogens!r} in the data but {self.hydrogens!r} in the adapter: set both to the same "
                "(init_args.hydrogens of the datamodule and of model.adapters.NAME)"
            )
        self.fit_properties(datamodule)
        histogram: Tensor = datamodule.size_histogram()
        if len(histogram) > self.max_atoms + 1 and histogram[self.max_atoms + 1 :].any():
            raise UserError(
                f"the data has molecules of {len(histogram) - 1} atoms, but max_atoms is {self.max_atoms}: raise it"
            )
        self.size_counts.zero_()
        self.size_counts[: len(histogram)] = histogram[: self.max_atoms + 1].to(self.size_counts)
        self._training_data_is_checked = False
        if hasattr(datamodule, "training_molecules"):
            for molecules in datamodule.training_molecules():
                self.preparation(molecules.to(self.size_counts.device), self.type_table)
            self._training_data_is_checked = True

    def prepare(self, samples: Batch | Data | Sequence[object]) -> PreparedMolecules:
        """Pad, centre and, in training, rotate the molecules of a PyG batch, or a list of SMILES and RDKit molecules.

        Raises:
            UserError: An atom type, a size, a bond or a charge that the model was not built for; a molecule without
                atoms or with a position that is not finite; with bonds, also one that comes in pieces or is charged in
                sum.
        """
        if not isinstance(samples, Batch):
            objects = [samples] if isinstance(samples, Data) else samples
            samples = batch_of(objects, self.positions, self.hydrogens).to(self.size_counts.device)
        # Looking at values makes a GPU wait. Training data that was looked at as a whole is not looked at again.
        is_checked = self.training and self._training_data_is_checked and known_largest(samples) is not None
        return self.preparation(samples, self.type_table, self.training and self.rotate, not is_checked)

    def tokens(self, prepared: PreparedMolecules) -> Tokens:
        """One token per atom: embedding of its type, aware of its bonds, plus a linear map of its position."""
        with full_precision(prepared.positions.device):
            values = self.type_embedding(prepared.types)  # (B, A, D)
            if prepared.graph is not None:
                values = values + self.charge_embedding(prepared.graph.charges + self.max_charge)
                values = values + self.place_embedding.weight[: values.shape[1]]
                values = self.graph_convolution(
                    values.flatten(0, 1), prepared.graph.edge_index, prepared.graph.edge_types
                ).view_as(values)
            if self.positions:
                values = values + self.position_in(prepared.positions)
        return Tokens(values, self._atom_positions(values.shape[1]), prepared.mask, prepared.is_full)

    def _atom_positions(self, num_atoms: int) -> Tensor:
        # With one register per atom, an atom sits where its register sits; else atoms come after the registers.
        start = self.registers_per_molecule or 0
        return torch.arange(start, start + num_atoms, device=self.size_counts.device)

    # ------------------------------------------------------------------ latents

    def template(self, prepared: PreparedMolecules) -> Template:
        """Numbers of atoms, and known properties."""
        return Template(
            prepared.mask.sum(dim=1),
            properties=self.known_properties(prepared.properties),
            captions=self.known_captions(prepared.captions),
            largest=prepared.mask.shape[1],
            is_full=prepared.is_full,
        )

    def draw_template(
        self, num_samples: int, labels: Sequence[int] | None = None, generator: torch.Generator | None = None
    ) -> Template:
        """Numbers of atoms drawn from the training histogram."""
        self.cycle_labels(num_samples, labels)
        return Template(draw_sizes(self.size_counts, num_samples, generator, "molecules"))

    def registers(self, template: Template) -> Tokens:
        """One register per atom, or a fixed number that are all real."""
        if self.registers_per_molecule is not None:
            values = self.register_embedding[None]
            return Tokens(values, torch.arange(values.shape[1], device=values.device))
        mask = template.mask
        num_atoms = mask.shape[1]
        values = self.register_embedding[None, :num_atoms]
        return Tokens(values, self._atom_positions(num_atoms), mask, template.is_full)

    # ------------------------------------------------------------------ data out

    def decode(self, latents: Tensor, template: Template) -> MoleculePrediction:
        """Types of the atoms, with centred positions, bonds and charges, or both; a part that is given in its place."""
        mask = template.mask  # (B, A)
        num_latents = latents.shape[1]
        if self.registers_per_molecule is None:
            hidden = self.decoder(latents, self.places[:num_latents], None if template.is_full else mask)
        else:
            # Atoms without a latent of their own ask the registers: one query per atom, told apart by its place.
            queries = self.places[num_latents : num_latents + mask.shape[1]].expand(len(mask), -1, -1)
            key_mask = None if template.is_full else F.pad(mask, (num_latents, 0), value=True)
            hidden = self.decoder(latents, self.places[:num_latents], key_mask, queries)
        with full_precision(hidden.device):
            hidden = hidden.float()
            positions = hidden.new_zeros(*mask.shape, 3)
            if self.positions:
                positions = centre(self.position_head(hidden), mask)
            bond_logits = self.pairs(hidden) if self.bonds else None
            bonds = None if bond_logits is None else bond_logits.argmax(dim=-1)
            prediction = self._predicted(hidden, positions, mask, bond_logits, bonds)
            return prediction if template.part is None else with_part_in_place(prediction, template.part)

    def _predicted(
        self, hidden: Tensor, positions: Tensor, mask: Tensor, bond_logits: Tensor | None, bonds: Tensor | None
    ) -> MoleculePrediction:
        """Types, and charges where there are bonds, of decoded atoms (B, A, D), beside these bonds (B, P)."""
        atoms = self.bond_reader(hidden, bonds, mask) if self.types_from_bonds else hidden
        graph = None if bond_logits is None else GraphPrediction(bond_logits, self.charge_head(atoms))
        return MoleculePrediction(self.type_head(atoms), positions, mask, graph, hidden)

    def reconstruction_loss(self, prediction: MoleculePrediction, prepared: PreparedMolecules) -> dict[str, Tensor]:
        """Cross-entropy of types, then what the view has.

        Positions: squared errors of positions and of the distances of near pairs. Bonds: cross-entropies of bonds
        (:func:`~unite.modalities.molecule.losses.bond_loss`) and of charges.
        """
        if self.types_from_bonds:
            # Types that had to agree with wrong bonds would learn to distrust all of them.
            assert prediction.atoms is not None
            assert prediction.graph is not None
            assert prepared.graph is not None
            with full_precision(prediction.atoms.device):
                prediction = self._predicted(
                    prediction.atoms,
                    prediction.positions,
                    prediction.mask,
                    prediction.graph.bond_logits,
                    prepared.graph.bonds,
                )
        return reconstruction_terms(
            prediction, prepared, self.positions, self.distance_cutoff, self.max_charge, self.none_weight
        )

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weights of the terms of :meth:`reconstruction_loss`."""
        return {
            "types": 1.0,
            "positions": self.position_weight,
            "distances": self.distance_weight,
            "bonds": self.bond_weight,
            "charges": self.charge_weight,
        }

    def finish(
        self, prediction: MoleculePrediction, template: Template
    ) -> list[GeneratedMolecule] | list[GeneratedGraph]:
        """Molecules without padding: atoms with positions, and bonds in ``graph`` if there are any; or graphs alone."""
        kinds = self.vocabulary_tensor[prediction.types]
        return self.preparation.finished(kinds, prediction.positions, prediction.graph, template.sizes)

    def originals(self, prepared: PreparedMolecules) -> list[GeneratedMolecule] | list[GeneratedGraph]:
        """The molecules as they were encoded."""
        kinds = self.vocabulary_tensor[prepared.types]
        return self.preparation.finished(kinds, prepared.positions, prepared.graph, prepared.mask.sum(dim=1))

    def annotations(self, samples: Batch | Data) -> dict[str, Tensor]:
        """Numbers of the molecules in the data set, and their properties ``y`` if they have some."""
        return {name: samples[name] for name in ("molecule_id", "y") if name in samples}
