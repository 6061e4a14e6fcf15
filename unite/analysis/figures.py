"""Figures of the analyses: each legible alone, and drawn from plain values that are written beside it as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from PIL import Image
from rdkit import Chem

from unite.analysis.compression import PARTS, STATES
from unite.modalities.base import ModalityAdapter
from unite.modalities.molecule.files.shapes import principal_axes

DPI = 110
NUM_COLOURS = 128
CONTROL_STYLES = {
    "shuffled": ("tab:red", "--", "shuffled pairs"),
    "untrained": ("black", ":", "untrained network"),
    "scrambled": ("tab:gray", "-.", "scrambled weights"),
}
SHORT_LAYERS = 16
"""With more layers, not every one is named on an axis."""
ELEMENT_COLOURS = {"H": "white", "C": "dimgray", "N": "royalblue", "O": "crimson", "F": "limegreen"}
BALL_SIZE = 0.5
"""Radius of an atom in a drawing, in covalent radii."""


def save(figure: Figure, title: str, path: Path, has_colour_scale: bool = False) -> Path:
    """Give a figure its title, write it as PNG, and close it; of few colours (a third of the bytes) if they suffice."""
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    if has_colour_scale:
        return path
    with Image.open(path) as picture:
        reduced = picture.convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)
    return path


def _mean_and_spread(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the first axis (seeds)."""
    array = np.asarray(values, dtype=np.float64)
    return array.mean(0), array.std(0)


def _spread_note(result: dict[str, Any]) -> str:
    """What bands and error bars are, for a title."""
    num_seeds = result["settings"]["num_seeds"]
    return f" (± standard deviation over {num_seeds} seeds)" if num_seeds > 1 else ""


def _layer_axis(axes: Axes, names: Sequence[str]) -> None:
    step = 1 if len(names) <= SHORT_LAYERS else 4
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=60, ha="right", fontsize=8)
    axes.set_xlabel("layer")


def draw_layers(result: dict[str, Any], title: str, path: Path) -> Path:
    """Similarity of the two passes layer by layer: one curve per time, controls averaged over times."""
    panels = {
        "cka_within": "linear CKA\n(unbiased, registers' means taken out)",
        "cknna_within": f"CKNNA, k = {result['settings']['num_neighbours']}\n(registers' means taken out)",
        "cosine_within": "mean cosine\n(registers' means taken out)",
        "cka": "linear CKA\n(unbiased, raw: places of registers count)",
    }
    names, times = result["layers"], result["times"]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 4.3), layout="constrained", sharey=True)
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(times)))
    for ax, (measure, label) in zip(axes, panels.items(), strict=True):
        values = result["measures"][measure]
        mean, spread = _mean_and_spread(values["trained"])  # (times, layers)
        for index, time in enumerate(times):
            ax.plot(mean[index], color=colours[index], marker="o", markersize=3, label=f"trained, t = {time:g}")
            low, high = mean[index] - spread[index], mean[index] + spread[index]
            ax.fill_between(range(len(names)), low, high, color=colours[index], alpha=0.2, linewidth=0)
        for name, (colour, style, text) in CONTROL_STYLES.items():
            control = np.asarray(values[name], dtype=np.float64).mean(axis=(0, 1))
            ax.plot(control, color=colour, linestyle=style, label=f"{text}, mean over t")
        ax.set_title(label, fontsize=9)
        ax.grid(alpha=0.3)
        _layer_axis(ax, names)
    axes[0].set_ylabel("similarity of tokenization and denoising\n(0 none, 1 the same)")
    axes[0].set_ylim(min(-0.1, axes[0].get_ylim()[0]), 1.03)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return save(figure, f"Do the two passes agree? {title}{_spread_note(result)}", path)


def draw_matrix(result: dict[str, Any], title: str, path: Path) -> Path:
    """CKA of every layer of one pass with every layer of the other, one panel per time."""
    names, matrices = result["layers"], result["matrix"]
    chosen = list(matrices)[:: max(1, (len(matrices) + 1) // 3)] if len(matrices) > 3 else list(matrices)
    figure, axes = plt.subplots(
        1, len(chosen), figsize=(3.6 * len(chosen) + 1, 4.2), layout="constrained", squeeze=False, sharey=True
    )
    for ax, time in zip(axes[0], chosen, strict=True):
        values = np.asarray(matrices[time], dtype=np.float64)
        image = ax.imshow(values, origin="lower", vmin=0, vmax=1, cmap="magma")
        if len(names) <= 8:
            for row, column in np.ndindex(values.shape):
                colour = "white" if not values[row, column] > 0.6 else "black"
                ax.text(
                    column,
                    row,
                    f"{values[row, column]:.2f}".replace("-0.00", "0.00"),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=colour,
                )
        _layer_axis(ax, names)
        ax.set_xlabel("layer of the denoising pass")
        ax.set_title(f"t = {time}", fontsize=9)
    step = 1 if len(names) <= SHORT_LAYERS else 4
    axes[0][0].set_yticks(range(0, len(names), step), names[::step], fontsize=8)
    axes[0][0].set_ylabel("layer of the tokenization pass")
    figure.colorbar(image, ax=axes[0].tolist(), label="linear CKA (unbiased,\nregisters' means taken out)", shrink=0.8)
    return save(figure, f"Which layers match which? {title}", path, has_colour_scale=True)


def draw_times(result: dict[str, Any], title: str, path: Path) -> Path:
    """Agreement of the final outputs over time, against what the noisy input has already."""
    times = result["times"]
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
    for ax, measure, label in (
        (axes[0], "cosine", "mean cosine of the latents"),
        (axes[1], "cka_within", "linear CKA of the latents\n(registers' means taken out)"),
    ):
        values = result["measures"][measure]
        mean, spread = (part[:, -1] for part in _mean_and_spread(values["trained"]))
        ax.errorbar(times, mean, spread, color="tab:blue", marker="o", capsize=3, label="prediction and clean latents")
        for name, (colour, style, text) in CONTROL_STYLES.items():
            control = np.asarray(values[name], dtype=np.float64)[..., -1].mean(0)
            if np.isfinite(control).any():
                ax.plot(times, control, color=colour, linestyle=style, marker=".", label=text)
        if measure == "cosine":
            copied, _ = _mean_and_spread(result["noisy_latents_cosine"])
            ax.plot(times, copied, color="tab:orange", marker="s", markersize=4, label="noisy input and clean latents")
        ax.set_xlabel("time t (0 noise, 1 data)")
        ax.set_ylabel(label)
        ax.set_ylim(min(-0.1, ax.get_ylim()[0]), 1.03)
        ax.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return save(figure, f"Final outputs of the two passes. {title}{_spread_note(result)}", path)


def draw_modes(result: dict[str, Any], title: str, path: Path) -> Path:
    """Norms and adaptive scales in both modes: how the passes differ where their directions agree."""
    modes, names = result["modes"], result["layers"]
    depth = len(names) - 2
    blocks = range(1, depth + 1)
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained", sharex=True)
    panels = (
        ("length of a register (mean)", lambda mode: mode["norm"][1:-1]),
        ("attention: scale (rms of 1 + scale)", lambda mode: mode["modulation_rms"]["attention scale"]),
        ("attention: gate (rms)", lambda mode: mode["modulation_rms"]["attention gate"]),
        ("length before the block's last norm", lambda mode: mode["residual_norm"]),
        ("MLP: scale (rms of 1 + scale)", lambda mode: mode["modulation_rms"]["mlp scale"]),
        ("MLP: gate (rms)", lambda mode: mode["modulation_rms"]["mlp gate"]),
    )
    times = [name for name in modes if name != "tokenize"]
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(times)))
    for ax, (label, values) in zip(axes.flat, panels, strict=True):
        ax.plot(blocks, values(modes["tokenize"]), color="tab:red", marker="s", linewidth=2, label="tokenization")
        for colour, time in zip(colours, times, strict=True):
            ax.plot(blocks, values(modes[time]), color=colour, marker="o", markersize=3, label=f"denoising, t = {time}")
        ax.set_title(label, fontsize=9)
        ax.set_ylim(0, 1.08 * ax.get_ylim()[1])
        ax.grid(alpha=0.3)
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    for ax in axes[1]:
        ax.set_xlabel("behind block" if ax is axes[1][0] else "block")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    return save(figure, f"How the two modes differ in size. {title}", path)


def draw_compression(result: dict[str, Any], title: str, path: Path) -> Path:
    """Bits per weight and total length of the weights, by part and state."""
    networks = result["networks"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    groups = [(network, part) for network in networks for part in PARTS]
    labels = [part if len(networks) == 1 else f"{network}:\n{part}" for network, part in groups]
    width = 0.8 / len(STATES)
    colours = {"initial": "lightgray", "random": "tab:gray", "trained": "tab:blue"}
    for offset, (state, colour) in enumerate(colours.items()):
        places = np.arange(len(groups)) + (offset - 1) * width
        for ax, key in zip(axes, ("megabytes", "bits_per_weight"), strict=True):
            values = [networks[network][state]["parts"][part][key] for network, part in groups]
            bars = ax.bar(places, values, width, color=colour, label=state)
            ax.bar_label(bars, fmt="%.3g", fontsize=7, padding=1)
    unit = "description length (MB = 10⁶ bytes)"
    for ax, label in zip(axes, (unit, "bits per weight"), strict=True):
        ax.set_xticks(range(len(groups)), labels, fontsize=8)
        ax.set_ylabel(label)
        ax.margins(y=0.1)
        ax.set_axisbelow(True)
        ax.grid(alpha=0.3, axis="y")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    bins = f"bins of 2^{np.log2(result['bin_width']):g}"
    sharing = "shared weights" if result["is_shared"] else "separate weights"
    return save(figure, f"Histogram entropy of the weights, {bins}, {sharing}. {title}", path)


def draw_spectrum(result: dict[str, Any], title: str, path: Path) -> Path:
    """Share of variance of each principal direction of the latents."""
    figure, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for marker, (name, view) in zip("os", result.items(), strict=True):
        label = f"{name}: effective dimension {view['dimension']:.1f} of {view['channels']}"
        ax.plot(range(1, len(view["variance_shares"]) + 1), view["variance_shares"], marker=marker, label=label)
    ax.axhline(1 / view["channels"], color="black", linestyle=":", label="all directions alike")
    ax.set_xlabel("principal direction")
    ax.set_ylabel("share of variance")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return save(figure, f"Dimension of the latents. {title}", path)


def draw_probes(result: dict[str, Any], title: str, path: Path) -> Path:
    """Scores of linear probes: accuracy for classes, R² for properties."""
    scores: dict[str, dict[str, float]] = {}
    if "classes" in result:
        scores["class (accuracy)"] = {name: value["accuracy"] for name, value in result["classes"].items()}
    for name, probe in result.get("properties", {}).items():
        # The mean of the training samples has R² 0, but for chance.
        scored = list(probe["scores"].items())[1:]
        scores[f"{name} (R²)"] = {kind: value["r2"] for kind, value in scored}
    kinds = list(dict.fromkeys(kind for values in scores.values() for kind in values))
    figure, ax = plt.subplots(figsize=(max(6.0, 1.5 * len(scores) + 3), 4.2), layout="constrained")
    width = 0.85 / len(kinds)
    for offset, kind in enumerate(kinds):
        places = np.arange(len(scores)) + (offset - (len(kinds) - 1) / 2) * width
        found = [values.get(kind) for values in scores.values()]
        bars = ax.bar(places, [max(value or 0.0, 0.0) for value in found], width, label=kind)
        numbers = ["" if value is None else f"{value:.2f}" for value in found]  # below 0, too, where no bar is
        ax.bar_label(bars, numbers, fontsize=7, rotation=90, padding=2)
    ax.set_xticks(range(len(scores)), [name.replace(" (", "\n(") for name in scores], fontsize=8)
    ax.set_ylabel(f"score on {result['num_test']:,} test samples")
    ax.set_ylim(0, 1.12)
    ax.set_axisbelow(True)
    ax.grid(alpha=0.3, axis="y")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return save(figure, f"Linear probes, {result['num_train']:,} training samples. {title}", path)


def draw_objects(
    adapter: ModalityAdapter,
    rows: Sequence[Sequence[Any]],
    columns: Sequence[str],
    title: str,
    path: Path,
) -> Path:
    """Finished objects in a table, one picture each, below the names of their columns."""
    cell = 1.05 if len(columns) > 6 else 1.4
    figure, axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(cell * len(columns), cell * len(rows) + 0.8),
        layout="constrained",
        squeeze=False,
    )
    for row, objects in zip(axes, rows, strict=True):
        for ax, item in zip(row, objects, strict=True):
            picture = np.asarray(adapter.draw([item]).convert("RGB"))
            ax.imshow(picture, interpolation="nearest" if max(picture.shape) <= 128 else "antialiased")
            ax.set_axis_off()
    for ax, name in zip(axes[0], columns, strict=True):
        ax.set_title(name, fontsize=8)
    return save(figure, title, path)


def draw_shapes(mols: Sequence[Chem.Mol], names: Sequence[str], title: str, path: Path) -> Path:
    """Molecules in space as balls and sticks: a column each, above its broad side, below turned by 90° about x.

    Args:
        mols: Molecules with positions, for instance from the SDF file that an adapter saves.
        names: What stands above each.
        title: What stands above all.
        path: File to write.
    """
    table = Chem.GetPeriodicTable()
    shapes = [principal_axes(mol.GetConformer().GetPositions()) for mol in mols]
    reach = max(float(np.abs(shape).max()) for shape in shapes) + 1
    size = 2.0
    figure, axes = plt.subplots(
        2,
        len(mols),
        figsize=(size * len(mols) + 0.6, 2 * size + 0.9),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for column, (mol, shape, name) in enumerate(zip(mols, shapes, names, strict=True)):
        for ax, (up, towards) in zip(axes[:, column], ((1, 2), (2, 1)), strict=True):
            # Turned by +90° about x, what was y points away from the reader.
            depth = shape[:, towards] * (1 if up == 1 else -1)
            flat = shape[:, [0, up]]
            for bond in mol.GetBonds():
                ends = [bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()]
                behind = depth[ends].min() - 0.01  # both of its atoms
                ax.plot(*flat[ends].T, color="gray", linewidth=3, solid_capstyle="round", zorder=behind)
            for atom, place, nearness in zip(mol.GetAtoms(), flat, depth, strict=True):
                radius = BALL_SIZE * table.GetRcovalent(atom.GetAtomicNum())
                colour = ELEMENT_COLOURS.get(atom.GetSymbol(), "violet")
                ax.add_patch(Circle(place, radius, facecolor=colour, edgecolor="black", lw=0.6, zorder=nearness))
            ax.set_aspect("equal")
            ax.set_xlim(-reach, reach)
            ax.set_ylim(-reach, reach)
            ax.tick_params(labelsize=7)
        axes[0][column].set_title(name, fontsize=8)
    axes[0][0].set_ylabel("y (Å)", fontsize=8)
    axes[1][0].set_ylabel("z (Å)", fontsize=8)
    for ax in axes[1]:
        ax.set_xlabel("x (Å)", fontsize=8)
    present = {atom.GetSymbol() for mol in mols for atom in mol.GetAtoms()}
    balls = [
        Line2D([], [], marker="o", linestyle="", markerfacecolor=colour, markeredgecolor="black", label=symbol)
        for symbol, colour in ELEMENT_COLOURS.items()
        if symbol in present
    ]
    figure.legend(handles=balls, loc="outside lower center", ncols=len(ELEMENT_COLOURS), fontsize=8)
    return save(figure, title, path)


def draw_trajectory_curve(result: dict[str, Any], title: str, path: Path) -> Path:
    """Cosine of the prediction with the end over time, and the validity of what it decodes to, where there is one."""
    figure, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
    ax.plot(result["times"], result["cosine_to_end"], marker="o", label="cosine of prediction and final latents")
    if all("validity" in metrics for metrics in result["metrics"]):
        validity = [metrics["validity"] for metrics in result["metrics"]]
        ax.plot(result["times"], validity, marker="s", label="validity of decoded predictions")
    ax.set_xlabel("time t (0 noise, 1 data)")
    ax.set_ylabel("cosine, or share of samples")
    ax.set_ylim(min(0.0, ax.get_ylim()[0]), 1.03)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return save(figure, f"From noise to data, mean of {result['num_samples']} samples. {title}", path)
