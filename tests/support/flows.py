"""Paths between states of the inputs, to compare what is computed step by step with a fresh computation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from cilia.control.graph import ControlGraph, GraphConfig
from cilia.model.policy import PolicyMode
from cilia.schema import Desired, Inputs

Rows = dict[str, list[Any]]
"""Table name to rows; under `modes` the mode and whether the node is in audit."""


class Brain:
    """The whole control graph over its tables."""

    def __init__(self, config: GraphConfig | None = None) -> None:
        self.inputs, self.desired = Inputs(), Desired()
        self.graph = ControlGraph(self.inputs, self.desired, config or GraphConfig(node="one"))

    def step(self) -> None:
        self.graph.step(0.0)

    def review(self) -> None:
        """Look for warnings until there is nothing more to look at."""
        while self.graph.policy.review():
            continue


Change = Callable[[Brain], object]


def changes(before: Rows, after: Rows) -> list[Change]:
    """The single puts and deletes that lead from one state to another."""
    made: list[Change] = []
    for table in Inputs().tables():
        old = {table._key(row): row for row in before.get(table.name, ())}
        new = {table._key(row): row for row in after.get(table.name, ())}
        made += [partial(_delete, table.name, key) for key in old.keys() - new.keys()]
        made += [partial(_put, table.name, row) for key, row in new.items() if old.get(key) != row]
    modes = after.get("modes", [PolicyMode.DEFAULT, False])
    if modes != before.get("modes", [PolicyMode.DEFAULT, False]):
        made.append(partial(_switch, *modes))
    return made


def _put(table: str, row: object, brain: Brain) -> None:
    getattr(brain.inputs, table).put(row)


def _delete(table: str, key: object, brain: Brain) -> None:
    getattr(brain.inputs, table).delete(key)


def _switch(mode: PolicyMode, audit: bool, brain: Brain) -> None:
    brain.graph.policy.mode, brain.graph.policy.audit = mode, audit


def walk(brain: Brain, steps: Iterable[Change], rhythm: str) -> None:
    """Apply changes and let the graph look after each, after each twice, or at the end."""
    for change in steps:
        change(brain)
        for _ in range({"each": 1, "twice": 2, "end": 0}[rhythm]):
            brain.step()
    brain.step()


def content(desired: Desired) -> dict[str, object]:
    """The desired tables without what may depend on the past: subject numbers, revisions, epochs, cookies out
    of use."""
    keys = {row.subject: row.key for row in desired.subjects}
    used = {entry.cookie for row in desired.subjects for entry in row.entries.values()}
    return {
        "subjects": {
            row.key: (row.labels, row.rules, row.entries, row.ingress_enforced, row.egress_enforced)
            for row in desired.subjects
        },
        "entries": {(row.id, row.ipv4, row.identity, keys[row.subject]) for row in desired.endpoint_entries},
        "cookies": {row for row in desired.cookies if row.cookie in used},
        "ipcache": set(desired.ipcache),
        "identities": set(desired.identities),
        "states": set(desired.policy_states),
    }
