"""What a modality provides: an adapter (this file) and a Lightning datamodule.

To add a modality, write one file with a subclass of :class:`ModalityAdapter` and a ``LightningDataModule`` whose
batches are ``{name: samples}``, and one yaml that names the two by ``class_path``. Nothing else changes: no registry,
no import. ``tests/toy_modality`` is a complete example.

Letters: B samples, N data tokens, K registers, C latent channels, D width of the encoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

from unite.configurable import Configurable
from unite.errors import UserError, require
from unite.flow import SamplingOptions
from unite.modalities.conditions import ConditionedAdapter
from unite.modalities.gallery import Gallery
from unite.modalities.pictures import SCREEN_WIDTH, draw_table
from unite.modalities.template import Template as Template
from unite.nn.generative_encoder import Tokens

CLASS_COLUMNS = 10
"""Samples in a row of a picture of classes."""


@dataclass(frozen=True)
class FileScores:
    """The result of scoring files.

    Attributes:
        num_records: Records in the files, the broken ones included.
        metrics: Metrics by name.
        rejects: Rejected records, each with ``file``, ``record``, ``reason`` and perhaps ``detail``.
        valid: The valid objects, for further metrics.
    """

    num_records: int
    metrics: dict[str, float]
    rejects: list[dict[str, Any]] = field(default_factory=list)
    valid: list[Any] = field(default_factory=list)


class Traits(NamedTuple):
    """What is kept of the distribution of samples while a model is tuned by a reward.

    Attributes:
        identity: The same for samples that are duplicates.
        counts: Whole numbers, such as size and rings, whose shares are to stay those of the data.
    """

    identity: str
    counts: tuple[int, ...]


class ModalityAdapter(Configurable, ConditionedAdapter, ABC):
    """Everything that is specific to one modality: data to tokens, latents to data, loss, pictures, files.

    The contract tests check for every adapter: padding never changes another sample; the order of samples in a batch
    does not matter; ``decode`` and all losses have finite gradients; a drawn template works like one taken from data.

    An adapter is made in two steps. Its constructor only stores the settings, so that a yaml can name it; :meth:`build`
    makes the layers once the encoder's sizes are known. ``samples`` below are what the datamodule yields, on the
    module's device; ``prepared`` is what :meth:`prepare` makes of them.
    """

    sampling: SamplingOptions = SamplingOptions()
    """Sampling options by default: those of the metrics in training. Checkpoints keep them."""

    from_data: ClassVar[Mapping[str, Any]] = {}
    """Constructor arguments that are taken from the data if they are None, with their values for no data.

    The command line asks the datamodule's ``adapter_settings()`` for them, so that settings in files are plain values.
    """

    for_data: ClassVar[tuple[str, ...]] = ()
    """Arguments that the datamodule has as well, and takes from the adapter if its own are None."""

    adamw_parameters: ClassVar[tuple[str, ...]] = ()
    """Parts of parameter names that Muon leaves to AdamW: embeddings of inputs, heads of a few outputs."""

    def build(self, width: int, latent_channels: int) -> None:
        """Make the layers. Subclasses extend this, and start with ``super().build(width, latent_channels)``.

        Args:
            width: Channels D of the encoder.
            latent_channels: Channels C of a latent.

        Raises:
            UserError: This adapter is part of a module already.
        """
        if hasattr(self, "condition_embedding"):
            raise UserError(f"this {type(self).__name__} is part of a module already; make another one")
        self.build_conditions(width)

    def row_names(self) -> dict[str, list[Hashable]]:
        """What the rows of parameters stand for, if it differs between models: elements, charges, places, classes.

        By parameter name, from the settings alone, so that it can be called before :meth:`build`. A model that starts
        from a trained one takes over the rows of the same names. Classes are the same only in models with equally many.
        """
        classes = [f"class {number} of {self.num_classes}" for number in range(self.num_classes)]
        return {"condition_embedding.weight": [*classes, "no class"]}

    def fit_statistics(self, datamodule: LightningDataModule | None) -> None:
        """Store, in buffers, what generation needs of the training data. Called once before training.

        Args:
            datamodule: The data, or None if training uses data loaders without a datamodule.
        """

    def prepare(self, samples: Any) -> Any:
        """Samples in the form the other methods take; augmented if the adapter is in training mode."""
        return samples

    @abstractmethod
    def tokens(self, prepared: Any) -> Tokens:
        """Data tokens of the samples, values (B, N, D)."""

    @abstractmethod
    def template(self, prepared: Any) -> Template:
        """Sizes and conditions of the samples."""

    @abstractmethod
    def registers(self, template: Template) -> Tokens:
        """The slots latents are read from: values (B, K, D) or (1, K, D), and a mask if sizes differ."""

    @abstractmethod
    def decode(self, latents: Tensor, template: Template) -> Any:
        """Prediction from latents (B, K, C)."""

    def samples_of(self, prediction: Any) -> Any:
        """What :meth:`prepare` would make of the samples that are predicted; for models that keep a part."""
        raise NotImplementedError

    @abstractmethod
    def reconstruction_loss(self, prediction: Any, prepared: Any) -> dict[str, Tensor]:
        """Terms of the reconstruction loss by name, each a scalar, before weighting."""

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each term of the loss; 1 where not named."""
        return {}

    @abstractmethod
    def finish(self, prediction: Any, template: Template) -> list[Any]:
        """Finished objects, one per sample, on the CPU: molecules, arrays of pixels, ..."""

    def are_valid(self, objects: Sequence[Any]) -> list[bool]:
        """Which finished objects are valid, as ``validity`` of :meth:`generation_metric` counts them.

        Raises:
            UserError: Nothing says what is valid.
        """
        raise UserError(f"only is 'valid', but {type(self).__name__} has no word for what is valid: leave it out")

    def rewards(self) -> dict[str, Callable[[Sequence[Any]], Sequence[float]]]:
        """Rewards of finished objects by name, the higher the better: what a model can be tuned by."""
        return {"validity": self.are_valid}

    def traits(self, objects: Sequence[Any]) -> list[Traits | None]:
        """Traits of finished objects, None of those that have none, such as invalid ones."""
        return [None] * len(objects)

    def originals(self, prepared: Any) -> list[Any]:
        """Prepared samples as finished objects, to be drawn beside their reconstructions; empty for no picture."""
        return []

    def annotations(self, samples: Any) -> dict[str, Tensor]:
        """Further values of samples, such as ids and properties: tensors (B, ...) by name.

        ``unite predict`` writes them beside the latents.
        """
        return {}

    @abstractmethod
    def draw(self, objects: Sequence[Any]) -> Image.Image:
        """A picture of some finished objects."""

    def draw_in_space(self, objects: Sequence[Any]) -> Image.Image | None:
        """A picture of the objects in 3D; None for modalities without one."""
        return None

    def draw_samples(self, objects: Sequence[Any], labels: Sequence[int] | None = None) -> Image.Image:
        """A picture of samples; with classes, in ten columns under the names of the classes.

        Args:
            objects: Finished objects.
            labels: Class of each; None without classes.
        """
        if labels is None or not objects:
            return self.draw(objects)
        names = [self.class_names[label] if self.class_names else str(label) for label in labels[: len(objects)]]
        cells = [self.draw([item]) for item in objects]
        num_columns = min(CLASS_COLUMNS, max(SCREEN_WIDTH // cells[0].width, 1))
        rows, captions = _in_rows(cells, num_columns), _in_rows(names, num_columns)
        if all(line == captions[0][: len(line)] for line in captions):
            return draw_table(rows, titles=captions[0])
        return draw_table(rows, captions=captions)

    def draw_difference(self, original: Any, made: Any) -> Image.Image | None:
        """The difference of a reconstruction, as the third picture in :meth:`draw_reconstructions`; None for none."""
        return None

    def draw_reconstructions(self, originals: Sequence[Any], made: Sequence[Any]) -> Image.Image:
        """Originals, their reconstructions and the differences, under headings.

        Args:
            originals: Finished objects; empty where a modality has none to show.
            made: Their reconstructions.
        """
        if not originals:
            return self.draw(made)
        cells = []
        for original, other in zip(originals, made, strict=True):
            difference = self.draw_difference(original, other)
            cells.append([self.draw([original]), self.draw([other]), *([] if difference is None else [difference])])
        group = len(cells[0])
        num_groups = min(len(cells), max(SCREEN_WIDTH // (group * cells[0][0].width), 1))
        rows = [[cell for item in row for cell in item] for row in _in_rows(cells, num_groups)]
        return draw_table(rows, titles=["original", "decoded", "difference"][:group] * num_groups)

    @abstractmethod
    def save(self, objects: Sequence[Any], folder: Path) -> list[Path]:
        """Write finished objects into an existing folder, in common file formats; return what was written."""

    def gallery(self, folder: Path, originals: Path | None = None, most: int = 1000) -> Gallery | None:
        """What :meth:`save` wrote into a folder, for ``unite report``; None shows the pictures in the folder.

        Args:
            folder: The folder, perhaps with ``labels.json`` of the samples' classes.
            originals: The folder of what they were reconstructed from, in the same order; None for samples.
            most: Largest number of samples to show.
        """
        return None

    def generation_metric(self, datamodule: LightningDataModule | None) -> Metric | None:
        """Metric for generated objects, or None: ``update(objects)``, and ``compute`` gives values by name.

        Args:
            datamodule: Source of references, such as the keys of the training set; what needs one is left out if it is
                None.
        """
        return None

    def reconstruction_metric(self, datamodule: LightningDataModule | None = None) -> Metric | None:
        """Metric for reconstructions, or None: ``compute`` gives values by name.

        Its ``update`` takes what :meth:`metric_arguments` returns.

        Args:
            datamodule: Where references come from, as in :meth:`generation_metric`.
        """
        return None

    def metric_arguments(self, prediction: Any, prepared: Any) -> tuple[Any, ...]:
        """Arguments for ``update`` of the reconstruction metric: prediction and target, in the form it wants."""
        return prediction, prepared

    @classmethod
    def score_files(cls, path: Path, num_workers: int | None = None) -> FileScores:
        """Metrics of files that anyone may have written, for ``unite score``; needs no model.

        Args:
            path: A file or a folder.
            num_workers: Processes; None for the default.

        Raises:
            UserError: There is nothing in them, or this modality cannot read files.
        """
        raise UserError(f"{cls.__name__} reads no files: it has no score_files")

    def baseline(self, samples: Any) -> tuple[str, Tensor] | None:
        """Features of samples that need no network, to compare latents with: their name and values (B, F)."""
        return None


def _in_rows(items: Sequence[Any], num_columns: int) -> list[list[Any]]:
    return [list(items[start : start + num_columns]) for start in range(0, len(items), num_columns)]


def chosen_modality(adapters: Mapping[str, object], name: str | None) -> str:
    """The modality of that name, or the only one.

    Raises:
        UserError: There are several and none is named, or none of that name.
    """
    modalities = ", ".join(adapters)
    require(
        name is not None or len(adapters) == 1,
        f"this model has several modalities; choose with --modality: {modalities}",
    )
    require(name is None or name in adapters, f"modality {name!r} is not in this model; it has {modalities}")
    return name or next(iter(adapters))
