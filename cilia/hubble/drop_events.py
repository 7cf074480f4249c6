"""Which drops a pod's owner is told of, in which words, and how often.

    rows ─► drops for the chosen reasons, of pods of this node ─► one notice for each sentence
                                                                   └ again after the interval, with the count

The sentence names the peer, the reason, the port and the policy: all that `kubectl describe pod` has to show.
A pod under a flood of different drops gets a few notices an interval; the rest is counted as suppressed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec
import numpy as np

from cilia.hubble.columns import FLAG_REPLY, INGRESS, KIND_DROP, address_words, sender_words
from cilia.hubble.directory import Party
from cilia.hubble.protocols import NAMES, WITH_PORTS
from cilia.hubble.store import FlowStore, Rows, Rules
from cilia.model.address import unpack
from cilia.proto.flow import flow_pb2

DEFAULT_REASONS = "auth_required policy_denied policy_deny"
DEFAULT_INTERVAL = 120.0

SENTENCES_A_POD = 8
"""Different notices for one pod in one interval."""
SENTENCES = 4096
"""Different notices of a node in one interval."""
NAMED_POLICIES = 3

RESERVED_PREFIX = "reserved:"

Subject = tuple[str, str]
"""Namespace and name of a pod."""


class ReasonError(ValueError):
    """A list of reasons that names none; its text is a sentence for the user."""


class DropNotice(msgspec.Struct, frozen=True, kw_only=True):
    """Something a pod's owner should know."""

    namespace: str
    pod: str
    message: str
    """Says the same of the same drops, so it tells notices apart."""
    count: int
    """Drops since the last notice with these words."""
    first: int
    """Nanoseconds since the Unix epoch."""
    last: int


class Memory(msgspec.Struct):
    """What is known of one sentence."""

    count: int = 0
    first: int = 0
    last: int = 0
    told: float | None = None
    """When it was told, by the caller's clock; None: not yet."""


def parse_reasons(text: str) -> frozenset[int]:
    """Numbers of drop reasons, named as Hubble names them in any case. Raises ReasonError."""
    names = text.replace(",", " ").split()
    known = flow_pb2.DropReason.items()
    numbers = {name.lower(): number for name, number in known}
    for name in names:
        if name.lower() not in numbers:
            raise ReasonError(f"there is no drop reason {name!r}: use names such as policy_denied")
    if not names:
        raise ReasonError(f"no drop reasons are given: name some, such as {DEFAULT_REASONS}")
    return frozenset(numbers[name.lower()] for name in names)


class DropEvents:
    """Drops in, notices out; time is an argument."""

    def __init__(
        self,
        store: FlowStore,
        reasons: frozenset[int],
        interval: float = DEFAULT_INTERVAL,
        *,
        extended: bool = False,
    ) -> None:
        """`interval`: seconds between two notices with the same words. `extended`: policies go with the place
        of the rule in their YAML."""
        self._store = store
        self._reasons = np.array(sorted(reasons))
        self._names = {number: flow_pb2.DropReason.Name(number).lower() for number in reasons}  # type: ignore[arg-type]
        self._interval = interval
        self._extended = extended
        self._known: dict[tuple[Subject, str], Memory] = {}
        self._by_pod: Counter[Subject] = Counter()
        self.suppressed = 0
        """Drops that got no notice, for there were too many different ones."""

    def take(self, rows: Rows) -> None:
        """Take notice of drops."""
        events = rows.events
        mask = (events["kind"] == KIND_DROP) & np.isin(events["reason"], self._reasons)
        mask &= events["direction"] != 0
        if not mask.any():
            return
        chosen = rows.where(mask)
        walls = chosen.wall.tolist()
        keys = list(zip(*columns(chosen), strict=True))
        last = dict(zip(keys, walls, strict=True))
        first = dict(zip(reversed(keys), reversed(walls), strict=True))
        for key, count in Counter(keys).items():
            self._note(key, count, first[key], last[key])

    def _note(self, key: tuple[int, ...], count: int, first: int, last: int) -> None:
        source, destination = (self._store.parties.values[ref] for ref in key[:2])
        word = key[4]
        direction, reply = word >> 8 & 0xFF, word >> 40 & 1
        # A denied reply is the work of the policy of who opened the flow: its destination.
        incoming = (direction == INGRESS) != bool(reply)
        pod, peer = (destination, source) if incoming else (source, destination)
        if not pod.pod or not pod.id:
            return
        address = str(unpack(key[2].to_bytes(8, "little") + key[3].to_bytes(8, "little")))
        if not incoming:
            address = str(unpack(key[6].to_bytes(8, "little") + key[7].to_bytes(8, "little")))
        what = "reply" if reply else "packet"
        message = (
            f"{'Incoming' if incoming else 'Outgoing'} {what} dropped ({self._names[word & 0xFF]}) "
            f"{'from' if incoming else 'to'} {named(peer, address)} {transport(word)}"
            f"{policies(self._store.rules.values[key[5]], extended=self._extended)}"
        )
        self._remember((pod.namespace, pod.pod), message, count, first, last)

    def _remember(self, subject: Subject, message: str, count: int, first: int, last: int) -> None:
        memory = self._known.get((subject, message))
        if memory is None:
            if self._by_pod[subject] >= SENTENCES_A_POD or len(self._known) >= SENTENCES:
                self.suppressed += count
                return
            memory = self._known[subject, message] = Memory()
            self._by_pod[subject] += 1
        memory.first = memory.first if memory.count else first
        memory.count, memory.last = memory.count + count, last

    def due(self, now: float) -> list[DropNotice]:
        """What is to be told now; what was told and did not come again for an interval is forgotten."""
        notices = []
        for (subject, message), memory in list(self._known.items()):
            if memory.told is not None and now - memory.told < self._interval:
                continue
            if memory.count:
                notices.append(
                    DropNotice(
                        namespace=subject[0],
                        pod=subject[1],
                        message=message,
                        count=memory.count,
                        first=memory.first,
                        last=memory.last,
                    )
                )
                memory.count, memory.told = 0, now
            else:
                del self._known[subject, message]
                self._by_pod[subject] -= 1
                if not self._by_pod[subject]:
                    del self._by_pod[subject]
        return notices


def columns(rows: Rows) -> Iterator[list[int]]:
    """What a sentence depends on: both sides, the sender's address, a word, the rules of the side that
    judged, and the destination's address."""
    events = rows.events
    incoming = events["direction"] == INGRESS
    sender, receiver = sender_words(events), address_words(events, "destination")
    word = np.zeros(len(events), np.uint64)
    for shift, name in ((0, "reason"), (8, "direction"), (16, "protocol"), (24, "destination_port")):
        word |= events[name].astype(np.uint64) << np.uint64(shift)
    word |= ((events["flags"] & FLAG_REPLY) != 0).astype(np.uint64) << np.uint64(40)
    rules = np.where(incoming, rows.ingress, rows.egress)
    for column in (rows.source, rows.destination, *sender, word, rules, *receiver):
        yield column.tolist()


def named(peer: Party, address: str) -> str:
    """Who that is, and the address."""
    if peer.pod:
        return f"{peer.namespace}/{peer.pod} ({address})"
    reserved = next((label for label in peer.labels if label.startswith(RESERVED_PREFIX)), "")
    return f"{reserved.removeprefix(RESERVED_PREFIX)} ({address})" if reserved else address


def transport(word: int) -> str:
    """Protocol and destination port."""
    protocol = word >> 16 & 0xFF
    name = NAMES.get(protocol, f"IP protocol {protocol}")
    return f"{name}/{word >> 24 & 0xFFFF}" if protocol in WITH_PORTS else name


def policies(rules: Rules, *, extended: bool = False) -> str:
    """Which policies are behind it, as the end of a sentence; nothing where none is. `extended`: with the
    place of the rule in their YAML."""
    names = list(
        dict.fromkeys(
            f"{rule.kind} {'/'.join(filter(None, (rule.namespace, rule.name)))}"
            f"{f' {rule.path}' if extended else ''}"
            for rule in rules.row.rules
        )
    )
    if not names:
        return ""
    more = len(names) - NAMED_POLICIES
    listed = ", ".join(names[:NAMED_POLICIES]) + (f" and {more} more" if more > 0 else "")
    return f": no rule of {listed} allows it" if rules.row.default else f": denied by {listed}"
