"""The image model against the released code: numbers of the authors' where they fit, and a second implementation.

The authors' numbers are in ``tests/data/parity_tiny.safetensors`` (see ``test_generative_encoder.py``). Guidance and
solvers are checked on them with recorded predictions of the network: some latents only, but the ends are the authors'.
What needs a whole model (training with all its gradients, whole trajectories) is compared with
``official_reference.py`` on random weights. Both were checked against all of the authors' numbers, which are too large
to be kept here; ``benchmarks/parity.py`` repeats that for ``unite`` where the files are at hand.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint

from tests.support import official_reference as official
from tests.support.paths import TESTS
from unite.commands.import_official import from_official_names, read_official, to_official_names, write_checkpoint
from unite.engine.optimizer import MuonAdamW, OptimizerSettings, TwoStageDecay, parameter_groups, warmup_cosine
from unite.flow import SamplingOptions, Solver, TimeDistribution, flow_loss, guided_prediction, integrate, path_sample
from unite.modalities.base import Template
from unite.modalities.image.adapter import ImageAdapter
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder, Tokens

NUM_CLASSES, NUM_PATCHES, CHANNELS, FLOW_STEPS, BATCH = 5, 16, 6, 3, 2
SETTINGS = official.Settings(heads=2, decoder_heads=3, context_start=1, flow_weight=0.7)
LAYOUT = official.shapes(
    depth=3,
    width=32,
    heads=2,
    channels=CHANNELS,
    grid=4,
    patch=4,
    classes=NUM_CLASSES,
    context=3,
    decoder_depth=2,
    decoder_width=24,
    decoder_mlp=48,
    embedding=40,
)


@pytest.fixture
def weights() -> official.Weights:
    return official.random_weights(LAYOUT)


@pytest.fixture
def module(weights: official.Weights, tmp_path: Path) -> UniteModule:
    """The same model in ``unite``, by way of a checkpoint."""
    imported = from_official_names(weights, context_start=1, decoder_heads=3)
    path = write_checkpoint(imported, tmp_path / "imported.ckpt")
    module = UniteModule.load_from_checkpoint(path, weights_only=True, flow_steps=FLOW_STEPS, flow_weight=0.7)
    return module.eval()


def image_adapter(module: UniteModule) -> ImageAdapter:
    adapter = module.adapters["image"]
    assert isinstance(adapter, ImageAdapter)
    return adapter


def images() -> Tensor:
    return torch.rand(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def latents(*shape: int) -> Tensor:
    return torch.randn(*shape, NUM_PATCHES, CHANNELS, generator=torch.Generator().manual_seed(sum(shape)))


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


# ---------------------------------------------------------------------- the authors' numbers


def test_patches_equal_the_released_code(reference: dict[str, Tensor]) -> None:
    """The first 8 channels of the 16 upper left patches."""
    adapter = ImageAdapter(image_size=64, patch_size=16, decoder_size="XS", perceptual_weight=0)
    adapter.build(width=8, latent_channels=8)
    prefix = "state/patch_embed.patch_embeddings.projection."
    adapter.patch_embedding.load_state_dict({name: reference[prefix + name] for name in ("weight", "bias")})
    adapter.patch_position_embedding.copy_(reference["state/patch_embed.position_embeddings"])
    with torch.no_grad():
        tokens = adapter.tokens(adapter.prepare({"images": reference["io/image_u8"].float() / 255}))
    close(tokens.values[0], reference["io/patch_embed_out"])


def test_decoder_equals_the_released_code(reference: dict[str, Tensor]) -> None:
    """Lines 3 and 8 of each patch. The two linear layers before the decoder are stored as one."""
    adapter = ImageAdapter(
        image_size=256,
        patch_size=16,
        decoder_depth=2,
        decoder_width=48,
        decoder_heads=3,
        decoder_mlp_width=96,
        embedding_width=None,
        perceptual_weight=0,
    )
    adapter.build(width=8, latent_channels=8)
    places = reference["state/decoder.decoder_pos_embed"][0]
    with torch.no_grad():
        for name, parameter in adapter.decoder.named_parameters():
            theirs = name.replace("blocks", "decoder_layers")
            for ours, replaced in (
                ("latent_in", "decoder_embed_up_sample"),
                ("attention_norm", "layernorm_before"),
                ("mlp_norm", "layernorm_after"),
                ("attention_out", "attn_proj"),
                ("mlp_in", "ffn_up"),
                ("mlp_out", "ffn_down"),
            ):
                theirs = theirs.replace(ours, replaced)
            theirs = {"norm.weight": "decoder_norm.weight", "norm.bias": "decoder_norm.bias"}.get(theirs, theirs)
            if name == "class_token":
                parameter.copy_(reference["state/decoder.trainable_cls_token"] + places[0])
            else:
                parameter.copy_(reference[f"state/decoder.{theirs}"])
        adapter.latent_position_embedding.copy_(places[1:])
        lines = torch.cat([torch.arange(48 * line, 48 * (line + 1)) for line in (3, 8)])
        adapter.pixel_head.weight[lines] = reference["state/decoder.decoder_pred.weight"]
        adapter.pixel_head.bias[lines] = reference["state/decoder.decoder_pred.bias"]
        image = adapter.decode(reference["io/dec_latents"], Template(torch.tensor([256])))[0]
    lines = image[:, reference["io/dec_line_places"], 64:192]  # (3, lines, 128)
    close(lines.transpose(0, 1), reference["io/dec_lines"])


@pytest.mark.parametrize(
    ("name", "second", "shape"),
    [
        ("shipped", (30_000, 30_000), "cosine"),  # as configured upstream: the second decay is never reached
        ("cosine", (600, 800), "cosine"),
        ("linear", (600, 800), "linear"),
    ],
)
def test_schedule_equals_the_released_code(
    reference: dict[str, Tensor], name: str, second: tuple[int, int], shape: str
) -> None:
    decay = TwoStageDecay(300, 500, 0.5, *second, shape=shape)  # type: ignore[arg-type]
    settings = OptimizerSettings(lr=1.0, warmup_steps=200, final_lr_ratio=0.1, two_stage=decay)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    (factor,) = warmup_cosine(optimizer, settings, total_steps=10**6).lr_lambdas
    for step, expected in reference[f"io/schedule_{name}"].tolist():
        assert factor(int(step)) == pytest.approx(expected, rel=1e-12)


def test_flow_loss_equals_the_released_code(reference: dict[str, Tensor]) -> None:
    """Three samples at different times, one by one and together."""
    x1, x0, timesteps, predictions, losses = (
        torch.cat((reference[f"io/flow_{name}"], reference[f"io/flow_more_{name}"]))
        for name in ("x1", "x0", "t", "xpred_normed", "loss_per_sample")
    )
    for i in range(3):
        one = slice(i, i + 1)
        loss = flow_loss(predictions[one], path_sample(x1[one], x0[one], timesteps[one]), mask=None)
        torch.testing.assert_close(loss, losses[i], atol=0, rtol=1e-5)
    loss = flow_loss(predictions, path_sample(x1, x0, timesteps), mask=None)
    torch.testing.assert_close(loss, reference["io/flow_more_loss_mean"], atol=0, rtol=1e-5)


@pytest.mark.parametrize(("case", "interval"), [("a", (0.1, 1.0)), ("b", (0.0, 1.0))])
def test_guidance_equals_the_released_code(
    reference: dict[str, Tensor], case: str, interval: tuple[float, float]
) -> None:
    """Every 8th latent of four samples, at times within the interval, outside, and on its ends."""
    weight, bias = reference["state/encoder_layer_norm.weight"], reference["state/encoder_layer_norm.bias"]
    raw = [reference[f"io/cfg_{case}_{kind}"] for kind in ("conditional", "unconditional")]
    normed = [torch.nn.functional.layer_norm(values, (8,), weight, bias, 1e-5) for values in raw]

    def guided(predictions: list[Tensor], i: int, time: float) -> Tensor:
        conditional, unconditional = (values[i : i + 1] for values in predictions)
        predict = guided_prediction(lambda x, t: conditional, lambda x, t: unconditional, 2.5, interval)
        prediction: Tensor = predict(torch.zeros_like(conditional), time)[0]
        return prediction

    for i, time in enumerate(reference[f"io/cfg_{case}_t"].tolist()):
        close(guided(normed, i, time), reference[f"io/cfg_{case}_norm_first"][i])
        if case == "a":  # the released code's other order, which never normalises, holds the recorded values in place
            close(guided(raw, i, time), reference["io/cfg_a_cfg_first"][i])


@pytest.mark.parametrize(
    ("solver", "theirs", "scale"),
    [("euler", "euler", 2.0), ("midpoint", "midpoint", 2.0), ("heun", "heun2", 2.0), ("rk4", "rk4", 1.0)],
)
def test_solvers_equal_the_released_code(
    reference: dict[str, Tensor], solver: Solver, theirs: str, scale: float
) -> None:
    """Two latents of a sample, over 49 steps with the predictions that the whole network made."""
    recorded: Iterator[tuple[float, Tensor]] = iter(
        zip(reference[f"io/ode_{theirs}_times"].tolist(), reference[f"io/ode_{theirs}_predictions"], strict=True)
    )

    def replay(x: Tensor, timesteps: Tensor) -> Tensor:
        time, prediction = next(recorded)
        assert float(timesteps) == pytest.approx(time, abs=1e-6)
        return prediction[None]

    predict = guided_prediction(replay, replay, scale, (0.1, 1.0))
    end = integrate(predict, reference["io/ode_noise"], TimeDistribution(shift=0.5).grid(49), solver)
    torch.testing.assert_close(end, reference[f"io/ode_{theirs}_end"], atol=1e-4, rtol=0)
    assert next(recorded, None) is None


def test_in_context_tokens_equal_the_released_code(reference: dict[str, Tensor]) -> None:
    encoder = GenerativeEncoder(
        "XS", latent_channels=8, depth=1, width=64, num_heads=4, context_start=0, context_length=4
    )
    inputs: list[Tensor] = []
    encoder.blocks[0].register_forward_pre_hook(lambda block, args: inputs.append(args[0]))
    null = reference["state/encoder.y_embedder.embedding_table.weight"][10:11]
    with torch.no_grad():
        encoder.context_embedding.copy_(reference["state/encoder.in_context_posemb"][0])
        encoder.denoise(torch.zeros(1, 2, 8), torch.zeros(1), null, Tokens(torch.zeros(1, 2, 64), torch.arange(2)))
    close(inputs[0][0, :4], reference["io/in_context"])


def test_optimizer_step_equals_the_released_code(reference: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tensors with AdamW and one with Muon. A last parameter has all the rest of the gradient's norm."""
    monkeypatch.setattr("unite.engine.optimizer.multiplies_bfloat16", lambda: True)
    start = "io/step_gradient."
    names = [name.removeprefix(start) for name in reference if name.startswith(start)]
    parameters = {name: torch.nn.Parameter(reference[f"state/{name}"].clone()) for name in names}
    for name, parameter in parameters.items():
        parameter.grad = reference[start + name].clone()
    known = sum(float(reference[start + name].double().square().sum()) for name in names)
    total = float(reference["io/step_total_norm"])
    rest = torch.nn.Parameter(torch.zeros(1))
    rest.grad = torch.tensor([math.sqrt(total**2 - known)])
    matrices = [name for name in names if name in official_muon_names()]
    groups = [
        {"params": [parameters[name] for name in matrices], "algorithm": "muon"},
        {"params": [parameters[name] for name in names if name not in matrices] + [rest], "algorithm": "adamw"},
    ]
    norm = torch.nn.utils.clip_grad_norm_([*parameters.values(), rest], 3.0)
    assert float(norm) == pytest.approx(total, rel=1e-6)
    MuonAdamW(groups, OptimizerSettings(lr=1e-3)).step()
    assert (len(names), matrices) == (4, ["encoder.up_sample.weight"])
    for name, parameter in parameters.items():
        expected = reference[f"io/step_after.{name}"]
        update = float((expected - reference[f"state/{name}"]).norm())
        tolerance = 5e-3 if name in matrices else 1e-4  # Muon computes in bfloat16
        assert float((parameter.detach() - expected).norm()) <= tolerance * update, name


def official_muon_names() -> set[str]:
    """Names of the parameters that the released code gives to Muon, in a model with 3 and 2 blocks."""
    return set((TESTS / "data" / "official_muon.txt").read_text().split())


def test_muon_gets_the_same_parameters_as_in_the_released_code(module: UniteModule) -> None:
    groups = parameter_groups(module, [module.encoder, *module.adapters.values()], muon=True)
    in_muon = {id(p) for group in groups if group["algorithm"] == "muon" for p in group["params"]}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float(id(parameter) in in_muon))
    named = {name: value for name, value in to_official_names(module).items() if official.is_trained(name)}
    assert {name for name, value in named.items() if value.max() == 1} == official_muon_names()


# ---------------------------------------------------------------------- the second implementation


def test_tokenization_and_decoding_equal_the_reference(module: UniteModule, weights: official.Weights) -> None:
    adapter, pixels, noise, times = image_adapter(module), images(), latents(BATCH), torch.tensor([0.001, 0.3])
    prepared = adapter.prepare({"images": pixels, "labels": torch.zeros(BATCH)})
    template = adapter.template(prepared)
    with torch.no_grad():
        tokens = adapter.tokens(prepared)
        close(tokens.values, official.patch_features(weights, pixels))
        ours = module.encoder.tokenize(
            tokens, adapter.registers(template), adapter.null_condition(), noise=noise, timesteps=times
        )
        theirs = official.tokenize(weights, SETTINGS, pixels, noise, times)
        close(ours, theirs)
        close(adapter.decode(theirs, template), official.decode(weights, SETTINGS, theirs))


def test_denoising_equals_the_reference(module: UniteModule, weights: official.Weights) -> None:
    adapter, noisy, times = image_adapter(module), latents(3), torch.tensor([0.0, 0.4, 1.03])
    classes = torch.tensor([0, 4, NUM_CLASSES])  # the last one is the null class
    with torch.no_grad():
        condition = adapter.condition_embedding(classes)
        registers = adapter.registers(Template(torch.full((3,), NUM_PATCHES)))
        ours = module.denoiser.denoise(noisy, times, condition, registers)
        close(ours, official.denoise(weights, SETTINGS, noisy, times, classes))


def random_draws() -> official.Draws:
    generator = torch.Generator().manual_seed(5)
    return official.Draws(
        register_noise=torch.randn(BATCH, NUM_PATCHES, CHANNELS, generator=generator),
        tokenize_time=0.01 * torch.rand(BATCH, generator=generator),
        noising_mask=torch.tensor([True, False]),
        noising_time=0.7 + 0.3 * torch.rand(BATCH, generator=generator),
        noising_noise=torch.randn(BATCH, NUM_PATCHES, CHANNELS, generator=generator),
        flow_time=torch.tensor([[0.1, 0.5], [0.3, 0.97], [0.8, 0.2]]),  # one within MIN_NOISE of the data
        flow_noise=torch.randn(FLOW_STEPS, BATCH, NUM_PATCHES, CHANNELS, generator=generator),
        label_drop=torch.tensor([[False, False], [True, False], [False, False]]),
    )


def feed(draws: official.Draws, module: UniteModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the module's training step draw these numbers."""
    adapter, tokenize = image_adapter(module), module.encoder.tokenize
    drops: Iterator[Tensor] = iter(draws.label_drop)

    def given_tokenize(*args: object) -> Tensor:
        return tokenize(*args, noise=draws.register_noise, timesteps=draws.tokenize_time)  # type: ignore[arg-type]

    def given_noise(clean: Tensor, probability: float, min_time: float) -> Tensor:
        times = torch.where(draws.noising_mask, draws.noising_time, 1.0)
        return path_sample(clean, draws.noising_noise, times).noisy_latents

    def given_condition(template: Template) -> Tensor:
        assert template.condition is not None
        hidden = template.condition.masked_fill(next(drops), NUM_CLASSES)
        embedded: Tensor = adapter.condition_embedding(hidden)
        return embedded

    monkeypatch.setattr(module.encoder, "tokenize", given_tokenize)
    monkeypatch.setattr(adapter, "condition", given_condition)
    monkeypatch.setattr("unite.module.reconstruction_noise", given_noise)
    monkeypatch.setattr(TimeDistribution, "sample", lambda self, num, device: draws.flow_time.flatten())
    monkeypatch.setattr(torch, "randn_like", lambda like: draws.flow_noise.flatten(0, 1))


@pytest.mark.filterwarnings("ignore:no VGG16 weights")
def test_training_step_equals_the_reference_with_all_gradients_and_the_update(
    module: UniteModule, weights: official.Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, draws = torch.tensor([3, 1]), random_draws()
    trained = {name: value.clone().requires_grad_(official.is_trained(name)) for name, value in weights.items()}
    reconstruction, flow = official.training_losses(trained, SETTINGS, images(), labels, draws)
    (reconstruction + SETTINGS.flow_weight * flow).backward()

    logged: dict[str, Tensor] = {}
    module.train()
    module.log_terms = lambda stage, modality, terms, batch_size: logged.update(terms)  # type: ignore[method-assign]
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    feed(draws, module, monkeypatch)
    loss = module.training_step({"image": {"images": images(), "labels": labels}}, 0)
    torch.testing.assert_close(logged["pixels"], reconstruction, atol=0, rtol=1e-5)
    torch.testing.assert_close(logged["flow"], flow, atol=0, rtol=1e-5)
    torch.testing.assert_close(loss, reconstruction + 0.7 * flow, atol=0, rtol=1e-5)

    loss.backward()
    gradients = {name: tensor.grad for name, tensor in trained.items()}
    for name, ours in official_names_of_gradients(module).items():
        theirs = gradients.pop(name)
        assert theirs is not None
        # Sums in another order (threads, vector units) differ by up to 1.6e-5 of a norm; a wrong term by far more.
        assert float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm()), name
    # Left are weights that are frozen there and buffers here, and one that nothing uses.
    assert all(gradient is None for gradient in gradients.values())
    assert {name for name in gradients if official.is_trained(name)} == {"encoder.t_embedder.special_time_emb"}

    module.optimizer_settings = OptimizerSettings(lr=1e-3, warmup_steps=0)
    monkeypatch.setattr(UniteModule, "trainer", SimpleNamespace(estimated_stepping_batches=100), raising=False)
    monkeypatch.setattr("unite.engine.optimizer.multiplies_bfloat16", lambda: True)
    configured: Any = module.configure_optimizers()
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 3.0)
    configured["optimizer"].step()
    moving = {name: tensor for name, tensor in trained.items() if tensor.grad is not None}
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(moving.values(), 3.0), atol=0, rtol=1e-5)
    assert norm > 3, "the test is to clip"
    # The same gradients to the bit: Muon's bfloat16 makes differences in the last digit, which the gradients may have,
    # into one of 12 % on some processors.
    for name, gradient in official_names_of_gradients(module).items():
        moving[name].grad = gradient
    matrices = {name for name, tensor in moving.items() if official.is_for_muon(name, tensor)}
    flat = [tensor for name, tensor in moving.items() if name in matrices]
    rest = [tensor for name, tensor in moving.items() if name not in matrices]
    torch.optim.Muon(flat, 1e-3, weight_decay=0, eps=1e-6, adjust_lr_fn="match_rms_adamw").step()
    torch.optim.AdamW(rest, 1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0).step()
    after = to_official_names(module)
    # What is added to the class token there is part of it here; the class table there has a row that nothing uses.
    after["decoder.trainable_cls_token"] = (
        after["decoder.trainable_cls_token"] - weights["decoder.decoder_pos_embed"][0, 0]
    )
    after["encoder.y_embedder.embedding_table.weight"][-1] = weights["encoder.y_embedder.embedding_table.weight"][-1]
    for name, tensor in moving.items():
        update = (tensor.detach() - weights[name]).norm()
        tolerance = 1e-2 if name in matrices else 1e-4  # Muon computes in bfloat16
        assert float((after[name] - tensor).detach().norm()) <= tolerance * float(update), name


def official_names_of_gradients(module: UniteModule) -> dict[str, Tensor]:
    """The gradients of a model of ours under official names, and in official shapes."""
    held = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    with torch.no_grad():
        for parameter in module.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
        named = {
            name: value.clone()
            for name, value in to_official_names(module).items()
            if official.is_trained(name) and "special_time_emb" not in name
        }
        for name, parameter in module.named_parameters():
            parameter.copy_(held[name])
    return named


SOLVERS: dict[Solver, str] = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2", "rk4": "rk4"}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("scale", "interval"), [(1.0, (0.0, 1.0)), (2.5, (0.1, 1.0)), (2.5, (0.0, 0.6))])
def test_sampling_equals_the_reference_in_torchdiffeq(
    module: UniteModule,
    weights: official.Weights,
    solver: Solver,
    scale: float,
    interval: tuple[float, float],
) -> None:
    adapter, noise, classes = image_adapter(module), latents(BATCH), torch.tensor([2, 0])
    template = Template(torch.full((BATCH,), NUM_PATCHES), classes)
    ours = module.sample_latents(
        adapter, template, lambda step, shape: noise, SamplingOptions(12, solver, scale, interval)
    )
    grid = torch.linspace(0, 1, 13)
    grid = 0.5 * grid / (1 - 0.5 * grid)
    with torch.no_grad():
        velocity = official.guided_velocity(weights, SETTINGS, classes, scale, interval)
        theirs = odeint(velocity, noise, grid, method=SOLVERS[solver])[-1]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        close(adapter.decode(theirs, template), official.decode(weights, SETTINGS, theirs))


def test_adaptive_sampling_equals_the_reference(module: UniteModule, weights: official.Weights) -> None:
    """By root mean square: rounding sets the step sizes, and the released code differs from itself by as much."""
    adapter, noise, classes = image_adapter(module), latents(BATCH), torch.tensor([2, 0])
    template = Template(torch.full((BATCH,), NUM_PATCHES), classes)
    our_calls, their_calls = [], []
    module.encoder.blocks[0].register_forward_pre_hook(lambda *args: our_calls.append(1))
    ours = module.sample_latents(adapter, template, lambda step, shape: noise, SamplingOptions(solver="dopri5"))
    velocity = official.guided_velocity(weights, SETTINGS, classes, 1.0, (0.0, 1.0))

    def counted(t: Tensor, x: Tensor) -> Tensor:
        their_calls.append(1)
        return velocity(t, x)

    theirs = odeint(counted, noise, torch.linspace(0, 1, 50), method="dopri5", atol=1e-6, rtol=1e-3)[-1]
    assert len(our_calls) == pytest.approx(len(their_calls), rel=0.2)
    assert math.sqrt(float((ours - theirs).square().mean())) < 2e-2


def test_an_official_file_is_read_with_either_weights(weights: official.Weights, tmp_path: Path) -> None:
    torch.save({"ema": weights, "model": {"other": torch.zeros(1)}, "step": 3}, tmp_path / "theirs.pt")
    state, others = read_official(tmp_path / "theirs.pt")
    assert state.keys() == weights.keys()
    assert others == {"step": 3}
    assert read_official(tmp_path / "theirs.pt", "model")[0].keys() == {"other"}
