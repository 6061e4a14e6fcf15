"""Checkpoints of the released code: their layout, and the way to ours and back."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support import official_reference as official
from tests.support.commands import RunCli
from tests.support.paths import TESTS
from unite.commands.import_official import from_official_names, to_official_names, vgg16_of
from unite.commands.official_names import official_name_table
from unite.errors import UserError
from unite.modalities.base import Template
from unite.modalities.image.adapter import ImageAdapter
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder

LAYOUT = official.shapes(
    depth=2,
    width=32,
    heads=2,
    channels=4,
    grid=3,
    patch=2,
    classes=3,
    context=2,
    decoder_depth=1,
    decoder_width=64,
    decoder_mlp=96,
)
SETTINGS = official.Settings(heads=2, decoder_heads=1, context_start=1)
BASE = TESTS / "data" / "official_layout_base.txt"


def released_layout() -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and optimizer (or ``frozen``) of each tensor of the released Base model, LPIPS's included."""
    layout = {}
    for line in BASE.read_text().splitlines():
        name, shape, optimizer = line.split()
        for i in range(12) if "{0..11}" in name else [0]:
            layout[name.replace("{0..11}", str(i))] = (tuple(map(int, shape.split("x"))), optimizer)
    return layout


def base_model() -> UniteModule:
    with torch.device("meta"):
        encoder = GenerativeEncoder("B", latent_channels=32, context_start=4, context_length=32)
        return UniteModule(encoder, {"image": ImageAdapter(image_size=256, patch_size=16, num_classes=1000)})


@pytest.fixture
def weights() -> official.Weights:
    """As training leaves them: what is added to the class token is zero."""
    weights = official.random_weights(LAYOUT)
    weights["decoder.decoder_pos_embed"][0, 0] = 0
    return weights


@pytest.fixture
def official_file(weights: official.Weights, tmp_path: Path) -> Path:
    """A file of the released training script: compiled decoder, LPIPS, optimizers; its last step is not its average."""
    lpips = {
        name: torch.zeros(1).expand(shape)  # of the right shape, without taking space
        for name, (shape, _) in released_layout().items()
        if name.startswith("lpips_loss.")
    }
    path = tmp_path / "theirs.pt"
    content = {
        "step": 10,
        "epoch": 1,
        "model": compiled(
            {name: value + 1 if "rope" not in name else value for name, value in weights.items()} | lpips
        ),
        "ema": compiled(weights | lpips),
        "current_best_cfg_scale": np.float64(3.4),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "scheduler": {"last_epoch": 10, "_last_lr": [np.float64(1e-4)]},
    }
    torch.save(content, path)
    return path


def compiled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as ``torch.compile`` of the decoder makes them."""
    return {
        f"decoder._orig_mod.{name.removeprefix('decoder.')}" if name.startswith("decoder.") else name: value
        for name, value in state.items()
    }


# ---------------------------------------------------------------------- layout


def test_base_model_has_the_released_layout() -> None:
    released = {name: shape for name, (shape, _) in released_layout().items() if not name.startswith("lpips_loss.")}
    base = official.shapes(
        depth=12,
        width=768,
        heads=12,
        channels=32,
        grid=16,
        patch=16,
        classes=1000,
        context=32,
        decoder_depth=12,
        decoder_width=768,
        decoder_mlp=3072,
    )
    assert base == released
    assert {name: tuple(value.shape) for name, value in to_official_names(base_model()).items()} == released


def optimizer_groups(module: UniteModule, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The parameter groups that training would use."""
    monkeypatch.setattr(UniteModule, "trainer", SimpleNamespace(estimated_stepping_batches=10**6), raising=False)
    configured: Any = module.configure_optimizers()
    groups: list[dict[str, Any]] = configured["optimizer"].param_groups
    return groups


def test_parameters_go_to_the_released_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    module = base_model()
    groups = optimizer_groups(module, monkeypatch)
    ours = {id(parameter): group["algorithm"] for group in groups for parameter in group["params"]}
    parameters = dict(module.named_parameters())
    special = {
        "latent_tokens": "adapters.image.register_embedding",
        "encoder.in_context_posemb": "encoder.context_embedding",
        "encoder.y_embedder.embedding_table.weight": "adapters.image.condition_embedding.weight",
        "decoder.trainable_cls_token": "adapters.image.decoder.class_token",
    }
    table = {**official_name_table(module), **special}
    trained = {name: kind for name, (_, kind) in released_layout().items() if kind != "frozen"}
    assert trained.pop("encoder.t_embedder.special_time_emb") == "adamw"  # never used
    assert {name: ours.pop(id(parameters[table[name]])) for name in trained} == trained
    assert not ours


def test_base_model_has_the_released_number_of_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """217,643,616, less what the released model has and never uses: a time vector, a row of the class table."""
    module = base_model()
    width = module.encoder.width
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    assert num_parameters == 217_643_616 - width - width
    groups = optimizer_groups(module, monkeypatch)
    sizes = {group["algorithm"]: sum(parameter.numel() for parameter in group["params"]) for group in groups}
    assert sizes == {"muon": 215_318_016 - width, "adamw": 2_325_600 - width}


# ---------------------------------------------------------------------- import and export


def test_import_gives_a_checkpoint_with_the_averaged_weights(
    run_cli: RunCli, official_file: Path, weights: official.Weights, tmp_path: Path
) -> None:
    result = run_cli("import-official", official_file, tmp_path / "ours.ckpt", "--context_start", "1")
    assert result.code == 0, result.err
    assert "33 of LPIPS left out" in result.out
    assert "best: 3.4" in result.out
    assert "wrote " in result.out
    module = UniteModule.load_from_checkpoint(tmp_path / "ours.ckpt", weights_only=True).eval()
    adapter = module.adapters["image"]
    assert isinstance(adapter, ImageAdapter)
    assert (adapter.image_size, adapter.patch_size, adapter.num_classes) == (6, 2, 3)
    noisy, times, classes = torch.randn(2, 9, 4), torch.rand(2), torch.tensor([2, 0])
    template = Template(torch.tensor([9, 9]), classes)
    with torch.no_grad():
        ours = module.denoiser.denoise(noisy, times, adapter.condition(template), adapter.registers(template))
        torch.testing.assert_close(ours, official.denoise(weights, SETTINGS, noisy, times, classes), atol=2e-5, rtol=0)
    result = run_cli("sample", "--ckpt_path", tmp_path / "ours.ckpt", "--num_samples", "4", "--num_steps", "2")
    assert result.code == 0, result.err
    assert len(list((tmp_path / "samples" / "images").glob("*.png"))) == 4
    result = run_cli("fit", "--ckpt_path", tmp_path / "ours.ckpt")
    assert result.code == 2
    (line,) = result.err.strip().splitlines()
    assert "ours.ckpt has no optimizer state" in line


def test_import_of_the_last_step_and_of_vgg16(run_cli: RunCli, official_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    args = ("--context_start", "1", "--weights", "model", "--vgg16", tmp_path / "vgg16.pth")
    result = run_cli("import-official", official_file, tmp_path / "run", *args)
    assert result.code == 0, result.err
    names = ("adapters.image.pixel_head.bias", "encoder.final_out.bias")
    last = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    content = torch.load(official_file, weights_only=False)
    for ours, theirs in zip(
        names, ("decoder._orig_mod.decoder_pred.bias", "encoder.final_layer.linear.bias"), strict=True
    ):
        torch.testing.assert_close(last[ours], content["model"][theirs])
        torch.testing.assert_close(last[ours], content["ema"][theirs] + 1)
    vgg16 = torch.load(tmp_path / "vgg16.pth", weights_only=True)
    assert vgg16["features.28.weight"].shape == (512, 512, 3, 3)
    assert len(vgg16) == 26


def test_round_trip_keeps_every_tensor_that_is_used(weights: official.Weights) -> None:
    imported = from_official_names(weights, context_start=1)
    module = UniteModule(**module_arguments(imported.module))
    module.load_state_dict(imported.state_dict)
    back = to_official_names(module)
    assert back.keys() == weights.keys()
    unused = {"encoder.t_embedder.special_time_emb", "encoder.pos_embed"}
    for name, value in weights.items():
        if name in unused:
            continue
        expected = value.clone()
        if name == "encoder.y_embedder.embedding_table.weight":
            expected[-1] = 0
        if name == "patch_embed.position_embeddings":
            expected[:, 0] = 0
        torch.testing.assert_close(back[name], expected, atol=1e-6, rtol=0, msg=name)


def module_arguments(module: UniteModule) -> dict[str, Any]:
    """The same encoder and adapter, with memory of their own."""
    encoder, adapter = module.encoder, module.adapters["image"]
    return {"encoder": type(encoder)(**encoder.init_args), "adapters": {"image": type(adapter)(**adapter.init_args)}}


def test_a_new_model_becomes_official_and_ours_again() -> None:
    encoder = GenerativeEncoder("XS", depth=2, context_start=1, context_length=2)
    adapter = ImageAdapter(8, 2, num_classes=3, decoder_size="XS", decoder_heads=3)
    module = UniteModule(encoder, {"image": adapter})
    imported = from_official_names(to_official_names(module), context_start=1, decoder_heads=3)
    state = module.state_dict()
    assert imported.state_dict.keys() == state.keys()
    for name, value in imported.state_dict.items():
        torch.testing.assert_close(value, state[name], atol=0, rtol=0, msg=name)


def test_model_without_class_tokens_or_qk_norm_is_read() -> None:
    encoder = GenerativeEncoder("XS", depth=2, qk_norm=False)
    module = UniteModule(encoder, {"image": ImageAdapter(8, 2, num_classes=3, decoder_size="XS")})
    imported = from_official_names(to_official_names(module), decoder_heads=4)
    assert imported.module.encoder.context_start is None
    assert imported.state_dict.keys() == module.state_dict().keys()


# ---------------------------------------------------------------------- what is refused


def without(name: str) -> Callable[[official.Weights], None]:
    return lambda weights: weights.__delitem__(name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("encoder.blocks.1.norm2.weight"), "1 missing: encoder.blocks.1.norm2.weight"),
        (without("latent_tokens"), "no latent_tokens"),
        (lambda w: w.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (
            lambda w: w.update({"decoder.decoder_norm.bias": torch.zeros(3)}),
            r"1 of the wrong shape: decoder.decoder_norm.bias \(3,\) instead of \(64,\)",
        ),
        (
            lambda w: w.update({"extra": torch.zeros(1), "encoder_layer_norm.bias": torch.zeros(1)}),
            "1 unexpected: extra; 1 of the wrong shape: encoder_layer_norm.bias",
        ),
        (lambda w: w["encoder.feat_rope.freqs_sin"].zero_(), "freqs_sin is not the rotation"),
        (lambda w: w.clear(), "not a state_dict of the released image model"),
    ],
)
def test_every_tensor_must_be_accounted_for(
    weights: official.Weights, spoil: Callable[[official.Weights], None], message: str
) -> None:
    spoil(weights)
    with pytest.raises(UserError, match=message):
        from_official_names(weights, context_start=1)


def test_long_lists_are_cut(weights: official.Weights) -> None:
    for i in range(30):
        weights[f"extra.{i}"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"30 unexpected: .* and 10 more"):
        from_official_names(weights, context_start=1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("{tmp}/none.pt", "{tmp}/o.ckpt"), "none.pt is no file"),
        (("{tmp}/text.pt", "{tmp}/o.ckpt"), "cannot read it"),
        (("{tmp}/other.pt", "{tmp}/o.ckpt"), "has no 'ema' weights; it has state_dict"),
        (("{theirs}", "{tmp}/o.ckpt", "--context_start", "7"), "context_start is 7"),
        (("{theirs}", "{tmp}/o.ckpt", "--context_start", "1", "--decoder_heads", "5"), "heads 5"),
        (("{theirs}", "{tmp}/o.ckpt", "--contxt_start", "7"), "contxt_start"),
        (("{theirs}", "{tmp}/text.pt/o.ckpt", "--context_start", "1"), "cannot write"),
        (("{theirs}",), "OUT"),
    ],
)
def test_wrong_use_is_told_in_one_line(
    run_cli: RunCli, official_file: Path, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    result = run_cli("import-official", *(arg.format(tmp=tmp_path, theirs=official_file) for arg in args))
    assert result.code == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "o.ckpt").exists()


@pytest.mark.parametrize(
    "settings",
    [{"positions": "2d"}, {"num_registers": 5}, {"embedding_width": None}],
    ids=lambda settings: next(iter(settings)),
)
def test_models_of_another_kind_have_no_official_names(settings: dict[str, Any]) -> None:
    encoder = GenerativeEncoder("XS", depth=1)
    module = UniteModule(encoder, {"image": ImageAdapter(8, 2, decoder_size="XS", **settings)})
    with pytest.raises(UserError, match="no counterpart"):
        to_official_names(module)


def test_a_file_without_vgg16_has_none(weights: official.Weights) -> None:
    with pytest.raises(UserError, match="carries no lpips_loss"):
        vgg16_of(weights)
