"""The routes for explaining, checking, selectors and usage: what arrives and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cilia.api.backend import ApiError, Question
from cilia.api.client import AgentClient, AgentError
from cilia.api.server import ApiServer, ApiSettings
from cilia.api.types import (
    CheckRequest,
    Document,
    MetricForecast,
    PolicyUsage,
    RuleUsage,
    RuleView,
    SelectorView,
)
from cilia.api.views import selectors
from cilia.control.policy.facts import LOCALHOST
from cilia.control.policy.rules import (
    ALL_PORTS,
    Action,
    Cidr,
    Meant,
    Rule,
    Section,
    Selector,
    equals,
    reserved,
)
from cilia.model.explain import CheckReport, End, Explanation
from cilia.model.identity import HOST
from cilia.model.ids import IdentityId
from cilia.model.policy import Direction, RuleRef

T = TypeVar("T")
RULE = RuleView(kind="K", namespace="n", name="p", resource_version="1", path="spec")
TOLD = Explanation(
    source=End(given="a", identity=1),
    destination=End(given="b", identity=2),
    protocol="TCP",
    port="80",
    verdict="allow",
)


class FakeBackend:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.failure: ApiError | None = None

    async def explain(self, question: Question) -> Explanation:
        self.asked.append(question)
        return TOLD

    async def check(self, request: CheckRequest) -> CheckReport:
        self.asked.append(request)
        if self.failure is not None:
            raise self.failure
        return CheckReport(flows_seen=3)

    async def selectors(self) -> list[SelectorView]:
        return [SelectorView(selector="app=web", users=(RULE,), identities=(300,))]

    async def policy_usage(self) -> PolicyUsage:
        return PolicyUsage(counted_since="then", rules=(RuleUsage(rule=RULE, hits=2),))

    async def metrics_forecast(self, metrics: str) -> list[MetricForecast]:
        return [MetricForecast(metric=metrics, by_label=(("port", 3),))]


def served(tmp_path: Path, backend: Any, ask: Callable[[AgentClient], T]) -> T:
    """What a client gets from a server before `backend`."""

    async def run() -> T:
        directory = tmp_path / "run"
        directory.mkdir(mode=0o700, exist_ok=True)
        path = directory / "agent.sock"
        server = ApiServer(backend, ApiSettings(socket=path, health="", metrics=""))
        await server.start()
        try:
            return await asyncio.to_thread(ask, AgentClient(path, timeout=30.0))
        finally:
            await server.stop()

    return asyncio.run(run())


def test_ends_and_port_arrive_as_typed(tmp_path: Path) -> None:
    backend = FakeBackend()
    told = served(
        tmp_path, backend, lambda client: client.explain("app=a,k8s:b=c/d", "2001:db8::1", "80/TCP")
    )
    assert told == TOLD
    assert backend.asked == [Question(source="app=a,k8s:b=c/d", destination="2001:db8::1", port="80/TCP")]


def test_a_flow_stands_alone(tmp_path: Path) -> None:
    backend = FakeBackend()
    served(tmp_path, backend, lambda client: client.explain_flow("12-34"))
    assert backend.asked == [Question(flow="12-34")]


def test_half_a_question_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="between whom") as caught:
        served(tmp_path, FakeBackend(), lambda client: client.explain("a", "", "80"))
    assert caught.value.status == 400


def test_documents_arrive_whole(tmp_path: Path) -> None:
    backend = FakeBackend()
    request = CheckRequest(
        documents=(Document(name="a.yaml", text="x: \u00e9\n" * 50_000),), delete=("K/n/p",), since=60.0
    )
    assert served(tmp_path, backend, lambda client: client.check(request)).flows_seen == 3
    assert backend.asked == [request]


def test_too_much_is_refused(tmp_path: Path) -> None:
    request = CheckRequest(documents=(Document(name="a.yaml", text="x" * (17 << 20)),))
    with pytest.raises(AgentError):
        served(tmp_path, FakeBackend(), lambda client: client.check(request))


def test_a_busy_agent_says_so(tmp_path: Path) -> None:
    backend = FakeBackend()
    backend.failure = ApiError(429, "Another check is running; try again when it is done.")
    with pytest.raises(AgentError, match="Another check") as caught:
        served(tmp_path, backend, lambda client: client.check(CheckRequest()))
    assert caught.value.status == 429


def test_selectors_and_usage(tmp_path: Path) -> None:
    backend = FakeBackend()
    assert served(tmp_path, backend, lambda client: client.selectors())[0].identities == (300,)
    assert served(tmp_path, backend, lambda client: client.policy_usage()).rules[0].hits == 2


def test_selectors_know_their_rules_and_the_built_in_one() -> None:
    web, prefix = Selector((equals("k8s", "app", "web"),)), Cidr("10.0.0.0/8")
    ref = RuleRef("CiliumNetworkPolicy", "demo", "p", "1", "spec.ingress[0]")
    rule = Rule(Direction.INGRESS, web, ALL_PORTS, Action.ALLOW, ref)
    section = Section(subject=Selector(), ref=ref, isolates=(), rules=(rule, rule))
    peers: dict[Meant, Set[IdentityId]] = {
        web: {IdentityId(300), IdentityId(301)},
        prefix: set[IdentityId](),
        reserved("host"): {HOST},
    }
    first, host, empty = selectors(peers, [section])
    assert (first.selector, first.identities, len(first.users)) == ("k8s:app=web", (300, 301), 1)
    assert host.users[0].name == LOCALHOST.name
    assert (empty.selector, empty.identities) == ("10.0.0.0/8", ())


def test_metrics_are_asked_for_as_they_were_typed(tmp_path: Path) -> None:
    text = "flow:sourceContext=pod|dns;destinationContext=pod drop"
    (told,) = served(tmp_path, FakeBackend(), lambda client: client.metrics_forecast(text))
    assert (told.metric, told.by_label) == (text, (("port", 3),))
