"""Every notebook runs from top to bottom, with few steps."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.commands import PATIENCE
from tests.support.paths import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
MAX_BYTES = 2_000_000


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of the datamodules, which the first notebook makes for all."""
    return tmp_path_factory.mktemp("data")


def _slow_but_for_the_first(path: Path) -> Any:
    return pytest.param(path, marks=() if path == NOTEBOOKS[0] else pytest.mark.slow, id=path.stem)


@pytest.mark.parametrize("path", map(_slow_but_for_the_first, NOTEBOOKS))
def test_notebook_runs(path: Path, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNITE_FAST", "1")
    monkeypatch.setenv("UNITE_DATA", str(data_root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": tmp_path}}
    client = NotebookClient(notebook, kernel_name="python3", resources=place)
    client.timeout = client.startup_timeout = PATIENCE
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_committed_notebooks_have_their_outputs() -> None:
    assert len(NOTEBOOKS) == 4
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        outputs = [output for cell in code for output in cell.outputs]
        assert all(cell.execution_count for cell in code), f"{path.name} was committed without being run"
        assert any("image/png" in output.get("data", {}) for output in outputs), f"{path.name} shows nothing"
        assert not [output.text for output in outputs if output.get("name") == "stderr"], path.name
        assert path.stat().st_size < MAX_BYTES, f"{path.name} is too large: show fewer or smaller pictures"


def test_links_between_notebooks_and_documents_lead_somewhere() -> None:
    for path in NOTEBOOKS:
        prose = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", prose):
            assert (path.parent / link).is_file(), f"{path.name} links to {link}"
        for name in re.findall(r"`((?:docs|configs)/[^` ]+)`", prose):
            assert (path.parents[1] / name).is_file(), f"{path.name} names {name}"
