"""How complete the answers of all nodes together are: what the relay makes of what each says."""

from __future__ import annotations

import pytest

from cilia.hubble.encode import block
from cilia.hubble.status import EXTENSIONS, Completeness, completeness_of, together
from cilia.proto.observer import observer_pb2
from tests.support.relay import Cluster, Node, channel_to, ready, server_status

pytestmark = pytest.mark.timeout(60)

WHOLE = Completeness(seen=700, lost=0, held_back=2, oldest=50, oldest_important=10)
TORN = Completeness(seen=290, lost=10, held_back=1, oldest=40, oldest_important=20, lost_since=45)
LIES = (
    b"\xff\xff",
    block(1, b"type.googleapis.com/google.protobuf.Struct") + block(2, b"\xff"),
    block(1, b"type.googleapis.com/google.protobuf.Struct"),
)


def status_of(running: Cluster, *told: bytes) -> observer_pb2.ServerStatusResponse:
    """Of a relay over nodes that say so of themselves."""
    peers = []
    for number, extension in enumerate(told):
        node = Node(f"node-{number}")
        node.told = extension
        peers.append(running.start(node))
    target = running.relay(peers)
    ready(target, len(peers))
    with channel_to(target) as channel:
        return server_status(channel)


def test_what_nodes_lost_is_added_up(running: Cluster) -> None:
    told = completeness_of(status_of(running, WHOLE.extension(), TORN.extension()))
    assert told == Completeness(seen=990, lost=10, held_back=3, oldest=50, oldest_important=20, lost_since=45)
    assert told.sentence() == "99.0 % complete, missing <= 10 events"


def test_where_one_node_does_not_say_nothing_is_claimed(running: Cluster) -> None:
    assert completeness_of(status_of(running, WHOLE.extension(), b"")) is None


@pytest.mark.parametrize("lie", LIES)
def test_a_node_that_says_nonsense_costs_the_answer_nothing_else(running: Cluster, lie: bytes) -> None:
    status = status_of(running, WHOLE.extension(), block(EXTENSIONS, lie))
    assert completeness_of(status) is None
    assert status.seen_flows == 2000


def test_a_node_that_claims_more_than_fits_does_not_end_the_answer(running: Cluster) -> None:
    huge = observer_pb2.ServerStatusResponse(seen_flows=2**64 - 1).SerializeToString()
    assert status_of(running, huge, b"").seen_flows == 2**64 - 1


def test_nobody_lost_anything() -> None:
    assert together([WHOLE, WHOLE]).sentence() == "complete"
