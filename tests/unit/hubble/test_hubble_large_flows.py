"""Flows as large as their pods have labels, and of more peers than anybody remembers: memory is bounded."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Sequence

import numpy as np

from cilia.hubble.answer import LARGE_BLOCK
from cilia.hubble.blocks import split
from cilia.hubble.columns import Events
from cilia.hubble.convert import Converter
from cilia.hubble.cuts import CUT_BYTES, Cuts
from cilia.hubble.directory import MemoryDirectory
from cilia.hubble.encode import block, text
from cilia.hubble.export.lines import LineMaker
from cilia.hubble.masks import FlowMask
from cilia.hubble.observer import Observer, ObserverSettings
from cilia.hubble.remembered import MOST_BYTES, Remembered
from cilia.hubble.ring import Rows
from cilia.hubble.store import joined
from cilia.kit.clock import ManualClock
from cilia.proto.observer.observer_pb2 import GetFlowsRequest, GetFlowsResponse
from tests.support.hubble import DTYPE, NODE, WALL, directory, event, flow, store

LARGE = 32_000
"""Bytes of a label."""
PEERS, STEP = 1024, 16


def verbose(size: int) -> MemoryDirectory:
    """The server has a label of so many bytes."""
    known = directory()
    known.identity_labels[1234] = ("k8s:note=" + "x" * size,)
    return known


def strangers(count: int) -> Events:
    """One packet from each of many addresses outside."""
    rows = [event(**flow(number, source_identity=2, source_endpoint=0)) for number in range(count)]
    packets = joined(rows, DTYPE)
    packets["source"]["lo"] = np.arange(1, count + 1)
    return packets


class Sizes:
    """A sink that notes how much is handed over at a time."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.flows = 0

    async def send(self, messages: Sequence[bytes]) -> None:
        raise AssertionError("flows come in blocks")

    async def send_block(self, block: bytes) -> None:
        self.blocks.append(len(block))
        self.flows += len(split(block))


def test_what_is_remembered_is_bounded_in_bytes() -> None:
    flows = store(capacity=PEERS, known=verbose(LARGE))
    flows.append([strangers(PEERS)], offset=WALL)
    (rows,) = flows.spans(0, flows.head)
    converter = Converter(flows, NODE)
    lines = LineMaker(flows, NODE, converter)
    tracemalloc.start()
    try:
        for start in range(0, PEERS, STEP):
            part = rows.where(slice(start, start + STEP))
            converter.block(part), lines.block(part)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 3 * MOST_BYTES < PEERS * LARGE * 2


def test_a_client_with_a_mask_remembers_little() -> None:
    cuts = Cuts(FlowMask(["destination.labels"]))
    tracemalloc.start()
    try:
        for number in range(PEERS):
            (left,) = cuts.apply("destinations", [block(9, text(4, f"{number}" + "x" * LARGE))])
            assert len(left) > LARGE
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * CUT_BYTES


def test_what_is_forgotten_is_made_again() -> None:
    flows = store()
    flows.append([strangers(4)], offset=WALL)
    (rows,) = flows.spans(0, flows.head)
    made = []

    def make(some: Rows) -> list[bytes]:
        made.append(len(some.wall))
        return [bytes(60) for _ in some.wall]

    memory: Remembered[int, bytes] = Remembered(1000, len, most_bytes=100)
    memory.find([1, 2], rows.where(slice(0, 2)), make)
    assert memory.find([1], rows.where(slice(0, 1)), make) == [bytes(60)]
    memory.find([1], rows.where(slice(0, 1)), make)
    assert made == [2, 1]
    assert memory.look_up([5], lambda key, index: b"%d at %d" % (key, index)) == [b"5 at 0"]


def test_a_block_of_large_flows_has_few_of_them() -> None:
    flows = store(capacity=PEERS, known=verbose(LARGE // 3))
    flows.append([strangers(PEERS)], offset=WALL)
    sink = Sizes()
    observer = Observer(flows, NODE, ObserverSettings(version="1"), ManualClock(wall=WALL / 1e9 + 100))
    asyncio.run(observer.get_flows(GetFlowsRequest().SerializeToString(), sink))
    assert sink.flows == PEERS
    # 512 such flows would be ten times as much.
    assert max(sink.blocks) < LARGE_BLOCK and len(sink.blocks) >= PEERS // 32


def test_moments_before_1970_are_told_as_1970() -> None:
    flows = store()
    flows.append([strangers(1)], offset=-5_000_000_000)
    (rows,) = flows.spans(0, flows.head)
    converter = Converter(flows, NODE)
    for cuts in (None, Cuts(FlowMask(["time"]))):
        (response,) = map(GetFlowsResponse.FromString, split(converter.block(rows, cuts)))
        assert response.time.ToNanoseconds() == response.flow.time.ToNanoseconds() == 0
