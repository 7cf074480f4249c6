"""Nodes whose answers are damaged on the way: bytes flipped, doubled, cut out, cut off, or not coming."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import DecodeError

from cilia.hubble.peer import Peer
from cilia.proto.observer import observer_pb2
from cilia.proto.relay import relay_pb2
from cilia.relay.answer import AnswerSettings
from cilia.relay.merge import MergeSettings
from cilia.relay.pool import PoolSettings
from tests.support.grpc_client import get_flows, unary
from tests.support.relay import Cluster, Node, Response, channel_to, ready, response
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(180)

FLOWS = 400
MANGLERS = 36
BEFORE = 1500
"""Bytes that pass whole: enough for the first sign of life."""
ANSWER = AnswerSettings(merge=MergeSettings(patience=0.5), silence=3.0, gather=0.1)
POOL = PoolSettings(retry_timeout=0.3, check_interval=0.5, check_timeout=5.0)


class Mangler:
    """Stands before a node; passes on what the node sends, but not all of it as it was."""

    def __init__(self, seed: int, node: Path) -> None:
        self._random = random.Random(seed)
        self._node = node
        self._ways = (self._flip, self._double, self._cut_out, self._garbage, self._cut_off, self._stop)
        self._way = self._ways[seed % len(self._ways)]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        from_node, to_node = await asyncio.open_unix_connection(str(self._node))
        try:
            await asyncio.gather(self._pass(reader, to_node), self._mangle(from_node, writer))
        except (OSError, EOFError):
            pass
        finally:
            writer.close()
            to_node.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        raise EOFError

    async def _mangle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        while data := await reader.read(1 << 16):
            if passed + len(data) > BEFORE and self._random.random() < 0.7:
                data = await self._way(data)
            passed += len(data)
            writer.write(data)
            await writer.drain()
        raise EOFError

    async def _flip(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self._random.randint(1, 4)):
            changed[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        return bytes(changed)

    async def _double(self, data: bytes) -> bytes:
        at = self._random.randrange(len(data))
        return data[:at] + data[at // 2 :]

    async def _cut_out(self, data: bytes) -> bytes:
        at = self._random.randrange(len(data))
        return data[:at] + data[at + self._random.randint(1, 100) :]

    async def _garbage(self, data: bytes) -> bytes:
        return self._random.randbytes(len(data))

    async def _cut_off(self, data: bytes) -> bytes:
        raise EOFError

    async def _stop(self, data: bytes) -> bytes:
        # As when a machine loses its power: the connection stays, and nothing comes any more.
        await asyncio.Event().wait()
        return data


def manglers(running: Cluster, node: Node) -> list[Peer]:
    """Peers that answer as a node does, damaged, each in a way of its own."""
    node_path = running.directory / f"{node.name}.sock"
    peers = []
    for seed in range(MANGLERS):
        path = running.directory / f"mangler-{seed}.sock"
        running.run(asyncio.start_unix_server(Mangler(seed, node_path).serve, path))
        peers.append(Peer(f"mangler-{seed}", f"unix://{path}"))
    return peers


def good_and_another(target: str) -> bool:
    with channel_to(target) as channel:
        listed = unary(channel, "GetNodes", observer_pb2.GetNodesRequest(), observer_pb2.GetNodesResponse)
    names = [node.name for node in listed.nodes if node.state == relay_pb2.NODE_CONNECTED]
    return "good" in names and len(names) > 1


def of_the_good(responses: list[Response]) -> list[str]:
    return [each.flow.uuid for each in responses if each.flow.uuid.startswith("good-")]


def test_histories_are_whole_but_for_what_was_damaged(running: Cluster) -> None:
    good = Node("good", [response("good", moment) for moment in range(FLOWS)])
    node = Node("node", [response("node", moment) for moment in range(FLOWS)])
    running.start(node)
    target = running.relay([running.start(good), *manglers(running, node)], answer=ANSWER, pool=POOL)
    until(lambda: good_and_another(target), "the good one and some that are not")
    expected = [f"good-{moment}" for moment in range(FLOWS)]
    for _ in range(3):
        with channel_to(target) as channel:
            responses = list(get_flows(channel))
        assert of_the_good(responses) == expected
        told = Counter(each.node_status.state_change for each in responses if each.HasField("node_status"))
        assert told, "who failed is named"


def test_followers_get_all_of_the_others(running: Cluster) -> None:
    good, node = Node("good"), Node("node")
    running.start(node)
    target = running.relay([running.start(good), *manglers(running, node)], answer=ANSWER, pool=POOL)
    until(lambda: good_and_another(target), "the good one and some that are not")
    with channel_to(target) as channel:
        call = get_flows(channel, follow=True)
        next(call)
        until(lambda: good.serving, "the good one to be asked")
        for moment in range(10):
            running.add(node, *[response("node", 40 * moment + more) for more in range(40)])
            running.add(good, response("good", 40 * moment))
        found: list[Response] = []
        try:
            while len(of_the_good(found)) < 10:
                found.append(next(call))
        except grpc.RpcError as error:
            pytest.fail(f"the follower was sent away: {error}")
        call.cancel()
    assert of_the_good(found) == [f"good-{40 * moment}" for moment in range(10)]
    with channel_to(target) as channel:
        assert list(get_flows(channel, number=1)), "the relay answers as before"


@pytest.mark.parametrize(
    "inside",
    [
        b"\x0a\x03\x2a\x05\x01",
        b"\x0a\x04\x92\x02\x01\xff",
        b"\x0a\x02\x0b\x0b",
    ],
    ids=["a field beyond its message", "a text that is no UTF-8", "a group without an end"],
)
def test_a_flow_that_no_client_can_read_ends_its_node_and_not_the_answer(
    running: Cluster, inside: bytes
) -> None:
    good = Node("good", [response("good", moment) for moment in range(100)])
    damaged = Response.FromString(response("bad", 50))
    damaged.ClearField("flow")
    bad = Node("bad", [inside + damaged.SerializeToString()])
    with pytest.raises(DecodeError):
        Response.FromString(bad.flows[0])
    target = running.relay([running.start(good), running.start(bad)])
    ready(target, 2)
    with channel_to(target) as channel:
        responses = list(get_flows(channel))
    assert of_the_good(responses) == [f"good-{moment}" for moment in range(100)]
    told = responses[-1].node_status
    assert (list(told.node_names), told.message) == (
        ["bad"],
        "the node sends garbage: a response is no message",
    )
