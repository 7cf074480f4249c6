"""What filters ask of whoever takes part in flows: values of a field in, a question about one party out.

Every function raises FilterError for a value that can't be read.
"""

from __future__ import annotations

from collections.abc import Callable

from cilia.hubble import selectors
from cilia.hubble.directory import Party
from cilia.hubble.filter_values import FilterError, Wildcard, parsed_selectors
from cilia.hubble.turns import unhurried
from cilia.proto.flow import flow_pb2


def namespaced(what: str, values: list[str]) -> Callable[[str, str], bool]:
    """`namespace/prefix`, `namespace/`, `/prefix` (any namespace); without a slash: default. Asked with a
    namespace and a name."""
    wanted = [("default", value) if "/" not in value else value.split("/", 1) for value in values]
    if {"", "/"} & set(values):
        raise FilterError(f"an empty {what} filter: write namespace/{what}-prefix or namespace/")

    def question(namespace: str, name: str) -> bool:
        return any(
            (not where or namespace == where) and (not prefix or bool(name)) and name.startswith(prefix)
            for where, prefix in wanted
        )

    return question


def pods(values: list[str]) -> Callable[[Party], bool]:
    """Namespaces and beginnings of pods' names."""
    wanted = namespaced("pod", values)
    return lambda party: wanted(party.namespace, party.pod)


def labels(values: list[str]) -> Callable[[Party], bool]:
    """Label selectors."""
    wanted = parsed_selectors(values)

    def question(party: Party) -> bool:
        has = selectors.by_key(party.labels)
        return any(selector.holds(has) for selector in wanted)

    return question


def identities(values: list[int]) -> Callable[[Party], bool]:
    """Identity numbers."""
    wanted = frozenset(values)
    return lambda party: party.identity in wanted


def workloads(values: list[flow_pb2.Workload]) -> Callable[[Party], bool]:
    """Kind and name of the owner; what is empty matches any."""

    def question(party: Party) -> bool:
        return any(
            want.kind in ("", has.kind) and want.name in ("", has.name)
            for want in values
            for has in party.workloads
        )

    return question


def clusters(values: list[str]) -> Callable[[Party], bool]:
    """Cluster names."""
    wanted = frozenset(values)
    return lambda party: party.cluster in wanted


def fqdns(values: list[str]) -> Callable[[Party], bool]:
    """DNS names, `*` stands for anything."""
    patterns = [Wildcard(value.rstrip(".").lower()) for value in unhurried(values)]

    def question(party: Party) -> bool:
        names = [name.rstrip(".").lower() for name in party.names]
        return any(pattern.matches(name) for pattern in patterns for name in names)

    return question
