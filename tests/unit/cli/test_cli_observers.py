"""Commands that ask a server about itself, and what a relay says about nodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cilia.cli import flows
from cilia.cli.errors import UserError
from cilia.cli.hubble import app
from cilia.cli.main import build
from cilia.cli.observe import observe
from cilia.hubble.health import Health
from cilia.hubble.peer import Peer
from cilia.hubble.rpc.calls import Sink
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.hubble.rpc.server import Server
from cilia.hubble.status import Completeness
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from cilia.proto.peer import peer_pb2
from cilia.proto.relay import relay_pb2
from tests.support.relay import Cluster, Node, cluster, ready, response

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUBBLE_SERVER", raising=False)


class Known:
    """A server that knows a few things."""

    def __init__(self) -> None:
        self.health = Health(["observer.Observer"])
        self.tail = b""
        self.hang = False

    def methods(self) -> dict[str, Any]:
        return {
            **self.health.methods(),
            "/observer.Observer/GetNodes": self.nodes,
            "/observer.Observer/GetNamespaces": self.namespaces,
            "/observer.Observer/ServerStatus": self.status,
            "/observer.Observer/GetAgentEvents": self.events,
            "/peer.Peer/Notify": self.peers,
        }

    async def nodes(self, _data: bytes, sink: Sink) -> None:
        if self.hang:
            await asyncio.Event().wait()
        answer = observer_pb2.GetNodesResponse()
        answer.nodes.add(
            name="worker-2", state=relay_pb2.NODE_CONNECTED, uptime_ns=93784 * 10**9, num_flows=1024,
            max_flows=4096, seen_flows=46892, version="cilia 0.1.0", address="192.0.2.2:4244",
            tls={"enabled": True},
        )  # fmt: skip
        answer.nodes.add(name="worker-1", state=relay_pb2.NODE_UNAVAILABLE)
        await sink.send([answer.SerializeToString()])

    async def namespaces(self, _data: bytes, sink: Sink) -> None:
        answer = observer_pb2.GetNamespacesResponse()
        for name, where in (("shop", "west"), ("bank", "west"), ("shop", "east")):
            answer.namespaces.add(namespace=name, cluster=where)
        await sink.send([answer.SerializeToString()])

    async def status(self, _data: bytes, sink: Sink) -> None:
        answer = observer_pb2.ServerStatusResponse(
            num_flows=8192, max_flows=16384, seen_flows=50000, uptime_ns=61 * 10**9, flows_rate=42.5,
            unavailable_nodes=["node-4", "node-5"], version="cilia 0.1.0",
        )  # fmt: skip
        answer.num_connected_nodes.value, answer.num_unavailable_nodes.value = 3, 2
        await sink.send([answer.SerializeToString() + self.tail])

    async def peers(self, _data: bytes, sink: Sink) -> None:
        change = peer_pb2.ChangeNotification(
            name="default/worker-1", address="192.0.2.1:4244", type=peer_pb2.PEER_ADDED
        )
        gone = peer_pb2.ChangeNotification(name="a\x1b[2J", type=peer_pb2.PEER_DELETED)
        change.tls.server_name = "worker-1.default.hubble-grpc.cilium.io"
        await sink.send([change.SerializeToString(), gone.SerializeToString()])

    async def events(self, data: bytes, sink: Sink) -> None:
        request = observer_pb2.GetAgentEventsRequest.FromString(data)
        answers = [observer_pb2.GetAgentEventsResponse(node_name="worker-1") for _ in range(3)]
        for answer in answers:
            answer.time.FromJsonString("2026-11-23T10:00:00.5Z")
        answers[0].agent_event.type = flow_pb2.POLICY_UPDATED
        answers[0].agent_event.policy_update.revision = 7
        answers[0].agent_event.policy_update.labels.extend(["k8s:a=b", "k8s:c=\x1bd"])
        answers[1].agent_event.type = flow_pb2.IPCACHE_UPSERTED
        answers[1].agent_event.ipcache_update.cidr = "10.0.0.1/32"
        answers[1].agent_event.ipcache_update.old_identity.value = 5
        answers[2].agent_event.type = flow_pb2.AGENT_STARTED
        answers[2].agent_event.agent_start.time.FromJsonString("2026-11-23T09:00:00Z")
        await sink.send([answer.SerializeToString() for answer in answers[-int(request.number) :]])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("observers")) as running:
        yield running


@pytest.fixture
def known(running: Cluster) -> Iterator[Known]:
    known = Known()

    async def listen() -> None:
        running.servers["known"] = Server(known.methods())
        await running.servers["known"].listen_unix(running.directory / "known.sock")

    running.run(listen())
    yield known
    running.stop("known")


Run = Callable[..., str]


@pytest.fixture
def run(running: Cluster, known: Known, capsys: pytest.CaptureFixture[str]) -> Run:
    assert known

    def run(*arguments: str) -> str:
        server = ["--server", running.address("known")]
        app([*arguments, *server], prog_name="cilia hubble", standalone_mode=False)
        return capsys.readouterr().out

    return run


def test_nodes(run: Run) -> None:
    header, first, second = run("list", "nodes").splitlines()
    assert header.split() == ["NAME", "STATUS", "AGE", "FLOWS/S", "CURRENT/MAX-FLOWS"]
    assert first.split() == ["worker-1", "Unavailable", "N/A", "N/A", "N/A"]
    assert second.split() == ["worker-2", "Connected", "1d2h3m4s", "0.50", "1,024/4,096", "(25.00%)"]
    wide = run("list", "nodes", "-o", "wide").splitlines()
    assert wide[1].split()[-2:] == ["-", "N/A"]
    assert wide[2].endswith("cilia 0.1.0   192.0.2.2:4244   Enabled")
    assert json.loads(run("list", "node", "-o", "json"))[1]["seen_flows"] == "46892"


def test_namespaces(run: Run) -> None:
    assert run("list", "namespaces").split() == ["NAMESPACE", "bank", "shop"]
    assert run("list", "namespaces", "-o", "wide").splitlines()[1].split() == ["shop", "east"]
    assert {"namespace": "bank", "cluster": "west"} in json.loads(run("list", "namespaces", "-o", "json"))


def test_status(run: Run, running: Cluster, known: Known) -> None:
    told = run("status").splitlines()
    assert told == [
        f"Healthcheck (via {running.address('known')}): Ok",
        "Current/Max Flows: 8,192/16,384 (50.00%)",
        "Flows/s: 42.50",
        "Connected Nodes: 3/5",
        "Unavailable Nodes: 2",
        "  - node-4",
        "  - node-5",
    ]
    known.tail = Completeness(seen=99, lost=1, held_back=0, oldest=0, oldest_important=0).extension()
    assert "Completeness: 99.0 % complete, missing <= 1 events" in run("status")
    assert "Uptime: 1m1s" in run("status", "-o", "dict")
    assert "UPTIME" in run("status", "-o", "table").splitlines()[0]
    assert json.loads(run("status", "-o", "json"))["num_connected_nodes"] == 3


def test_a_server_that_does_not_serve(run: Run, known: Known) -> None:
    known.health.set(False, "observer.Observer")
    with pytest.raises(UserError, match="NOT_SERVING"):
        run("status")


def test_peers(run: Run) -> None:
    assert run("watch", "peers").splitlines() == [
        "PEER_ADDED   192.0.2.1:4244 default/worker-1"
        " (TLS.ServerName: worker-1.default.hubble-grpc.cilium.io)",
        "PEER_DELETED  a\\x1b[2J",
    ]
    assert json.loads(run("watch", "peer", "-o", "json").splitlines()[0])["type"] == "PEER_ADDED"


def test_agent_events(run: Run) -> None:
    assert run("observe", "agent-events", "--last", "3").splitlines() == [
        "Nov 23 10:00:00.500: POLICY_UPDATED (labels: [k8s:a=b, k8s:c=\\x1bd], revision: 7)",
        "Nov 23 10:00:00.500: IPCACHE_UPSERTED (cidr: 10.0.0.1/32, old identity: 5)",
        "Nov 23 10:00:00.500: AGENT_STARTED (time: 2026-11-23T09:00:00Z)",
    ]
    one = run("observe", "agent-events", "--last", "1", "--print-node-name", "--time-format", "RFC3339")
    assert one.startswith("2026-11-23T10:00:00Z [worker-1]: AGENT_STARTED")
    assert json.loads(run("observe", "agent-events", "--last", "1", "-o", "json"))["node_name"] == "worker-1"
    assert run("observe", "--last", "1", "agent-events") == run("observe", "agent-events", "--last", "1")
    assert "    DETAILS: cidr: 10.0.0.1/32" in run("observe", "agent-events", "--last", "2", "-o", "dict")
    header, *rows = run("observe", "agent-events", "--last", "3", "-o", "table").splitlines()
    assert header.split() == ["TIMESTAMP", "NODE", "TYPE", "DETAILS"]
    assert len(rows) == 3


def test_a_call_that_a_server_does_not_have(run: Run) -> None:
    with pytest.raises(UserError, match="GetDebugEvents"):
        run("observe", "debug-events")


def test_the_server_of_a_group_is_that_of_its_commands(
    running: Cluster, known: Known, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert known
    where = running.address("known")
    observe(["--server", where, "agent-events", "--last", "1"], standalone_mode=False)
    monkeypatch.setenv("HUBBLE_SERVER", where)
    build()(["list", "namespaces"], standalone_mode=False)
    build()(["watch", "peers"], standalone_mode=False)
    out = capsys.readouterr().out
    assert "AGENT_STARTED" in out and "bank" in out and "PEER_ADDED" in out


def test_a_server_that_hangs(running: Cluster, known: Known) -> None:
    known.hang = True
    with pytest.raises(UserError, match="--request-timeout"):
        app(
            ["list", "nodes", "--server", running.address("known"), "--request-timeout", "200ms"],
            prog_name="cilia hubble", standalone_mode=False,
        )  # fmt: skip


def test_nodes_that_do_not_answer_are_told_once_and_at_the_end(
    running: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    well, ill = Node("well", [response("well", 1)]), Node("ill")
    ill.refusal = RpcError(Code.INTERNAL, "the disk is on fire")
    target = running.relay([running.start(well), running.start(ill), Peer("gone", running.address("gone"))])
    try:
        ready(target, 2)
        observe(["--server", target, "--last", "5"], standalone_mode=False)
        out, err = capsys.readouterr()
        assert len([line for line in out.splitlines() if "VERDICT_UNKNOWN" in line]) == 1
        *notes, last = err.splitlines()
        assert last == "1 flow, without 2 nodes (gone, ill)"
        assert sum(note.endswith('Error "the disk is on fire" on 1 nodes: ill') for note in notes) == 1, notes
        assert sum("gone" in note for note in notes) == 1
        observe(["--server", target, "--last", "5", "-s"], standalone_mode=False)
        assert capsys.readouterr().err == ""
    finally:
        running.stop_relays()
        for name in ("well", "ill"):
            running.stop(name)


def test_what_is_known_of_a_node_is_not_news() -> None:
    told = observer_pb2.GetFlowsResponse()
    told.node_status.state_change = relay_pb2.NODE_UNAVAILABLE
    told.node_status.node_names.append("a")
    counted = flows.AnswerCounts(flows.Style())
    assert [counted.add(told), counted.add(told)] == [True, False]
    assert counted.sentence() == "0 flows, without 1 node (a)"
    told.node_status.state_change = relay_pb2.NODE_CONNECTED
    assert counted.add(told)
    assert counted.sentence() == "0 flows, complete"


def test_what_a_newer_server_says_is_printed_as_a_number() -> None:
    told = observer_pb2.GetFlowsResponse()
    told.lost_events.source, told.lost_events.num_events_lost = 99, 3  # type: ignore[assignment]
    assert flows.gap_text(told, flows.Style()).endswith("EVENTS LOST: 99 3")
    judged = flow_pb2.Flow(event_type=flow_pb2.CiliumEventType(type=flows.VERDICT))
    judged.traffic_direction = 99  # type: ignore[assignment]
    assert flows.what(judged) == "policy-verdict:none 99"


def test_gaps_are_told_as_one_span_however_many_there_were() -> None:
    counted = flows.AnswerCounts(flows.Style())
    for second in (50, 30, 70):
        told = observer_pb2.GetFlowsResponse()
        told.lost_events.source, told.lost_events.num_events_lost = flow_pb2.HUBBLE_RING_BUFFER, 2
        told.lost_events.first.FromSeconds(second)
        told.lost_events.last.FromSeconds(second + 5)
        counted.add(told)
    assert counted.sentence() == (
        "0 flows, at least 0.0 % complete: missing <= 6 from Jan  1 00:00:30.000 to Jan  1 00:01:15.000 "
        "(6 no longer kept, or not read in time)"
    )
