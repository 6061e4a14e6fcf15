"""What the commands under ``unite score`` have in common: where results go, and scores by an adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from unite.console import as_table, shown
from unite.errors import require
from unite.files import write_json
from unite.outputs.folder import new_results

if TYPE_CHECKING:
    from unite.modalities.base import FileScores, ModalityAdapter


def default_output(path: Path) -> Path:
    """A folder named after what is scored, beside it."""
    name = path.resolve().name if path.is_dir() else f"{path.stem}_{path.suffix[1:]}"
    return (path.resolve() if path.is_dir() else path.absolute()).parent / f"{name}_scores"


def say_written(written: list[Path]) -> None:
    """Name the files that a command has written."""
    for path in written:
        print(f"wrote {shown(path)}")


def score_by_adapter(
    kind: "type[ModalityAdapter]",
    path: Path,
    num_workers: int | None,
    output: Path | None,
    overwrite: bool,
    further: "Callable[[FileScores], dict[str, float]]" = lambda scores: {},
) -> None:
    """Judge files; write and print their metrics, with further ones of what is valid."""
    require(num_workers is None or num_workers >= 1, f"--num_workers is {num_workers}; it must be at least 1")
    require(path.exists(), f"{path} does not exist")
    with new_results(output or default_output(path), overwrite) as folder:
        scores = kind.score_files(path, num_workers)
        metrics = scores.metrics | further(scores)
        rejects = {"num_rejected": len(scores.rejects), "rejected": scores.rejects}
        written = [write_json(folder / "metrics.json", metrics), write_json(folder / "rejects.json", rejects)]
    print(f"{scores.num_records:,} records in {shown(path)}; denominators count every one")
    print(as_table({name: value for name, value in metrics.items() if value or not name.startswith("reject/")}))
    say_written(written)
