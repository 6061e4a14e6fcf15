"""The documentation: its python runs, and its pages say what the code says."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.support.paths import REPOSITORY
from unite import GenerativeEncoder, UniteModule, UniteTrainer
from unite.commands import COMMANDS
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.data.qm9 import table as qm9_cache
from unite.nn import ByteTextEncoder

# An exported model has a card of its own, which is no page.
DOCS = [path for path in (REPOSITORY / "docs").rglob("*.md") if not (path.parent / "model.safetensors").exists()]
PAGES = [REPOSITORY / "README.md", *sorted(DOCS)]
SNIPPETS = {page: re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL) for page in PAGES}


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The hook of mkdocs."""
    spec = importlib.util.spec_from_file_location("generate_reference", REPOSITORY / "docs" / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def user_folder(tmp_path: Path, tiny_csv: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with runs of tiny models, 64 molecules for QM9, and training of two steps."""
    runs: dict[str, dict[str, Any]] = {
        "qm9_small": {},
        "qm9_gap": {"properties": ["gap"]},
        "qm9_text": {"text": ByteTextEncoder(depth=1, num_heads=2)},
    }
    for name, settings in runs.items():
        encoder = GenerativeEncoder("XS", latent_channels=4, depth=1, width=16, num_heads=2)
        adapter = MoleculeAdapter(hydrogens="counted", max_atoms=9, decoder_depth=1, decoder_heads=2, **settings)
        module = UniteModule(encoder, {"molecule": adapter})
        adapter.size_counts[3:] = 1
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "global_step": 0}
        torch.save({**checkpoint, "pytorch-lightning_version": "2.6.0"}, run / "last.ckpt")
    monkeypatch.setattr(qm9_cache, "find_qm9pack", lambda: [tiny_csv])
    fit = UniteTrainer.fit

    def fit_two_steps(self: UniteTrainer, *args: Any, **options: Any) -> None:
        self.fit_loop.epoch_loop.max_steps = 2
        fit(self, *args, **options)

    monkeypatch.setattr(UniteTrainer, "fit", fit_two_steps)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if SNIPPETS[page]], ids=lambda page: page.stem)
def test_python_of_a_page_runs(page: Path, user_folder: Path) -> None:
    names: dict[str, Any] = {}
    for snippet in SNIPPETS[page]:
        exec(compile(snippet, str(page), "exec"), names)
    if page.stem == "python":
        assert (user_folder / "grid.png").is_file()
        assert names["latents"].shape[-1] == 4
        assert names["novelty"] >= 0
        assert names["own_latents"].shape[:2] == (2, 3)
        assert len(names["decoded"]) == 2
        assert isinstance(names["shared"], UniteModule)
        assert (user_folder / "runs" / "by_hand" / "last.ckpt").is_file()


def test_python_page_is_run() -> None:
    assert len(SNIPPETS[REPOSITORY / "docs" / "python.md"]) >= 5


def test_every_setting_has_a_meaning_and_every_command_its_options(reference: ModuleType) -> None:
    settings = reference.fill("{{ settings }}")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", settings, re.MULTILINE)
    assert len(rows) > 80
    assert [name for name, meaning in rows if not meaning] == []
    for name in ("ImageAdapter", "MoleculeAdapter", "QM9DataModule", "WeightAveraging", "OptimizerSettings"):
        assert f"\n### {name}\n" in settings
    assert "SaveRunConfig" not in settings
    commands = reference.fill("{{ commands }}")
    for name in COMMANDS:
        assert f"## {name}\n" in commands
    for part in ("qm9", "images", "reference"):
        assert f"usage: unite prepare {part} " in commands
    for option in ("`--num_samples`", "--image_size", "--push_to_hub", "--context_start"):
        assert option in commands


def test_an_unknown_marker_is_no_text(reference: ModuleType) -> None:
    with pytest.raises(ValueError, match="is no marker"):
        reference.fill("{{ comands }}")
    with pytest.raises(ValueError, match=r"gone\.py is no file"):
        reference.fill("{{ file gone.py }}")


def test_site_builds_without_warnings_or_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra [docs]")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(REPOSITORY / "mkdocs.yml"), strict=True, site_dir=str(tmp_path))
    build(config)  # strict: a warning is an exception
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    for page in PAGES[1:]:
        assert f"{page.relative_to(REPOSITORY / 'docs').with_suffix('').as_posix()}.html" in pages
    assert re.search(r"<span class=\"n\w*\">CurveAdapter</span>", pages["modality.html"])  # in colour
    for name, text in pages.items():
        assert "{{" not in text, name
        assert ":::" not in text, name
        fetched = re.findall(r"<(?:script|img|iframe)[^>]* src=\"(?:https?:)?//[^>]*>", text)
        fetched += re.findall(r"<link[^>]* rel=\"stylesheet\"[^>]*https?:[^>]*>", text)
        assert fetched == [], name
