"""Shards that unpack to far more than they are, and servers that do not answer."""

import gzip
import io
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.samples.image_samples import picture
from unite.errors import UserError
from unite.modalities.image.shards import streams
from unite.modalities.image.shards.reading import Shard, read_manifest, read_shard

NAME = "train-000000.tar"


def png() -> bytes:
    content = io.BytesIO()
    picture(0, 8, 8).save(content, "png")
    return content.getvalue()


def tar(files: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] = lambda entry: None) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            change(entry)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


GOOD = {"0.png": png(), "0.cls": b"1", "0.json": b"{}", "1.png": png(), "1.cls": b"0"}


def read(root: Path | str, num_samples: int = 2) -> list[Any]:
    return list(read_shard(str(root), Shard(NAME, num_samples, 0), 2))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_plain_and_gzipped_shards_are_read(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / NAME).write_bytes(pack(tar(GOOD)))
    assert [(sample.image, sample.label) for sample in read(tmp_path)] == [(png(), 1), (png(), 0)]


def bomb() -> bytes:
    return gzip.compress(tar({"0.png": bytes(2_000_000), "0.cls": b"1"}))


def many_small_files() -> bytes:
    return gzip.compress(
        tar({"0.png": png(), "0.cls": b"1", **{f"0.txt{number}": bytes(500_000) for number in range(10)}})
    )


def one_sample_of_many_files() -> bytes:
    return tar({f"0.{ending}": bytes(400_000) for ending in ("png", "jpg", "bmp")})


def sparse() -> bytes:
    """A file of 8 GB that is all holes."""
    entry = tarfile.TarInfo("0.png")
    entry.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % (8**11 - 1)  # its size; the places before say that no part of it is there
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def long_header() -> bytes:
    return tar({"0.png": png()}, lambda entry: setattr(entry, "pax_headers", {"comment": "x" * 600_000}))


@pytest.mark.parametrize("make", [bomb, many_small_files, one_sample_of_many_files, sparse, long_header])
def test_what_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes]
) -> None:
    monkeypatch.setattr(streams, "MAX_SAMPLE_BYTES", 1_000_000)
    monkeypatch.setattr(streams, "MAX_HEADER_BYTES", 500_000)
    (tmp_path / NAME).write_bytes(make())
    with pytest.raises(UserError, match=r"train-000000\.tar has .* \(.*(allowed|times its size)") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_manifest_nested_deeply_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        read_manifest(str(tmp_path))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()


def test_shards_are_read_from_a_web_server(server: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(tar(GOOD))
    assert len(read(server)) == 2
    with pytest.raises(UserError, match=r"cannot read http://127.*manifest\.json \(HTTP Error 404"):
        read_manifest(server)


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "TIMEOUT", 0.05)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        root = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=r"cannot read http://127.*manifest\.json \(.*timed out"):
            read_manifest(root)
        with pytest.raises(UserError, match=r"cannot read shard http://127.*timed out"):
            read(root)
