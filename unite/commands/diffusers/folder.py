"""The folder: weights of the networks that generate, their settings, and copies of the code that runs them.

diffusers has no pipeline of this kind, and runs code that comes with a model only if it is told to trust it. So the
folder has a pipeline file and a model file of its own, and loads with ``trust_remote_code=True`` and not without.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unite.configurable import as_config
from unite.errors import UserError
from unite.files.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from unite.modalities.image.adapter import ImageAdapter
    from unite.module import UniteModule

#: Oldest diffusers whose layout this is.
DIFFUSERS_VERSION = "0.35.0"
INDEX_FILE = "model_index.json"
PIPELINE_FILE = "pipeline.py"
MODEL = "model"
MODEL_FILE = "unite_model.py"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

#: Modules that travel, from the ground up. Each becomes a file ``unite_NAME.py``; names are unite's, since diffusers
#: copies the files of all models of a machine into one folder.
MODULES = (
    "unite.errors",
    "unite.configurable",
    "unite.solvers",
    "unite.flow",
    "unite.engine.noise",
    "unite.nn.blocks",
    "unite.nn.generative_encoder",
    "unite.nn.decoder",
    "unite.nn.patches",
)

CARD = """---
license: {license}
library_name: diffusers
tags: [unite]
---
# {title}

An image model of [UNITE](https://arxiv.org/abs/2603.22283), exported with `unite` {version}: {size} x {size} pixels,
{classes}. It needs diffusers and nothing of unite; `model/` has the code, which `trust_remote_code` lets run.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{title}", trust_remote_code=True)
images = pipeline(num_images=16, seed=0).images
```

The same seed and classes give the pixels of `unite sample`.
"""


def write_folder(module: UniteModule, folder: Path, title: str, license_id: str) -> list[Path]:
    """Write an image model as a folder for diffusers.

    Args:
        module: The model; of several modalities, the one of images is taken.
        folder: Where to write; it is there.
        title: Name of the model, for its card.
        license_id: Licence of the weights.

    Returns:
        The files written, ``model_index.json`` last.

    Raises:
        UserError: The model has no images, is conditioned on more than classes, or the weights cannot be written.
    """
    from unite.files.tensors import write_tensors

    modality, adapter = image_adapter(module)
    model = folder / MODEL
    model.mkdir(parents=True, exist_ok=True)
    files = {folder / PIPELINE_FILE: _source("unite.commands.diffusers.pipeline")}
    files |= {model / f"{_new_name(name)}.py": _source(name) for name in MODULES}
    files[model / MODEL_FILE] = _source("unite.commands.diffusers.model", MODULES)
    files[model / "config.json"] = _as_json(
        {"_class_name": "UniteImageModel", "_diffusers_version": DIFFUSERS_VERSION, **_settings(module, adapter)}
    )
    classes = f"{adapter.num_classes} classes" if adapter.num_classes else "no classes"
    files[folder / "README.md"] = CARD.format(
        license=license_id, title=title, version=__version__, size=adapter.image_size, classes=classes
    )
    files[folder / INDEX_FILE] = _as_json(
        {
            "_class_name": [PIPELINE_FILE.removesuffix(".py"), "UnitePipeline"],
            "_diffusers_version": DIFFUSERS_VERSION,
            MODEL: [MODEL_FILE.removesuffix(".py"), "UniteImageModel"],
        }
    )
    (folder / INDEX_FILE).unlink(missing_ok=True)  # last to come, so that a broken export is not taken for a whole one
    weights = model / WEIGHTS_FILE
    write_tensors(_weights(module, modality, adapter), weights)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return [weights, *files]


def image_adapter(module: UniteModule) -> tuple[str, ImageAdapter]:
    """The modality of images, and its adapter.

    Raises:
        UserError: There is none, or it is conditioned on more than classes.
    """
    from unite.modalities.image.adapter import ImageAdapter

    for name, adapter in module.adapters.items():
        if isinstance(adapter, ImageAdapter):
            if adapter.property_embedding is not None:
                raise UserError("--format diffusers takes models of images by class, not by properties")
            return name, adapter
    raise UserError(
        f"--format diffusers takes models of images, and this one has {', '.join(module.adapters)}: leave --format out"
    )


def _settings(module: UniteModule, adapter: ImageAdapter) -> dict[str, Any]:
    """Arguments of ``UniteImageModel``."""
    encoder = {**as_config(module.encoder)["init_args"], "gradient_checkpointing": False}
    sizes = adapter.decoder_sizes
    decoder = {
        "latent_channels": module.encoder.latent_channels,
        **sizes._asdict(),
        "embedding_width": adapter.embedding_width,
        "class_token": True,
    }
    return {
        "encoder_settings": encoder,
        "decoder_settings": decoder,
        "time_settings": asdict(module.flow_settings.time),
        "sampling_settings": asdict(adapter.sampling),
        "image_size": adapter.image_size,
        "patch_size": adapter.patch_size,
        "channels": adapter.channels,
        "num_classes": adapter.num_classes,
        "num_registers": adapter.num_registers,
        "has_queries": adapter.query_embedding is not None,
        "has_rows": adapter.positions == "2d",
        "class_names": adapter.class_names,
    }


def _weights(module: UniteModule, modality: str, adapter: ImageAdapter) -> dict[str, Tensor]:
    """Weights under the names of ``UniteImageModel``: what generates, and nothing else."""
    state = module.state_dict()
    denoiser = "encoder." if module.separate_denoiser is None else "separate_denoiser."
    places = {denoiser: "denoiser.", f"adapters.{modality}.": ""}
    unused = ("patch_embedding.", "patch_position_embedding")
    found = {
        new + name.removeprefix(old): value.clone().contiguous()
        for old, new in places.items()
        for name, value in state.items()
        if name.startswith(old) and not name.removeprefix(old).startswith(unused)
    }
    template = adapter.draw_template(1)
    return found | {"register_places": adapter.registers(template).positions.clone()}


def _new_name(module: str) -> str:
    return f"unite_{module.rpartition('.')[2]}"


def _source(module: str, beside: tuple[str, ...] = ()) -> str:
    """The source of a module of ours as a file of the folder: it imports its neighbours instead of unite.

    Args:
        module: The module.
        beside: Modules to name in an import each: diffusers copies the files that the model file names, and not those
            that they name.
    """
    import importlib.util

    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    text = re.sub(
        r"^from (unite\.[\w.]+) import", lambda match: f"from .{_new_name(match[1])} import", text, flags=re.M
    )
    named = "".join(f"from .{_new_name(name)} import __name__ as _\n" for name in beside)
    return f"{text}\n# diffusers copies the files that are named here.\n{named}" if named else text


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
