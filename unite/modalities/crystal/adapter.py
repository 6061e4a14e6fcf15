"""Crystals: elements, places on the torus and a cell in, latents of one register per atom, and the same out.

The paper trains MP20 with its size S and says what it measures (arXiv:2603.22283, appendix C.2), not how a crystal
becomes tokens; that, the heads and the losses are ours. Letters: B crystals, A atoms of the largest one, D width.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import pi
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor, nn
from torchmetrics import Metric

from unite.errors import UserError, require, require_packages
from unite.modalities.atoms import draw_sizes, full_precision
from unite.modalities.base import FileScores, ModalityAdapter, Template
from unite.modalities.crystal.crystal import EXTRA, Crystal
from unite.modalities.crystal.data.table import CrystalBatch
from unite.modalities.crystal.elements import MAX_ELEMENT, SYMBOLS, group, period
from unite.modalities.crystal.files.drawing import draw_cells
from unite.modalities.crystal.files.gallery import gallery_of
from unite.modalities.crystal.files.writing import write_crystals
from unite.modalities.crystal.metrics.counts import verdict
from unite.modalities.crystal.metrics.generation import CrystalGenerationMetrics
from unite.modalities.crystal.metrics.reconstruction import CrystalReconstructionMetrics
from unite.modalities.crystal.metrics.scores import score_crystals
from unite.modalities.crystal.preparation import (
    CrystalPrediction,
    PreparedCrystals,
    as_circles,
    batch_of,
    cell_features,
    cell_of,
    finished,
    read_formula,
    shares_of_elements,
    shuffled,
    waves,
)
from unite.modalities.gallery import Gallery
from unite.modalities.template import Wanted
from unite.nn.blocks import sinusoidal_embedding
from unite.nn.decoder import LatentDecoder
from unite.nn.generative_encoder import Tokens

MIN_SPREAD = 0.02
"""Least standard deviation that features of cells are divided by: angles that are all alike have none."""


class CrystalAdapter(ModalityAdapter):
    """Crystals: the element of every atom, its place in the cell, and the cell.

    An atom is a token: its element, with its row and column of the periodic table, the waves of its coordinates, and
    the cell, which all atoms see. Coordinates begin at the first atom and the cell is lengths and angles, so
    translations, rotations and the choice of periodic images change nothing. The order of the atoms is that of the
    data; those that come with the package have them by electronegativity.

    Args:
        max_atoms: Most atoms of a cell.
        shuffle: Give each training crystal its atoms in random order.
        num_frequencies: Sines and cosines along each cell vector that embed the place of an atom, of 1 to this many
            periods in a cell.
        decoder_depth: Blocks of the decoder.
        decoder_width: Channels of the decoder; None for those of the encoder.
        decoder_heads: Attention heads of the decoder.
        type_weight: Weight of the cross-entropy of elements.
        position_weight: Weight of the squared error of places (Å squared, along the cell vectors, summed over them).
        lengths_weight: Weight of the squared error of the logarithms of the cell's lengths, standardised.
        angles_weight: Weight of the squared error of the cell's angles, standardised.
        properties: Properties of the data that crystals can be asked for by; those that a crystal lacks are absent.
        composition: Whether crystals can be asked for by a formula.
        condition_dropout: Share of training crystals of which each condition is hidden, for guidance, and as often all.

    Raises:
        UserError: A setting is outside its range.
    """

    adamw_parameters: ClassVar[tuple[str, ...]] = ("_embedding", "_in", "_head")
    size_counts: Tensor
    element_counts: Tensor
    cell_mean: Tensor
    cell_spread: Tensor
    places: Tensor
    table_places: Tensor

    def __init__(
        self,
        max_atoms: int = 20,
        shuffle: bool = False,
        num_frequencies: int = 4,
        decoder_depth: int = 4,
        decoder_width: int | None = None,
        decoder_heads: int = 4,
        type_weight: float = 1.0,
        position_weight: float = 1.0,
        lengths_weight: float = 1.0,
        angles_weight: float = 1.0,
        properties: Sequence[str] | None = None,
        composition: bool = False,
        condition_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in {"max_atoms": max_atoms, "num_frequencies": num_frequencies}.items():
            require(value >= 1, f"{name} is {value}; it must be at least 1")
        require(0 <= condition_dropout <= 1, f"condition_dropout is {condition_dropout}; it must lie in [0, 1]")
        self.properties = list(properties or ())
        self.composition = composition
        self.condition_dropout = condition_dropout
        self.max_atoms = max_atoms
        self.shuffle = shuffle
        self.num_frequencies = num_frequencies
        self.decoder_depth = decoder_depth
        self.decoder_width = decoder_width
        self.decoder_heads = decoder_heads
        self.type_weight = type_weight
        self.position_weight = position_weight
        self.lengths_weight = lengths_weight
        self.angles_weight = angles_weight

    def build(self, width: int, latent_channels: int) -> None:
        """Make the layers; see the base class."""
        super().build(width, latent_channels)
        decoder_width = self.decoder_width or width
        require(decoder_width % 2 == 0, f"decoder_width is {decoder_width}; it must be even, for sines and cosines")
        self.type_embedding = nn.Embedding(MAX_ELEMENT + 1, width)
        self.period_embedding = nn.Embedding(8, width)
        self.group_embedding = nn.Embedding(19, width)
        for embedding in (self.type_embedding, self.period_embedding, self.group_embedding):
            nn.init.normal_(embedding.weight, std=1.0)
        self.place_in = nn.Linear(6 * self.num_frequencies, width)
        self.cell_in = nn.Linear(6, width)
        self.register_embedding = nn.Parameter(sinusoidal_embedding(torch.arange(self.max_atoms), width))
        self.decoder = LatentDecoder(latent_channels, decoder_width, self.decoder_depth, self.decoder_heads)
        self.type_head = nn.Linear(decoder_width, MAX_ELEMENT + 1)
        self.period_head = nn.Linear(decoder_width, 8)
        self.group_head = nn.Linear(decoder_width, 19)
        self.place_head = nn.Linear(decoder_width, 6)
        self.cell_head = nn.Linear(decoder_width, 6)

        self.register_buffer("size_counts", torch.zeros(self.max_atoms + 1, dtype=torch.long))
        self.register_buffer("element_counts", torch.zeros(MAX_ELEMENT + 1, dtype=torch.long))
        self.register_buffer("cell_mean", torch.tensor([1.1, 1.1, 1.1, pi / 2, pi / 2, pi / 2]))
        self.register_buffer("cell_spread", torch.full((6,), 0.2))
        places = sinusoidal_embedding(torch.arange(self.max_atoms), decoder_width)
        self.register_buffer("places", places, persistent=False)
        table = torch.tensor([[period(z), group(z)] for z in range(MAX_ELEMENT + 1)])
        self.register_buffer("table_places", table, persistent=False)  # (E + 1, 2)

    # ------------------------------------------------------------------ data in

    def fit_statistics(self, datamodule: LightningDataModule | None) -> None:
        """Keep what generation needs of the training crystals: how many atoms, which elements, what cells.

        Raises:
            UserError: The datamodule cannot show its training crystals, or they are too large.
        """
        if datamodule is None or not hasattr(datamodule, "training_crystals"):
            raise UserError("crystals need a datamodule with training_crystals(), from which new sizes are drawn")
        crystals: CrystalBatch = datamodule.training_crystals()
        self._require_size(int(crystals["num_atoms"].max()))
        sizes, numbers = crystals["num_atoms"], crystals["atomic_numbers"]
        self.size_counts.copy_(sizes.bincount(minlength=self.max_atoms + 1))
        self.element_counts.copy_(numbers[numbers > 0].bincount(minlength=MAX_ELEMENT + 1))
        if self.property_embedding is not None:
            known = [name for name, values in crystals.items() if values.is_floating_point() and values.dim() == 1]
            for name in self.properties:
                require(name in known, f"properties has {name!r}, but the data has {', '.join(known) or 'none'}")
            conditions = self._conditions(crystals)
            assert conditions is not None
            self.property_embedding.fit_statistics(conditions)
        features = cell_features(crystals["cell"].double(), sizes)
        self.cell_mean.copy_(features.mean(dim=0))
        self.cell_spread.copy_(features.std(dim=0).nan_to_num().clamp(min=MIN_SPREAD))

    def _require_size(self, num_atoms: int) -> None:
        require(
            num_atoms <= self.max_atoms, f"a crystal of {num_atoms} atoms, but max_atoms is {self.max_atoms}: raise it"
        )

    def prepare(self, samples: CrystalBatch | Sequence[object]) -> PreparedCrystals:
        """Crystals from their first atom on, out of a batch, or a list of pymatgen structures and the like.

        Raises:
            UserError: A crystal is too large; one of a list is none, or has an element that the training data had not.
        """
        if not isinstance(samples, dict):
            samples = batch_of(samples)
            # Of a data set, a few validation crystals may have an element that no training crystal has.
            self._require_known(samples["atomic_numbers"].to(self.element_counts.device))
        conditions = self._conditions(samples)
        samples = {name: samples[name].to(self.cell_mean.device) for name in ("num_atoms", *_FIELDS)}
        numbers, fractional, sizes = samples["atomic_numbers"], samples["fractional"], samples["num_atoms"]
        num_atoms = numbers.shape[1]
        self._require_size(num_atoms)
        mask = torch.arange(num_atoms, device=sizes.device) < sizes[:, None]  # (B, A)
        if self.training and self.shuffle:
            numbers, fractional = shuffled(numbers, fractional, mask)
        fractional = ((fractional - fractional[:, :1]) % 1.0) * mask[..., None]
        features = (cell_features(samples["cell"], sizes) - self.cell_mean) / self.cell_spread
        return PreparedCrystals(numbers, fractional, features, samples["cell"][:, :3], mask, conditions=conditions)

    def condition_columns(self) -> dict[str, int]:
        """The properties, then the shares of the elements."""
        return super().condition_columns() | ({"composition": MAX_ELEMENT + 1} if self.composition else {})

    def _conditions(self, samples: CrystalBatch) -> Tensor | None:
        """Columns of the conditions of samples, shape (B, P), NaN where one is absent; None for a model without any."""
        if not self.condition_columns():
            return None
        numbers = samples["atomic_numbers"]
        absent = torch.full((len(numbers),), torch.nan, device=numbers.device)
        columns = [samples.get(name, absent)[:, None] for name in self.properties]
        if self.composition:
            columns.append(shares_of_elements(numbers))
        return torch.cat(columns, dim=1).to(self.cell_mean.device)

    def _require_known(self, numbers: Tensor) -> None:
        counts = self.element_counts
        unknown = (numbers > 0) & (counts[numbers] == 0)
        if bool(counts.any()) and bool(unknown.any()):
            symbol = SYMBOLS[int(numbers[unknown][0])]
            known = ", ".join(SYMBOLS[z] for z in counts.nonzero()[:, 0].tolist())
            raise UserError(f"an atom of {symbol}, which this model's training data had not; it knows {known}")

    def tokens(self, prepared: PreparedCrystals) -> Tokens:
        """One token per atom: element, row and column of the periodic table, place in the cell, and the cell."""
        with full_precision(prepared.fractional.device):
            rows, columns = self.table_places[prepared.atomic_numbers].unbind(-1)
            values = self.type_embedding(prepared.atomic_numbers)  # (B, A, D)
            values = values + self.period_embedding(rows) + self.group_embedding(columns)
            values = values + self.place_in(waves(prepared.fractional, self.num_frequencies))
            values = values + self.cell_in(prepared.cell)[:, None]
        return Tokens(values, self._atom_positions(values.shape[1]), prepared.mask, prepared.is_full)

    def _atom_positions(self, num_atoms: int) -> Tensor:
        # An atom sits where its register sits.
        return torch.arange(num_atoms, device=self.cell_mean.device)

    # ------------------------------------------------------------------ latents

    def template(self, prepared: PreparedCrystals) -> Template:
        """Numbers of atoms, and known conditions."""
        return Template(
            prepared.mask.sum(dim=1),
            properties=prepared.conditions,
            largest=prepared.mask.shape[1],
            is_full=prepared.is_full,
        )

    def draw_template(
        self, num_samples: int, labels: Sequence[int] | None = None, generator: torch.Generator | None = None
    ) -> Template:
        """Numbers of atoms drawn from the training histogram."""
        self.cycle_labels(num_samples, labels)
        return Template(draw_sizes(self.size_counts, num_samples, generator, "crystals"))

    def wanted_template(self, num_samples: int, wanted: Wanted, generator: torch.Generator | None = None) -> Template:
        """As of all adapters; of a composition, cells of whole formulas, in the sizes that the training data had.

        Raises:
            UserError: The model knows no such class, size, property or element.
        """
        template = super().wanted_template(num_samples, wanted, generator)
        if wanted.composition is None:
            return template
        formula = read_formula(wanted.composition)
        self._require_known(formula[None])
        counts = self.size_counts.clone()
        counts[torch.arange(len(counts)) % len(formula) != 0] = 0
        if wanted.sizes is not None:
            allowed = torch.tensor(list(wanted.sizes))
            counts = torch.zeros_like(counts).index_fill(0, allowed, 1) * counts.sign()
        asked = f"composition {wanted.composition} has {len(formula)} atoms"
        require(bool(counts.any()), f"{asked}, but no cell of a multiple of that was in the training data or in sizes")
        properties = template.properties
        if properties is None:
            properties = torch.full((num_samples, sum(self.condition_columns().values())), torch.nan)
        properties[:, -MAX_ELEMENT - 1 :] = shares_of_elements(formula[None])
        return replace(template, sizes=draw_sizes(counts, num_samples, generator, "crystals"), properties=properties)

    def registers(self, template: Template) -> Tokens:
        """One register per atom."""
        mask = template.mask
        num_atoms = mask.shape[1]
        values = self.register_embedding[None, :num_atoms]
        return Tokens(values, self._atom_positions(num_atoms), mask, template.is_full)

    # ------------------------------------------------------------------ data out

    def decode(self, latents: Tensor, template: Template) -> CrystalPrediction:
        """Elements and places of the atoms, and the cell from the mean of the decoder's outputs."""
        mask = template.mask  # (B, A)
        hidden = self.decoder(latents, self.places[: latents.shape[1]], None if template.is_full else mask)
        with full_precision(hidden.device):
            hidden = hidden.float()
            # An element is embedded by itself and by its row and column, so that rare ones learn from their neighbours.
            logits = self.type_head(hidden)
            logits = logits + self.period_head(hidden)[..., self.table_places[:, 0]]
            logits = logits + self.group_head(hidden)[..., self.table_places[:, 1]]
            weights = mask[..., None].float()
            mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
            circles = self.place_head(hidden).unflatten(-1, (3, 2))
            return CrystalPrediction(logits, circles, self.cell_head(mean), mask)

    def reconstruction_loss(self, prediction: CrystalPrediction, prepared: PreparedCrystals) -> dict[str, Tensor]:
        """Cross-entropy of elements; squared errors of places, and of lengths and angles of the cell.

        Places are compared as points of a circle whose circumference is the length of the cell vector: near the truth
        the error is that of the place in Å, and a place and its periodic images are one.
        """
        mask = prepared.mask
        types = torch.where(mask, prepared.atomic_numbers, -100)
        chords = (prediction.circles - as_circles(prepared.fractional)).square().sum(dim=-1)  # (B, A, 3)
        squared = (chords * (prepared.lengths[:, None] / (2 * pi)).square()).sum(dim=-1)
        cell_error = (prediction.cell - prepared.cell).square()
        return {
            "types": F.cross_entropy(prediction.type_logits.transpose(1, 2), types, ignore_index=-100),
            "positions": (squared * mask).sum() / mask.sum(),
            "lengths": cell_error[:, :3].mean(),
            "angles": cell_error[:, 3:].mean(),
        }

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weights of the terms of :meth:`reconstruction_loss`."""
        return {
            "types": self.type_weight,
            "positions": self.position_weight,
            "lengths": self.lengths_weight,
            "angles": self.angles_weight,
        }

    def finish(self, prediction: CrystalPrediction, template: Template) -> list[Crystal]:
        """Crystals of the most likely elements, of those that the training data had."""
        counts = self.element_counts if bool(self.element_counts.any()) else self.table_places[:, 0]
        logits = prediction.type_logits.masked_fill(counts == 0, -torch.inf)
        cell = cell_of(prediction.cell * self.cell_spread + self.cell_mean, template.sizes)
        return finished(logits.argmax(dim=-1), prediction.fractional, cell, template.sizes)

    def originals(self, prepared: PreparedCrystals) -> list[Crystal]:
        """The crystals as they were encoded, their first atom at the origin."""
        sizes = prepared.mask.sum(dim=1)
        cell = cell_of(prepared.cell * self.cell_spread + self.cell_mean, sizes)
        return finished(prepared.atomic_numbers, prepared.fractional, cell, sizes)

    def are_valid(self, objects: Sequence[Crystal]) -> list[bool]:
        """Whether structure and composition are valid, see :class:`CrystalGenerationMetrics`; needs smact."""
        require_packages("validity of crystals", EXTRA, "pymatgen.core", "smact")
        return [verdict(crystal) is None for crystal in objects]

    def annotations(self, samples: CrystalBatch) -> dict[str, Tensor]:
        """Rows of the crystals in their table, and their properties by name."""
        return {name: value for name, value in samples.items() if name not in ("num_atoms", *_FIELDS)}

    def draw(self, objects: Sequence[Crystal]) -> Image.Image:
        """A grid of cells with their atoms and bonds."""
        return draw_cells(objects)

    def save(self, objects: Sequence[Crystal], folder: Path) -> list[Path]:
        """Write ``samples.cif`` and ``samples.extxyz``."""
        return write_crystals(objects, folder)

    def gallery(self, folder: Path, originals: Path | None = None, most: int = 1000) -> Gallery | None:
        """What :meth:`save` wrote, for ``unite report``: cells in space with bonds and edges; needs pymatgen."""
        return gallery_of(folder, originals, most)

    def generation_metric(self, datamodule: LightningDataModule | None) -> Metric:
        """Validity, uniqueness and the like; novelty and distances if the datamodule knows its training crystals."""
        table = getattr(datamodule, "table", None)
        if datamodule is None or table is None:
            return CrystalGenerationMetrics()
        crystals = [table().crystal(row) for row in datamodule.rows("train").tolist()]  # type: ignore[attr-defined]
        return CrystalGenerationMetrics(crystals, getattr(datamodule, "ideal_sites", None))

    def reconstruction_metric(self, datamodule: LightningDataModule | None = None) -> Metric:
        """Match rates, loose and strict, with random coordinates beside; share of right elements."""
        return CrystalReconstructionMetrics()

    @classmethod
    def score_files(cls, path: Path, num_workers: int | None = None) -> FileScores:
        """Metrics of CIF, POSCAR and extended XYZ files; see :func:`score_crystals`."""
        return score_crystals(path, num_workers)

    def baseline(self, samples: CrystalBatch) -> tuple[str, Tensor]:
        """Share of each element, shape (B, E)."""
        return "composition", shares_of_elements(samples["atomic_numbers"])[:, 1:]

    def metric_arguments(self, prediction: Any, prepared: PreparedCrystals) -> tuple[list[Crystal], list[Crystal]]:
        """Reconstructions and originals."""
        return self.finish(prediction, self.template(prepared)), self.originals(prepared)


_FIELDS = ("atomic_numbers", "fractional", "cell")
