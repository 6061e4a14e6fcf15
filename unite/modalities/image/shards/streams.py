"""Bytes of shards from anywhere, and the files in them, of which none may be larger than it looks.

Own code where webdataset's opens whatever comes: it unpacks without a limit, so that 3 MB become 6 GB in memory, and
waits for ever for a server that does not answer.
"""

import gzip
import hashlib
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self
from urllib.error import HTTPError
from urllib.request import urlopen

from unite.files.checked_json import DamagedFileError

MAX_SAMPLE_BYTES: Final = 2**28
"""Most bytes of the files of one sample, 256 MiB: an image of ten thousand pixels a side without compression."""

MAX_RATIO: Final = 100
"""Most bytes that a packed byte of a shard may unpack to, on average; images are packed already."""

MAX_HEADER_BYTES: Final = 2**20
"""Most bytes of a tar header, of which long names are kept."""

TIMEOUT: Final = 60.0  # s that a server may be silent
ATTEMPTS: Final = 3

_GZIP: Final = b"\x1f\x8b"
_META: Final = r"__[^/]*__($|/)"  # what WebDataset keeps for itself


def local_path(url: str) -> Path | None:
    """The path that a URL stands for, or None if it is not on this machine."""
    if url.startswith("file:"):
        return Path(url.removeprefix("file:").removeprefix("//"))
    return None if "://" in url or url.startswith("pipe:") else Path(url)


def open_url(url: str) -> Any:
    """A stream of bytes from a file, a web server, a command (`pipe:...`), or by whatever else webdataset knows.

    Raises:
        OSError: It is not there, or the server does not answer in time.
    """
    if path := local_path(url):
        return path.open("rb")
    if url.startswith(("http://", "https://")):
        return _open_web(url)
    from webdataset.gopen import gopen  # slow to import

    return gopen(url)


def _open_web(url: str) -> Any:
    for attempt in range(ATTEMPTS):
        try:
            return urlopen(url, timeout=TIMEOUT)
        except OSError as error:
            is_final = isinstance(error, HTTPError) and error.code < 500  # not there, or not allowed
            if is_final or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError  # the last attempt has returned or raised


def tar_files(stream: Any, wanted: tuple[str, ...], sha256: str = "") -> Iterator[dict[str, Any]]:
    """The files of a tar archive, plain or gzipped, one after another, as webdataset has them: `fname` and `data`.

    Args:
        stream: The archive.
        wanted: Endings of the files whose contents matter; others are yielded empty.
        sha256: Checksum of the archive, not packed, that is compared behind the last file; empty for none.

    Raises:
        DamagedFileError: The checksum does not match.
        tarfile.TarError: It is damaged, or its files are larger than allowed.
        OSError: It is damaged, or cannot be read.
    """
    packed = _Counted(stream)
    is_packed = packed.starts_with(_GZIP)
    unpacked = _Counted(gzip.GzipFile(fileobj=packed), packed) if is_packed else packed  # type: ignore[call-overload]
    num_bytes, sample = 0, ""
    with tarfile.open(fileobj=unpacked, mode="r|", tarinfo=_Member) as archive:  # type: ignore[call-overload]
        for member in archive:
            archive.members = []
            if not member.isreg() or re.match(_META, member.name):
                continue
            if not member.name.lower().endswith(wanted):
                yield {"fname": member.name, "data": b""}
                continue
            name = re.sub(r"\.[^/]*$", "", member.name)
            num_bytes, sample = member.size + (num_bytes if name == sample else 0), name
            if num_bytes > MAX_SAMPLE_BYTES:
                raise tarfile.ReadError(f"{member.name} has {num_bytes:,} bytes; {MAX_SAMPLE_BYTES:,} are allowed")
            yield {"fname": member.name, "data": archive.extractfile(member).read()}
        if sha256 and unpacked.checksum() != sha256:
            raise DamagedFileError("its checksum does not match")


class _Member(tarfile.TarInfo):
    """An entry of an archive whose headers have a limit: tarfile reads them into memory, however long they are."""

    def _proc_member(self, archive: tarfile.TarFile) -> Self:
        kinds = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
        if self.type in (*kinds, tarfile.SOLARIS_XHDTYPE) and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header has {self.size:,} bytes; {MAX_HEADER_BYTES:,} are allowed")
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]


class _Counted:
    """A stream that counts what is read, and refuses to give far more than another one has given for it.

    Args:
        stream: The stream.
        source: What it unpacks, if it does.
    """

    def __init__(self, stream: Any, source: "_Counted | None" = None) -> None:
        self.stream = stream
        self.source = source
        self.num_bytes = 0
        self.head = b""
        self._digest = hashlib.sha256()

    def starts_with(self, mark: bytes) -> bool:
        """Whether it begins so, which is not lost by looking."""
        while len(self.head) < len(mark) and (more := self.stream.read(len(mark) - len(self.head))):
            self.head += more
        return self.head == mark

    def read(self, size: int) -> bytes:
        """Read at most so many bytes.

        Raises:
            tarfile.ReadError: It unpacks to far more than it should.
        """
        data: bytes = self.head[:size] if self.head else self.stream.read(size)
        self.head = self.head[size:]
        self.num_bytes += len(data)
        if self.source and self.num_bytes > max(MAX_SAMPLE_BYTES, MAX_RATIO * self.source.num_bytes):
            raise tarfile.ReadError(f"it unpacks to more than {MAX_RATIO} times its size")
        self._digest.update(data)
        return data

    def checksum(self) -> str:
        """SHA-256 of the stream, of which the rest is read."""
        while self.read(MAX_HEADER_BYTES):
            pass
        return self._digest.hexdigest()
