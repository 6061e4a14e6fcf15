"""What the latents of samples are like: their dimension, neighbours, the way between two, and how they form from noise.

Letters: B samples, K registers, C latent channels, n rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unite.analysis.alignment import centre_within
from unite.analysis.probes import PooledLatents
from unite.analysis.similarity import covariance_spectrum, participation_ratio
from unite.engine.noise import SampleNoise
from unite.errors import UserError, require
from unite.flow import SamplingOptions, Solver
from unite.modalities.base import ModalityAdapter
from unite.module import UniteModule

BASELINE_PIXELS = 32
"""Side of an image whose pixels are the baseline of its class; larger images are averaged down to it."""


@torch.no_grad()
def pooled_latents(
    module: UniteModule, modality: str, batches: Iterable[Any], num_samples: int, seed: int = 0
) -> PooledLatents:
    """Latents of the first ``num_samples`` samples of the batches, with labels and baselines.

    Args:
        module: The model, in evaluation mode.
        modality: Name of the adapter.
        batches: Batches on the module's device, gone through once.
        num_samples: Samples to take.
        seed: Of the registers' noise.
    """
    adapter = module.adapter(modality)
    generator = torch.Generator(device=module.device).manual_seed(seed)
    found: dict[str, list[Tensor]] = {}
    all_latents, masks = [], []
    properties: dict[str, list[Tensor]] = {}
    baseline_name = ""
    for samples in batches:
        latents = module.tokenize(modality, samples, generator)
        template = adapter.template(adapter.prepare(samples))
        mask = adapter.registers(template).mask
        masks.append(torch.ones(latents.shape[:2], dtype=torch.bool) if mask is None else mask.cpu())
        all_latents.append(latents.float().cpu())
        labels = template.condition  # without classes in the model, the data may know them
        if labels is None and isinstance(samples, dict):
            labels = samples.get("labels")
        if labels is not None:
            found.setdefault("labels", []).append(labels.cpu())
        if hasattr(samples, "molecule_id"):
            found.setdefault("molecule_id", []).append(samples.molecule_id.cpu())
        name, baseline = adapter.baseline(samples) or _baseline(samples)
        for column, values in adapter.annotations(samples).items():
            if values.ndim == 1 and values.is_floating_point():
                properties.setdefault(column, []).append(values.double().cpu())
        if baseline is not None:
            baseline_name = name
            found.setdefault("baseline", []).append(baseline.cpu())
    most = max(latents.shape[1] for latents in all_latents)
    values = torch.cat([F.pad(z, (0, 0, 0, most - z.shape[1])) for z in all_latents])[:num_samples]  # (N, K, C)
    real = torch.cat([F.pad(mask, (0, most - mask.shape[1])) for mask in masks])[:num_samples]  # (N, K)
    values = values * real[..., None]
    known = {name: torch.cat(parts)[:num_samples] for name, parts in found.items()}
    total = values.sum(dim=1)
    return PooledLatents(
        pooled=torch.cat([total / real.sum(dim=1, keepdim=True), total], dim=1),
        flat=values.flatten(1),
        rows=values[real],
        slots=real.nonzero()[:, 1],
        labels=known.get("labels"),
        baseline=known.get("baseline"),
        baseline_name=baseline_name,
        molecule_id=known.get("molecule_id"),
        properties={name: torch.cat(parts)[:num_samples] for name, parts in properties.items()},
    )


def _baseline(samples: Any) -> tuple[str, Tensor | None]:
    """What is known of samples without a network: composition of molecules, pixels of images."""
    if isinstance(samples, dict) and "images" in samples:
        images = samples["images"]
        if max(images.shape[-2:]) <= BASELINE_PIXELS:
            return "pixels", images.flatten(1)
        # A linear map from all pixels of a large image has more weights than there are samples to fit it to.
        small = F.adaptive_avg_pool2d(images, BASELINE_PIXELS)
        return f"pixels ({BASELINE_PIXELS} x {BASELINE_PIXELS})", small.flatten(1)
    if hasattr(samples, "z") and hasattr(samples, "ptr"):
        counts = torch.zeros(len(samples.ptr) - 1, 128, device=samples.z.device)
        counts.index_put_((samples.batch, samples.z), torch.ones_like(samples.pos[:, 0]), accumulate=True)
        if hasattr(samples, "num_hydrogens"):
            counts[:, 1].index_add_(0, samples.batch, samples.num_hydrogens.to(counts))
        # H to F, then all others: columns without an atom do no harm.
        return "composition", torch.cat([counts[:, [1, 6, 7, 8, 9]], counts[:, 10:].sum(1, keepdim=True)], dim=1)
    return "", None


def effective_dimension(latents: PooledLatents) -> dict[str, Any]:
    """Participation ratio and spectrum of single registers, their places' means taken out, and of pooled latents."""
    num_channels = latents.rows.shape[1]
    views = {
        "registers": centre_within(latents.rows, latents.slots),
        "samples (mean over registers)": latents.pooled[:, :num_channels],
    }
    result: dict[str, Any] = {}
    for name, rows in views.items():
        eigenvalues = covariance_spectrum(rows)
        shares = (eigenvalues / eigenvalues.sum()).tolist()
        result[name] = {
            "channels": num_channels,
            "dimension": participation_ratio(eigenvalues),
            "variance_shares": shares,
        }
    return result


def nearest_neighbours(latents: PooledLatents, num_neighbours: int = 5) -> Tensor:
    """Nearest other samples (N, k) of each, by the cosine of standardised pooled latents.

    Raises:
        UserError: There are too few samples.
    """
    num_samples = len(latents.pooled)
    require(
        num_neighbours < num_samples, f"{num_neighbours} neighbours among {num_samples} samples: raise --num_samples"
    )
    pooled = latents.pooled.double()
    standardised = (pooled - pooled.mean(0)) / pooled.std(0).clamp(min=1e-12)
    similarity = F.normalize(standardised, dim=1)
    similarity = (similarity @ similarity.T).fill_diagonal_(-torch.inf)
    nearest: Tensor = similarity.topk(num_neighbours, dim=1).indices
    return nearest


def neighbour_agreement(
    neighbours: Tensor, labels: Tensor | None, properties: dict[str, Tensor]
) -> dict[str, dict[str, float]]:
    """How much more neighbours (N, k) have in common than any two samples.

    Returns:
        For ``class``, the share of neighbours of the same class and the same of any two samples; for each property the
        mean absolute difference to neighbours and to any other sample.
    """
    result = {}
    if labels is not None:
        chance = float((labels[:, None] == labels).double().sum() - len(labels)) / (len(labels) * (len(labels) - 1))
        same = (labels[neighbours] == labels[:, None]).double().mean()
        result["class"] = {"neighbours": float(same), "any two": chance}
    for name, values in properties.items():
        near = (values[neighbours] - values[:, None]).abs().mean()
        all_pairs = (values[:, None] - values).abs().sum() / (len(values) * (len(values) - 1))
        result[name] = {"neighbours": float(near), "any two": float(all_pairs)}
    return result


def interpolate(first: Tensor, second: Tensor, weights: Sequence[float]) -> Tensor:
    """Latents on the way from ``first`` to ``second``, both (K, C), shape (len(weights), K, C).

    Directions and lengths of each register are mixed apart: the middle of two is as long as they are, where the
    straight line passes near the origin, at latents that the decoder has never seen.
    """
    steps = torch.as_tensor(weights, dtype=first.dtype, device=first.device)[:, None, None]
    straight = torch.lerp(first.expand(len(steps), -1, -1), second.expand(len(steps), -1, -1), steps)
    lengths = torch.lerp(first.norm(dim=-1, keepdim=True), second.norm(dim=-1, keepdim=True), steps)
    between: Tensor = straight * (lengths / straight.norm(dim=-1, keepdim=True).clamp(min=1e-12))
    return between


@torch.no_grad()
def decoded_interpolations(
    module: UniteModule, modality: str, samples: Any, num_pairs: int, num_steps: int, seed: int = 0
) -> tuple[list[list[Any]], list[float]]:
    """Finished objects on the way between pairs of samples of the same size.

    Args:
        module: The model, in evaluation mode.
        modality: Name of the adapter.
        samples: A batch; pairs are neighbours in the order of the batch, among samples of the same size.
        num_pairs: Pairs to take; fewer are found in small batches.
        num_steps: Objects of each pair, both ends included.
        seed: Of the registers' noise.

    Returns:
        The objects of each pair, and their weights from 0 to 1.
    """
    adapter = module.adapter(modality)
    template = adapter.template(adapter.prepare(samples))
    latents = module.tokenize(modality, samples, torch.Generator(device=module.device).manual_seed(seed))
    weights = torch.linspace(0, 1, num_steps).tolist()
    by_size: dict[int, list[int]] = {}
    for index, size in enumerate(template.sizes.tolist()):
        by_size.setdefault(size, []).append(index)
    pairs = [pair for group in by_size.values() for pair in zip(group[::2], group[1::2], strict=False)]
    rows = []
    for first, second in sorted(pairs)[:num_pairs]:
        between = interpolate(latents[first], latents[second], weights)
        copies = template[torch.full((num_steps,), first, device=module.device)]
        # Padding to the size of these molecules only, as the adapter's masks have it.
        used = adapter.registers(copies).values.shape[1]
        rows.append(adapter.finish(adapter.decode(between[:, :used], copies), copies))
    return rows, weights


@dataclass(frozen=True)
class Trajectory:
    """Predictions on the way from noise to data.

    Attributes:
        times: Times at which the clean latents were predicted.
        objects: Decoded predictions at each time, one list of samples per time.
        cosine_to_end: Mean cosine of the prediction's registers with the last ones, at each time.
        metrics: Generation metrics of the objects at each time, where the modality has some that need no reference.
    """

    times: list[float]
    objects: list[list[Any]]
    cosine_to_end: list[float]
    metrics: list[dict[str, float]]


@torch.no_grad()
def denoising_trajectory(
    module: UniteModule,
    modality: str,
    num_samples: int,
    num_steps: int = 50,
    num_shown: int = 10,
    solver: Solver = "euler",
    seed: int = 0,
) -> Trajectory:
    """Generate samples, and decode what the denoiser predicts at some of the steps (arXiv:2603.22283, section 5).

    Args:
        module: The model, in evaluation mode.
        modality: Name of the adapter.
        num_samples: How many to generate.
        num_steps: Steps of the solver.
        num_shown: Predictions to decode, evenly spread over the steps; the last is the final sample.
        solver: See :func:`unite.flow.integrate`; ``dopri5`` has no steps to look at.
        seed: Of all draws.

    Raises:
        UserError: A number is below 1, or the solver has no steps.
    """
    for name, value in (("num_samples", num_samples), ("num_steps", num_steps), ("num_shown", num_shown)):
        require(value >= 1, f"{name} is {value}; it must be at least 1")
    if solver == "dopri5":
        raise UserError("dopri5 chooses its own steps, so there is no trajectory to show: choose another solver")
    adapter = module.adapter(modality)
    generator = torch.Generator().manual_seed(seed)
    template = adapter.draw_template(num_samples, None, generator).to(module.device)
    registers, (condition, context) = adapter.registers(template), adapter.conditions(template)
    shape = (registers.values.shape[1], module.encoder.latent_channels)
    noise = SampleNoise(seed, torch.arange(num_samples))
    states: list[tuple[float, Tensor]] = [(0.0, noise(0, shape).to(module.device))]
    end = module.sample_latents(
        adapter,
        template,
        noise,
        SamplingOptions(num_steps, solver),
        on_step=lambda index, time, state: states.append((time, state)),
    )
    chosen = torch.linspace(0, num_steps, min(num_shown, num_steps + 1)).round().long().unique().tolist()
    mask = (
        torch.ones((num_samples, shape[0]), dtype=torch.bool, device=module.device)
        if registers.mask is None
        else registers.mask
    )
    times, objects, cosines, metrics = [], [], [], []
    for index in chosen:
        time, state = states[index]
        timesteps = torch.full((num_samples,), time, device=module.device)
        is_end = index == num_steps
        predicted = end if is_end else module.denoiser.denoise(state, timesteps, condition, registers, context).float()
        times.append(time)
        objects.append(adapter.finish(adapter.decode(predicted, template), template))
        cosines.append(float(F.cosine_similarity(predicted, end, dim=-1)[mask].mean()))
        metrics.append(_metrics(adapter, objects[-1]))
    return Trajectory(times, objects, cosines, metrics)


def _metrics(adapter: ModalityAdapter, objects: list[Any]) -> dict[str, float]:
    metric = adapter.generation_metric(None)
    if metric is None:
        return {}
    metric.update(objects)
    return {name: float(value) for name, value in metric.compute().items()}
