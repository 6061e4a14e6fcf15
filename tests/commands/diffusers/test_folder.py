"""``unite export --format diffusers``: a folder that diffusers alone loads, and that gives unite's pixels."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.commands import PATIENCE, RunCli
from tests.support.modules import make_module
from unite import UniteModule
from unite.errors import is_installed
from unite.flow import SamplingOptions
from unite.modalities.image.adapter import ImageAdapter
from unite.nn.generative_encoder import GenerativeEncoder

NEEDS_DIFFUSERS = pytest.mark.skipif(
    not is_installed("diffusers"), reason='loading needs diffusers: pip install "unite-lightning[diffusers]"'
)

#: Samples in a process that cannot import unite, as on a machine without it.
ALONE = """
import sys
class NoUnite:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "unite":
            raise ImportError("unite is not installed here")
sys.meta_path.insert(0, NoUnite())
import numpy as np
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
ours = pipeline(num_images=5, seed=3, output_type="np").images
guided = pipeline(class_labels=[2, 0], seed=4, num_inference_steps=2, solver="heun", guidance_scale=2.0)
np.savez(sys.argv[2], ours=np.stack(ours), guided=np.stack([np.array(image) for image in guided.images]))
try:
    DiffusionPipeline.from_pretrained(sys.argv[1])
except ValueError as error:
    print("refused:", error)
"""


def image_module(num_registers: int | None = None, weight_sharing: bool = True, positions: Any = "1d") -> UniteModule:
    encoder = GenerativeEncoder(
        "XS", latent_channels=4, depth=2, width=16, num_heads=2, context_start=1, context_length=2
    )
    adapter = ImageAdapter(
        8,
        4,
        channels=1,
        num_classes=3,
        num_registers=num_registers,
        positions=positions,
        decoder_depth=1,
        decoder_width=16,
        decoder_heads=2,
        perceptual_weight=0.0,
    )
    module = UniteModule(encoder, {"image": adapter}, weight_sharing=weight_sharing).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    adapter.sampling = SamplingOptions(num_steps=3, solver="ancestral")
    return module


def save(module: UniteModule, folder: Path) -> Path:
    """A checkpoint of a module that was made in plain Python."""
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    checkpoint |= {"global_step": 7, "pytorch-lightning_version": "2.6.0"}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, folder / "last.ckpt")
    return folder / "last.ckpt"


@NEEDS_DIFFUSERS
def test_diffusers_alone_samples_the_same_pixels(run_cli: RunCli, tmp_path: Path) -> None:
    module = image_module()
    run_cli("export", save(module, tmp_path), tmp_path / "shared", "--format", "diffusers", "--license", "mit")

    result = subprocess.run(
        [sys.executable, "-P", "-c", ALONE, tmp_path / "shared", tmp_path / "made.npz"],
        env={"HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )

    assert result.returncode == 0, result.stderr
    assert "refused:" in result.stdout  # without trust_remote_code, and here is why the folder says it is needed
    made = np.load(tmp_path / "made.npz")
    assert np.array_equal(made["ours"], np.stack(module.generate("image", 5, seed=3)))
    sampling: dict[str, Any] = {"num_steps": 2, "solver": "heun", "guidance_scale": 2.0}
    guided = module.generate("image", 2, labels=[2, 0], seed=4, **sampling)
    assert np.array_equal(made["guided"], np.stack(guided)[..., 0])


@NEEDS_DIFFUSERS
@pytest.mark.parametrize(
    "settings",
    [{"num_registers": 3}, {"weight_sharing": False}, {"positions": "2d"}],
    ids=["queries", "student", "2d"],
)
def test_every_kind_of_image_model_gives_its_pixels(tmp_path: Path, settings: dict[str, Any]) -> None:
    from unite.commands.diffusers.folder import write_folder
    from unite.commands.diffusers.model import UniteImageModel  # the source of the file in the folder

    module = image_module(**settings)
    write_folder(module, tmp_path, "a model", "mit")
    model = UniteImageModel.from_pretrained(tmp_path / "model")

    assert np.array_equal(np.stack(model.sample([0, 1, 2], seed=1)), np.stack(module.generate("image", 3, seed=1)))


def test_sample_as_typed_gives_the_pixels_of_the_pipeline(run_cli: RunCli, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from unite.commands.diffusers.folder import write_folder
    from unite.commands.diffusers.model import UniteImageModel
    from unite.commands.diffusers.pipeline import UnitePipeline

    module = image_module()
    checkpoint = save(module, tmp_path)
    (tmp_path / "shared").mkdir()
    write_folder(module, tmp_path / "shared", "a model", "mit")
    pipeline = UnitePipeline(UniteImageModel.from_pretrained(tmp_path / "shared" / "model"))

    assert run_cli("sample", checkpoint, "-n", "4", "--seed", "5", "--output", tmp_path / "out").code == 0
    files = sorted((tmp_path / "out" / "images").glob("*.png"))
    ours = [np.array(Image.open(file)) for file in files]
    theirs = [np.array(image) for image in pipeline(num_images=4, seed=5).images]
    assert np.array_equal(np.stack(ours), np.stack(theirs))


def test_the_folder_has_the_code_and_says_how_to_load_it(run_cli: RunCli, tmp_path: Path) -> None:
    result = run_cli("export", save(image_module(), tmp_path), tmp_path / "shared", "--format", "diffusers")

    assert result.code == 0
    assert "trust_remote_code=True" in result.out
    index = json.loads((tmp_path / "shared" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "UnitePipeline"]
    for file in (tmp_path / "shared").rglob("*.py"):
        assert not re.search(r"(?m)^\s*(from|import) unite\b", file.read_text())
        compile(file.read_text(), file, "exec")
    again = run_cli("export", tmp_path / "last.ckpt", tmp_path / "shared", "--format", "diffusers")
    again.assert_refused("model_index.json", "--overwrite")


def test_what_has_no_images_is_refused(run_cli: RunCli, tmp_path: Path) -> None:
    checkpoint = save(make_module(), tmp_path)
    result = run_cli("export", checkpoint, tmp_path / "shared", "--format", "diffusers")
    result.assert_refused("--format diffusers takes models of images", "curve")
    assert not (tmp_path / "shared").exists()
    refused = run_cli("export", checkpoint, tmp_path / "shared", "--format", "diffusers", "--half")
    refused.assert_refused("--half")
