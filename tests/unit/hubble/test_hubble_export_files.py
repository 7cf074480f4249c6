"""Files of exporters: set aside when full, made anew when taken away, whole lines or nothing."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cilia.hubble.export import files
from cilia.hubble.export.files import RotatedFile, Stream, backup_name, set_aside

MOMENT = 1_795_408_000.5


def rotated(
    path: Path,
    *,
    size: int = 100,
    backups: int = 2,
    compress: bool = False,
    wall: Callable[[], float] = lambda: MOMENT,
) -> RotatedFile:
    return RotatedFile(path, size=size, backups=backups, compress=compress, wall=wall)


LINE = b"x" * 49 + b"\n"


def test_a_full_file_is_set_aside_under_the_moment(tmp_path: Path) -> None:
    path = tmp_path / "made" / "events.log"
    file = rotated(path)
    for number in range(5):
        file.write(b"%d" % number + LINE[1:])
    file.tidy()
    assert path.read_bytes()[:1] == b"4"
    names = [each.name for each in sorted(set_aside(path))]
    assert names == ["events-2026-11-23T04-26-40.500.log", "events-2026-11-23T04-26-40.501.log"]
    assert path.stat().st_mode & 0o777 == 0o600
    file.close()


def test_a_file_goes_on_where_a_predecessor_ended(tmp_path: Path) -> None:
    os.umask(0o077)  # the agent's
    path = tmp_path / "events.log"
    path.write_bytes(LINE)
    path.chmod(0o640)
    file = rotated(path)
    file.write(LINE)
    assert path.read_bytes() == LINE * 2
    file.write(LINE)
    assert path.read_bytes() == LINE
    assert path.stat().st_mode & 0o777 == 0o640
    file.close()


def test_only_so_many_backups_stay_and_others_files_do(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    strangers = [tmp_path / "events-old.log", tmp_path / "events-2026-11-23T04-26-40.500.log.bak"]
    for stranger in strangers:
        stranger.write_text("mine")
    moments = iter(range(1000))
    file = rotated(path, size=50, wall=lambda: MOMENT + next(moments))
    for _ in range(6):
        file.write(LINE)
    assert file.untidy
    file.tidy()
    assert not file.untidy
    assert sorted(set_aside(path)) == [backup_name(path, MOMENT + 3), backup_name(path, MOMENT + 4)]
    assert all(stranger.exists() for stranger in strangers)
    file.close()


def test_backups_are_compressed_also_those_of_a_predecessor(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    backup_name(path, MOMENT - 9).write_bytes(LINE)
    (tmp_path / f".{backup_name(path, MOMENT - 9).name}.gz.tmp").write_bytes(b"half")
    file = rotated(path, size=50, compress=True)
    file.write(LINE)
    file.write(LINE)
    file.tidy()
    found = sorted(set_aside(path))
    assert [each.suffix for each in found] == [".gz", ".gz"]
    assert all(gzip.decompress(each.read_bytes()) == LINE for each in found)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(
        ["events.log", *(each.name for each in found)]
    )
    file.close()


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_a_file_that_is_taken_away_is_made_anew(tmp_path: Path, how: str) -> None:
    path = tmp_path / "events.log"
    file = rotated(path)
    file.write(LINE)
    if how == "removed":
        path.unlink()
    else:
        path.rename(tmp_path / "events.log.1")
    if how == "replaced":
        path.write_bytes(b"")
    file.write(LINE)
    assert path.read_bytes() == LINE
    file.close()


def test_a_file_that_is_cut_short_goes_on_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    file = rotated(path)
    file.write(LINE)
    os.truncate(path, 0)
    file.write(LINE)
    assert path.read_bytes() == LINE
    file.close()


def test_a_write_that_fails_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.log"
    file = rotated(path)
    file.write(LINE)
    written: list[int] = []

    def write(descriptor: int, data: bytes) -> int:
        if written:
            raise OSError(28, "No space left on device")
        written.append(os.pwrite(descriptor, data[:10], 50))
        return written[0]

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space"):
            file.write(LINE)
    assert path.read_bytes() == LINE
    file.write(LINE)
    assert path.read_bytes() == LINE * 2
    file.close()


def test_a_reader_of_a_pipe_gets_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    file = rotated(path, size=50)
    with pytest.raises(OSError):
        file.write(LINE)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    data = LINE * 2000
    for _ in range(6000):
        try:
            file.write(data)
            break
        except OSError:
            reader.join(0.01)
    file.tidy()
    file.close()
    reader.join(60)
    assert got == [data]
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_that_nobody_reads_gives_up_and_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIPE_PATIENCE", 0.05)
    read, write = os.pipe()
    try:
        stream = Stream(write)
        data = LINE * 2000
        with pytest.raises(TimeoutError):
            stream.write(data)
        monkeypatch.setattr(files, "PIPE_PATIENCE", 60.0)
        with os.fdopen(os.dup(read), "rb") as reader:
            got: list[bytes] = []
            thread = threading.Thread(target=lambda: got.append(reader.read(len(data) + 4)))
            thread.start()
            stream.write(data)
            stream.write(b"end\n")
            thread.join(60)
        assert got == [data + b"end\n"]
    finally:
        os.close(read)
        os.close(write)


def test_a_batch_that_is_given_up_ends_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIPE_PATIENCE", 0.05)
    read, write = os.pipe()
    try:
        stream = Stream(write)
        with pytest.raises(TimeoutError):
            stream.write(b"a" * 100_000 + b"\n" + b"b\n")
        monkeypatch.setattr(files, "PIPE_PATIENCE", 60.0)
        got: list[bytes] = []
        with os.fdopen(os.dup(read), "rb") as reader:
            thread = threading.Thread(target=lambda: got.append(reader.read(100_001 + 4)))
            thread.start()
            stream.write(b"new\n")
            thread.join(60)
        assert got == [b"a" * 100_000 + b"\nnew\n"]
    finally:
        os.close(read)
        os.close(write)
