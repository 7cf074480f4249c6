"""What flows of two peers share: addresses, link, tunnel, interface and the rules that judged them.

There are far more pairs than peers, so each part of a pair's fragment is remembered by itself, too.
"""

from __future__ import annotations

import socket
from functools import lru_cache

import numpy as np

from cilia.hubble.columns import (
    EGRESS,
    FLAG_ENCRYPTED,
    FLAG_IPV6,
    INGRESS,
    VERDICT_AUDIT,
    VERDICT_DROPPED,
    Events,
    octets,
    void,
)
from cilia.hubble.encode import block, number, text, texts
from cilia.hubble.past import Meanings
from cilia.hubble.ring import Rows
from cilia.hubble.store import Rules
from cilia.model.address import MAPPED_PREFIX
from cilia.model.policy import RuleRef

POLICY_LABEL = "k8s:io.cilium.k8s.policy."
RULE_LABEL = "cilia:rule="
VERSION_LABEL = "cilia:resource-version="

VXLAN = 1
FROM_OVERLAY, FROM_NETWORK = 9, 10

NO_ADDRESS, NO_LINK = bytes(16), bytes(12)
REMEMBERED_PARTS = 1 << 13
"""Of addresses and links, for all clients: about a MiB."""


class Pairs:
    """Makes the fragments of pairs."""

    def __init__(self, meanings: Meanings) -> None:
        """`meanings`: what the rows point into."""
        self._meanings = meanings
        self._devices: dict[int, bytes] = {}
        self._rules: dict[tuple[int, int, int], bytes] = {}

    def clear(self) -> None:
        """Forget all: indexes are given out anew."""
        self._devices.clear()
        self._rules.clear()

    def fragments(self, rows: Rows) -> list[bytes]:
        """One per row."""
        events = rows.events
        point = events["point"]
        columns = [
            raw(events, "source"),
            raw(events, "destination"),
            raw(events, "original_source"),
            events["flags"].tolist(),
            raw(events, "source_mac", "destination_mac"),
            raw(events, "tunnel"),
            events["vni"].tolist(),
            ((point == FROM_OVERLAY) | (point == FROM_NETWORK)).tolist(),
            rows.device.tolist(),
            rows.egress.tolist(),
            rows.ingress.tolist(),
            denied_by(events).tolist(),
        ]
        return [
            b"".join(
                (
                    addresses(source, destination, original, flags & (FLAG_IPV6 | FLAG_ENCRYPTED)),
                    ethernet(link),
                    tunnel(other, vni, inward),
                    self._device(device),
                    self._verdict_rules(egress, ingress, side),
                )
            )
            for (
                source, destination, original, flags, link, other, vni, inward, device, egress, ingress, side
            ) in zip(*columns, strict=True)
        ]  # fmt: skip

    def _device(self, ref: int) -> bytes:
        known = self._devices.get(ref)
        if known is None:
            device = self._meanings.devices.values[ref]
            known = block(28, number(1, device.index) + text(2, device.name)) if device.index else b""
            self._devices[ref] = known
        return known

    def _verdict_rules(self, egress: int, ingress: int, side: int) -> bytes:
        key = egress, ingress, side
        known = self._rules.get(key)
        if known is None:
            if len(self._rules) > REMEMBERED_PARTS:
                self._rules.clear()
            rules = self._meanings.rules.values
            known = self._rules[key] = verdict_rules(rules[egress], rules[ingress], side)
        return known


def raw(events: Events, *names: str) -> list[bytes]:
    """The bytes of fields that follow each other, per row."""
    return void(np.concatenate([octets(events, name) for name in names], axis=1))


def denied_by(events: Events) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The side that denied a flow, or would have: EGRESS, INGRESS, or 0."""
    judged = (events["verdict"] == VERDICT_DROPPED) | (events["verdict"] == VERDICT_AUDIT)
    return np.where(judged, events["direction"], np.uint8(0))


def addresses(source: bytes, destination: bytes, original: bytes, flags: int) -> bytes:
    """Flow.IP, but of what is no IP. `source` is what the sender used; what it became by translation is
    `source_xlated`."""
    if source == destination == NO_ADDRESS:
        return b""
    became = NO_ADDRESS
    if original != NO_ADDRESS:
        source, became = original, source
    family = number(3, 2 if flags & FLAG_IPV6 else 1) + number(4, 1 if flags & FLAG_ENCRYPTED else 0)
    return block(5, b"".join((field(1, source), field(2, destination), family, field(5, became))))


@lru_cache(REMEMBERED_PARTS)
def field(number: int, raw_address: bytes) -> bytes:
    """An address as a field of flow.IP; nothing for none."""
    return text(number, address(raw_address))


@lru_cache(REMEMBERED_PARTS)
def ethernet(link: bytes) -> bytes:
    """Flow.ethernet, where the packet had link-layer addresses; `link`: source and destination."""
    if link == NO_LINK:
        return b""
    return block(4, text(1, link[:6].hex(":")) + text(2, link[6:].hex(":")))


def tunnel(node: bytes, vni: int, inward: bool) -> bytes:
    """Flow.tunnel of an overlay packet; `struct event` names the other node only."""
    if node == NO_ADDRESS:
        return b""
    other = address(node)
    version = 2 if ":" in other else 1
    outer = text(1 if inward else 2, other) + number(3, version)
    return block(39, number(1, VXLAN) + block(2, outer) + number(4, vni))


def verdict_rules(egress: Rules, ingress: Rules, denied_by: int) -> bytes:
    """The rules behind the verdict of each side, and the text their authors want in the flow.

    A drop is the work of the side that judged (`direction`), and so is what audit let pass: the rules are
    those that denied, or would have. What the other side had allowed before stays visible. An allow by
    default names no rule: no policy isolates that side.
    """
    parts = []
    for side, rules, allowed, denied in ((EGRESS, egress, 21001, 21004), (INGRESS, ingress, 21002, 21005)):
        if denied_by == side:
            parts += [block(denied, policy(rule, rules.revision)) for rule in rules.row.rules]
        elif not rules.row.default:
            parts += [block(allowed, policy(rule, rules.revision)) for rule in rules.row.rules]
    parts.append(texts(21006, sorted({*egress.row.logs, *ingress.row.logs})))
    return b"".join(parts)


def policy(rule: RuleRef, revision: int) -> bytes:
    """flow.Policy; the place of the rule in the YAML travels as labels, which every client passes on."""
    labels = [f"{POLICY_LABEL}derived-from={rule.kind}", f"{POLICY_LABEL}name={rule.name}"]
    if rule.namespace:
        labels.append(f"{POLICY_LABEL}namespace={rule.namespace}")
    labels += [RULE_LABEL + rule.path, VERSION_LABEL + rule.resource_version]
    return b"".join(
        (
            text(1, rule.name),
            text(2, rule.namespace),
            texts(3, labels),
            number(4, revision),
            text(5, rule.kind),
        )
    )


def address(raw: bytes) -> str:
    """Text of a 16-byte address, IPv4 where it is v4-mapped; an empty string for none."""
    if raw.startswith(MAPPED_PREFIX):
        return socket.inet_ntop(socket.AF_INET, raw[12:])
    return socket.inet_ntop(socket.AF_INET6, raw) if any(raw) else ""
