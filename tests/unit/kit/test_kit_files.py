"""Files are whole or not there, whatever happens to their writer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cilia.kit.files import private_directory, remove_scratch, stamp, write_atomic


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    for content in (b"one", b"another, longer one"):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_for_all_to_read_is_that_under_any_umask(tmp_path: Path, umask: int) -> None:
    os.umask(umask)
    write_atomic(tmp_path / "file", b"content", mode=0o644)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_failed_write_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()
    with pytest.raises(OSError, match="file") as failed:
        write_atomic(path, b"content")
    assert failed.value.filename
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_full_device_is_told_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(OSError, match="No space left") as failed:
        write_atomic(tmp_path / "file", b"content")
    assert failed.value.filename == str(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_scratch_of_killed_writers_goes(tmp_path: Path) -> None:
    for name in (".file.7.tmp", "file", ".lock", "file.tmp"):
        (tmp_path / name).touch()
    remove_scratch(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "file", "file.tmp"]


def test_a_directory_is_tightened(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir(mode=0o755)
    private_directory(path)
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_stamp_changes_with_each_way_to_replace_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert stamp(path) is None
    path.write_bytes(b"one")
    seen = [stamp(path)]
    assert stamp(path) == seen[0]

    path.write_bytes(b"longer")
    seen.append(stamp(path))
    write_atomic(path, b"rename")
    seen.append(stamp(path))
    os.utime(path, ns=(1, 1))
    seen.append(stamp(path))
    (tmp_path / "other").write_bytes(b"linked")
    path.unlink()
    path.symlink_to("other")
    seen.append(stamp(path))
    assert len(set(seen)) == 5
