"""Services as kube-proxy writes them, for iptables and for nftables, so that its data path can be measured.

Chains, sets and marks are those its two modes are documented with (for nftables: KEP-3866 of
kubernetes/enhancements). Only what a packet for a ClusterIP meets is there.

    iptables   KUBE-SERVICES: one rule per service, in a row ─► KUBE-SVC-…: one rule per endpoint, each with a
               probability ─► KUBE-SEP-…: DNAT
    nftables   service-ips: one map of all services ─► service-…: a map of its endpoints, by a random
               number ─► endpoint-…: DNAT
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import msgspec

from bench import services

POD_NETWORK = "10.71.0.0/16"
ENDPOINTS = 2
"""Of each service that nobody asks: with five, it takes nft the better part of a minute to write 5,000."""
MARK = "0x4000"
"""For packets that are to be masqueraded."""


class Service(msgspec.Struct, frozen=True):
    """A service of one port: what is asked for, and who serves."""

    name: str
    address: str
    port: int
    endpoints: tuple[tuple[str, int], ...]


def cluster(count: int, served: tuple[str, int]) -> list[Service]:
    """`count` services; the one that is asked stands in their middle and has one endpoint."""
    found = [
        Service(
            f"bench/app-{number}",
            services.cluster_ip(number),
            services.PORT,
            tuple((address, 8080) for address in services.backends(number, ENDPOINTS)),
        )
        for number in range(count - 1)
    ]
    found.insert(len(found) // 2, Service("bench/asked", services.ASKED, served[1], (served,)))
    return found


def install_iptables(namespace: str, cluster: list[Service]) -> None:
    """Replace all rules of a namespace. Raises CalledProcessError."""
    rules = "\n".join([*_filter_table(), *_nat_table(cluster)])
    _feed(namespace, ["iptables-nft-restore"], rules)


def install_nftables(namespace: str, cluster: list[Service]) -> None:
    """Replace the table of kube-proxy in a namespace. Raises CalledProcessError."""
    _feed(namespace, ["nft", "-f", "-"], "\n".join(_nft_table(cluster)))


def _feed(namespace: str, command: list[str], rules: str) -> None:
    words = ["ip", "netns", "exec", namespace, *command]
    subprocess.run(words, input=rules + "\n", text=True, check=True)


# iptables


def _filter_table() -> Iterator[str]:
    yield "*filter"
    yield from (f":{chain} ACCEPT [0:0]" for chain in ("INPUT", "FORWARD", "OUTPUT"))
    own = ("EXTERNAL-SERVICES", "FIREWALL", "FORWARD", "NODEPORTS", "PROXY-FIREWALL", "SERVICES")
    yield from (f":KUBE-{chain} - [0:0]" for chain in own)
    new = "-m conntrack --ctstate NEW"
    yield f"-A INPUT {new} -j KUBE-PROXY-FIREWALL"
    yield "-A INPUT -j KUBE-NODEPORTS"
    yield f"-A INPUT {new} -j KUBE-EXTERNAL-SERVICES"
    yield "-A INPUT -j KUBE-FIREWALL"
    yield f"-A FORWARD {new} -j KUBE-PROXY-FIREWALL"
    yield "-A FORWARD -j KUBE-FORWARD"
    yield f"-A FORWARD {new} -j KUBE-SERVICES"
    yield f"-A FORWARD {new} -j KUBE-EXTERNAL-SERVICES"
    yield "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP"
    yield f"-A KUBE-FORWARD -m mark --mark {MARK}/{MARK} -j ACCEPT"
    yield "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    yield "COMMIT"


def _nat_table(cluster: list[Service]) -> Iterator[str]:
    yield "*nat"
    yield from (f":{chain} ACCEPT [0:0]" for chain in ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"))
    yield from (f":KUBE-{chain} - [0:0]" for chain in ("MARK-MASQ", "NODEPORTS", "POSTROUTING", "SERVICES"))
    for number, service in enumerate(cluster):
        yield f":KUBE-SVC-{number:016} - [0:0]"
        yield from (f":KUBE-SEP-{number:012}{place:04} - [0:0]" for place in range(len(service.endpoints)))
    yield "-A PREROUTING -j KUBE-SERVICES"
    yield "-A OUTPUT -j KUBE-SERVICES"
    yield "-A POSTROUTING -j KUBE-POSTROUTING"
    yield f"-A KUBE-MARK-MASQ -j MARK --or-mark {MARK}"
    yield f"-A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN"
    yield f"-A KUBE-POSTROUTING -j MARK --xor-mark {MARK}"
    yield "-A KUBE-POSTROUTING -j MASQUERADE --random-fully"
    for number, service in enumerate(cluster):
        asked = f"-d {service.address}/32 -p tcp -m tcp --dport {service.port}"
        comment = f'-m comment --comment "{service.name}:http cluster IP"'
        yield f"-A KUBE-SERVICES {comment} {asked} -j KUBE-SVC-{number:016}"
    yield "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
    for number, service in enumerate(cluster):
        yield from _service_chain(number, service)
    yield "COMMIT"


def _service_chain(number: int, service: Service) -> Iterator[str]:
    chain, count = f"KUBE-SVC-{number:016}", len(service.endpoints)
    comment = f'-m comment --comment "{service.name}:http"'
    asked = f"-d {service.address}/32 -p tcp -m tcp --dport {service.port}"
    yield f"-A {chain} {comment} ! -s {POD_NETWORK} {asked} -j KUBE-MARK-MASQ"
    for place, (address, port) in enumerate(service.endpoints):
        left = count - place
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        endpoint = f"KUBE-SEP-{number:012}{place:04}"
        yield f"-A {chain} {comment} {chance}-j {endpoint}"
        yield f"-A {endpoint} {comment} -s {address}/32 -j KUBE-MARK-MASQ"
        yield f"-A {endpoint} {comment} -p tcp -m tcp -j DNAT --to-destination {address}:{port}"


# nftables


def _nft_table(cluster: list[Service]) -> Iterator[str]:
    yield "add table ip kube-proxy"
    yield "delete table ip kube-proxy"
    yield "table ip kube-proxy {"
    yield from _nft_names(cluster)
    yield from _nft_hooks()
    for number, service in enumerate(cluster):
        yield from _nft_service(number, service)
    yield "}"


def _nft_names(cluster: list[Service]) -> Iterator[str]:
    addresses = ", ".join(service.address for service in cluster)
    yield f"set cluster-ips {{ type ipv4_addr; elements = {{ {addresses} }} }}"
    yield "set nodeport-ips { type ipv4_addr; elements = { 192.0.2.1 } }"
    for name in ("no-endpoint-services", "firewall-ips"):
        yield f"map {name} {{ type ipv4_addr . inet_proto . inet_service : verdict; }}"
    yield "map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }"
    yield "map service-nodeports { type inet_proto . inet_service : verdict; }"
    elements = ", ".join(
        f"{service.address} . tcp . {service.port} : goto service-{number}"
        for number, service in enumerate(cluster)
    )
    for number, service in enumerate(cluster):
        yield f"chain service-{number} {{ }}"
        yield from (f"chain endpoint-{number}-{place} {{ }}" for place in range(len(service.endpoints)))
    yield "map service-ips { type ipv4_addr . inet_proto . inet_service : verdict;"
    yield f"elements = {{ {elements} }} }}"


def _nft_hooks() -> Iterator[str]:
    check = "ip daddr . meta l4proto . th dport vmap"
    by_port = "ip daddr @nodeport-ips meta l4proto . th dport vmap"
    endpoints = "ct state new jump service-endpoints-check"
    before_nat, new = "priority -110;", "ct state new jump"
    for name, *rules in (
        ("mark-for-masquerade", f"meta mark set meta mark or {MARK}"),
        ("masquerading", f"meta mark & {MARK} == 0 return", f"meta mark set meta mark xor {MARK}",
         "masquerade fully-random"),
        ("services", f"{check} @service-ips", f"{by_port} @service-nodeports"),
        ("service-endpoints-check", f"{check} @no-endpoint-services"),
        ("nodeport-endpoints-check", f"{by_port} @no-endpoint-nodeports"),
        ("firewall-check", f"{check} @firewall-ips"),
        ("cluster-ips-check", "ip daddr @cluster-ips reject"),
        ("filter-prerouting", f"type filter hook prerouting {before_nat}", f"{new} firewall-check"),
        ("filter-input", f"type filter hook input {before_nat}", f"{new} nodeport-endpoints-check",
         endpoints),
        ("filter-forward", f"type filter hook forward {before_nat}", endpoints,
         f"{new} cluster-ips-check"),
        ("nat-prerouting", "type nat hook prerouting priority dstnat;", "jump services"),
        ("nat-output", "type nat hook output priority -100;", "jump services"),
        ("nat-postrouting", "type nat hook postrouting priority srcnat;", "jump masquerading"),
    ):  # fmt: skip
        yield _chain(name, *rules)


def _nft_service(number: int, service: Service) -> Iterator[str]:
    asked = f"ip daddr {service.address} tcp dport {service.port}"
    choices = ", ".join(
        f"{place} : goto endpoint-{number}-{place}" for place in range(len(service.endpoints))
    )
    yield _chain(
        f"service-{number}",
        f"{asked} ip saddr != {POD_NETWORK} jump mark-for-masquerade",
        f"numgen random mod {len(service.endpoints)} vmap {{ {choices} }}",
    )
    for place, (address, port) in enumerate(service.endpoints):
        yield _chain(
            f"endpoint-{number}-{place}",
            f"ip saddr {address} jump mark-for-masquerade",
            f"meta l4proto tcp dnat to {address}:{port}",
        )


def _chain(name: str, *rules: str) -> str:
    return "\n".join([f"chain {name} {{", *rules, "}"])


MODES: dict[str, tuple[str, Callable[[str, list[Service]], None]]] = {
    "iptables-nft": ("iptables-nft-restore", install_iptables),
    "nftables": ("nft", install_nftables),
}
"""kube-proxy's modes: the program that each needs, and how its rules are installed."""


def usable() -> list[str]:
    """The modes whose programs are there; the others are named on standard error."""
    missing = [program for program, _ in MODES.values() if shutil.which(program) is None]
    if missing:
        print(f"left out: kube-proxy's rules need {' and '.join(missing)}", file=sys.stderr)
    return [mode for mode, (program, _) in MODES.items() if program not in missing]
