"""Expressions that would hold up the agent, and that evaluating many lets others have their turn."""

from __future__ import annotations

import pytest

from cilia.hubble.cel import Expression
from cilia.hubble.filter_values import FilterError
from cilia.hubble.turns import Turn, TurnOver
from tests.support.hubble import NODE, WALL, events, flow, store

ROWS = [flow(0), flow(1, kind=1, verdict=2, reason=133, state=0, point=0), flow(2, protocol=17)]


def matching(text: str) -> list[int]:
    flows = store()
    flows.append([events(*ROWS)], offset=WALL)
    (rows,) = flows.spans(0, flows.head)
    return [int(number) for number in rows.numbers[Expression(text, flows, NODE)(rows)]]


LISTED = "[" + ",".join("0" * 100) + "]"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (f"{LISTED}.all(a, true)", "commas"),
        ("[[0]].all(x, (" + "+".join("x" * 100) + ").all(y, true))", "commas"),
        ("[0].all(a, [0].all(b, " + "a == b && " * 50 + "true))", "500"),
        # Where a text ends decides whether a loop is one.
        ('true // "\n && [0].all(a, [0].all(b, [0].all(c, true))) // "', "loops"),
        ("[0]. // x\n all(a, [0].all // x\n (b, [0].all(c, true)))", "loops"),
        (r'r"\" == "" || [0].all(a, [0].all(b, [0].all(c, true))) || "" == ""', "loops"),
        (r"_flow.Summary.matches('\\w{100}')", "cost"),
        (r"_flow.Summary.matches('(\\w{9}){9}')", "cost"),
        (r"_flow.Summary.matches(r'(?x)\w{ 100 }')", "cost"),
        (r"_flow.Summary.matches('\\w') || " * 20 + "true", "cost"),
        (r"_flow.node_labels.exists(l, l.matches('\\w+-\\w+-\\w+-\\w+'))", "cost"),
        (r"_flow.Summary.matches('\x5cw{100}')", "number"),
        (r"_flow.Summary.matches('\\' + 'w{1' + '00}')", "write the regular"),
        ("_flow.Summary.matches(_flow.uuid)", "write the regular"),
        ("'a' == 'a", "no end"),
    ],
)
def test_what_would_hold_up_the_agent_is_refused(text: str, word: str) -> None:
    with pytest.raises(FilterError, match=word):
        matching(text)


@pytest.mark.parametrize(
    "text",
    [
        "_flow.source.labels.exists(l, l.matches('k8s:app=[a-z0-9-]+'))",
        r"_flow.Summary.matches('^TCP Flags: \\w+')",
        "_flow.destination.namespace in [" + ", ".join(f"'team-{number}'" for number in range(100)) + "]",
        "_flow.source.labels.exists(s, _flow.destination.labels.exists(d, d == s))",
        "'''it's''' == \"it's\" // a comment",
    ],
)
def test_what_people_write_is_not(text: str) -> None:
    matching(text)


class Ticking:
    """Seconds that go by with each look."""

    seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1.0
        return self.seconds


def test_evaluations_go_on_where_their_turn_ended() -> None:
    flows = store()
    flows.append([events(*ROWS)], offset=WALL)
    (rows,) = flows.spans(0, flows.head)
    turn = Turn(Ticking(), 0.5)
    expression = Expression("_flow.verdict == Verdict.DROPPED", flows, NODE, turn)
    turn.begin()
    over = 0
    while True:
        try:
            mask = expression(rows)
        except TurnOver:
            over += 1
            continue
        break
    assert rows.numbers[mask].tolist() == [1]
    assert over > 1
