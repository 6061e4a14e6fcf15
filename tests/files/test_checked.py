"""Files that are read back by the package itself: a flipped bit is noticed, wherever it is."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from unite.commands.ablate import Trial
from unite.errors import UserError
from unite.files.checked import load_checked, save_checked
from unite.files.checked_json import DamagedFileError, read_checked_json, write_checked_json
from unite.modalities.image.metrics import digit_features
from unite.modalities.image.metrics.statistics import FeatureStatistics
from unite.outputs.folder import OutputFolder
from unite.outputs.latents import LatentFiles
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
    kept.save(torch.tensor([7, 2]), latents)
    (file,) = (tmp_path / "parts").iterdir()
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"000000007\.safetensors is damaged .*checksum does not match.* makes it anew"):
        list(kept)
    kept.save(torch.tensor([7, 2]), latents)
    ((indices, found),) = kept
    assert indices.tolist() == [7, 2]
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


def outcome(path: Path, read: Callable[[], object], write: Callable[[], object]) -> tuple[set[str], float]:
    """What comes of reading a file with one flipped bit, and the share of flips that are refused."""
    write()
    results, num_refused, num_flips = set(), 0, 0
    for _ in each_bit(path):
        num_flips += 1
        try:
            results.add(repr(read()))
        except (UserError, DamagedFileError):
            num_refused += 1
    return results, num_refused / num_flips


def test_a_flipped_bit_of_a_checked_json_file_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path, content = tmp_path / "x.json", {"number": 12, "share": 0.1, "name": "é", "none": None, "list": [1, 2]}
    # One flip of the key sha256 makes a file of before there were checksums, with one entry more.
    results, share = outcome(
        path,
        lambda: {name: value for name, value in read_checked_json(path).items() if name in content},
        lambda: write_checked_json(path, content),
    )
    assert results <= {repr(content)}
    assert share > 0.9


def test_json_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    assert read_checked_json(path) == {"a": 1}
    for text, words in (("[1]", "no JSON object"), ("{", "no JSON"), ('{"a": 1, "sha256": ""}', "does not match")):
        path.write_text(text)
        with pytest.raises(DamagedFileError, match=words):
            read_checked_json(path)


def test_numbers_that_json_lacks_do_not_break_the_checksum(tmp_path: Path) -> None:
    write_checked_json(tmp_path / "x.json", {"a": float("nan"), "b": (1, 2)})
    assert read_checked_json(tmp_path / "x.json") == {"a": None, "b": [1, 2]}


def test_a_flipped_bit_of_statistics_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path, features = tmp_path / "x.npz", torch.randn(9, 3)
    statistics = FeatureStatistics(features.double().mean(0), features.double().T.cov(), features)

    def read() -> list[list[float]]:
        found = FeatureStatistics.load(path, 3)
        assert found.features is not None, "the features got lost"
        return [value.flatten().tolist() for value in (found.mean, found.covariance, found.features)]

    results, share = outcome(path, read, lambda: statistics.save(path))
    assert results == {repr(read())}  # times and the like, which nobody reads
    assert share > 0.7


def test_statistics_of_other_programs_have_no_checksum(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", mu=np.zeros(2), sigma=np.eye(2))
    assert FeatureStatistics.load(tmp_path / "x.npz", 2).mean.tolist() == [0, 0]


def test_damaged_parts_of_an_interrupted_predict_are_refused_by_name(tmp_path: Path) -> None:
    def begun() -> LatentFiles:
        return LatentFiles(OutputFolder(tmp_path / "out", {"seed": 1}), "test", total=2, part_bytes=1)

    files = begun()
    files.add("curve", {"latents": torch.randn(2, 3, 4)})
    files.end_batch()
    parts = tmp_path / "out" / "parts"
    for name in ("state.json", "settings.json", "curve-test-00000.safetensors"):
        content = (parts / name).read_bytes()
        damaged = bytearray(content)
        damaged[-10] ^= 1
        (parts / name).write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{name} is .*damaged.*remove .*parts, and the same command starts over"):
            begun()
        (parts / name).write_bytes(content)
    (parts / "curve-test-00000.safetensors").rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"curve-test-00000.safetensors is missing or damaged"):
        begun()
    (tmp_path / "away").rename(parts / "curve-test-00000.safetensors")
    state = read_checked_json(parts / "state.json")
    del state["checksums"]
    for text in ((parts / "state.json").read_text(), json.dumps(state)):  # the latter from before there were any
        (parts / "state.json").write_text(text)
        continued = begun()
        assert (continued.num_batches, continued.num_samples) == (1, {"curve": 2})


def test_a_damaged_record_of_a_trial_is_refused_by_name(tmp_path: Path) -> None:
    trial = Trial("base", 0, tmp_path / "seed_0", (), "digest")
    trial.note({"val/validity": 0.25})
    file = tmp_path / "seed_0" / "ablation.json"
    assert trial.metrics == {"val/validity": 0.25}
    file.write_text(file.read_text().replace("0.25", "0.75"))
    with pytest.raises(UserError, match=r"ablation.json is damaged .*remove .*seed_0, and the same command trains it"):
        _ = trial.metrics
