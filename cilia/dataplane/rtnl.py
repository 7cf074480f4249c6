"""Requests of `netlink` for what the data plane needs; numbers from linux/if_link.h, rtnetlink.h,
pkt_cls.h and if_addr.h."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct

from cilia.dataplane import netlink
from cilia.dataplane.netlink import Request, attribute, nested, number, text

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_LINKINFO = 1, 3, 4, 5, 18
IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD = 20, 26, 27, 28
INFO_KIND, INFO_DATA, VETH_PEER = 1, 2, 1
VXLAN_LEARNING, VXLAN_PORT, VXLAN_COLLECT_METADATA = 7, 15, 25
INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE = 8, 1

IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_F_NODAD = 1, 2, 8, 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE, RTAX_MTU = 1, 4, 5, 7, 8, 15, 2
TABLE_MAIN = 254
SCOPE_GLOBAL, SCOPE_LINK = 0, 253
ROUTE_UNICAST = 1
ROUTE_ONLINK = 4
NDA_DST, NDA_LLADDR, NUD_PERMANENT = 1, 2, 0x80
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS, BPF_DIRECT_ACTION = 6, 7, 8, 1
CLSACT_HANDLE, CLSACT_PARENT = 0xFFFF0000, 0xFFFFFFF1
INGRESS_PARENT, EGRESS_PARENT = 0xFFFFFFF2, 0xFFFFFFF3
ALL_PROTOCOLS = socket.htons(3)

ROUTE_PROTOCOL = 167
"""rtm_protocol of every route made here: how a restarted agent knows its own."""


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _packed(address: str) -> bytes:
    return socket.inet_pton(_family(address), address)


def _mac(address: str) -> bytes:
    return bytes.fromhex(address.replace(":", ""))


def _link(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return netlink.LINK.pack(socket.AF_UNSPEC, 0, index, flags, change)


def _info(kind: str, *data: bytes) -> bytes:
    return nested(IFLA_LINKINFO, text(INFO_KIND, kind), nested(INFO_DATA, *data))


def new_veth(
    name: str,
    mac: str,
    mtu: int,
    peer: str,
    peer_mac: str,
    *,
    peer_namespace: int | None = None,
    flags: int = 0,
    group: int = 0,
) -> Request:
    """A veth pair; with `peer_namespace` (a descriptor) the peer is born there, under its final name."""
    inside = [text(IFLA_IFNAME, peer), attribute(IFLA_ADDRESS, _mac(peer_mac)), number(IFLA_MTU, mtu)]
    if peer_namespace is not None:
        inside.append(number(IFLA_NET_NS_FD, peer_namespace))
    return Request(
        netlink.NEW_LINK,
        netlink.CREATE | netlink.EXCLUSIVE,
        _link(0, flags, flags)
        + text(IFLA_IFNAME, name)
        + attribute(IFLA_ADDRESS, _mac(mac))
        + number(IFLA_MTU, mtu)
        + number(IFLA_GROUP, group)
        + _info("veth", nested(VETH_PEER, _link(0, flags, flags), *inside)),
    )


def new_vxlan(name: str, mac: str, mtu: int, port: int) -> Request:
    """A VXLAN device whose tunnels are chosen per packet (external), for both families."""
    return Request(
        netlink.NEW_LINK,
        netlink.CREATE | netlink.EXCLUSIVE,
        _link()
        + text(IFLA_IFNAME, name)
        + attribute(IFLA_ADDRESS, _mac(mac))
        + number(IFLA_MTU, mtu)
        + _info(
            "vxlan",
            attribute(VXLAN_COLLECT_METADATA, b"\1"),
            attribute(VXLAN_LEARNING, b"\0"),
            attribute(VXLAN_PORT, struct.pack("!H", port)),
        ),
    )


def set_link(
    index: int,
    *,
    up: bool = False,
    mtu: int = 0,
    alias: str = "",
    link_local: bool = True,
    noarp: bool = False,
) -> Request:
    """Change a link; what is left out stays."""
    flags = (netlink.IFF_UP if up else 0) | (netlink.IFF_NOARP if noarp else 0)
    body = _link(index, flags, flags)
    if mtu:
        body += number(IFLA_MTU, mtu)
    if alias:
        body += attribute(IFLA_IFALIAS, alias.encode())
    if not link_local:
        mode = attribute(INET6_ADDR_GEN_MODE, bytes([ADDR_GEN_MODE_NONE]))
        body += nested(IFLA_AF_SPEC, nested(socket.AF_INET6, mode))
    return Request(netlink.SET_LINK, 0, body)


def get_link(name: str) -> Request:
    """One link by name."""
    return Request(netlink.GET_LINK, 0, _link() + text(IFLA_IFNAME, name))


def get_links() -> Request:
    """All links."""
    return Request(netlink.GET_LINK, netlink.DUMP, _link())


def delete_link(index: int) -> Request:
    """Remove a link (and its peer); the absent is no error."""
    return Request(netlink.DEL_LINK, 0, _link(index), ignore=(errno.ENODEV,))


def add_address(index: int, address: str) -> Request:
    """A host address (/32 or /128) without duplicate detection; present already is no error."""
    packed = _packed(address)
    body = netlink.ADDRESS.pack(_family(address), len(packed) * 8, 0, SCOPE_GLOBAL, index)
    body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed) + number(IFA_FLAGS, IFA_F_NODAD)
    return Request(netlink.NEW_ADDRESS, netlink.CREATE | netlink.REPLACE, body)


def delete_address(index: int, address: str, bits: int) -> Request:
    """Take an address from a link; the absent is no error."""
    body = netlink.ADDRESS.pack(_family(address), bits, 0, 0, index)
    return Request(
        netlink.DEL_ADDRESS,
        0,
        body + attribute(IFA_LOCAL, _packed(address)),
        ignore=(errno.EADDRNOTAVAIL, errno.ENODEV),
    )


def get_addresses() -> Request:
    """All addresses of both families."""
    return Request(netlink.GET_ADDRESS, netlink.DUMP, netlink.ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0))


def _route(
    prefix: str, index: int, *, gateway: str = "", source: str = "", mtu: int = 0, on_link: bool = False
) -> bytes:
    network = ipaddress.ip_network(prefix)
    body = netlink.ROUTE.pack(
        socket.AF_INET6 if network.version == 6 else socket.AF_INET,
        network.prefixlen,
        0,
        0,
        TABLE_MAIN,
        ROUTE_PROTOCOL,
        SCOPE_GLOBAL if gateway else SCOPE_LINK,
        ROUTE_UNICAST,
        ROUTE_ONLINK if on_link else 0,
    )
    if network.prefixlen:
        body += attribute(RTA_DST, network.network_address.packed)
    body += number(RTA_OIF, index)
    if gateway:
        body += attribute(RTA_GATEWAY, _packed(gateway))
    if source:
        body += attribute(RTA_PREFSRC, _packed(source))
    if mtu:
        body += nested(RTA_METRICS, number(RTAX_MTU, mtu))
    return body


def replace_route(
    prefix: str, index: int, *, gateway: str = "", source: str = "", mtu: int = 0, on_link: bool = False
) -> Request:
    """A route of the main table, or another next hop for the one that is there."""
    body = _route(prefix, index, gateway=gateway, source=source, mtu=mtu, on_link=on_link)
    return Request(netlink.NEW_ROUTE, netlink.CREATE | netlink.REPLACE, body)


def delete_route(prefix: str) -> Request:
    """Remove our route for a prefix; the absent is no error."""
    network = ipaddress.ip_network(prefix)
    family = socket.AF_INET6 if network.version == 6 else socket.AF_INET
    # scope 255 (nowhere) matches a route of any scope
    body = netlink.ROUTE.pack(family, network.prefixlen, 0, 0, TABLE_MAIN, ROUTE_PROTOCOL, 255, 0, 0)
    body += attribute(RTA_DST, network.network_address.packed)
    return Request(netlink.DEL_ROUTE, 0, body, ignore=(errno.ESRCH, errno.ENOENT))


def get_routes(family: int) -> Request:
    """All routes of a family, of all tables."""
    return Request(netlink.GET_ROUTE, netlink.DUMP, netlink.ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))


def permanent_neighbour(index: int, address: str, mac: str) -> Request:
    """A neighbour that needs no asking."""
    body = netlink.NEIGHBOUR.pack(_family(address), index, NUD_PERMANENT, 0, 0)
    body += attribute(NDA_DST, _packed(address)) + attribute(NDA_LLADDR, _mac(mac))
    return Request(netlink.NEW_NEIGHBOUR, netlink.CREATE | netlink.REPLACE, body)


def clsact(index: int) -> Request:
    """The place filters hang from; present already is no error."""
    body = netlink.TRAFFIC.pack(socket.AF_UNSPEC, index, CLSACT_HANDLE, CLSACT_PARENT, 0)
    return Request(
        netlink.NEW_QDISC,
        netlink.CREATE | netlink.EXCLUSIVE,
        body + text(TCA_KIND, "clsact"),
        ignore=(errno.EEXIST,),
    )


def _filter(index: int, parent: int) -> bytes:
    return netlink.TRAFFIC.pack(socket.AF_UNSPEC, index, 1, parent, 1 << 16 | ALL_PROTOCOLS)


def bpf_filter(index: int, parent: int, program: int, name: str) -> Request:
    """A direct-action program as filter 1 of priority 1, in place of the one that may be there."""
    options = nested(
        TCA_OPTIONS,
        number(TCA_BPF_FD, program),
        text(TCA_BPF_NAME, name),
        number(TCA_BPF_FLAGS, BPF_DIRECT_ACTION),
    )
    body = _filter(index, parent) + text(TCA_KIND, "bpf") + options
    return Request(netlink.NEW_FILTER, netlink.CREATE | netlink.REPLACE, body)


def delete_filter(index: int, parent: int) -> Request:
    """Take our filter away; the absent is no error."""
    return Request(
        netlink.DEL_FILTER,
        0,
        _filter(index, parent) + text(TCA_KIND, "bpf"),
        ignore=(errno.ENOENT, errno.ENODEV, errno.EINVAL),
    )
