"""Proposals read, CIDR groups swapped, flows gathered; one check at a time."""

from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest

from cilia.api.backend import ApiError
from cilia.api.types import CheckRequest, Document
from cilia.apps.agent import check
from cilia.apps.agent.check import Checker, Config, Snapshot, asked, recent
from cilia.control.policy.facts import Facts
from cilia.hubble.store import FlowStore
from cilia.kit.clock import ManualClock
from cilia.model.endpoint import RemoteEndpoint
from cilia.model.explain import CheckReport
from cilia.model.identity import reserved_identities
from cilia.model.ids import IdentityId
from cilia.model.labels import Labels
from cilia.model.policy import PolicyObject
from cilia.schema import CidrGroupRow, Desired, Inputs
from tests.support.hubble import WALL, events, store
from tests.support.waiting import until_async

WEB = IdentityId(300)
IDENTITIES = {row.id: row.labels for row in reserved_identities()} | {
    WEB: Labels.kubernetes("demo", {"app": "web"})
}
GROUPED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: out, namespace: demo}
spec:
  endpointSelector: {}
  egress:
  - toCIDRSet: [{cidrGroupRef: partners}]
"""
PARTNERS = """
apiVersion: cilium.io/v2alpha1
kind: CiliumCIDRGroup
metadata: {name: partners}
spec: {externalCIDRs: [198.51.100.0/24]}
"""


def documents(*texts: str) -> tuple[Document, ...]:
    return tuple(Document(name=f"{number}.yaml", text=text) for number, text in enumerate(texts))


def snapshot(*policies: PolicyObject, groups: tuple[CidrGroupRow, ...] = ()) -> Snapshot:
    """One pod on another node, and these policies in force."""
    empty = Snapshot(
        config=Config(),
        facts=Facts(sections=(), identities=IDENTITIES),
        policies=policies,
        groups=groups,
        services=(),
        slices=(),
        nodes=(),
        local=(),
        remote=(
            RemoteEndpoint(
                namespace="demo", name="web-0", identity=WEB, node_ip="192.0.2.2", addresses=("10.0.0.7",)
            ),
        ),
    )
    sections = check.sections_of(empty.inputs(), Config())
    facts = Facts(sections=sections, identities=IDENTITIES)
    return Snapshot(**{name: getattr(empty, name) for name in empty.__struct_fields__} | {"facts": facts})


def in_force() -> Snapshot:
    """GROUPED, with a group of one prefix."""
    proposal = check.propose(snapshot(), CheckRequest(documents=documents(GROUPED)))
    assert not proposal.problems
    return snapshot(
        *proposal.policies.values(), groups=(CidrGroupRow(name="partners", prefixes=("203.0.113.0/24",)),)
    )


def report(taken: Snapshot, *texts: str, delete: tuple[str, ...] = ()) -> CheckReport:
    return check.report(taken, CheckRequest(documents=documents(*texts), delete=delete), [])


def test_a_group_swapped_for_another_changes_who_is_reached() -> None:
    found = report(in_force(), PARTNERS)
    assert found.added == ("CiliumCIDRGroup partners",)
    told = {(row.destination, row.before, row.after) for row in found.pairs}
    assert told == {("203.0.113.0/24", "allow", "deny"), ("198.51.100.0/24", "deny", "allow")}


def test_a_policy_and_its_group_may_come_together() -> None:
    found = report(snapshot(), GROUPED, PARTNERS)
    assert not found.problems
    assert any("host" in row.destination and row.after == "deny" for row in found.pairs)
    assert not any("198.51.100.0/24" in row.destination for row in found.pairs)


def test_objects_that_stand_beside_policies_are_left_out_and_counted() -> None:
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n"
    deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n---\n"
    found = report(in_force(), pod + pod + deployment + GROUPED.replace("name: out", "name: more"))
    assert found.problems == ()
    assert found.added == ("CiliumNetworkPolicy demo/more",)
    assert found.notes[-1] == "Left out, since they are no policies: 1 Deployment, 2 Pod."


def test_an_api_server_outside_is_its_entity_and_the_world() -> None:
    labels = Labels.parse(["cidr:2001-db8--9/128", "reserved:kube-apiserver", "reserved:world"])
    facts = Facts(sections=(), identities=IDENTITIES | {IdentityId((1 << 24) + 5): labels})
    taken = msgspec.structs.replace(snapshot(), facts=facts)
    (actor,) = [actor for actor in check.actors(taken, facts) if actor.name == "2001:db8::9/128"]
    assert actor.party.labels == labels


def test_removals_open_what_was_closed() -> None:
    found = report(in_force(), delete=("CiliumNetworkPolicy/demo/out",))
    assert found.removed == ("CiliumNetworkPolicy demo/out",)
    assert {(row.before, row.after) for row in found.pairs} == {("deny", "allow")}


@pytest.mark.parametrize(
    ("text", "delete", "words"),
    [
        ("a: [", "", "can't be read"),
        ("kind: Nothing\napiVersion: v9", "", "kind Nothing of apiVersion v9 is not known"),
        ("kind: CiliumNetworkPolicies\napiVersion: cilium.io/v2", "", "is not known"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}", "", "There is no policy in what was given"),
        ("", "", "There is no policy in what was given"),
        (GROUPED + "---" + GROUPED, "", "defined twice"),
        (GROUPED.replace("cidrGroupRef: partners", "cidr: nonsense"), "", "nonsense"),
        (PARTNERS.replace("[198.51.100.0/24]", "7"), "", "externalCIDRs"),
        ("", "Pod/demo/web", "names no policy"),
        ("", "NetworkPolicy/demo/none", "There is no NetworkPolicy demo/none"),
    ],
)
def test_what_cannot_be_taken_is_said_and_nothing_compared(text: str, delete: str, words: str) -> None:
    found = report(in_force(), text, delete=(delete,) if delete else ())
    assert any(words in f"{problem.path} {problem.sentence}" for problem in found.problems), found.problems
    assert (found.flows, found.pairs) == ((), ())


def test_flows_are_counted_by_ends_and_port() -> None:
    flows = store()
    flows.append([events({"time": 1}, {"time": 2, "source_port": 5}, {"time": 3, "flags": 1})], offset=WALL)
    flows.append(
        [
            events(
                {
                    "time": 4,
                    "destination": "192.0.2.80",
                    "destination_identity": 2,
                    "destination_endpoint": 0,
                },
                {"time": 5, "kind": 1, "reason": 132},
                {"time": 6, "kind": 1, "reason": 133, "destination_port": 22},
            )
        ],
        offset=WALL,
    )
    found = recent(asked(flows, 0))
    assert (found[0].count, found[0].port) == (2, 8080)
    assert {(flow.destination_address, flow.port, flow.count, flow.last - WALL) for flow in found} == {
        ("", 8080, 2, 2),
        ("192.0.2.80", 8080, 1, 4),
        ("", 22, 1, 6),
    }
    assert found[0].source.pod == "client-5f"
    assert [flow.last - WALL for flow in recent(asked(flows, WALL + 5))] == [6]


def checker(flows: FlowStore) -> Checker:
    return Checker(
        Inputs(),
        Desired(),
        facts=lambda: Facts(sections=(), identities=IDENTITIES),
        flows=flows,
        config=Config(),
        clock=ManualClock(),
    )


def test_one_check_at_a_time() -> None:
    made = checker(store())

    async def both() -> tuple[object, object]:
        request = CheckRequest(documents=documents(GROUPED))
        return await asyncio.gather(made.check(request), made.check(request), return_exceptions=True)

    first, second = asyncio.run(both())
    assert isinstance(first, CheckReport)
    assert isinstance(second, ApiError)
    assert second.status == 429


async def given_up(made: Checker, request: CheckRequest, begun: threading.Event) -> None:
    """Ask, and wait no longer once the check has begun."""
    asking = asyncio.ensure_future(made.check(request))
    await until_async(begun.is_set, "the check to begin")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


def test_a_check_that_nobody_waits_for_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gave up and asks again does not get a second thread."""
    made, begun, go_on = checker(store()), threading.Event(), threading.Event()

    def slow(*_: object) -> CheckReport:
        begun.set()
        go_on.wait(60)
        raise ValueError("nobody is told")

    async def story() -> None:
        request = CheckRequest(documents=documents(GROUPED))
        with monkeypatch.context() as patch:
            patch.setattr(check, "report", slow)
            await given_up(made, request, begun)
        with pytest.raises(ApiError, match="Another check"):
            await made.check(request)
        go_on.set()
        while True:
            try:
                assert isinstance(await made.check(request), CheckReport)
            except ApiError:
                await asyncio.sleep(0.01)
            else:
                return

    asyncio.run(story())


def test_an_agent_that_stops_waits_for_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    made, begun, go_on, over = checker(store()), threading.Event(), threading.Event(), threading.Event()

    def slow(*_: object) -> CheckReport:
        begun.set()
        go_on.wait(60)
        over.set()
        return CheckReport()

    async def story() -> None:
        monkeypatch.setattr(check, "report", slow)
        await given_up(made, CheckRequest(), begun)

    asyncio.run(story())
    assert not over.is_set()
    go_on.set()
    assert over.wait(60)


def test_a_window_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ApiError, match="window of flows"):
        asyncio.run(checker(store()).check(CheckRequest(since=-1.0)))
