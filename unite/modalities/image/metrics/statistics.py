"""Distances between sets of images, from the features of a network."""

import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from unite.errors import UserError
from unite.files import replacing
from unite.files.checked import tensor_checksum
from unite.modalities.frechet import distance_of_normals

#: Neighbours that span the manifolds of precision and recall (Kynkäänniemi et al. 2019).
NUM_NEIGHBOURS = 3
#: Rows of a distance or kernel matrix at a time.
CHUNK = 1024
#: Largest array in a file of statistics, 4 GiB: half a million features of Inception.
MAX_ARRAY_BYTES = 2**32
#: What numpy and zipfile raise of damaged files.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,  # encrypted, or packed in a way that is not known
    MemoryError,
)


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What FID needs to know of a set of images, and optionally features of some for KID, precision and recall.

    Attributes:
        mean: Mean of the features, float64, shape (D,).
        covariance: Covariance of the features, float64, shape (D, D).
        features: Features of some of the images, float32, shape (n, D), or None.
    """

    mean: Tensor
    covariance: Tensor
    features: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        features = None if self.features is None else self.features.to(device)
        return replace(self, mean=self.mean.to(device), covariance=self.covariance.to(device), features=features)

    def save(self, path: Path) -> None:
        """Write an .npz file with `mu` and `sigma`, as the common tools for FID read it, `features` if any, a checksum.

        The zip format checks each array, but not that all are there.
        """
        tensors = {"mu": self.mean.cpu(), "sigma": self.covariance.cpu()}
        if self.features is not None:
            tensors["features"] = self.features.cpu()
        checksum = {"checksum": np.array(tensor_checksum(tensors))}  # first, for the end of the list may get lost
        arrays = checksum | {name: value.numpy() for name, value in tensors.items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub takes a flag by keyword

    @classmethod
    def load(cls, path: Path, num_features: int) -> Self:
        """Read an .npz file with `mu` and `sigma`: ours, ADM's, or pytorch-fid's, which have no checksum.

        Args:
            path: The file.
            num_features: Length of the feature vectors it is to be compared with.

        Raises:
            UserError: The file cannot be read, lacks the two, or was made with features of another size.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                _require_small(file.zip, path)
                names = ("mu", "sigma", *(("features",) if "features" in file.files else ()))
                tensors = {name: torch.from_numpy(file[name]) for name in names}
                if "checksum" in file.files and str(file["checksum"]) != tensor_checksum(tensors):
                    raise ValueError("its checksum does not match")
        except KeyError as error:
            raise UserError(f"{path} has no mu and sigma; name an .npz file with the statistics of features") from error
        except UserError:
            raise
        except (*_UNREADABLE, OSError) as error:
            raise UserError(f"cannot read statistics {path}: missing, damaged, or no .npz file") from error
        mean, covariance = tensors["mu"].double(), tensors["sigma"].double()
        features = tensors["features"].float() if "features" in tensors else None
        sizes = {tuple(mean.shape): (num_features,), tuple(covariance.shape): (num_features, num_features)}
        if any(found != expected for found, expected in sizes.items()):
            raise UserError(
                f"{path} has statistics of {mean.numel()} features, but the network gives {num_features}; "
                "use statistics made with the same network"
            )
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise UserError(f"{path} has a mean or covariance that is not finite; make it anew")
        scale = float(covariance.diagonal().abs().max())
        if (
            float((covariance - covariance.T).abs().max()) > 1e-3 * scale
            or float(covariance.diagonal().min()) < -1e-6 * scale
        ):
            raise UserError(
                f"{path} has a sigma that is no covariance: not symmetric, or a negative variance; make it anew"
            )
        if features is not None and not features.isfinite().all():
            raise UserError(f"{path} has features that are not finite; make it anew")
        if features is not None and features.shape[1:] != (num_features,):
            raise UserError(f"{path} has features of shape {tuple(features.shape)}; make it anew")
        return cls(mean, covariance, features)


def _require_small(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse arrays that are small on the disk and fill the memory."""
    for name in ("mu.npy", "sigma.npy", "features.npy"):
        if name in archive.namelist() and (size := archive.getinfo(name).file_size) > MAX_ARRAY_BYTES:
            raise UserError(f"{path}: {name} has {size:,} bytes; {MAX_ARRAY_BYTES:,} are allowed")


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> Tensor:
    """Squared Fréchet distance of two normal distributions."""
    return distance_of_normals(first.mean, first.covariance, second.mean, second.covariance)


def kernel_distance(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy with the kernel (x·y / D + 1)³ (KID, Bińkowski et al. 2018).

    Over all pairs at once, where the usual code averages over random subsets: the same expectation, less noise.

    Args:
        first: Features, shape (n, D), n > 1.
        second: Features, shape (m, D), m > 1.
    """
    n, m = len(first), len(second)
    within_first = _kernel_sum(first, first) - _kernel(first, first, is_paired=True).sum()
    within_second = _kernel_sum(second, second) - _kernel(second, second, is_paired=True).sum()
    between = _kernel_sum(first, second)
    return within_first / (n * (n - 1)) + within_second / (m * (m - 1)) - 2 * between / (n * m)


def _kernel(first: Tensor, second: Tensor, is_paired: bool = False) -> Tensor:
    products = (first * second).sum(dim=1) if is_paired else first @ second.T
    return (products.double() / first.shape[1] + 1) ** 3


def _kernel_sum(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([_kernel(chunk, second).sum() for chunk in first.split(CHUNK)]).sum()


def precision_and_recall(generated: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Share of generated images near a reference image, and the other way round (Kynkäänniemi et al. 2019).

    Near means no farther than an image's third nearest neighbour in its own set. Both fall or rise with the sizes
    of the sets, so compare like with like.

    Args:
        generated: Features, shape (n, D), n > 3.
        reference: Features, shape (m, D), m > 3.
    """
    return _share_inside(generated, reference), _share_inside(reference, generated)


def _share_inside(points: Tensor, manifold: Tensor) -> Tensor:
    # The nearest of a point to its own set is itself.
    radii = torch.cat(
        [torch.cdist(part, manifold).kthvalue(NUM_NEIGHBOURS + 1, dim=1).values for part in manifold.split(CHUNK)]
    )
    is_inside = torch.cat([(torch.cdist(part, manifold) <= radii).any(dim=1) for part in points.split(CHUNK)])
    return is_inside.double().mean()
