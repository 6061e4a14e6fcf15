"""Images in tar shards (WebDataset's format) with a manifest, for sets too large for a folder or kept elsewhere.

The manifest says how many samples each shard has. So the share of every process and worker is known beforehand, to the
sample: all get equally many batches, no sample comes twice in an epoch, a resumed epoch goes on where it stopped, and a
shard that is truncated or missing is noticed instead of quietly making the data set smaller.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from unite.errors import UserError
from unite.files import MAX_JSON_BYTES, parse_json
from unite.files.checked_json import CHECKSUM, DamagedFileError, with_checksum, without_checksum
from unite.modalities.captions import as_caption
from unite.modalities.image.shards.streams import local_path, open_url, tar_files
from unite.modalities.image.suffixes import IMAGE_SUFFIXES

MANIFEST = "manifest.json"
FORMAT = "unite image shards 1"


@dataclass(frozen=True)
class Shard:
    """A tar file of samples: for each an image, and its class as a number in a file of the same name that ends in .cls.

    A file of that name that ends in .txt is the caption of the image.

    Attributes:
        name: File name.
        num_samples: Samples in it.
        num_bytes: Size of the file.
        sha256: Of the file, not packed; empty if it is not known.
    """

    name: str
    num_samples: int
    num_bytes: int
    sha256: str = ""


@dataclass(frozen=True)
class Manifest:
    """What a set of shards holds.

    Attributes:
        class_names: Names of the classes; a label is a place in this list.
        image_size: Pixels of a side of the images, or None if they are of many sizes.
        splits: Shards of each split.
        plan: Fingerprint of the files and settings that the shards were made from.
        skipped: Images left out because they could not be used.
    """

    class_names: list[str]
    image_size: int | None
    splits: dict[str, list[Shard]]
    plan: str = ""
    skipped: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The content of manifest.json."""
        return json.dumps(with_checksum({"format": FORMAT, **asdict(self)}), indent=1)

    @classmethod
    def from_json(cls, text: str, name: str) -> Self:
        """Inverse of :meth:`to_json`.

        Raises:
            UserError: The text is damaged, or no manifest.
        """
        try:
            values = without_checksum(parse_json(text))
            if values.pop("format") != FORMAT:
                raise ValueError
            values["splits"] = {
                split: [Shard(**shard) for shard in shards] for split, shards in values["splits"].items()
            }
            manifest = cls(**{**values, "skipped": tuple(values["skipped"])})
            shard_names = [str(shard.name) for shards in manifest.splits.values() for shard in shards]
        except DamagedFileError as error:
            raise UserError(
                f"{name} is damaged, or no manifest ({error}); make the shards anew, or take out {CHECKSUM} if you "
                "changed it"
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{name} is damaged, or no manifest of this version; make the shards anew") from error
        for shard_name in shard_names:
            # It becomes part of a path, a URL, or, with `pipe:`, of a command.
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", shard_name):
                raise UserError(f"{name} names a shard {shard_name!r}; names are of letters, digits, _, . and -")
        return manifest


def locate(root: str, name: str) -> str:
    """Path or URL of a file of a set of shards; `root` is a folder, a URL, or has `{}` in the place of the name."""
    return root.replace("{}", name) if "{}" in root else f"{root.rstrip('/')}/{name}"


def read_manifest(root: str) -> Manifest:
    """The manifest of a set of shards.

    Raises:
        UserError: It is missing, damaged, or of another version.
    """
    url = locate(root, MANIFEST)
    try:
        with open_url(url) as stream:
            text = stream.read(MAX_JSON_BYTES + 1).decode()
    except Exception as error:  # each kind of remote storage fails in its own way
        raise UserError(
            f"cannot read {url} ({_first_line(error)}); set data.root to what unite prepare images wrote"
        ) from error
    return Manifest.from_json(text, url)


def require_shards(root: str, shards: list[Shard]) -> None:
    """Check that shards on this machine are there in full; those elsewhere are checked as they are read.

    Raises:
        UserError: A shard is missing, or its size is not that of the manifest.
    """
    for shard in shards:
        path = local_path(locate(root, shard.name))
        if path is None:
            continue
        if not path.is_file():
            raise UserError(f"shard {path} is missing; copy it again, or repeat unite prepare images")
        if (num_bytes := path.stat().st_size) != shard.num_bytes:
            raise UserError(
                f"shard {path} has {num_bytes} bytes, but the manifest says {shard.num_bytes}: it is truncated or "
                "was replaced; copy it again, or repeat unite prepare images"
            )


class RawSample(NamedTuple):
    """A sample as its shard has it."""

    name: str
    image: bytes
    label: int
    caption: str | None = None


def read_shard(root: str, shard: Shard, num_classes: int, captions: bool = False) -> Iterator[RawSample]:
    """The samples of a shard, one after another.

    Args:
        root: Folder or URL of the shards.
        shard: Which of them.
        num_classes: Labels must be smaller.
        captions: Whether to read captions.

    Raises:
        UserError: The shard is missing, damaged or has another number of samples than the manifest says, or a
            sample lacks its image or has a label outside the range.
    """
    from webdataset.tariterators import group_by_keys

    url = locate(root, shard.name)
    num_found = 0
    try:
        with open_url(url) as stream:
            wanted = (*IMAGE_SUFFIXES, ".cls", *([".txt"] if captions else []))
            files = tar_files(stream, wanted, shard.sha256)
            for sample in group_by_keys({**file, "__url__": url} for file in files):
                num_found += 1
                yield _raw_sample(sample, f"{url}:{sample['__key__']}", num_classes)
    except UserError:
        raise
    except DamagedFileError as error:
        raise UserError(f"shard {url} is damaged ({error}); copy it again, or repeat unite prepare images") from error
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{_shard_error(url, shard, num_found)} ({_first_line(error)})") from error
    except Exception as error:  # each kind of remote storage fails in its own way
        raise UserError(f"cannot read shard {url} ({_first_line(error)}); copy it again, or set data.root") from error
    if num_found != shard.num_samples:
        raise UserError(_shard_error(url, shard, num_found))


def _shard_error(url: str, shard: Shard, num_found: int) -> str:
    return (
        f"shard {url} has {num_found} whole samples, but the manifest says {shard.num_samples}: it is truncated or was "
        "replaced; copy it again, or repeat unite prepare images"
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _raw_sample(sample: dict[str, Any], name: str, num_classes: int) -> RawSample:
    image = next((sample[suffix[1:]] for suffix in IMAGE_SUFFIXES if suffix[1:] in sample), None)
    if image is None or "cls" not in sample:
        found = ", ".join(sorted(key for key in sample if not key.startswith("__")))
        raise UserError(f"sample {name} has {found}, but needs an image and .cls; make the shards anew")
    try:
        label = int(sample["cls"])
    except ValueError:
        label = -1
    largest = max(num_classes - 1, 0)  # 0 is also the label of images without classes
    if not 0 <= label <= largest:
        raise UserError(
            f"sample {name} has the label {sample['cls'].decode(errors='replace').strip()!r}, but labels are "
            f"0 .. {largest}; make the shards anew"
        )
    return RawSample(name, image, label, as_caption(sample.get("txt", b""), name))
