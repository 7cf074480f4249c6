"""Writes into Hubble's log what the agent's tables show to have happened.

Tables coalesce: what came and went between two looks is told as what it came to. Rows that are there at the
start are no news. Addresses are taken in portions, since a restarted peer may bring ten thousand at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from cilia.dataplane.order import TableError
from cilia.hubble.agent_events import (
    AddressChanged,
    EndpointChanged,
    EndpointRegenerated,
    EventLog,
    Note,
    PolicyChanged,
    Started,
)
from cilia.kit.clock import Clock
from cilia.model.endpoint import Endpoint
from cilia.model.ids import EndpointId, SubjectId
from cilia.model.node import IpcacheEntry
from cilia.model.policy import PolicyObject
from cilia.schema import Desired, Inputs

PORTION = 512
"""Changes taken before others get their turn: some two milliseconds."""
POLICY_LABEL = "k8s:io.cilium.k8s.policy."

PolicyKey = tuple[str, str, str]


class Kernel(Protocol):
    """What is asked of the data plane."""

    def realised(self, endpoint: EndpointId) -> bool: ...

    def errors(self) -> list[TableError]: ...


class AgentEventWriter:
    """Looks at the tables after each step of the engine."""

    def __init__(
        self,
        log: EventLog,
        inputs: Inputs,
        desired: Desired,
        kernel: Kernel,
        revision: Callable[[], int],
        clock: Clock,
    ) -> None:
        """`revision`: of the node's policies."""
        self._log = log
        self._desired = desired
        self._kernel = kernel
        self._revision = revision
        self._clock = clock
        self._policies = inputs.policies.cursor()
        self._endpoints = desired.endpoints.cursor()
        self._subjects = desired.subjects.cursor()
        self._addresses = desired.ipcache.cursor()
        self._known_policies: set[PolicyKey] = set()
        self._known_endpoints: dict[EndpointId, Endpoint] = {}
        self._known_addresses: dict[str, IpcacheEntry] = {}
        self._known_rules: dict[SubjectId, tuple[str, int]] = {}
        self._regenerating: dict[EndpointId, str] = {}
        """Endpoints whose new state the kernel has yet to take, and the error that was told of each."""
        self._bell = asyncio.Event()

    def start(self) -> None:
        """The agent has started: what the tables hold now is no news, what comes is."""
        self._known_policies = {row.key for row in self._policies.take()[0]}
        self._known_endpoints = {row.id: row for row in self._endpoints.take()[0]}
        self._known_addresses = {row.prefix: row for row in self._addresses.take()[0]}
        self._known_rules = {row.subject: (row.rules, row.epoch) for row in self._subjects.take()[0]}
        self._note(Started(self._now()))

    def look(self) -> None:
        """After a step: is there something to tell?"""
        if self._regenerating or self._pending():
            self._bell.set()

    async def run(self) -> None:
        """For ever: tell what happened, in portions."""
        while True:
            await self._bell.wait()
            self._bell.clear()
            self.take()
            while self._pending():
                await asyncio.sleep(0)
                self.take()

    def take(self) -> None:
        """Tell one portion."""
        self._take_policies()
        self._take_addresses()
        self._take_endpoints()
        self._take_subjects()
        self._take_regenerated()

    def _pending(self) -> bool:
        cursors = (self._policies.pending, self._endpoints.pending, self._addresses.pending)
        return any(cursors) or self._subjects.pending

    def _take_policies(self) -> None:
        put, deleted = self._policies.take(PORTION)
        revision = self._revision()
        for row in put:
            self._known_policies.add(row.key)
            self._note(PolicyChanged(labels=policy_labels(row.key), revision=revision, rules=rule_count(row)))
        for key in deleted:
            if key in self._known_policies:
                self._known_policies.discard(key)
                self._note(PolicyChanged(labels=policy_labels(key), revision=revision, rules=0, deleted=True))

    def _take_endpoints(self) -> None:
        put, deleted = self._endpoints.take(PORTION)
        for row in put:
            if row.id not in self._known_endpoints:
                self._note(_endpoint(row))
            self._known_endpoints[row.id] = row
            self._regenerating.setdefault(row.id, "")
        for identifier in deleted:
            self._regenerating.pop(identifier, None)
            old = self._known_endpoints.pop(identifier, None)
            if old is not None:
                self._note(_endpoint(old, deleted=True))

    def _take_subjects(self) -> None:
        """Endpoints whose rules changed; identities that come and go change entries, not rules."""
        put, deleted = self._subjects.take(PORTION)
        changed = set()
        for row in put:
            rules = (row.rules, row.epoch)
            if self._known_rules.get(row.subject) != rules:
                self._known_rules[row.subject] = rules
                changed.add(row.subject)
        for subject in deleted:
            self._known_rules.pop(subject, None)
        if changed:
            for entry in self._desired.endpoint_entries:
                if entry.subject in changed and entry.id in self._known_endpoints:
                    self._regenerating.setdefault(entry.id, "")

    def _take_regenerated(self) -> None:
        """Endpoints that the kernel has now, or that it refuses."""
        if not self._regenerating:
            return
        errors = {(error.table, error.key): error.error for error in self._kernel.errors()}
        for identifier, told in list(self._regenerating.items()):
            labels = self._labels(identifier)
            if self._kernel.realised(identifier):
                del self._regenerating[identifier]
                self._note(EndpointRegenerated(id=int(identifier), labels=labels))
                continue
            entry = self._desired.endpoint_entries.get(identifier)
            subject = ("subjects", str(entry.subject)) if entry is not None else ("", "")
            error = errors.get(("endpoint_entries", str(identifier))) or errors.get(subject, "")
            if error and error != told:
                self._regenerating[identifier] = error
                self._note(EndpointRegenerated(id=int(identifier), labels=labels, error=error))

    def _take_addresses(self) -> None:
        put, deleted = self._addresses.take(PORTION)
        for row in put:
            old = self._known_addresses.get(row.prefix)
            self._known_addresses[row.prefix] = row
            if old is None or (old.identity, old.tunnel_endpoint) != (row.identity, row.tunnel_endpoint):
                self._note(_address(row, old))
        for prefix in deleted:
            gone = self._known_addresses.pop(prefix, None)
            if gone is not None:
                self._note(_address(gone, None, deleted=True))

    def _labels(self, identifier: EndpointId) -> tuple[str, ...]:
        row = self._known_endpoints.get(identifier)
        return tuple(row.labels.strings()) if row is not None else ()

    def _note(self, note: Note) -> None:
        self._log.append(note, self._now())

    def _now(self) -> int:
        return int(self._clock.wall() * 1e9)


def policy_labels(key: PolicyKey) -> tuple[str, ...]:
    """The labels by which Cilium's users know a policy."""
    kind, namespace, name = key
    labels = [f"{POLICY_LABEL}derived-from={kind}", f"{POLICY_LABEL}name={name}"]
    if namespace:
        labels.append(f"{POLICY_LABEL}namespace={namespace}")
    return tuple(labels)


def rule_count(row: PolicyObject) -> int:
    """Rules in an object: `spec` and each of `specs`."""
    spec, specs = getattr(row.body, "spec", None), getattr(row.body, "specs", None)
    return (spec is not None) + len(specs or ())


def _endpoint(row: Endpoint, *, deleted: bool = False) -> EndpointChanged:
    return EndpointChanged(
        id=int(row.id),
        labels=tuple(row.labels.strings()),
        namespace=row.attachment.namespace,
        pod=row.attachment.pod,
        deleted=deleted,
    )


def _address(row: IpcacheEntry, old: IpcacheEntry | None, *, deleted: bool = False) -> AddressChanged:
    return AddressChanged(
        prefix=row.prefix,
        identity=row.identity,
        old_identity=None if old is None else old.identity,
        host=row.tunnel_endpoint,
        old_host="" if old is None else old.tunnel_endpoint,
        namespace=row.namespace,
        pod=row.pod,
        deleted=deleted,
    )
