"""Messages about packages that are not installed, and how to install them."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY
from unite.errors import UserError, install_hint, is_installed, require_packages

EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_what_is_installed_is_not_imported_and_not_complained_of() -> None:
    require_packages("this", "crystals", "turtle", "json.tool")
    assert "turtle" not in sys.modules


def test_the_message_names_purpose_packages_and_both_ways_to_install() -> None:
    with pytest.raises(UserError) as raised:
        require_packages("--routes adit", "scores", "json", "no_such_package.core", "neither_this")
    assert str(raised.value) == (
        "--routes adit needs no_such_package and neither_this, which are not installed: "
        'pip install "unite-lightning[scores]" (or: pip install no_such_package neither_this)'
    )
    with pytest.raises(UserError, match=r"^a needs wand_b, which is not installed: pip install wand_b$"):
        require_packages("a", None, "wand_b")


def test_packages_are_named_as_pip_knows_them() -> None:
    assert install_hint(None, "sklearn", "openbabel") == "pip install scikit-learn openbabel-wheel"


def test_a_folder_of_the_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lost_package").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_installed("lost_package")
    (tmp_path / "lost_package" / "core.py").touch()
    assert is_installed("lost_package.core"), "a namespace, as pymatgen's, has modules"


def _named_extras() -> list[tuple[str, str, str]]:
    """File, extra and module of each call in the package that names all three."""
    found = []
    for file in sorted((REPOSITORY / "unite").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                skipped = {"require_packages": 1, "install_hint": 0}.get(node.func.id)
                if skipped is not None:
                    words = [ast.unparse(item).strip("'") for item in node.args[skipped:]]
                    extra = "crystals" if words[0] == "EXTRA" else words[0]
                    found += [(file.name, extra, word) for word in words[1:] if re.fullmatch(r"[\w.]+", word)]
    return found


def test_the_extra_of_each_message_has_the_package() -> None:
    named = [item for item in _named_extras() if item[1] not in ("None", "extra")]
    assert len(named) > 12
    for file, extra, module in named:
        package = install_hint(None, module).removeprefix("pip install ")
        assert any(re.split(r"[<>=\[]", line)[0] == package for line in EXTRAS[extra]), f"{file}: {extra}, {package}"
