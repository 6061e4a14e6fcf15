"""``unite ablate``: variants of one config, each trained with several seeds, and a table of their metrics.

Every training is a process of its own, so that none can disturb another, and a run folder as ``unite fit`` leaves it.
The command may be interrupted at any time and typed again: what is finished is skipped, what was begun continues.
"""

import hashlib
import json
import math
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from unite.console import info, is_quiet
from unite.errors import UserError
from unite.files import read_json
from unite.files.checked_json import DamagedFileError, read_checked_json, write_checked_json

BASE = "base"
RECORD = "ablation.json"
RESERVED = ("--ckpt_path", "--trainer.default_root_dir", "--seed", "--seed_everything")
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)


@dataclass(frozen=True)
class Trial:
    """One training: a variant with a seed.

    Attributes:
        variant: ``base``, or the names of its overlays.
        seed: Seed of the training.
        folder: Its run folder.
        options: Options of ``unite fit`` that make it.
        digest: Hash of these options and of the contents of the config files.
    """

    variant: str
    seed: int
    folder: Path
    options: tuple[str, ...]
    digest: str

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"

    @property
    def is_begun(self) -> bool:
        """Whether its folder is there."""
        return (self.folder / RECORD).is_file()

    @property
    def record(self) -> dict[str, Any]:
        """What was noted of it: its digest, and its metrics once it is finished.

        Raises:
            UserError: The file is damaged.
        """
        file = self.folder / RECORD
        try:
            return read_checked_json(file)
        except DamagedFileError as error:
            raise UserError(
                f"{file} is damaged ({error}); remove {self.folder}, and the same command trains it anew"
            ) from error

    @property
    def metrics(self) -> dict[str, float | None] | None:
        """Validation metrics at its end; None before that."""
        return self.record["metrics"] if self.is_begun else None

    def note(self, metrics: Mapping[str, float | None] | None) -> None:
        """Note its state in its folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"options": self.options, "digest": self.digest, "metrics": metrics}
        write_checked_json(self.folder / RECORD, record)


def ablate(
    *,
    config: list[str],
    overlays: list[str],
    others: list[str],
    seeds: list[int] = [0],  # noqa: B006 (shown in --help, never written to)
    output: Path = Path("runs/ablations"),
    align: bool = False,
) -> None:
    """Train a config and variants of it one after the other, each with every seed.

    Runs are in OUTPUT/VARIANT/seed_N; a table of their metrics, mean ± standard deviation over the seeds, is written to
    ablations.md and ablations.json. The same command again skips what is finished and continues what was interrupted.
    Example: unite ablate --config configs/qm9_small.yaml --overlays configs/ablations/separate.yaml
    configs/ablations/separate.yaml+configs/ablations/flow_steps_4.yaml --seeds 0 1 2 --output runs/ablations

    Args:
        config: The base; of several files, -c FILE -c FILE, later ones win.
        overlays: What each variant changes: FILE, or FILE+FILE for one variant of several. The base itself is always
            trained, too.
        others: Those of unite fit, for instance --trainer.max_steps 500.
        seeds: Seeds of every variant.
        output: Folder of the run folders.
        align: Run unite align after each training, so that unite compare OUTPUT/*/seed_* has alignment and compression.

    Raises:
        UserError: A file is missing, ``unite fit`` would refuse a setting, or the folder holds other trials.
        SystemExit: A training failed; the others were done.
        KeyboardInterrupt: The command was interrupted.
    """
    trials = make_trials(config, overlays, seeds, output, others)
    from unite.files.locks import OUTPUT_HINT, only_one
    from unite.runs.folder import require_writable

    if align:
        from unite.analysis.probes import require_analysis_packages

        require_analysis_packages()
    check_settings(trials)
    require_writable(output)
    with only_one(output, OUTPUT_HINT):
        _perform_all(trials, output, align)


def _perform_all(trials: Sequence[Trial], output: Path, is_aligned: bool) -> None:
    failed = []
    for number, trial in enumerate(trials, start=1):
        info(f"[{number}/{len(trials)}] {trial}")
        code = perform(trial) or (align_trial(trial) if is_aligned else 0)
        if code in INTERRUPTED:
            raise KeyboardInterrupt(f"interrupted in {trial}; the same command continues there")
        if code != 0:
            failed.append(trial)
            print(f"unite: {trial} failed (exit code {code}); the others go on", file=sys.stderr, flush=True)
    for path in write_summary(trials, output):
        print(f"wrote {path}")
    if failed:
        named = "; ".join(map(str, failed))
        print(f"unite: {len(failed)} of {len(trials)} trainings failed: {named}", file=sys.stderr)
        raise SystemExit(1)


def make_trials(
    configs: Sequence[str], overlays: Sequence[str], seeds: Sequence[int], output: Path, fit_options: Sequence[str]
) -> list[Trial]:
    """All trainings in their order, the base first; nothing is written.

    Args:
        configs: Config files of the base.
        overlays: Files, or files joined by ``+``, of each variant.
        seeds: Seeds of every variant.
        output: Folder of the run folders.
        fit_options: Further options of ``unite fit``.

    Raises:
        UserError: A file is missing, a variant or seed comes twice, or ``output`` holds other trials.
    """
    for option in fit_options:
        if option.partition("=")[0] in RESERVED:
            raise UserError(f"{option} is set for each training by unite ablate itself; see --seeds and --output")
    if wrong := [seed for seed in seeds if seed < 0]:
        raise UserError(f"--seeds has {wrong[0]}; seeds must not be negative")
    variants = {BASE: list(configs)}
    for overlay in overlays:
        files = overlay.split("+")
        name = "+".join(Path(file).stem for file in files)
        if name in variants:
            raise UserError(f"--overlays has two variants called {name}: each needs a file name of its own")
        variants[name] = [*configs, *files]
    for file in dict.fromkeys(file for files in variants.values() for file in files):
        if not Path(file).is_file():
            raise UserError(f"{file} is not a file: see --config and --overlays")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))} names a seed twice")

    trials = []
    for seed in seeds:  # all variants of one seed before the next seed, so that a table soon has all rows
        for name, files in variants.items():
            folder = output / name / f"seed_{seed}"
            options = (*(f"--config={file}" for file in files), f"--seed={seed}", *fit_options)
            contents = [Path(file).read_text() for file in files]
            digest = hashlib.sha256(json.dumps([contents, seed, list(fit_options)]).encode()).hexdigest()[:16]
            trials.append(Trial(name, seed, folder, options, digest))
    for trial in trials:
        if trial.is_begun and trial.record["digest"] != trial.digest:
            raise UserError(
                f"{trial.folder} was made with other settings: choose another --output, or remove that folder"
            )
        if not trial.is_begun and trial.folder.exists() and any(trial.folder.iterdir()):
            raise UserError(f"{trial.folder} holds something else: choose another --output")
    return trials


def check_settings(trials: Sequence[Trial]) -> None:
    """Read the settings of each variant that is not finished as ``unite fit`` will, in this process; nothing is made.

    What only the constructors of model, data and trainer refuse shows when they are made, in the training itself.

    Raises:
        UserError: ``unite fit`` would refuse an option or a key of a config file.
    """
    from unite.commands.line.typed import understood
    from unite.commands.model.lightning_cli import SettingsCheck
    from unite.console import silence_noise

    silence_noise()
    one_of_each: dict[str, Trial] = {}
    for trial in trials:
        if trial.metrics is None:
            one_of_each.setdefault(trial.variant, trial)
    for variant, trial in one_of_each.items():
        try:
            SettingsCheck(understood(["fit", *trial.options, f"--trainer.default_root_dir={trial.folder}"]))
        except UserError as error:
            raise UserError(f"variant {variant}: {error}") from error


def perform(trial: Trial) -> int:
    """Train, or go on training, and validate at the end if the run did not; the exit code of what failed, else 0."""
    from unite.runs.checkpoint_io import LAST_CHECKPOINT
    from unite.runs.folder import METRICS_FILE

    if trial.metrics is not None:
        info("finished already")
        return 0
    if (trial.folder / LAST_CHECKPOINT).is_file():
        code = call("fit", "--ckpt_path", str(trial.folder))
    else:
        if trial.is_begun:  # stopped before its first checkpoint
            shutil.rmtree(trial.folder)
        trial.note(metrics=None)
        code = call("fit", *trial.options, f"--trainer.default_root_dir={trial.folder}")
    if code == 0 and not _ends_with_validation(trial.folder):
        code = call("validate", "--ckpt_path", str(trial.folder))
    if code == 0:
        trial.note(read_json(trial.folder / METRICS_FILE))
    return code


def align_trial(trial: Trial) -> int:
    """Run ``unite align`` for each modality that has no result yet; the exit code of what failed, else 0."""
    from unite.runs.checkpoint_io import LAST_CHECKPOINT
    from unite.runs.folder import read_checkpoint

    modalities = list(read_checkpoint(trial.folder / LAST_CHECKPOINT)["hyper_parameters"]["adapters"])
    for modality in modalities:
        folder = trial.folder / ("align" if len(modalities) == 1 else f"align_{modality}")
        if not (folder / "align.json").is_file():
            options = ("--ckpt_path", str(trial.folder), "--modality", modality, "--output", str(folder))
            if code := call("align", *options):
                return code
    return 0


def _ends_with_validation(folder: Path) -> bool:
    """Whether the last step of a run was validated."""
    from unite.runs.checkpoint_io import LAST_CHECKPOINT
    from unite.runs.folder import read_checkpoint
    from unite.runs.metrics_table import validations

    validated = [step for step, _ in validations(folder)]
    return bool(validated) and validated[-1] + 1 == read_checkpoint(folder / LAST_CHECKPOINT)["global_step"]


def call(*args: str) -> int:
    """Run a command of ``unite`` in a process of its own; Ctrl-C and termination reach it once, and it ends first."""
    quiet = ["--quiet"] if is_quiet() else []
    trust = ["--trust"] if args[0] in ("fit", "align") else []  # run folders of its own, of configs that the user named
    process = subprocess.Popen([sys.executable, "-m", "unite", *args, *trust, *quiet], process_group=0)

    def forward(signum: int, frame: FrameType | None) -> None:
        process.send_signal(signum)

    previous = {signum: signal.signal(signum, forward) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait()
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


# ---------------------------------------------------------------------- summary


def write_summary(trials: Sequence[Trial], output: Path) -> list[Path]:
    """Write ablations.md, with the headline metrics, and ablations.json, with all, of what is finished.

    Args:
        trials: All trials.
        output: Folder to write to.

    Returns:
        The files written.
    """
    from unite.analysis.comparison import markdown_table
    from unite.runs.definitions import MISSING
    from unite.runs.headlines import headlines

    by_variant: dict[str, dict[int, dict[str, float | None]]] = {trial.variant: {} for trial in trials}
    for trial in trials:
        if trial.metrics is not None:
            by_variant[trial.variant][trial.seed] = trial.metrics
    every = [metrics for by_seed in by_variant.values() for metrics in by_seed.values()]
    columns = headlines(list(dict.fromkeys(name for metrics in every for name in metrics)))
    rows = [["variant", "seeds", *(name.removeprefix("val/") for name in columns)]]
    for variant, by_seed in by_variant.items():
        cells = [_mean_and_spread([metrics.get(name) for metrics in by_seed.values()]) for name in columns]
        rows.append([variant, str(len(by_seed)), *(cell or MISSING for cell in cells)])
    text = (
        "Validation metrics at the end of each training: mean ± standard deviation over seeds. The number of seeds is "
        "that of finished trainings.\n\n" + markdown_table(rows) + "\n"
    )
    print(text, flush=True)
    output.mkdir(parents=True, exist_ok=True)
    written = [output / "ablations.md", output / "ablations.json"]
    written[0].write_text(text)
    written[1].write_text(json.dumps(by_variant, indent=2) + "\n")
    return written


def _mean_and_spread(values: Sequence[float | None]) -> str:
    """``0.51 ± 0.02``; the mean alone of one value, and nothing of none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return ""
    mean = f"{statistics.fmean(known):.4g}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.2g}"
