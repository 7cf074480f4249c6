"""Exporters at work: every flow is in the file once, or counted as lost."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cilia.hubble.convert import Converter
from cilia.hubble.export import exporter as exporter_module
from cilia.hubble.export import exporters as exporters_module
from cilia.hubble.export.exporter import Exporter, State
from cilia.hubble.export.exporters import Exporters
from cilia.hubble.export.files import RotatedFile
from cilia.hubble.export.lines import LineMaker
from cilia.hubble.export.settings import ExportError, ExportSettings, filter_text
from cilia.hubble.store import FlowStore, Loss
from cilia.kit.clock import ManualClock, SystemClock
from cilia.kit.tasks import TaskGroup
from tests.support.hubble import NODE, WALL, events, flow, store
from tests.support.waiting import until_async

Body = Callable[[], Awaitable[None]]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a quarter of a second here."""
    monkeypatch.setattr(exporter_module, "PACE", 0.005)
    monkeypatch.setattr(exporters_module, "LOOK_INTERVAL", 0.01)


def arrive(flows: FlowStore, first: int, count: int, **fields: Any) -> None:
    flows.append([events(*(flow(first + number, **fields) for number in range(count)))], offset=WALL)


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def ports(path: Path) -> list[int]:
    return [line["flow"]["l4"]["TCP"]["source_port"] - 10_000 for line in read(path) if "flow" in line]


async def written(exporters: Exporters, lines: int, name: str = "static") -> None:
    """Until so many lines of an exporter are in its file, and it knows."""
    await until_async(lambda: any(each.name == name and each.lines == lines for each in exporters.statuses()))


@asynccontextmanager
async def running(flows: FlowStore, **options: Any) -> AsyncIterator[Exporters]:
    exporters = Exporters(flows, NODE, SystemClock(), **options)
    async with TaskGroup() as tasks:
        exporters.start(tasks)
        await asyncio.sleep(0)
        try:
            yield exporters
        finally:
            await exporters.close()


def test_each_flow_is_a_line_in_order(tmp_path: Path) -> None:
    path, flows = tmp_path / "events.log", store()

    async def body() -> None:
        arrive(flows, 900, 3)
        async with running(flows, static=ExportSettings(path=str(path))) as exporters:
            for number in range(5):
                arrive(flows, number * 20, 20)
                await asyncio.sleep(0.002)
            await written(exporters, 100)
            (status,) = exporters.statuses()
            assert (status.lines, status.lost, status.state, status.waiting) == (100, 0, "active", 0)
            assert status.bytes == path.stat().st_size
            assert status.last_write > 0

    asyncio.run(body())
    assert ports(path) == list(range(100))


def test_what_comes_just_before_the_end_is_written(tmp_path: Path) -> None:
    path, flows = tmp_path / "events.log", store()

    async def body() -> None:
        async with running(flows, static=ExportSettings(path=str(path))):
            arrive(flows, 0, 10)

    asyncio.run(body())
    assert ports(path) == list(range(10))


def test_filters_choose_and_a_mask_cuts(tmp_path: Path) -> None:
    path, flows = tmp_path / "events.log", store()
    settings = ExportSettings(
        path=str(path),
        include=(filter_text({"destination_port": ["8080"]}),),
        exclude=(filter_text({"verdict": ["DROPPED"]}),),
        mask=("l4.TCP.source_port",),
    )

    async def body() -> None:
        async with running(flows, static=settings):
            arrive(flows, 0, 2)
            arrive(flows, 10, 2, destination_port=9)
            arrive(flows, 20, 2, verdict=2)

    asyncio.run(body())
    assert ports(path) == [0, 1]
    assert {name for line in read(path) for name in line["flow"]} == {"l4"}


def test_gaps_are_told_once_with_their_sum(tmp_path: Path) -> None:
    path, flows = tmp_path / "events.log", store()

    async def body() -> None:
        async with running(flows, static=ExportSettings(path=str(path))) as exporters:
            for moment in range(1, 50):
                flows.append([], [Loss(cpu=moment % 2, count=3, first=moment, last=moment + 1)], offset=WALL)
            await until_async(lambda: exporters.statuses()[0].lost == 147)

    asyncio.run(body())
    (line,) = [each["lost_events"] for each in read(path)]
    assert line["num_events_lost"] == "147"
    assert (line["first"], line["last"]) == (
        "2026-11-23T04:26:40.000000001Z",
        "2026-11-23T04:26:40.000000050Z",
    )


def test_a_full_disk_loses_what_the_ring_can_not_hold_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flows = tmp_path / "events.log", store(capacity=64)
    full = True
    write = RotatedFile.write

    def guarded(self: RotatedFile, data: bytes) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(RotatedFile, "write", guarded)

    async def body() -> None:
        nonlocal full
        async with running(flows, static=ExportSettings(path=str(path))) as exporters:
            arrive(flows, 0, 10)
            await until_async(lambda: exporters.statuses()[0].failures > 1)
            status = exporters.statuses()[0]
            assert status.state == "failing"
            assert status.problem == f"{path} can't be written (No space left on device)"
            arrive(flows, 10, 100)
            assert exporters.statuses()[0].waiting == 110
            full = False
            await until_async(lambda: exporters.statuses()[0].waiting == 0)
            status = exporters.statuses()[0]
            assert (status.state, status.problem, status.lines, status.lost) == ("active", "", 75, 36)

    asyncio.run(body())
    assert ports(path) == [*range(10), *range(46, 110)]
    (gap,) = [line["lost_events"] for line in read(path) if "lost_events" in line]
    assert (gap["source"], gap["num_events_lost"]) == ("HUBBLE_RING_BUFFER", "36")
    assert gap["first"] == "2026-11-23T04:26:40.009Z"
    assert gap["first"] < gap["last"] <= "2026-11-23T04:26:40.109Z"


def test_a_real_full_disk(tmp_path: Path) -> None:
    flows = store()

    async def body() -> None:
        async with running(flows, static=ExportSettings(path="/dev/full")) as exporters:
            arrive(flows, 0, 1)
            await until_async(lambda: exporters.statuses()[0].failures > 0)
            assert "No space left on device" in exporters.statuses()[0].problem

    asyncio.run(body())


def test_an_exporter_that_stops_is_started_again_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flows = tmp_path / "events.log", store()
    monkeypatch.setattr(exporters_module, "Backoff", lambda **_: type("Now", (), {"next": lambda _: 0.0})())
    block = LineMaker.block
    broken = True

    def guarded(self: Any, rows: Any) -> bytes:
        if broken and len(rows.numbers) and int(rows.numbers[-1]) >= 15:
            raise RuntimeError("a bug")
        return block(self, rows)

    monkeypatch.setattr(LineMaker, "block", guarded)

    async def body() -> None:
        nonlocal broken
        async with running(flows, static=ExportSettings(path=str(path))) as exporters:
            arrive(flows, 0, 10)
            await written(exporters, 10)
            arrive(flows, 10, 10)
            await until_async(lambda: exporters.statuses()[0].restarts > 1)
            assert "a bug" in exporters.statuses()[0].problem
            broken = False
            await written(exporters, 20)
            assert exporters.statuses()[0].state == "active"

    asyncio.run(body())
    assert ports(path) == list(range(20))


def test_a_write_that_does_not_return_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flows = tmp_path / "events.log", store()
    monkeypatch.setattr(exporter_module, "PATIENCE", 0.01)
    go_on = threading.Event()
    write = RotatedFile.write

    def slow(self: RotatedFile, data: bytes) -> None:
        go_on.wait(10)
        write(self, data)

    monkeypatch.setattr(RotatedFile, "write", slow)

    async def body() -> None:
        async with running(flows, static=ExportSettings(path=str(path))) as exporters:
            arrive(flows, 0, 10)
            await until_async(lambda: exporters.statuses()[0].state == "stuck")
            go_on.set()
            await until_async(lambda: exporters.statuses()[0].state == "active")

    asyncio.run(body())
    assert ports(path) == list(range(10))


def test_groups_are_told_when_their_interval_is_over(tmp_path: Path) -> None:
    path, flows = tmp_path / "events.log", store()
    settings = ExportSettings(path=str(path), aggregate=("source.pod_name", "verdict"), interval=0.05)

    async def body() -> None:
        async with running(flows, static=settings) as exporters:
            arrive(flows, 0, 30)
            arrive(flows, 30, 5, verdict=2)
            await written(exporters, 2)
            assert exporters.statuses()[0].waiting == 0
            arrive(flows, 40, 7)

    asyncio.run(body())
    counts = [
        (line["flow"]["verdict"], line["flow"]["aggregate"]["ingress_flow_count"]) for line in read(path)
    ]
    assert counts == [("FORWARDED", 30), ("DROPPED", 5), ("FORWARDED", 7)]


def test_an_exporter_ends_at_its_time(tmp_path: Path) -> None:
    path, flows = tmp_path / "events.log", store()
    clock = ManualClock(wall=WALL / 1e9)
    settings = ExportSettings(path=str(path), end=WALL / 1e9 + 0.0055)

    async def body() -> None:
        exporter = Exporter(settings, flows, NODE, Converter(flows, NODE), clock)
        arrive(flows, 0, 10)
        clock.advance(1)
        await exporter.run()
        assert exporter.state is State.ENDED
        assert exporter.status().waiting == 0

    asyncio.run(body())
    assert ports(path) == list(range(6))


CONFIG = """
flowLogs:
- name: one
  filePath: {0}/one.log
- name: two
  filePath: {0}/two.log
  includeFilters: [{{verdict: [DROPPED]}}]
"""


def test_a_file_of_flow_logs_is_followed(tmp_path: Path) -> None:
    config, flows = tmp_path / "flowlogs.yaml", store()
    one, two, three = (tmp_path / f"{name}.log" for name in ("one", "two", "three"))

    def write(text: str) -> None:
        scratch = tmp_path / "scratch"
        scratch.write_text(text)
        scratch.rename(config)

    async def body() -> None:
        async with running(flows, flow_logs=config) as exporters:
            await until_async(lambda: "can't be read" in exporters.problem)
            write(CONFIG.format(tmp_path))
            await until_async(lambda: len(exporters.statuses()) == 2)
            arrive(flows, 0, 5)
            await written(exporters, 5, "one")
            first = exporters._running["one"]

            write("flowLogs: [{name: one}]")
            await until_async(lambda: bool(exporters.problem))
            assert "flowLogs[0]: filePath is required" in exporters.problem
            assert len(exporters.statuses()) == 2

            write(CONFIG.format(tmp_path).replace("DROPPED", "FORWARDED"))
            await until_async(lambda: not exporters.problem)
            assert exporters._running["one"] is first
            arrive(flows, 5, 5)
            await written(exporters, 5, "two")

            write(f"flowLogs: [{{name: two, filePath: {two}}}, {{name: three, filePath: {three}}}]")
            await until_async(lambda: [each.name for each in exporters.statuses()] == ["three", "two"])
            arrive(flows, 10, 5)
            await written(exporters, 5, "three")
            assert exporters.reconfigurations == {"add": 3, "update": 2, "remove": 1}
            assert exporters.config_hash and exporters.config_applied

    asyncio.run(body())
    assert ports(one) == list(range(10))
    assert ports(two) == list(range(5, 15))
    assert ports(three) == list(range(10, 15))


def test_a_changed_exporter_goes_on_from_its_place(tmp_path: Path) -> None:
    path, flows = tmp_path / "events.log", store()

    async def body() -> None:
        async with running(flows) as exporters:
            for number in range(20):
                settings = ExportSettings(name="busy", path=str(path), max_size_mb=1 + number % 2)
                arrive(flows, number * 10, 5)
                await exporters.apply({"busy": settings})
                arrive(flows, number * 10 + 5, 5)
                await asyncio.sleep(0.001 * (number % 3))
            (status,) = exporters.statuses()
            assert status.lost == 0

    asyncio.run(body())
    assert ports(path) == list(range(5, 200))


def test_two_exporters_do_not_write_to_one_file(tmp_path: Path) -> None:
    flows = store()

    async def body() -> None:
        async with running(flows, static=ExportSettings(path="/tmp/same")) as exporters:
            with pytest.raises(ExportError, match="static exporter's"):
                await exporters.apply({"other": ExportSettings(name="other", path="/tmp/same")})

    asyncio.run(body())


def test_filters_that_can_not_be_followed_refuse_the_exporter(tmp_path: Path) -> None:
    settings = ExportSettings(
        path=str(tmp_path / "x"), include=(filter_text({"source_ip": ["not an address"]}),)
    )
    with pytest.raises(ExportError, match="neither an IP address nor a CIDR"):
        Exporters(store(), NODE, SystemClock(), static=settings)
