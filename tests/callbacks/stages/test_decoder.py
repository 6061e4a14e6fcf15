"""The decoder stage: what moves and what does not, its weight, its continuation, two processes, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tests.support.commands import RunCli
from tests.support.modules import make_trainer
from tests.support.processes import run_two_ranks
from unite import GenerativeEncoder, UniteModule
from unite.callbacks import DecoderStage, WeightAveraging
from unite.engine.optimizer import OptimizerSettings
from unite.errors import UserError
from unite.modalities.image import DigitsDataModule, ImageAdapter
from unite.modalities.image.discriminator import Adversary, Discriminator

SETTINGS = OptimizerSettings(lr=1e-2, warmup_steps=0)
DECODER = ("adapters.image.decoder.", "adapters.image.pixel_head.")


def make_module() -> UniteModule:
    """A model whose weights are all random, as those of a trained one."""
    torch.manual_seed(0)
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=2, width=32, num_heads=2)
    sizes: dict[str, Any] = {"decoder_size": "XS", "decoder_depth": 1, "decoder_width": 32, "decoder_heads": 2}
    adapter = ImageAdapter(8, 4, 1, num_classes=10, embedding_width=None, perceptual_weight=0.0, **sizes)
    module = UniteModule(encoder, {"image": adapter}, SETTINGS, flow_steps=1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


class SaveAt(Callback):
    """Writes a checkpoint after some steps, and keeps the loss terms of each."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path
        self.terms: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, UniteModule)
        self.terms.append({name: float(term) for name, term in pl_module.step_terms["image"].terms.items()})
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(folder: Path, ckpt_path: Path | None = None, **settings: Any) -> tuple[UniteModule, DecoderStage, SaveAt]:
    module, stage = make_module(), DecoderStage(weight=0.5, discriminator_lr=1e-3, start_step=1)
    saver = SaveAt(3, folder / "three.ckpt")
    options = {"max_steps": 6, "limit_val_batches": 0, "gradient_clip_val": 1.0, **settings}
    trainer = make_trainer(folder, callbacks=[WeightAveraging(), stage, saver], **options)
    trainer.fit(module, datamodule=DigitsDataModule(str(folder), batch_size=8, num_train=32), ckpt_path=ckpt_path)
    return module, stage, saver


def samples() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"images": torch.rand(5, 1, 8, 8, generator=generator), "labels": torch.arange(5)}


def latents(module: UniteModule) -> Tensor:
    return module.tokenize("image", samples(), torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, UniteModule, DecoderStage, SaveAt]:
    folder = tmp_path_factory.mktemp("run")
    return folder, *fit(folder)


def test_the_decoder_moves_and_latents_do_not(run: tuple[Path, UniteModule, DecoderStage, SaveAt]) -> None:
    _, module, _, saver = run
    before = make_module()
    here, there = module.state_dict(), before.state_dict()
    assert here.keys() == there.keys()  # the discriminator is no part of the model
    moved = {name for name in here if not torch.equal(here[name], there[name])}
    assert moved == {name for name, _ in module.named_parameters() if name.startswith(DECODER)}
    assert torch.equal(latents(module), latents(before))
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert module.trains_denoiser
    assert [set(terms) for terms in saver.terms] == [{"pixels", "adversarial"}] * 6
    assert saver.terms[0]["adversarial"] == 0  # the discriminator's own step
    assert all(terms["adversarial"] != 0 for terms in saver.terms[1:])


def test_the_discriminator_begins_as_the_encoder_and_learns(
    run: tuple[Path, UniteModule, DecoderStage, SaveAt],
) -> None:
    _, module, stage, _ = run
    assert stage.adversary is not None
    begun = dict(Discriminator(module.encoder, _adapter(module)).named_parameters())
    assert torch.equal(
        begun["encoder.blocks.0.attention.qkv.weight"], module.encoder.blocks[0].get_parameter("attention.qkv.weight")
    )
    assert torch.equal(
        begun["adapter.patch_embedding.weight"], module.get_parameter("adapters.image.patch_embedding.weight")
    )
    learned = dict(stage.adversary.discriminator.named_parameters())
    assert not any(".decoder." in name or ".pixel_head." in name for name in learned)
    for name in ("encoder.blocks.0.attention.qkv.weight", "adapter.patch_embedding.weight", "encoder.final_out.weight"):
        assert not torch.equal(learned[name], begun[name]), name


def test_a_continued_run_is_the_whole_one_to_the_bit(
    run: tuple[Path, UniteModule, DecoderStage, SaveAt], tmp_path: Path
) -> None:
    folder, whole, stage, saver = run
    continued, other, rest = fit(tmp_path, folder / "three.ckpt")
    assert rest.terms == saver.terms[3:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, continued.state_dict()[name]), name
    assert stage.adversary is not None
    assert other.adversary is not None
    theirs = other.adversary.discriminator.state_dict()
    for name, value in stage.adversary.discriminator.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def _adapter(module: UniteModule) -> ImageAdapter:
    adapter = module.adapters["image"]
    assert isinstance(adapter, ImageAdapter)
    return adapter


def test_the_adversarial_gradient_has_the_size_asked_for() -> None:
    module = make_module()
    adapter = _adapter(module)
    discriminator = Discriminator(module.encoder, adapter)
    with torch.no_grad():
        discriminator.encoder.final_out.weight.normal_()
    adversary = Adversary(discriminator, adapter.pixel_head.weight, weight=0.3, lr=1e-9, start_step=0)
    prepared = adapter.prepare(samples())
    prediction = adapter.decode(latents(module), adapter.template(prepared))
    reconstruction = (prediction - prepared.images).abs().mean()
    term = adversary.term(prediction, prepared.images, reconstruction)
    sizes = [
        float(torch.autograd.grad(part, adapter.pixel_head.weight, retain_graph=True)[0].norm())
        for part in (term, reconstruction)
    ]
    assert sizes[0] == pytest.approx(0.3 * sizes[1], rel=1e-2)
    term.backward()
    assert all(parameter.requires_grad for parameter in discriminator.parameters())


def test_the_discriminator_learns_the_hinge_loss() -> None:
    module = make_module()
    adapter = _adapter(module)
    adversary = Adversary(Discriminator(module.encoder, adapter), adapter.pixel_head.weight, 1.0, 3e-3, start_step=99)
    real = torch.rand(16, 1, 8, 8)
    made = (real + 0.5).requires_grad_()
    losses = []
    for _ in range(30):
        adversary.term(made, real, (made - real).abs().mean())
        adversary.take_step()
        assert adversary.loss is not None
        losses.append(float(adversary.loss))
    assert losses[0] == 1.0  # no opinion: half of relu(1 - 0) + relu(1 + 0)
    assert losses[-1] < 0.9
    discriminator = adversary.discriminator
    with torch.no_grad():
        assert float(discriminator(real).mean()) > float(discriminator(made).mean()) + 0.1


def _run_rank(rank: int, folder: Path) -> None:
    module = make_module()
    adapter = _adapter(module)
    adversary = Adversary(Discriminator(module.encoder, adapter), adapter.pixel_head.weight, 1.0, 1e-2, start_step=99)
    torch.manual_seed(rank)
    for _ in range(3):
        real = torch.rand(4, 1, 8, 8)
        adversary.term(real * 0.5, real, real.sum())
        adversary.take_step()
    torch.save(adversary.discriminator.state_dict(), folder / f"{rank}.pt")


def test_two_processes_have_one_discriminator(tmp_path: Path) -> None:
    run_two_ranks(_run_rank, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["encoder.final_out.weight"], torch.zeros_like(first["encoder.final_out.weight"]))


def test_what_it_cannot_train_is_refused(tmp_path: Path) -> None:
    module = make_module()
    data = DigitsDataModule(str(tmp_path), num_train=16)
    torch.nn.init.zeros_(module.encoder.final_out.weight)
    trainer = make_trainer(tmp_path, callbacks=[DecoderStage()], max_steps=1, limit_val_batches=0)
    with pytest.raises(UserError, match="needs a trained model, and this one is new: add --init_from RUN"):
        trainer.fit(module, datamodule=data)
    for name, value in (("weight", 0.0), ("discriminator_lr", -1.0), ("start_step", -1)):
        with pytest.raises(UserError, match=rf"DecoderStage\.{name} is {value}"):
            DecoderStage(**{name: value})  # type: ignore[arg-type]


def test_the_command_gives_a_model_with_the_same_latents(run_cli: RunCli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = ("--data.init_args.root", tmp_path, "--data.init_args.num_train", "64", "--trainer.limit_val_batches", "1")
    stage = ("fit", "digits", "--config", "stages/decoder_stage", "--max_steps", "2", *data)
    result = run_cli(*stage, "--init_from", "joint", "--seed", "5", "--trainer.default_root_dir", run)
    assert result.code == 0, result.err
    trained, joint = UniteModule.load_from_checkpoint(run), UniteModule.from_pretrained("joint")
    assert torch.equal(latents(trained), latents(joint))
    assert not torch.equal(_adapter(trained).pixel_head.weight, _adapter(joint).pixel_head.weight)
    saved = torch.load(run / "last.ckpt", weights_only=True)["callbacks"]["DecoderStage"]
    assert saved["step"] == 2  # what is tried before the first step, as to its memory, is none
    refused = run_cli(*stage, "--trainer.default_root_dir", tmp_path / "new")
    assert refused.code == 2
    assert refused.err.splitlines()[-1].endswith("this one is new: add --init_from RUN")
