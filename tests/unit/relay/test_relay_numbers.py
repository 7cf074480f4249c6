"""What a relay says of itself: to Prometheus, and in the log when a thousand peers come and go."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from cilia.hubble.peer import Peer
from cilia.hubble.rpc.channel import Channel
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.proto.flow import flow_pb2
from cilia.relay.pool import Pool, PoolSettings
from cilia.relay.tally import Tally
from tests.support.grpc_client import get_flows
from tests.support.machine import free_port
from tests.support.relay import Cluster, Node, Response, channel_to, ready, response
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.timeout(120)


def lost(count: int) -> bytes:
    """A gap, as a node tells it."""
    told = Response(node_name="node")
    told.lost_events.source = flow_pb2.PERF_EVENT_RING_BUFFER
    told.lost_events.num_events_lost = count
    return told.SerializeToString()


def scrape(port: int) -> dict[str, float]:
    """Numbers by name and label."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("hubble_relay_")
    }


def test_peers_flows_losses_and_clients_are_counted(running: Cluster) -> None:
    node = Node("node", [response("node", 1), lost(7), response("node", 2), lost(5)])
    peers, port = [running.start(node), Peer("away", running.address("away"))], free_port()
    target = running.relay(peers, metrics_listen_address=f"127.0.0.1:{port}")
    ready(target, 1)
    with channel_to(target) as channel:
        list(get_flows(channel))
        told = scrape(port)
        call = get_flows(channel, follow=True, number=1)
        next(call)
        during = scrape(port)
        call.cancel()
        until(lambda: scrape(port)["hubble_relay_clients"] == 0, "the client to be gone")
    status = "hubble_relay_pool_peer_connection_status"
    away = during[f"{status} CONNECTING"] + during[f"{status} TRANSIENT_FAILURE"]
    assert (during[f"{status} READY"], away, during[f"{status} SHUTDOWN"]) == (1, 1, 0)
    assert during["hubble_relay_clients"] == 1
    assert told["hubble_relay_lost_events_total perf_event_ring_buffer"] == 12
    assert told["hubble_relay_flows_total"] == 2


def told(logged: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What was logged for everybody."""
    return [each for each in logged if each["log_level"] != "debug"]


def pool_of(count: int, away: int, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """A pool of which so many peers can't be reached."""

    async def dial(_pool: Pool, peer: Peer) -> Channel:
        if int(peer.address) < away:
            raise RpcError(Code.UNAVAILABLE, "it can't be reached")
        return Channel(peer.address)

    monkeypatch.setattr(Pool, "_dial", dial)
    pool = Pool(PoolSettings(), lambda _name: None)
    pool.set_peers([Peer(f"node-{number:04}", str(number)) for number in range(count)])
    return pool


def test_a_thousand_peers_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        pool = pool_of(1000, 5, monkeypatch)
        tally = Tally(pool, gather=3600)
        pool.listeners.add(tally.changed)
        tally.changed()
        await until_async(lambda: not any(link.dialling for link in pool.links()), "every peer to be tried")
        assert told(logged) == []
        tally._say()
        tally.close()
        await pool.close()

    with capture_logs() as logged:
        asyncio.run(run())
    (line,) = told(logged)
    assert (line["event"], line["log_level"]) == ("995 of 1,000 peers connected", "warning")
    first = "; ".join(f"node-000{number}: it can't be reached" for number in range(3))
    assert line["away"] == f"{first}; and 2 more"


def test_who_stays_away_is_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        pool = pool_of(2, 0, monkeypatch)
        await until_async(lambda: all(link.channel for link in pool.links()), "the connections")
        tally = Tally(pool, gather=0.01)
        pool.listeners.add(tally.changed)
        for _ in range(5):
            tally.changed()
            await asyncio.sleep(0.05)
        tally.close()
        await pool.close()

    with capture_logs() as logged:
        asyncio.run(run())
    assert [each["event"] for each in told(logged)] == ["2 of 2 peers connected"]
