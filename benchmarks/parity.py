"""The image model against all numbers that the authors' released code gave for a tiny model with random weights.

`tests/` holds the part of these numbers that fits into a repository; this needs the full files in one folder:
unite_tiny_state.safetensors, unite_tiny_io.safetensors, io_meta.json, manifest.json and scheduler.json.

    python benchmarks/parity.py --folder PATH

Prints name, worst deviation and tolerance of each comparison; the exit code is 1 if any is out of tolerance.
Tolerances are the released code's own accuracy in float32: dopri5's step sizes follow rounding errors, and Muon
computes in bfloat16. Left out is sampling where the released code forgets to normalise its predictions.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch.cli import instantiate_module
from safetensors.torch import load_file
from torch import Tensor

from unite.commands.import_official import Imported, from_official_names, to_official_names
from unite.commands.official_names import official_name_table
from unite.engine.optimizer import MuonAdamW, OptimizerSettings, TwoStageDecay, parameter_groups, warmup_cosine
from unite.flow import (
    SamplingOptions,
    Solver,
    TimeDistribution,
    flow_loss,
    guided_prediction,
    path_sample,
    shift_time,
)
from unite.modalities.base import Template
from unite.modalities.image.adapter import ImageAdapter
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder, Tokens

EXACT = 2e-5
"""Largest absolute deviation of a single pass through a network."""
RELATIVE = 1e-5
"""Of losses and gradients."""
FIXED_STEPS = 1e-4
ADAPTIVE_RMS = 2e-2
ADAPTIVE_CALLS = 0.2
ADAMW_UPDATE = 1e-4
MUON_UPDATE = 1e-2

NUM_STEPS = 49
WEIGHT_OF_FLOW = 0.7
SCHEDULE_STEPS_PER_EPOCH = 10


class Comparison:
    """Compares and prints, one line each."""

    def __init__(self) -> None:
        self.num_failed = self.num_compared = 0
        print(f"{'what':68} {'deviation':>10} {'tolerance':>10}")

    def add(self, name: str, deviation: float, tolerance: float) -> None:
        """One line; a deviation that is not a number fails."""
        is_fine = deviation <= tolerance
        self.num_compared += 1
        self.num_failed += not is_fine
        print(f"{name:68} {deviation:10.1e} {tolerance:10.0e}  {'ok' if is_fine else 'FAILED'}", flush=True)

    def absolute(self, name: str, ours: Tensor, theirs: Tensor, tolerance: float = EXACT) -> None:
        """Largest absolute difference."""
        if ours.shape != theirs.shape:
            raise ValueError(f"{name}: shape {tuple(ours.shape)} here and {tuple(theirs.shape)} there")
        self.add(name, float((ours.double() - theirs.double()).abs().max()), tolerance)

    def relative(self, name: str, ours: Tensor, theirs: Tensor, tolerance: float = RELATIVE) -> None:
        """Norm of the difference over the norm of theirs."""
        if ours.shape != theirs.shape:
            raise ValueError(f"{name}: shape {tuple(ours.shape)} here and {tuple(theirs.shape)} there")
        self.add(name, float((ours.double() - theirs.double()).norm() / theirs.double().norm()), tolerance)


class Parity:
    """The tiny model in both forms and the comparisons.

    Args:
        folder: Holds the files named above.
    """

    def __init__(self, folder: Path) -> None:
        self.state = load_file(folder / "unite_tiny_state.safetensors")
        self.io = load_file(folder / "unite_tiny_io.safetensors")
        self.details = json.loads((folder / "io_meta.json").read_text())
        self.schedules = json.loads((folder / "scheduler.json").read_text())
        entries = json.loads((folder / "manifest.json").read_text())["entries"]
        self.manifest = {entry["name"]: entry for entry in entries}
        settings = self.details["config"]
        self.imported: Imported = from_official_names(
            self.state,
            context_start=settings["in_content_start"],
            decoder_heads=3,
            max_tokenize_time=settings["modulation_recon_timestep_max"],
        )
        self.images = self.io["image_u8"].float() / 255
        self.table = Comparison()
        self.renew()

    def renew(self) -> None:
        """A fresh model with the authors' weights."""
        hparams = {name: value for name, value in self.imported.module.hparams.items() if name != "_instantiator"}
        hparams |= {"flow_steps": 3, "flow_weight": WEIGHT_OF_FLOW}
        self.module: UniteModule = instantiate_module(UniteModule, hparams)
        self.module.load_state_dict(self.imported.state_dict)
        self.module.eval()
        adapter = self.module.adapters["image"]
        assert isinstance(adapter, ImageAdapter)
        adapter.perceptual_weight = 0
        self.adapter = adapter

    @property
    def encoder(self) -> GenerativeEncoder:
        """The Generative Encoder."""
        return self.module.encoder

    @property
    def prepared(self) -> Any:
        """The images and their labels in training."""
        return self.adapter.prepare({"images": self.images, "labels": self.io["tr_labels"]})

    @property
    def registers(self) -> Tokens:
        """The learned registers."""
        return self.adapter.registers(self.adapter.template(self.prepared))

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents."""
        return self.adapter.decode(latents, Template(torch.full((len(latents),), self.adapter.num_patches)))

    def condition(self, classes: Tensor) -> Tensor:
        """Embedded classes; the last is the null class."""
        embedded: Tensor = self.adapter.condition_embedding(classes)
        return embedded

    def denoise(self, latents: Tensor, timesteps: Tensor, classes: Tensor) -> Tensor:
        """Predicted data."""
        return self.encoder.denoise(latents, timesteps, self.condition(classes), self.registers)

    @contextmanager
    def block_values(self) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
        """Notes what goes into and comes out of each block."""
        values: dict[int, tuple[Tensor, Tensor]] = {}

        def note(index: int) -> Callable[..., None]:
            return lambda block, args, out: values.__setitem__(index, (args[0], out))

        handles = [block.register_forward_hook(note(index)) for index, block in enumerate(self.encoder.blocks)]
        yield values
        for handle in handles:
            handle.remove()

    # ------------------------------------------------------------------ one pass

    @torch.no_grad()
    def compare_tokenization(self) -> None:
        """Patches, latents, and what the blocks do on the way."""
        io, table = self.io, self.table
        tokens, null = self.adapter.tokens(self.prepared), self.adapter.null_condition()
        table.absolute("patches", tokens.values[0], io["patch_embed_out_s0"])
        raw = self.encoder.hidden_to_latents(io["tok_noise"], io["tok_t"], null, self.registers, tokens)
        table.absolute("tokenization before the last norm", raw, io["tok_raw"])
        with self.block_values() as blocks:
            latents = self.encoder.tokenize(tokens, self.registers, null, noise=io["tok_noise"], timesteps=io["tok_t"])
        table.absolute("tokenization", latents, io["tok_normed"])
        table.absolute("  time and null class", self.encoder.time_embedding(io["tok_t"]) + null, io["tok_cond"])
        table.absolute("  first block", blocks[0][1][0], io["tok_block0_out_s0"])
        table.absolute("  in-context tokens", blocks[1][0][0, :4], io["tok_block1_in_ctx_s0"])
        # Our last block gives the registers only.
        table.absolute("  last block", blocks[2][1][1], io["tok_block2_out_s1"][4:260])

    @torch.no_grad()
    def compare_decoding(self) -> None:
        """Images of given latents, and reconstructions."""
        io, table = self.io, self.table
        image = self.decode(io["dec_latents"])
        table.absolute("decoder, centre", image[..., 64:192, 64:192], io["dec_image_crop_64_192"])
        means = torch.nn.functional.avg_pool2d(image, 16)
        table.absolute("decoder, means of blocks", means, io["dec_image_block_means"])
        image = self.decode(io["tok_normed"])
        table.absolute("reconstruction, image 0", image[0], io["recon_image_s0_unclamped"])
        table.absolute("reconstruction, image 1", image[1, :, 96:160, 96:160], io["recon_image_s1_crop_96_160"])
        means = image.clamp(0, 1).mean((2, 3))
        table.absolute("reconstruction, means", means, io["recon_clamped_mean_per_sample_channel"])
        loss = self.adapter.reconstruction_loss(image, self.prepared)["pixels"]
        table.relative("reconstruction, L1", loss, io["recon_l1"])

    @torch.no_grad()
    def compare_denoising(self) -> None:
        """Predictions for all kinds of times and classes."""
        io, table = self.io, self.table
        latents, times, classes = io["den_x"], io["den_t"], io["den_y"]
        raw = self.encoder.hidden_to_latents(latents, times, self.condition(classes), self.registers, None)
        table.absolute("denoising before the last norm", raw, io["den_raw"])
        with self.block_values() as blocks:
            table.absolute("denoising", self.denoise(latents, times, classes), io["den_normed"])
        table.absolute("  time", self.encoder.time_embedding(times), io["den_temb"])
        table.absolute("  class", self.condition(classes), io["den_yemb"])
        table.absolute("  first block", blocks[0][1][1], io["den_block0_out_s1"])
        table.absolute("  last block", blocks[2][1][1], io["den_block2_out_s1"][4:])

    @torch.no_grad()
    def compare_flow(self) -> None:
        """Path, prediction and loss; time grids."""
        io, table = self.io, self.table
        path = path_sample(io["flow_x1"], io["flow_x0"], io["flow_t"])
        table.absolute("flow, path", path.noisy_latents, io["flow_xt"])
        prediction = self.denoise(path.noisy_latents, io["flow_t"], io["flow_y"])
        table.absolute("flow, prediction", prediction, io["flow_xpred_normed"])
        table.relative("flow, loss", flow_loss(prediction, path, None), io["flow_loss_mean"])
        for i, theirs in enumerate(io["flow_loss_per_sample"]):
            alone = path_sample(io["flow_x1"][i : i + 1], io["flow_x0"][i : i + 1], io["flow_t"][i : i + 1])
            table.relative(f"flow, loss of sample {i}", flow_loss(prediction[i : i + 1], alone, None), theirs)
        for name, alpha in (("0p5", 0.5), ("2", 2.0)):
            theirs = io[f"shift_grid_alpha{name}"]
            table.absolute(f"shift {alpha}", shift_time(io["shift_grid_linspace50"], alpha), theirs, 1e-6)
            grid = torch.tensor(TimeDistribution(shift=alpha).grid(NUM_STEPS))
            table.absolute(f"time grid with shift {alpha}", grid, theirs, 1e-6)

    @torch.no_grad()
    def compare_guidance(self) -> None:
        """Guidance inside and outside its interval, a sample at a time."""
        io, scale = self.io, self.details["meta"]["cfg_scale"]
        for case in ("a", "b"):
            low, high = self.details["meta"][f"cfg_{case}_interval"]
            for i, time in enumerate(io[f"cfg_{case}_t"].tolist()):
                classes = io["cfg_y"][i : i + 1]

                def conditional(x: Tensor, t: Tensor, classes: Tensor = classes) -> Tensor:
                    return self.denoise(x, t, classes)

                def unconditional(x: Tensor, t: Tensor) -> Tensor:
                    return self.encoder.denoise(x, t, self.adapter.null_condition(), self.registers)

                guided = guided_prediction(conditional, unconditional, scale, (low, high))
                ours, theirs = guided(io["cfg_x"][i : i + 1], time), io[f"cfg_{case}_norm_first"][i : i + 1]
                self.table.absolute(f"guidance at {time:.3g} with interval {low}, {high}", ours, theirs)

    # ------------------------------------------------------------------ training

    def compare_training(self) -> None:
        """A training step with given draws: losses, all gradients, and the step of the optimizer."""
        io, table, module, adapter = self.io, self.table, self.module, self.adapter
        tokenize, hidden = module.encoder.tokenize, iter(io["tr_label_drop"].bool())
        logged: dict[str, Tensor] = {}
        seen: list[Tensor] = []

        def given_tokenize(*args: Any) -> Tensor:
            seen.append(tokenize(*args, noise=io["tr_z_noise"], timesteps=io["tr_enc_t"]))
            return seen[-1]

        def given_noise(clean: Tensor, probability: float, min_time: float) -> Tensor:
            times = torch.where(io["tr_noising_mask"].bool(), io["tr_noising_t"], 1.0)
            return path_sample(clean, io["tr_noising_x0"], times).noisy_latents

        def given_condition(template: Template) -> Tensor:
            assert template.condition is not None
            return self.condition(template.condition.masked_fill(next(hidden), adapter.num_classes))

        module.train()
        with ExitStack() as patches:
            for owner, name, given in (
                (module.encoder, "tokenize", given_tokenize),
                (adapter, "condition", given_condition),
                (TimeDistribution, "sample", lambda *args: io["tr_flow_t"].flatten()),
                (torch, "randn_like", lambda like: io["tr_flow_x0"].flatten(0, 1)),
                (module, "log_terms", lambda stage, modality, terms, batch_size: logged.update(terms)),
                (module, "log", lambda *args, **kwargs: None),
            ):
                patches.enter_context(mock.patch.object(owner, name, given))
            patches.enter_context(mock.patch("unite.module.reconstruction_noise", given_noise))
            loss = module.training_step({"image": {"images": self.images, "labels": io["tr_labels"]}}, 0)
        table.absolute("training, latents", seen[0].detach(), io["tr_z_normed"])
        table.relative("training, L1", logged["pixels"].detach(), io["tr_rec_loss"])
        table.relative("training, flow loss", logged["flow"].detach(), io["tr_flow_loss"])
        table.relative("training, total loss", loss.detach(), io["tr_total_loss"])
        loss.backward()
        self._compare_gradients()
        self._compare_step()

    def _compare_gradients(self) -> None:
        twin = copy.deepcopy(self.module)
        for ours, copied in zip(self.module.parameters(), twin.parameters(), strict=True):
            assert ours.grad is not None
            copied.data.copy_(ours.grad)
        gradients = {name: value.detach() for name, value in to_official_names(twin).items()}
        norms = {
            name: float(stats["l2"]) for name, stats in self.details["grad_stats"].items() if stats and stats["l2"]
        }
        deviations = {name: abs(float(gradients[name].double().norm()) / norm - 1) for name, norm in norms.items()}
        worst = max(deviations, key=lambda name: deviations[name])
        self.table.add(f"norms of {len(norms)} gradients, worst: {worst}", deviations[worst], RELATIVE)
        for name, theirs in self.io.items():
            if name.startswith("grad."):
                self.table.relative(f"gradient of {name.removeprefix('grad.')}", gradients[name[5:]], theirs)

    def _compare_step(self) -> None:
        table, module, adapter = self.table, self.module, self.adapter
        parts: list[torch.nn.Module] = [module.encoder, adapter]
        groups = parameter_groups(module, parts, muon=True)
        in_muon = {id(p) for group in groups if group["algorithm"] == "muon" for p in group["params"]}
        ours = dict(module.named_parameters())
        named = {theirs: ours[name] for theirs, name in official_name_table(module).items() if name in ours} | {
            "latent_tokens": adapter.register_embedding,
            "encoder.in_context_posemb": module.encoder.context_embedding,
            "encoder.y_embedder.embedding_table.weight": adapter.condition_embedding.weight,
            "decoder.trainable_cls_token": adapter.decoder.class_token,
        }
        wrong = [n for n, p in named.items() if (self.manifest[n]["optimizer"] == "muon") != (id(p) in in_muon)]
        missing = {id(p) for p in ours.values()} - {id(p) for p in named.values()}
        table.add(f"parameters of {len(named)} in the wrong half of the optimizer", len(wrong) + len(missing), 0)

        optimizer = MuonAdamW(groups, OptimizerSettings(lr=1e-3))
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 3.0)
        total = self.details["meta"]["total_grad_norm_before_clip"]
        table.relative("norm of all gradients", norm, torch.tensor(total))
        optimizer.step()
        after = to_official_names(module)
        for name, theirs in self.io.items():
            if name.startswith("after_step."):
                name = name.removeprefix("after_step.")
                is_muon = self.manifest[name]["optimizer"] == "muon"
                before = self.state[name]
                table.relative(
                    f"{'Muon' if is_muon else 'AdamW'} on {name}",
                    after[name] - before,
                    theirs - before,
                    MUON_UPDATE if is_muon else ADAMW_UPDATE,
                )

    def compare_schedules(self) -> None:
        """The released schedules, among them the shipped one."""
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        for case in self.schedules:
            changed = case["overrides"] or {}
            start = changed.get("warmup_2_epochs", 3000)
            end = max(changed.get("decay_end_2_epochs", 380), start)
            second = (start * SCHEDULE_STEPS_PER_EPOCH, end * SCHEDULE_STEPS_PER_EPOCH)
            decay = TwoStageDecay(300, 500, 0.5, *second, shape=changed.get("type", "cosine"))
            settings = OptimizerSettings(lr=case["base"], warmup_steps=200, final_lr_ratio=0.1, two_stage=decay)
            (factor,) = warmup_cosine(optimizer, settings, total_steps=10**9).lr_lambdas
            deviation = max(
                abs(case["base"] * factor(int(step)) - rate) / max(rate, 1e-12) for step, rate in case["lr"].items()
            )
            self.table.add(f"schedule, batch {case['total_batch']}, {changed or 'as shipped'}"[:68], deviation, 1e-9)

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def compare_sampling(self) -> None:
        """Whole trajectories with every solver."""
        self.renew()
        io, table = self.io, self.table
        solvers: dict[str, Solver] = {"euler": "euler", "midpoint": "midpoint", "heun2": "heun", "rk4": "rk4"}
        template = Template(torch.full((2,), self.adapter.num_patches), io["ode_y"])
        for key, case in self.details["meta"].items():
            if not key.startswith("ode_") or not is_normalised(case):
                continue
            calls: list[int] = []
            handle = self.encoder.blocks[0].register_forward_pre_hook(lambda *args, calls=calls: calls.append(1))
            solver: Solver = solvers.get(case["method"], "dopri5")
            latents = self.module.sample_latents(
                self.adapter,
                template,
                lambda step, shape: io["ode_noise"],
                SamplingOptions(NUM_STEPS, solver, case["cfg_scale"], tuple(case["interval"])),
            )
            handle.remove()
            name = f"sampling with {key.removeprefix('ode_')}"
            if solver == "dopri5":
                table.add(f"{name}, RMS", float((latents - io[key]).square().mean().sqrt()), ADAPTIVE_RMS)
                if case["cfg_scale"] == 1:  # else the null class is asked only where it counts
                    table.add(f"{name}, network calls", abs(len(calls) / case["nfe"] - 1), ADAPTIVE_CALLS)
            else:
                table.absolute(name, latents, io[key], FIXED_STEPS)
            if f"{key}_image_s0_crop_96_160" in io:
                crop = self.decode(latents)[0, :, 96:160, 96:160]
                table.absolute(f"{name}, image", crop, io[f"{key}_image_s0_crop_96_160"], FIXED_STEPS)


def is_normalised(case: dict[str, Any]) -> bool:
    """Whether the released code normalised its predictions in this case."""
    return bool(case["norm_order"] != ("cfg_first" if case["cfg_scale"] > 1 else "norm_first"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the authors' numbers")
    arguments = parser.parse_args()
    parity = Parity(arguments.folder)
    parity.compare_tokenization()
    parity.compare_decoding()
    parity.compare_denoising()
    parity.compare_flow()
    parity.compare_guidance()
    parity.compare_training()
    parity.compare_schedules()
    parity.compare_sampling()
    table = parity.table
    print(f"{table.num_compared} comparisons, {table.num_failed} failed")
    return int(table.num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
