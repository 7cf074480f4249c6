"""Everything a verdict depends on, in one value: what the oracle, `explain` and `check` reason about."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cilia.control.policy.rules import Section
from cilia.model.endpoint import NamedPort
from cilia.model.ids import IdentityId
from cilia.model.labels import Labels
from cilia.model.policy import PolicyMode, RuleRef

LOCALHOST = RuleRef("Cilia", "", "allow-localhost", "", "")
"""The built-in rule that lets a node reach its own pods (health probes of the kubelet)."""


class Party(msgspec.Struct, frozen=True, kw_only=True):
    """One end of a packet."""

    identity: IdentityId
    labels: Labels
    named_ports: tuple[NamedPort, ...] = ()
    """Of this very endpoint: what a rule about its ingress means by a name."""
    audit: bool = False
    """Its denials are noted, not enforced."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The policies as rules, with all references followed, and the world they speak of."""

    sections: tuple[Section, ...]
    identities: Mapping[IdentityId, Labels]
    port_names: Mapping[IdentityId, frozenset[NamedPort]] = {}
    """Every named port of any endpoint with an identity: what a rule about egress means by a name."""
    addresses: Mapping[IdentityId, frozenset[str]] = {}
    """Every address of pods and nodes, by identity: what an administrator's networks mean inside."""
    mode: PolicyMode = PolicyMode.DEFAULT
    audit: bool = False
    """No denial is enforced on this node."""
    allow_localhost: bool = True
    cidr_nodes: bool = False
    """CIDR rules mean nodes, too."""
