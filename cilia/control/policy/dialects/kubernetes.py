"""NetworkPolicy (networking.k8s.io/v1) read into rules.

Meanings are those of the Kubernetes API reference: absent and empty `from`, `to` and `ports` restrict
nothing; a peer's namespace selector and pod selector hold together; a pod selector alone is about the
policy's own namespace; only pods of this cluster are selected by labels, only addresses outside the cluster
by ipBlock. A port's name means the numbers that the receiving pod gives it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cilia.control.policy.dialects.reading import Reader
from cilia.control.policy.ports import PROTOCOLS
from cilia.control.policy.rules import (
    ALL_PORTS,
    Peer,
    PortName,
    PortRange,
    Ports,
    Requirement,
    Rule,
    Section,
    Selector,
    equals,
)
from cilia.model.labels import NAMESPACE, NAMESPACE_LABELS
from cilia.model.policy import Direction
from cilia.model.resources.network_policy import (
    IPBlock,
    NetworkPolicy,
    NetworkPolicyPeer,
    NetworkPolicyPort,
)


def read(reader: Reader, body: NetworkPolicy) -> None:
    """Add the one section a NetworkPolicy makes."""
    reader.check_scope(clusterwide=False)
    spec = body.spec
    types: tuple[str, ...] = spec.policy_types or (("Ingress", "Egress") if spec.egress else ("Ingress",))
    subject = reader.subject(
        lambda: Selector.of(
            [_own_namespace(reader), *reader.requirements(spec.pod_selector, "spec.podSelector")]
        )
    )
    isolates: list[Direction] = []
    rules: list[Rule] = []
    if "Ingress" in types:
        isolates.append(Direction.INGRESS)
        for number, ingress in enumerate(spec.ingress or ()):
            path = f"spec.ingress[{number}]"
            read_it = partial(_rules, reader, Direction.INGRESS, ingress.from_, "from", ingress.ports, path)
            rules += reader.entry(Direction.INGRESS, path, read_it)
    if "Egress" in types:
        isolates.append(Direction.EGRESS)
        for number, egress in enumerate(spec.egress or ()):
            path = f"spec.egress[{number}]"
            read_it = partial(_rules, reader, Direction.EGRESS, egress.to, "to", egress.ports, path)
            rules += reader.entry(Direction.EGRESS, path, read_it)
    if subject is None:
        return
    reader.sections.append(
        Section(
            subject=subject,
            ref=reader.ref("spec"),
            isolates=tuple(isolates),
            rules=tuple(rules),
            audit=reader.audit,
            refused=reader.refused(),
        )
    )


def _rules(
    reader: Reader,
    direction: Direction,
    peers: tuple[NetworkPolicyPeer, ...] | None,
    field: str,
    ports: tuple[NetworkPolicyPort, ...] | None,
    path: str,
) -> Iterator[Rule]:
    ranges = _ports(reader, ports, path)
    if not peers:
        yield reader.rule(direction, None, path, ranges)
    for number, peer in enumerate(peers or ()):
        where = f"{path}.{field}[{number}]"
        meant = _peer(reader, peer, where)
        if meant is not None:
            yield reader.rule(direction, meant, where, ranges)


def _peer(reader: Reader, peer: NetworkPolicyPeer, path: str) -> Peer:
    """The peer, or None after a refusal."""
    pods, namespaces, block = peer.pod_selector, peer.namespace_selector, peer.ip_block
    if block is not None:
        if pods is not None or namespaces is not None:
            reader.refuse(path, "ipBlock can't be combined with selectors: write two peers.")
        return _block(reader, block, f"{path}.ipBlock")
    if namespaces is None:
        if pods is not None:
            found = reader.requirements(pods, f"{path}.podSelector")
            return reader.peer_pods([_own_namespace(reader), *found])
        reader.refuse(path, "The peer names nobody: give a podSelector, a namespaceSelector or an ipBlock.")
        return None
    found = reader.requirements(namespaces, f"{path}.namespaceSelector", prefix=NAMESPACE_LABELS)
    if pods is not None:
        found += reader.requirements(pods, f"{path}.podSelector")
    return reader.peer_pods(found)


def _block(reader: Reader, block: IPBlock, path: str) -> Peer:
    excepts = ((text, f"{path}.except[{n}]") for n, text in enumerate(block.except_ or ()))
    return reader.cidr(block.cidr, f"{path}.cidr", excepts)


def _own_namespace(reader: Reader) -> Requirement:
    return equals("k8s", NAMESPACE, reader.policy.namespace)


def _ports(reader: Reader, ports: tuple[NetworkPolicyPort, ...] | None, path: str) -> tuple[Ports, ...]:
    if not ports:
        return ALL_PORTS
    return tuple(_port(reader, port, f"{path}.ports[{number}]") for number, port in enumerate(ports))


def _port(reader: Reader, port: NetworkPolicyPort, path: str) -> Ports:
    (protocol,) = PROTOCOLS[port.protocol]
    if isinstance(port.port, str):
        if port.end_port is not None:
            reader.refuse(f"{path}.endPort", "A named port has no range: write the first port's number.")
        return PortName(protocol, reader.port_name(port.port, f"{path}.port"))
    if port.port is None:
        if port.end_port is not None:
            reader.refuse(f"{path}.endPort", "endPort needs port: give the first port of the range.")
        return PortRange(protocol)
    return reader.port_range(protocol, port.port, port.end_port, f"{path}.endPort")
