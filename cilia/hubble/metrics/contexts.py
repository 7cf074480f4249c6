"""Who a side of a flow is, as label values: Hubble's contexts.

A side of a row is looked up by party (and address, where that is asked for) and becomes a small number, the
index of its label values. Sides with the same values have the same number, however many pods stand behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from cilia.hubble.columns import EGRESS, INGRESS, Words, address_words, sender_words
from cilia.hubble.directory import Party
from cilia.hubble.intern import Interner
from cilia.hubble.metrics.batch import Batch
from cilia.hubble.metrics.options import MetricOptions
from cilia.hubble.store import FlowStore
from cilia.model.address import unpack

PodName = tuple[str, str]
"""Namespace and name."""

APP_LABELS = ("k8s:app.kubernetes.io/name=", "k8s:k8s-app=", "k8s:app=")
APISERVER = "reserved:kube-apiserver"
RESERVED = "reserved:"

REMEMBERED_SIDES = 1 << 16

NAMES_A_POD = frozenset({"pod", "pod-name", "ip"})
"""Identifiers and labels whose values are gone for good with their pod."""


class SideValues(msgspec.Struct, frozen=True):
    """The label values of one side, and the pod they name, if they name one."""

    values: tuple[str, ...]
    pods: tuple[PodName, ...] = ()


def app(party: Party) -> str:
    """The app of a pod, by the labels that are usual for it."""
    for label in party.labels:
        for start in APP_LABELS:
            if label.startswith(start) and len(label) > len(start):
                return label.removeprefix(start)
    return ""


def reserved(party: Party) -> str:
    """The reserved label: kube-apiserver before others."""
    if APISERVER in party.labels:
        return APISERVER
    return next((label for label in party.labels if label.startswith(RESERVED)), "")


def workload(party: Party) -> str:
    """Name of the pod's owner."""
    return party.workloads[0].name if party.workloads else ""


def qualified(namespace: str, name: str) -> str:
    """`namespace/name`, or nothing for nobody."""
    return f"{namespace}/{name}" if namespace and name else name


IDENTIFY: dict[str, Callable[[Party, str], str]] = {
    "identity": lambda party, _: ",".join(party.labels),
    "namespace": lambda party, _: party.namespace,
    "pod": lambda party, _: qualified(party.namespace, party.pod),
    "pod-name": lambda party, _: party.pod,
    "dns": lambda party, _: ",".join(party.names),
    "ip": lambda _, address: address,
    "reserved-identity": lambda party, _: reserved(party),
    "workload": lambda party, _: qualified(party.namespace, workload(party)),
    "workload-name": lambda party, _: workload(party),
    "app": lambda party, _: app(party),
}
"""A party and its address to what it is called."""

LABEL_VALUES: dict[str, Callable[[Party, str], str]] = {
    "ip": IDENTIFY["ip"],
    "pod": IDENTIFY["pod-name"],
    "namespace": IDENTIFY["namespace"],
    "workload": IDENTIFY["workload-name"],
    "workload_kind": lambda party, _: party.workloads[0].kind if party.workloads else "",
    "app": IDENTIFY["app"],
}
"""The same for what labelsContext lists, without `source_` or `destination_`."""


class Called(msgspec.Struct, frozen=True):
    """What a metric wants to know of one side."""

    side: str
    listed: tuple[str, ...]
    """Out of SIDE_LABELS."""
    by_direction: tuple[tuple[str, ...], ...]
    """Identifiers to try in turn, by direction: unknown, ingress, egress."""

    @classmethod
    def of(cls, options: MetricOptions, side: str) -> Called:
        """As the options say."""
        start = f"{side}_"
        anyway = options.context(f"{side}Context")
        ways = (options.context(f"{side}{way}Context") or anyway for way in ("Ingress", "Egress"))
        listed = tuple(label.removeprefix(start) for label in options.labels if label.startswith(start))
        return cls(side, listed, (anyway, *ways))

    @property
    def named(self) -> bool:
        """Whether there is a label for the side itself."""
        return any(self.by_direction)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of this side."""
        listed = tuple(f"{self.side}_{name}" for name in self.listed)
        return (*listed, self.side) if self.named else listed


class Side:
    """Sources or destinations, as some metrics call them."""

    def __init__(self, store: FlowStore, called: Called) -> None:
        self.called = called
        self.renumbered = 0
        """Grows when earlier numbers mean nothing any more."""
        self._store = store
        self._parties = store.parties.generation
        self._direction_matters = len(set(called.by_direction)) > 1
        wanted = {*called.listed, *(name for names in called.by_direction for name in names)}
        self._address_matters = "ip" in wanted
        self._values = self._fresh()

    @property
    def values(self) -> list[SideValues]:
        """By the numbers that `codes` gives."""
        return self._values.values

    def tidy(self) -> None:
        """Begin anew when there are too many; while no numbers are in use."""
        if len(self._values.values) > REMEMBERED_SIDES:
            self._values = self._fresh()
            self.renumbered += 1

    def codes(self, batch: Batch) -> Words:
        """A number for each row, shape (n,); worked out once for all metrics that call sides alike."""
        found = batch.codes.get(self)
        if found is None:
            found = batch.codes[self] = self._codes(batch)
        return found

    def _codes(self, batch: Batch) -> Words:
        if not self.called.labels:
            return np.zeros(len(batch), np.uint64)
        if self._parties != self._store.parties.generation:
            self._parties = self._store.parties.generation
            self._values.forget()
        return self._values.refs(self._keys(batch)).astype(np.uint64)

    def _keys(self, batch: Batch) -> list[Words]:
        source = self.called.side == "source"
        rows = batch.rows
        word = (rows.source if source else rows.destination).astype(np.uint64) << np.uint64(2)
        if self._direction_matters:
            word |= batch.word((0, "direction")) & np.uint64(3)
        if not self._address_matters:
            return [word]
        high, low = sender_words(rows.events) if source else address_words(rows.events, "destination")
        return [word, high, low]

    def _fresh(self) -> Interner[SideValues]:
        width = 3 if self._address_matters else 1
        interner: Interner[SideValues] = Interner(width, self._describe)
        # Without labels every row has number 0.
        interner.values.append(SideValues(()))
        return interner

    def _describe(self, words: Sequence[int]) -> SideValues:
        party = self._store.parties.values[words[0] >> 2]
        address = ""
        if self._address_matters:
            address = str(unpack(words[1].to_bytes(8, "little") + words[2].to_bytes(8, "little")))
        values = [LABEL_VALUES[name](party, address) for name in self.called.listed]
        names_pod = "pod" in self.called.listed or "ip" in self.called.listed
        if self.called.named:
            identifiers = self.called.by_direction[direction_index(words[0] & 3)]
            called = ((name, IDENTIFY[name](party, address)) for name in identifiers)
            name, value = next((pair for pair in called if pair[1]), ("", ""))
            values.append(value)
            names_pod |= name in NAMES_A_POD
        pod = ((party.namespace, party.pod),) if names_pod and party.pod else ()
        return SideValues(tuple(values), pod)


def direction_index(direction: int) -> int:
    """Place in a tuple of unknown, ingress, egress."""
    return {INGRESS: 1, EGRESS: 2}.get(direction, 0)
