"""The event rings of the real programs: reading, sleeping and waking, counting losses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import numpy as np

from cilia.dataplane import bpf
from cilia.dataplane.loader import Dataplane
from cilia.dataplane.maps import counters
from cilia.dataplane.maps.nodes import Settings
from cilia.dataplane.ringbuf import CALM_SECONDS, POLL_SECONDS, Batch, Ring, RingReader
from cilia.model.node import NodeSettings
from tests.support.dataplane import dataplane, loaded_once, needs_kernel

__all__ = ["dataplane", "loaded_once"]
pytestmark = needs_kernel

PACKET = bytes.fromhex("02000000000102000000000288b5") + bytes(50)
"""An Ethernet frame of a protocol nobody forwards: each one is a drop event."""
LOOKS = 4000


def drop(dataplane: Dataplane, count: int) -> None:
    for _ in range(count):
        bpf.test_run(dataplane.programs["from_container"], PACKET, repeat=1)


async def until(holds: Callable[[], object]) -> None:
    """Wait for something to come true."""
    for _ in range(LOOKS):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited in vain")


def unlimited(dataplane: Dataplane) -> Settings:
    settings = Settings(dataplane.maps["node"], dataplane.layout)
    settings.write(NodeSettings(drop_rate=0))
    return settings


def test_records_come_out_whole_and_once(dataplane: Dataplane) -> None:
    unlimited(dataplane)
    ring = Ring(dataplane.maps["events_priority"], dataplane.layout)
    assert len(ring.read()) == 0
    drop(dataplane, 40)
    events = ring.read()
    assert len(events) == 40 and ring.waiting == 0
    assert set(events["kind"].tolist()) == {dataplane.layout.value("EVENT_DROP")}
    for cpu in np.unique(events["cpu"]):
        sequence = events["sequence"][events["cpu"] == cpu]
        assert (np.diff(sequence.astype(np.int64)) == 1).all()
    assert len(ring.read()) == 0
    ring.close()


def test_the_reader_wraps_around_the_ring(dataplane: Dataplane) -> None:
    unlimited(dataplane)
    ring = Ring(dataplane.maps["events_priority"], dataplane.layout)
    total = 0
    for _ in range(4):
        bpf.test_run(dataplane.programs["from_container"], PACKET, repeat=2000)
        total += len(ring.read())
    assert total == 8000
    ring.close()


def test_a_full_ring_is_counted_exactly(dataplane: Dataplane) -> None:
    batches: list[Batch] = []
    lost_before = counters.lost_events(dataplane.maps["event_state"])[0]

    async def run() -> RingReader:
        settings = unlimited(dataplane)
        maps = [dataplane.maps["events_priority"], dataplane.maps["events"]]
        taken = partial(counters.events_taken, dataplane.maps["event_state"])
        reader = RingReader(maps, settings, dataplane.layout, batches.append, taken)
        reader.start()
        bpf.test_run(dataplane.programs["from_container"], PACKET, repeat=12000)
        await until(lambda: reader.received)
        # A reader sleeps only when it has taken all there is, and told what is missing, also at the end.
        await until(lambda: settings.reader_asleep)
        reader.stop()
        return reader

    reader = asyncio.run(run())
    assert reader.lost > 0 and reader.received + reader.lost == 12000
    assert reader.lost == counters.lost_events(dataplane.maps["event_state"])[0] - lost_before
    gaps = [gap for batch in batches for gap in batch.lost]
    assert sum(gap.count for gap in gaps) == reader.lost
    assert all(0 < gap.first_time < gap.last_time and gap.ring == 0 for gap in gaps)


def test_a_ring_that_fills_slowly_is_read_less_often(dataplane: Dataplane) -> None:
    settings = unlimited(dataplane)
    maps = [dataplane.maps["events_priority"], dataplane.maps["events"]]
    reader = RingReader(maps, settings, dataplane.layout, lambda batch: None)
    drop(dataplane, 3)
    assert reader.drain() == 3 and reader.pace == CALM_SECONDS
    bpf.test_run(dataplane.programs["from_container"], PACKET, repeat=2000)
    assert reader.drain() == 2000 and reader.pace == POLL_SECONDS
    assert reader.drain() == 0 and reader.pace == CALM_SECONDS
    reader.stop()


def test_the_reader_sleeps_and_is_woken(dataplane: Dataplane) -> None:
    batches: list[Batch] = []

    async def run() -> None:
        settings = unlimited(dataplane)
        maps = [dataplane.maps["events_priority"], dataplane.maps["events"]]
        reader = RingReader(maps, settings, dataplane.layout, batches.append)
        reader.start()
        for _ in range(3):
            await until(lambda: settings.reader_asleep)
            assert reader._timer is None
            settings.write(NodeSettings(drop_rate=0, mtu=1400))
            assert settings.reader_asleep, "other settings leave the flag alone"
            before = reader.received
            drop(dataplane, 2)
            await until(lambda: reader.received != before)  # noqa: B023
            assert reader.received == before + 2
        reader.stop()
        assert not settings.reader_asleep

    asyncio.run(run())
    assert sum(len(batch.events) for batch in batches) == 6
