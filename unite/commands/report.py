"""``unite report``: one HTML file that shows runs, or a file of molecules, to be opened in a browser without a network.

Imports come with the work: a page of a file of molecules needs no torch.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unite.console import is_quiet, shown, silence_noise
from unite.errors import UserError, require
from unite.files import require_writable, write_whole
from unite.files.shipped import shipped_model
from unite.modalities.molecule.files.suffixes import STRUCTURES

if TYPE_CHECKING:
    from unite.modalities.base import ModalityAdapter
    from unite.modalities.gallery import Gallery
    from unite.report.page import Page
    from unite.report.runs import Results, Run

RESULTS = ("samples", "reconstructions")
#: What a folder of samples, or of reconstructions, has itself.
MARKS_OF_RESULTS = ("grid.png", "originals")


def report(
    paths: list[Path],
    *,
    output: Path | None = None,
    most: int = 1000,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """One HTML file that shows runs or molecules.

    The page needs no network: settings, curves and metrics with their meaning; samples and reconstructions to sort and
    filter, molecules to rotate; several runs side by side.

    Args:
        paths: Run folders, folders of samples, or SDF or XYZ files; or a model of the package that was sampled.
        output: The HTML file; default: report.html in the run folder, NAME_report.html beside a file.
        most: Largest number of samples to show of each folder or file.
        num_workers: Processes that judge molecules; default: one per CPU, at most 8.
        overwrite: Replace a file of that name that is not a report.

    Raises:
        UserError: There is no such run or file, or an option is wrong.
    """
    require(most >= 1, f"--most is {most}; it must be at least 1")
    require(num_workers is None or num_workers >= 1, f"--num_workers is {num_workers}; it must be at least 1")
    paths = [_existing(path) for path in paths]
    are_files = [_holds_molecules(path) for path in paths]
    require(len(set(are_files)) == 1, "runs and files of molecules make no page together; name the one or the others")
    file = output or _default_output(paths)
    _require_free(file, overwrite)
    page = _page_of_files(paths, most, num_workers) if are_files[0] else _page_of_runs(paths, most)
    text = page.text()
    write_whole(file, text.encode())
    print(f"wrote {shown(file)} ({file.stat().st_size / 1e6:.1f} MB); open it in a browser")


def _existing(path: Path) -> Path:
    """The path, or the folder where samples go of a model that comes with the package.

    Raises:
        UserError: There is neither.
    """
    if not path.exists() and shipped_model(path) is not None:
        samples_folder = Path("runs") / path
        hint = f"unite sample {path} -n 100"
        require(samples_folder.is_dir(), f"{path} has no samples in {samples_folder} yet; make some: {hint}")
        return samples_folder
    require(path.exists(), f"{path}: no such run folder or file")
    return path


def _holds_molecules(path: Path) -> bool:
    """Whether it is a file of molecules, or a folder with nothing but such files at its top."""
    if path.is_file():
        return path.suffix != ".ckpt"
    is_run = any((path / name).exists() for name in ("last.ckpt", "config.yaml", *RESULTS, *MARKS_OF_RESULTS))
    return not is_run and any(file.suffix.lower() in STRUCTURES for file in path.iterdir())


def _default_output(paths: list[Path]) -> Path:
    path = paths[0]
    if path.is_file() and path.suffix != ".ckpt":
        return path.parent / f"{path.stem}_{path.suffix[1:]}_report.html"
    return (path.parent if path.is_file() else path) / "report.html"


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


def _files_of(path: Path) -> list[Path]:
    """The files of a path; of our own samples, which are there twice, the SDF."""
    from unite.modalities.molecule.files.reading import find_files

    return find_files(path / "samples.sdf" if (path / "samples.sdf").is_file() else path)


def _page_of_files(files: list[Path], most: int, num_workers: int | None) -> "Page":
    """The page of files of molecules, side by side if they are several."""
    from tqdm import tqdm

    from unite.modalities.molecule.gallery import molecule_gallery
    from unite.report.elements import section
    from unite.report.metrics import metrics_tables
    from unite.report.page import Page
    from unite.runs.names import short_names

    found = {name: _files_of(file) for name, file in zip(short_names(files), files, strict=True)}
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
    return page


def _page_of_runs(paths: list[Path], most: int) -> "Page":
    """The page of run folders; samples are read by the adapters of the models that made them."""
    from unite.report.runs import page_of_runs
    from unite.runs.names import short_names

    silence_noise()
    folders = [path.parent if path.is_file() else path for path in paths]
    return page_of_runs([_read(folder, name, most) for folder, name in zip(folders, short_names(folders), strict=True)])


def _read(folder: Path, name: str, most: int) -> "Run":
    """A run, or a folder of samples, or what lies beside one of a model whose checkpoint is elsewhere.

    Raises:
        UserError: There is neither.
    """
    from unite.analysis.comparison import comparison
    from unite.commands.compare import read_metrics, read_run, without_weights
    from unite.outputs.folder import folder_name
    from unite.report.metrics import parts_of
    from unite.report.runs import Run
    from unite.runs.checkpoint_io import LAST_CHECKPOINT
    from unite.runs.folder import read_checkpoint

    if any((folder / mark).exists() for mark in MARKS_OF_RESULTS):
        run = Run(name, folder)
        found = run.reconstructions if (folder / "originals").is_dir() else run.samples
        found[""] = _results(folder, _any_gallery, most)
        return run
    run = Run(name, folder, metrics=read_metrics(folder))
    adapters: Mapping[str, ModalityAdapter] = {}
    if (folder / LAST_CHECKPOINT).is_file():
        run.facts = dict(comparison([read_run(folder, name)])["## Training"][1:])
        adapters = without_weights(read_checkpoint(folder / LAST_CHECKPOINT)["hyper_parameters"]).adapters
    readers: dict[str, Callable[..., Gallery | None]] = {key: value.gallery for key, value in adapters.items()}
    modalities = {parts_of(metric).modality for metric in run.metrics}
    readers = readers or {modalities.pop() if len(modalities) == 1 else "": _any_gallery}
    for modality, read in readers.items():
        for kind, found in zip(RESULTS, (run.samples, run.reconstructions), strict=True):
            place = folder / folder_name(kind, modality, adapters)
            if place.is_dir():
                found[modality] = _results(place, read, most)
    if not (run.facts or run.metrics or run.samples or run.reconstructions):
        raise UserError(f"{folder} is no run, and has no samples: name run folders, or SDF or XYZ files")
    return run


def _results(place: Path, read: "Callable[..., Gallery | None]", most: int) -> "Results":
    from unite.report.runs import Results

    made = place / "reconstructions"
    if not made.is_dir():
        return Results(place, read(place, None, most))
    originals = place / "originals"
    return Results(place, read(made, originals if originals.is_dir() else None, most))


def _any_gallery(folder: Path, originals: Path | None, most: int) -> "Gallery | None":
    """Samples of a model that is not there: molecules or images, by their files."""
    from unite.modalities.image.gallery import image_gallery
    from unite.modalities.molecule.gallery import folder_gallery

    return folder_gallery(folder, originals, most) or image_gallery(folder, originals, most)
