"""The REST API end to end: client, unix socket, server, tables."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.api import sockets
from cilia.api.backend import (
    ApiError,
    Caller,
    CniRequest,
    EndpointReference,
    Question,
    not_found,
    parse_reference,
)
from cilia.api.client import AgentClient, AgentError
from cilia.api.server import ApiServer, ApiSettings, Listener, api_application, parse_listen
from cilia.api.table_backend import TableBackend
from cilia.api.types import (
    CheckRequest,
    Component,
    Health,
    LocalBackend,
    LocalService,
    MapDump,
    MapEntry,
    MapView,
    MetricForecast,
    NatUse,
    OptionChange,
    PolicyRevision,
    PolicyUsage,
    SelectorView,
    Setting,
    StatusResponse,
    VerifyReport,
)
from cilia.model.endpoint import Attachment, Endpoint, EndpointEntry, EndpointState
from cilia.model.explain import CheckReport, Explanation
from cilia.model.identity import Identity
from cilia.model.ids import Cookie, EndpointId, IdentityId, Revision, SubjectId
from cilia.model.labels import Labels
from cilia.model.node import IpcacheEntry, Node
from cilia.model.policy import (
    CookieRow,
    Entry,
    EntryKey,
    MatchKind,
    PolicyObject,
    PolicyProblem,
    PolicyState,
    RuleRef,
    SubjectKey,
    SubjectPolicy,
)
from cilia.schema import Desired, Inputs
from cilia.wire import cni

T = TypeVar("T")
LABELS = Labels.parse(["k8s:app=web", "k8s:io.kubernetes.pod.namespace=demo"])
RULE = RuleRef("CiliumNetworkPolicy", "demo", "allow-web", "17", "spec.ingress[0]")


class FakeAgent(TableBackend):
    """A node with one endpoint named `policy`, and knobs for faults."""

    def __init__(self) -> None:
        super().__init__(Inputs(), Desired(), "n1")
        self.state = Health.OK
        self.failure: Exception | None = None
        self.hang = False
        self.asked: tuple[OptionChange, Caller] | None = None
        self.by_hand: dict[str, LocalService] = {}
        self.waiting = asyncio.Event()
        attachment = Attachment(
            id=EndpointId(7),
            container_id="abcdef0123",
            interface="eth0",
            netns="/run/netns/a",
            host_interface="lxc7",
            ifindex=9,
            mac="02:00:00:00:00:02",
            host_mac="02:00:00:00:00:01",
            ipv4="10.0.0.7",
            ipv6="fd00::7",
            namespace="demo",
            pod="policy",
            pod_uid="u-1",
        )
        desired = self.desired
        desired.endpoints.put(
            Endpoint(
                attachment=attachment, labels=LABELS, identity=IdentityId(300), state=EndpointState.READY
            )
        )
        desired.endpoint_entries.put(
            EndpointEntry(
                id=EndpointId(7),
                ifindex=9,
                identity=IdentityId(300),
                subject=SubjectId(1),
                mac=attachment.mac,
                host_mac=attachment.host_mac,
            )
        )
        desired.identities.put(Identity(IdentityId(300), LABELS))
        desired.subjects.put(
            SubjectPolicy(
                subject=SubjectId(1),
                key=SubjectKey(IdentityId(300)),
                labels=LABELS,
                rules="f",
                revision=Revision(4),
                entries={
                    EntryKey(1, 300, 6, 8080, 24): Entry(90, True, Cookie(5), MatchKind.L3_L4),
                    EntryKey(1, 0, 0, 0, 0): Entry(1, False, Cookie(6), MatchKind.NONE),
                    EntryKey(1, 0, 6, 8000, 20): Entry(50, True, Cookie(99), MatchKind.L4_ONLY, proxy_port=1),
                    EntryKey(2, 0, 17, 0, 8): Entry(50, True, Cookie(99), MatchKind.PROTOCOL_ONLY),
                },
                ingress_enforced=True,
                egress_enforced=False,
            )
        )
        desired.cookies.put(CookieRow(Cookie(5), (RULE,)))
        desired.ipcache.put(
            IpcacheEntry(
                prefix="10.0.1.3/32",
                identity=300,
                tunnel_endpoint="172.18.0.3",
                namespace="demo",
                pod="web",
            )
        )
        for name in ("bad", "good", "new"):
            self.inputs.policies.put(
                PolicyObject(
                    kind="CiliumNetworkPolicy",
                    namespace="demo",
                    name=name,
                    resource_version="17",
                    generation=1,
                )
            )
        desired.policy_states.put(_state("good", "17"))
        desired.policy_states.put(_state("bad", "17", PolicyProblem("spec.egress[0].toFQDNs", "Not yet.")))
        desired.policy_states.put(_state("new", "16"))
        self.inputs.nodes.put(Node(name="n1", addresses=("172.18.0.2",), pod_cidrs=("10.0.0.0/24",)))

    async def status(self) -> StatusResponse:
        if self.failure is not None:
            raise self.failure
        return StatusResponse(agent=Component(state=self.state, msg="1 endpoint"), node="n1")

    async def wait_policy(self, revision: int, timeout: float) -> PolicyRevision:
        if self.hang:
            self.waiting.set()
            await asyncio.Event().wait()
        return PolicyRevision(realized=4, reached=revision <= 4)

    async def maps(self) -> list[MapView]:
        return [MapView(name="ipcache", type="lpm_trie", max_entries=10)]

    async def nat(self) -> NatUse:
        return NatUse(limit=100, total=1)

    async def map(self, name: str, limit: int, *, raw: bool = False) -> MapDump:
        if name != "ipcache":
            raise ApiError(404, f"There is no map {name}; `cilia map list` lists the maps.")
        return MapDump(name=name, entries=(MapEntry(key={"prefix": "10.0.1.3/32"}, value={"identity": 300}),))

    async def settings(self) -> list[Setting]:
        return [Setting(name="tunnel", value="vxlan", source="flag")]

    async def change_settings(self, change: OptionChange, caller: Caller) -> list[Setting]:
        self.asked = (change, caller)
        return [Setting(name="enforcement", value="always", source="live", option="PolicyEnforcement")]

    async def endpoint_settings(self, reference: EndpointReference) -> list[Setting]:
        self._endpoint(reference)
        return [Setting(name="policy-audit-mode", value=False)]

    async def change_endpoint(
        self, reference: EndpointReference, change: OptionChange, caller: Caller
    ) -> list[Setting]:
        self._endpoint(reference)
        self.asked = (change, caller)
        return [Setting(name="policy-audit-mode", value=True, source="live")]

    async def verify(self, *, repair: bool) -> VerifyReport:
        return VerifyReport(count=1, repaired=int(repair))

    async def local_services(self) -> list[LocalService]:
        return list(self.by_hand.values())

    async def put_local_service(self, service: LocalService, caller: Caller) -> LocalService:
        self.by_hand[service.frontend] = service
        return service

    async def delete_local_service(self, frontend: str, caller: Caller) -> list[LocalService]:
        if self.by_hand.pop(frontend, None) is None:
            raise not_found("service by hand at", frontend, "GET /v1/local-service lists them")
        return await self.local_services()

    async def selectors(self) -> list[SelectorView]:
        return []

    async def policy_usage(self) -> PolicyUsage:
        return PolicyUsage()

    async def metrics_forecast(self, metrics: str) -> list[MetricForecast]:
        return []

    async def explain(self, question: Question) -> Explanation:
        raise ApiError(404, "Not here.")

    async def check(self, request: CheckRequest) -> CheckReport:
        return CheckReport()

    async def metrics(self) -> bytes:
        return b"cilium_endpoint_state 1\n"

    async def cni(self, request: CniRequest) -> cni.Result | None:
        raise cni.CniError(cni.Code.TRY_AGAIN_LATER, "Not here.")


def _state(name: str, version: str, *problems: PolicyProblem) -> PolicyState:
    return PolicyState(
        kind="CiliumNetworkPolicy",
        namespace="demo",
        name=name,
        resource_version=version,
        generation=1,
        valid=not problems,
        problems=problems,
    )


class Doors:
    """A running server and its client."""

    def __init__(self, directory: Path) -> None:
        self.agent = FakeAgent()
        self.path = directory / "run" / "agent.sock"
        self.server = ApiServer(
            self.agent, ApiSettings(socket=self.path, health="127.0.0.1:0", metrics="127.0.0.1:0")
        )
        self.client = AgentClient(self.path, timeout=30)

    async def ask(self, question: Callable[[AgentClient], T]) -> T:
        return await asyncio.to_thread(question, self.client)

    async def raw(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self.path)
        writer.write(data)
        try:
            return await asyncio.wait_for(reader.read(), 30)
        finally:
            writer.close()

    async def tcp(self, door: int, path: str) -> tuple[int, bytes]:
        address = self.server._listeners[door].address
        assert address is not None
        reader, writer = await asyncio.open_connection(*address)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), body


@asynccontextmanager
async def doors(directory: Path) -> AsyncIterator[Doors]:
    opened = Doors(directory)
    await opened.server.start()
    try:
        yield opened
    finally:
        await opened.server.stop()


def run(directory: Path, story: Callable[[Doors], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with doors(directory) as opened:
            await story(opened)

    asyncio.run(whole())


def test_every_route_answers_what_the_tables_hold(tmp_path: Path) -> None:
    async def story(d: Doors) -> None:
        assert (await d.ask(lambda c: c.status())).ready
        (endpoint,) = await d.ask(lambda c: c.endpoints())
        assert endpoint.status.identity.id == 300
        assert endpoint.status.networking.addressing[0].ipv6 == "fd00::7"
        assert endpoint.status.policy.realized.policy_enabled == "ingress"
        assert await d.ask(lambda c: c.endpoint("7")) == endpoint
        assert await d.ask(lambda c: c.endpoint("pod-name:demo/policy")) == endpoint
        assert await d.ask(lambda c: c.endpoint("container-id:abcdef")) == endpoint
        assert [i.id for i in await d.ask(lambda c: c.identities())] == [300]
        assert (await d.ask(lambda c: c.identity(300))).labels[0] == "k8s:app=web"
        (address,) = await d.ask(lambda c: c.addresses())
        assert (address.host_ip, address.metadata.name) == ("172.18.0.3", "web")
        assert (await d.ask(lambda c: c.cookie(5))).rules[0].path == "spec.ingress[0]"
        assert (await d.ask(lambda c: c.maps()))[0].name == "ipcache"
        assert (await d.ask(lambda c: c.map("ipcache"))).entries[0].value == {"identity": 300}
        assert (await d.ask(lambda c: c.nodes()))[0].local
        assert (await d.ask(lambda c: c.settings()))[0].value == "vxlan"
        assert "cilium_endpoint_state" in await d.ask(lambda c: c.metrics())

    run(tmp_path, story)


def test_an_endpoints_policy_names_the_rule_of_each_entry(tmp_path: Path) -> None:
    async def story(d: Doors) -> None:
        for reference in ("7", "pod-name:demo/policy", "container-id:abcdef0123"):
            policy = await d.ask(lambda c, r=reference: c.endpoint_policy(r))  # type: ignore[misc]
            first, second, third, fourth = policy.entries
            assert (first.port, first.protocol, first.verdict) == ("8080", "TCP", "allow")
            assert first.rules[0].name == "allow-web"
            assert first.peer_labels[0] == "k8s:app=web"
            assert (second.port, second.verdict) == ("8000-8015", "redirect")
            assert (third.port, third.protocol, third.verdict) == ("any", "any", "deny")
            assert (fourth.direction, fourth.protocol, fourth.port) == ("egress", "UDP", "any")

    run(tmp_path, story)


def test_a_policys_state_counts_only_for_the_version_it_was_made_for(tmp_path: Path) -> None:
    async def story(d: Doors) -> None:
        listed = await d.ask(lambda c: c.policies())
        assert {p.name: p.state for p in listed.policies} == {
            "bad": "invalid",
            "good": "valid",
            "new": "pending",
        }
        assert listed.policies[0].problems[0].path == "spec.egress[0].toFQDNs"

    run(tmp_path, story)


def test_waiting_for_a_revision(tmp_path: Path) -> None:
    async def story(d: Doors) -> None:
        assert (await d.ask(lambda c: c.wait_policy(4, 1))).reached
        assert not (await d.ask(lambda c: c.wait_policy(5, 1))).reached

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("question", "status", "words"),
    [
        (lambda c: c.endpoint("8"), 404, "cilia endpoint list"),
        (lambda c: c.endpoint("web"), 400, "pod-name:"),
        (lambda c: c.endpoint("pod-name:demo/absent"), 404, "demo/absent"),
        (lambda c: c.identity(1), 404, "identity 1"),
        (lambda c: c.cookie(1 << 40), 400, "below"),
        (lambda c: c.map("../etc"), 404, "no"),
        (lambda c: c.wait_policy(1, 9999.0), 400, "300"),
        (lambda c: c.wait_policy(-1, 1.0), 400, "revision"),
    ],
)
def test_wrong_questions_get_one_sentence(
    tmp_path: Path, question: Callable[[AgentClient], Any], status: int, words: str
) -> None:
    async def story(d: Doors) -> None:
        with pytest.raises(AgentError) as caught:
            await d.ask(question)
        assert caught.value.status == status
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    run(tmp_path, story)


def test_a_bug_of_ours_shows_no_trace_to_the_client(tmp_path: Path) -> None:
    async def story(d: Doors) -> None:
        d.agent.failure = RuntimeError("secret detail")
        with pytest.raises(AgentError, match="its log has the trace"):
            await d.ask(lambda c: c.status())

    run(tmp_path, story)


def test_health_and_metrics_over_tcp(tmp_path: Path) -> None:
    async def story(d: Doors) -> None:
        status, body = await d.tcp(1, "/healthz")
        assert (status, json.loads(body)["cilium"]["state"]) == (200, "Ok")
        d.agent.state = Health.FAILURE
        assert (await d.tcp(1, "/healthz"))[0] == 503
        assert (await d.tcp(2, "/metrics"))[1] == b"cilium_endpoint_state 1\n"
        assert (await d.tcp(2, "/v1/endpoint"))[0] == 404

    run(tmp_path, story)


def test_only_get_and_only_known_paths(tmp_path: Path) -> None:
    async def story(d: Doors) -> None:
        for request, status in (
            (b"DELETE /v1/endpoint HTTP/1.1", b"405"),
            (b"GET /v2 HTTP/1.1", b"404"),
            (b"\x00\xff rubbish", b"400"),
        ):
            answer = await d.raw(request + b"\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert answer.split()[1] == status, answer
        endless = await d.raw(b"GET /" + b"x" * 20_000)
        assert endless.split()[1] == b"400"

    run(tmp_path, story)


def test_stopping_answers_those_who_wait(tmp_path: Path) -> None:
    async def story(d: Doors) -> None:
        d.agent.hang = True
        waiting = asyncio.ensure_future(d.ask(lambda c: c.wait_policy(1, 30.0)))
        await d.agent.waiting.wait()
        await d.server.stop()
        with pytest.raises(AgentError, match="stopping"):
            await waiting

    run(tmp_path, story)


def test_an_idle_connection_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilia.api.server.IDLE_SECONDS", 0.05)

    async def story(d: Doors) -> None:
        assert await d.raw(b"GET /v1/hea") == b""

    run(tmp_path, story)


def test_strangers_are_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "trusted_users", lambda: frozenset({4_000_000}))

    async def story(d: Doors) -> None:
        with pytest.raises(AgentError, match="Only root"):
            await d.ask(lambda c: c.status())

    run(tmp_path, story)


def test_sockets_are_private_and_stale_ones_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    first = sockets.bind_private(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with pytest.raises(sockets.SocketError, match="Another process answers"):
        sockets.bind_private(path)
    first.close()
    sockets.bind_private(path).close()
    path.unlink()
    path.write_text("")
    with pytest.raises(sockets.SocketError, match="not a socket"):
        sockets.bind_private(path)
    path.parent.chmod(0o777)
    with pytest.raises(sockets.SocketError, match="writable by others"):
        sockets.bind_private(path)
    with pytest.raises(sockets.SocketError, match="107"):
        sockets.bind_private(tmp_path / ("x" * 108))


def test_a_taken_port_is_said_in_a_sentence_and_opens_no_door(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = tmp_path / "agent.sock"
        server = ApiServer(FakeAgent(), ApiSettings(socket=path, health=f"127.0.0.1:{port}", metrics=""))
        with pytest.raises(sockets.SocketError, match="choose another"):
            asyncio.run(server.start())
        assert not path.exists()


def test_listen_addresses() -> None:
    assert parse_listen(":9962") == ("", 9962)
    assert parse_listen("[::1]:80") == ("::1", 80)
    for wrong in ("9962", "host:", "host:http", "host:70000"):
        with pytest.raises(sockets.SocketError, match="HOST:PORT"):
            parse_listen(wrong)


def test_the_client_says_what_to_do(tmp_path: Path) -> None:
    client = AgentClient(tmp_path / "absent.sock", timeout=1)
    with pytest.raises(AgentError, match="start cilia-agent"):
        client.status()
    sockets.bind_private(tmp_path / "dead.sock").close()
    with pytest.raises(AgentError, match="not running"):
        AgentClient(tmp_path / "dead.sock", timeout=1).status()


@given(st.text(max_size=40))
def test_references_parse_or_are_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except ApiError as error:
        assert error.status == 400
    else:
        assert parse_reference(str(reference)) == reference
        assert reference != EndpointReference()


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30), st.binary(max_size=20))
def test_no_path_or_query_brings_the_application_down(path: str, query: str, raw: bytes) -> None:
    application = api_application(FakeAgent())
    status = 0

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/" + path,
        "raw_path": b"",
        "query_string": query.encode("utf-8", "replace") + raw,
        "headers": [(b"x", raw)],
        "scheme": "http",
        "server": None,
        "root_path": "",
    }
    call: Coroutine[Any, Any, None] = application(scope, receive, send)
    asyncio.run(call)
    assert status in (200, 307, 400, 404, 409)


def test_a_listener_stops_twice(tmp_path: Path) -> None:
    async def story() -> None:
        listener = Listener(api_application(FakeAgent()))
        await listener.listen_unix(tmp_path / "a.sock")
        await listener.stop()
        await listener.stop()

    asyncio.run(story())


def test_a_change_reaches_the_agent_with_whoever_asks(tmp_path: Path) -> None:
    async def story(d: Doors) -> None:
        change = OptionChange(options={"PolicyEnforcement": "always"}, reset=("PolicyAuditMode",))
        (row,) = await d.ask(lambda c: c.change_settings(change))
        assert (row.value, row.source, row.option) == ("always", "live", "PolicyEnforcement")
        assert d.agent.asked == (change, Caller(pid=os.getpid(), uid=os.getuid()))
        (row,) = await d.ask(lambda c: c.change_endpoint("pod-name:demo/policy", change))
        assert row.value is True
        (row,) = await d.ask(lambda c: c.endpoint_settings("7"))
        assert row.value is False

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/config", b"", b"400"),
        ("/v1/config", b"[]", b"400"),
        ("/v1/config", b'{"option": {"a": "b"}}', b"400"),
        ("/v1/config", b'{"options": {"a": 1}}', b"400"),
        ("/v1/config", b"\xff\xfe", b"400"),
        ("/v1/config", b'{"options": {"a": "' + b"x" * 70_000 + b'"}}', b"413"),
        ("/v1/endpoint/7", b'{"options": {"a": "b"}}', b"405"),
        ("/v1/endpoint/99/config", b'{"options": {"a": "b"}}', b"404"),
        ("/v1/policy", b"{}", b"405"),
    ],
)
def test_a_change_that_makes_no_sense_changes_nothing(
    tmp_path: Path, path: str, body: bytes, status: bytes
) -> None:
    async def story(d: Doors) -> None:
        head = f"PATCH {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        answer = await d.raw(head.encode() + body)
        assert answer.split()[1] == status
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"].endswith(".")
        assert d.agent.asked is None

    run(tmp_path, story)


def test_services_by_hand_come_and_go(tmp_path: Path) -> None:
    async def story(opened: Doors) -> None:
        backends = (LocalBackend(address="10.0.0.1:80", weight=2), "10.0.0.2:80")
        service = LocalService(frontend="[2001:db8::1]:80/TCP", backends=backends, affinity=9)
        assert await opened.ask(lambda client: client.put_local_service(service)) == service
        assert await opened.ask(lambda client: client.local_services()) == [service]
        with pytest.raises(AgentError, match="no service by hand at"):
            await opened.ask(lambda client: client.delete_local_service("10.0.0.9:1/TCP"))
        assert await opened.ask(lambda client: client.delete_local_service(service.frontend)) == []
        answer = await opened.raw(
            b"PUT /v1/local-service HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\nconnection: close\r\n\r\n"
            b'{"front": 1}'
        )
        assert b"makes no sense" in answer

    run(tmp_path, story)


def test_verification_repairs_only_when_asked_to(tmp_path: Path) -> None:
    async def story(opened: Doors) -> None:
        assert (await opened.ask(lambda client: client.verify())).repaired == 0
        assert (await opened.ask(lambda client: client.verify(repair=True))).repaired == 1

    run(tmp_path, story)
