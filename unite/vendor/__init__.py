"""Libraries of others that are part of the package, each beside its licence. Imports nothing heavy.

| what | version | from | licence | SHA-256 |
|---|---|---|---|---|
| 3Dmol.js, ``build/3Dmol-min.js`` | 2.5.5 | npm, package ``3dmol`` | BSD-3-Clause | see :data:`VIEWER_SHA256` |
"""

from pathlib import Path
from typing import Final

VIEWER: Final = Path(__file__).parent / "3dmol" / "3Dmol-min.js"
"""3Dmol.js (Rego and Koes 2015), unchanged: it draws molecules that can be turned, as ``$3Dmol``, without a network."""

VIEWER_SHA256: Final = "f7cc78921ae72e7623e89cdd111434f58c2efddd2ffda1cd212644b406fb8016"


def viewer_script() -> str:
    """The text of 3Dmol.js, to be put between ``<script>`` and ``</script>`` of a page."""
    return VIEWER.read_text(encoding="utf-8")
