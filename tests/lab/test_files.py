"""Atomic writes: links, pipes, devices, errors, concurrent and killed writers, reproducible figures."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import stat
import threading

import pytest

from manyheads.lab.data import files
from manyheads.lab.data.files import PART, digest_of, remove_parts, write_atomically, write_figure


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_writing_to_a_symbolic_link_writes_its_target(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_writing_to_a_dangling_link_creates_its_target(tmp_path):
    (tmp_path / "link").symlink_to("folder/target")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "folder" / "target").read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop") as caught:
        write_atomically(tmp_path / "loop", b"new")
    assert caught.value.errno == errno.ELOOP
    assert (tmp_path / "loop").is_symlink()


def test_a_pipe_is_written_directly(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    written = False
    while not written:
        try:
            # more than the buffer of a pipe
            write_atomically(pipe, b"x" * 100_000)
            written = True
        except OSError as error:
            # ENXIO: the reader has not opened the pipe yet
            if error.errno != errno.ENXIO:
                raise
    reader.join(30)
    assert read == [b"x" * 100_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_pipe_without_a_reader_is_refused_and_kept(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe that nobody reads") as caught:
        write_atomically(tmp_path / "pipe", b"x")
    assert caught.value.filename == str(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_device_is_written_directly():
    before = os.stat("/dev/null")
    write_atomically("/dev/null", b"x")
    assert os.stat("/dev/null").st_rdev == before.st_rdev
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_full_device_is_named_in_the_error():
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically("/dev/full", b"x")
    assert caught.value.filename == "/dev/full"


def test_a_file_in_place_of_a_folder_is_named_in_the_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "below" / "x"):
        with pytest.raises(NotADirectoryError) as caught:
            write_atomically(path, b"x")
        assert caught.value.filename == str(path)


def test_a_folder_in_place_of_a_file_is_named_in_the_error(tmp_path):
    with pytest.raises(IsADirectoryError) as caught:
        write_atomically(tmp_path, b"x")
    assert caught.value.filename == str(tmp_path)


def test_an_error_while_writing_names_the_requested_path(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the temporary file")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "a", b"x")
    assert caught.value.filename == str(tmp_path / "a")
    assert names(tmp_path) == []


def test_the_mode_of_a_new_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_an_existing_file_keeps_its_mode(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o600)
    write_atomically(tmp_path / "file", b"again")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_temporary_files_of_killed_writers_are_removed_unless_locked(tmp_path):
    (tmp_path / f".file.0123abcd{PART}").write_text("half")
    (tmp_path / f".other.0123abcd{PART}").write_text("half")
    in_use = tmp_path / f".file.ffffffff{PART}"
    with open(in_use, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        write_atomically(tmp_path / "file", b"whole")
        assert names(tmp_path) == [in_use.name, f".other.0123abcd{PART}", "file"]
    remove_parts(tmp_path)
    assert names(tmp_path) == ["file"]


def _write_many(path, letter):
    for _ in range(50):
        write_atomically(path, letter * 10_000)


def test_concurrent_writers_never_mix_or_lose_a_file(tmp_path):
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write_many, args=(tmp_path / "file", letter)) for letter in (b"a", b"b", b"c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert set((tmp_path / "file").read_bytes()) in ({97}, {98}, {99})
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_figure_gives_the_same_bytes(tmp_path, suffix, monkeypatch):
    from matplotlib.figure import Figure

    written = []
    for n, day in enumerate(("0", "100000000")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", day)
        figure = Figure()
        figure.subplots().plot([1, 2, 4], label="x")
        write_figure(tmp_path / f"{n}{suffix}", figure)
        written.append((tmp_path / f"{n}{suffix}").read_bytes())
    assert written[0] == written[1]


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    with files.folder_atomically(tmp_path / "set") as part:
        (part / "a").write_text("1")
        assert not (tmp_path / "set").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert (tmp_path / "set/a").read_text() == "1"


def test_a_folder_is_removed_if_writing_it_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), files.folder_atomically(tmp_path / "set") as part:
        (part / "a").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


def test_temporary_folders_of_killed_writers_are_removed_unless_locked(tmp_path):
    orphan = tmp_path / f".set.0123{files.PART}"
    orphan.mkdir()
    (orphan / "half").write_text("1")
    with files.folder_atomically(tmp_path / "set") as mine:
        assert not orphan.exists()
        files.remove_parts(tmp_path, "set")
        assert mine.is_dir()


def test_a_digest_follows_bytes_and_names_below_its_paths(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    found = [digest_of(tmp_path / "a", tmp_path / "b"), digest_of(tmp_path / "a"), digest_of(tmp_path / "b")]
    (tmp_path / "a" / ".hidden").write_bytes(b"3")
    assert digest_of(tmp_path / "a", None, tmp_path / "absent", tmp_path / "b") == found[0]
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    found.append(digest_of(tmp_path / "a"))
    (tmp_path / "a" / "y").write_bytes(b"4")
    found.append(digest_of(tmp_path / "a"))
    assert len(set(found)) == len(found)
    assert digest_of(None, tmp_path / "absent") is None
