"""``unite align``: do the two passes of the Generative Encoder agree?

Imports come with the work, so that ``--help`` answers at once.
"""

from unite.commands.line.measured_run import MeasuredRun
from unite.console import shown
from unite.errors import require
from unite.files.checked_json import write_checked_json


def align(
    *,
    measured: MeasuredRun,
    others: list[str],
    num_samples: int = 1000,
    times: list[float] = [0.1, 0.3, 0.5, 0.7, 0.9],  # noqa: B006 (never written to)
    seeds: int = 3,
    max_rows: int = 10_000,
    neighbours: int = 10,
    bin_bits: int = 15,
) -> None:
    """Compare the two passes of the Generative Encoder, tokenizing samples and denoising their latents.

    The comparison is by layer and over time (CKA, CKNNA, cosine, norms). Also measures the description length of the
    weights. Controls: shuffled pairs, an untrained network, scrambled weights. Writes align.json and figures.

    Args:
        measured: The model, its data, and where the results go.
        others: Keys of the data to override: --data.init_args.root DIR.
        num_samples: Number of samples.
        times: Times of the denoising pass; 0 is noise, 1 is data.
        seeds: Number of repetitions with other seeds.
        max_rows: Largest number of rows (samples x registers) to compare; of more, some registers of every sample.
        neighbours: Number of neighbours in CKNNA.
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
        num_samples, tuple(times), seeds, max_rows, num_neighbours=neighbours, seed=measured.seed
    )
    require(1 <= bin_bits <= 30, f"--bin_bits is {bin_bits}; it must lie in 1 .. 30")
    with measured.opened("align", others) as (run, folder):
        title = f"{run.name}, {run.modality}"

        torch.manual_seed(measured.seed)  # the order of training samples
        batches = list(loading.batches(run, measured.split, settings.num_samples))
        total = alignment.count_passes(len(batches), settings)
        with tqdm(total=total, desc="align", unit="pass") as bar:
            result = alignment.measure_alignment(run.module, run.modality, batches, settings, bar.update)
        lengths = compression.measure_compression(run.module, 2.0**-bin_bits, measured.seed)
        written = [
            figures.draw_layers(result, title, folder / "align_layers.png"),
            figures.draw_matrix(result, title, folder / "align_matrix.png"),
            figures.draw_times(result, title, folder / "align_times.png"),
            figures.draw_modes(result, title, folder / "align_modes.png"),
            figures.draw_compression(lengths, title, folder / "compression.png"),
            write_checked_json(  # the last, because it stands for a finished command
                folder / "align.json",
                {**run.origin(), "split": measured.split, "alignment": result, "compression": lengths},
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
