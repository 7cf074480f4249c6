"""Files that the agent writes and follows, in the hands of those who kill, cut, swap and mistake them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cilia.hubble.convert import NodeFacts
from cilia.hubble.export.exporters import Exporters, read
from cilia.hubble.export.files import RotatedFile, set_aside
from cilia.hubble.export.settings import ExportError, read_file
from cilia.hubble.metrics.follower import ConfigFollower
from cilia.kit.clock import ManualClock
from cilia.kit.files import read_regular
from cilia.kit.tls import ClientTls, TlsError, TlsFiles
from tests.support.hubble import store
from tests.support.hubble_tls import Authority

MOMENT = 1_795_408_000.5
LINE = b'{"flow":{"uuid":"a"}}\n'


class Wall:
    """A clock that can be set."""

    def __init__(self) -> None:
        self.now = MOMENT

    def __call__(self) -> float:
        return self.now


def rotated(path: Path, wall: Callable[[], float], *, compress: bool = False) -> RotatedFile:
    return RotatedFile(path, size=len(LINE), backups=2, compress=compress, wall=wall)


# -- exporters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(len(LINE)))
def test_a_killed_exporter_leaves_no_half_line_to_its_successor(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "events.log"
    path.write_bytes(LINE + LINE[:cut])
    file = RotatedFile(path, size=1 << 20, backups=2, compress=False, wall=Wall())
    file.write(LINE)
    file.close()
    whole = cut == len(LINE) - 1
    if cut == 1:
        assert path.read_bytes() == LINE + b"{\n" + LINE
    else:
        assert path.read_bytes() == LINE * (3 if whole else 2)


def test_text_of_others_is_kept_and_ended(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    path.write_bytes(b"begun by hand")
    file = RotatedFile(path, size=1 << 20, backups=2, compress=False, wall=Wall())
    file.write(LINE)
    file.close()
    assert path.read_bytes() == b"begun by hand\n" + LINE


def test_a_clock_that_is_set_back_keeps_what_is_set_aside_now(tmp_path: Path) -> None:
    wall, path = Wall(), tmp_path / "events.log"
    file = rotated(path, wall)
    for number in range(8):
        wall.now = MOMENT + number - (600 if number > 3 else 0)
        file.write(b"%d" % number + LINE[1:])
        file.tidy()
    file.close()
    assert sorted(each.read_bytes()[:1] for each in set_aside(path)) == [b"5", b"6"]


def test_half_compressed_copies_do_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    left = tmp_path / ".events-2020-01-01T00-00-00.000.log.gz.tmp"
    other = tmp_path / ".other-2020-01-01T00-00-00.000.log.gz.tmp"
    for each in (left, other):
        each.write_bytes(b"half")
    file = rotated(path, Wall(), compress=True)
    file.write(LINE)
    file.tidy()
    file.close()
    assert not left.exists() and other.exists()


def test_a_copy_that_finds_no_room_gives_its_own_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.log"
    file = rotated(path, Wall(), compress=True)
    for _ in range(3):
        file.write(LINE)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(os, "fsync", full)
        file.tidy()
    assert not list(tmp_path.glob(".*"))
    file.tidy()
    assert len(list(tmp_path.glob("*.gz"))) == 2
    file.close()


# -- what is followed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["/x//a", "/x/./a", "//x/a", "/y/../x/a"])
def test_one_file_has_one_writer_however_it_is_spelled(other: str) -> None:
    with pytest.raises(ExportError, match="written by another exporter"):
        read_file(f"flowLogs: [{{name: one, filePath: /x/a}}, {{name: two, filePath: {other}}}]")


@pytest.mark.parametrize("path", [r"/x/\0", r"/x/\n", r"/x/\e[2J"])
def test_a_path_that_no_file_can_have_is_refused(path: str) -> None:
    with pytest.raises(ExportError, match="can't be printed"):
        read_file(f'flowLogs: [{{name: one, filePath: "{path}"}}]')


def test_half_a_file_of_flow_logs_ends_no_exporter(tmp_path: Path) -> None:
    path = tmp_path / "logs.yaml"
    whole = "flowLogs:\n" + "".join(f"- {{name: e{n}, filePath: {tmp_path}/{n}.log}}\n" for n in range(3))
    path.write_text(whole)

    async def body() -> None:
        exporters = Exporters(store(), NodeFacts(name="default/node"), ManualClock(), flow_logs=path)
        await exporters.look(path)
        assert len(exporters.statuses()) == 3
        for written in ("", whole[: len(whole) // 2], whole[:-1], whole):
            path.write_text(written)
            await exporters.look(path)
            assert len(exporters.statuses()) == 3
        await exporters.look(path)
        assert not exporters.problem and not exporters.reconfigurations["remove"]
        path.write_text("flowLogs: []")
        await exporters.look(path)
        await exporters.look(path)
        assert not exporters.statuses()
        await exporters.close()

    asyncio.run(body())


def test_half_a_file_of_metrics_ends_no_metric(tmp_path: Path) -> None:
    path, taken = tmp_path / "metrics.yaml", []
    follower = ConfigFollower(path, lambda configs: taken.append(len(configs)))
    whole = "metrics: \n- {name: drop}\n- {name: tcp}\n"
    for written in (whole, "", whole[:25], whole):
        path.write_text(written)
        follower.look()
    follower.look()
    assert taken == [2] and not follower.problem and not follower.changing
    path.write_text("metrics: [{name: flow}]")
    follower.look()
    assert follower.changing
    follower.look()
    assert taken == [2, 1] and not follower.changing


def test_a_file_of_metrics_that_comes_back_is_in_force_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.yaml"
    follower = ConfigFollower(path, lambda configs: None)
    for text in ("metrics: [{name: drop}]", "metrics: [{name: drops}]"):
        path.write_text(text)
        follower.look()
        follower.look()
        before = follower.problem
        path.unlink()
        follower.look()
        assert "can't be read" in follower.problem
        path.write_text(text)
        follower.look()
        assert follower.problem == before


def stand_ins(directory: Path) -> list[Path]:
    """What may be where a file is wanted."""
    pipe, folder = directory / "pipe", directory / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    return [pipe, folder, Path("/dev/zero"), directory / "missing"]


def test_what_is_no_file_is_neither_waited_for_nor_read_without_end(tmp_path: Path) -> None:
    ours = Authority()
    files = ours.write(tmp_path / "certs", ours.client())
    for path in stand_ins(tmp_path):
        with pytest.raises(OSError):
            read_regular(path, 10)
        with pytest.raises(ExportError, match="can't be read"):
            read(path)
        follower = ConfigFollower(path, lambda configs: None)
        follower.look()
        assert "can't be read" in follower.problem
        for wrong in (
            TlsFiles(path, files.key, files.authorities),
            TlsFiles(files.certificate, path, files.authorities),
            TlsFiles(files.certificate, files.key, path),
        ):
            with pytest.raises(TlsError, match="can't be read"):
                ClientTls(wrong)


def test_huge_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ExportError, match="more than 1 MiB"):
        read(path)
    with pytest.raises(TlsError, match="more than 4 MiB"):
        ClientTls(TlsFiles(None, None, path))
    follower = ConfigFollower(path, lambda configs: None)
    follower.look()
    assert "more than 1 MiB" in follower.problem
