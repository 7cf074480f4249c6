"""Any flow reads as the generated classes would have made it: 20,000 of them, more by CILIA_RANDOM_FLOWS."""

from __future__ import annotations

import os

import pytest

from cilia.hubble.convert import Converter, NodeFacts
from cilia.proto.observer import observer_pb2
from tests.support.hubble import FILES, WALL, directory, store
from tests.support.hubble_slow import NODE_LABELS, NODE_NAME, VERSION, SlowConverter, random_events

COUNT = int(os.environ.get("CILIA_RANDOM_FLOWS", "20000"))
CHUNK = 4096

pytestmark = pytest.mark.timeout(60 + COUNT // 500)


def test_random_flows_mean_what_slow_and_plain_code_says() -> None:
    known = directory()
    known.policies = 5
    flows = store(capacity=CHUNK, known=known)
    node = NodeFacts(name=NODE_NAME, labels=tuple(NODE_LABELS), version=VERSION, files=FILES)
    fast, slow = Converter(flows, node), SlowConverter(known, flows.boot, WALL)
    for start in range(0, COUNT, CHUNK):
        flows.append([random_events(min(CHUNK, COUNT - start), seed=start)], offset=WALL)
        for rows in flows.spans(start, flows.head):
            if rows.numbers[0] < start:
                continue
            for event, number, data in zip(
                rows.events, rows.numbers.tolist(), fast.responses(rows), strict=True
            ):
                assert observer_pb2.GetFlowsResponse.FromString(data) == slow.response(event, number)
    assert flows.head == COUNT
