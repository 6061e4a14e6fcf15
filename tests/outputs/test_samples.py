"""``unite sample``, interrupted and continued, on the toy modality."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from tests.support.commands import PATIENCE, RunCli, shell, until
from tests.support.paths import REPOSITORY, TOY
from unite import UniteModule
from unite.modalities.pictures import SCREEN_WIDTH
from unite.outputs.samples import draw_film_strip
from unite.outputs.settings import SampleSettings

pytestmark = pytest.mark.usefixtures("in_toy_folder")

Interrupt = Callable[[int], list[int]]


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Makes Ctrl-C come after so many batches; the list has a number for each batch that was begun."""
    sample_latents = UniteModule.sample_latents

    def install(num_batches: int) -> list[int]:
        begun: list[int] = []

        def interrupted(self: UniteModule, *args: Any, **options: Any) -> torch.Tensor:
            begun.append(len(begun))
            if len(begun) > num_batches:
                raise KeyboardInterrupt
            return sample_latents(self, *args, **options)

        monkeypatch.setattr(UniteModule, "sample_latents", interrupted)
        return begun

    return install


def sample(run_cli: RunCli, run: Path, output: Path, *options: str) -> Any:
    # The ancestral solver draws noise in each step, so that noise of a wrong step would show.
    common = ("--num_samples", "10", "--batch_size", "3", "--num_steps", "4", "--solver", "ancestral")
    return run_cli("sample", "--trust", "--ckpt_path", run, "--output", output, *common, *options)


def test_interrupted_sampling_continues_to_the_same_samples(
    run_cli: RunCli,
    toy_run: Path,
    tmp_path: Path,
    interrupt_after: Interrupt,
) -> None:
    assert sample(run_cli, toy_run, tmp_path / "whole").code == 0
    interrupt_after(2)
    stopped = sample(run_cli, toy_run, tmp_path / "stopped")
    assert stopped.code == 130
    assert f"what is done lies in {tmp_path / 'stopped' / 'parts'}, and the same command continues" in stopped.err
    assert "Traceback" not in stopped.err
    assert {path.name for path in (tmp_path / "stopped").iterdir()} == {"parts"}
    begun = interrupt_after(99)
    assert sample(run_cli, toy_run, tmp_path / "stopped").code == 0
    assert len(begun) == 2  # of four batches, two were kept
    for name in ("curves.json", "metrics.json", "labels.json", "grid.png"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "stopped" / "parts").exists()


def test_parts_of_another_command_are_not_continued(
    run_cli: RunCli,
    toy_run: Path,
    tmp_path: Path,
    interrupt_after: Interrupt,
) -> None:
    interrupt_after(1)
    assert sample(run_cli, toy_run, tmp_path).code == 130
    begun = interrupt_after(99)
    refused = sample(run_cli, toy_run, tmp_path, "--seed", "7")
    assert refused.code == 2
    assert "another seed (0, now 7)" in refused.err
    assert not begun
    assert sample(run_cli, toy_run, tmp_path, "--seed", "7", "--overwrite").code == 0
    assert len(begun) == 4


def test_parts_without_a_finished_batch_are_in_nobodys_way(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    (tmp_path / "parts" / "guidance_1").mkdir(parents=True)  # as a command that was killed leaves them
    (tmp_path / "parts" / "settings.json").write_text('{"num_samples": 20000}')
    (tmp_path / "parts" / "guidance_1" / ".000000.safetensors.7.tmp").write_text("half")
    result = sample(run_cli, toy_run, tmp_path)
    assert result.code == 0, result.err
    assert not (tmp_path / "parts").exists()


def test_a_folder_of_the_users_own_called_parts_is_left_alone(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "diary.txt").write_text("mine")
    refused = sample(run_cli, toy_run, tmp_path, "--overwrite")
    assert refused.code == 2
    assert "choose another --output" in refused.err
    assert (tmp_path / "parts" / "diary.txt").read_text() == "mine"


def test_results_are_replaced_only_when_asked(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    assert sample(run_cli, toy_run, tmp_path).code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    refused = sample(run_cli, toy_run, tmp_path, "--seed", "1")
    assert refused.code == 2
    assert "has files already (curves.json, grid.png, labels.json, ...)" in refused.err
    assert "--overwrite" in refused.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert sample(run_cli, toy_run, tmp_path, "--seed", "1", "--overwrite").code == 0
    assert (tmp_path / "curves.json").read_bytes() != before["curves.json"]


def test_labels_are_written_with_the_samples(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    assert sample(run_cli, toy_run, tmp_path, "--labels", "1", "1", "0").code == 0
    assert json.loads((tmp_path / "labels.json").read_text()) == {
        "class_names": None,
        "labels": [1, 1, 0, 1, 1, 0, 1, 1, 0, 1],
    }


def test_film_strip_ends_with_the_finished_sample(toy_run: Path) -> None:
    model = UniteModule.load_from_checkpoint(toy_run / "last.ckpt", map_location="cpu", trust=True)
    for num_steps, num_columns in ((4, 5), (40, SCREEN_WIDTH // 128)):  # as many as fit
        settings = SampleSettings(
            modality="curve", num_samples=9, labels=[1], batch_size=5, seed=3, num_steps=num_steps, solver="heun"
        )
        strip = draw_film_strip(model, settings, guidance_scale=1.0, num_rows=2)
        samples = model.generate("curve", 2, labels=[1], num_steps=num_steps, solver="heun", seed=3)
        picture = model.adapter("curve").draw([samples[1]])
        width, height = strip.width // num_columns, (strip.height - 22) // 2
        assert (width, height) == (picture.width + 4, picture.height + 4)
        last = (num_columns - 1) * width + 2, 22 + height
        shown = strip.crop((*last, last[0] + picture.width, last[1] + picture.height))
        assert ImageChops.difference(shown, picture).getbbox() is None
        first = strip.crop((2, last[1], 2 + picture.width, last[1] + picture.height))
        assert ImageChops.difference(first, picture).getbbox() is not None


def test_film_strip_shows_the_way_before_restarts(toy_run: Path) -> None:
    model = UniteModule.load_from_checkpoint(toy_run / "last.ckpt", map_location="cpu", trust=True)
    strips = []
    for restarts in (0, 2):
        settings = SampleSettings(
            modality="curve",
            num_samples=2,
            labels=[1],
            batch_size=2,
            seed=3,
            num_steps=4,
            restarts=restarts,
            restart_steps=3,
        )
        strips.append(draw_film_strip(model, settings, guidance_scale=1.0, num_rows=2))
    width, height = strips[0].width // 5, strips[0].height
    before, last = ((0, 0, 4 * width, height), (4 * width, 0, 5 * width, height))
    assert ImageChops.difference(*(strip.crop(before) for strip in strips)).getbbox() is None
    assert ImageChops.difference(*(strip.crop(last) for strip in strips)).getbbox() is not None


def test_film_strip_is_drawn_on_request(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    assert sample(run_cli, toy_run, tmp_path / "a").code == 0
    assert not (tmp_path / "a" / "film_strip.png").exists()
    assert sample(run_cli, toy_run, tmp_path / "b", "--film_strip", "3").code == 0
    assert Image.open(tmp_path / "b" / "film_strip.png").size == (5 * 132, 22 + 3 * 132)
    assert (tmp_path / "a" / "curves.json").read_bytes() == (tmp_path / "b" / "curves.json").read_bytes()


def test_ctrl_c_in_a_shell_keeps_what_is_done(toy_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ("--num_samples", "100000", "--batch_size", "10", "--output", output)
    process = shell("sample", "--trust", "--ckpt_path", toy_run, *options)
    until(lambda: len(list(output.glob("parts/guidance_1/*.safetensors"))) >= 3, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "the same command continues" in err
    assert "Traceback" not in err


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_full_disk_is_told_in_one_line(toy_run: Path, tmp_path: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
    code = limited + "import sys; from unite.cli import main; sys.exit(main())"
    result = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            code,
            "sample",
            "--trust",
            "--ckpt_path",
            str(toy_run),
            "--output",
            str(tmp_path / "out"),
        ],
        cwd=TOY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "unite: failed: [Errno 27] File too large" in result.stderr
    assert "Traceback" not in result.stderr


def test_only_valid_keeps_the_first_valid_samples_and_the_metrics_of_the_raw_draw(
    run_cli: RunCli, toy_run: Path, tmp_path: Path, interrupt_after: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sample(run_cli, toy_run, tmp_path / "many", "--num_samples", "200", "--batch_size", "200").code == 0
    many = json.loads((tmp_path / "many" / "curves.json").read_text())
    radii = torch.tensor(many).norm(dim=-1).mean(dim=-1)
    middle = float(radii.median())
    adapter = sys.modules["curves"].CurveAdapter  # the class that the run names
    monkeypatch.setattr(adapter, "are_valid", lambda _, curves: [bool(p.norm(dim=-1).mean() > middle) for p in curves])
    result = sample(run_cli, toy_run, tmp_path / "only", "--only", "valid")
    assert result.code == 0
    told = json.loads((tmp_path / "only" / "only.json").read_text())
    expected = (radii > middle).nonzero()[:10, 0].tolist()
    written = torch.tensor(json.loads((tmp_path / "only" / "curves.json").read_text()))
    torch.testing.assert_close(written, torch.tensor(many)[expected], atol=1e-5, rtol=0)
    assert told["num_kept"] == 10
    assert told["num_drawn"] > expected[-1]
    assert f"of {told['num_drawn']} samples drawn are valid" in result.out
    labels = json.loads((tmp_path / "only" / "labels.json").read_text())["labels"]
    assert labels == [index % 2 for index in expected]
    raw = json.loads((tmp_path / "only" / "metrics.json").read_text())
    assert raw == {"mean_radius": pytest.approx(float(radii[:10].mean()), abs=1e-5)}
    interrupt_after(5)  # in the second draw
    assert sample(run_cli, toy_run, tmp_path / "stopped", "--only", "valid").code == 130
    interrupt_after(99)
    assert sample(run_cli, toy_run, tmp_path / "stopped", "--only", "valid").code == 0
    for name in ("curves.json", "metrics.json", "labels.json", "only.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "only" / name).read_bytes()


def test_only_valid_is_refused_where_nothing_says_what_is_valid(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    result = sample(run_cli, toy_run, tmp_path / "only", "--only", "valid")
    assert result.code == 2
    assert "only is 'valid', but CurveAdapter has no word for what is valid: leave it out" in result.err
