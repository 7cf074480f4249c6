"""Answers about policy for people: why a packet passes or not, and what other policies would change.

They travel from the agent to the CLI as they are, with dashed names; texts are whole sentences.
"""

from __future__ import annotations

import msgspec


class Answer(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """Base of the values on this page."""


class End(Answer, frozen=True, kw_only=True):
    """One end of a packet: who it is and how we know."""

    given: str
    """As the question named it."""
    identity: int
    labels: tuple[str, ...] = ()
    address: str = ""
    pod: str = ""
    """namespace/name"""
    endpoint: int = 0
    """Its number, when it is on this node."""
    node: str = ""
    origin: str = ""
    """Where the identity comes from, as a sentence."""
    named_ports: tuple[str, ...] = ()
    """Such as http=8080/TCP."""
    audit: bool = False

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        return self.pod or self.address or self.given


class Member(Answer, frozen=True, kw_only=True):
    """An identity that a selector means."""

    identity: int
    labels: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()
    """Some of the pods that have it."""


class Expansion(Answer, frozen=True, kw_only=True):
    """What a peer of a rule stands for now."""

    selector: str
    """In words."""
    count: int = 0
    """Identities it means."""
    members: tuple[Member, ...] = ()
    """The first of them."""


class RuleStory(Answer, frozen=True, kw_only=True):
    """A rule, where it stands, and what it had to do with the packet."""

    kind: str
    namespace: str = ""
    name: str = ""
    resource_version: str = ""
    path: str = ""
    action: str = ""
    """allow, deny or pass; isolate for a spec that makes the default verdict deny."""
    tier: str = ""
    priority: int = 0
    audit: bool = False
    ports: str = ""
    why: str = ""
    """Why it decides, lost, or is not about the packet."""
    yaml: str = ""
    peer: Expansion | None = None

    @property
    def policy(self) -> str:
        """namespace/name, or the name of a clusterwide policy."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Change(Answer, frozen=True, kw_only=True):
    """One edit of the policies."""

    sentence: str
    yaml: str = ""


class Remedy(Answer, frozen=True, kw_only=True):
    """The smallest change found that would allow a packet on one side."""

    changes: tuple[Change, ...] = ()
    verified: bool = False
    """The packet was judged again with the changes in force, and passes this side."""


class Side(Answer, frozen=True, kw_only=True):
    """The verdict of one end's policy."""

    direction: str
    """egress of the source, or ingress of the destination"""
    subject: str
    verdict: str
    """allow, deny or audit (denied, but let pass and noted)"""
    default: bool = False
    """No rule is about the packet."""
    reason: str = ""
    deciding: tuple[RuleStory, ...] = ()
    losers: tuple[RuleStory, ...] = ()
    """About the packet, but overruled."""
    misses: tuple[RuleStory, ...] = ()
    """Rules that would have allowed it, and why they are not about it."""
    misses_left_out: int = 0
    remedy: Remedy | None = None


class Then(Answer, frozen=True, kw_only=True):
    """What was decided about a flow when it happened."""

    uuid: str
    time: str
    """RFC 3339, UTC."""
    verdict: str
    reason: str = ""
    """Name of the drop reason."""
    summary: str = ""
    egress: tuple[str, ...] = ()
    """Rules the source's side named, as kind policy@resourceVersion path."""
    ingress: tuple[str, ...] = ()
    revision: int = 0
    """Policy revision; 0: unknown."""


class Explanation(Answer, frozen=True, kw_only=True):
    """GET /v1/policy/explain."""

    source: End
    destination: End
    protocol: str
    port: str = ""
    """Of the destination, or the ICMP type; empty where the protocol has none."""
    verdict: str
    """allow, deny or audit, of both sides together"""
    sides: tuple[Side, ...] = ()
    notes: tuple[str, ...] = ()
    """What else matters, and what this node can't know."""
    revision: int = 0
    then: Then | None = None


class DocumentProblem(Answer, frozen=True, kw_only=True):
    """Why a proposed document can't be taken."""

    document: str
    """File and number, with kind and name where they could be read."""
    path: str = ""
    sentence: str


class Difference(Answer, frozen=True, kw_only=True):
    """Packets whose verdict a proposal changes."""

    source: str
    destination: str
    protocol: str
    port: str = ""
    before: str
    """allow, deny or audit"""
    after: str
    direction: str
    """Whose side changes: egress of the source or ingress of the destination."""
    before_rules: tuple[str, ...] = ()
    after_rules: tuple[str, ...] = ()
    flows: int = 0
    """How many flows of the window it is; 0: none was seen, it is about live workloads."""
    last_seen: str = ""
    """RFC 3339, UTC."""
    others: int = 0
    """More pairs of workloads to which the same happens."""

    @property
    def newly_denied(self) -> bool:
        """Whether it passed and would not."""
        return self.before != "deny" and self.after == "deny"

    @property
    def newly_allowed(self) -> bool:
        """Whether it did not pass and would."""
        return self.before == "deny" and self.after != "deny"


class CheckReport(Answer, frozen=True, kw_only=True):
    """POST /v1/policy/check."""

    problems: tuple[DocumentProblem, ...] = ()
    """With any of these nothing was compared."""
    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    flows: tuple[Difference, ...] = ()
    pairs: tuple[Difference, ...] = ()
    flows_seen: int = 0
    """Distinct flows of the window that were judged."""
    pairs_judged: int = 0
    """Pairs of workloads, one way, of which a side has a verdict of its own changed on some port."""
    since: float = 0.0
    """Seconds the window of flows reaches back."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All of them."""
        return self.flows + self.pairs
