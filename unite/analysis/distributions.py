"""A picture of how generated molecules are spread, beside those of a reference."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from unite.analysis.figures import save
from unite.modalities.molecule.metrics.distributions import GROUPS, Shape

_COLOURS = ("tab:gray", "tab:blue")
_BONDS = 4  # most frequent types of bonds that are drawn
_BINS = 40


def draw_distributions(samples: Sequence[Shape], reference: Sequence[Shape], path: Path) -> Path:
    """Lengths of the most frequent bonds, sizes, rings, elements and functional groups of both sets, side by side.

    Args:
        samples: Generated molecules.
        reference: Those to compare with.
        path: PNG file to write.
    """
    sets = (reference, samples)
    kinds = Counter(kind for shape in reference for kind, _ in shape.bonds).most_common(_BONDS)
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.5), layout="constrained")
    for ax, (kind, _) in zip(axes[0], kinds, strict=False):
        _histograms(ax, [[length for shape in s for name, length in shape.bonds if name == kind] for s in sets])
        ax.set_title(f"{kind} bonds, Å")
    _histograms(axes[1, 0], [[shape.radius for shape in s] for s in sets])
    axes[1, 0].set_title("radius of gyration, Å")
    _bars(axes[1, 1], [Counter(str(len(shape.rings)) for shape in s) for s in sets], list(map(len, sets)))
    axes[1, 1].set_title("rings of a molecule")
    sizes = [Counter(str(size) for shape in s for size in shape.rings) for s in sets]
    _bars(axes[1, 2], sizes, list(map(len, sets)))
    axes[1, 2].set_title("rings of each size, per molecule")
    groups = [Counter(group for shape in s for group in shape.groups) for s in sets]
    _bars(axes[1, 3], groups, list(map(len, sets)), list(GROUPS))
    axes[1, 3].set_title("molecules with a group")
    handles = [Rectangle((0, 0), 1, 1, color=colour, alpha=0.6) for colour in _COLOURS]
    figure.legend(handles, ["reference", "samples"], loc="outside lower center", ncols=2)
    return save(figure, f"{len(samples):,} valid molecules beside {len(reference):,} of the reference", path)


def _histograms(ax: Axes, values: Sequence[Sequence[float]]) -> None:
    low, high = np.percentile(values[0], [0.1, 99.9])
    margin = 0.25 * (high - low) + 1e-3
    bins = np.linspace(low - margin, high + margin, _BINS)
    for found, colour in zip(values, _COLOURS, strict=True):
        # What lies outside is counted at the ends, so that nothing is hidden.
        ax.hist(np.clip(found, bins[0], bins[-1]), bins.tolist(), density=True, color=colour, alpha=0.6)
    ax.set_yticks([])


def _bars(ax: Axes, counts: Sequence[Counter[str]], totals: Sequence[int], names: Sequence[str] | None = None) -> None:
    """Bars of both sets at each name, as shares of the totals; names as they occur if none are given."""
    if names is None:
        names = [name for name, _ in sorted((counts[0] + counts[1]).items(), key=lambda item: (len(item[0]), item[0]))]
    for number, (found, total, colour) in enumerate(zip(counts, totals, _COLOURS, strict=True)):
        places = np.arange(len(names)) + 0.4 * number - 0.2
        ax.bar(places, [found[name] / total for name in names], 0.4, color=colour, alpha=0.8)
    is_long = len(names) > 10
    ax.set_xticks(np.arange(len(names)), [name.replace("_", " ") for name in names], rotation=90 if is_long else 0)
    ax.tick_params(axis="x", labelsize=7 if is_long else 9)
