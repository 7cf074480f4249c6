"""What is asked when somebody asks about a flow, or types ends and ports."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cilia.api.backend import ApiError, Question
from cilia.apps.agent.ends import Ends
from cilia.apps.agent.explain import Explainer
from cilia.control.policy.facts import Facts
from cilia.hubble.columns import FLAG_REPLY
from cilia.hubble.store import FlowStore
from cilia.model.explain import Explanation
from cilia.model.identity import reserved_identities
from cilia.model.ids import IdentityId, Revision
from cilia.model.labels import Labels
from cilia.model.node import IpcacheEntry
from cilia.schema import Desired, Inputs
from tests.support.hubble import DEFAULTS, WALL, events, store

IDENTITIES = {row.id: row.labels for row in reserved_identities()} | {
    IdentityId(300): Labels.kubernetes("demo", {"app": "client"}),
    IdentityId(301): Labels.kubernetes("demo", {"app": "server"}),
}


def explainer(flows: FlowStore) -> Explainer:
    desired = Desired()
    desired.ipcache.put(IpcacheEntry(prefix=f"{DEFAULTS['source']}/32", identity=300))
    desired.ipcache.put(IpcacheEntry(prefix=f"{DEFAULTS['destination']}/32", identity=301))
    return Explainer(
        Inputs(),
        desired,
        facts=lambda: Facts(sections=(), identities=IDENTITIES),
        read=lambda: lambda _: (),
        revision=lambda: Revision(3),
        flows=flows,
    )


def told_of(**fields: Any) -> Explanation:
    """The explanation of one flow."""
    flows = store()
    flows.append([events(fields)], [], offset=WALL)
    uuid = f"{flows.boot:016x}8000{0:012x}"
    return asyncio.run(explainer(flows).explain(Question(flow=uuid)))


ANSWER = {"flags": FLAG_REPLY, "source": DEFAULTS["destination"], "destination": DEFAULTS["source"]}


def test_an_answer_is_explained_by_its_question() -> None:
    """Nobody needs a rule for the client's own port."""
    asked = told_of(source_port=45678, destination_port=8080)
    answered = told_of(**ANSWER, source_port=8080, destination_port=45678)
    for told in (asked, answered):
        assert (told.source.identity, told.destination.identity) == (300, 301)
        assert (told.protocol, told.port) == ("TCP", "8080")
    assert answered.then is not None and "an answer" in answered.then.summary


@pytest.mark.parametrize(
    ("protocol", "kind", "asked"), [(1, 0, "8"), (1, 14, "13"), (58, 129, "128"), (1, 8, "8")]
)
def test_an_echo_is_explained_by_the_call(protocol: int, kind: int, asked: str) -> None:
    assert told_of(**ANSWER, protocol=protocol, icmp_type=kind).port == asked


NO_NUMBERS = ["\u00b2", "\u0663\u0663", "9" * 5000, "80\u00b2/TCP", "\u00b2/ip", "-1", "+80", "8_0"]


@pytest.mark.parametrize("port", NO_NUMBERS)
def test_a_port_that_is_no_number_is_refused(port: str) -> None:
    question = Question(source="world", destination="host", port=port)
    with pytest.raises(ApiError) as refused:
        asyncio.run(explainer(store()).explain(question))
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "end", [*NO_NUMBERS, "endpoint:\u00b2", "identity:" + "9" * 5000, "\x1b[2J", "=", "a/b/c", ":"]
)
def test_an_end_that_is_nobody_is_refused(end: str) -> None:
    with pytest.raises(ApiError) as refused:
        asyncio.run(explainer(store()).explain(Question(source=end, destination="host", port="80")))
    assert refused.value.status in (400, 404)


@pytest.mark.parametrize(("uuid", "status"), [("", 404), ("0" * 32, 404), ("x" * 32, 404), ("{}" * 9, 404)])
def test_flows_of_others_are_nobodys(uuid: str, status: int) -> None:
    with pytest.raises(ApiError) as refused:
        asyncio.run(explainer(store()).explain(Question(flow=uuid or "-")))
    assert refused.value.status == status


def test_a_flow_that_is_overwritten_is_gone() -> None:
    flows = store(capacity=16)
    flows.append([events(*[{} for _ in range(40)])], [], offset=WALL)
    for row, status in ((0, 410), (23, 410), (40, 404), (1 << 47, 404)):
        with pytest.raises(ApiError) as refused:
            asyncio.run(explainer(flows).explain(Question(flow=f"{flows.boot:016x}8000{row:012x}")))
        assert refused.value.status == status
    assert (
        asyncio.run(explainer(flows).explain(Question(flow=f"{flows.boot:016x}8000{39:012x}"))).verdict
        == "allow"
    )


def test_an_api_server_outside_is_its_entity_and_the_world() -> None:
    number = IdentityId((1 << 24) + 5)
    labels = Labels.parse(["cidr:192.0.2.9/32", "reserved:kube-apiserver", "reserved:world"])
    desired = Desired()
    desired.ipcache.put(IpcacheEntry(prefix="192.0.2.9/32", identity=number))
    facts = Facts(sections=(), identities=IDENTITIES | {number: labels})
    found = Ends(Inputs(), desired, facts).at("192.0.2.9", "192.0.2.9")
    assert found.party.labels == labels
    assert found.end.identity == number
