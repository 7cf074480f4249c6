"""What a Service is given: cluster addresses, node ports, a health-check port, as a real API server does.

``carry_over`` and ``defaults`` are pure. :class:`Allocator` keeps who has what, pending writes included: it
is asked and told on the event loop without awaiting in between, so nothing is ever given twice.

Source: the Kubernetes API reference, core/v1 ServiceSpec; "Service ClusterIP allocation" and "IPv4/IPv6
dual-stack" in the Kubernetes documentation.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from .engine import Engine
from .errors import FieldError, invalid
from .registry import Value
from .storage import Key

SERVICES: Final = "/services"
HEADLESS: Final = "None"
FAMILIES: Final = {4: "IPv4", 6: "IPv6"}
DUAL: Final = ("PreferDualStack", "RequireDualStack")
AFFINITY_SECONDS: Final = 10_800

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class RangeError(ValueError):
    """A range that can't be given out; the message says what it must look like."""


class Ranges(msgspec.Struct, frozen=True):
    """What there is to give. The first network's family is the cluster's default."""

    networks: tuple[Network, ...]
    first_port: int = 30000
    last_port: int = 32767

    def network(self, family: str) -> Network | None:
        return next((found for found in self.networks if FAMILIES[found.version] == family), None)

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(FAMILIES[network.version] for network in self.networks)

    @property
    def ports(self) -> str:
        return f"{self.first_port}-{self.last_port}"


def parse_ranges(networks: str, ports: str) -> Ranges:
    """Ranges from the texts of flags: one prefix or two of different families, and FIRST-LAST."""
    try:
        found = tuple(ipaddress.ip_network(text.strip()) for text in networks.split(","))
    except ValueError as error:
        raise RangeError(
            f"{networks!r} are no cluster IP ranges ({error}): give one prefix, or two with a comma"
        ) from error
    if len({network.version for network in found}) != len(found):
        raise RangeError(f"{networks!r} names a family twice: give at most one prefix per family")
    if any(network.num_addresses < 8 for network in found):
        raise RangeError(f"{networks!r} has no room: give prefixes of at least 8 addresses")
    first, _, last = ports.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) < 65536):
        raise RangeError(f"{ports!r} is no range of ports: write it like 30000-32767")
    return Ranges(found, int(first), int(last))


DEFAULT_NETWORKS: Final = "10.96.0.0/16,fd00:10:96::/112"
DEFAULT_PORTS: Final = "30000-32767"


# --- from one version of an object to the next --------------------------------------------------------------


def carry_over(value: Value, old: Value | None) -> None:
    """Keep what was given before and is not spoken of now, and drop what the type no longer has."""
    spec: Value = value.setdefault("spec", {})
    before: Value = (old or {}).get("spec") or {}
    _agree(spec, before)
    if before and _has_address(before) and _has_address(spec):
        if not spec.get("clusterIPs"):
            spec["clusterIPs"] = list(before.get("clusterIPs") or ())
            spec["clusterIP"] = before.get("clusterIP", "")
        for name in ("ipFamilyPolicy", "ipFamilies"):
            if not spec.get(name) and before.get(name):
                spec[name] = before[name]
    if before and _has_node_ports(before) and _has_node_ports(spec):
        _keep_node_ports(spec, before)
    if _wants_health_port(before) and _wants_health_port(spec) and not spec.get("healthCheckNodePort"):
        spec["healthCheckNodePort"] = before.get("healthCheckNodePort", 0)
    _drop_stale(spec, before)
    if _type(before) == "LoadBalancer" and _type(spec) != "LoadBalancer" and "status" in value:
        value["status"] = {**value["status"], "loadBalancer": {}}


def defaults(spec: Value) -> None:
    """Fill in what a client may leave out, apart from what is allocated."""
    kind = spec.setdefault("type", "ClusterIP")
    if spec.setdefault("sessionAffinity", "None") == "ClientIP":
        config = spec.setdefault("sessionAffinityConfig", {})
        config.setdefault("clientIP", {}).setdefault("timeoutSeconds", AFFINITY_SECONDS)
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port.get("port"))
    if kind == "ExternalName":
        return
    spec.setdefault("internalTrafficPolicy", "Cluster")
    if is_reachable_outside(spec):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if kind == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)


def is_reachable_outside(spec: Value) -> bool:
    """Whether clients outside the cluster may come at all."""
    return _type(spec) in ("NodePort", "LoadBalancer") or bool(spec.get("externalIPs"))


def _agree(spec: Value, before: Value) -> None:
    """Let ``clusterIP`` and the first of ``clusterIPs`` say the same: whichever of them changed wins."""
    one, several = spec.get("clusterIP") or "", list(spec.get("clusterIPs") or ())
    if not several and one:
        rest = (before.get("clusterIPs") or ())[1:] if one == before.get("clusterIP") else ()
        spec["clusterIPs"] = [one, *rest]
    elif several and not one and "clusterIP" not in spec:
        spec["clusterIP"] = several[0]


def _type(spec: Value) -> str:
    return str(spec.get("type") or "ClusterIP")


def _has_address(spec: Value) -> bool:
    return _type(spec) != "ExternalName"


def _has_node_ports(spec: Value) -> bool:
    kind = _type(spec)
    return kind == "NodePort" or (
        kind == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False
    )


def _wants_health_port(spec: Value) -> bool:
    return _type(spec) == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def _keep_node_ports(spec: Value, before: Value) -> None:
    known = {(port.get("port"), port.get("protocol", "TCP")): port for port in before.get("ports") or ()}
    taken = {(port.get("nodePort"), port.get("protocol", "TCP")) for port in spec.get("ports") or ()}
    for port in spec.get("ports") or ():
        protocol = port.get("protocol", "TCP")
        number = known.get((port.get("port"), protocol), {}).get("nodePort")
        if number and not port.get("nodePort") and (number, protocol) not in taken:
            port["nodePort"] = number


def _drop_stale(spec: Value, before: Value) -> None:
    """A field that only another type has goes when it is as the old object had it; else it is an error."""
    stale = []
    if not _has_address(spec):
        stale += ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
    if not _wants_health_port(spec):
        stale.append("healthCheckNodePort")
    if not is_reachable_outside(spec):
        stale.append("externalTrafficPolicy")
    if _type(spec) != "LoadBalancer":
        stale += ["allocateLoadBalancerNodePorts", "loadBalancerClass"]
    for name in stale:
        if before and name in spec and spec[name] == before.get(name):
            del spec[name]
    if _type(spec) in ("ClusterIP", "ExternalName") and _type(before) in ("NodePort", "LoadBalancer"):
        had = {port.get("nodePort") for port in before.get("ports") or ()}
        for port in spec.get("ports") or ():
            if port.get("nodePort") in had:
                port.pop("nodePort", None)


# --- what is given ------------------------------------------------------------------------------------------


class Held(msgspec.Struct, frozen=True):
    """What one Service has."""

    addresses: tuple[str, ...] = ()
    ports: frozenset[int] = frozenset()


def held_by(value: Value) -> Held:
    """What an object says that it has."""
    spec = value.get("spec") or {}
    if not _has_address(spec):
        return Held()
    addresses = tuple(_spelled(text) for text in spec.get("clusterIPs") or () if text != HEADLESS)
    numbers = [port.get("nodePort") or 0 for port in spec.get("ports") or ()]
    return Held(addresses, frozenset({*numbers, spec.get("healthCheckNodePort") or 0} - {0}))


def _spelled(text: str) -> str:
    """An address in its one spelling."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text


class Allocator:
    """Gives out addresses and ports, and knows whose they are."""

    def __init__(
        self, engine: Engine, ranges: Ranges, below: Callable[[int], int] = secrets.randbelow
    ) -> None:
        """``below(n)`` is a random number from 0 to n - 1."""
        self._engine = engine
        self._ranges = ranges
        self._below = below
        self._held: dict[Key, Held] = {}
        self._addresses: dict[str, Key] = {}
        self._ports: dict[int, Key] = {}
        engine.when_failed(self.rebuild)

    def rebuild(self) -> None:
        """Look at what is committed: at start, and when pending writes will never be."""
        self._held, self._addresses, self._ports = {}, {}, {}
        for entry in self._engine.entries(SERVICES):
            self.note(entry.key, entry.decoded())

    def note(self, key: Key, value: Value | None) -> None:
        """An object was written, or removed."""
        before, after = self._held.pop(key, Held()), held_by(value) if value is not None else Held()
        _replace(self._addresses, key, before.addresses, after.addresses)
        _replace(self._ports, key, before.ports, after.ports)
        if after != Held():
            self._held[key] = after

    def assign(self, key: Key, value: Value, old: Value | None) -> list[FieldError]:
        """Give a Service what it lacks, and judge what it asks for. Nothing is taken until it is noted."""
        spec: Value = value["spec"]
        if not _has_address(spec):
            return []
        faults = self._families(spec, (old or {}).get("spec") or {})
        if not faults and spec.get("clusterIPs") != [HEADLESS]:
            faults += self._cluster_ips(key, spec)
        taken: set[int] = set()
        if _has_node_ports(spec):
            faults += self._node_ports(key, spec, taken)
        if _wants_health_port(spec):
            faults += self._health_port(key, spec, taken)
        return faults

    # families and addresses

    def _families(self, spec: Value, before: Value) -> list[FieldError]:
        """Settle ``ipFamilies`` and ``ipFamilyPolicy``; returns faults."""
        headless = spec.get("clusterIPs") == [HEADLESS]
        free = headless and not spec.get("selector")
        _downgrade(spec, before)
        given = [] if headless else _families_of(spec.get("clusterIPs") or ())
        wanted = list(spec.get("ipFamilies") or ())
        faults = [
            invalid(f"spec.clusterIPs[{at}]", spec["clusterIPs"][at], f"is not of the family {family}")
            for at, (family, found) in enumerate(zip(wanted, given, strict=False))
            if family != found
        ]
        wanted += given[len(wanted) :]
        policy = spec.get("ipFamilyPolicy")
        if policy is None:
            policy = "RequireDualStack" if free or len(wanted) > 1 else "SingleStack"
        if policy not in DUAL and len(wanted) > 1:
            text = (
                "must be PreferDualStack or RequireDualStack when there are several families or cluster IPs"
            )
            faults.append(invalid("spec.ipFamilyPolicy", policy, text))
        faults += self._complete_families(wanted, policy, free)
        if before.get("ipFamilies") and _has_address(before) and wanted[:1] != before["ipFamilies"][:1]:
            faults.append(invalid("spec.ipFamilies[0]", wanted[0], "may not change once set"))
        spec["ipFamilyPolicy"], spec["ipFamilies"] = policy, wanted
        return faults

    def _complete_families(self, wanted: list[str], policy: str, free: bool) -> list[FieldError]:
        """Add the families that were left to the cluster. ``free``: a headless Service without selector may
        have families that the cluster lacks."""
        here = self._ranges.families
        if not wanted:
            wanted.append(here[0])
        possible = tuple(FAMILIES.values()) if free else here
        if policy in DUAL and len(wanted) == 1:
            wanted += [family for family in possible if family != wanted[0]][:1]
        if policy == "RequireDualStack" and len(wanted) < 2:
            text = "this cluster has one family only: use SingleStack or PreferDualStack"
            return [invalid("spec.ipFamilyPolicy", policy, text)]
        return [
            invalid(f"spec.ipFamilies[{at}]", family, "not configured on this cluster")
            for at, family in enumerate(wanted)
            if family not in possible
        ]

    def _cluster_ips(self, key: Key, spec: Value) -> list[FieldError]:
        given = list(spec.get("clusterIPs") or ())[: len(spec["ipFamilies"])]
        faults: list[FieldError] = []
        for at, family in enumerate(spec["ipFamilies"]):
            network = self._ranges.network(family)
            asked = given[at] if at < len(given) else ""
            if asked:
                faults += self._judge_address(key, asked, network, f"spec.clusterIPs[{at}]")
            elif network is not None:
                found = self._free_address(network)
                if not found:
                    faults.append(
                        FieldError("InternalError", f"spec.clusterIPs[{at}]", f"the range {network} is full")
                    )
                given.append(found)
        if not faults:
            spec["clusterIPs"], spec["clusterIP"] = given, given[0]
        return faults

    def _judge_address(self, key: Key, text: str, network: Network | None, path: str) -> list[FieldError]:
        holder = self._addresses.get(_spelled(text))
        if holder == key:
            return []
        if network is None or ipaddress.ip_address(text) not in network:
            why = f"the provided IP ({text}) is not in the valid range. The range of valid IPs is {network}"
            return [invalid(path, text, why)]
        if holder is not None:
            owner = f"{holder.namespace}/{holder.name}"
            return [invalid(path, text, f"failed to allocate IP {text}: {owner} has it already")]
        return []

    def _free_address(self, network: Network) -> str:
        """A random free address; those people like to write themselves, the lowest, only when no other is."""
        # Neither the network's own address nor, for IPv4, the broadcast address.
        usable = network.num_addresses - (2 if network.version == 4 else 1)
        reserved = min(max(16, usable // 16), 256, usable // 2)
        for first, count in ((1 + reserved, usable - reserved), (1, reserved)):
            found = self._search(first, count, lambda offset: str(network[offset]) not in self._addresses)
            if found is not None:
                return str(network[found])
        return ""

    def _search(self, first: int, count: int, is_free: Callable[[int], bool]) -> int | None:
        """A free number of a stretch: the next one from a random start, all around."""
        if not count:
            return None
        start = self._below(count)
        numbers = (first + (start + step) % count for step in range(count))
        return next((number for number in numbers if is_free(number)), None)

    # ports

    def _node_ports(self, key: Key, spec: Value, taken: set[int]) -> list[FieldError]:
        faults: list[FieldError] = []
        shared: dict[int, int] = {}
        for at, port in enumerate(spec.get("ports") or ()):
            if port.get("nodePort"):
                faults += self._judge_port(key, port["nodePort"], f"spec.ports[{at}].nodePort")
                taken.add(port["nodePort"])
                shared.setdefault(port["port"], port["nodePort"])
        for at, port in enumerate(spec.get("ports") or ()):
            if port.get("nodePort"):
                continue
            # One number for a port that is there with several protocols.
            number = shared.get(port["port"]) or self._free_port(taken)
            if not number:
                path = f"spec.ports[{at}].nodePort"
                return [*faults, FieldError("InternalError", path, "all node ports are in use")]
            port["nodePort"] = number
            taken.add(number)
            shared[port["port"]] = number
        return faults

    def _health_port(self, key: Key, spec: Value, taken: set[int]) -> list[FieldError]:
        path, number = "spec.healthCheckNodePort", spec.get("healthCheckNodePort")
        if number:
            faults = self._judge_port(key, number, path)
            if number in taken:
                faults.append(invalid(path, number, "is a node port of this very Service"))
            return faults
        spec["healthCheckNodePort"] = self._free_port(taken)
        if not spec["healthCheckNodePort"]:
            return [FieldError("InternalError", path, "all node ports are in use")]
        return []

    def _judge_port(self, key: Key, number: int, path: str) -> list[FieldError]:
        holder = self._ports.get(number)
        if holder == key:
            return []
        if not self._ranges.first_port <= number <= self._ranges.last_port:
            why = "provided port is not in the valid range. The range of valid ports is "
            return [invalid(path, number, why + self._ranges.ports)]
        if holder is not None:
            why = f"provided port is already allocated, to {holder.namespace}/{holder.name}"
            return [invalid(path, number, why)]
        return []

    def _free_port(self, taken: Iterable[int]) -> int:
        """As with addresses: the lowest ones last."""
        count = self._ranges.last_port - self._ranges.first_port + 1
        reserved = min(max(16, count // 32), 128, count // 2)
        used = set(taken)
        beginning = self._ranges.first_port
        for first, size in ((beginning + reserved, count - reserved), (beginning, reserved)):
            found = self._search(first, size, lambda number: number not in self._ports and number not in used)
            if found is not None:
                return found
        return 0


def _replace(index: dict[Any, Key], key: Key, before: Iterable[Any], after: Iterable[Any]) -> None:
    for item in before:
        if index.get(item) == key:
            del index[item]
    for item in after:
        index.setdefault(item, key)


def _families_of(addresses: Iterable[str]) -> list[str]:
    return [FAMILIES[ipaddress.ip_address(text).version] for text in addresses]


def _downgrade(spec: Value, before: Value) -> None:
    """Asked for one family where there were two, with nothing else said: the second goes."""
    if spec.get("ipFamilyPolicy") != "SingleStack" or before.get("ipFamilyPolicy") not in DUAL:
        return
    for name in ("clusterIPs", "ipFamilies"):
        if spec.get(name) == before.get(name):
            spec[name] = list(spec.get(name) or ())[:1]
