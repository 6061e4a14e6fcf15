"""Alignment of the two passes: which rows are compared, with which network, for any adapter."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from tests.support.cases import CASES, Case, build_module
from tests.support.samples.tiny_images import tiny_images
from tests.toy_modality.curves import CurveAdapter, CurveDataModule
from unite.analysis import alignment
from unite.analysis.activations import recorded
from unite.analysis.alignment import (
    MEASURES,
    PAIRINGS,
    AlignmentSettings,
    centre_within,
    count_passes,
    late_layer,
    layer_names,
    measure_alignment,
)
from unite.analysis.loading import fresh_module, scrambled_module
from unite.errors import UserError
from unite.flow import path_sample
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder, Tokens
from unite.trainer import UniteTrainer

SETTINGS = AlignmentSettings(num_samples=12, times=(0.3, 0.9), num_seeds=2, num_neighbours=3)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def batches(case: Case, tmp_path: Path) -> list[Any]:
    data: LightningDataModule = case.make_data(tmp_path)
    data.prepare_data()
    data.setup("fit")
    return [batch[case.modality] for batch in list(data.train_dataloader())[:2]]


def curve_batches() -> list[Any]:
    return [batch["curve"] for batch in CurveDataModule(batch_size=16).val_dataloader()]


def numbers(value: Any) -> Iterator[float]:
    """All numbers in nested lists and dictionaries."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, float):
        yield value


# ---------------------------------------------------------------------- activations


@pytest.mark.parametrize("context_start", [None, 0, 1, 3])
@pytest.mark.parametrize("num_tokens", [0, 6])
def test_recorded_are_the_registers_and_nothing_else(context_start: int | None, num_tokens: int) -> None:
    # A new encoder's blocks only normalise, token by token, so every register stays its own, normalised input.
    context = {} if context_start is None else {"context_start": context_start, "context_length": 3}
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=4, width=32, num_heads=2, **context)  # type: ignore[arg-type]
    registers = Tokens(torch.randn(1, 5, 32), torch.arange(5))
    tokens = Tokens(torch.randn(2, num_tokens, 32), torch.arange(num_tokens)) if num_tokens else None
    noise = torch.randn(2, 5, 4)
    with torch.no_grad():
        with recorded(encoder) as found:
            encoder(noise, torch.rand(2), torch.zeros(1, 32), registers, tokens)
        expected = encoder.latent_in(noise) + registers.values
    assert len(found.registers) == 5
    assert len(found.residuals) == len(found.modulations) == 4
    torch.testing.assert_close(found.registers[0], expected)
    normed = expected / expected.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(found.residuals[0], expected)
    for layer in found.registers[1:]:
        torch.testing.assert_close(layer, normed, atol=1e-4, rtol=1e-4)
    assert all(values.shape == (2, 6 * 32) for values in found.modulations)


def test_recording_changes_nothing_and_leaves_no_hook() -> None:
    case = CASES["counted"]
    encoder = build_module(case).encoder
    registers = Tokens(torch.randn(1, 5, 32), torch.arange(5))
    arguments = (torch.randn(2, 5, 4), torch.rand(2), torch.zeros(1, 32), registers)
    plain = encoder.denoise(*arguments)
    with recorded(encoder) as found:
        watched = encoder.denoise(*arguments)
    torch.testing.assert_close(plain, watched, rtol=0, atol=0)
    encoder.denoise(*arguments)
    assert len(found.registers) == 3  # the later pass was not recorded
    with torch.no_grad():  # the last layer is what the output is read from
        activated = torch.nn.functional.silu(encoder.time_embedding(arguments[1]) + arguments[2])
        shift, scale = encoder.final_modulation(activated)[:, None].chunk(2, dim=-1)
        out = encoder.normalize(encoder.final_out(encoder.stream_norm(found.registers[-1], shift, scale)))
    torch.testing.assert_close(out, plain)


def test_a_compiled_model_is_recorded_without_compiling_it() -> None:
    plain, compiled = build_module(CASES["toy"]), build_module(CASES["toy"], compile=True)
    compiled.load_state_dict(plain.state_dict())
    torch._dynamo.utils.counters.clear()
    one = AlignmentSettings(num_samples=12, times=(0.5,), num_seeds=1)
    expected, found = (measure_alignment(module, "curve", curve_batches(), one) for module in (plain, compiled))
    assert list(map(str, numbers(found))) == list(map(str, numbers(expected)))
    assert not torch._dynamo.utils.counters["frames"]


# ---------------------------------------------------------------------- measurement


def test_any_adapter_can_be_measured(case: Case, batches: list[Any]) -> None:
    module = build_module(case)
    passes: list[None] = []
    result = measure_alignment(module, case.modality, batches, SETTINGS, lambda: passes.append(None))
    assert len(passes) == count_passes(2, SETTINGS)
    assert result["layers"] == layer_names(2) == ["input", "block 1", "block 2", "latents"]
    for measure in MEASURES:
        for pairing in PAIRINGS:
            assert torch.tensor(result["measures"][measure][pairing]).shape == (2, 2, 4)
        assert all(math.isfinite(value) for value in numbers(result["measures"][measure]["trained"]))
    assert torch.tensor(result["matrix"]["0.3"]).shape == (4, 4)
    diagonal = torch.tensor(result["matrix"]["0.9"]).diagonal()
    torch.testing.assert_close(diagonal.tolist(), result["measures"]["cka_within"]["trained"][0][1])
    assert result["modes"].keys() == {"tokenize", "0.3", "0.9"}
    assert all(value > 0 for value in result["modes"]["tokenize"]["norm"])
    adapter = module.adapters[case.modality]
    template = adapter.template(adapter.prepare(batches[0]))
    mask = adapter.registers(template).mask
    if mask is None:
        assert result["num_rows"] == 12 * adapter.registers(template).values.shape[1]
    else:
        later = adapter.template(adapter.prepare(batches[1])).sizes
        assert result["num_rows"] == int(template.sizes.sum() + later[:4].sum())


@pytest.mark.parametrize("name", ["explicit", "counted"])
def test_padding_is_never_counted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    data = case.make_data(tmp_path)
    data.prepare_data()
    data.setup("fit")
    batches = [batch[case.modality] for batch in data.val_dataloader()]
    module = build_module(case)
    adapter = module.adapters[case.modality]
    assert any(not adapter.template(adapter.prepare(samples)).mask.all() for samples in batches)
    before = measure_alignment(module, case.modality, batches, SETTINGS)
    forward = GenerativeEncoder.forward

    def poisoned(self: GenerativeEncoder, *args: Any) -> Tensor:
        latents, registers = forward(self, *args), args[3]
        return torch.where(registers.mask[..., None], latents, 1e3)

    monkeypatch.setattr(GenerativeEncoder, "forward", poisoned)
    after = measure_alignment(module, case.modality, batches, SETTINGS)
    torch.testing.assert_close(list(numbers(after)), list(numbers(before)), rtol=1e-4, atol=1e-5, equal_nan=True)


def test_samples_beyond_those_asked_for_are_never_counted() -> None:
    module = build_module(CASES["toy"])
    before = measure_alignment(module, "curve", curve_batches(), SETTINGS)
    batches = curve_batches()
    assert len(batches[0]["labels"]) > SETTINGS.num_samples
    batches[0]["points"][SETTINGS.num_samples :] += 3
    batches[0]["labels"][SETTINGS.num_samples :] = 0
    after = measure_alignment(module, "curve", batches, SETTINGS)
    assert list(map(str, numbers(after))) == list(map(str, numbers(before)))


def test_sizes_of_modulations_are_their_root_mean_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build_module(CASES["toy"])
    seen: list[Tensor] = []
    module.encoder.blocks[1].modulation.register_forward_hook(lambda layer, inputs, output: seen.append(output))  # type: ignore[union-attr]
    one = AlignmentSettings(num_samples=16, times=(0.5,), num_seeds=1)
    sizes = measure_alignment(module, "curve", curve_batches()[:1], one)["modes"]["0.5"]["modulation_rms"]
    parts = seen[1].chunk(6, dim=1)  # behind that of the tokenization pass
    assert sizes["attention scale"][1] == pytest.approx(float((1 + parts[1]).square().mean().sqrt()), rel=1e-5)
    assert sizes["mlp gate"][1] == pytest.approx(float(parts[5].square().mean().sqrt()), rel=1e-5)


def test_the_denoiser_is_the_network_that_denoises() -> None:
    case = CASES["toy"]
    shared, separate = build_module(case), build_module(case, weight_sharing=False)
    assert separate.separate_denoiser is not None
    separate.load_state_dict(shared.state_dict(), strict=False)
    separate.separate_denoiser.load_state_dict(shared.encoder.state_dict())
    expected = measure_alignment(shared, "curve", curve_batches(), SETTINGS)["measures"]["cka"]["trained"]
    assert measure_alignment(separate, "curve", curve_batches(), SETTINGS)["measures"]["cka"]["trained"] == expected
    with torch.no_grad():
        separate.separate_denoiser.latent_in.weight.normal_()
    other = measure_alignment(separate, "curve", curve_batches(), SETTINGS)["measures"]["cka"]["trained"]
    assert other != expected


def test_training_brings_the_passes_together_and_the_controls_stay_apart() -> None:
    torch.manual_seed(1)
    module = build_module(CASES["grey images"], noise_probability=0.0, flow_loss="data", flow_weight=0.1)
    module.train().log_terms = lambda *args: None  # type: ignore[method-assign]
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    images, labels = tiny_images(48, channels=1)
    samples = {"images": images, "labels": labels}
    for _ in range(240):
        optimizer.zero_grad()
        module.training_step({"image": samples}, 0).backward()
        optimizer.step()
    settings = AlignmentSettings(num_samples=64, times=(0.5, 0.8), num_seeds=1)
    result = measure_alignment(module.eval(), "image", [samples], settings)
    late = late_layer(result, "cka_within")
    assert late["trained"] > 0.7
    assert abs(late["shuffled"]) < 0.1
    assert abs(late["untrained"]) < 0.1
    assert late["scrambled"] < late["trained"] - 0.2
    # Places of registers alone make raw similarity high in a network that has learned nothing.
    assert late_layer(result, "cosine")["untrained"] > 0.5 > late_layer(result, "cosine_within")["untrained"]
    # Denoising nearly clean latents gives them back.
    assert result["measures"]["cosine"]["trained"][0][1][-1] > 0.8


def test_a_seed_fixes_everything() -> None:
    module = build_module(CASES["toy"])
    first, again, other = (
        measure_alignment(module, "curve", curve_batches(), AlignmentSettings(num_samples=12, times=(0.5,), seed=seed))
        for seed in (0, 0, 1)
    )
    assert list(map(str, numbers(first))) == list(map(str, numbers(again)))
    assert first["measures"]["cka"] != other["measures"]["cka"]


def test_each_repetition_tokenizes_without_a_class_and_has_noise_of_its_own_alike_at_all_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registers: list[Tensor] = []
    latents: list[Tensor] = []
    conditions: list[Tensor] = []
    tokenize = GenerativeEncoder.tokenize

    def tokenize_watched(self: GenerativeEncoder, *args: Any, **drawn: Any) -> Tensor:
        registers.append(drawn["noise"])
        conditions.append(args[2])
        return tokenize(self, *args, **drawn)

    def path_watched(clean: Tensor, noise: Tensor, timesteps: Tensor) -> Any:
        latents.append(noise)
        return path_sample(clean, noise, timesteps)

    monkeypatch.setattr(GenerativeEncoder, "tokenize", tokenize_watched)
    monkeypatch.setattr(alignment, "path_sample", path_watched)
    module = build_module(CASES["toy"])
    measure_alignment(module, "curve", curve_batches()[:1], SETTINGS)
    assert torch.equal(conditions[0], module.adapters["curve"].null_condition())  # tokenization knows no class
    # Three networks, and of each two repetitions: one tokenization pass and two denoising passes.
    assert (len(registers), len(latents)) == (6, 12)
    for repetition in range(2):
        early, late = latents[2 * repetition : 2 * repetition + 2]
        assert torch.equal(early, late)
        assert not torch.equal(early, registers[repetition])
    assert not torch.equal(registers[0], registers[1])
    assert not torch.equal(latents[0], latents[2])
    for drawn, per_network in ((registers, 2), (latents, 4)):  # networks are compared on the same noise
        assert all(torch.equal(noise, drawn[index % per_network]) for index, noise in enumerate(drawn))


def test_a_module_in_training_is_measured_as_in_evaluation() -> None:
    module = build_module(CASES["toy"], noise_probability=0.0)
    settings = AlignmentSettings(num_samples=12, times=(0.5,), num_seeds=1)
    expected = measure_alignment(module, "curve", curve_batches(), settings)
    # In training, conditions would be dropped at random.
    module.adapters["curve"].condition_dropout = 1.0
    found = measure_alignment(module.train(), "curve", curve_batches(), settings)
    assert list(map(str, numbers(found))) == list(map(str, numbers(expected)))
    assert module.training


def test_registers_are_left_out_evenly_when_rows_would_be_too_many() -> None:
    module = UniteModule(
        GenerativeEncoder("XS", latent_channels=4, depth=1, width=32, num_heads=2),
        {"curve": CurveAdapter(num_latents=8)},
    ).eval()
    settings = AlignmentSettings(num_samples=32, times=(0.5,), num_seeds=1, max_rows=100)
    result = measure_alignment(module, "curve", curve_batches(), settings)
    assert (result["num_registers"], result["num_rows"]) == (3, 96)


def test_pairs_are_shuffled_within_a_register() -> None:
    slots = torch.tensor([0, 1, 2, 0, 1, 0, 1, 0])
    order = alignment._shuffle_within(slots)
    assert sorted(order.tolist()) == list(range(8))
    assert slots[order].tolist() == slots.tolist()
    assert all(order[row] != row for row in range(8) if row != 2)


def test_centring_leaves_no_mean_in_a_register() -> None:
    rows, slots = torch.randn(50, 3) + 5, torch.randint(0, 4, (50,)) * 2
    centred = centre_within(rows, slots)
    for slot in (0, 2, 4, 6):
        torch.testing.assert_close(centred[slots == slot], rows[slots == slot] - rows[slots == slot].mean(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"times": ()}, "times is empty"),
        ({"times": (0.5, 1.5)}, "times has 1.5"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_seeds": 0}, "num_seeds is 0"),
        ({"num_neighbours": 1000}, "cknna_rows is 1000"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AlignmentSettings(**settings)


# ---------------------------------------------------------------------- controls


def test_fresh_module_is_new_and_reproducible() -> None:
    module = build_module(CASES["counted"])
    state = torch.random.get_rng_state()
    fresh, again = fresh_module(module), fresh_module(module)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert fresh.state_dict().keys() == module.state_dict().keys()
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name])
    assert not fresh.encoder.final_out.weight.any()
    assert module.encoder.final_out.weight.any()


def test_scrambling_keeps_the_entries_of_each_tensor() -> None:
    module = build_module(CASES["counted"], weight_sharing=False)
    scrambled = scrambled_module(module)
    for name, value in module.state_dict().items():
        other = scrambled.state_dict()[name]
        torch.testing.assert_close(other.flatten().sort().values, value.flatten().sort().values)
        if name.endswith("qkv.weight"):
            assert torch.equal(other, value) == name.startswith("adapters")


def test_scrambling_a_seed_gives_the_same_weights_each_time() -> None:
    for _ in range(6):
        shared = build_module(CASES["toy"])
        separate = build_module(CASES["toy"], weight_sharing=False)
        separate.load_state_dict(shared.state_dict(), strict=False)
        expected = scrambled_module(shared, seed=3).encoder.state_dict()
        for name, value in scrambled_module(separate, seed=3).encoder.state_dict().items():
            assert torch.equal(value, expected[name]), name


def test_a_module_fresh_from_training_can_be_measured(tmp_path: Path) -> None:
    case = CASES["toy"]
    module, data = build_module(case).train(), case.make_data(tmp_path)
    trainer = UniteTrainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, max_steps=1, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    result = measure_alignment(module, "curve", curve_batches(), SETTINGS)
    assert set(result["measures"]["cka"]) == {"trained", "shuffled", "untrained", "scrambled"}
