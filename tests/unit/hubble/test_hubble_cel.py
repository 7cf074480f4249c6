"""Expressions over flows: what they mean, and which are refused."""

from __future__ import annotations

import pytest

from cilia.hubble.cel import Expression
from cilia.hubble.filter_values import FilterError
from cilia.proto.flow import flow_pb2
from tests.support.hubble import DEFAULT_DENY, NODE, OTHER, WALL, events, flow, store

ROWS = [
    flow(0),
    flow(1, kind=1, verdict=2, reason=133, state=0, point=0, ingress_cookie=DEFAULT_DENY),
    flow(2, destination=OTHER, destination_identity=5000, destination_endpoint=0, protocol=17),
    flow(3, flags=1, state=3, tcp_flags=0x12, destination_port=80),
    flow(4, protocol=1, icmp_type=8, tcp_flags=0, ifindex=7),
]


def matching(text: str) -> list[int]:
    flows = store()
    flows.append([events(*ROWS)], offset=WALL)
    expression = Expression(text, flows, NODE)
    (rows,) = flows.spans(0, flows.head)
    assert expression(rows).tolist() == expression(rows).tolist()
    return [int(number) for number in rows.numbers[expression(rows)]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", [0, 1, 2, 3, 4]),
        ("_flow.l4.TCP.source_port == 10001u", [1]),
        ("_flow.l4['TCP'].source_port == 10001u", [1]),
        ("_flow.l4.TCP.source_port == 10001u || _flow.l4.UDP.destination_port == 8080u", [1, 2]),
        ("has(_flow.l4.UDP) && has(_flow.l4.UDP.source_port)", [2]),
        ("_flow.verdict == Verdict.DROPPED", [1]),
        ("_flow.verdict == flow.Verdict.DROPPED", [1]),
        ("_flow.drop_reason_desc == DropReason.POLICY_DENIED", [1]),
        ("_flow.destination.namespace == 'other' || _flow.l4.TCP.destination_port == 80u", [2, 3]),
        ("_flow.l4.TCP.destination_port in [80, 8080]", [0, 1, 3]),
        ("_flow.l4.TCP.flags.SYN && _flow.l4.TCP.flags.ACK", [3]),
        ("_flow.destination.labels.exists(l, l == 'k8s:tier=web')", [0, 1, 3, 4]),
        ("_flow.source.workloads.exists(w, w.name.startsWith('cli'))", [0, 1, 2, 3, 4]),
        ("_flow.ingress_denied_by.exists(p, p.kind == 'NetworkPolicy')", [1]),
        ("_flow.is_reply == true", [3]),
        ("_flow.is_reply == null", [1]),
        ("has(_flow.l4.ICMPv4)", [4]),
        ("!has(_flow.interface)", [0, 1, 2, 3]),
        ("_flow.interface.name.matches('^lxc[0-9]+$')", [4]),
        ("_flow . event_type . type == 1", [1]),
        ("_flow['verdict'] == 2", [1]),
        ("_flow.Summary.contains('_flow.nothing')", []),
        ("_flow.l7.http.code == 404u", []),
        ("_flow.destination.labels[2] == 'k8s:tier=web'", [0, 1, 3, 4]),
        ("_flow.time >= timestamp('2026-11-22T00:00:00Z')", [0, 1, 2, 3, 4]),
        ("_flow.node_name == 'default/worker-1' && size(_flow.uuid) == 36", [0, 1, 2, 3, 4]),
        ("_flow.source.identity == 'x'", []),
    ],
)
def test_meaning(text: str, expected: list[int]) -> None:
    assert matching(text) == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "wrong"),
        ("_flow.verdict ==", "wrong"),
        ("(" * 900, "wrong"),
        ("_flow.source.pod == 'x'", "pod"),
        ("_flow.nothing == 1", "nothing"),
        ("_flow.verdict", "condition"),
        ("flows.verdict == 1", "flows"),
        ("launch('x')", "launch"),
        ("true" + " && true" * 300, "characters"),
        ("_flow.node_labels.all(a, _flow.node_labels.all(b, _flow.node_labels.all(c, a != b)))", "loops"),
    ],
)
def test_refused(text: str, word: str) -> None:
    with pytest.raises(FilterError, match=word) as refusal:
        matching(text)
    assert "\n" not in str(refusal.value)


def test_one_evaluation_for_equal_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    flows = store()
    flows.append([events(*({"source_port": port} for port in range(1000, 1100)))])
    expression = Expression("_flow.l4.TCP.flags.SYN && _flow.l4.TCP.destination_port == 8080u", flows, NODE)
    asked: list[flow_pb2.Flow] = []

    def matches(flow: flow_pb2.Flow) -> bool:
        asked.append(flow)
        return True

    monkeypatch.setattr(expression, "matches", matches)
    (rows,) = flows.spans(0, 100)
    assert expression(rows).all()
    assert expression(rows).all()
    assert len(asked) == 1
