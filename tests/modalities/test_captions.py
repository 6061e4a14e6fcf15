"""Captions: tokens that the Generative Encoder reads in context, in samples of all modalities."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.cases import awake, tiny_image_adapter
from tests.support.commands import RunCli
from unite import UniteModule, UserError
from unite.analysis.activations import recorded
from unite.modalities.conditions import ConditionedAdapter
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.template import Template, Wanted
from unite.nn.generative_encoder import GenerativeEncoder, Tokens
from unite.nn.text import ByteTextEncoder, TextEncoder

CAPTIONS = ("a ring", None, "a ring with an alcohol, and another one", "")


def make_module(context_start: int | None = None, flow_chunk: int | None = None, **settings: Any) -> UniteModule:
    torch.manual_seed(0)
    length = 0 if context_start is None else 2
    encoder = GenerativeEncoder(
        "XS", 4, depth=2, width=32, num_heads=2, context_start=context_start, context_length=length
    )
    text = ByteTextEncoder(depth=1, num_heads=2, max_tokens=12)
    adapter = tiny_image_adapter(channels=1, text=text, **settings)
    return awake(UniteModule(encoder, {"image": adapter}, flow_steps=3, flow_chunk=flow_chunk))


@pytest.fixture(scope="module")
def module() -> UniteModule:
    return make_module()


def text_of(module: UniteModule) -> TextEncoder:
    text = module.adapters["image"].text
    assert text is not None
    return text


def images_with(captions: Sequence[str | None] | None, num: int = 4) -> dict[str, Any]:
    samples: dict[str, Any] = {"images": torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
    return samples if captions is None else {**samples, "captions": list(captions)}


def template_of(module: UniteModule, captions: Sequence[str | None] | None) -> Template:
    adapter = module.adapters["image"]
    return adapter.template(adapter.prepare(images_with(captions)))


def denoised(module: UniteModule, captions: Sequence[str | None] | None) -> torch.Tensor:
    """What the denoiser makes of the same noise under captions."""
    adapter, template = module.adapters["image"], template_of(module, captions)
    noise = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(1))
    condition, context = adapter.conditions(template)
    with torch.no_grad():
        return module.denoiser.denoise(noise, torch.tensor([0.5]), condition, adapter.registers(template), context)


@pytest.mark.parametrize("context_start", [None, 0, 1])
def test_a_caption_changes_its_sample_alone_and_padding_none(context_start: int | None) -> None:
    module = make_module(context_start)
    free, mixed = denoised(module, None), denoised(module, CAPTIONS)
    torch.testing.assert_close(mixed[[1, 3]], free[[1, 3]])  # of samples without a caption, whatever others have
    assert (mixed[[0, 2]] - free[[0, 2]]).abs().amax(dim=(1, 2)).min() > 1e-3
    alone = denoised(module, ("a ring", None, None, None))  # padded to two tokens, above to nine
    torch.testing.assert_close(alone[0], mixed[0])


def test_the_order_of_samples_does_not_matter_and_that_of_words_does(module: UniteModule) -> None:
    order = [2, 0, 3, 1]
    tokens = text_of(module)(CAPTIONS)
    moved = text_of(module)([CAPTIONS[row] for row in order])
    torch.testing.assert_close(moved.values, tokens.values[order])
    assert tokens.mask is not None
    assert moved.mask is not None
    assert torch.equal(moved.mask, tokens.mask[order])
    assert tokens.mask.sum(dim=1).tolist() == [2, 0, 9, 0]
    one, other = (denoised(module, [text] * 4) for text in ("a ring with an ether", "an ether with a ring"))
    assert not torch.allclose(one, other)


def test_upper_case_is_lower_case_and_words_that_were_never_seen_have_vectors_of_their_own(module: UniteModule) -> None:
    assert torch.equal(denoised(module, ["A Ring"] * 4), denoised(module, ["a ring"] * 4))
    made = [denoised(module, [word] * 4) for word in ("ring", "rings", "Ünïcödé", "x" * 40)]
    for number, one in enumerate(made):
        assert not any(torch.allclose(one, other) for other in made[:number])


def test_dropout_makes_the_null_caption(module: UniteModule) -> None:
    adapter = module.adapters["image"]
    template, rows = template_of(module, CAPTIONS), {}
    for rate in (0.0, 1.0, 0.4):
        adapter.condition_dropout = rate
        module.train()
        try:
            vectors, context = adapter.conditions(template, copies=100)
        finally:
            module.eval()
            adapter.condition_dropout = 0.1
        assert context is not None
        assert context.mask is not None
        rows[rate] = context.mask.any(dim=1).view(100, 4)
        is_hidden = ~context.mask.any(dim=1)
        assert torch.equal(vectors[is_hidden], adapter.null_condition().expand(int(is_hidden.sum()), -1))
    assert rows[0.0][:, [0, 2]].all()
    assert not rows[0.0][:, [1, 3]].any()
    assert not rows[1.0].any()
    assert 0.2 < rows[0.4][:, [0, 2]].float().mean() < 0.5  # 0.36: by itself, or with all others
    assert rows[0.4].unique(dim=0).shape[0] > 3  # hidden anew in each copy


def test_now_and_then_all_conditions_are_hidden_at_once() -> None:
    module = make_module(num_classes=3, condition_dropout=0.5)
    adapter = module.adapters["image"]
    samples = {**images_with(["a ring"] * 4), "labels": torch.tensor([0, 1, 2, 0])}
    module.train()
    vectors, context = adapter.conditions(adapter.template(adapter.prepare(samples)), copies=200)
    assert context is not None
    assert context.mask is not None
    is_null = (vectors - text_of(module).pooled(context) - adapter.null_condition()).abs().amax(dim=1) < 1e-5
    has_text = context.mask.any(dim=1)
    shares = {(a, b): ((is_null == a) & (has_text == b)).float().mean().item() for a in (0, 1) for b in (0, 1)}
    assert shares[1, 0] > 0.5  # 0.5 + 0.5 * 0.25
    assert min(shares[0, 0], shares[0, 1], shares[1, 1]) > 0.05


def test_the_tokenizer_never_reads_a_caption(module: UniteModule) -> None:
    made = [
        module.tokenize("image", images_with(captions), torch.Generator().manual_seed(0))
        for captions in (CAPTIONS, None)
    ]
    assert torch.equal(*made)


@pytest.mark.parametrize("flow_chunk", [None, 1, 2])
def test_the_loss_reaches_the_text_encoder(flow_chunk: int | None) -> None:
    """All at once and in chunks, with the same gradients."""
    gradients = []
    for chunk in (None, flow_chunk):
        module = make_module(flow_chunk=chunk).train()
        torch.manual_seed(1)
        module.log_step = lambda: None  # type: ignore[method-assign]  # there is no trainer
        module.training_step({"image": images_with(CAPTIONS)}, 0).backward()
        weights = dict(text_of(module).named_parameters())
        found = [weight.grad for weight in weights.values() if weight.grad is not None]
        assert len(found) == len(weights)
        assert all(gradient.abs().max() > 0 for gradient in found)
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    torch.testing.assert_close(*gradients)


def test_prompts_are_cycled_and_guidance_strengthens_them(module: UniteModule) -> None:
    def made(**asked: Any) -> torch.Tensor:
        drawn = module.generate("image", 4, seed=0, num_steps=2, **asked)
        return torch.stack([torch.from_numpy(image).float() for image in drawn])

    free, one, other = made(), made(prompt="a ring"), made(prompt=["an ether"])
    both = made(prompt=["a ring", "an ether"])
    assert torch.equal(both[::2], one[::2])
    assert torch.equal(both[1::2], other[1::2])
    assert not torch.equal(one, free)
    assert torch.equal(made(prompt=""), free)
    assert not torch.equal(made(prompt="a ring", guidance_scale=4.0), one)
    assert torch.equal(made(guidance_scale=4.0), free)  # there is nothing to strengthen


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt is empty; give at least one text"),
        (["a ring", "word " * 13], "a prompt of 13 words, but this model reads 12 at most: shorten it"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(module: UniteModule, prompt: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        module.generate("image", 2, prompt=prompt)


def test_models_without_text_say_so_and_have_the_weights_they_had() -> None:
    plain = UniteModule(GenerativeEncoder("XS", 4, depth=2, width=32, num_heads=2), {"image": tiny_image_adapter()})
    with pytest.raises(UserError, match="prompt 'a ring' given, but this model was trained without captions"):
        plain.generate("image", 2, prompt="a ring")
    assert not any("text" in name for name in plain.state_dict())
    assert "text" not in plain.hparams["adapters"]["image"]["init_args"]
    told = template_of(plain_with_captions := make_module(), None)
    assert plain_with_captions.adapters["image"].conditions(told)[1] is None


def test_data_without_captions_is_refused_in_one_line(module: UniteModule) -> None:
    with pytest.raises(UserError, match=r"text is set in the adapter, but the data has no captions: set data\."):
        module.adapters["image"].fit_text(object())
    tiny_image_adapter().fit_text(object())  # a model without text asks for none


def test_settings_of_the_text_encoder_are_checked() -> None:
    for name in ("depth", "num_heads", "max_tokens"):
        with pytest.raises(UserError, match=f"text.{name} is 0; it must be at least 1"):
            ByteTextEncoder(**{name: 0})
    text = ByteTextEncoder()
    text.build(32)
    with pytest.raises(UserError, match="this ByteTextEncoder is part of an adapter already; make another one"):
        MoleculeAdapter(text=text).build(32, 4)


def test_a_checkpoint_brings_the_text_encoder_along(module: UniteModule, tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    trainer = Trainer(logger=False, enable_checkpointing=False, default_root_dir=tmp_path, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    again = UniteModule.load_from_checkpoint(tmp_path / "model.ckpt").eval()
    text = text_of(again)
    assert isinstance(text, ByteTextEncoder)
    assert text.max_tokens == 12
    assert torch.equal(denoised(again, CAPTIONS), denoised(module, CAPTIONS))


def test_a_template_keeps_captions_with_their_samples() -> None:
    template = Template(torch.arange(4), captions=CAPTIONS)
    assert template[torch.tensor([2, 0])].captions == (CAPTIONS[2], CAPTIONS[0])
    assert template[torch.tensor([False, True, False, True])].captions == (None, "")
    assert template[1:3].captions == CAPTIONS[1:3]
    assert template.to(torch.device("cpu")).captions == CAPTIONS


def test_tokens_of_some_samples_are_taken_with_their_mask() -> None:
    mask = torch.rand(3, 2) < 0.5
    tokens = Tokens(torch.rand(3, 2, 4), torch.zeros(2), mask)
    part = tokens[1:3]
    assert torch.equal(part.values, tokens.values[1:3])
    assert part.mask is not None
    assert torch.equal(part.mask, mask[1:3])


def test_wanted_prompts_join_what_else_is_wanted() -> None:
    adapter: ConditionedAdapter = make_module(num_classes=3).adapters["image"]
    template = adapter.wanted_template(3, Wanted(labels=[2], prompt=["a ring"]))
    assert template.captions == ("a ring",) * 3
    assert template.condition is not None
    assert template.condition.tolist() == [2, 2, 2]


def test_prompts_are_typed_as_sentences(module: UniteModule, run_cli: RunCli, tmp_path: Path) -> None:
    saved = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "global_step": 0,
        "pytorch-lightning_version": "2.6.0",
    }
    torch.save(saved, tmp_path / "model.ckpt")
    out = tmp_path / "samples"
    typed = ("--prompt", "a ring, and 3: more", "[another]", "--num_steps", "1", "--output", out)
    result = run_cli("sample", "--ckpt_path", tmp_path / "model.ckpt", "-n", "3", *typed)
    assert result.code == 0, result.err
    asked = json.loads((out / "conditions.json").read_text())
    assert asked == {"prompt": ["a ring, and 3: more", "[another]"], "guidance_scale": 1.0}
    plain = UniteModule(GenerativeEncoder("XS", 4, depth=2, width=32, num_heads=2), {"image": tiny_image_adapter()})
    torch.save(
        {**saved, "state_dict": plain.state_dict(), "hyper_parameters": dict(plain.hparams)}, tmp_path / "b.ckpt"
    )
    refused = run_cli("sample", "--ckpt_path", tmp_path / "b.ckpt", "--prompt", "a ring", "--output", tmp_path / "none")
    refused.assert_refused("prompt 'a ring' given, but this model was trained without captions")


@pytest.mark.parametrize("context_start", [None, 0, 1])
def test_recorded_activations_are_those_of_the_registers(context_start: int | None) -> None:
    module = make_module(context_start)
    adapter, template = module.adapters["image"], template_of(module, CAPTIONS)
    (condition, context), registers = adapter.conditions(template), adapter.registers(template)
    assert context is not None
    noise = torch.randn(4, 4, 4)
    with torch.no_grad(), recorded(module.denoiser, context.values.shape[1]) as found:
        module.denoiser.denoise(noise, torch.tensor([0.5]), condition, registers, context)
        expected = module.encoder.latent_in.weight @ noise.mT
    assert [tuple(state.shape) for state in found.registers] == [(4, 4, 32)] * 3
    assert [tuple(state.shape) for state in found.residuals] == [(4, 4, 32)] * 2
    torch.testing.assert_close(found.registers[0], expected.mT + module.encoder.latent_in.bias + registers.values)
