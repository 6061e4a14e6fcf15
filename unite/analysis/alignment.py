"""How alike the two passes of the Generative Encoder are: tokenizing samples, and denoising their latents.

Both passes end in the same latents of the same registers, so that their rows belong together: row (sample, register)
of the tokenization pass, and of the denoising pass of that sample's latents, noised to time t with noise of its own
(arXiv:2603.22283, section 5). Padding is never a row.

Registers carry an embedding of their place, the same in both passes and all samples. It alone makes raw CKA and cosine
high, in any network. The measures called ``within`` compare what is left after the mean of each register is taken out
on both sides: how *samples* differ.

Letters: B samples, K registers, D width, L blocks, n rows.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unite.analysis.activations import MODULATION_PARTS, Activations, recorded
from unite.analysis.loading import fresh_module, scrambled_module
from unite.analysis.similarity import MIN_ROWS, StreamingCKA, cka_matrix, cknna, cknna_huh, mean_cosine
from unite.errors import UserError, require
from unite.flow import path_sample
from unite.modalities.base import ModalityAdapter
from unite.module import UniteModule
from unite.nn.generative_encoder import Tokens

MEASURES = {
    "cka_within": "linear CKA, unbiased, mean of each register taken out",
    "cka": "linear CKA, unbiased, raw rows",
    "cka_biased": "linear CKA, biased, raw rows",
    "cknna_within": "CKNNA, mean of each register taken out",
    "cknna_huh": "CKNNA as the code of Huh et al. computes it, raw rows",
    "cosine": "mean cosine, raw rows",
    "cosine_within": "mean cosine, mean of each register taken out",
}
PAIRINGS = {
    "trained": "tokenization and denoising pass of the trained network",
    "shuffled": "the same rows, each paired with the same register of another sample",
    "untrained": "a new network of the same settings, as initialised",
    "scrambled": "the trained network, entries of each weight tensor of its encoders in random order",
}
CHUNK_ROWS = 4096


@dataclass(frozen=True)
class AlignmentSettings:
    """What to measure.

    Attributes:
        num_samples: Samples whose passes are compared.
        times: Times t of the denoising pass; 0 is noise, 1 is data.
        num_seeds: Repetitions with fresh register noise and fresh noise in the latents.
        max_rows: Most rows to keep: of each sample the same registers are taken, evenly spaced, so many that samples
            times registers stay below, and at least one.
        cknna_rows: Most rows for CKNNA, whose memory grows with their square.
        num_neighbours: Neighbours of CKNNA.
        seed: Of all draws.

    Raises:
        UserError: A setting is outside its range.
    """

    num_samples: int = 1000
    times: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    num_seeds: int = 3
    max_rows: int = 10_000
    cknna_rows: int = 1000
    num_neighbours: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_samples", MIN_ROWS), ("num_seeds", 1), ("max_rows", MIN_ROWS), ("num_neighbours", 1)):
            require(getattr(self, name) >= least, f"{name} is {getattr(self, name)}; it must be at least {least}")
        require(
            self.cknna_rows > self.num_neighbours,
            f"cknna_rows is {self.cknna_rows}; it must be above num_neighbours, {self.num_neighbours}",
        )
        if not self.times:
            raise UserError("times is empty; give at least one, for instance 0.5")
        for time in self.times:
            if not 0 <= time <= 1:
                raise UserError(f"times has {time}; each must lie in [0, 1], where 0 is noise and 1 is data")


@dataclass(frozen=True)
class _Sampled:
    """A batch as the passes take it."""

    adapter: ModalityAdapter
    prepared: Any
    registers: Tokens
    conditions: tuple[Tensor, Tokens | None]  # vectors, and tokens read in context
    rows: tuple[Tensor, Tensor]  # sample and register of each row, each (n,)


class _Collector:
    """Rows of all batches of one pass, layer by layer, with statistics of norm and scale."""

    def __init__(self) -> None:
        self.parts: list[list[Tensor]] = []
        self.residual_norms: list[list[Tensor]] = []
        self.modulation_squares: list[list[Tensor]] = []

    def add(self, activations: Activations, latents: Tensor, rows: tuple[Tensor, Tensor]) -> None:
        """Keep the rows of a batch; ``latents`` (B, K, C) is the last layer.

        Of shifts, scales and gates only the mean squares are kept, of the samples (n,) that have rows.
        """
        samples = rows[0].unique()
        _append(self.parts, [layer[rows].cpu() for layer in (*activations.registers, latents.float())])
        _append(self.residual_norms, [residual[rows].norm(dim=1).cpu() for residual in activations.residuals])
        _append(self.modulation_squares, [_mean_squares(values[samples]).cpu() for values in activations.modulations])

    @property
    def layers(self) -> list[Tensor]:
        """Rows (n, D) of each layer."""
        return [torch.cat(parts) for parts in self.parts]

    def statistics(self) -> dict[str, Any]:
        """Norms of the rows of each layer, and sizes of shift, scale and gate in each block."""
        norms = [layer.norm(dim=1) for layer in self.layers]
        # (6, L)
        sizes = torch.stack([torch.cat(parts).mean(0).sqrt() for parts in self.modulation_squares], dim=1)
        return {
            "norm": [float(norm.mean()) for norm in norms],
            "norm_std": [float(norm.std()) for norm in norms],
            "residual_norm": [float(torch.cat(parts).mean()) for parts in self.residual_norms],
            "modulation_rms": dict(zip(MODULATION_PARTS, sizes.tolist(), strict=True)),
        }


def _mean_squares(modulations: Tensor) -> Tensor:
    """Mean squares (n, 6) of the shifts, scales and gates of a block (n, 6 D)."""
    parts = [
        # Norms multiply by 1 + scale, so that is what has a size.
        1 + values if name.endswith("scale") else values
        for name, values in zip(MODULATION_PARTS, modulations.chunk(6, dim=1), strict=True)
    ]
    return torch.stack([values.square().mean(1) for values in parts], dim=1)


def _append(lists: list[list[Tensor]], values: Sequence[Tensor]) -> None:
    if not lists:
        lists.extend([] for _ in values)
    for kept, value in zip(lists, values, strict=True):
        kept.append(value)


def layer_names(depth: int) -> list[str]:
    """Names of the layers that are compared: the registers at the start and behind each block, and the latents."""
    return ["input", *[f"block {number}" for number in range(1, depth + 1)], "latents"]


@torch.no_grad()
def measure_alignment(
    module: UniteModule,
    modality: str,
    batches: Sequence[Any],
    settings: AlignmentSettings = AlignmentSettings(),
    on_pass: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Similarity of the two passes, layer by layer, at several times, with controls.

    Args:
        module: The trained model; where its weights are not shared, the encoder tokenizes and the denoiser denoises.
        modality: Name of the adapter.
        batches: Batches of samples on the module's device; those beyond ``num_samples`` are left out.
        settings: What to measure.
        on_pass: Called after each of :func:`count_passes` passes.

    Returns:
        Plain values. ``measures[measure][pairing]`` is nested [seed][time][layer]; ``matrix[t]`` is [tokenization
        layer][denoising layer] of ``cka_within`` for the first seed; ``modes`` holds norms and scales.
    """
    results: dict[str, dict[str, list[Any]]] = {name: {pairing: [] for pairing in PAIRINGS} for name in MEASURES}
    state_cosine: list[list[float]] = []
    matrices: dict[str, list[list[float]]] = {}
    modes: dict[str, Any] = {}
    num_rows = num_slots = 0
    with module.evaluation():
        networks = {
            "trained": module,
            "untrained": fresh_module(module, settings.seed),
            "scrambled": scrambled_module(module, settings.seed),
        }
        for name, seed in itertools.product(networks, range(settings.num_seeds)):
            network = networks[name]
            sampled = _sample(network, modality, batches, settings)
            slots = torch.cat([item.rows[1] for item in sampled]).cpu()
            num_rows, num_slots = len(slots), len(slots.unique())
            if num_rows < MIN_ROWS or num_rows <= settings.num_neighbours:
                raise UserError(f"{num_rows} rows are too few to compare passes: raise --num_samples")
            shuffled = _shuffle_within(slots, settings.seed)
            pairings = (name, "shuffled") if name == "trained" else (name,)
            for measure, pairing in itertools.product(MEASURES, pairings):
                results[measure][pairing].append([])
            tokenization, latents = _tokenize(network, sampled, settings, seed, on_pass)
            first = tokenization.layers
            if name == "trained":
                state_cosine.append([])
            for time in settings.times:
                denoising, noisy_rows = _denoise(network, sampled, latents, settings, seed, time, on_pass)
                second = denoising.layers
                if name == "trained":
                    state_cosine[-1].append(mean_cosine(first[-1], noisy_rows))
                if name == "trained" and seed == 0:
                    centred = [[centre_within(layer, slots) for layer in side] for side in (first, second)]
                    matrices[f"{time:g}"] = cka_matrix(*_on(module.device, *centred))
                    modes.setdefault("tokenize", tokenization.statistics())
                    modes[f"{time:g}"] = denoising.statistics()
                for pairing in pairings:
                    rows = [layer[shuffled] for layer in first] if pairing == "shuffled" else first
                    values = [_compare(x, y, slots, settings, module.device) for x, y in zip(rows, second, strict=True)]
                    for measure in MEASURES:
                        results[measure][pairing][-1].append([value[measure] for value in values])
    return {
        "settings": asdict(settings),
        "num_rows": num_rows,
        "num_registers": num_slots,
        "layers": layer_names(module.encoder.depth),
        "times": list(settings.times),
        "definitions": {"measures": MEASURES, "pairings": PAIRINGS},
        "measures": results,
        "matrix": matrices,
        # What copying the denoiser's input would reach: cosine of the noisy with the clean latents.
        "noisy_latents_cosine": state_cosine,
        "modes": modes,
    }


def count_passes(num_batches: int, settings: AlignmentSettings) -> int:
    """Forward passes of :func:`measure_alignment`, for a progress bar."""
    return num_batches * settings.num_seeds * (1 + len(settings.times)) * (len(PAIRINGS) - 1)


def _sample(module: UniteModule, modality: str, batches: Sequence[Any], settings: AlignmentSettings) -> list[_Sampled]:
    """The batches ready for both passes, and which registers of which samples become rows."""
    adapter: ModalityAdapter = module.adapter(modality)
    ready = []
    for samples in batches:
        prepared = adapter.prepare(samples)
        template = adapter.template(prepared)
        ready.append((prepared, adapter.registers(template), adapter.conditions(template), len(template)))
    most = max(registers.values.shape[1] for _, registers, _, _ in ready)
    num_slots = max(1, min(most, settings.max_rows // min(settings.num_samples, sum(size for *_, size in ready))))
    slots = torch.linspace(0, most - 1, num_slots).round().long()
    sampled, num_left = [], settings.num_samples
    for prepared, registers, conditions, size in ready:
        here = slots[slots < registers.values.shape[1]].to(module.device)
        mask = registers.mask
        real = torch.ones(size, len(here), dtype=torch.bool, device=module.device) if mask is None else mask[:, here]
        real[max(num_left, 0) :] = False
        num_left -= size
        sample, slot = real.nonzero(as_tuple=True)
        sampled.append(_Sampled(adapter, prepared, registers, conditions, (sample, here[slot])))
    return sampled


def _tokenize(
    module: UniteModule,
    sampled: list[_Sampled],
    settings: AlignmentSettings,
    seed: int,
    on_pass: Callable[[], object],
) -> tuple[_Collector, list[Tensor]]:
    """Tokenization pass of all batches, and their latents (B, K, C)."""
    collector, all_latents = _Collector(), []
    generator = torch.Generator().manual_seed(1_000_003 * settings.seed + 2 * seed)
    for item in sampled:
        tokens = item.adapter.tokens(item.prepared)
        shape = (len(tokens.values), item.registers.values.shape[1], module.encoder.latent_channels)
        # Drawn on the CPU, so that a seed gives the same numbers on every device.
        noise = torch.randn(shape, generator=generator).to(module.device)
        timesteps = torch.rand(shape[0], generator=generator).to(module.device) * module.encoder.max_tokenize_time
        with recorded(module.encoder) as activations:
            latents = module.encoder.tokenize(
                tokens, item.registers, item.adapter.null_condition(), noise=noise, timesteps=timesteps
            )
        collector.add(activations, latents, item.rows)
        all_latents.append(latents)
        on_pass()
    return collector, all_latents


def _denoise(
    module: UniteModule,
    sampled: list[_Sampled],
    all_latents: list[Tensor],
    settings: AlignmentSettings,
    seed: int,
    time: float,
    on_pass: Callable[[], object],
) -> tuple[_Collector, Tensor]:
    """Denoising pass of all batches at one time, and the rows (n, C) of its input."""
    collector, noisy = _Collector(), []
    generator = torch.Generator().manual_seed(1_000_003 * settings.seed + 2 * seed + 1)
    for item, latents in zip(sampled, all_latents, strict=True):
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        path = path_sample(latents, noise, torch.full((len(latents),), time, device=latents.device))
        condition, context = item.conditions
        with recorded(module.denoiser, 0 if context is None else context.values.shape[1]) as activations:
            prediction = module.denoiser.denoise(path.noisy_latents, path.timesteps, condition, item.registers, context)
        collector.add(activations, prediction, item.rows)
        noisy.append(path.noisy_latents[item.rows].cpu())
        on_pass()
    return collector, torch.cat(noisy)


def _shuffle_within(slots: Tensor, seed: int = 0) -> Tensor:
    """An order of the rows that gives each the same register of another sample, chosen at random."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(len(slots))
    for slot in slots.unique():
        rows = (slots == slot).nonzero()[:, 0]
        # One cycle through all rows in random order: none stays, and an order by class in the data does not matter.
        cycle = rows[torch.randperm(len(rows), generator=generator)]
        order[cycle] = cycle.roll(1)
    return order


def centre_within(rows: Tensor, slots: Tensor) -> Tensor:
    """Rows (n, D) less the mean over all rows of the same slot (n,)."""
    groups = slots.unique(return_inverse=True)[1].to(rows.device)
    sums = rows.new_zeros(int(groups.max()) + 1, rows.shape[1]).index_add_(0, groups, rows)
    centred: Tensor = rows - (sums / groups.bincount()[:, None])[groups]
    return centred


def _compare(
    x: Tensor, y: Tensor, slots: Tensor, settings: AlignmentSettings, device: torch.device
) -> dict[str, float]:
    """All measures of one layer."""
    x_within, y_within = centre_within(x, slots), centre_within(y, slots)
    raw, within = StreamingCKA(), StreamingCKA()
    for cka, first, second in ((raw, x, y), (within, x_within, y_within)):
        for first_part, second_part in zip(first.split(CHUNK_ROWS), second.split(CHUNK_ROWS), strict=True):
            cka.update(*_on(device, first_part, second_part))
    # Spread over the whole set, not its first samples only: rows of one sample lie next to one another.
    chosen = torch.linspace(0, len(x) - 1, min(settings.cknna_rows, len(x))).round().long()
    near = [rows[chosen].to(device) for rows in (x_within, y_within)]
    raw_rows = [rows[chosen].to(device) for rows in (x, y)]
    # What centring leaves of a layer that is alike in all samples is rounding.
    is_constant = any(float(w.norm()) < 1e-5 * float(r.norm()) for w, r in ((x_within, x), (y_within, y)))
    is_constant = is_constant or min(float(rows.abs().max()) for rows in near) == 0
    return {
        "cka_within": math.nan if is_constant else within.compute(),
        "cka": raw.compute(),
        "cka_biased": raw.compute(unbiased=False),
        "cknna_within": math.nan if is_constant else cknna(near[0], near[1], settings.num_neighbours),
        "cknna_huh": cknna_huh(raw_rows[0], raw_rows[1], settings.num_neighbours),
        "cosine": mean_cosine(x, y),
        "cosine_within": mean_cosine(x_within, y_within),
    }


def _on(device: torch.device, *values: Any) -> list[Any]:
    return [value.to(device) if isinstance(value, Tensor) else [part.to(device) for part in value] for value in values]


def late_layer(result: dict[str, Any], measure: str) -> dict[str, float]:
    """A measure behind the last block for each pairing, mean over seeds and times; ``result`` may come from JSON."""
    values = {name: np.asarray(rows, dtype=np.float64)[..., -2] for name, rows in result["measures"][measure].items()}
    return {
        name: float(rows[np.isfinite(rows)].mean()) if np.isfinite(rows).any() else math.nan
        for name, rows in values.items()
    }
