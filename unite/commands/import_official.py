"""The authors' checkpoints and ours: ``unite import-official FILE OUT``, and the way back.

The released image model (arXiv:2603.22283) has the same layers under other names. What its files hold beyond that is
LPIPS's VGG16, tables that follow from the sizes, and three things that it never uses: a time vector, a row of the
class table and the first row of the patches' position embedding. :func:`to_official_names` is the layout; reading a
file compares it with that, tensor by tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from torch import Tensor

from unite.commands.official_names import MODALITY, _image_adapter, official_name_table
from unite.console import shown
from unite.errors import UserError
from unite.files import replacing, require_writable
from unite.modalities.image.adapter import DECODER_SIZES, ImageAdapter, sinusoidal_embedding_2d
from unite.module import UniteModule
from unite.nn.blocks import RotaryAngles
from unite.nn.generative_encoder import SIZES, GenerativeEncoder
from unite.runs.checkpoint_io import LAST_CHECKPOINT

COMPILER_PREFIX = "_orig_mod."
LPIPS_PREFIX = "lpips_loss."
RELEASED_HEAD_CHANNELS = 64
"""Channels of a head in all released decoders; tensor shapes do not tell."""

VGG16_SLICE_STARTS = (0, 4, 9, 16, 23)
"""Number under which torchvision counts the first layer of each slice of VGG16."""

NAMES_SHOWN = 20


def to_official_names(module: UniteModule, modality: str = MODALITY) -> dict[str, Tensor]:
    """The weights of an image model as the released code's state_dict, less ``lpips_loss.*``.

    Tables that follow from the sizes are computed; what the released code never uses is zero.

    Args:
        module: A model with one adapter for images, as the released code could have it.
        modality: Name of that adapter.

    Raises:
        UserError: The model has no counterpart in the released code.
    """
    encoder, adapter = module.encoder, _image_adapter(module, modality)
    state = module.state_dict()
    official = {theirs: state[ours] for theirs, ours in official_name_table(module, modality).items()}

    def own(name: str) -> Tensor:
        tensor: Tensor = state[f"adapters.{modality}.{name}"]
        return tensor

    def below_a_zero(rows: Tensor) -> Tensor:
        return torch.cat((torch.zeros_like(rows[:1]), rows))

    classes = own("condition_embedding.weight")
    official["latent_tokens"] = own("register_embedding")[None]
    official["patch_embed.position_embeddings"] = below_a_zero(own("patch_position_embedding"))[None]
    official["encoder.y_embedder.embedding_table.weight"] = torch.cat((classes, torch.zeros_like(classes[:1])))
    official["encoder.t_embedder.special_time_emb"] = torch.zeros_like(classes[0])
    official["encoder.pos_embed"] = sinusoidal_embedding_2d(adapter.grid_size, encoder.width)[None]
    official["decoder.trainable_cls_token"] = own("decoder.class_token")
    official["decoder.decoder_pos_embed"] = below_a_zero(own("latent_position_embedding"))[None]

    head_channels = encoder.width // encoder.num_heads
    turns = RotaryAngles(torch.arange(adapter.num_registers + adapter.num_patches), head_channels).turns[:, 0]
    tables = {"encoder.feat_rope": turns}
    if encoder.context_start is not None:
        context = state["encoder.context_embedding"]
        official["encoder.in_context_posemb"] = context[None]
        still = torch.ones(len(context), turns.shape[1], dtype=turns.dtype)
        tables["encoder.feat_rope_incontext"] = torch.cat((still, turns))
    for name, table in tables.items():
        official[f"{name}.freqs_cos"] = table.real.repeat_interleave(2, dim=1)
        official[f"{name}.freqs_sin"] = table.imag.repeat_interleave(2, dim=1)
    return official


# ---------------------------------------------------------------------- their file to our checkpoint


@dataclass(frozen=True)
class Imported:
    """What an official file becomes.

    Attributes:
        module: A model of its sizes on the meta device, for its settings.
        state_dict: The weights, under our names.
        num_dropped: Number of LPIPS tensors that were left out.
    """

    module: UniteModule
    state_dict: dict[str, Tensor]
    num_dropped: int


def from_official_names(
    official: Mapping[str, Tensor],
    *,
    context_start: int = 4,
    decoder_heads: int | None = None,
    max_tokenize_time: float = 0.01,
) -> Imported:
    """Our model with the weights of a state_dict of the released code. Sizes are read from the shapes.

    Args:
        official: The state_dict, compiled or not, with or without ``lpips_loss.*``.
        context_start: Block before which the in-context class tokens join; shapes do not tell, 4 in the release.
        decoder_heads: Attention heads of the decoder; shapes do not tell. None: 64 channels per head, as released.
        max_tokenize_time: Largest time in tokenization; 0.01 in the release.

    Raises:
        UserError: Tensors are missing, unexpected, or of the wrong shape.
    """
    given = {name.replace(COMPILER_PREFIX, ""): value for name, value in official.items()}
    num_all = len(given)
    given = {name: value.detach() for name, value in given.items() if not name.startswith(LPIPS_PREFIX)}
    with torch.device("meta"):
        module = _module_of_sizes(given, context_start, decoder_heads, max_tokenize_time)
    _require_layout(given, {name: tuple(value.shape) for name, value in to_official_names(module).items()})
    _require_same_rotation(given, module)

    class_token_place = given["decoder.decoder_pos_embed"][0, 0]  # zero in the release; added to the token in any case
    special = {
        "encoder.context_embedding": given.get("encoder.in_context_posemb", torch.empty(1, 0))[0],
        f"adapters.{MODALITY}.register_embedding": given["latent_tokens"][0],
        f"adapters.{MODALITY}.patch_position_embedding": given["patch_embed.position_embeddings"][0, 1:],
        f"adapters.{MODALITY}.condition_embedding.weight": given["encoder.y_embedder.embedding_table.weight"][:-1],
        f"adapters.{MODALITY}.decoder.class_token": given["decoder.trainable_cls_token"] + class_token_place,
        f"adapters.{MODALITY}.latent_position_embedding": given["decoder.decoder_pos_embed"][0, 1:],
    }
    same = {ours: given[theirs] for theirs, ours in official_name_table(module).items()}
    named = {name: value.float().clone() for name, value in (special | same).items()}
    state = {name: named[name] for name in module.state_dict()}
    return Imported(module, state, num_all - len(given))


def _module_of_sizes(
    given: Mapping[str, Tensor], context_start: int, decoder_heads: int | None, max_tokenize_time: float
) -> UniteModule:
    def size(name: str, axis: int) -> int:
        if name not in given or given[name].ndim <= axis:
            raise UserError(f"not a state_dict of the released image model: no {name}, which tells sizes")
        return given[name].shape[axis]

    def count(prefix: str) -> int:
        numbers = [name.removeprefix(prefix).split(".")[0] for name in given if name.startswith(prefix)]
        size(f"{prefix}0.{'norm1' if 'encoder' in prefix else 'layernorm_before'}.weight", 0)
        return 1 + max(int(number) for number in numbers if number.isdigit())

    width = size("latent_tokens", 2)
    head_channels = size("encoder.feat_rope.freqs_cos", 1)
    has_context = "encoder.in_context_posemb" in given
    patch_size = size("patch_embed.patch_embeddings.projection.weight", 2)
    num_patches = size("patch_embed.position_embeddings", 1) - 1
    grid_size = round(num_patches**0.5)
    if grid_size**2 != num_patches:
        raise UserError(f"the file's images have {num_patches} patches, which make no square")
    depth, num_heads = count("encoder.blocks."), max(width // max(head_channels, 1), 1)
    named = next((name for name, known in SIZES.items() if tuple(known) == (depth, width, num_heads)), None)
    sizes = {} if named else {"depth": depth, "width": width, "num_heads": num_heads}
    encoder = GenerativeEncoder(
        **{"size": named} if named else {},  # type: ignore[arg-type]
        **sizes,  # type: ignore[arg-type]
        latent_channels=size("encoder_layer_norm.weight", 0),
        qk_norm="encoder.blocks.0.attn.q_norm.weight" in given,
        context_start=context_start if has_context else None,
        context_length=size("encoder.in_context_posemb", 1) if has_context else 0,
        max_tokenize_time=max_tokenize_time,
    )
    decoder_width = size("decoder.trainable_cls_token", 0)
    decoder = (
        count("decoder.decoder_layers."),
        decoder_width,
        decoder_heads or max(decoder_width // RELEASED_HEAD_CHANNELS, 1),
        size("decoder.decoder_layers.0.ffn_up.weight", 0),
    )
    decoder_name = next((name for name, known in DECODER_SIZES.items() if tuple(known) == decoder), None)
    own_sizes = dict(
        zip(("decoder_depth", "decoder_width", "decoder_heads", "decoder_mlp_width"), decoder, strict=True)
    )
    adapter = ImageAdapter(
        image_size=grid_size * patch_size,
        patch_size=patch_size,
        channels=size("patch_embed.patch_embeddings.projection.weight", 1),
        num_classes=size("encoder.y_embedder.embedding_table.weight", 0) - 2,
        **{"decoder_size": decoder_name} if decoder_name else own_sizes,
        embedding_width=size("up_sample_decoder.weight", 0),
    )
    return UniteModule(encoder, {MODALITY: adapter}, flow_steps=14)


def _require_layout(given: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [
        f"{name} {tuple(given[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in given and given[name].shape != shape
    ]
    differences = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "of the wrong shape": wrong,
    }
    told = []
    for kind, names in differences.items():
        if names:
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            told.append(f"{len(names)} {kind}: {', '.join(names[:NAMES_SHOWN])}{more}")
    if told:
        raise UserError(f"not the released image model of these sizes; tensors {'; '.join(told)}")


def _require_same_rotation(given: Mapping[str, Tensor], module: UniteModule) -> None:
    encoder, adapter = module.encoder, module.adapters[MODALITY]
    assert isinstance(adapter, ImageAdapter)
    places = torch.arange(adapter.num_registers + adapter.num_patches)
    turns = RotaryAngles(places, encoder.width // encoder.num_heads).turns[:, 0]
    for part, ours in (("cos", turns.real), ("sin", turns.imag)):
        theirs = given[f"encoder.feat_rope.freqs_{part}"].float()
        if not torch.allclose(theirs, ours.repeat_interleave(2, dim=1), atol=1e-2):  # bfloat16 would do
            raise UserError(f"encoder.feat_rope.freqs_{part} is not the rotation along one line of the released model")


def read_official(path: Path, weights: Literal["ema", "model"] = "ema") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State_dict and the other entries of a file of the authors' training script.

    Args:
        path: The ``.pt`` file; a bare state_dict will do.
        weights: The averaged weights, or those of the last step.

    Raises:
        UserError: The file cannot be read, or lacks these weights.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file")
    number = np.float64(0)  # such a file may hold numbers of NumPy's beside the weights
    harmless: list[Any] = [number.__reduce__()[0], np.dtype, type(number.dtype), type(np.float32(0).dtype)]
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(
            f"{path} is damaged or no checkpoint of the released code: torch.load cannot read it"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    is_bare = bool(content) and all(isinstance(value, Tensor) for value in content.values())
    state = content if is_bare else content.get(weights)
    if not isinstance(state, Mapping):
        raise UserError(f"{path} has no {weights!r} weights; it has {', '.join(map(str, content)) or 'nothing'}")
    return dict(state), {} if is_bare else {key: content[key] for key in content if key not in ("ema", "model")}


def write_checkpoint(imported: Imported, out: Path) -> Path:
    """Write our checkpoint to a file, or as ``last.ckpt`` into a folder; return where it is."""
    path = out / LAST_CHECKPOINT if out.is_dir() else out
    require_writable(path.parent)
    checkpoint = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": imported.state_dict,
        "hyper_parameters": dict(imported.module.hparams),
    }
    with replacing(path) as temporary:
        torch.save(checkpoint, temporary)
    return path


def vgg16_of(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of VGG16 that an official file carries for LPIPS, under torchvision's names.

    Raises:
        UserError: It carries none.
    """
    prefix = f"{LPIPS_PREFIX}net.slice"
    found = {}
    for name, value in official.items():
        if name.startswith(prefix):
            slice_number, layer, kind = name.removeprefix(prefix).split(".")
            # Slices count their layers from their beginning; torchvision counts through.
            found[f"features.{VGG16_SLICE_STARTS[int(slice_number) - 1] + int(layer)}.{kind}"] = value.clone()
    if not found:
        raise UserError(f"--vgg16: this file carries no {LPIPS_PREFIX}* tensors")
    return found


def import_official(
    file: Path,
    out: Path,
    *,
    weights: Literal["ema", "model"] = "ema",
    context_start: int = 4,
    decoder_heads: int | None = None,
    max_tokenize_time: float = 0.01,
    vgg16: Path | None = None,
) -> None:
    """Make a checkpoint of ours from a file of the authors' training script.

    Args:
        file: The authors' .pt file.
        out: Checkpoint to write, or a folder that gets a last.ckpt.
        weights: Averaged, or of the last step.
        context_start: Block at which the class tokens join.
        decoder_heads: Attention heads of the decoder; default: width / 64.
        max_tokenize_time: Largest time in tokenization.
        vgg16: Also write the file's VGG16, for LPIPS.

    Raises:
        UserError: The file is not the authors', or nothing can be written.
    """
    state, others = read_official(file, weights)
    imported = from_official_names(
        state, context_start=context_start, decoder_heads=decoder_heads, max_tokenize_time=max_tokenize_time
    )
    path = write_checkpoint(imported, out)
    encoder, adapter = imported.module.encoder, _image_adapter(imported.module, MODALITY)
    num_trainable = sum(parameter.numel() for parameter in imported.module.parameters())
    print(
        f"encoder: {encoder.depth} blocks of width {encoder.width}; decoder: {adapter.decoder_sizes.depth} of width "
        f"{adapter.decoder_sizes.width}; images: {adapter.image_size} pixels, {adapter.num_classes} classes"
    )
    print(
        f"{len(state)} tensors: {imported.num_dropped} of LPIPS left out, all others accounted for; "
        f"{num_trainable:,} trainable parameters"
    )
    if "current_best_cfg_scale" in others:
        print(f"guidance scale that its training found best: {float(others['current_best_cfg_scale']):g}")
    if vgg16:
        require_writable(vgg16.parent)
        torch.save(vgg16_of(state), vgg16)
        print(f"wrote {shown(vgg16)} (for UNITE_VGG16_WEIGHTS)")
    print(f"wrote {shown(path)}")
