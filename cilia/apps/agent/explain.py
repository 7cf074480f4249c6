"""Answers to `cilia policy explain`: facts and names from the tables, the rest in a thread.

A snapshot is taken on the event loop, where the tables stand still; what costs time works on it elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import numpy as np

from cilia.api.backend import ApiError, Question
from cilia.apps.agent.ends import Ends, Known, is_number, pods_by_identity
from cilia.control.policy.facts import Facts
from cilia.control.policy.reasons import check, explain, remedy, words
from cilia.control.policy.reasons.explain import Library, Packet
from cilia.control.policy.reasons.remedy import Read
from cilia.control.policy.rules import ICMP, ICMPV6, SCTP, TCP, UDP
from cilia.hubble.columns import FLAG_REPLY, KIND_DROP, VERDICT_AUDIT, VERDICT_DROPPED, octets
from cilia.hubble.directory import Party as Side
from cilia.hubble.meaning import summary
from cilia.hubble.pairs import address
from cilia.hubble.store import FlowStore, Rules
from cilia.model.explain import End, Explanation, Then
from cilia.model.ids import EndpointId, IdentityId, Revision
from cilia.model.policy import Direction
from cilia.proto.flow import flow_pb2
from cilia.schema import Desired, Inputs

PROTOCOLS = {"tcp": TCP, "udp": UDP, "sctp": SCTP, "icmp": ICMP, "icmpv4": ICMP, "icmpv6": ICMPV6}
"""Names of protocols as one types them."""
WITH_PORTS = (TCP, UDP, SCTP)
ECHO = {ICMP: 8, ICMPV6: 128}
QUESTIONS = {(ICMP, 0): 8, (ICMP, 14): 13, (ICMPV6, 129): 128}
"""ICMP types that answer, and what they answer."""

Port = tuple[int, int]
"""Protocol and port, or ICMP type."""


class Explainer:
    """Explains packets and flows of this node."""

    def __init__(
        self,
        inputs: Inputs,
        desired: Desired,
        *,
        facts: Callable[[], Facts],
        read: Callable[[], Read],
        revision: Callable[[], Revision],
        flows: FlowStore,
    ) -> None:
        """`read` gives a reader of proposed policies that works in any thread."""
        self._inputs = inputs
        self._desired = desired
        self._facts = facts
        self._read = read
        self._revision = revision
        self._flows = flows

    async def explain(self, question: Question) -> Explanation:
        """The answer. Raises ApiError."""
        facts = self._facts()
        ends = Ends(self._inputs, self._desired, facts)
        then: Then | None = None
        if question.flow:
            source, destination, port, then = self._flow(question.flow, ends)
        else:
            source, destination = ends.find(question.source), ends.find(question.destination)
            port = parse_port(question.port, destination)
        library = self._library()
        told = await asyncio.to_thread(tell, facts, source, destination, port, library, self._read())
        return msgspec.structs.replace(told, revision=self._revision(), then=then)

    def _library(self) -> Library:
        local, remote = list(self._desired.endpoints), list(self._inputs.remote_endpoints)
        pods: dict[IdentityId, list[str]] = {}

        def names(identity: IdentityId) -> list[str]:
            if not pods:
                pods.update(pods_by_identity(local, remote))
            return pods.get(identity, [])

        return Library(policies={row.key: row for row in self._inputs.policies}, pods=names)

    def _flow(self, uuid: str, ends: Ends) -> tuple[Known, Known, Port, Then]:
        """A flow's ends as they are now, its port, and what was decided."""
        store = self._flows
        row = store.row_of(uuid)
        if row is None or row >= store.head:
            raise ApiError(
                404,
                f"{uuid[:40]!r} is no flow of this agent; `cilia observe -o dict` shows UUIDs of flows and "
                "the NODE whose agent can explain them.",
            )
        if row < store.oldest:
            raise ApiError(410, "The flow has been overwritten by newer ones; explain a younger one.")
        rows = store.take(np.array([row]))
        event = rows.events[0]
        protocol = int(event["protocol"])
        # Rules are about who begins: what answers passes, or not, by what was said of the question.
        answers = bool(int(event["flags"]) & FLAG_REPLY)
        if protocol in ECHO:
            port = QUESTIONS.get((protocol, int(event["icmp_type"])), int(event["icmp_type"]))
        else:
            port = int(event["source_port" if answers else "destination_port"])
        raw = {
            name: octets(rows.events, name)[0].tobytes()
            for name in ("source", "destination", "original_source")
        }
        sender = raw["original_source"] if any(raw["original_source"]) else raw["source"]
        parties = [store.parties.values[int(refs[0])] for refs in (rows.source, rows.destination)]
        known = [
            self._end(ends, party, address(text))
            for party, text in zip(parties, (sender, raw["destination"]), strict=True)
        ]
        verdict, reason = int(event["verdict"]), int(event["reason"])
        dropped = int(event["kind"]) == KIND_DROP or verdict == VERDICT_DROPPED
        then = Then(
            uuid=uuid,
            time=moment(int(rows.wall[0])),
            verdict="denied" if dropped else "audit" if verdict == VERDICT_AUDIT else "forwarded",
            reason=reason_name(reason) if reason and (dropped or verdict == VERDICT_AUDIT) else "",
            summary=f"{summary(event)}, an answer: explained is what it answers"
            if answers
            else summary(event),
            egress=_rules_words(store.rules.values[int(rows.egress[0])]),
            ingress=_rules_words(store.rules.values[int(rows.ingress[0])]),
            revision=max(store.rules.values[int(refs[0])].revision for refs in (rows.egress, rows.ingress)),
        )
        if answers:
            known.reverse()
        return known[0], known[1], (protocol, port), then

    def _end(self, ends: Ends, party: Side, at: str) -> Known:
        """Who it is now that was an end of a flow."""
        endpoint = self._desired.endpoints.get(EndpointId(party.id)) if party.id else None
        if endpoint is not None and at in endpoint.addresses:
            return ends.local(endpoint, at, at)
        return ends.at(at, at)


def tell(
    facts: Facts, source: Known, destination: Known, port: Port, library: Library, read: Read
) -> Explanation:
    """Explain both sides, and find what would allow the packet on each that denies it."""
    protocol, number = port
    sides = []
    for direction, subject, peer in (
        (Direction.EGRESS, source, destination),
        (Direction.INGRESS, destination, source),
    ):
        if not explain.has_side(facts, subject.party):
            continue
        packet = Packet(
            subject=subject.party, peer=peer.party, direction=direction, protocol=protocol, port=number
        )
        side = explain.explain(facts, packet, library, subject.end.name)
        sides.append(explain.with_remedy(side, remedy.find(facts, packet, library, read)))
    verdict = "allow"
    for side in sides:
        verdict = check.together(verdict, side.verdict)
    return Explanation(
        source=source.end,
        destination=destination.end,
        protocol=words.protocol_name(protocol),
        port=str(number) if protocol in (*WITH_PORTS, *ECHO) else "",
        verdict=verdict,
        sides=tuple(sides),
        notes=tuple(notes(source.end, destination.end, bool(sides))),
    )


def notes(source: End, destination: End, judged: bool) -> list[str]:
    """What the verdict does not tell."""
    found = []
    if not judged:
        found.append("Neither end has policy here: only pods are judged, and nodes where policies name them.")
    for end in (source, destination):
        if end.node:
            found.append(
                f"{end.name} is on node {end.node}: its side is told as this node knows the policies; "
                "audit switched on there for the node or the endpoint is not known here."
            )
    return found


def parse_port(text: str, destination: Known) -> Port:
    """`80`, `80/TCP`, `http`, `icmp/8`, `sctp/7`, `gre` by number: `47/ip`. Raises ApiError 400."""
    first, slash, second = text.strip().partition("/")
    if slash and first.lower() in PROTOCOLS:
        first, second = second, first
    protocol = PROTOCOLS.get(second.lower()) if second else None
    if not slash and first.lower() in PROTOCOLS:
        protocol = PROTOCOLS[first.lower()]
        return protocol, ECHO.get(protocol, 0)
    if second.lower() in ("ip", "protocol") and is_number(first) and int(first) < 256:
        return int(first), 0
    if second and protocol is None:
        raise ApiError(
            400, f"{text[:40]!r} names no protocol that has ports; write 80/TCP, icmp/8, or 47/ip for others."
        )
    if is_number(first):
        limit = 256 if protocol in ECHO else 65536
        if int(first) < limit:
            return protocol or TCP, int(first)
        raise ApiError(400, f"{first} is not below {limit}; write a port or an ICMP type.")
    for port in destination.named_ports:
        if port.name == first and protocol in (None, PROTOCOLS[port.protocol.lower()]):
            return PROTOCOLS[port.protocol.lower()], port.port
    has = ", ".join(port.name for port in destination.named_ports) or "none"
    raise ApiError(
        400, f"{destination.end.name} has no port called {first[:40]!r}; its names: {has}. Write the number."
    )


def reason_name(reason: int) -> str:
    """Hubble's name of a drop reason, or its number."""
    try:
        return str(flow_pb2.DropReason.Name(reason))  # type: ignore[arg-type]
    except ValueError:
        return str(reason)


def moment(nanoseconds: int) -> str:
    """RFC 3339, to the millisecond."""
    text = datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _rules_words(rules: Rules) -> tuple[str, ...]:
    start = "default deny of " if rules.row.default else ""
    return tuple(f"{start}{rule}" for rule in rules.row.rules)
