"""``unite tune``: a run of ``unite fit`` that begins with a model, and learns from its samples by a reward."""

import json
from pathlib import Path

from unite.errors import UserError, require

RESERVED = ("--init_from", "--trainer.max_steps", "--max_steps")


def tune(
    *,
    ckpt_path: Path,
    reward: str = "validity",
    rounds: int = 5,
    num_samples: int = 1000,
    steps_per_round: int = 100,
    lr: float = 7e-4,
    contrast: float = 0.3,
    temperature: float = 0.5,
    weight: float = 1.0,
    start_weight: float = 0.0,
    modality: str | None = None,
    config: list[str] = [],  # noqa: B006 (shown in --help, never written to)
    output: Path | None = None,
    others: list[str],
) -> None:
    """Tune a model by a reward of its own samples; writes a run folder as unite fit does, with tuning.json.

    In each round the model draws samples, which are scored; the training steps then learn from the better ones more
    often, and from real data as before, so that reconstructions and distribution stay. tuning.json has reward and
    metrics of each round's samples, from the start model's to the result's. An interrupted run continues by unite fit
    --ckpt_path OUTPUT. Example: unite tune runs/qm9_small --reward neutral

    Args:
        ckpt_path: Run folder, checkpoint or exported folder of the model; may be given as RUN.
        reward: validity; of molecules also neutral (valid without a charged carbon) and strain (by GFN2-xTB); or the
            path of a callable, package.module.function, that gives a number for each of a list of samples.
        rounds: How often samples are drawn.
        num_samples: Samples in a round.
        steps_per_round: Training steps in a round.
        lr: Learning rate, which falls to zero over the run.
        contrast: Learn from good samples and away from bad ones; the smaller, the farther. 0 learns from good ones
            alone, the more often the better they are.
        temperature: Of the weights exp(advantage / temperature) for contrast 0; the lower, the more the best count.
        weight: Weight of the samples' flow loss against the loss of real data.
        start_weight: Weight of the squared distance to the start model's predictions.
        modality: What to tune; may be left out if the model has one modality.
        config: Settings on top of those of the model's run; an exported model has none, and needs some with data.
        output: The run folder; default: that of the model with _tuned behind it.
        others: Those of unite fit, for instance --seed 1 --data.init_args.root data/qm9; callbacks take the key
            trainer.callbacks in a --config.

    Raises:
        UserError: There is no such model or reward, or its run has no settings of data.
    """
    for name, number in {"rounds": rounds, "num_samples": num_samples, "steps_per_round": steps_per_round}.items():
        require(number >= 1, f"--{name} is {number}; it must be at least 1")
    for option in others:
        name = option.partition("=")[0]
        require(name not in RESERVED, f"{name} is set by unite tune: see --ckpt_path, --rounds, --steps_per_round")
    from unite.commands.model import lightning_cli
    from unite.files.shipped import name_of_shipped_model
    from unite.runs.exported import is_exported
    from unite.runs.folder import find_checkpoint, find_run_config
    from unite.runs.known_classes import require_known_config

    found = find_checkpoint(str(ckpt_path))
    assert found is not None
    shipped = name_of_shipped_model(found.parent) if is_exported(found) else None
    run_config = None if is_exported(found) else find_run_config(found)
    if run_config is not None:
        require_known_config(run_config)
        config = [str(run_config), *config]
    elif not config:
        raise UserError(f"{shipped or ckpt_path} has no settings of data: give --config, such as --config qm9_small")
    folder = Path("runs", shipped) if shipped else found.parent
    settings = {
        "reward": reward,
        "modality": modality,
        "num_samples": num_samples,
        "steps_per_round": steps_per_round,
        "contrast": contrast,
        "temperature": temperature,
        "weight": weight,
        "start_weight": start_weight,
    }
    callback = {"class_path": "unite.callbacks.RewardTuning", "init_args": settings}
    steps = rounds * steps_per_round
    lightning_cli.run(
        [
            "fit",
            *(f"--config={file}" for file in config),
            f"--init_from={ckpt_path}",
            f"--trainer.default_root_dir={output or folder.with_name(f'{folder.name}_tuned')}",
            f"--trainer.max_steps={steps}",
            f"--trainer.val_check_interval={steps}",
            f"--model.optimizer.lr={lr}",
            f"--model.optimizer.warmup_steps={min(20, steps // 5)}",
            f"--trainer.callbacks+={json.dumps(callback)}",
            *others,
        ]
    )
