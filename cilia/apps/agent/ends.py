"""Who somebody means: pods, addresses, identities, labels and entities as `cilia policy explain` has them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import msgspec

from cilia.api.backend import ApiError
from cilia.control.policy.facts import Facts, Party
from cilia.control.policy.meaning.selection import cidr_label
from cilia.control.policy.reasons.words import ref_text
from cilia.control.policy.rules import Cidr, Cidrs
from cilia.model.endpoint import Endpoint, NamedPort, RemoteEndpoint
from cilia.model.explain import End
from cilia.model.identity import (
    LOCAL_CIDR_FIRST,
    LOCAL_NODE_FIRST,
    RESERVED_NAMES,
    UNKNOWN,
    WORLD,
    WORLD_IPV4,
    WORLD_IPV6,
)
from cilia.model.ids import EndpointId, IdentityId
from cilia.model.labels import Label, Labels
from cilia.model.node import IpcacheEntry
from cilia.schema import Desired, Inputs

ONE_ADDRESS = IdentityId(1 << 31)
"""Stands for one address outside the cluster; no node gives out this number."""

ENTITIES = {names[0]: number for number, names in RESERVED_NAMES.items() if number != UNKNOWN}
SHOWN = 3
LONGEST_NUMBER = 10
"""Digits."""

HINT = (
    "write NAMESPACE/POD, an endpoint's or identity's number, an address, labels such as app=web, "
    "or an entity such as world"
)


def is_number(text: str) -> bool:
    """Whether a text is a number: other scripts have digits as well, and `int` does not read any count."""
    return text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER


def outside_labels(prefix: str, known: Labels = Labels()) -> Labels:
    """An address or prefix of the world as itself. `known` are the labels of the identity that stands for it:
    an API server outside the cluster is of the world and its own entity, too."""
    reserved = (label for label in known.items if label.source == "reserved")
    return Labels.of([cidr_label(prefix), Label("reserved", "world"), *reserved])


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """An end, for people and for the oracle."""

    end: End
    party: Party
    named_ports: tuple[NamedPort, ...] = ()


class Ends:
    """Looks ends up in the agent's tables, as they are at this moment."""

    def __init__(self, inputs: Inputs, desired: Desired, facts: Facts) -> None:
        self._inputs = inputs
        self._desired = desired
        self._facts = facts

    def find(self, text: str) -> Known:
        """The end a text names. Raises ApiError 400, 404 or 409."""
        text = text.strip()
        kind, colon, rest = text.partition(":")
        if colon and kind in ("endpoint", "identity") and is_number(rest):
            return self._numbered(text, int(rest), kind)
        if is_number(text):
            return self._numbered(text, int(text), "")
        address = _address(text)
        if address is not None:
            return self.at(address, text)
        if text in ENTITIES:
            return self._identity(text, ENTITIES[text], f"the entity {text}")
        if "=" in text:
            return self._labelled(text)
        if text.count("/") == 1 and all(text.split("/")):
            return self._pod(text)
        raise ApiError(400, f"{text[:80]!r} names nobody: {HINT}.")

    def at(self, address: str, given: str) -> Known:
        """Who is at an address."""
        local = self._desired.endpoints.by("address", address)
        if local:
            return self.local(local[0], given, address)
        entry = self._entry(address)
        if entry is None:
            raise ApiError(404, f"Nobody is known at {address}; `cilia ip list` shows who is.")
        if entry.pod:
            remote = self._inputs.remote_endpoints.get((entry.namespace, entry.pod))
            if remote is not None:
                return self._remote(remote, given, address)
        number = IdentityId(entry.identity)
        if number in (WORLD, WORLD_IPV4, WORLD_IPV6) or LOCAL_CIDR_FIRST <= number < LOCAL_NODE_FIRST:
            return self.outside(address, given, number, entry.prefix)
        return self._identity(given, number, self._of_node(address, entry), address)

    def outside(self, address: str, given: str, number: IdentityId, prefix: str = "") -> Known:
        """An address of the world: judged as itself, which no rule tells from its identity."""
        own = f"{address}/128" if ":" in address else f"{address}/32"
        labels = outside_labels(own, self._labels(number))
        return Known(
            end=End(
                given=given,
                identity=number,
                labels=tuple(self._labels(number).strings()),
                address=address,
                origin=self._of_prefix(prefix),
            ),
            party=Party(identity=ONE_ADDRESS, labels=labels),
        )

    def local(self, endpoint: Endpoint, given: str, address: str = "") -> Known:
        """An endpoint of this node."""
        attachment = endpoint.attachment
        return Known(
            end=End(
                given=given,
                identity=endpoint.identity,
                labels=tuple(endpoint.labels.strings()),
                address=address or next(iter(endpoint.addresses), ""),
                pod=endpoint.pod_name,
                endpoint=endpoint.id,
                origin=f"endpoint {endpoint.id} of this node, attached as {attachment.host_interface} by the "
                f"CNI plugin; identity from the labels of its pod and namespace",
                named_ports=_ports_words(endpoint.named_ports),
                audit=endpoint.audit,
            ),
            party=Party(
                identity=endpoint.identity,
                labels=self._labels(endpoint.identity) if endpoint.identity else endpoint.labels,
                named_ports=endpoint.named_ports,
                audit=endpoint.audit,
            ),
            named_ports=endpoint.named_ports,
        )

    def _remote(self, row: RemoteEndpoint, given: str, address: str = "") -> Known:
        node = self._node_at(row.node_ip)
        where = f"node {node} ({row.node_ip})" if node else f"the node at {row.node_ip}"
        return Known(
            end=End(
                given=given,
                identity=row.identity,
                labels=tuple(self._labels(row.identity).strings()),
                address=address or next(iter(row.addresses), ""),
                pod=f"{row.namespace}/{row.name}",
                node=node or row.node_ip,
                origin=f"CiliumEndpoint {row.namespace}/{row.name} of {where}",
                named_ports=_ports_words(row.named_ports),
            ),
            party=Party(
                identity=row.identity, labels=self._labels(row.identity), named_ports=row.named_ports
            ),
            named_ports=row.named_ports,
        )

    def _pod(self, text: str) -> Known:
        for endpoint in self._desired.endpoints:
            if endpoint.pod_name == text:
                return self.local(endpoint, text)
        namespace, _, name = text.partition("/")
        remote = self._inputs.remote_endpoints.get((namespace, name))
        if remote is None:
            raise ApiError(
                404,
                f"No pod {text} has an endpoint in the cluster; `kubectl get ciliumendpoints -A` lists them.",
            )
        return self._remote(remote, text)

    def _numbered(self, given: str, number: int, kind: str) -> Known:
        """An endpoint of this node has precedence over an identity of the same number."""
        if kind != "identity" and number < 1 << 16:
            endpoint = self._desired.endpoints.get(EndpointId(number))
            if endpoint is not None:
                return self.local(endpoint, given)
        if kind == "endpoint" or IdentityId(number) not in self._facts.identities:
            what = kind or "endpoint or identity"
            raise ApiError(404, f"There is no {what} {number} on this node; `cilia {what.split()[0]} list`.")
        pods = self._pods_of(IdentityId(number))
        return self._identity(given, IdentityId(number), f"given as an identity; pods: {pods or 'none now'}")

    def _labelled(self, text: str) -> Known:
        wanted = [Label.parse(part) for part in text.split(",") if part]
        found = [number for number, labels in self._facts.identities.items() if _carries(labels, wanted)]
        if not found:
            raise ApiError(404, f"No identity has the labels {text}; `cilia identity list` shows them all.")
        if len(found) > 1:
            some = ", ".join(map(str, sorted(found)[:SHOWN]))
            raise ApiError(409, f"{len(found)} identities have the labels {text}, such as {some}: name one.")
        return self._identity(text, found[0], f"the only identity with the labels {text}")

    def _identity(self, given: str, number: IdentityId, origin: str, address: str = "") -> Known:
        labels = self._labels(number)
        names = tuple(sorted(self._facts.port_names.get(number, ())))
        return Known(
            end=End(
                given=given,
                identity=number,
                labels=tuple(labels.strings()),
                address=address,
                origin=origin,
                named_ports=_ports_words(names),
            ),
            party=Party(identity=number, labels=labels, named_ports=names),
            named_ports=names,
        )

    # where things come from

    def _labels(self, number: IdentityId) -> Labels:
        return self._facts.identities.get(number, Labels())

    def _entry(self, address: str) -> IpcacheEntry | None:
        """The longest prefix of the ipcache that holds an address."""
        wanted = ipaddress.ip_address(address)
        for length in range(wanted.max_prefixlen, -1, -1):
            network = ipaddress.ip_network((address, length), strict=False)
            entry = self._desired.ipcache.get(str(network))
            if entry is not None:
                return entry
        return None

    def _of_prefix(self, prefix: str) -> str:
        if not prefix or prefix in ("0.0.0.0/0", "::/0"):
            return "no endpoint, node or CIDR rule is known for the address: the world"
        refs = sorted(
            {
                ref_text(rule.ref)
                for section in self._facts.sections
                for rule in section.rules
                if isinstance(rule.peer, Cidr | Cidrs) and prefix in rule.peer.prefixes
            }
        )
        more = f" and {len(refs) - SHOWN} more" if len(refs) > SHOWN else ""
        return f"prefix {prefix}, of which {', '.join(refs[:SHOWN]) or 'a rule'}{more} speaks"

    def _of_node(self, address: str, entry: IpcacheEntry) -> str:
        node = self._node_at(address)
        if node:
            return f"an address of node {node}"
        if entry.prefix.partition("/")[0] == address:
            return "an address of this node or another one"
        return f"nobody has described the address yet; it is in {entry.prefix}"

    def _node_at(self, address: str) -> str:
        for node in self._inputs.nodes:
            if address in node.addresses or address in node.router_addresses:
                return node.name
        return ""

    def _pods_of(self, number: IdentityId) -> str:
        names = pods_by_identity(self._desired.endpoints, self._inputs.remote_endpoints).get(number, [])
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return ", ".join(names[:SHOWN]) + more


def pods_by_identity(
    local: Iterable[Endpoint], remote: Iterable[RemoteEndpoint]
) -> dict[IdentityId, list[str]]:
    """Names of the pods that have each identity."""
    found: dict[IdentityId, list[str]] = {}
    for endpoint in local:
        if endpoint.pod_name:
            found.setdefault(endpoint.identity, []).append(endpoint.pod_name)
    for row in remote:
        found.setdefault(row.identity, []).append(f"{row.namespace}/{row.name}")
    return found


def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _carries(labels: Labels, wanted: Iterable[Label]) -> bool:
    return all(
        any(
            (has.key, has.value) == (want.key, want.value) and want.source in ("any", has.source)
            for has in labels.items
        )
        for want in wanted
    )


def _ports_words(ports: Iterable[NamedPort]) -> tuple[str, ...]:
    return tuple(f"{port.name}={port.port}/{port.protocol}" for port in ports)
