"""torchmetrics for images: how generated ones compare with a reference set, and how well images are reconstructed.

Everything that compares features names the network they come from: `fid` is Inception's and nothing else's,
`fid_digits` that of the small network for digits. All state is summed or concatenated over processes, so shards give
the metrics of the whole. Letters: D features, L classes of the feature network.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from tqdm import tqdm

from unite.console import is_quiet
from unite.errors import UserError
from unite.files.weights import INCEPTION
from unite.modalities.image.metrics.features import FeatureNetwork
from unite.modalities.image.metrics.inception import WEIGHTS_HINT, WEIGHTS_VARIABLE, load_inception
from unite.modalities.image.metrics.statistics import (
    NUM_NEIGHBOURS,
    FeatureStatistics,
    frechet_distance,
    kernel_distance,
    precision_and_recall,
)

#: Images whose features are kept for KID, precision and recall.
NUM_KEPT = 10_000
#: Parts that Inception Score is averaged over (Salimans et al. 2016).
SCORE_SPLITS = 10
#: Distances of sets with fewer images, or fewer than two per feature, come with a caution.
MIN_IMAGES = 500

ReferenceImages = Callable[[int, int], Iterator[Tensor]]
"""Gives, for a number of processes and the rank of one, the reference images of that process: uint8 (B, C, H, W)."""

logger = logging.getLogger(__name__)


class _FeatureMetric(Metric):
    """Sums of features of two sets, in float64."""

    full_state_update = False
    is_differentiable = False

    def add_sums(self, name: str, num_features: int) -> None:
        """Add the states of one set."""
        zeros = torch.zeros(num_features, dtype=torch.float64)
        self.add_state(f"{name}_sum", zeros, dist_reduce_fx="sum")
        self.add_state(f"{name}_outer", zeros.new_zeros(num_features, num_features), dist_reduce_fx="sum")
        self.add_state(f"{name}_num", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add_features(self, name: str, features: Tensor) -> None:
        """Add features (B, D) to the sums of one set."""
        features = features.double()
        getattr(self, f"{name}_sum").add_(features.sum(dim=0))
        getattr(self, f"{name}_outer").add_(features.T @ features)
        getattr(self, f"{name}_num").add_(len(features))

    def statistics(self, name: str) -> FeatureStatistics:
        """Mean and covariance of one set; not a number if it has fewer than two images."""
        num = getattr(self, f"{name}_num").double()
        mean = getattr(self, f"{name}_sum") / num
        covariance = (getattr(self, f"{name}_outer") - num * torch.outer(mean, mean)) / (num - 1)
        return FeatureStatistics(mean, covariance)


class ImageGenerationMetrics(_FeatureMetric):
    """Generated images against a reference set, by the features of one network.

    With `_NAME` of the network at the end of each unless it is Inception:

    - ``fid``: Fréchet distance to the reference set. Falls with the number of samples; papers use 50,000.
    - ``kid``: kernel distance, unbiased at any number of samples. Of the first 10,000 images of each set, as are
    - ``precision`` and ``recall``.
    - ``inception_score``: of ten equal parts, averaged. Needs no reference.

    What lacks a reference is left out, and so is what needs features of reference images where only their mean and
    covariance are known. The features of reference images are computed at the first :meth:`update`, on this metric's
    device, and kept over :meth:`reset`.

    Args:
        network: Gives the features.
        reference: Statistics of the reference set.
        reference_images: Reference images, if there are no statistics.
        num_kept: Images of each set whose features are kept.
        batch_size: Images at a time through the network.
        show_progress: Whether to show a progress bar for the reference images.
    """

    generated_num: Tensor
    generated_features: list[Tensor]
    reference_num: Tensor
    reference_features: list[Tensor]
    class_sum: Tensor  # (SCORE_SPLITS, L)
    entropy_sum: Tensor  # (SCORE_SPLITS,)
    class_num: Tensor  # (SCORE_SPLITS,)

    def __init__(
        self,
        network: FeatureNetwork,
        reference: FeatureStatistics | None = None,
        reference_images: ReferenceImages | None = None,
        num_kept: int = NUM_KEPT,
        batch_size: int = 64,
        show_progress: bool = True,
    ) -> None:
        super().__init__()
        self.network = network
        self.reference_images = reference_images if reference is None else None
        self.num_kept = num_kept
        self.batch_size = batch_size
        self.show_progress = show_progress
        self.reference = reference
        for name in ("generated", "reference"):
            self.add_sums(name, network.num_features)
            self.add_state(f"{name}_features", [], dist_reduce_fx="cat")
        splits = torch.zeros(SCORE_SPLITS, dtype=torch.float64)
        self.add_state("class_sum", splits.new_zeros(SCORE_SPLITS, network.num_logits), dist_reduce_fx="sum")
        self.add_state("entropy_sum", splits, dist_reduce_fx="sum")
        self.add_state("class_num", splits.clone(), dist_reduce_fx="sum")
        self._start_lists()

    def _start_lists(self) -> None:
        # A process without features would contribute an empty tensor of another shape when states are gathered.
        for features in (self.generated_features, self.reference_features):
            if not features:
                features.append(torch.zeros(0, self.network.num_features, device=self.device))

    def reset(self) -> None:
        """Forget the generated images; the reference stays."""
        names = ("reference_sum", "reference_outer", "reference_num", "reference_features")
        kept = {name: getattr(self, name) for name in names}
        kept["reference_features"] = list(kept["reference_features"])  # the parent empties lists in place
        super().reset()
        for name, value in kept.items():
            setattr(self, name, value)
        self._start_lists()

    def update(self, images: Sequence[np.ndarray]) -> None:
        """Add generated images.

        Args:
            images: uint8 arrays of shape (H, W, 3), (H, W, 1) or (H, W).

        Raises:
            ValueError: An array is of another type or shape.
        """
        self._measure_reference()
        for batch in _batches(images, self.batch_size):
            features, logits = self.network(batch.to(self.device))
            self._add("generated", features)
            self._add_classes(logits)

    def _add(self, name: str, features: Tensor) -> None:
        share = -(-self.num_kept // _num_processes())
        room = max(share - int(getattr(self, f"{name}_num")), 0)
        self.add_features(name, features)
        if room:
            getattr(self, f"{name}_features").append(features[:room].float())

    def _add_classes(self, logits: Tensor) -> None:
        """Deal the images out to the parts of the score in turn."""
        log_probabilities = logits.double().log_softmax(dim=1)
        probabilities = log_probabilities.exp()
        parts = _part_of(int(self.class_num.sum()) + torch.arange(len(logits), device=logits.device))
        self.class_sum.index_add_(0, parts, probabilities)
        self.entropy_sum.index_add_(0, parts, (probabilities * log_probabilities).sum(dim=1))
        self.class_num.index_add_(0, parts, torch.ones_like(parts, dtype=torch.float64))

    def _measure_reference(self) -> None:
        """Put the reference images of this process through the network, once."""
        if self.reference_images is None:
            return
        batches = self.reference_images(_num_processes(), _rank())
        self.reference_images = None
        is_shown = self.show_progress and not is_quiet() and _rank() == 0
        with tqdm(desc="features of reference images", unit="img", disable=not is_shown, leave=False) as bar:
            for batch in batches:
                for part in batch.split(self.batch_size):
                    features, _ = self.network(part.to(self.device))
                    self._add("reference", features)
                    bar.update(len(part))

    def reference_statistics(self) -> FeatureStatistics | None:
        """Statistics of the reference set, if there is one."""
        if self.reference is not None:
            return self.reference.to(self.device)
        if int(self.reference_num) < 2:
            return None
        found = self.statistics("reference")
        return FeatureStatistics(found.mean, found.covariance, dim_zero_cat(self.reference_features))

    def compute(self) -> dict[str, Tensor]:
        """The metrics by name, each a scalar."""
        if int(self.generated_num) < 2:
            return {}
        values = {"inception_score": self._inception_score()}
        reference = self.reference_statistics()
        if reference is not None:
            values["fid"] = frechet_distance(self.statistics("generated"), reference)
            generated = dim_zero_cat(self.generated_features)
            if reference.features is not None and min(len(generated), len(reference.features)) > NUM_NEIGHBOURS:
                values["kid"] = kernel_distance(generated, reference.features)
                values["precision"], values["recall"] = precision_and_recall(generated, reference.features)
        return {self.network.metric(name): value.float() for name, value in values.items()}

    def caution(self) -> str | None:
        """What to know of distances between so few images; None if there are enough, or no distances."""
        num_generated, num_reference = int(self.generated_num), int(self.reference_num)
        has_images = num_reference > 1  # of statistics from a file, the number is not known
        if num_generated < 2 or (self.reference is None and not has_images):
            return None
        enough = max(MIN_IMAGES, 2 * self.network.num_features)
        if min(num_generated, num_reference if has_images else enough) >= enough:
            return None
        against = f" against {num_reference:,}" if has_images else ""
        return (
            f"{self.network.metric('fid')} and the like of {num_generated:,} images{against} say little: fewer than "
            f"{enough:,} of either make {self.network.metric('fid')} too high and all of them noisy; compare only "
            "between equal numbers"
        )

    def _inception_score(self) -> Tensor:
        is_used = self.class_num > 0
        num = self.class_num[is_used]
        marginal = self.class_sum[is_used] / num[:, None]
        divergence = self.entropy_sum[is_used] / num - torch.special.xlogy(marginal, marginal).sum(dim=1)
        score: Tensor = divergence.exp().mean()
        return score


def _part_of(numbers: Tensor) -> Tensor:
    """Part of the Inception Score that images of these numbers belong to.

    Each ten in a row go to ten parts, in an order that changes pseudo-randomly (multiplicative hashing, Knuth): parts
    are equal, and have images of all classes alike although samples go through the classes in turn.
    """
    blocks = numbers // SCORE_SPLITS
    return (numbers + (blocks * 2_654_435_761 >> 16)) % SCORE_SPLITS


def feature_network(datamodule: LightningDataModule | None, weights: str | None = None) -> FeatureNetwork | None:
    """The network that metrics of this data use; None, said once, where there is none.

    Weights that are named come first, then the datamodule's own network, then Inception with the weights that
    `UNITE_INCEPTION_WEIGHTS` names.

    Args:
        datamodule: The data.
        weights: Weight file of Inception.

    Raises:
        UserError: The weight file cannot be used.
    """
    if weights is not None:
        return load_inception(weights)
    own = getattr(datamodule, "feature_network", None)
    network: FeatureNetwork | None = own() if own is not None else None
    if network is not None:
        return network
    if INCEPTION.named() is None:
        _say_what_is_left_out()
        return None
    return load_inception()


@functools.cache
def _say_what_is_left_out() -> None:
    logger.warning(
        "FID, KID, precision, recall and Inception Score are left out: they need Inception's weights; set %s to the "
        "file %s",
        WEIGHTS_VARIABLE,
        WEIGHTS_HINT,
    )


def image_generation_metrics(
    datamodule: LightningDataModule | None, weights: str | None = None, **options: Any
) -> ImageGenerationMetrics | None:
    """Metrics for images generated after this data; None where there is no network to make features.

    Args:
        datamodule: Names a file with statistics of the reference set (`reference_file`), or gives the reference
            images (`reference_images`); None leaves out all but Inception Score.
        weights: Weight file of Inception, see :func:`feature_network`.
        options: Further arguments of :class:`ImageGenerationMetrics`.

    Raises:
        UserError: The weights, the statistics, or the reference images cannot be used.
    """
    network = feature_network(datamodule, weights)
    if network is None:
        return None
    file = getattr(datamodule, "reference_file", None)
    reference = None if file is None else FeatureStatistics.load(file, network.num_features)
    images = getattr(datamodule, "reference_images", None)
    if reference is None and (require := getattr(datamodule, "require_images", None)) is not None:
        require("train")  # missing images are to show here, not after all samples are made
    return ImageGenerationMetrics(network, reference, images, **options)


def measure_features(
    images: Iterator[Tensor], network: FeatureNetwork, device: torch.device, num_kept: int
) -> FeatureStatistics:
    """Statistics of a set of images, to be saved as a reference.

    Args:
        images: uint8 (B, C, H, W) each.
        network: Gives the features.
        device: Where to compute.
        num_kept: Images of which the features are kept as well.

    Raises:
        UserError: There are fewer than two images.
    """
    metric = ImageGenerationMetrics(network, reference_images=lambda _, __: images, num_kept=num_kept).to(device)
    metric._measure_reference()
    statistics = metric.reference_statistics()
    if statistics is None:
        raise UserError("statistics need at least two images")
    return statistics


def _batches(images: Sequence[np.ndarray], batch_size: int) -> Iterator[Tensor]:
    """Arrays of equal shape together, uint8 of shape (B, C, H, W)."""
    waiting: list[Tensor] = []
    for image in images:
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
            raise ValueError(f"images must be uint8 of shape (H, W, 1 or 3); got {image.dtype} of shape {image.shape}")
        pixels = torch.from_numpy(np.ascontiguousarray(image if image.ndim == 3 else image[..., None]))
        pixels = pixels.permute(2, 0, 1)
        if waiting and (len(waiting) == batch_size or waiting[0].shape != pixels.shape):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(pixels)
    if waiting:
        yield torch.stack(waiting)


def _num_processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
