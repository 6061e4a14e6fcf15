"""``unite align`` and ``unite latents``: what a trained model has learned, as figures and numbers.

Imports come with the work, so that ``--help`` answers at once.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from unite.errors import UserError, require
from unite.files import write_json

if TYPE_CHECKING:
    from unite.analysis.loading import Run


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('unite ')}: {message}; see {self.prog} --help")


def run(args: list[str]) -> None:
    """Run ``align`` or ``latents``.

    Args:
        args: The command and its options.
    """
    parser = {"align": _align_parser, "latents": _latents_parser}[args[0]]()
    options, others = parser.parse_known_args(args[1:])
    data_options = _data_options(parser, others)
    with ExitStack() as options.locks:
        {"align": align, "latents": latents}[args[0]](options, data_options)


def _data_options(parser: argparse.ArgumentParser, others: list[str]) -> list[str]:
    """What is left of the options, if it is all about the data: ``--data.init_args.batch_size 64`` or with ``=``."""
    is_data = False
    for other in others:
        if other.startswith("-"):
            is_data = other.split("=")[0] == "--data" or other.startswith("--data.")
        if not is_data:
            parser.error(f"unknown option {other}")
    return others


def _common(parser: argparse.ArgumentParser, num_samples: int) -> None:
    parser.add_argument(
        "--ckpt_path",
        required=True,
        metavar="X",
        help="a checkpoint, a run folder with last.ckpt, or an exported folder",
    )
    parser.add_argument(
        "--config",
        "-c",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="where the data is described, for a checkpoint without its run's config.yaml",
    )
    parser.add_argument("--modality", metavar="NAME", help="may be left out if the model has one")
    parser.add_argument("--num_samples", type=int, default=num_samples, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--split", default="val", choices=("train", "val", "test"), help="to look at (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: in the run folder)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result there")
    parser.epilog = "Keys of the data can be overridden: --data.init_args.root DIR"


def _align_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="unite align",
        description="Compare the two passes of the Generative Encoder, tokenizing samples and denoising their latents, "
        "layer by layer and over time (CKA, CKNNA, cosine, norms), and measure the description length of its weights. "
        "Writes align.json and figures. Controls: shuffled pairs, an untrained network, scrambled weights.",
        allow_abbrev=False,
    )
    _common(parser, num_samples=1000)
    parser.add_argument(
        "--times",
        type=float,
        nargs="+",
        default=[0.1, 0.3, 0.5, 0.7, 0.9],
        metavar="T",
        help="times of the denoising pass, 0 noise and 1 data (default: 0.1 0.3 0.5 0.7 0.9)",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="repetitions (default: %(default)s)")
    parser.add_argument(
        "--max_rows",
        type=int,
        default=10_000,
        metavar="N",
        help="samples x registers to compare at most: of larger sets, some registers of every sample "
        "(default: %(default)s)",
    )
    parser.add_argument("--neighbours", type=int, default=10, metavar="K", help="of CKNNA (default: %(default)s)")
    parser.add_argument(
        "--bin_bits", type=int, default=15, metavar="B", help="weights are rounded to 2^-B (default: %(default)s)"
    )
    return parser


def _latents_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="unite latents",
        description="Look into the latents of a tokenizer: linear probes of classes or properties, effective "
        "dimension, nearest neighbours, interpolations, and denoising trajectories. Writes latents.json and figures.",
        allow_abbrev=False,
    )
    _common(parser, num_samples=2000)
    parser.add_argument(
        "--num_train",
        type=int,
        default=8000,
        metavar="N",
        help="training samples that probes are fitted to (default: %(default)s)",
    )
    parser.add_argument(
        "--num_steps", type=int, default=50, metavar="N", help="steps of a denoising trajectory (default: %(default)s)"
    )
    parser.add_argument("--solver", default="euler", choices=("euler", "midpoint", "heun", "rk4", "ancestral"))
    return parser


def align(options: argparse.Namespace, data_options: list[str]) -> None:
    """Measure, draw and write: see ``unite align --help``."""
    import torch
    from tqdm import tqdm

    from unite.analysis import alignment, compression, loading, probes

    probes.require_analysis_packages()
    from unite.analysis import figures

    settings = alignment.AlignmentSettings(
        num_samples=options.num_samples,
        times=tuple(options.times),
        num_seeds=options.seeds,
        max_rows=options.max_rows,
        num_neighbours=options.neighbours,
        seed=options.seed,
    )
    if not 1 <= options.bin_bits <= 30:
        raise UserError(f"--bin_bits is {options.bin_bits}; it must lie in 1 .. 30")
    run, modality, folder = _begin(options, data_options, "align")
    title = f"{run.name}, {modality}"

    torch.manual_seed(options.seed)  # the order of training samples
    batches = list(loading.batches(run, modality, options.split, settings.num_samples))
    total = alignment.count_passes(len(batches), settings)
    with tqdm(total=total, desc="align", unit="pass") as bar:
        result = alignment.measure_alignment(run.module, modality, batches, settings, bar.update)
    lengths = compression.measure_compression(run.module, 2.0**-options.bin_bits, options.seed)
    written = [
        figures.draw_layers(result, title, folder / "align_layers.png"),
        figures.draw_matrix(result, title, folder / "align_matrix.png"),
        figures.draw_times(result, title, folder / "align_times.png"),
        figures.draw_modes(result, title, folder / "align_modes.png"),
        figures.draw_compression(lengths, title, folder / "compression.png"),
        write_json(  # the last, because it stands for a finished command
            folder / "align.json",
            {**_origin(run, modality), "split": options.split, "alignment": result, "compression": lengths},
            indent=1,
        ),
    ]
    print(f"{result['num_rows']:,} rows of {result['num_registers']} registers; behind the last block, mean over t:")
    _print_pairings(alignment.late_layer(result, "cka_within"), "CKA")
    _print_pairings(alignment.late_layer(result, "cknna_within"), "CKNNA")
    for network, states in lengths["networks"].items():
        for state, described in states.items():
            parts = described["parts"]
            sizes = ", ".join(f"{part} {parts[part]['megabytes']:.4g}" for part in parts)
            print(f"weights of {network}, {state}: {sizes} MB")
    _report(written)


def latents(options: argparse.Namespace, data_options: list[str]) -> None:
    """Measure, draw and write: see ``unite latents --help``."""
    import torch
    from tqdm import tqdm

    from unite.analysis import latents as looking
    from unite.analysis import loading, probes
    from unite.modalities.combined import datamodule_of

    probes.require_analysis_packages()
    from unite.analysis import figures

    for name, least in (("num_samples", max(NUM_SHOWN, NUM_NEIGHBOURS + 1)), ("num_train", 10), ("num_steps", 1)):
        require(getattr(options, name) >= least, f"--{name} is {getattr(options, name)}; it must be at least {least}")
    run, modality, folder = _begin(options, data_options, "latents")
    title = f"{run.name}, {modality}"

    adapter = run.module.adapter(modality)
    pooled, properties = {}, {}
    test_batches: list[Any] = []
    for use, split, number in (("train", "train", options.num_train), ("test", options.split, options.num_samples)):
        torch.manual_seed(options.seed)  # the order of training samples
        batches: Any = tqdm(loading.batches(run, modality, split, number), desc=f"tokenize {split}", unit="batch")
        if use == "test":
            batches = test_batches = list(batches)
        pooled[use] = looking.pooled_latents(run.module, modality, batches, number, options.seed)
        ids = pooled[use].molecule_id
        properties[use] = {} if ids is None else probes.read_properties(datamodule_of(run.datamodule, modality), ids)
    test = pooled["test"]
    neighbours = looking.nearest_neighbours(test, NUM_NEIGHBOURS)
    named = {probes.PROPERTIES[column][0]: values for column, values in properties["test"].items()}
    objects = [item for samples in test_batches for item in adapter.originals(adapter.prepare(samples))]
    rows, weights = looking.decoded_interpolations(
        run.module, modality, test_batches[0], NUM_SHOWN, NUM_COLUMNS, options.seed
    )
    trajectory = looking.denoising_trajectory(
        run.module, modality, NUM_TRAJECTORIES, options.num_steps, NUM_COLUMNS, options.solver, options.seed
    )
    result = {
        **_origin(run, modality),
        "split": options.split,
        "probes": probes.probe_latents(pooled["train"], test, properties["train"], properties["test"]),
        "dimension": looking.effective_dimension(test),
        "neighbours": {
            "number": NUM_NEIGHBOURS,
            "agreement": looking.neighbour_agreement(neighbours, test.labels, named),
            "indices": neighbours.tolist(),
        },
        "interpolation": {"weights": weights, "pairs": len(rows)},
        "trajectory": {
            "solver": options.solver,
            "num_steps": options.num_steps,
            "num_samples": NUM_TRAJECTORIES,
            "times": trajectory.times,
            "cosine_to_end": trajectory.cosine_to_end,
            "metrics": trajectory.metrics,
        },
    }
    written = [
        figures.draw_spectrum(result["dimension"], title, folder / "dimension.png"),
        figures.draw_trajectory_curve(result["trajectory"], title, folder / "trajectory_curve.png"),
        figures.draw_objects(
            adapter,
            [[at_time[index] for at_time in trajectory.objects] for index in range(NUM_SHOWN)],
            [f"t = {time:.2f}" for time in trajectory.times],
            f"Decoded predictions on the way from noise. {title}",
            folder / "trajectory.png",
        ),
    ]
    if {"classes", "properties"} & result["probes"].keys():
        written.append(figures.draw_probes(result["probes"], title, folder / "probes.png"))
        _print_probes(result["probes"])
    if rows:
        written.append(
            figures.draw_objects(
                adapter,
                rows,
                [f"{weight:.2f}" for weight in weights],
                f"Decoded latents between two samples (0 and 1). {title}",
                folder / "interpolation.png",
            )
        )
    if objects:
        written.append(
            figures.draw_objects(
                adapter,
                [
                    [objects[i], *(objects[j] for j in neighbours[i].tolist())]
                    for i in range(min(NUM_SHOWN, len(objects)))
                ],
                ["sample", *(f"neighbour {n}" for n in range(1, NUM_NEIGHBOURS + 1))],
                f"Nearest samples by their latents. {title}",
                folder / "neighbours.png",
            )
        )
    written.append(write_json(folder / "latents.json", result, indent=1))  # the last: it stands for a finished command
    for name, view in result["dimension"].items():
        print(f"effective dimension, {name}: {view['dimension']:.2f} of {view['channels']}")
    for name, pair in result["neighbours"]["agreement"].items():
        print(f"{name}: neighbours {pair['neighbours']:.4g}, any two {pair['any two']:.4g}")
    _report(written)


NUM_NEIGHBOURS = 5
NUM_SHOWN = 6
NUM_COLUMNS = 10
NUM_TRAJECTORIES = 200


def _begin(options: argparse.Namespace, data_options: list[str], name: str) -> "tuple[Run, str, Path]":
    """Load what is asked for; refuse what cannot work before long work."""
    from unite.analysis import loading
    from unite.console import shown, silence_noise
    from unite.files import leaving_no_empty_folders
    from unite.files.locks import OUTPUT_HINT, only_one
    from unite.runs.folder import find_checkpoint

    silence_noise()
    checkpoint = find_checkpoint(options.ckpt_path)
    assert checkpoint is not None
    folder = options.output or checkpoint.parent / name
    with leaving_no_empty_folders(folder), ExitStack() as locks:
        loading.claim_output(folder, f"{name}.json", options.overwrite)
        locks.enter_context(only_one(folder, OUTPUT_HINT))
        run = loading.load_run(options, data_options)
        modality = loading.choose_modality(run.module, options.modality)
        options.locks.push(locks.pop_all())
    print(f"checkpoint {shown(run.checkpoint)}, step {run.step}", flush=True)
    return run, modality, folder


def _origin(run: "Run", modality: str) -> dict[str, Any]:
    """What a result is of."""
    return {"run": run.name, "checkpoint": str(run.checkpoint), "step": run.step, "modality": modality}


def _print_pairings(values: dict[str, float], measure: str) -> None:
    print(f"  {measure:<6} {', '.join(f'{pairing} {value:.3f}' for pairing, value in values.items())}")


def _print_probes(result: dict[str, Any]) -> None:
    for kind, scores in result.get("classes", {}).items():
        print(f"class from {kind}: accuracy {scores['accuracy']:.3f}")
    for name, probe in result.get("properties", {}).items():
        for kind, scores in probe["scores"].items():
            print(f"{name} from {kind}: R² {scores['r2']:.3f}, mean error {scores['mae']:.3g} {probe['unit']}")


def _report(written: list[Path]) -> None:
    from unite.console import shown

    for path in written:
        print(f"wrote {shown(path)}")
