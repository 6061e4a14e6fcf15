"""How tables and pages call runs. Imports nothing heavy."""

from collections.abc import Sequence
from pathlib import Path

from unite.errors import require


def short_names(paths: Sequence[Path]) -> list[str]:
    """Names of run folders or files: as many of the last parts of their paths as tell them apart.

    Raises:
        UserError: One is named twice.
    """
    resolved = [path.resolve() for path in paths]
    for path in resolved:
        require(resolved.count(path) <= 1, f"{path} is named twice; name each once")
    for length in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-length:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("paths that differ have names that differ")
