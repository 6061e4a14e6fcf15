"""``unite report`` as a user types it."""

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.commands import RunCli
from tests.support.pages import read_page
from tests.support.paths import REPOSITORY, TESTS
from tests.support.samples.qm9_rows import tiny_molecules
from unite.files import write_json
from unite.modalities.image.grid import save_images
from unite.modalities.molecule.files.writing import write_sdf
from unite.modalities.molecule.perception.distances import unite_hydrogens
from unite.modalities.molecule.perception.molecule import Molecule

SAMPLES = REPOSITORY / "docs" / "results" / "qm9_two_hours" / "samples.sdf"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def test_a_page_of_molecules(run_cli: RunCli, tmp_path: Path) -> None:
    file = tmp_path / "m.sdf"
    file.write_bytes(SAMPLES.read_bytes())
    result = run_cli("report", file)
    assert result.code == 0, result.err
    assert f"wrote {tmp_path / 'm_sdf_report.html'}" in result.out
    page = read_page(tmp_path / "m_sdf_report.html")
    (gallery,) = page.galleries
    assert gallery["total"] == len(gallery["items"]) == 100
    num_valid = sum(item["is_good"] for item in gallery["items"])
    assert f"validity {num_valid}.0 %" in page.text
    assert all(item["scene"] for item in gallery["items"])
    assert run_cli("report", file).code == 0  # a report is replaced by the next


def test_a_thousand_molecules_are_below_five_megabytes(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "m.sdf").write_bytes(SAMPLES.read_bytes() * 10)
    assert run_cli("report", tmp_path / "m.sdf", "--output", tmp_path / "page.html").code == 0
    assert len(read_page(tmp_path / "page.html").galleries[0]["items"]) == 1000
    assert (tmp_path / "page.html").stat().st_size < 2e6  # 1.2 MB: the viewer has 0.5 of them


def test_a_hostile_file_runs_nothing(run_cli: RunCli, tmp_path: Path) -> None:
    counts = "  1  0  0  0  0  0  0  0  0  0999 V2000"
    record = f"{HOSTILE}\n{HOSTILE}\n\n{counts}\n    0.0       0.0       0.0    {HOSTILE}\n"
    (tmp_path / f"{HOSTILE.replace('/', '')}.sdf").write_text(f"{record}>  <{HOSTILE}>\n{HOSTILE}\n\n$$$$\n" * 2)
    file = next(tmp_path.iterdir())
    assert run_cli("report", file, "--output", tmp_path / "page.html").code == 0
    page = read_page(tmp_path / "page.html")
    assert page.attributes("img") == []
    assert len(page.scripts) == 4  # the data, the viewer and two of the page's own
    assert HOSTILE in page.galleries[0]["items"][0]["remarks"][-1]


def test_files_side_by_side(run_cli: RunCli, tmp_path: Path) -> None:
    for name in ("a.sdf", "b.sdf"):
        (tmp_path / name).write_bytes(SAMPLES.read_bytes())
    assert run_cli("report", tmp_path / "a.sdf", tmp_path / "b.sdf", "--most", 5).code == 0
    page = read_page(tmp_path / "a_sdf_report.html")
    assert [(one["name"], len(one["items"]), one["total"]) for one in page.galleries] == [
        ("a.sdf", 5, 100),
        ("b.sdf", 5, 100),
    ]
    assert any(found.get("data-galleries") == "0 1" for found in page.attributes("div"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("nowhere",), "nowhere: no such run folder or file"),
        (("qm9",), "qm9 has no samples in runs/qm9 yet; make some: unite sample qm9 -n 100"),
        (("{file}", "--most", "0"), "--most is 0"),
        (("{file}", "--num_workers", "0"), "--num_workers is 0"),
        (("{file}", "--output", "{folder}/page.txt"), "must be an .html file"),
        (("{file}", "--output", "{folder}/other.html"), "is there and is no report; add --overwrite"),
        (("{file}", "{file}"), "is named twice"),
        (("{folder}/empty.sdf",), "has no molecules"),
        (("{folder}/words.txt",), "no molecule file by its name"),
        (("{file}", "--mots", "3"), "did you mean --most?"),
    ],
)
def test_wrong_input_is_refused(
    run_cli: RunCli, tmp_path: Path, args: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.sdf").write_bytes(SAMPLES.read_bytes())
    (tmp_path / "other.html").write_text("<p>mine</p>")
    (tmp_path / "empty.sdf").write_text("")
    (tmp_path / "words.txt").write_text("words")
    typed = [arg.replace("{file}", str(tmp_path / "m.sdf")).replace("{folder}", str(tmp_path)) for arg in args]
    result = run_cli("report", *typed)
    assert result.code == 2
    assert words in result.err
    assert len(result.err.splitlines()) == 1
    assert not list(tmp_path.glob("*report.html"))


# ---------------------------------------------------------------------- runs


def run_folder(folder: Path, flow_steps: int = 2) -> Path:
    """What a run and the commands after it leave, as far as no checkpoint is needed."""
    originals = [unite_hydrogens(real) for real, _ in tiny_molecules()][10:20]
    moved = [Molecule(one.atomic_numbers, one.positions + 0.03, one.num_hydrogens) for one in originals]
    for place, molecules in (
        ("samples", originals),
        ("reconstructions/originals", originals),
        ("reconstructions/reconstructions", moved),
    ):
        (folder / place).mkdir(parents=True)
        write_sdf(molecules, folder / place / "samples.sdf")
    write_json(folder / "samples" / "metrics.json", {"validity": 0.75, "reject/clash": 0.25})
    write_json(folder / "metrics.json", {"test/molecule/match_rate": 0.5})
    rows = ["step,train/molecule/flow,val/molecule/validity", "9,1.5,", "19,1.25,", "19,,0.125", "39,,0.625"]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    (folder / "config.yaml").write_text(f"model:\n  flow_steps: {flow_steps}\n  note: '{HOSTILE}'\n")
    (folder / "align").mkdir()
    write_json(folder / "align" / "align.json", {})
    Image.new("RGB", (40, 30), "white").save(folder / "align" / "align_layers.png")
    return folder


def test_a_page_of_a_run(run_cli: RunCli, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    result = run_cli("report", folder)
    assert result.code == 0, result.err
    page = read_page(folder / "report.html")
    assert page.headings == ["Metrics", "Curves", "Samples", "Reconstructions", "Representation", "Settings"]
    samples, made = page.galleries
    assert len(samples["items"]) == len(made["items"]) == 10
    assert all(item["verdict"] == "match" and item["original"] for item in made["items"])
    assert "validity 62.5 % – 75.0 %" in page.text  # noqa: RUF001  (validation, test, samples)
    assert "flow_steps: 2" in page.text
    assert HOSTILE in page.text
    assert [image["src"][:22] for image in page.attributes("img")] == ["data:image/png;base64,"]


def test_curves_go_through_what_was_logged(run_cli: RunCli, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    assert run_cli("report", folder).code == 0
    page = read_page(folder / "report.html")
    titles = [word for word in page.words if word.startswith("step ")]
    assert titles == ["step 20: 12.5 %", "step 40: 62.5 %", "step 10: 1.5", "step 20: 1.25"]
    points = [line["points"].split() for line in page.attributes("polyline")]
    first, last = (tuple(map(float, point.split(","))) for point in points[0])
    assert first[0] < last[0]
    assert first[1] > last[1]  # upwards on a screen


def test_runs_side_by_side(run_cli: RunCli, tmp_path: Path) -> None:
    one, other = run_folder(tmp_path / "one", 2), run_folder(tmp_path / "other", 4)
    assert run_cli("report", one, other, "--output", tmp_path / "page.html").code == 0
    page = read_page(tmp_path / "page.html")
    assert [gallery["name"] for gallery in page.galleries] == ["one", "other"] * 2
    assert "The runs differ in these settings: one other model.flow_steps 2 4" in page.text
    assert len(page.attributes("polyline")) == 4
    assert len({line["stroke"] for line in page.attributes("polyline")}) == 2


def test_images_by_class_with_their_guidance_sweep(run_cli: RunCli, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "samples"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    folder.mkdir(parents=True)
    save_images(list(pixels), folder / "images")
    write_json(folder / "labels.json", {"class_names": ["zero", HOSTILE], "labels": [0, 1, 0, 1]})
    rows = [{"guidance_scale": scale, "fid_digits": fid} for scale, fid in ((1.0, 9.5), (2.0, 4.25), (4.0, 6.0))]
    write_json(folder / "sweep.json", rows)
    assert run_cli("report", tmp_path / "run").code == 0
    page = read_page(tmp_path / "run" / "report.html")
    (gallery,) = page.galleries
    assert [item["group"] for item in gallery["items"]] == ["zero", HOSTILE, "zero", HOSTILE]
    assert gallery["pixels"] == 8
    for image, item in zip(pixels, gallery["items"], strict=True):
        content = base64.b64decode(item["picture"].partition(",")[2])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), image[:, :, 0])
    assert "2 (shown) 4.25" in page.text


def test_the_adapters_of_a_run_show_its_samples(run_cli: RunCli, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(TESTS / "data" / "before_the_move" / "run", folder)
    save_images(list(np.zeros((2, 8, 8, 1), dtype=np.uint8)), folder / "samples" / "images")
    save_images(list(np.full((2, 8, 8, 1), 255, dtype=np.uint8)), folder / "reconstructions/reconstructions/images")
    save_images(list(np.zeros((2, 8, 8, 1), dtype=np.uint8)), folder / "reconstructions/originals/images")
    result = run_cli("report", folder)
    assert result.code == 0, result.err
    page = read_page(folder / "report.html")
    assert page.headings == ["Run", "Samples", "Reconstructions", "Settings"]
    assert "modalities image" in page.text
    samples, made = page.galleries
    assert len(samples["items"]) == 2
    assert [item["numbers"] for item in made["items"]] == [{"PSNR / dB": 0.0}] * 2  # white for black
    assert all(item["original_picture"] != item["picture"] for item in made["items"])


def test_a_modality_without_a_gallery_has_settings_curves_and_pictures(run_cli: RunCli, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    Image.new("RGB", (40, 30), "white").save(folder / "samples" / "grid.png")
    (folder / "config.yaml").write_text("model: {}\n")
    (folder / "metrics.csv").write_text("step,val/curve/points\n9,3.5\n")
    assert run_cli("report", folder).code == 0
    page = read_page(folder / "report.html")
    assert len(page.attributes("img")) == 1
    assert "config.yaml" in page.text
    assert page.scripts == []


def test_a_folder_that_is_no_run_is_refused(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("words")
    result = run_cli("report", tmp_path)
    assert result.code == 2
    assert "is no run, and has no samples" in result.err


def test_runs_and_files_make_no_page_together(run_cli: RunCli, tmp_path: Path) -> None:
    result = run_cli("report", run_folder(tmp_path / "run"), SAMPLES)
    assert result.code == 2
    assert "make no page together" in result.err


def test_a_folder_of_results_alone(run_cli: RunCli, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    Image.new("RGB", (40, 30), "white").save(folder / "samples" / "grid.png")
    assert run_cli("report", folder / "samples").code == 0
    page = read_page(folder / "samples" / "report.html")
    assert page.headings == ["Metrics", "Samples"]
    assert "validity 75.0 %" in page.text
    assert run_cli("report", folder / "reconstructions").code == 0
    (made,) = read_page(folder / "reconstructions" / "report.html").galleries
    assert all(item["original"] for item in made["items"])


def test_a_folder_of_samples_is_read_once(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "samples.sdf").write_bytes(SAMPLES.read_bytes())
    (tmp_path / "samples.xyz").write_text("")
    assert run_cli("report", tmp_path).code == 0
    assert [gallery["total"] for gallery in read_page(tmp_path / "report.html").galleries] == [100]
