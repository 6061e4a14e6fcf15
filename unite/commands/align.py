"""``unite align``: do the two passes of the Generative Encoder agree?

Imports come with the work, so that ``--help`` answers at once.
"""

from pathlib import Path
from typing import Literal

from unite.commands.line.options import torch_device
from unite.console import shown
from unite.errors import require
from unite.files.checked_json import write_checked_json


def align(
    *,
    ckpt_path: str,
    others: list[str],
    config: list[Path] = [],  # noqa: B006 (never written to)
    modality: str | None = None,
    num_samples: int = 1000,
    split: Literal["train", "val", "test"] = "val",
    seed: int = 0,
    device: str | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    times: list[float] = [0.1, 0.3, 0.5, 0.7, 0.9],  # noqa: B006 (never written to)
    seeds: int = 3,
    max_rows: int = 10_000,
    neighbours: int = 10,
    bin_bits: int = 15,
) -> None:
    """Compare the two passes of the Generative Encoder, tokenizing samples and denoising their latents.

    Layer by layer and over time (CKA, CKNNA, cosine, norms); and measure the description length of its weights. Writes
    align.json and figures. Controls: shuffled pairs, an untrained network, scrambled weights.

    Args:
        ckpt_path: A checkpoint, a run folder with last.ckpt, or an exported folder.
        others: Keys of the data, overridden: --data.init_args.root DIR.
        config: Where the data is described, for a checkpoint without its run's config.yaml.
        modality: May be left out if the model has one.
        num_samples: Samples to look at.
        split: To look at.
        seed: Of all draws.
        device: cpu, cuda, cuda:N or mps; default: cuda if there is one, else cpu.
        output: Where to write; default: in the run folder.
        overwrite: Replace an earlier result there.
        times: Times of the denoising pass, 0 noise and 1 data.
        seeds: Repetitions.
        max_rows: Samples x registers to compare at most: of larger sets, some registers of every sample.
        neighbours: Of CKNNA.
        bin_bits: Weights are rounded to 2^-bin_bits.

    Raises:
        UserError: The model or its data cannot be read, or an option is wrong.
    """
    import torch
    from tqdm import tqdm

    from unite.analysis import alignment, compression, loading, probes

    probes.require_analysis_packages()
    from unite.analysis import figures

    settings = alignment.AlignmentSettings(
        num_samples, tuple(times), seeds, max_rows, num_neighbours=neighbours, seed=seed
    )
    require(1 <= bin_bits <= 30, f"--bin_bits is {bin_bits}; it must lie in 1 .. 30")
    with loading.opened_run("align", ckpt_path, config, others, torch_device(device), modality, output, overwrite) as (
        run,
        folder,
    ):
        title = f"{run.name}, {run.modality}"

        torch.manual_seed(seed)  # the order of training samples
        batches = list(loading.batches(run, split, settings.num_samples))
        total = alignment.count_passes(len(batches), settings)
        with tqdm(total=total, desc="align", unit="pass") as bar:
            result = alignment.measure_alignment(run.module, run.modality, batches, settings, bar.update)
        lengths = compression.measure_compression(run.module, 2.0**-bin_bits, seed)
        written = [
            figures.draw_layers(result, title, folder / "align_layers.png"),
            figures.draw_matrix(result, title, folder / "align_matrix.png"),
            figures.draw_times(result, title, folder / "align_times.png"),
            figures.draw_modes(result, title, folder / "align_modes.png"),
            figures.draw_compression(lengths, title, folder / "compression.png"),
            write_checked_json(  # the last, because it stands for a finished command
                folder / "align.json",
                {**run.origin(), "split": split, "alignment": result, "compression": lengths},
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
    for path in written:
        print(f"wrote {shown(path)}")


def _print_pairings(values: dict[str, float], measure: str) -> None:
    print(f"  {measure:<6} {', '.join(f'{pairing} {value:.3f}' for pairing, value in values.items())}")
