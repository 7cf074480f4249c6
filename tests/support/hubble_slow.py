"""Flows made one field at a time with the generated classes: slow, and plain to see that they are right.

Shares nothing with `cilia.hubble.convert` but the numbers of the wire.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

import numpy as np

from cilia.hubble.columns import Events
from cilia.hubble.directory import MemoryDirectory, Pod
from cilia.hubble.icmp import icmp_name
from cilia.model.ids import Cookie
from cilia.model.policy import CookieRow, RuleRef
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from tests.support.hubble import ALLOW_WEB, CLIENT, DEFAULT_DENY, DENY_DB, DTYPE, FILES, OPEN, OTHER, SERVER

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NODE_NAME, NODE_LABELS, VERSION = "default/worker-1", ["zone=a"], "1.2.3"
PORTED = {6: "TCP", 17: "UDP", 132: "SCTP"}
FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
TYPES = {1: 1, 2: 4, 3: 5, 4: 7}
NAMED_FLAGS = ("SYN", "ACK", "RST", "FIN", "PSH", "URG", "ECE", "CWR")

NUMBERS = {
    "kind": 6, "point": 256, "verdict": 8, "reason": 256, "file": 24, "icmp_type": 256, "icmp_code": 3,
    "tcp_flags": 256, "direction": 3, "state": 6, "flags": 32, "egress_match": 7, "ingress_match": 7,
    "auth": 3,
    "source_port": 1 << 16, "destination_port": 1 << 16, "original_source_port": 1 << 16,
    "original_destination_port": 1 << 16, "proxy_port": 1 << 16, "line": 1 << 16, "vni": 1 << 24,
    "source_endpoint": 1 << 16, "destination_endpoint": 1 << 16, "vlan": 4096, "length": 1 << 32, "cpu": 4,
}  # fmt: skip
"""Fields that may be anything, and how many values they have."""

CHOICES: dict[str, list[Any]] = {
    "protocol": [6, 6, 6, 17, 132, 1, 58, 2, 112, 47, 0],
    "egress_cookie": [0, ALLOW_WEB, DENY_DB, 999],
    "ingress_cookie": [0, OPEN, DEFAULT_DENY, ALLOW_WEB],
    "source_identity": [0, 4321, 1234, 2, 77],
    "destination_identity": [0, 4321, 5000, 2, 1 << 25],
    "ifindex": [0, 7, 8],
    "service": [0, 0, 9, 10, 11],
    "socket_cookie": [0, 0, 5, (1 << 64) - 1],
    "cgroup": [0, 0, 77],
}


def random_events(count: int, seed: int) -> Events:
    """Rows in which any field may have any value it can have."""
    random = np.random.default_rng(seed)
    rows = np.zeros(count, DTYPE)
    for name, size in NUMBERS.items():
        # Half of the rows share a few values, so that fragments are met again and must not be mixed up.
        few = random.integers(0, size, 3, np.int64)
        values = np.where(
            random.random(count) < 0.5, random.choice(few, count), random.integers(0, size, count)
        )
        rows[name] = np.where(random.random(count) < 0.1, 0, values)
    for name, choices in CHOICES.items():
        rows[name] = random.choice(np.array(choices, np.uint64), count)
    known = [CLIENT, SERVER, OTHER, "fd00::1:5", "192.0.2.80", "10.96.0.7", "2001:db8::9", "172.18.0.3"]
    for name in ("source", "destination"):
        put_addresses(rows, name, random, known)
    for name in ("original_source", "original_destination", "tunnel"):
        put_addresses(rows, name, random, [None, None, None, *known])
    for name in ("source_mac", "destination_mac"):
        rows[name] = random.choice(np.array([[0] * 6, [2, 0, 0, 0, 0, 1], [10, 1, 2, 3, 4, 255]]), count)
    rows["destination_port"][random.random(count) < 0.1] = 80
    rows["time"] = np.sort(random.integers(0, 1 << 50, count))
    rows["time"][::97] -= rows["time"][::97] % 1_000_000_000
    rows["time"].sort()
    return rows


def put_addresses(rows: Events, name: str, random: np.random.Generator, values: Sequence[str | None]) -> None:
    """Fill a column of addresses; None: zero."""
    packed = [bytes(16) if value is None else mapped(ipaddress.ip_address(value)) for value in values]
    words = np.frombuffer(b"".join(packed), ">u8").reshape(-1, 2)
    chosen = words[random.integers(0, len(values), len(rows))]
    rows[name]["hi"], rows[name]["lo"] = chosen[:, 0], chosen[:, 1]


def mapped(address: Address) -> bytes:
    """Sixteen bytes."""
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


def text_of(raw: np.void) -> str:
    """An address as text; empty for none."""
    address = ipaddress.IPv6Address(raw.tobytes())
    return str(address.ipv4_mapped or address) if int(address) else ""


class SlowConverter:
    """Makes responses of single records."""

    def __init__(self, known: MemoryDirectory, boot: int, offset: int) -> None:
        self._known = known
        self._boot = f"{boot:016x}"
        self._offset = offset

    def response(self, row: np.void, number: int) -> observer_pb2.GetFlowsResponse:
        """What a client should read."""
        flow = flow_pb2.Flow(node_name=NODE_NAME, node_labels=NODE_LABELS)
        flow.time.FromNanoseconds(int(row["time"]) + self._offset)
        flow.uuid = f"{self._boot[:8]}-{self._boot[8:12]}-{self._boot[12:]}-8000-{number:012x}"
        flow.emitter.name, flow.emitter.version = "Cilia", VERSION
        self._happening(flow, row)
        self._packet(flow, row)
        self._parties(flow, row)
        self._policies(flow, row)
        return observer_pb2.GetFlowsResponse(flow=flow, node_name=NODE_NAME, time=flow.time)

    def _happening(self, flow: flow_pb2.Flow, row: np.void) -> None:
        kind, reason = int(row["kind"]), int(row["reason"])
        dropped = kind == 1 or int(row["verdict"]) == 2
        flow.verdict = int(row["verdict"])  # type: ignore[assignment]
        flow.auth_type = int(row["auth"])  # type: ignore[assignment]
        flow.Type = flow_pb2.SOCK if kind == 4 else flow_pb2.L3_L4
        flow.event_type.SetInParent()
        flow.event_type.type = TYPES.get(kind, 0)
        if kind == 1:
            flow.event_type.sub_type = reason
            if row["file"]:
                flow.file.name, flow.file.line = FILES.get(int(row["file"]), ""), int(row["line"])
        if kind in (2, 4) and (kind, row["point"]) != (2, 101):
            flow.event_type.sub_type = int(row["point"])
        if dropped:
            flow.drop_reason = reason
            flow.drop_reason_desc = reason  # type: ignore[assignment]
        if kind == 2:
            flow.trace_observation_point = int(row["point"])  # type: ignore[assignment]
            flow.trace_reason = int(row["state"])  # type: ignore[assignment]
        if kind == 3:
            flow.policy_match_type = int(row["egress_match" if row["direction"] == 2 else "ingress_match"])
        if kind == 4:
            flow.sock_xlate_point = int(row["point"])  # type: ignore[assignment]
        flow.traffic_direction = int(row["direction"])  # type: ignore[assignment]
        flow.reply = bool(row["flags"] & 1)
        if row["state"]:
            flow.is_reply.value = bool(row["flags"] & 1)
        flow.socket_cookie, flow.cgroup_id = int(row["socket_cookie"]), int(row["cgroup"])
        flow.proxy_port = int(row["proxy_port"])
        if row["ifindex"]:
            flow.interface.index = int(row["ifindex"])
            flow.interface.name = self._known.devices.get(int(row["ifindex"]), "")

    def _packet(self, flow: flow_pb2.Flow, row: np.void) -> None:
        before = text_of(row["original_source"])
        source = text_of(row["source"])
        if source or text_of(row["destination"]):
            flow.IP.source, flow.IP.source_xlated = (before, source) if before else (source, "")
            flow.IP.destination = text_of(row["destination"])
            flow.IP.ipVersion = flow_pb2.IPv6 if row["flags"] & 2 else flow_pb2.IPv4
            flow.IP.encrypted = bool(row["flags"] & 4)
        macs = [row[name].tobytes() for name in ("source_mac", "destination_mac")]
        if any(map(any, macs)):
            flow.ethernet.source, flow.ethernet.destination = (mac.hex(":") for mac in macs)
        other = text_of(row["tunnel"])
        if other:
            flow.tunnel.protocol = flow_pb2.Tunnel.VXLAN
            flow.tunnel.vni = int(row["vni"])
            flow.tunnel.IP.ipVersion = flow_pb2.IPv6 if ":" in other else flow_pb2.IPv4
            if row["point"] in (9, 10):
                flow.tunnel.IP.source = other
            else:
                flow.tunnel.IP.destination = other
        self._transport(flow, row, bool(before))
        summary = (
            header(row) if row["kind"] != 4 else {6: "TCP", 17: "UDP"}.get(int(row["protocol"]), "Unknown")
        )
        asked = text_of(row["original_destination"])
        if asked:
            host = f"[{asked}]" if ":" in asked else asked
            via = f"via {host}:{int(row['original_destination_port'])}"
            summary = f"{summary}, {via}" if summary else via
        flow.Summary = summary

    def _transport(self, flow: flow_pb2.Flow, row: np.void, translated: bool) -> None:
        protocol = int(row["protocol"])
        if protocol in PORTED:
            part = getattr(flow.l4, PORTED[protocol])
            part.SetInParent()
            part.source_port = int(row["original_source_port" if translated else "source_port"])
            part.destination_port = int(row["destination_port"])
            for bit, name in enumerate(FLAGS if protocol == 6 and row["tcp_flags"] else ()):
                setattr(part.flags, name, bool(row["tcp_flags"] >> bit & 1))
        elif protocol in (1, 58):
            part = flow.l4.ICMPv4 if protocol == 1 else flow.l4.ICMPv6
            part.SetInParent()
            part.type, part.code = int(row["icmp_type"]), int(row["icmp_code"])
        elif protocol == 2:
            flow.l4.IGMP.SetInParent()
        elif protocol == 112:
            flow.l4.VRRP.SetInParent()

    def _parties(self, flow: flow_pb2.Flow, row: np.void) -> None:
        source = text_of(row["original_source"]) or text_of(row["source"])
        for side, part, address, names in (
            ("source", flow.source, source, flow.source_names),
            ("destination", flow.destination, flow.IP.destination, flow.destination_names),
        ):
            endpoint, identity = int(row[f"{side}_endpoint"]), int(row[f"{side}_identity"])
            pod = self._known.endpoint(address, endpoint) or Pod()
            part.SetInParent()
            part.ID = endpoint or pod.id
            part.identity = identity or pod.identity
            known = self._known.identity_labels.get(part.identity, ())
            part.labels.extend(known or (pod.labels if part.identity == pod.identity else ()))
            if not part.identity and not part.labels:
                part.labels.append("reserved:unknown")
            spaces = [label.partition("=")[2] for label in part.labels if "pod.namespace=" in label]
            part.namespace = pod.namespace or (spaces[0] if spaces else "")
            part.pod_name, part.cluster_name = pod.name, pod.cluster
            part.workloads.extend(flow_pb2.Workload(name=w.name, kind=w.kind) for w in pod.workloads)
            names.extend(self._known.dns.get(address, ()))
        self._service(flow, row)

    def _service(self, flow: flow_pb2.Flow, row: np.void) -> None:
        found = self._known.services.get(int(row["service"])) if row["service"] else None
        if row["kind"] == 1 and not row["service"]:
            found = self._known.service_at(
                flow.IP.destination,
                int(row["destination_port"]),
                int(row["protocol"]),
                any_address=int(row["reason"]) == 158,
            )
        if found is None:
            return
        answers = row["point"] >= 3 if row["kind"] == 4 else row["flags"] & 1
        service = flow.source_service if answers else flow.destination_service
        service.name, service.namespace = found.name, found.namespace

    def _policies(self, flow: flow_pb2.Flow, row: np.void) -> None:
        logs: set[str] = set()
        for side, number, allowed, denied in (
            ("egress", 2, flow.egress_allowed_by, flow.egress_denied_by),
            ("ingress", 1, flow.ingress_allowed_by, flow.ingress_denied_by),
        ):
            cookie = int(row[f"{side}_cookie"])
            rules = self._known.cookies.get(cookie) or CookieRow(Cookie(cookie), ())
            judged = int(row["verdict"]) in (2, 4) and row["direction"] == number
            if judged or not rules.default:
                (denied if judged else allowed).extend(map(self._policy, rules.rules))
            logs |= {rule.log for rule in rules.rules if rule.log}
        flow.policy_log.extend(sorted(logs))

    def _policy(self, rule: RuleRef) -> flow_pb2.Policy:
        prefix = "k8s:io.cilium.k8s.policy."
        labels = [f"{prefix}derived-from={rule.kind}", f"{prefix}name={rule.name}"]
        labels += [f"{prefix}namespace={rule.namespace}"] if rule.namespace else []
        labels += [f"cilia:rule={rule.path}", f"cilia:resource-version={rule.resource_version}"]
        return flow_pb2.Policy(
            name=rule.name,
            namespace=rule.namespace,
            kind=rule.kind,
            labels=labels,
            revision=self._known.policies,
        )


def header(row: np.void) -> str:
    """The summary's first part."""
    protocol = int(row["protocol"])
    if protocol == 6:
        seen = {name for bit, name in enumerate(FLAGS) if row["tcp_flags"] >> bit & 1}
        return "TCP Flags: " + ", ".join(name for name in NAMED_FLAGS if name in seen)
    if protocol in (1, 58):
        name = icmp_name(int(row["icmp_type"]), int(row["icmp_code"]), six=protocol == 58)
        return f"{'ICMPv4' if protocol == 1 else 'ICMPv6'} {name}"
    names = {17: "UDP", 132: "SCTP", 2: "IGMP", 112: "VRRP", 0: ""}
    return names.get(protocol, f"IP protocol {protocol}")
