"""The page as text: nothing from outside runs or is fetched, and its data comes back as it was put in."""

import base64
import hashlib
import re
from pathlib import Path

import pytest

from tests.support.pages import Page as ReadPage
from unite.files import write_json
from unite.modalities.gallery import Gallery, Item, Scene
from unite.report.elements import Html, element, joined, section, table
from unite.report.metrics import metrics_tables
from unite.report.page import Page
from unite.report.runs import _asked
from unite.report.settings import settings_parts
from unite.vendor import VIEWER, VIEWER_SHA256

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
SCENE = Scene(["O", "H", "H"], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [(0, 1, 1), (0, 2, 1)], marked=[1])


def page_with(*items: Item) -> ReadPage:
    page = Page(HOSTILE, HOSTILE)
    page.add(section("Samples", page.gallery({HOSTILE: Gallery("molecules", items, 7)}), lead=HOSTILE))
    page.add(section(HOSTILE, *metrics_tables({HOSTILE: {HOSTILE: 1.0, f"val/{HOSTILE}/validity": 0.5}})))
    return ReadPage(page.text())


def test_texts_of_others_stay_texts() -> None:
    page = page_with(Item(HOSTILE, "", HOSTILE, remarks=[HOSTILE], group=HOSTILE, scene=SCENE))
    assert page.attributes("img") == []
    assert all("alert" not in script or "alert(1)" not in script for script in page.scripts)
    assert "alert(1)" in page.text  # it is shown, as a text
    assert page.galleries[0]["items"][0]["name"] == HOSTILE


def test_only_the_scripts_of_the_page_may_run_and_nothing_is_fetched() -> None:
    page = page_with(Item("water", "", scene=SCENE))
    policy = next(meta["content"] for meta in page.attributes("meta") if "http-equiv" in meta)
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    assert rules["default-src"] == ["'none'"]
    assert set(rules["img-src"]) == {"data:", "blob:"}
    running = [
        script for script, attributes in zip(page.scripts, page.attributes("script"), strict=True) if not attributes
    ]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in running]
    assert len(digests) == 3
    assert rules["script-src"] == [f"'sha256-{digest}'" for digest in digests]
    for tag, attributes in page.elements:
        assert not {"src", "href"} & attributes.keys(), tag
        assert not any(name.startswith("on") for name in attributes), tag


def test_the_data_comes_back() -> None:
    item = Item("water", "<svg/>", "valid", numbers={"atoms": 3.0}, scene=SCENE)
    gallery = page_with(item).galleries[0]
    assert (gallery["total"], gallery["noun"]) == (7, "molecules")
    found = gallery["items"][0]
    assert found["numbers"] == {"atoms": 3.0}
    assert found["scene"]["bonds"] == [[0, 1, 1], [0, 2, 1]]
    assert found["scene"]["marked"] == [1]
    assert found["original"] is None


def test_the_viewer_is_there_only_for_what_can_be_turned() -> None:
    viewer = VIEWER.read_text()
    assert viewer in page_with(Item("water", "", scene=SCENE)).scripts
    assert viewer not in page_with(Item("3", "data:image/png;base64,")).scripts
    assert ReadPage(Page("empty").text()).scripts == []


def test_the_viewer_is_the_file_that_was_published() -> None:
    assert hashlib.sha256(VIEWER.read_bytes()).hexdigest() == VIEWER_SHA256
    licence = (VIEWER.parent / "LICENSE").read_text()
    assert "3dmol v2.5.5" in licence
    assert "BSD-3-Clause" in licence


def test_no_script_ends_early() -> None:
    page = page_with(Item("water", "", scene=SCENE))
    assert not any(re.search("<!--|</script", script) for script in page.scripts)


def test_elements_escape_what_is_no_html() -> None:
    assert element("p", "a < b", Html("<b>c</b>"), class_='"') == '<p class="&quot;">a &lt; b<b>c</b></p>'
    assert joined("&", Html("&amp;")) == "&amp;&amp;"
    assert "<td>&lt;1</td>" in table(["", "x"], [["row", "<1"]])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("val/molecule/validity", 0.783, "78.3 %"),
        ("validity", 0.9997, "99.97 %"),
        ("rmsd", 0.02134, "0.02134 Å"),
        ("test/image/fid_digits", 12.3456, "12.35"),
        ("val/curve/of_my_own", 3.0, "3"),
    ],
)
def test_numbers_are_written_as_what_they_are(name: str, value: float, expected: str) -> None:
    text = "".join(metrics_tables({"run": {name: value}}))
    assert f">{expected}</td>" in text


def test_runs_of_other_settings_tell_them() -> None:
    few = {"a": "x: 1\ny: {z: [1, 2]}\n", "b": "x: 1\ny: {z: [1, 3]}\n"}
    assert "The runs differ in these settings:" in "".join(settings_parts(few))
    assert ">y.z</th><td>[1, 2]</td><td>[1, 3]</td>" in "".join(settings_parts(few))
    assert "The runs have the same settings." in "".join(settings_parts({"a": "x: 1", "b": "x: 1"}))
    many = {name: "\n".join(f"{name}{number}: 1" for number in range(20)) for name in "ab"}
    assert "<summary>The runs differ in 40 settings</summary>" in "".join(settings_parts(many))


def test_a_run_without_a_metric_has_a_dash() -> None:
    text = "".join(metrics_tables({"a": {"validity": 0.5}, "b": {"rmsd": float("nan")}}))
    assert text.count(">–</td>") == 3  # noqa: RUF001


def test_a_page_says_what_samples_were_asked_to_be(tmp_path: Path) -> None:
    assert _asked("", tmp_path) == []
    asked = {"targets": {"gap": 5.0}, "sizes": [8, 9], "prompt": ["a ring"], "guidance_scale": 2.0}
    write_json(tmp_path / "conditions.json", asked)
    write_json(tmp_path / "only.json", {"only": "valid", "num_accepted": 61, "num_drawn": 69})
    (told,) = _asked("run", tmp_path)
    expected = "gap = 5; “a ring”; sizes 8, 9; guidance scale 2; only valid ones: 61 of 69 drawn were."
    assert f"run: Asked for: {expected}" in str(told)
