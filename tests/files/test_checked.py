"""Files that are read back by the package itself: a flipped bit is noticed, wherever it is."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from unite.errors import UserError
from unite.files.checked import DamagedFileError, load_checked, save_checked
from unite.modalities.image import digit_features
from unite.runs.kept_latents import KeptLatents


def each_bit(path: Path) -> Iterator[int]:
    """Flip one bit of every third byte after another; the file is whole again in the end."""
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        yield place
    path.write_bytes(content)


def test_a_flipped_bit_of_a_checked_file_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.randn(20), "b": torch.arange(6).view(2, 3)}
    save_checked(tensors, path, {"of": "me"})
    num_refused = num_flips = 0
    for _ in each_bit(path):
        num_flips += 1
        try:
            found, metadata = load_checked(path)
        except DamagedFileError:
            num_refused += 1
        else:  # a blank that pads the header
            assert metadata == {"of": "me"}
            assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert num_refused > 0.9 * num_flips
    assert load_checked(path)[1] == {"of": "me"}


def test_damaged_latents_of_an_interrupted_command_are_refused_by_name(tmp_path: Path) -> None:
    kept = KeptLatents(tmp_path / "parts")
    latents = torch.randn(2, 3, 4)
    kept.save(0, latents)
    (file,) = (tmp_path / "parts").iterdir()
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"000000\.safetensors is damaged .*checksum does not match.* makes it anew"):
        kept.load(0)
    kept.save(0, latents)
    found = kept.load(0)
    assert found is not None
    assert torch.equal(found, latents)


def test_a_damaged_network_of_digits_is_trained_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(digit_features, "NUM_STEPS", 2)
    pixels, labels = torch.randint(256, (20, 1, 8, 8)).to(torch.uint8), torch.arange(20) % 10
    whole = digit_features.load_or_train(tmp_path, pixels, labels).head.weight
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-100] ^= 64
    file.write_bytes(content)
    assert torch.equal(digit_features.load_or_train(tmp_path, pixels, labels).head.weight, whole)
    assert "is damaged" in caplog.text
