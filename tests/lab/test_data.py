"""The registry of data sets: the order of origins, downloads, hashes, compression and damaged files."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import http.server
import io
import lzma
import random
import threading
import zipfile

import pytest

from manyheads.core.errors import DataError, UnknownNameError
from manyheads.lab.data import registry as data
from manyheads.lab.data.registry import Dataset, Origin, decompressed, find, read, verify, where

CONTENT = b"date,a\n2024-01-01,1\n" * 500


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def dataset(*origins, content=CONTENT, **changes):
    given = {
        "name": "toy",
        "domain": "test",
        "title": "A toy",
        "licence": "CC0",
        "citation": "nobody",
        "bytes": len(content),
        "sha256": sha256(content),
        "local": "sets/toy.csv.xz",
        "origins": origins,
    }
    return Dataset(**(given | changes))


@pytest.fixture(autouse=True)
def _no_local_data(tmp_path, monkeypatch):
    monkeypatch.delenv("MANYHEADS_DATA", raising=False)
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path / "cache")


@pytest.fixture
def server():
    """A loopback HTTP server; ``files`` maps paths to contents, ``asked`` lists the requested paths."""

    class Handler(http.server.BaseHTTPRequestHandler):
        files: dict[str, bytes] = {}
        asked: list[str] = []
        announced: int | None = None

        def do_GET(self):
            self.asked.append(self.path)
            content = self.files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(self.announced or len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    made.handler = Handler
    made.url = lambda name: f"http://127.0.0.1:{made.server_port}{name}"
    yield made
    made.shutdown()
    made.server_close()


def test_the_data_folder_comes_first_compressed_or_not(tmp_path, monkeypatch, server):
    monkeypatch.setenv("MANYHEADS_DATA", str(tmp_path))
    toy = dataset(Origin("url", server.url("/toy.csv")))
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/toy.csv").write_bytes(CONTENT)
    assert (read(toy), where(toy)) == (CONTENT, str(tmp_path / "sets/toy.csv"))
    (tmp_path / "sets/toy.csv.xz").write_bytes(lzma.compress(CONTENT))
    assert (read(toy), where(toy)) == (CONTENT, str(tmp_path / "sets/toy.csv.xz"))
    assert server.handler.asked == []


def test_a_download_is_verified_and_cached(server, tmp_path):
    server.handler.files = {"/toy.csv": CONTENT}
    toy = dataset(Origin("url", server.url("/toy.csv"), sha256=sha256(CONTENT)))
    assert where(toy) is None
    assert verify(toy) == "absent"
    assert read(toy) == CONTENT
    assert read(toy) == CONTENT
    assert server.handler.asked.count("/toy.csv") == 1
    assert where(toy).startswith(str(tmp_path / "cache"))
    assert verify(toy) == "ok"


def test_a_member_of_an_archive_is_extracted(server):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("inside/toy.csv", CONTENT)
    server.handler.files = {"/toy.whl": archive.getvalue()}
    origin = Origin("url", server.url("/toy.whl"), sha256=sha256(archive.getvalue()), member="inside/toy.csv")
    assert read(dataset(origin)) == CONTENT
    absent = Origin("url", server.url("/toy.whl"), sha256=sha256(archive.getvalue()), member="inside/other.csv")
    with pytest.raises(DataError, match="truncated or damaged"):
        read(dataset(absent))


def test_a_download_with_another_hash_is_refused_and_removed(server, tmp_path):
    server.handler.files = {"/toy.csv": b"something else"}
    toy = dataset(Origin("url", server.url("/toy.csv")))
    with pytest.raises(
        DataError, match=r"does not have the expected sha256 .*: put a good copy at \$MANYHEADS_DATA/sets"
    ):
        read(toy)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_nothing_is_downloaded_without_a_hash(server):
    server.handler.files = {"/toy.csv": CONTENT}
    with pytest.raises(DataError, match="has no declared hash and is not downloaded"):
        read(dataset(Origin("url", server.url("/toy.csv")), sha256=None))
    assert server.handler.asked == []


def test_origins_are_tried_in_order_and_the_error_names_all(server):
    server.handler.files = {"/good.csv": CONTENT}
    first = Origin("url", server.url("/none.csv"))
    assert read(dataset(first, Origin("url", server.url("/good.csv")))) == CONTENT
    gone = Origin("url", "http://127.0.0.1:9/none.csv")
    with pytest.raises(DataError, match=r"looked at \$MANYHEADS_DATA \(not set\), .*none.csv .*9/none.csv .*: by hand"):
        read(dataset(first, gone, Origin("manual", "by hand"), content=b"other"))


def test_an_interrupted_download_is_removed(server, tmp_path):
    server.handler.files = {"/toy.csv": CONTENT[:100]}
    server.handler.announced = len(CONTENT)
    try:
        with pytest.raises(DataError, match="was not found; looked at"):
            read(dataset(Origin("url", server.url("/toy.csv"))))
    finally:
        server.handler.announced = None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: put a good copy"),
        (lzma.compress(CONTENT)[:-30], "is truncated or damaged"),
        (b"\xfd7zXZ\x00garbage", "is truncated or damaged"),
        (lzma.compress(CONTENT + b"x"), "is not the published toy: its content has sha256"),
        (CONTENT[:-1], "is not the published toy"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path, monkeypatch, content, message):
    monkeypatch.setenv("MANYHEADS_DATA", str(tmp_path))
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/toy.csv.xz").write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read(dataset())
    assert "toy.csv.xz" in str(raised.value)
    assert message[:12] in verify(dataset())


def test_decompression_stops_at_the_declared_size(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYHEADS_DATA", str(tmp_path))
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/toy.csv.xz").write_bytes(lzma.compress(bytes(50 << 20)))
    seen = []
    monkeypatch.setattr(data, "_check", lambda dataset, content, place: seen.append(len(content)))
    read(dataset())
    assert seen == [len(CONTENT) + 1]


def test_a_data_set_that_is_an_archive_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYHEADS_DATA", str(tmp_path))
    archive = _zipped(CONTENT, ("a.csv", "b.csv"))
    (tmp_path / "toy.zip").write_bytes(archive)
    assert read(dataset(content=archive, local="toy.zip")) == archive


def test_find_accepts_names_and_aliases_and_suggests_the_nearest():
    toys = [dataset(aliases=("t",)), dataset(name="other")]
    assert find("t", toys) is toys[0]
    with pytest.raises(UnknownNameError, match="did you mean 'other'"):
        find("othr", toys)


def _zipped(content, names=("my.csv",)):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return out.getvalue()


PACKED = {"gzip": gzip.compress, "xz": lzma.compress, "bzip2": bz2.compress, "zip": _zipped, "none": bytes}


@pytest.mark.parametrize("kind", PACKED)
def test_compression_is_recognised_by_content(kind):
    assert decompressed(PACKED[kind](CONTENT), "my.csv") == CONTENT


@pytest.mark.parametrize("kind", [kind for kind in PACKED if kind != "none"])
def test_a_damaged_compressed_file_is_refused_or_reads_the_same(kind):
    whole, rng = PACKED[kind](CONTENT), random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        for raw in (bytes(damaged), whole[: rng.randrange(6, len(whole))]):
            try:
                content = decompressed(raw, "my.csv")
            except DataError:
                continue
            # the bit is unused, or it belongs to the signature of the compression
            assert content in (CONTENT, raw)


def test_unsupported_archives_are_refused_with_their_kind():
    for raw, message in (
        (_zipped(CONTENT, ("a.csv", "b.csv")), "found 2 files in the zip"),
        (_zipped(CONTENT, ("xl/workbook.xml", "xl/styles.xml")), "found an Excel workbook"),
        (b"\x28\xb5\x2f\xfd" + CONTENT, "found Zstandard compression"),
    ):
        with pytest.raises(DataError, match=f"my.csv: {message}"):
            decompressed(raw, "my.csv")
