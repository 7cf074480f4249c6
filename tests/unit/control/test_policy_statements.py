"""What the documentation's examples say about who reaches whom is so."""

from __future__ import annotations

import pytest

from tests.support.policy_cluster import Cluster
from tests.support.policy_examples import Example, blocks


def name(value: object) -> str:
    return value.name if isinstance(value, Example) else str(value)


@pytest.mark.parametrize("example", blocks(), ids=name)
def test_who_reaches_whom_is_as_the_example_says(example: Example) -> None:
    cluster = Cluster(example.documents)
    problems = [problem.path for row in cluster.desired.policy_states for problem in row.problems]
    assert problems == example.refused
    found = [statement._replace(outcome=cluster.outcome(statement)) for statement in example.statements]
    assert found == example.statements


@pytest.mark.parametrize("example", blocks(), ids=name)
def test_an_example_says_who_gets_through_and_who_does_not(example: Example) -> None:
    outcomes = {statement.outcome for statement in example.statements}
    assert "allowed" in outcomes
    assert outcomes & {"denied", "audited"}
