"""``unite report``: one HTML file that shows runs, or a file of molecules, to be opened in a browser without a network.

Imports come with the work: a page of a file of molecules needs no torch.
"""

from pathlib import Path

from unite.console import is_quiet, shown
from unite.errors import UserError, require
from unite.files import require_writable, write_whole

MOLECULE_SUFFIXES = (".sdf", ".sd", ".mol", ".xyz", ".extxyz")


def report(
    paths: list[Path],
    *,
    output: Path | None = None,
    most: int = 1000,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """One HTML file that shows runs or molecules.

    It needs no network: settings, curves and metrics with their meaning; samples and reconstructions to be sorted and
    filtered, molecules to be turned; several runs side by side.

    Args:
        paths: Run folders, or SDF or XYZ files.
        output: The HTML file; default: report.html in the run folder, NAME_report.html beside a file.
        most: Samples to show of each folder or file, from the first.
        num_workers: Processes that judge molecules; default: one per CPU, at most 8.
        overwrite: Replace a file of that name that is no report.

    Raises:
        UserError: There is no such run or file, or an option is wrong.
    """
    require(most >= 1, f"--most is {most}; it must be at least 1")
    require(num_workers is None or num_workers >= 1, f"--num_workers is {num_workers}; it must be at least 1")
    for path in paths:
        require(path.exists(), f"{path}: no such run folder or file")
    file = output or _default_output(paths)
    _require_free(file, overwrite)
    text = _page_of_files(paths, most, num_workers)
    write_whole(file, text.encode())
    print(f"wrote {shown(file)} ({file.stat().st_size / 1e6:.1f} MB); open it in a browser")


def _default_output(paths: list[Path]) -> Path:
    path = paths[0]
    if path.is_file():
        return path.parent / f"{path.stem}_{path.suffix[1:]}_report.html"
    return path / "report.html"


def _require_free(file: Path, overwrite: bool) -> None:
    """Let a report be replaced, and anything else only when that is asked for.

    Raises:
        UserError: The file cannot be written, or something else is there.
    """
    require(file.suffix.lower() in (".html", ".htm"), f"--output is {file}; it must be an .html file")
    require_writable(file.parent, "choose another --output")
    require(not file.is_dir(), f"--output {file} is a folder; name an .html file")
    if file.is_file() and not overwrite and b'name="generator" content="unite' not in file.read_bytes()[:4000]:
        raise UserError(f"{file} is there and is no report; add --overwrite to replace it, or choose another --output")


def _page_of_files(files: list[Path], most: int, num_workers: int | None) -> str:
    """The page of files of molecules, side by side if they are several."""
    from tqdm import tqdm

    from unite.modalities.molecule.files.reading import find_files
    from unite.modalities.molecule.gallery import molecule_gallery
    from unite.report.elements import section
    from unite.report.metrics import metrics_tables
    from unite.report.page import Page
    from unite.runs.names import short_names

    found = {name: find_files(file) for name, file in zip(short_names(files), files, strict=True)}
    galleries, columns = {}, {}
    with tqdm(desc="report", unit="mol", leave=False, disable=is_quiet() or None) as bar:
        for name, parts in found.items():
            gallery, scores = molecule_gallery(parts, most=most, num_workers=num_workers, on_record=bar.update)
            if gallery.total == 0:
                raise UserError(f"{name} has no molecules")
            galleries[name] = gallery
            if scores is not None:
                columns[name] = scores.metrics()
    total = sum(gallery.total for gallery in galleries.values())
    page = Page(", ".join(found), f"{total:,} molecules")
    page.add(section("Molecules", page.gallery(galleries), lead="Click a card to see the molecule; drag to turn it."))
    if columns:
        page.add(section("Metrics", *metrics_tables(columns), lead=""))
    return page.text()
