"""Which drops pods are told of, in which words, and how often."""

from __future__ import annotations

from typing import Any

import pytest

from cilia.hubble.drop_events import (
    DEFAULT_REASONS,
    SENTENCES_A_POD,
    DropEvents,
    DropNotice,
    ReasonError,
    parse_reasons,
)
from cilia.hubble.store import FlowStore
from tests.support.hubble import CLIENT, DENY_DB, DROP, OTHER, SERVER, WALL, events, store


class Story:
    """A store, and what is told of it."""

    def __init__(self, reasons: str = DEFAULT_REASONS, interval: float = 120.0) -> None:
        self.flows: FlowStore = store()
        self.drops = DropEvents(self.flows, parse_reasons(reasons), interval)

    def happen(self, *rows: dict[str, Any]) -> None:
        first = self.flows.head
        self.flows.append([events(*rows)], offset=WALL)
        for span in self.flows.spans(first, self.flows.head):
            self.drops.take(span)

    def told(self, now: float = 0.0) -> list[DropNotice]:
        return self.drops.due(now)

    def words(self, *rows: dict[str, Any]) -> list[tuple[str, str]]:
        self.happen(*rows)
        return [(f"{notice.namespace}/{notice.pod}", notice.message) for notice in self.told()]


def test_a_pod_that_nobody_may_reach() -> None:
    assert Story().words(DROP) == [
        (
            "demo/server-0",
            "Incoming packet dropped (policy_denied) from demo/client-5f (10.0.1.5) TCP/8080: no rule of "
            "CiliumNetworkPolicy demo/allow-web, NetworkPolicy demo/isolate allows it",
        )
    ]


def test_a_pod_that_may_not_reach_somebody() -> None:
    row = {**DROP, "reason": 181, "direction": 2, "egress_cookie": DENY_DB, "protocol": 17}
    row |= {"destination": OTHER, "destination_identity": 5000, "destination_endpoint": 0}
    assert Story().words({**row, "destination_port": 5432}) == [
        (
            "demo/client-5f",
            "Outgoing packet dropped (policy_deny) to other/db-0 (10.0.2.7) UDP/5432: denied by "
            "CiliumClusterwideNetworkPolicy no-db",
        )
    ]


def test_the_place_in_the_yaml_is_told_if_so_wanted() -> None:
    story = Story()
    story.drops = DropEvents(story.flows, parse_reasons(DEFAULT_REASONS), extended=True)
    row = {**DROP, "reason": 181, "direction": 2, "egress_cookie": DENY_DB}
    ((_, words),) = story.words(row)
    assert words.endswith("denied by CiliumClusterwideNetworkPolicy no-db spec.egressDeny[1].toEndpoints[0]")


def test_the_world_has_a_name_and_icmp_no_port() -> None:
    row = {**DROP, "direction": 2, "protocol": 1, "icmp_type": 8}
    row |= {"destination": "192.0.2.80", "destination_identity": 2, "destination_endpoint": 0}
    ((pod, message),) = Story().words(row)
    assert (pod, message) == (
        "demo/client-5f",
        "Outgoing packet dropped (policy_denied) to world (192.0.2.80) ICMPv4",
    )


def test_a_denied_reply_is_told_to_who_opened_the_flow() -> None:
    row = {**DROP, "direction": 2, "flags": 1, "source": SERVER, "destination": CLIENT}
    row |= {"source_endpoint": 102, "source_identity": 1234, "destination_endpoint": 101}
    ((pod, message),) = Story().words({**row, "destination_identity": 4321, "destination_port": 41234})
    assert pod == "demo/client-5f"
    assert message.startswith(
        "Incoming reply dropped (policy_denied) from demo/server-0 (10.0.1.6) TCP/41234"
    )


@pytest.mark.parametrize(
    "row",
    [
        {},
        {**DROP, "reason": 132},
        {**DROP, "direction": 0},
        {**DROP, "destination": OTHER, "destination_identity": 5000, "destination_endpoint": 0},
        {**DROP, "destination": "192.0.2.80", "destination_identity": 2, "destination_endpoint": 0},
    ],
    ids=["forwarded", "another reason", "no direction", "another node's pod", "no pod"],
)
def test_what_is_not_told(row: dict[str, Any]) -> None:
    assert Story().words(row) == []


def test_the_same_again_is_counted_and_told_after_the_interval() -> None:
    story = Story(interval=60.0)
    story.happen(*[DROP] * 3)
    (first,) = story.told(0.0)
    assert (first.count, first.first, first.last) == (3, WALL, WALL + 2_000_000)
    story.happen(*[DROP] * 5)
    assert story.told(59.0) == []
    (second,) = story.told(60.0)
    assert (second.count, second.message) == (5, first.message)
    assert story.told(120.0) == []
    story.happen(DROP)
    assert [notice.count for notice in story.told(121.0)] == [1], "it was forgotten, so this is news"


def test_a_scan_gets_a_few_notices_and_the_rest_is_counted() -> None:
    story = Story(interval=60.0)
    story.happen(*[{**DROP, "destination_port": 1000 + number} for number in range(100)])
    other = {**DROP, "direction": 2, "egress_cookie": DENY_DB}
    story.happen(other)
    told = story.told(0.0)
    assert len([notice for notice in told if notice.pod == "server-0"]) == SENTENCES_A_POD
    assert len([notice for notice in told if notice.pod == "client-5f"]) == 1
    assert story.drops.suppressed == 100 - SENTENCES_A_POD
    story.told(60.0)
    story.happen({**DROP, "destination_port": 9})
    assert len(story.told(61.0)) == 1, "there is room again"


def test_many_policies_are_cut_short() -> None:
    from cilia.hubble.drop_events import policies
    from cilia.hubble.store import Rules
    from cilia.model.ids import Cookie
    from cilia.model.policy import CookieRow
    from tests.support.hubble import rule

    rules = tuple(rule("NetworkPolicy", "demo", f"p{number}", "spec") for number in range(9))
    text = policies(Rules(CookieRow(Cookie(1), rules, default=True), 1))
    assert text == (
        ": no rule of NetworkPolicy demo/p0, NetworkPolicy demo/p1, NetworkPolicy demo/p2 and 6 more "
        "allows it"
    )


def test_reasons_by_name() -> None:
    assert parse_reasons("policy_denied, POLICY_DENY") == {133, 181}
    with pytest.raises(ReasonError, match="no drop reason 'policy'"):
        parse_reasons("policy denied")
    with pytest.raises(ReasonError, match="no drop reasons are given"):
        parse_reasons(" ")
