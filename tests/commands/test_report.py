"""``unite report`` as a user types it."""

from pathlib import Path

import pytest

from tests.support.commands import RunCli
from tests.support.pages import read_page
from tests.support.paths import REPOSITORY

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
def test_wrong_input_is_refused(run_cli: RunCli, tmp_path: Path, args: tuple[str, ...], words: str) -> None:
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
