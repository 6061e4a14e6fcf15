"""Comparisons of ``unite score molecules`` with other molecules: FCD, distributions, and the table of MOSES."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from unite.console import is_quiet, shown
from unite.errors import UserError, is_installed, require, require_packages
from unite.modalities.molecule.files.any import AnyFiles

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from unite.modalities.molecule.metrics.distributions import Shape
    from unite.modalities.molecule.metrics.fcd import FrechetChemNetDistance
    from unite.modalities.molecule.metrics.moses import Described

_SEED = 0  # of the choice among the reference
_LEAST_COMPARED = 2  # molecules of a reference that can be halved
_AT_ONCE = 1280  # molecules between two steps of the progress bar


@dataclass
class Comparison:
    """A reference, and what is asked for.

    Attributes:
        reference: Molecules to compare with.
        train: Training molecules, for novelty; None to leave it out.
        is_moses: Whether the table of MOSES is asked for.
        num_reference: How many of the reference to take, 0 for all.
        num_workers: Processes that read molecules.
        remarks: What to tell the user of it.
        shapes: Shapes of the reference, once it is read; of SMILES there are none.
    """

    reference: AnyFiles
    train: AnyFiles | None
    is_moses: bool
    num_reference: int
    num_workers: int
    remarks: list[str] = field(default_factory=list)
    shapes: "list[Shape]" = field(default_factory=list)

    @classmethod
    def find(
        cls,
        reference: Path | None,
        benchmark: str | None,
        train: Path | None,
        num_reference: int,
        smiles_column: str | None,
        num_workers: int | None,
    ) -> Self | None:
        """What the options of the command ask for; None if nothing.

        Raises:
            UserError: An option is wrong or lacks another one, or a package is missing.
        """
        from unite.engine.workers import num_cpus

        require(num_reference >= 0, f"--num_reference is {num_reference}; it must be 0 (all) or more")
        if reference is None:
            require(benchmark is None, "--benchmark moses needs --reference FILE: MOSES's test or scaffold test split")
            require(train is None, "--train is for --benchmark moses; add that and --reference FILE")
            return None
        require(train is None or benchmark is not None, "--train is for --benchmark moses; add that, or leave it out")
        require_packages("--benchmark moses" if benchmark else "--reference", "fcd", "fcd")
        return cls(
            AnyFiles.find(reference, None, smiles_column, "--reference"),
            None if train is None else AnyFiles.find(train, None, smiles_column, "--train"),
            benchmark is not None,
            num_reference,
            num_workers or num_cpus(),
        )

    def metrics(self, smiles: Sequence[str | None], shapes: "Sequence[Shape]") -> dict[str, float]:
        """The metrics by name.

        Args:
            smiles: Every generated molecule, None for those that are not valid.
            shapes: Shapes of the valid ones; none of SMILES.

        Raises:
            UserError: The reference has no molecules.
        """
        from unite.modalities.molecule.metrics.moses import describe_all, moses_table

        reference = self._described_reference()
        generated = describe_all(smiles, self.num_workers, "describe", with_filters=self.is_moses)
        values: dict[str, float] = {}
        if self.is_moses:
            train = None if self.train is None else self._training_keys(self.train)
            values = {f"moses/{name}": value for name, value in moses_table(generated, reference, train).items()}
            if "moses/filters" not in values:
                self.remarks.append(
                    "moses/filters is left out: its patterns come with the package molsets (pip install --no-deps)"
                )
            if train is None:
                self.remarks.append("moses/novelty is left out: name the training molecules with --train")
        values["moses/fcd" if self.is_moses else "fcd"] = self._fcd(generated, reference)
        return values | self._distributions(shapes)

    def _distributions(self, shapes: "Sequence[Shape]") -> dict[str, float]:
        from unite.modalities.molecule.metrics.distributions import compare_shapes

        if not shapes or len(self.shapes) < _LEAST_COMPARED:
            self.remarks.append("no distributions of shapes: they need valid molecules with positions on both sides")
            return {}
        values = compare_shapes(shapes, self.shapes)
        self.remarks += _side_by_side(values, "distance", "floor", "distance to the reference", "its halves")
        self.remarks += _side_by_side(values, "samples", "reference", "in a molecule", "reference")
        return values

    def draw(self, shapes: "Sequence[Shape]", folder: Path) -> list[Path]:
        """Draw the distributions of shapes beside those of the reference, once it is read; nothing without matplotlib.

        Args:
            shapes: Shapes of the valid generated molecules.
            folder: Where ``distributions.png`` is written.
        """
        if not shapes or len(self.shapes) < _LEAST_COMPARED:
            return []
        if not is_installed("matplotlib"):
            self.remarks.append(
                'no picture of the distributions: it needs matplotlib (pip install "unite-lightning[analysis]")'
            )
            return []
        from unite.analysis.distributions import draw_distributions

        return [draw_distributions(shapes, self.shapes, folder / "distributions.png")]

    def _read(self, files: AnyFiles) -> "list[tuple[str | None, Shape | None]]":
        """SMILES of the molecules of files, None where one is not valid; shapes of those of the reference."""
        from unite.modalities.molecule.metrics.scores import judge_all

        if files.are_smiles:
            return [(record.lines[0], None) for record in files.records()]
        judging = judge_all(files.records(), num_workers=self.num_workers, with_shapes=files is self.reference)
        return [(judged.smiles, judged.shape) for judged in judging]

    def _training_keys(self, files: AnyFiles) -> "npt.NDArray[np.int64]":
        """Hashed keys of training molecules, kept beside their files."""
        import torch

        from unite.modalities.molecule.metrics.kept import kept_beside
        from unite.modalities.molecule.metrics.moses import keys_of_all

        def make() -> "dict[str, Tensor]":
            texts = [text for text, _ in self._read(files)]
            return {"keys": torch.from_numpy(keys_of_all(texts, self.num_workers, "read the training molecules"))}

        found = kept_beside(files.paths, "training-keys", (files.smiles_column,), make)["keys"]
        return np.asarray(found.numpy())

    def _described_reference(self) -> "list[Described | None]":
        """The reference, as the table needs it; of SMILES, which have no shapes, kept beside their files."""
        import torch

        from unite.modalities.molecule.metrics.kept import as_tensors, from_tensors, kept_beside
        from unite.modalities.molecule.metrics.moses import describe_all

        files, most = self.reference, self.num_reference

        def chosen() -> "tuple[list[Described | None], int]":
            found = self._read(files)
            total = len(found)
            if 0 < most < total:
                found = random.Random(_SEED).sample(found, most)
            self.shapes = [shape for _, shape in found if shape is not None]
            smiles = [text for text, _ in found]
            described = describe_all(smiles, self.num_workers, "describe the reference", with_filters=False)
            if not any(described):
                raise UserError(f"--reference {self._name(files)} has no molecules that can be read")
            return described, total

        def make() -> "dict[str, Tensor]":
            described, total = chosen()
            return {**as_tensors(described), "total": torch.tensor(total)}

        if files.are_smiles:
            tensors = kept_beside(files.paths, "reference", (files.smiles_column, most, _SEED), make)
            described, total = from_tensors(tensors), int(tensors["total"])
        else:
            described, total = chosen()
        if 0 < most < total:
            self.remarks.append(
                f"compared with {most:,} of the {total:,} molecules of {self._name(files)}, a fixed random choice "
                "(--num_reference)"
            )
        return described

    def _fcd(self, generated: "Sequence[Described | None]", reference: "Sequence[Described | None]") -> float:
        from importlib.metadata import version

        from unite.modalities.molecule.metrics.fcd import MAX_LENGTH, FrechetChemNetDistance
        from unite.modalities.molecule.metrics.kept import kept_beside

        metric = FrechetChemNetDistance()
        texts, others = ([item.smiles for item in items if item] for items in (generated, reference))

        def make() -> "dict[str, Tensor]":
            _update(metric, others, "fcd of the reference", is_reference=True)
            return metric.reference_sums()

        files = self.reference
        if files.are_smiles:
            settings = (files.smiles_column, self.num_reference, _SEED, version("fcd"))
            metric.set_reference(kept_beside(files.paths, "fcd", settings, make))
        else:
            make()
        _update(metric, texts, "fcd")
        self.remarks.append(f"FCD of {len(texts):,} molecules to {len(others):,}; it falls with their numbers")
        if left_out := sum(len(text) > MAX_LENGTH for text in (*texts, *others)):
            self.remarks.append(f"FCD leaves out {left_out:,} SMILES of more than {MAX_LENGTH} characters")
        return float(metric.compute())

    @staticmethod
    def _name(files: AnyFiles) -> str:
        return ", ".join(map(shown, files.formats))


def _update(
    metric: "FrechetChemNetDistance", smiles: Sequence[str], description: str, is_reference: bool = False
) -> None:
    """Add molecules to a metric, with a progress bar."""
    from tqdm import tqdm

    with tqdm(desc=description, total=len(smiles), unit="mol", leave=False, disable=is_quiet() or None) as bar:
        for start in range(0, len(smiles), _AT_ONCE):
            texts = smiles[start : start + _AT_ONCE]
            metric.update(texts, is_reference)
            bar.update(len(texts))


def _side_by_side(values: Mapping[str, float], first: str, second: str, title: str, other: str) -> list[str]:
    """Lines of a table of the metrics ``first/NAME`` and ``second/NAME``."""
    names = [name.removeprefix(f"{first}/") for name in values if name.startswith(f"{first}/")]
    width = max(map(len, (title, *names)))
    rows = [
        f"{name:{width}}  {values[f'{first}/{name}']:>10.4g}  {values[f'{second}/{name}']:>10.4g}" for name in names
    ]
    return [f"{title:{width}}  {'samples':>10}  {other:>10}", *rows]
