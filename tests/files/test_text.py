"""Text files, whoever wrote them."""

from pathlib import Path

import pytest

from unite.errors import UserError
from unite.files import open_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_marks_at_the_beginning_say_how_to_read_and_are_no_text(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "a.csv"
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    file.write_bytes((mark + "Größe\n1\n").encode(encoding))
    with open_text(file) as lines:
        assert list(lines) == ["Größe\n", "1\n"]


def test_another_encoding_is_refused_by_the_name_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_bytes("Größe\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"own\.csv is not text in UTF-8"), open_text(file) as lines:
        list(lines)
    with open_text(file, errors="replace") as lines:
        assert list(lines) == ["Gr\ufffd\ufffde\n"]
