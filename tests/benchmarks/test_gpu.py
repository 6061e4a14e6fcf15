"""benchmarks/gpu.py keeps what was found whatever happens, and its package is what a machine without network needs."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, pack_gpu
from unite.modalities.molecule.data.qm9 import keys as qm9_keys
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule

STAGE = """
import json, os, sys, time
from pathlib import Path
part = Path(sys.argv[sys.argv.index("--part") + 1])
part.write_text(json.dumps({"figure": 1.5, "pid": os.getpid(), "rows": [{"a": 1}, {"a": 2, "b": "x|y"}]}))
"""
ENDS = {"good": "", "hung": "time.sleep(600)", "bad": "raise SystemExit('what went wrong')"}


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def use_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *names: str) -> None:
    """Put in place of the stages some that end as ``ENDS`` says."""
    stages = []
    for name in names:
        script = tmp_path / f"{name}.py"
        script.write_text(STAGE + ENDS[name])
        stages.append(gpu.Stage(name, str(script), 120, 5 if name == "hung" else 60))
    monkeypatch.setattr(gpu, "STAGES", tuple(stages))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_stage_that_hangs_or_fails_costs_itself_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_stages(monkeypatch, tmp_path, "hung", "bad", "good")
    assert gpu.main(["--dry", "--output", str(tmp_path / "out")]) == 1
    stages = json.loads((tmp_path / "out" / "gpu.json").read_text())["stages"]
    assert {name: found["status"] for name, found in stages.items()} == {
        "hung": "stopped at its limit",
        "bad": "failed with exit code 1",
        "good": "done",
    }
    assert stages["bad"]["error"] == "what went wrong"
    assert all(found["results"]["figure"] == 1.5 for found in stages.values())
    assert not is_running(stages["hung"]["results"]["pid"])
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert "figures mean nothing" in page
    assert "Failed with exit code 1: what went wrong" in page
    assert "| a | b |\n|---|---|\n| 1 |  |\n| 2 | x/y |" in page


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_it_keeps_what_was_found(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_stages(monkeypatch, tmp_path, "good", "hung")
    part = tmp_path / "work" / "hung.json"

    def interrupt() -> None:
        while not part.exists() or not part.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    arguments = ["--minutes", "9", "--output", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert gpu.main(arguments) == 128 + number
    stages = json.loads((tmp_path / "out" / "gpu.json").read_text())["stages"]
    assert (stages["good"]["status"], stages["hung"]["status"]) == ("done", "interrupted")
    assert stages["hung"]["results"]["figure"] == 1.5
    assert not is_running(stages["hung"]["results"]["pid"])
    assert "interrupted" in (tmp_path / "out" / "gpu.md").read_text().lower()


@pytest.mark.parametrize("minutes", [3, 5, 9, 30])
def test_limits_fit_the_minutes_and_leave_time_to_train(minutes: float) -> None:
    left = 60.0 * minutes - gpu.END_SECONDS
    limits = {}
    for stage in gpu.STAGES:
        limits[stage.name] = gpu.limit_of(stage, minutes, left, dry=False)
        left -= limits[stage.name]
    assert left >= 0
    assert limits["training"] >= 0.2 * 60 * minutes
    assert limits["samples"] >= min(30.0, 0.1 * 60 * minutes)


def test_wrong_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in {
        ("--minutes", "0"): "--minutes is 0.0; it must be above 0",
        ("--package", str(tmp_path / "gone")): "is no folder; make it with benchmarks/pack_gpu.py",
    }.items():
        with pytest.raises(SystemExit):
            gpu.parse(list(arguments))
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_measures_rates(tmp_path: Path) -> None:
    assert gpu.main(["--dry", "--output", str(tmp_path), "--stages", "versions", "rates"]) == 0
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert stages["versions"]["results"]["torch"] == torch.__version__
    assert stages["rates"]["results"].keys() == {"bf16 TFLOP/s", "tf32 TFLOP/s", "fp32 TFLOP/s", "copy TB/s"}
    assert all(value > 0 for value in stages["rates"]["results"].values())


@pytest.mark.slow
def test_a_dry_run_ends_with_a_whole_page(tmp_path: Path) -> None:
    assert gpu.main(["--dry", "--output", str(tmp_path)]) == 0
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert {name: found["status"] for name, found in stages.items()} == {stage.name: "done" for stage in gpu.STAGES}
    assert stages["tests"]["results"].keys() == {"passed"}
    trained = {(row["model"], row["variant"]) for row in stages["throughput"]["results"]["training"]}
    assert len(trained) == 8
    rows = [row for table in ("training", "sampling") for row in stages["throughput"]["results"][table]]
    assert all("error" not in row and row["MFU %"] > 0 for row in rows)
    assert len(stages["largest"]["results"]["by batch"]) == 9
    assert stages["training"]["results"]["steps done"] == 20
    assert "test/molecule/validity" in stages["samples"]["results"]["metrics"]
    assert (tmp_path / "samples.png").is_file()
    weights = tmp_path / "model" / "model.safetensors"
    assert weights.stat().st_size == pytest.approx(1e6 * stages["samples"]["results"]["export MB"])
    assert "rounded to float16" in (tmp_path / "model" / "README.md").read_text()


def test_packed_molecules_are_unpacked_with_their_keys(
    tmp_path: Path, tiny_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = QM9DataModule(str(tmp_path / "data"), csv_files=[str(tiny_csv)])
    packed = pack_gpu.pack_qm9(data, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", pack_gpu.DATA_FILE]
    pack_gpu.unpack_qm9(packed, tmp_path / "there")
    monkeypatch.setattr(qm9_keys, "make_keys", None)  # nothing is perceived again
    there = QM9DataModule(str(tmp_path / "there"), hydrogens="counted")
    before, after = data.table("explicit"), there.table("explicit")
    assert float((after.pos - before.pos).abs().max()) < 0.6 * pack_gpu.GRID
    assert (before.pos < 0).any()
    for name in ("z", "num_hydrogens", "ptr", "molecule_id", "permutation", "smiles_text"):
        assert torch.equal(getattr(after, name), getattr(before, name)), name
    assert len(there.training_keys()) > 10


def test_a_package_that_is_too_large_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wheel.whl").write_bytes(bytes(2**20))
    pack_gpu.check_size(tmp_path, 1000)
    assert "1.00 MiB" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="too large by"):
        pack_gpu.check_size(tmp_path, 1.0)
