"""Folders to share: weights, settings and a model card."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from unite.configurable import own_settings
from unite.console import shown
from unite.errors import UserError, require
from unite.files import file_checksum, leaving_no_empty_folders, read_json, require_writable
from unite.files.locks import only_one
from unite.files.version import __version__
from unite.runs.exported import (
    CARD_FILE,
    FILES,
    FORMAT_VERSION,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    hub_library,
    is_exported,
    require_repo_id,
)
from unite.runs.exported import push_to_hub as upload
from unite.runs.metrics_table import validations

if TYPE_CHECKING:
    from torch import Tensor

    from unite.module import UniteModule

    Module = TypeVar("Module", bound=UniteModule)

#: Settings that name files of the machine a model was trained on; training alone needs them.
MACHINE_PATHS = ("vgg16_weights", "inception_weights")

CARD = """---
license: {license}
library_name: unite
tags: [unite, {tags}]
---
# {title}

A model of [UNITE](https://arxiv.org/abs/2603.22283): one network that tokenizes data into latents and generates latents
from noise. Exported with `unite` {version} from training step {step}; weights: {weights}.

## Use

```python
from unite import UniteModule

module = UniteModule.from_pretrained("{name}")
samples = module.generate("{modality}", 16, seed=0)
module.adapters["{modality}"].draw(samples).save("grid.png")
```

On the command line, in the folder above this one: `unite sample --ckpt_path {title} --num_samples 16`.

## Metrics

{metrics}

## Training data

{data}

## Settings

{parameters} M parameters. `config.json` has all settings of the model.

## Licence

{license_text}

## Citation

```bibtex
@article{{unite2026,
  title   = {{End-to-End Training for Unified Tokenization and Latent Denoising}},
  author  = {{Duggal and Bai and Wu and Zhang and Shechtman and Torralba and Isola and Freeman}},
  journal = {{arXiv preprint arXiv:2603.22283}},
  year    = {{2026}}
}}
```
"""


def export_checkpoint(
    checkpoint: str | Path,
    folder: str | Path,
    license_id: str = "unknown",
    overwrite: bool = False,
    name: str | None = None,
    half: bool = False,
) -> list[Path]:
    """Write a checkpoint as a folder to share.

    Args:
        checkpoint: A checkpoint, or a run folder for its ``last.ckpt``. Metrics and data of the model card come from
            the run folder, if there is one.
        folder: Where to write; made if missing.
        license_id: Licence of the weights, for the model card: an identifier such as ``mit``.
        overwrite: Replace an exported model that is there.
        name: What others will load it by, for the model card; None for the folder's name.
        half: Round matrices to float16, for half the size; loaded, they are float32 again.

    Returns:
        The files written.

    Raises:
        UserError: The checkpoint cannot be read, or the folder not be written.
    """
    from unite.runs.folder import find_checkpoint, read_checkpoint

    path, folder = find_checkpoint(str(checkpoint)), Path(folder)
    assert path is not None
    if is_exported(path):
        raise UserError(f"{checkpoint} is an exported model already: copy the folder, or name its run")
    _require_license(license_id)
    content = read_checkpoint(path)
    require_writable(folder, "choose another folder")
    with only_one(folder, "wait until it ends, or choose another folder"):
        return _write_exported(path, content, folder, license_id, overwrite, name, half)


def export_pipeline(source: str, folder: Path, license_id: str = "unknown", overwrite: bool = False) -> list[Path]:
    """Write a model of images as a pipeline of diffusers, see :mod:`unite.commands.diffusers.folder`.

    Args:
        source: A checkpoint, run folder or exported folder.
        folder: Where to write; made if missing.
        license_id: Licence of the weights.
        overwrite: Replace a pipeline that is there.

    Returns:
        The files written.

    Raises:
        UserError: The model cannot be read or has no images, or the folder not be written.
    """
    from unite.commands.diffusers.folder import INDEX_FILE, write_folder
    from unite.module import UniteModule
    from unite.runs.folder import find_checkpoint

    _require_license(license_id)
    require(
        overwrite or not (folder / INDEX_FILE).exists(),
        f"{shown(folder)} has a {INDEX_FILE}: add --overwrite to replace it, or choose another folder",
    )
    checkpoint = find_checkpoint(source)
    assert checkpoint is not None
    module = UniteModule.from_file(checkpoint)
    require_writable(folder, "choose another folder")
    with only_one(folder, "wait until it ends, or choose another folder"):
        return write_folder(module, folder, folder.resolve().name, license_id)


def _require_license(license_id: str) -> None:
    if not re.fullmatch(r"[\w.+-]+", license_id):
        raise UserError(f"--license is {license_id!r}; it must be an identifier such as mit, apache-2.0 or cc-by-4.0")


def _write_exported(
    path: Path, content: dict[str, Any], folder: Path, license_id: str, overwrite: bool, name: str | None, half: bool
) -> list[Path]:
    from unite.files.checked_json import json_checksum
    from unite.files.tensors import write_tensors
    from unite.runs.folder import find_run_config

    present = [name for name in FILES if (folder / name).exists()]
    if present and not overwrite:
        raise UserError(f"{shown(folder)} has a {present[0]}: add --overwrite to replace it, or choose another folder")
    settings = _without_machine_paths(own_settings(content["hyper_parameters"]))
    # A clone each: what shares memory could not be written.
    weights = {name: value.clone().contiguous() for name, value in content["state_dict"].items()}
    if half:
        weights = {name: _halved(value) for name, value in weights.items()}
    (folder / SETTINGS_FILE).unlink(
        missing_ok=True
    )  # last to come, so that a broken export is not taken for a whole one
    write_tensors(weights, folder / WEIGHTS_FILE)
    (folder / CARD_FILE).write_text(
        _model_card(
            name or folder.resolve().name,
            settings,
            content,
            license_id,
            _metrics_text(path, content),
            _data_text(find_run_config(path)),
            half,
        )
    )
    config = {
        "format": "unite",
        "format_version": FORMAT_VERSION,
        "unite_version": __version__,
        "global_step": content.get("global_step", 0),
        "weights_sha256": file_checksum(folder / WEIGHTS_FILE),
        "class_names": content.get("class_names", {}),
        "sampling": content.get("sampling", {}),
        "model": settings,
    }
    config["config_sha256"] = json_checksum(config)
    (folder / SETTINGS_FILE).write_text(json.dumps(config, indent=2) + "\n")
    return [folder / name for name in FILES]


def _halved(weight: Tensor) -> Tensor:
    """A matrix in float16; vectors (norms, biases, frequencies) are small, and stay as they are."""
    return weight.half() if weight.is_floating_point() and weight.ndim > 1 else weight


def _without_machine_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: None if name in MACHINE_PATHS else _without_machine_paths(item) for name, item in value.items()}
    return [_without_machine_paths(item) for item in value] if isinstance(value, list | tuple) else value


def _model_card(
    name: str,
    settings: Mapping[str, Any],
    content: Mapping[str, Any],
    license_id: str,
    metrics: str,
    data: str,
    half: bool,
) -> str:
    num_parameters = sum(value.numel() for value in content["state_dict"].values() if value.is_floating_point())
    modalities = list(settings["adapters"])
    return CARD.format(
        license=license_id,
        tags=", ".join(modalities),
        title=name.rpartition("/")[2],
        version=__version__,
        step=content.get("global_step", 0),
        weights=("averaged (EMA)" if "current_model_state" in content else "as in the checkpoint")
        + (", matrices rounded to float16" if half else ""),
        name=name,
        modality=modalities[0],
        metrics=metrics,
        data=data,
        parameters=f"{num_parameters / 1e6:.1f}",
        license_text="Not stated by the authors of these weights." if license_id == "unknown" else f"`{license_id}`.",
    )


def _metrics_text(checkpoint: Path, content: Mapping[str, Any]) -> str:
    """The run's metrics: of the validation at the checkpoint's step, and those of metrics.json from other stages."""
    from unite.runs.folder import METRICS_FILE

    tables = []
    step = int(content.get("global_step", 0))
    # Lightning counts steps from 0.
    rows = [values for at, values in validations(checkpoint.parent) if at in (step, step - 1)]
    validation = {name: value for values in rows for name, value in values.items()}
    if validation:
        tables.append(_table(f"Validation at step {step}", validation))
    with contextlib.suppress(OSError, ValueError):  # a card without metrics is better than no export
        found = read_json(checkpoint.parent / METRICS_FILE)
        values = {name: value for name, value in found.items() if not (validation and name.startswith("val/"))}
        if values:
            tables.append(_table("The run's latest evaluation (`metrics.json`)", values))
    return "\n\n".join(tables) or "None were found in the run folder."


def _table(caption: str, values: Mapping[str, float | None]) -> str:
    rows = [f"| `{name}` | {'' if value is None else format(value, '.4g')} |" for name, value in values.items()]
    return "\n".join([f"{caption}; fractions in [0, 1].", "", "| metric | value |", "|---|---|", *rows])


def _data_text(config: Path | None) -> str:
    """The datamodule of the run, without the paths of the machine it ran on."""
    import yaml

    data = yaml.safe_load(config.read_text()).get("data") if config is not None else None
    if not isinstance(data, dict) or "class_path" not in data:
        return "Not recorded beside the checkpoint."
    arguments = {
        name: value
        for name, value in (data.get("init_args") or {}).items()
        if value is not None
        and not (isinstance(value, str) and ("/" in value or "\\" in value))
        and name != "csv_files"
    }
    settings = ", ".join(f"`{name}: {value}`" for name, value in arguments.items())
    return f"`{data['class_path']}`" + (f" with {settings}." if settings else ".")


def export(
    checkpoint: str,
    folder: Path,
    *,
    format: Literal["unite", "diffusers"] = "unite",
    license: str = "unknown",
    half: bool = False,
    overwrite: bool = False,
    push_to_hub: str | None = None,
    private: bool = False,
) -> None:
    """Write a checkpoint as a folder to share: model.safetensors (averaged weights), config.json and a model card.

    Read it with UniteModule.from_pretrained(FOLDER), or unite sample --ckpt_path FOLDER. A model of images can also be
    written as a pipeline of diffusers, with the code that it needs.

    Args:
        checkpoint: A checkpoint, or a run folder for its last.ckpt.
        folder: Folder to write.
        format: unite, or diffusers for DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True).
        license: Licence of the weights, e.g. mit.
        half: Round matrices to float16, for half the size.
        overwrite: Replace an exported model in the folder.
        push_to_hub: Then upload the folder to the Hugging Face Hub as OWNER/NAME; this takes the package
            huggingface_hub.
        private: Make the uploaded model private.

    Raises:
        UserError: The checkpoint cannot be read, the folder not be written, or nothing be uploaded.
    """
    if push_to_hub:
        require_repo_id(push_to_hub)
        hub_library(push_to_hub)
    with leaving_no_empty_folders(folder):
        if format == "diffusers":
            require(not half and not push_to_hub, "--format diffusers goes without --half and --push_to_hub")
            written = export_pipeline(checkpoint, folder, license, overwrite)
        else:
            written = export_checkpoint(checkpoint, folder, license, overwrite, push_to_hub, half)
    for path in written:
        print(f"wrote {shown(path)}")
    if format == "diffusers":
        print(f'load it with DiffusionPipeline.from_pretrained("{shown(folder)}", trust_remote_code=True)')
    if license == "unknown":
        print(f"the licence is not stated: name one with --license, or edit {shown(folder / CARD_FILE)}")
    if push_to_hub:
        print(f"uploaded to {upload(folder, push_to_hub, private)}")
