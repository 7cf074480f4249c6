"""A writer that is killed again and again leaves whole files, and nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cilia.hubble.history import codec
from cilia.hubble.history.shelf import Shelf
from tests.support.hubble import DTYPE, NODE, WALL, events, flow, store

pytestmark = pytest.mark.timeout(90)
KILLS = 2
REPOSITORY = Path(__file__).resolve().parents[3]


async def write_for_ever(path: Path) -> None:
    """Seal block after block, and merge them."""
    from cilia.hubble.history.keeper import History
    from cilia.hubble.history.settings import HistorySettings
    from cilia.kit.clock import ManualClock
    from cilia.kit.tasks import TaskGroup

    flows = store(1 << 15)
    settings = HistorySettings(directory=path, block=64, merged=512, interval=0.002)
    history = History(flows, NODE.name, settings, ManualClock(wall=WALL / 1e9 + 1))
    await history.open()
    async with TaskGroup() as tasks:
        history.start(tasks)
        said = False
        while True:
            if history.reach > 100 and not said:
                said = True
                print("writing", flush=True)
            flows.append([events(*(flow(flows.head + number) for number in range(3)))], offset=WALL)
            await asyncio.sleep(0.001)


def test_a_killed_writer_leaves_whole_files(tmp_path: Path) -> None:
    for kill in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, __file__, tmp_path],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
        time.sleep(0.05 + 0.13 * kill)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    shelf = Shelf(tmp_path)
    shelf.open()
    assert not list(tmp_path.glob(".*"))
    seen: dict[int, list[int]] = {}
    for title in shelf.titles:
        with contextlib.closing(codec.SealedFile(shelf.path(title), DTYPE)) as file:
            numbers = file.block().rows.numbers.tolist()
        assert len(numbers) == title.rows
        seen.setdefault(title.boot, []).extend(numbers)
    assert len(seen) == KILLS
    for numbers in seen.values():
        assert numbers == list(range(len(numbers)))


if __name__ == "__main__":
    asyncio.run(write_for_ever(Path(sys.argv[1])))
