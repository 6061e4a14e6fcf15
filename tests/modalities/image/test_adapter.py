"""The image adapter: patches, positions, classes, pictures, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from unite.errors import UserError
from unite.modalities.base import Template
from unite.modalities.image.adapter import DECODER_SIZES, ImageAdapter, sinusoidal_embedding_2d
from unite.modalities.image.grid import draw_grid, save_images
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder
from unite.nn.patches import patchify, unpatchify


def make_adapter(image_size: int = 8, patch_size: int = 2, **settings: Any) -> ImageAdapter:
    adapter = ImageAdapter(image_size, patch_size, **{"decoder_size": "XS", "perceptual_weight": 0.0, **settings})
    adapter.build(32, 4)
    return adapter.eval()


def samples(num: int = 3, image_size: int = 8, channels: int = 3) -> dict[str, Tensor]:
    return {"images": torch.rand(num, channels, image_size, image_size), "labels": torch.arange(num)}


# ---------------------------------------------------------------------- patches


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]))
def test_unpatchify_undoes_patchify(num: int, grid_size: int, patch_size: int, channels: int) -> None:
    side = grid_size * patch_size
    images = torch.arange(num * channels * side**2).view(num, channels, side, side)
    patches = patchify(images, patch_size)
    assert patches.shape == (num, grid_size**2, channels * patch_size**2)
    assert torch.equal(unpatchify(patches, patch_size, grid_size), images)


def test_patches_run_row_by_row_and_their_channels_fastest() -> None:
    image = torch.arange(2 * 4 * 4).view(1, 2, 4, 4)
    patches = patchify(image, 2)
    assert patches[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]


@given(st.integers(1, 4), st.integers(1, 4))
def test_patch_embedding_is_a_linear_map_of_the_patch(grid_size: int, patch_size: int) -> None:
    adapter = make_adapter(grid_size * patch_size, patch_size)
    images = torch.rand(2, 3, grid_size * patch_size, grid_size * patch_size)
    weight = adapter.patch_embedding.weight.permute(0, 2, 3, 1).flatten(1)  # (D, P * P * channels)
    assert adapter.patch_embedding.bias is not None
    expected = patchify(images, patch_size) @ weight.T + adapter.patch_embedding.bias
    tokens = adapter.tokens(adapter.prepare({"images": images}))
    torch.testing.assert_close(tokens.values, expected, atol=1e-5, rtol=1e-4)


def test_a_change_of_one_patch_changes_one_token() -> None:
    adapter, batch = make_adapter(), samples(1)
    before = adapter.tokens(adapter.prepare(batch)).values
    batch["images"][0, :, 2:4, 6:8] += 1  # second row, last column
    changed = (adapter.tokens(adapter.prepare(batch)).values != before).any(dim=-1)[0]
    assert changed.nonzero().tolist() == [[7]]


def test_2d_embedding_tells_rows_from_columns() -> None:
    """Written out for one place: half the channels the column's sines and cosines, then the row's."""
    embedding = sinusoidal_embedding_2d(3, 8).view(3, 3, 8)
    angles = torch.tensor([1.0, 10000**-0.5])

    def expected(place: int) -> Tensor:
        return torch.cat(((place * angles).sin(), (place * angles).cos()))

    torch.testing.assert_close(embedding[2, 1], torch.cat((expected(1), expected(2))))


# ---------------------------------------------------------------------- registers


def test_1d_places_are_registers_then_patches() -> None:
    adapter = make_adapter(num_registers=5)
    prepared = adapter.prepare(samples())
    assert adapter.registers(adapter.template(prepared)).positions.tolist() == list(range(5))
    assert adapter.tokens(prepared).positions.tolist() == list(range(5, 21))


def test_2d_places_of_as_many_registers_are_those_of_the_patches() -> None:
    adapter = make_adapter(positions="2d")
    prepared = adapter.prepare(samples())
    patches = adapter.tokens(prepared).positions
    assert patches[6].tolist() == [1, 2]
    assert torch.equal(adapter.registers(adapter.template(prepared)).positions, patches)
    fewer = make_adapter(positions="2d", num_registers=4)
    assert fewer.registers(fewer.template(prepared)).positions.tolist() == [[0, 2], [1, 2], [2, 2], [3, 2]]


@pytest.mark.parametrize("positions", ["1d", "2d"])
@pytest.mark.parametrize("num_registers", [None, 5, 20])
def test_any_number_of_registers_reconstructs_and_generates(positions: Any, num_registers: int | None) -> None:
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=2, width=32, num_heads=2)
    adapter = ImageAdapter(
        8, 2, num_registers=num_registers, positions=positions, decoder_size="XS", perceptual_weight=0
    )
    module = UniteModule(encoder, {"image": adapter})
    batch = samples()
    assert module.tokenize("image", batch).shape == (3, num_registers or 16, 4)
    assert [image.shape for image in module.reconstruct("image", batch)] == [(8, 8, 3)] * 3
    assert len(module.generate("image", 2, num_steps=1)) == 2


def test_every_latent_reaches_the_picture() -> None:
    for num_registers in (None, 5):
        adapter = make_adapter(num_registers=num_registers)
        latents = torch.randn(1, adapter.num_registers, 4, requires_grad=True)
        adapter.decode(latents, Template(torch.tensor([16]))).square().sum().backward()
        assert latents.grad is not None
        assert (latents.grad.abs().sum(dim=-1) > 0).all()


# ---------------------------------------------------------------------- classes


def test_labels_are_drawn_in_turn_and_dropped_in_training() -> None:
    adapter = make_adapter(num_classes=3)
    assert adapter.draw_template(5).condition is not None
    template = adapter.draw_template(3000, labels=[2, 0])
    assert template.condition is not None
    assert template.condition[:4].tolist() == [2, 0, 2, 0]
    assert torch.equal(adapter.condition(template), adapter.condition_embedding(template.condition))
    embedded = adapter.train().condition(template)
    hidden = (embedded == adapter.null_condition()).all(dim=-1).float().mean()
    assert 0.07 < float(hidden) < 0.13


def test_images_without_classes_need_no_labels() -> None:
    adapter = make_adapter()
    prepared = adapter.prepare({"images": torch.rand(2, 3, 8, 8)})
    assert adapter.template(prepared).condition is None
    assert adapter.condition(adapter.template(prepared)).shape == (1, 32)


# ---------------------------------------------------------------------- out


def test_finished_images_are_rounded_and_limited_bytes() -> None:
    adapter = make_adapter(2, 1, channels=1)
    values = torch.tensor([[-1.0, 0.0], [0.4999, 7.0]])[None, None]
    (image,) = adapter.finish(values, Template(torch.tensor([4])))
    assert image.dtype == np.uint8
    assert image[:, :, 0].tolist() == [[0, 0], [127, 255]]


def test_bytes_survive_the_way_through_floats() -> None:
    adapter = make_adapter(16, 1, channels=1)
    every_byte = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    (image,) = adapter.finish(every_byte / 255, Template(torch.tensor([256])))
    assert np.array_equal(image[:, :, 0], every_byte[0, 0].numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_saved_as_they_are(channels: int, tmp_path: Path) -> None:
    adapter = make_adapter(channels=channels)
    images = adapter.finish(torch.rand(3, channels, 8, 8), Template(torch.full((3,), 16)))
    (folder,) = adapter.save(images, tmp_path)
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["000000.png", "000001.png", "000002.png"]
    for file, image in zip(files, images, strict=True):
        with Image.open(file) as opened:
            assert np.array_equal(np.asarray(opened).reshape(image.shape), image)


def test_saved_images_are_those_of_the_last_call_only(tmp_path: Path) -> None:
    images = [np.zeros((8, 8, 1), dtype=np.uint8)] * 3
    save_images(images, tmp_path)
    (tmp_path / "mine.png").touch()
    (tmp_path / "00000002.png").touch()
    save_images(images[:1], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.png", "00000002.png", "mine.png"]


def test_a_grid_shows_each_image_in_its_place() -> None:
    images = [np.full((8, 8, 1), 20 * i, dtype=np.uint8) for i in range(5)]
    picture = draw_grid(images)
    assert picture.size == (3 * 66 + 2, 2 * 66 + 2)  # enlarged eight times
    assert picture.getpixel((66 + 2, 66 + 2)) == (80, 80, 80)
    assert picture.getpixel((2 * 66 + 10, 66 + 10)) == (255, 255, 255)
    assert draw_grid([]).size == (64, 64)


# ---------------------------------------------------------------------- settings


def test_named_decoders_are_those_of_the_release() -> None:
    assert {name: tuple(size) for name, size in DECODER_SIZES.items() if name != "XS"} == {
        "S": (12, 384, 6, 1536),
        "B": (12, 768, 12, 3072),
        "L": (24, 1024, 16, 4096),
    }
    assert ImageAdapter(8, 2, decoder_size="S", decoder_depth=2, decoder_width=64).decoder_sizes == (2, 64, 6, 256)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 9}, "image_size 9 is not divisible by patch_size 2"),
        ({"image_size": 1}, "image_size 1 is not divisible by patch_size 2"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"channels": 2}, "channels is 2"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"num_registers": 0}, "num_registers is 0"),
        ({"decoder_depth": 0}, "decoder_depth is 0"),
        ({"decoder_width": 30}, "decoder_width is 30"),
        ({"embedding_width": 0}, "embedding_width is 0"),
        ({"condition_dropout": 1.5}, "condition_dropout is 1.5"),
        ({"perceptual_weight": -1.0}, "perceptual_weight is -1.0"),
        ({"decoder_heads": 7}, "number of heads 7"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_adapter(**settings)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"images": torch.rand(3, 3, 6, 8)}, r"images of shape \(3, 6, 8\), but this model takes \(3, 8, 8\)"),
        ({"images": torch.rand(3, 1, 8, 8)}, r"images of shape \(1, 8, 8\)"),
        ({"images": torch.rand(3, 8, 8)}, r"images of shape \(8, 8\)"),
        ({"images": torch.zeros(3, 3, 8, 8, dtype=torch.uint8)}, "uint8; they must be floats"),
        ({"labels": torch.tensor([0, 4, 9])}, r"label 4 is outside 0 .. 3"),
        ({"labels": torch.tensor([0, -1, 1])}, r"label -1 is outside 0 .. 3"),
    ],
)
def test_wrong_samples_are_refused(spoil: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_adapter(num_classes=4).prepare({**samples(), **spoil})


def test_missing_labels_are_refused() -> None:
    with pytest.raises(UserError, match="num_classes is 4, but the data has no labels"):
        make_adapter(num_classes=4).prepare({"images": torch.rand(1, 3, 8, 8)})


def test_loss_terms_and_metrics_have_different_names() -> None:
    """Both are logged as ``val/image/NAME``."""
    adapter = make_adapter()
    prepared = adapter.prepare(samples())
    terms = adapter.reconstruction_loss(prepared.images, prepared)
    metric = adapter.reconstruction_metric()
    metric.update(*adapter.metric_arguments(prepared.images, prepared))
    values = metric.compute()
    assert values["l1"] == 0
    assert not {*terms, *adapter.loss_weights} & set(values)


def test_inception_weights_can_be_named_by_the_adapter(tmp_path: Path) -> None:
    """A file that is none shows that the path arrives; the network itself is tested with the metrics."""
    file = tmp_path / "weights.pth"
    torch.save({"fc.bias": torch.zeros(3)}, file)
    adapter = ImageAdapter(image_size=8, patch_size=4, inception_weights=str(file))
    for make_metric in (adapter.generation_metric, adapter.reconstruction_metric):
        with pytest.raises(UserError, match=r"weights\.pth"):
            make_metric(None)
