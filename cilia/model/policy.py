"""Policy as the data path enforces it: entries per subject, and the rules behind a cookie.

How objects become rules and rules become entries is `cilia.control.policy`'s.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import msgspec

from cilia.model.endpoint import NamedPort
from cilia.model.ids import Cookie, IdentityId, Revision, SubjectId
from cilia.model.labels import Labels


class Direction(enum.IntEnum):
    """As enum direction of bpf/abi/types.h."""

    INGRESS = 1
    EGRESS = 2


class PolicyMode(enum.StrEnum):
    """When subjects are isolated."""

    DEFAULT = "default"
    """In the directions in which some policy isolates them."""
    ALWAYS = "always"
    """In both directions, whether a policy selects them or not."""
    NEVER = "never"
    """In none, and no rule counts."""


class MatchKind(enum.IntEnum):
    """Hubble's policy_match_type; as enum policy_match of bpf/abi/policy.h."""

    NONE = 0
    L3_ONLY = 1
    L3_L4 = 2
    L4_ONLY = 3
    ALL = 4
    L3_PROTOCOL = 5
    PROTOCOL_ONLY = 6


class EntryFlags(enum.IntFlag):
    """As enum policy_flags of bpf/abi/policy.h."""

    NONE = 0
    AUDIT = 1
    DEFAULT = 4


class PolicyObject(msgspec.Struct, frozen=True, kw_only=True):
    """A policy as its author wrote it: one row per Kubernetes object."""

    kind: str
    """NetworkPolicy, CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy or ClusterNetworkPolicy."""
    namespace: str
    name: str
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    body: Any = None
    """The typed resource of `cilia.model.resources`; None when it could not be decoded."""
    problem: PolicyProblem | None = None
    """Why it could not be decoded: to be refused with this path and sentence."""

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.kind, self.namespace, self.name)


class RuleRef(msgspec.Struct, frozen=True, order=True, cache_hash=True, gc=False):
    """Where a rule stands: enough to open the YAML at the right line."""

    kind: str
    namespace: str
    name: str
    resource_version: str
    path: str
    """Such as spec.ingress[0].fromEndpoints[1]; for a default deny the part that isolates: spec."""
    log: str = ""
    """Text of spec.log, which the flows that the rule decides about carry."""

    def __str__(self) -> str:
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {where}@{self.resource_version} {self.path}"


class EntryKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """Key of an entry: as struct policy_key of bpf/abi/policy.h."""

    direction: int
    peer: int
    """Identity, 0 for any."""
    protocol: int = 0
    port: int = 0
    bits: int = 0
    """How many of the 24 bits of protocol and port count: 0, 8, or 8 + leading port bits."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """Value of an entry: as struct policy_entry of bpf/abi/policy.h."""

    precedence: int
    allow: bool
    cookie: Cookie
    match: MatchKind
    flags: EntryFlags = EntryFlags.NONE
    proxy_port: int = 0


class SubjectKey(msgspec.Struct, frozen=True, order=True):
    """Whom one set of entries judges: endpoints alike in all that policy can tell apart share a subject."""

    identity: IdentityId
    named_ports: tuple[NamedPort, ...] = ()
    audit: bool = False
    """Denials are noted, not enforced, for these endpoints."""


class SubjectPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """All entries of one subject.

    While `rules` stays the same only identities came or went, and the entries are changed one by one in
    the live map; another `rules` means another inner map and another revision.
    """

    subject: SubjectId
    key: SubjectKey
    labels: Labels
    rules: str
    """Fingerprint of everything but identities: the selected rules and the modes."""
    revision: Revision
    """Policy revision (of the input) this was computed for."""
    entries: Mapping[EntryKey, Entry]
    """Alike subjects hold the same object."""
    ingress_enforced: bool
    egress_enforced: bool
    epoch: int = 0
    """Another one is as other `rules` are: an identity that stayed is meant by other rules, or gives other
    numbers to its ports, so that its running flows must be judged again."""

    @property
    def identity(self) -> IdentityId:
        return self.key.identity


class CookieRow(msgspec.Struct, frozen=True):
    """What a cookie stands for."""

    cookie: Cookie
    rules: tuple[RuleRef, ...]
    default: bool = False
    """The default verdict: the rules are then the policies that isolate."""

    @property
    def logs(self) -> tuple[str, ...]:
        """The texts of spec.log that its flows carry."""
        return tuple(sorted({rule.log for rule in self.rules if rule.log}))


class PolicyProblem(msgspec.Struct, frozen=True, order=True):
    """Why a policy is not enforceable, or hardly means what it says; shown in its status."""

    path: str
    sentence: str


class PolicyState(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a policy object: the conditions of its status."""

    kind: str
    namespace: str
    name: str
    resource_version: str
    generation: int
    valid: bool
    """All of it can be enforced; of one that is not valid, the parts without a problem still are."""
    problems: tuple[PolicyProblem, ...] = ()
    warnings: tuple[PolicyProblem, ...] = ()
    """Rules in force that can't match what their author probably meant."""

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.kind, self.namespace, self.name)


class CidrIdentity(msgspec.Struct, frozen=True):
    """A prefix some policy speaks of, with its node-local identity."""

    prefix: str
    identity: IdentityId
