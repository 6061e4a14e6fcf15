"""``unite align`` and ``unite latents`` as typed."""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.commands import PATIENCE, RunCli
from tests.support.paths import REPOSITORY, TESTS, TOY
from unite.analysis import figures, loading
from unite.cli import main

pytestmark = pytest.mark.usefixtures("in_toy_folder")

UNITE = [sys.executable, "-P", "-c", "import sys; from unite.cli import main; sys.exit(main())"]
ALIGN_FIGURES = {"align_layers.png", "align_matrix.png", "align_times.png", "align_modes.png", "compression.png"}
QUICK = ("--num_samples", "20", "--seeds", "1", "--times", "0.3", "0.8", "--neighbours", "3")


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "my_run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(TOY)
        args = ["fit", "--config", "curves.yaml", "--trainer.default_root_dir", str(folder), "--trainer.max_steps", "2"]
        assert main(args) == 0
    return folder


@pytest.fixture(scope="module")
def molecule_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("molecules") / "run"
    args = {
        "config": REPOSITORY / "configs" / "qm9_small.yaml",
        "trainer.default_root_dir": folder,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 1,
        "trainer.limit_val_batches": 0,
        "trainer.callbacks": "null",
        "trainer.accelerator": "cpu",
        "data.init_args.root": folder.parent / "data",
        "data.init_args.csv_files": f"[{TESTS / 'data' / 'qm9_tiny.csv'}]",
        "data.init_args.batch_size": 8,
        "data.init_args.num_val": "null",
    }
    assert main(["fit", *(f"--{name}={value}" for name, value in args.items())]) == 0
    return folder


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty files in place of figures, which take most of the time, where they are not what is tested."""
    for name in [name for name in vars(figures) if name.startswith("draw_") and name != "draw_objects"]:
        monkeypatch.setattr(figures, name, _blank)


def _blank(*args: Any) -> Path:
    path: Path = args[-1]
    path.touch()
    return path


def strict_json(path: Path) -> Any:
    """JSON without NaN, which is no JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


def check_figure(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 200
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10
    assert path.stat().st_size < 300_000


@pytest.mark.slow
def test_align_in_a_shell(toy_run: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [*UNITE, "align", "--ckpt_path", str(toy_run), *QUICK, "--output", str(tmp_path / "out")]
    refused = subprocess.run(command, cwd=TOY, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert refused.returncode == 2
    assert "curves.Curve" in refused.stderr
    assert "--trust" in refused.stderr
    command += ["--trust"]
    done = subprocess.run(command, cwd=TOY, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    check_alignment(tmp_path / "out", done.stdout, done.stderr)


def test_align_draws_figures_and_writes_what_they_show(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    done = run_cli("align", "--ckpt_path", toy_run, *QUICK, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    check_alignment(tmp_path / "out", done.out, done.err)


def check_alignment(folder: Path, out: str, err: str) -> None:
    assert {path.name for path in folder.iterdir()} == {"align.json", *ALIGN_FIGURES}
    for name in ALIGN_FIGURES:
        check_figure(folder / name)
        assert f"{name}\n" in out
    assert "CKA    trained" in out
    assert "align: 100%" in err
    result = strict_json(folder / "align.json")
    assert result["run"] == "my_run, step 2"
    assert result["modality"] == "curve"
    assert result["alignment"]["times"] == [0.3, 0.8]
    assert result["alignment"]["num_rows"] == 40
    assert result["compression"]["bin_width"] == 2**-15


@pytest.mark.usefixtures("blank_figures")
def test_align_writes_into_the_run_and_replaces_nothing_unasked(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(toy_run, folder)
    assert run_cli("align", "--ckpt_path", folder, *QUICK).code == 0
    before = (folder / "align" / "align.json").read_text()
    refused = run_cli("align", "--ckpt_path", folder, *QUICK, "--seed", "1")
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert (folder / "align" / "align.json").read_text() == before
    result = run_cli("align", "--ckpt_path", folder / "last.ckpt", *QUICK, "--seed", "1", "--overwrite")
    assert result.code == 0, result.err
    assert (folder / "align" / "align.json").read_text() != before


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize(
    ("command", "options", "figure"),
    [
        ("align", QUICK, "draw_compression"),
        ("latents", ("--num_samples", "12", "--num_train", "20", "--num_steps", "2"), "draw_objects"),
    ],
)
def test_an_interruption_among_the_figures_does_not_count_as_done(
    run_cli: RunCli,
    toy_run: Path,
    tmp_path: Path,
    command: str,
    options: tuple[str, ...],
    figure: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    typed = (command, "--ckpt_path", toy_run, *options, "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(figures, figure, interrupt)
        assert run_cli(*typed).code == 130
    assert list((tmp_path / "out").glob("*.png"))
    assert not list((tmp_path / "out").glob("*.json"))
    result = run_cli(*typed)
    assert result.code == 0, result.err
    assert (tmp_path / "out" / f"{command}.json").is_file()


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("command", ["align", "latents"])
def test_a_seed_fixes_the_order_of_shuffled_data_too(
    run_cli: RunCli, toy_run: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"align": QUICK, "latents": ("--num_samples", "12", "--num_train", "20", "--num_steps", "2")}[command]
    read_batches = loading.batches
    seen: list[list[float]] = []

    def watched(*args: Any) -> Iterator[Any]:
        for batch in read_batches(*args):
            seen[-1].extend(batch["points"].flatten().tolist())
            yield batch

    monkeypatch.setattr(loading, "batches", watched)
    for name in ("first", "again"):
        seen.append([])
        args = ("--ckpt_path", toy_run, "--split", "train", "--output", tmp_path / name)
        result = run_cli(command, *args, *options)
        assert result.code == 0, result.err
    assert seen[0] == seen[1]


def test_latents_of_curves(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    args = ("--num_samples", "30", "--num_train", "40", "--num_steps", "4", "--output", tmp_path)
    result = run_cli("latents", "--ckpt_path", toy_run, *args)
    assert result.code == 0, result.err
    # Curves have classes and no pictures of originals.
    names = {"dimension.png", "trajectory_curve.png", "trajectory.png", "probes.png", "interpolation.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"latents.json", *names}
    for name in names:
        check_figure(tmp_path / name)
    found = strict_json(tmp_path / "latents.json")
    assert found["probes"]["num_train"] == 40
    assert found["probes"]["num_test"] == 30
    assert 0 <= found["probes"]["classes"]["latents (mean and sum)"]["accuracy"] <= 1
    assert len(found["neighbours"]["indices"]) == 30
    assert found["trajectory"]["times"][-1] == 1


@pytest.mark.usefixtures("blank_figures")
def test_align_and_latents_of_molecules(run_cli: RunCli, molecule_run: Path, tmp_path: Path) -> None:
    align = run_cli("align", "--ckpt_path", molecule_run, *QUICK, "--split", "train", "--output", tmp_path / "a")
    assert align.code == 0, align.err
    assert strict_json(tmp_path / "a" / "align.json")["alignment"]["num_registers"] == 9
    args = ("--num_samples", "12", "--num_train", "30", "--num_steps", "4", "--split", "train")
    result = run_cli("latents", "--ckpt_path", molecule_run, *args, "--output", tmp_path / "b")
    assert result.code == 0, result.err
    assert "gap from composition: R²" in result.out
    found = strict_json(tmp_path / "b" / "latents.json")
    assert found["probes"]["properties"]["polarizability"]["unit"] == "bohr³"
    assert (tmp_path / "b" / "neighbours.png").is_file()
    assert all(0 <= metrics["validity"] <= 1 for metrics in found["trajectory"]["metrics"])
    assert math.isclose(found["trajectory"]["cosine_to_end"][-1], 1, abs_tol=1e-5)


@pytest.mark.usefixtures("blank_figures")
def test_data_can_be_overridden_and_described(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    shutil.copy(toy_run / "last.ckpt", tmp_path / "alone.ckpt")
    args = ("align", "--ckpt_path", tmp_path / "alone.ckpt", *QUICK, "--output", tmp_path / "out")
    refused = run_cli(*args)
    assert refused.code == 2
    assert "--config" in refused.err
    result = run_cli(*args, "--config", "curves.yaml", "--data.init_args.num_curves", "6")
    assert result.code == 0, result.err
    assert strict_json(tmp_path / "out" / "align.json")["alignment"]["num_rows"] == 12
    assert strict_json(tmp_path / "out" / "align.json")["run"] == "alone, step 2"


@pytest.mark.usefixtures("blank_figures")
def test_an_exported_model_is_aligned_as_its_checkpoint_is(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    assert run_cli("export", toy_run, tmp_path / "shared").code == 0
    found = []
    for source in (toy_run, tmp_path / "shared"):
        args = ("--ckpt_path", source, "--config", "curves.yaml", "--output", tmp_path / f"of_{source.name}")
        result = run_cli("align", *args, *QUICK)
        assert result.code == 0, result.err
        found.append(strict_json(tmp_path / f"of_{source.name}" / "align.json"))
    assert found[1]["run"] == "shared, step 2"
    assert found[0]["alignment"] == found[1]["alignment"]


ALIGN = ("align", "--ckpt_path", "{toy}", "--output", "{tmp}/out")
LATENTS = ("latents", "--ckpt_path", "{toy}", "--output", "{tmp}/out")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("align",), ["--ckpt_path", "required"]),
        (("align", "--ckpt_path", "{tmp}/no.ckpt"), ["no.ckpt", "no such checkpoint"]),
        ((*ALIGN, "--times", "1.2"), ["times has 1.2", "[0, 1]"]),
        ((*ALIGN, "--times", "early"), ["--times", "early"]),
        ((*ALIGN, "--seeds", "0"), ["num_seeds is 0"]),
        ((*ALIGN, "--num_samples", "2"), ["num_samples is 2", "at least 4"]),
        ((*ALIGN, "--bin_bits", "99"), ["--bin_bits is 99"]),
        ((*ALIGN, "--split", "all"), ["--split", "'all'", "val"]),
        ((*ALIGN, "--modality", "sound"), ["'sound'", "curve"]),
        ((*ALIGN, "--sead", "1"), ["unknown option --sead"]),
        ((*ALIGN, "--data.batch_sise", "2"), ["batch_sise"]),
        ((*ALIGN, "--config", "no.yaml"), ["no.yaml", "does not exist"]),
        ((*ALIGN[:-1], "{tmp}/file/out"), ["cannot write to"]),
        ((*LATENTS, "--num_samples", "3"), ["--num_samples is 3"]),
        ((*LATENTS, "--num_steps", "0"), ["--num_steps is 0"]),
        ((*LATENTS, "--solver", "dopri5"), ["--solver", "dopri5"]),
    ],
    ids=lambda value: "-".join(value[-2:]).replace("--", "") if isinstance(value, tuple) else None,
)
def test_wrong_input_is_told_in_one_line(
    run_cli: RunCli, toy_run: Path, tmp_path: Path, args: tuple[str, ...], words: list[str]
) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    result = run_cli(*(arg.format(tmp=tmp_path, toy=toy_run) for arg in args))
    assert result.code == 2
    (line,) = result.err.strip().splitlines()
    assert line.startswith("unite: error: ")
    for word in words:
        assert word in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["align", "latents"])
def test_missing_packages_are_named(
    run_cli: RunCli, toy_run: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find_spec(name))
    result = run_cli(command, "--ckpt_path", toy_run)
    assert result.code == 2
    assert 'scikit-learn, which is not installed: pip install "unite-lightning[analysis]" (or:' in result.err


@pytest.mark.parametrize("command", ["align", "latents"])
def test_help_lists_the_options_and_loads_nothing_heavy(command: str) -> None:
    code = (
        "import sys; from unite.cli import main; "
        f"assert main(['{command}', '--help']) == 0; "
        "heavy = {'torch', 'lightning', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for option in ("--ckpt_path", "--num_samples", "--split", "--output", "--overwrite", "--seed", "--data.init_args"):
        assert option in done.stdout
