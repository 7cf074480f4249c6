"""Rules in words and in the YAML they were written in: what `explain`, `check` and the API tell people."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
import yaml

from cilia.control.policy.rules import (
    ANY_SOURCE,
    Cidr,
    CidrGroup,
    Cidrs,
    Inside,
    Operator,
    PortName,
    PortRange,
    Ports,
    Requirement,
    Selector,
    ServicePeer,
    Tier,
    WrittenPeer,
)
from cilia.model.policy import PolicyObject, RuleRef

PROTOCOLS = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 112: "VRRP", 132: "SCTP"}
"""Names of protocol numbers (IANA) as policies spell them."""

TIERS = {Tier.ADMIN: "admin", Tier.NORMAL: "normal", Tier.BASELINE: "baseline"}

SHOWN_BLOCKS = 8
"""Prefixes of a long list that are spelled out."""

_RULE = re.compile(
    r"^(?P<spec>specs?(?:\[\d+\])?)\.(?P<list>\w+)\[(?P<number>\d+)\](?:\.(?P<peers>\w+)\[(?P<peer>\d+)\])?"
)
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def requirement_text(requirement: Requirement) -> str:
    """`k8s:app=web`, `k8s:app in (a, b)`, `k8s:app`, `not k8s:app`."""
    key = f"{requirement.source}:{requirement.key}" if requirement.source != ANY_SOURCE else requirement.key
    values = ", ".join(requirement.values[:SHOWN_BLOCKS])
    if len(requirement.values) > SHOWN_BLOCKS:
        values += f", {len(requirement.values) - SHOWN_BLOCKS} more"
    match requirement.operator:
        case Operator.EXISTS:
            return key
        case Operator.DOES_NOT_EXIST:
            return f"not {key}"
        case Operator.IN if len(requirement.values) == 1:
            return f"{key}={values}" if values else key
        case Operator.IN:
            return f"{key} in ({values})"
        case _:
            return f"{key} not in ({values})"


def selector_text(selector: Selector) -> str:
    """All requirements, or `everybody with an identity`."""
    if not selector.requirements:
        return "everybody with an identity"
    return ", ".join(requirement_text(part) for part in selector.requirements)


def cidr_text(cidr: Cidr) -> str:
    """`10.0.0.0/8 except 10.1.0.0/16`."""
    return f"{cidr.prefix} except {_listed(cidr.excepts)}" if cidr.excepts else cidr.prefix


def peer_text(peer: WrittenPeer) -> str:
    """Whom a rule is about."""
    match peer:
        case None:
            return "everybody"
        case Selector():
            return selector_text(peer)
        case Cidr():
            return cidr_text(peer)
        case Cidrs():
            return _listed([cidr_text(block) for block in peer.blocks]) or "no address"
        case Inside():
            how = "whose every address is" if peer.whole else "with an address"
            return f"pods and nodes {how} in {_listed(peer.prefixes)}"
        case CidrGroup():
            who = peer.name or f"those labelled {selector_text(peer.selector or Selector())}"
            return f"CiliumCIDRGroup {who}"
        case ServicePeer():
            who = peer.name or f"those labelled {selector_text(peer.selector or Selector())}"
            return f"Service {peer.namespace}/{who}" if peer.namespace else f"Service {who}"


def ports_text(ports: Iterable[Ports]) -> str:
    """`TCP 80, UDP 1000-2000`, `all protocols and ports`."""
    return _listed([port_text(part) for part in ports])


def port_text(part: Ports) -> str:
    """One range or name."""
    if isinstance(part, PortName):
        return f"{protocol_name(part.protocol)} {part.name}"
    if not part.protocol:
        return "all protocols and ports"
    name = protocol_name(part.protocol)
    if part == PortRange(part.protocol):
        return name
    return f"{name} {part.first}" if part.first == part.last else f"{name} {part.first}-{part.last}"


def protocol_name(protocol: int) -> str:
    """TCP, or the number."""
    return PROTOCOLS.get(protocol, f"protocol {protocol}")


def ref_text(ref: RuleRef) -> str:
    """`CiliumNetworkPolicy demo/web spec.ingress[0]`."""
    where = f"{ref.namespace}/{ref.name}" if ref.namespace else ref.name
    return f"{ref.kind} {where} {ref.path}".strip()


def _listed(items: Iterable[str]) -> str:
    found = list(items)
    shown = found[:SHOWN_BLOCKS]
    more = len(found) - len(shown)
    return ", ".join([*shown, *([f"{more} more"] if more else [])])


# -- YAML -----------------------------------------------------------------------------------------------


class RulePlace(msgspec.Struct, frozen=True):
    """A rule's path, taken apart: the spec, list and place of the rule, list and place of the peer."""

    spec: str
    rules: str
    number: int
    peers: str = ""
    peer: int = 0

    @property
    def rule(self) -> str:
        """Path of the rule as a whole."""
        return f"{self.spec}.{self.rules}[{self.number}]"


def place(path: str) -> RulePlace | None:
    """Take a path apart; None where it is not about a rule."""
    found = _RULE.match(path)
    if found is None:
        return None
    return RulePlace(
        found["spec"], found["list"], int(found["number"]), found["peers"] or "", int(found["peer"] or 0)
    )


def as_written(policy: PolicyObject | None) -> Any:
    """The object as plain data with the API's names; None when it could not be decoded."""
    return msgspec.to_builtins(policy.body) if policy is not None and policy.body is not None else None


def part_of(whole: Any, path: str) -> Any:
    """What stands at a path such as spec.ingress[0]; None when nothing does."""
    for name, number in _STEP.findall(path):
        try:
            whole = whole[name] if name else whole[int(number)]
        except (KeyError, IndexError, TypeError):
            return None
    return whole


def rule_as_written(whole: Any, path: str) -> Any:
    """The rule a path is about, with only the peer it names; for a path of a spec its part that isolates."""
    where = place(path)
    if where is None:
        return part_of(whole, path)
    rule = part_of(whole, where.rule)
    if not where.peers or not isinstance(rule, dict):
        return rule
    peers = rule.get(where.peers)
    if not isinstance(peers, list | tuple) or where.peer >= len(peers):
        return rule
    others = {name for name in rule if name.startswith(("from", "to")) and name != "toPorts"}
    kept = {name: part for name, part in rule.items() if name not in others}
    return {where.peers: [peers[where.peer]], **kept}


def subject_as_written(whole: Any, path: str) -> dict[str, Any]:
    """The selectors and directions of a spec: what a default deny comes from."""
    spec = part_of(whole, path)
    names = ("endpointSelector", "nodeSelector", "podSelector", "subject", "policyTypes", "enableDefaultDeny")
    return {name: spec[name] for name in names if name in spec} if isinstance(spec, dict) else {}


class _Dumper(yaml.SafeDumper):
    """Writes repeated parts out instead of as anchors, which nobody wants to paste."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(value: Any) -> str:
    """Plain data as YAML in the order given; empty for nothing."""
    if value is None:
        return ""
    plain = msgspec.to_builtins(value)
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=100)
