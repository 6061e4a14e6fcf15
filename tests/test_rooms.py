"""The rooms of the package stay small enough to be looked through."""

import inspect

import pytest

from tests.support.paths import REPOSITORY
from unite import UniteModule
from unite.commands.model.lightning_cli import UniteCLI

FOLDERS = sorted(
    {
        file.parent.relative_to(REPOSITORY).as_posix()
        for top in ("unite", "tests")
        for file in (REPOSITORY / top).rglob("*.py")
    }
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_room_has_at_most_fourteen_files_and_the_root_twelve(folder: str) -> None:
    files = sorted(file.name for file in (REPOSITORY / folder).glob("*.py"))

    assert len(files) <= (12 if folder == "unite" else 14), f"{folder} has {len(files)} files: {', '.join(files)}"


def test_a_file_of_the_package_has_at_most_four_hundred_lines() -> None:
    files = sorted((REPOSITORY / "unite").rglob("*.py"))
    lines = {
        file.relative_to(REPOSITORY).as_posix(): len(file.read_text(encoding="utf-8").splitlines()) for file in files
    }

    assert not {name: number for name, number in lines.items() if number > 400}


@pytest.mark.parametrize(("kind", "most"), [(UniteModule, 400), (UniteCLI, 150)])
def test_the_classes_that_others_begin_to_read_with_stay_short(kind: type, most: int) -> None:
    assert len(inspect.getsource(kind).splitlines()) <= most
