"""Sharing a model: unite export, UniteModule.from_pretrained, and what both refuse."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.support.commands import PATIENCE, RunCli
from tests.support.paths import TESTS, TOY
from unite import UniteModule, UserError, score_molecules
from unite.callbacks.averaging import WeightAveraging
from unite.commands.export import export_checkpoint
from unite.modalities.image.adapter import ImageAdapter
from unite.nn.generative_encoder import GenerativeEncoder
from unite.runs.exported import push_to_hub, read_exported
from unite.runs.known_classes import require_known_classes
from unite.trainer import UniteTrainer

NAMES = ["zero", "one", "two"]


def image_module() -> UniteModule:
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=1, width=16, num_heads=2)
    sizes: dict[str, Any] = {"decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2, "embedding_width": None}
    adapter = ImageAdapter(
        8, 4, channels=1, num_classes=3, perceptual_weight=0.0, vgg16_weights="/home/me/vgg", **sizes
    )
    module = UniteModule(encoder, {"image": adapter})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def save(module: UniteModule, folder: Path, **others: Any) -> Path:
    """A checkpoint of a module that was made in plain Python."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "global_step": 7}
    torch.save({**checkpoint, "class_names": {"image": NAMES}, **others}, folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.fixture
def module() -> UniteModule:
    return image_module()


@pytest.fixture
def shared(module: UniteModule, tmp_path: Path) -> Path:
    """An exported folder."""
    folder = tmp_path / "shared"
    export_checkpoint(save(module, tmp_path / "run"), folder)
    return folder


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit config.json."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("config_sha256")  # as whoever edits it by hand is told to
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_flipped_bit_of_an_export_is_refused_or_changes_nothing(shared: Path) -> None:
    whole = read_exported(shared)
    refusals: list[str] = []
    for name in ("config.json", "model.safetensors"):
        content = (shared / name).read_bytes()
        for place in range(0, len(content), max(len(content) // 60, 1)):
            damaged = bytearray(content)
            damaged[place] ^= 1 << (place % 7)
            (shared / name).write_bytes(damaged)
            try:
                found = read_exported(shared)
            except UserError as error:
                refusals.append(str(error))
            else:  # a blank, or a number written in another way
                assert name == "config.json"
                assert found["hyper_parameters"] == whole["hyper_parameters"]
                assert found["class_names"] == whole["class_names"]
        (shared / name).write_bytes(content)
    assert len(refusals) > 80
    assert all(str(shared) in line and "\n" not in line for line in refusals)


def test_an_export_of_before_checksums_still_loads(shared: Path) -> None:
    change(shared, lambda config: None)
    assert isinstance(UniteModule.from_pretrained(shared), UniteModule)


def test_weights_that_are_not_finite_are_refused_by_every_route(run_cli: RunCli, shared: Path, tmp_path: Path) -> None:
    content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    name = next(name for name, value in content["state_dict"].items() if value.is_floating_point())
    content["state_dict"][name].fill_(float("nan"))
    path = tmp_path / "nan.ckpt"
    torch.save(content, path)
    with pytest.raises(UserError, match=f"nan.ckpt has weights that are not finite: .* of {name}"):
        UniteModule.load_from_checkpoint(path)
    result = run_cli("sample", "--ckpt_path", path, "--num_samples", "2")
    assert result.code == 2
    assert "nan.ckpt has weights that are not finite" in result.err
    weights = load_file(shared / "model.safetensors")
    weights[name].fill_(float("inf"))
    save_file(weights, shared / "model.safetensors")
    digest = hashlib.sha256((shared / "model.safetensors").read_bytes()).hexdigest()
    change(shared, lambda config: config.update(weights_sha256=digest))
    with pytest.raises(UserError, match=f"model.safetensors has weights that are not finite: .* of {name}"):
        UniteModule.from_pretrained(shared)


# ---------------------------------------------------------------------- there and back


def test_a_shared_model_is_the_model(module: UniteModule, shared: Path) -> None:
    loaded = UniteModule.from_pretrained(shared)
    assert not loaded.training
    assert loaded.adapters["image"].class_names == NAMES
    weights = loaded.state_dict()
    for name, value in module.state_dict().items():
        assert torch.equal(weights[name], value), name
    first, second = (each.generate("image", 4, seed=3, num_steps=3) for each in (module, loaded))
    assert all((one == other).all() for one, other in zip(first, second, strict=True))


def test_exports_in_half_precision_are_half_as_large(module: UniteModule, tmp_path: Path) -> None:
    checkpoint = save(module, tmp_path / "run")
    sizes = []
    for half in (False, True):
        export_checkpoint(checkpoint, tmp_path / str(half), half=half)
        sizes.append((tmp_path / str(half) / "model.safetensors").stat().st_size)
    assert sizes[1] < 0.7 * sizes[0]
    loaded = UniteModule.from_pretrained(tmp_path / "True")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    for name, value in module.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-3)


def test_the_model_in_the_repository_generates_molecules() -> None:
    module = UniteModule.from_pretrained(TESTS.parent / "docs/results/qm9_long/model")
    scores = score_molecules(module.generate("molecule", 100, solver="ancestral", seed=0))
    assert scores["validity"] > 0.6  # 0.84 of 1,000 (docs/results/qm9_long.md)


def test_nothing_of_the_machine_travels(shared: Path) -> None:
    config = (shared / "config.json").read_text()
    assert "/home/me" not in config
    assert json.loads(config)["model"]["adapters"]["image"]["init_args"]["vgg16_weights"] is None
    assert {path.name for path in shared.iterdir()} == {"model.safetensors", "config.json", "README.md"}


def test_weights_can_be_read_by_whoever_can_read_the_files_beside_them(shared: Path) -> None:
    assert len({path.stat().st_mode for path in shared.iterdir()}) == 1


def test_weights_that_share_memory_can_be_shared(module: UniteModule, tmp_path: Path) -> None:
    state = module.state_dict()
    name = next(name for name in state if name.endswith("pixel_head.weight"))
    export_checkpoint(save(module, tmp_path, state_dict={**state, "again": state[name]}), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["again"], written[name])


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the toy modality, with averaged weights and metrics."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    trainer = {"default_root_dir": str(folder), "callbacks": [{"class_path": "unite.callbacks.WeightAveraging"}]}
    config = folder.parent / "average.yaml"
    config.write_text(yaml.safe_dump({"trainer": trainer}))
    command = [sys.executable, "-m", "unite", "fit", "--config", "curves.yaml", "--config", str(config), "--quiet"]
    result = subprocess.run(command, cwd=TOY, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    return folder


def test_export_as_typed_writes_the_averaged_weights_and_a_model_card(toy_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "curve-model"
    command = [sys.executable, "-m", "unite", "export", str(toy_run), str(folder), "--license", "cc-by-4.0"]
    result = subprocess.run(command, cwd=TOY, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("wrote ")] == [
        f"wrote {folder / name}" for name in ("model.safetensors", "config.json", "README.md")
    ]
    checkpoint = torch.load(toy_run / "last.ckpt", weights_only=True)
    written = load_file(folder / "model.safetensors")
    assert written.keys() == checkpoint["state_dict"].keys()
    assert all(torch.equal(value, checkpoint["state_dict"][name]) for name, value in written.items())
    assert any(not torch.equal(value, checkpoint["current_model_state"][name]) for name, value in written.items())
    card = (folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header == {"license": "cc-by-4.0", "library_name": "unite", "tags": ["unite", "curve"]}
    metrics = json.loads((toy_run / "metrics.json").read_text())
    for expected in (
        f"| `val/curve/points` | {metrics['val/curve/points']:.4g} |",
        "Validation at step 8",
        "`curves.CurveDataModule` with `num_curves: 64`, `num_points: 8`, `batch_size: 16`",
        "averaged (EMA)",
        "arXiv:2603.22283",
        'UniteModule.from_pretrained("curve-model")',
    ):
        assert expected in card


def test_commands_take_an_exported_folder(run_cli: RunCli, shared: Path, tmp_path: Path) -> None:
    drawn = []
    for source in (shared, tmp_path / "run"):
        output = tmp_path / f"from-{source.name}"
        options = ["--num_samples", "3", "--num_steps", "2", "--seed", "5", "--output", output]
        result = run_cli("sample", "--ckpt_path", source, *options)
        assert result.code == 0, result.err
        drawn.append([path.read_bytes() for path in sorted(output.rglob("*.png"))])
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) >= 3
    refused = run_cli("fit", "--ckpt_path", shared)
    assert refused.code == 2
    assert "no optimizer state (it was imported, exported, or saved without)" in refused.err


def test_exported_weights_of_ones_own_modality_are_evaluated_with_a_config(
    run_cli: RunCli, toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(TOY)
    export_checkpoint(toy_run, tmp_path / "shared")
    results = []
    for number, source in enumerate((tmp_path / "shared", toy_run)):
        args = ("--config", "curves.yaml", "--output", tmp_path / str(number))
        result = run_cli("validate", "--ckpt_path", source, *args)
        assert result.code == 0, result.err
        results.append(json.loads((tmp_path / str(number) / "metrics.json").read_text()))
    assert results[0] == results[1]


def test_checkpoints_of_the_command_line_and_of_python_load_without_pickled_code(
    module: UniteModule, toy_run: Path, tmp_path: Path
) -> None:
    from_cli = UniteModule.load_from_checkpoint(toy_run / "last.ckpt", weights_only=True, trust=True)
    assert from_cli.flow_settings.flow_steps == 2
    trainer = UniteTrainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, callbacks=[WeightAveraging()])
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "python.ckpt")
    from_python = UniteModule.load_from_checkpoint(tmp_path / "python.ckpt", weights_only=True)
    for name, value in module.state_dict().items():
        assert torch.equal(from_python.state_dict()[name], value), name


# ---------------------------------------------------------------------- refusals


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def set_model(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder, lambda config: config["model"].update(settings))


def set_config(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder, lambda config: config.update(settings))


def set_width(folder: Path) -> None:
    change(folder, lambda config: config["model"]["encoder"]["init_args"].update(width=24))


OURS = "unite.nn.GenerativeEncoder"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_bit, "model.safetensors is damaged, or not the file"),
        (truncate, "model.safetensors is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "it has no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is not of a unite model"),
        (set_config(format="other"), "is not of a unite model"),
        (set_config(format_version=2, unite_version="9.0"), "format_version 2; unite 0.1.0 reads 1.*unite 9.0"),
        (set_config(model={"encoder": {}}), "settings of encoder and adapters"),
        (set_config(class_names=[]), "'class_names'"),
        (set_model(adapters={}), "'adapters' must be"),
        (set_model(adapters={"image": "unite.modalities.image.ImageAdapter"}), "class_path and init_args"),
        (set_model(encoder={"class_path": "this.Zen", "init_args": {}}), "not part of unite.*import this first"),
        (set_model(encoder={"class_path": "os.system", "init_args": {}}), "os.system, which is no GenerativeEncoder"),
        (set_model(encoder={"class_path": "system", "init_args": {}}), "system, which is not part of unite"),
        (set_model(encoder={"class_path": OURS, "init_args": {}, "dict_kwargs": {}}), "class_path and init_args"),
        (set_model(encoder={"class_path": "unite.module.UniteModule", "init_args": {}}), "is no GenerativeEncoder"),
        (set_model(encoder={"class_path": "unite.gone.Encoder", "init_args": {}}), "unite 0.1.0 does not have"),
        (set_model(time={"class_path": "subprocess.Popen", "init_args": {"args": "true"}}), "is no Configurable"),
        (set_model(flow_stepz=3), "setting 'flow_stepz', which UniteModule does not have"),
        (set_model(flow_steps=0), "flow_steps is 0"),
        (set_width, "checkpoint of another model: encoder.* is of shape"),
    ],
)
def test_damaged_and_dangerous_folders_are_refused_in_one_line(
    shared: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(shared)
    with pytest.raises(UserError, match=words) as caught:
        UniteModule.from_pretrained(shared)
    assert "\n" not in str(caught.value)
    assert "this" not in sys.modules


def test_a_class_among_the_arguments_is_looked_at_as_well() -> None:
    nested = {"size": [{"class_path": "subprocess.Popen", "init_args": {"args": "true"}}]}
    encoder = {"class_path": OURS, "init_args": nested}
    adapter = {"class_path": "unite.modalities.image.ImageAdapter", "init_args": {}}
    with pytest.raises(UserError, match=r"subprocess\.Popen, which is no Configurable"):
        require_known_classes({"encoder": encoder, "adapters": {"image": adapter}}, Path("config.json"), UniteModule)


def test_a_command_imports_nothing_that_a_shared_folder_names(run_cli: RunCli, shared: Path) -> None:
    set_model(encoder={"class_path": "this.Zen", "init_args": {}})(shared)
    result = run_cli("sample", "--ckpt_path", shared)
    assert result.code == 2
    assert "give a --config of your own" in result.err
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("export",), "required: CHECKPOINT, FOLDER"),
        (("export", "{tmp}/none", "{tmp}/out"), "no such checkpoint"),
        (("export", "{tmp}/text.ckpt", "{tmp}/out"), "not a unite checkpoint"),
        (("export", "{tmp}/run", "{tmp}/shared"), "add --overwrite"),
        (("export", "{tmp}/shared", "{tmp}/out"), "is an exported model already"),
        (("export", "{tmp}/run", "{tmp}/text.ckpt/out"), "cannot write to"),
        (("export", "{tmp}/run", "{tmp}/out", "--license", "my licence"), "--license is 'my licence'"),
        (("export", "{tmp}/run", "{tmp}/out", "--licence", "mit"), "did you mean --license"),
        (("export", "{tmp}/run", "{tmp}/out", "--push_to_hub", "name"), "OWNER/NAME"),
    ],
)
def test_export_refuses_in_one_line(
    run_cli: RunCli, shared: Path, tmp_path: Path, args: tuple[str, ...], words: str
) -> None:
    assert shared.is_dir()
    (tmp_path / "text.ckpt").write_text("hello")
    result = run_cli(*(arg.format(tmp=tmp_path) for arg in args))
    assert result.code == 2
    assert words in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_and_leaves_nothing(
    run_cli: RunCli, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensors: Any, path: Path, **_: Any) -> None:
        path.touch()
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    result = run_cli("export", tmp_path / "run", tmp_path / "out")
    assert result.code == 2
    assert "No space left on device); make room" in result.err
    assert not (tmp_path / "out").exists()
    assert run_cli("export", tmp_path / "run", shared, "--overwrite").code == 2
    assert {path.name for path in shared.iterdir()} == {"model.safetensors", "README.md"}
    with pytest.raises(UserError, match=r"no config\.json"):  # half of another model is none
        UniteModule.from_pretrained(shared)


def test_overwrite_replaces_a_shared_model(run_cli: RunCli, shared: Path, tmp_path: Path) -> None:
    other = image_module()
    result = run_cli("export", save(other, tmp_path / "other"), shared, "--overwrite")
    assert result.code == 0, result.err
    assert "the licence is not stated" in result.out
    loaded = UniteModule.from_pretrained(shared)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in other.state_dict().items())


# ---------------------------------------------------------------------- the Hub, without a network


def stub_of_hub(**names: Any) -> SimpleNamespace:
    """Stands in for the package ``huggingface_hub``, as one that is installed."""
    return SimpleNamespace(__spec__=find_spec("json"), **names)


def test_without_its_package_the_hub_is_explained(
    run_cli: RunCli, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'owner/model is no folder here.*pip install "unite-lightning\[hub\]"'):
        UniteModule.from_pretrained("owner/model")
    with pytest.raises(UserError, match="nowhere/at/all is no folder"):
        UniteModule.from_pretrained("nowhere/at/all")
    result = run_cli("export", tmp_path / "run", tmp_path / "out", "--push_to_hub", "owner/model")
    assert result.code == 2
    assert "unite-lightning[hub]" in result.err
    assert not (tmp_path / "out").exists()


def test_a_hub_id_is_downloaded_and_loaded(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def snapshot_download(repo_id: str, **options: Any) -> str:
        seen.update(options, repo_id=repo_id)
        if repo_id != "owner/model":
            raise OSError("404 Client Error\nnot found")
        return str(shared)

    monkeypatch.setitem(sys.modules, "huggingface_hub", stub_of_hub(snapshot_download=snapshot_download))
    assert isinstance(UniteModule.from_pretrained("owner/model", revision="v1"), UniteModule)
    assert seen == {
        "repo_id": "owner/model",
        "revision": "v1",
        "allow_patterns": ["model.safetensors", "config.json"],
    }
    with pytest.raises(UserError, match="cannot download owner/gone: 404 Client Error not found"):
        UniteModule.from_pretrained("owner/gone")


class StubApi:
    """Notes what would be uploaded."""

    def __init__(self, calls: list[tuple[str, Any]]) -> None:
        self.calls = calls

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.calls.append((repo_id, options))
        return f"https://hub.test/{repo_id}"

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", options))


def test_push_to_hub_uploads_the_three_files(
    run_cli: RunCli, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub_of_hub(HfApi=lambda: StubApi(calls)))
    folder = tmp_path / "out"
    result = run_cli("export", tmp_path / "run", folder, "--push_to_hub", "owner/model", "--private")
    assert result.code == 0, result.err
    assert "uploaded to https://hub.test/owner/model" in result.out
    files = ["model.safetensors", "config.json", "README.md"]
    assert calls == [
        ("owner/model", {"private": True, "exist_ok": True}),
        ("upload", {"repo_id": "owner/model", "folder_path": str(folder), "allow_patterns": files}),
    ]
    assert 'from_pretrained("owner/model")' in (folder / "README.md").read_text()
    flip_a_bit(shared)
    with pytest.raises(UserError, match="damaged"):
        push_to_hub(shared, "owner/model", api=StubApi(calls))
    assert len(calls) == 2
