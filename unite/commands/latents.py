"""``unite latents``: what a tokenizer has learned, as figures and numbers.

Imports come with the work, so that ``--help`` answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from unite.commands.line.measured_run import MeasuredRun
from unite.console import shown
from unite.errors import require
from unite.files import write_json

if TYPE_CHECKING:
    from unite.analysis.loading import Run
    from unite.flow import Solver

NUM_NEIGHBOURS = 5
NUM_SHOWN = 6
NUM_COLUMNS = 10
NUM_TRAJECTORIES = 200


def latents(
    *,
    measured: MeasuredRun,
    others: list[str],
    num_samples: int = 2000,
    num_train: int = 8000,
    num_steps: int = 50,
    solver: Literal["euler", "midpoint", "heun", "rk4", "ancestral"] = "euler",
) -> None:
    """Measure the latents of a tokenizer.

    Linear probes of classes or properties, effective dimension, nearest neighbours, interpolations, and denoising
    trajectories. Writes latents.json and figures.

    Args:
        measured: The model, its data, and where the results go.
        others: Keys of the data to override: --data.init_args.root DIR.
        num_samples: Number of samples.
        num_train: Number of training samples that probes are fitted to.
        num_steps: Steps of a denoising trajectory.
        solver: Solver of the denoising trajectory.

    Raises:
        UserError: The model or its data cannot be read, or an option is wrong.
    """
    from unite.analysis import probes

    probes.require_analysis_packages()
    least = {"num_samples": max(NUM_SHOWN, NUM_NEIGHBOURS + 1), "num_train": 10, "num_steps": 1}
    for name, value in {"num_samples": num_samples, "num_train": num_train, "num_steps": num_steps}.items():
        require(value >= least[name], f"--{name} is {value}; it must be at least {least[name]}")
    with measured.opened("latents", others) as (run, folder):
        split, seed = measured.split, measured.seed
        result, objects = _measure(run, split, num_train, num_samples, num_steps, solver, seed)
        written = _draw(run, result, objects, folder)
        # The last, since it stands for a finished command.
        written.append(write_json(folder / "latents.json", result, indent=1))
    if {"classes", "properties"} & result["probes"].keys():
        _print_probes(result["probes"])
    for name, view in result["dimension"].items():
        print(f"effective dimension, {name}: {view['dimension']:.2f} of {view['channels']}")
    for name, pair in result["neighbours"]["agreement"].items():
        print(f"{name}: neighbours {pair['neighbours']:.4g}, any two {pair['any two']:.4g}")
    for path in written:
        print(f"wrote {shown(path)}")


class _Objects(NamedTuple):
    """Rows of data objects that are drawn: neighbours of samples, between two samples, and out of noise."""

    neighbours: list[list[Any]]
    interpolations: list[list[Any]]
    trajectories: list[list[Any]]


def _measure(
    run: "Run", split: str, num_train: int, num_samples: int, num_steps: int, solver: "Solver", seed: int
) -> tuple[dict[str, Any], _Objects]:
    import torch
    from tqdm import tqdm

    from unite.analysis import latents as looking
    from unite.analysis import loading, probes
    from unite.modalities.combined import datamodule_of

    adapter, data = run.module.adapter(run.modality), datamodule_of(run.datamodule, run.modality)
    pooled, properties = {}, {}
    batches: list[Any] = []
    for use, part, number in (("train", "train", num_train), ("test", split, num_samples)):
        torch.manual_seed(seed)  # the order of training samples
        found: Any = tqdm(loading.batches(run, part, number), desc=f"tokenize {part}", unit="batch")
        if use == "test":
            found = batches = list(found)
        pooled[use] = looking.pooled_latents(run.module, run.modality, found, number, seed)
        ids = pooled[use].molecule_id
        properties[use] = pooled[use].properties | ({} if ids is None else probes.read_properties(data, ids))
    test = pooled["test"]
    neighbours = looking.nearest_neighbours(test, NUM_NEIGHBOURS)
    named = {
        probes.PROPERTIES.get(column, (column,))[0]: values
        for column, values in properties["test"].items()
        if values.isfinite().all()
    }
    originals = [item for samples in batches for item in adapter.originals(adapter.prepare(samples))]
    rows, weights = looking.decoded_interpolations(run.module, run.modality, batches[0], NUM_SHOWN, NUM_COLUMNS, seed)
    trajectory = looking.denoising_trajectory(
        run.module, run.modality, NUM_TRAJECTORIES, num_steps, NUM_COLUMNS, solver, seed
    )
    result = {
        **run.origin(),
        "split": split,
        "probes": probes.probe_latents(pooled["train"], test, properties["train"], properties["test"]),
        "dimension": looking.effective_dimension(test),
        "neighbours": {
            "number": NUM_NEIGHBOURS,
            "agreement": looking.neighbour_agreement(neighbours, test.labels, named),
            "indices": neighbours.tolist(),
        },
        "interpolation": {"weights": weights, "pairs": len(rows)},
        "trajectory": {
            "solver": solver,
            "num_steps": num_steps,
            "num_samples": NUM_TRAJECTORIES,
            "times": trajectory.times,
            "cosine_to_end": trajectory.cosine_to_end,
            "metrics": trajectory.metrics,
        },
    }
    nearest = [
        [originals[i], *(originals[j] for j in neighbours[i].tolist())] for i in range(min(NUM_SHOWN, len(originals)))
    ]
    out_of_noise = [[at_time[index] for at_time in trajectory.objects] for index in range(NUM_SHOWN)]
    return result, _Objects(nearest, rows, out_of_noise)


def _draw(run: "Run", result: dict[str, Any], objects: _Objects, folder: Path) -> list[Path]:
    from unite.analysis import figures

    title, adapter = f"{run.name}, {run.modality}", run.module.adapter(run.modality)
    written = [
        figures.draw_spectrum(result["dimension"], title, folder / "dimension.png"),
        figures.draw_trajectory_curve(result["trajectory"], title, folder / "trajectory_curve.png"),
    ]
    if {"classes", "properties"} & result["probes"].keys():
        written.append(figures.draw_probes(result["probes"], title, folder / "probes.png"))
    times = [f"t = {time:.2f}" for time in result["trajectory"]["times"]]
    weights = [f"{weight:.2f}" for weight in result["interpolation"]["weights"]]
    nearest = ["sample", *(f"neighbour {n}" for n in range(1, NUM_NEIGHBOURS + 1))]
    for rows, heads, words, name in (
        (objects.trajectories, times, "Decoded predictions on the way from noise", "trajectory"),
        (objects.interpolations, weights, "Decoded latents between two samples (0 and 1)", "interpolation"),
        (objects.neighbours, nearest, "Nearest samples by their latents", "neighbours"),
    ):
        if rows:
            written.append(figures.draw_objects(adapter, rows, heads, f"{words}. {title}", folder / f"{name}.png"))
    return written


def _print_probes(result: dict[str, Any]) -> None:
    for kind, scores in result.get("classes", {}).items():
        print(f"class from {kind}: accuracy {scores['accuracy']:.3f}")
    for name, probe in result.get("properties", {}).items():
        for kind, scores in probe["scores"].items():
            print(f"{name} from {kind}: R² {scores['r2']:.3f}, mean error {scores['mae']:.3g} {probe['unit']}")
