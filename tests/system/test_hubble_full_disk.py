"""A disk that is really full: what writes flows says so once, counts, and goes on when there is room."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from structlog.testing import capture_logs

from cilia.hubble.export.exporters import Exporters
from cilia.hubble.export.settings import ExportSettings
from cilia.hubble.history.keeper import History
from cilia.hubble.history.settings import HistorySettings
from cilia.hubble.store import FlowStore
from cilia.kit.clock import SystemClock
from cilia.kit.tasks import TaskGroup
from tests.support.hubble import NODE, WALL, events, flow, store
from tests.support.waiting import until_async

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a small tmpfs"),
    pytest.mark.timeout(60),
]

DISK = 256 << 10


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A full one; `make_room` takes away what fills it."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "cilia-test", str(small)]
    subprocess.run(mount, check=True)
    try:
        (small / "filler").mkdir()
        (small / "filler" / "bytes").write_bytes(bytes(DISK))
        yield small
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def make_room(disk: Path) -> None:
    (disk / "filler" / "bytes").unlink()


def arrive(flows: FlowStore, count: int) -> None:
    first = flows.head
    flows.append([events(*(flow(number) for number in range(first, first + count)))], offset=WALL)


def said(logs: list[Any], words: str) -> int:
    return sum(words in entry["event"] for entry in logs)


def test_history_goes_on_when_there_is_room(disk: Path) -> None:
    flows = store(64)
    (disk / "flows").mkdir(mode=0o700)
    settings = HistorySettings(directory=disk / "flows", block=16, interval=0.005)

    async def run() -> None:
        async with TaskGroup() as tasks:
            history = History(flows, NODE.name, settings, SystemClock())
            await history.open()
            history.start(tasks)
            arrive(flows, 40)
            await until_async(lambda: history.numbers().failures > 2)
            numbers = history.numbers()
            assert numbers.problem == f"{disk}/flows can't be written (No space left on device)"
            assert (numbers.files, numbers.lost) == (0, 0)
            assert not list((disk / "flows").iterdir()), "nothing half made takes room"
            arrive(flows, 40)
            make_room(disk)
            await until_async(lambda: history.reach >= 80)
            numbers = history.numbers()
            assert (numbers.problem, numbers.lost, numbers.rows) == ("", 16, 64)
            await history.close()

    with capture_logs() as logs:
        asyncio.run(run())
    assert said(logs, "flows can't be written to history") == 1
    assert said(logs, "flows are written to history again") == 1
    columns = [pq.read_table(path, columns=["number"]) for path in (disk / "flows").glob("flows-*")]
    found = np.sort(np.concatenate([np.asarray(each["number"]) for each in columns]))
    assert found.tolist() == list(range(16, 80))


def test_an_exporter_goes_on_when_there_is_room(disk: Path) -> None:
    flows, path = store(64), disk / "events.log"

    async def run() -> None:
        exporters = Exporters(flows, NODE, SystemClock(), static=ExportSettings(path=str(path)))
        async with TaskGroup() as tasks:
            exporters.start(tasks)
            await asyncio.sleep(0)
            arrive(flows, 40)
            await until_async(lambda: exporters.statuses()[0].failures > 2)
            status = exporters.statuses()[0]
            assert status.problem == f"{path} can't be written (No space left on device)"
            assert (status.state, status.lines, path.stat().st_size) == ("failing", 0, 0)
            arrive(flows, 40)
            make_room(disk)
            await until_async(lambda: exporters.statuses()[0].waiting == 0)
            status = exporters.statuses()[0]
            assert (status.state, status.problem, status.lines, status.lost) == ("active", "", 80, 0)
            await exporters.close()

    with capture_logs() as logs:
        asyncio.run(run())
    assert said(logs, "flows wait to be exported") == 1
    assert said(logs, "flows are exported again") == 1
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    shown = [line["flow"]["l4"]["TCP"]["source_port"] - 10_000 for line in lines]
    assert shown == list(range(80))
