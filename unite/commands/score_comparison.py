"""What ``unite score molecules`` says of a set of molecules beside another one: FCD, and the table of MOSES."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from unite.console import is_quiet, shown
from unite.errors import UserError, require, require_packages
from unite.modalities.molecule.files.any import AnyFiles

if TYPE_CHECKING:
    from unite.modalities.molecule.metrics.moses import Described

_SEED = 0  # of the choice among the reference
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
    """

    reference: AnyFiles
    train: AnyFiles | None
    is_moses: bool
    num_reference: int
    num_workers: int
    remarks: list[str] = field(default_factory=list)

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

    def metrics(self, smiles: Sequence[str | None]) -> dict[str, float]:
        """The metrics by name.

        Args:
            smiles: Every generated molecule, None for those that are not valid.

        Raises:
            UserError: The reference has no molecules.
        """
        from unite.modalities.molecule.metrics.moses import describe_all, moses_table

        reference = self._described(self.reference, "describe the reference", self.num_reference)
        if not any(reference):
            raise UserError(f"--reference {self._name(self.reference)} has no molecules that can be read")
        generated = describe_all(smiles, self.num_workers, "describe", with_filters=self.is_moses)
        values: dict[str, float] = {}
        if self.is_moses:
            train = None
            if self.train is not None:
                described = self._described(self.train, "read the training molecules", 0)
                train = {item.smiles for item in described if item}
            values = {f"moses/{name}": value for name, value in moses_table(generated, reference, train).items()}
            if "moses/filters" not in values:
                self.remarks.append(
                    "moses/filters is left out: its patterns come with the package molsets (pip install --no-deps)"
                )
            if train is None:
                self.remarks.append("moses/novelty is left out: name the training molecules with --train")
        values["moses/fcd" if self.is_moses else "fcd"] = self._fcd(generated, reference)
        return values

    def _described(self, files: AnyFiles, description: str, most: int) -> "list[Described | None]":
        """Molecules of files, as the table needs them."""
        from unite.modalities.molecule.metrics.moses import describe_all
        from unite.modalities.molecule.metrics.scores import judge_all

        if files.are_smiles:
            smiles: list[str | None] = [record.lines[0] for record in files.records()]
        else:
            smiles = [judged.smiles for judged in judge_all(files.records(), num_workers=self.num_workers)]
        total = len(smiles)
        if 0 < most < total:
            smiles = random.Random(_SEED).sample(smiles, most)
            self.remarks.append(
                f"compared with {most:,} of the {total:,} molecules of {self._name(files)}, a fixed random choice "
                "(--num_reference)"
            )
        return describe_all(smiles, self.num_workers, description, with_filters=False)

    def _fcd(self, generated: "Sequence[Described | None]", reference: "Sequence[Described | None]") -> float:
        from tqdm import tqdm

        from unite.modalities.molecule.metrics.fcd import MAX_LENGTH, FrechetChemNetDistance

        metric = FrechetChemNetDistance()
        sets = [[item.smiles for item in items if item] for items in (generated, reference)]
        with tqdm(desc="fcd", total=sum(map(len, sets)), unit="mol", leave=False, disable=is_quiet() or None) as bar:
            for texts, is_reference in zip(sets, (False, True), strict=True):
                for start in range(0, len(texts), _AT_ONCE):
                    metric.update(texts[start : start + _AT_ONCE], is_reference)
                    bar.update(len(texts[start : start + _AT_ONCE]))
        self.remarks.append(f"FCD of {len(sets[0]):,} molecules to {len(sets[1]):,}; it falls with their numbers")
        if left_out := int(metric.num_left_out):
            self.remarks.append(f"FCD leaves out {left_out:,} SMILES of more than {MAX_LENGTH} characters")
        return float(metric.compute())

    @staticmethod
    def _name(files: AnyFiles) -> str:
        return ", ".join(map(shown, files.formats))
