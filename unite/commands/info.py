"""``unite info``: what a model is, how it was trained, and what to type next."""

import json
import textwrap
from itertools import takewhile
from pathlib import Path
from typing import Any

from unite.console import shown
from unite.files.shipped import shipped_configs, shipped_models
from unite.runs.headlines import headlines


def info(model: str | None = None) -> None:
    """What a model is, how it was trained, and how to use it; without a model, a list of those in the package.

    Args:
        model: A checkpoint, run folder or exported folder, or the name of a model that comes with the package.

    Raises:
        UserError: There is no such model.
    """
    if model is None:
        _list_shipped()
        return
    from unite.commands.compare import count_parameters
    from unite.runs.exported import is_exported
    from unite.runs.folder import find_checkpoint, find_run_config, read_checkpoint

    path = find_checkpoint(model)
    assert path is not None
    checkpoint = read_checkpoint(path)
    settings = checkpoint["hyper_parameters"]
    parameters = count_parameters(settings)
    print(f"{model}: {'exported model' if is_exported(path) else 'checkpoint of a run'}, {shown(path)}")
    print(f"  modalities   {', '.join(_adapter_line(name, value) for name, value in settings['adapters'].items())}")
    print(f"  encoder      {_encoder_line(settings['encoder'])}")
    print(f"  parameters   {', '.join(f'{name} {count / 1e6:.2f} M' for name, count in parameters.items())}")
    weights = "averaged" if "current_model_state" in checkpoint or is_exported(path) else "as trained"
    print(f"  trained      {checkpoint.get('global_step', 0):,} steps, weights {weights}")
    config = None if is_exported(path) else find_run_config(path)
    if config is not None:
        print(f"  settings     {shown(config)}")
    for line in _metric_lines(path.parent):
        print(f"  {line}")
    print("\nwhat to type:")
    if is_exported(path):
        print(f"  unite sample {model}{_modality(path.parent)} -n 100")
    else:
        for command in ("sample", "test", "reconstruct", "report"):
            print(f"  unite {command} {model}")
        print(
            f"  unite fit {model} --max_steps N   (goes on training)\n  unite export {model} FOLDER       (to share it)"
        )


def _list_shipped() -> None:
    print("models that come with the package:")
    for name, folder in shipped_models().items():
        print(f"  {name:<12} {shown(folder)}; unite sample {name}{_modality(folder)} -n 16, unite info {name}")
    print("\nconfigs that come with the package:")
    for name, file in shipped_configs().items():
        if "/" not in name:
            print(f"  {name:<16} {_first_sentence(file)}")
    print("\ntrain one: unite fit NAME")


def _modality(folder: Path) -> str:
    """The option that an exported model of several modalities needs to be sampled: the last of them."""
    modalities = list(json.loads((folder / "config.json").read_text(encoding="utf8"))["model"]["adapters"])
    return f" --modality {modalities[-1]}" if len(modalities) > 1 else ""


def _first_sentence(file: Path) -> str:
    """The first sentence of a config's comment."""
    lines = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf8").splitlines())
    sentence = " ".join(line.lstrip("# ") for line in lines).partition(". ")[0].rstrip(".")
    return textwrap.shorten(sentence, 100, placeholder=" ...")


def _adapter_line(name: str, adapter: dict[str, Any]) -> str:
    arguments = adapter.get("init_args") or {}
    told = ("positions", "bonds", "hydrogens", "max_atoms", "image_size", "patch_size", "num_classes")
    details = [f"{key} {arguments[key]}" for key in told if arguments.get(key) is not None]
    if text := arguments.get("text"):
        details.append(f"text by {text['class_path'].rpartition('.')[2]}")
    return f"{name} ({adapter['class_path'].rpartition('.')[2]}{': ' if details else ''}{', '.join(details)})"


def _encoder_line(encoder: dict[str, Any]) -> str:
    arguments = encoder.get("init_args") or {}
    sizes = [f"{key} {arguments[key]}" for key in ("depth", "width", "num_heads") if arguments.get(key) is not None]
    channels = arguments.get("latent_channels")
    return f"size {arguments.get('size', '?')}, {', '.join([*sizes, f'{channels} latent channels'])}"


def _metric_lines(folder: Path) -> list[str]:
    """The headline metrics of metrics.json, or of the card of an exported model."""
    values: dict[str, float | None] = {}
    if (folder / "metrics.json").is_file():
        values = json.loads((folder / "metrics.json").read_text())
    elif (folder / "README.md").is_file():
        rows = [line.split("|") for line in (folder / "README.md").read_text().splitlines() if line.startswith("| `")]
        values = {row[1].strip().strip("`"): float(row[2]) for row in rows if row[2].strip()}
    told = {name: value for name, value in values.items() if value is not None}
    return [f"{name:<34} {told[name]:.4g}" for name in headlines(list(told))]
