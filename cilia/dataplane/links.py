"""Links of pods and of the node: veth pairs, the tunnel device, addresses, routes, hooks.

Pod side: one veth pair per pod, born with its peer inside the pod's namespace under its final name.
Host side names begin with `lxc`; the alias `cilia:<endpoint id>` says whose they are, to people and to a
restarted agent, and their group says that they are ours even when their making was interrupted.
Node side: `cilia_host` with the router's addresses, its peer `cilia_net`, `cilia_vxlan`.
Everything is idempotent. Filters hang at clsact (0.1 ms, survive the agent without a pin); devices of
the node have TCX links, or the same clsact filters on kernels without them.

    pod namespace                    node namespace
    eth0 ◄──── veth ────► lxc4f2a… (from_container)        eth0 (from_netdev, to_netdev)
                             │ redirect_peer, tunnel, FIB    ▲
                             └──────────► cilia_vxlan (from_overlay) ── VXLAN ──► other nodes
    the host's stack ──► cilia_host (to_host) ◄─ veth ─► cilia_net (from_host) ──► pods
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
import secrets
import socket
import threading
from collections.abc import Iterable, Sequence

import msgspec

from cilia.dataplane import netlink, rtnl
from cilia.dataplane.bpf import Attach
from cilia.dataplane.loader import Dataplane
from cilia.dataplane.namespaces import entered, open_network, read_sysctl, write_sysctls
from cilia.dataplane.netlink import Netlink, NetlinkError, Reply, Request
from cilia.model.node import Route

HOST_DEVICE = "cilia_host"
NET_DEVICE = "cilia_net"
TUNNEL_DEVICE = "cilia_vxlan"
POD_PREFIX = "lxc"
ALIAS_PREFIX = "cilia:"
POD_GROUP = 0xC111A
"""Of every pod link from its birth; the alias can only be given afterwards."""
LOOPBACK_INDEX = 1
"""In every network namespace."""
NETDEV_LINKS = ("from_netdev_", "to_netdev_")

HOST_SIDE_SYSCTLS = {
    "ipv4/conf/{0}/rp_filter": "0",
    "ipv4/conf/{0}/send_redirects": "0",
    "ipv6/conf/{0}/accept_ra": "0",
}
"""The host routes to pods through cilia_host, so a reverse-path check on a pod's own link would drop."""

POD_SIDE_SYSCTLS = {
    "ipv6/conf/{0}/disable_ipv6": "0",
    "ipv6/conf/{0}/accept_ra": "0",
    "ipv6/conf/{0}/accept_dad": "0",
    "ipv6/conf/{0}/router_solicitations": "0",
}
"""Addresses are usable at once, and nobody but the CNI result says where to route."""

NODE_SYSCTLS = {
    "ipv4/ip_forward": "1",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/all/accept_source_route": "0",
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/all/disable_ipv6": "0",
}
"""The stronger of `all` and the device's own rp_filter holds, so `all` has to be off. Source routes
need leave from both: policy judges where a packet goes, not where its options say."""

RESERVED_PORTS = "ipv4/ip_local_reserved_ports"
"""Ports that sockets get only when they name them; for both families."""


class PodLink(msgspec.Struct, frozen=True, kw_only=True):
    """What a pod's link is to be."""

    endpoint: int
    netns: str
    """Path of the pod's network namespace."""
    interface: str
    """Name inside the pod."""
    host_interface: str
    mac: str
    host_mac: str
    mtu: int
    ipv4: str = ""
    ipv6: str = ""
    gateway_ipv4: str = ""
    gateway_ipv6: str = ""


class HostPair(msgspec.Struct, frozen=True):
    """The node's own veth pair."""

    host_ifindex: int
    net_ifindex: int
    host_mac: str


class Device(msgspec.Struct, frozen=True):
    """A network device of the node."""

    name: str
    ifindex: int
    mtu: int


def host_interface(container: str, interface: str) -> str:
    """Name of the host's side: the same for the same container and interface, so that a DEL finds what
    an interrupted ADD made."""
    return POD_PREFIX + hashlib.sha256(f"{container}/{interface}".encode()).hexdigest()[:12]


def random_mac() -> str:
    """A locally administered unicast address."""
    raw = bytearray(secrets.token_bytes(6))
    raw[0] = raw[0] & 0xFC | 0x02
    return raw.hex(":")


class Links:
    """Links of the network namespace it is made in. Thread-safe."""

    def __init__(self) -> None:
        self._netlink = Netlink()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the socket; links stay."""
        self._netlink.close()

    # pods

    def add_pod(self, link: PodLink, from_container: int, to_container: int | None = None) -> int:
        """Make a pod's link, up and filtered; its host-side ifindex.

        `from_container`, `to_container`: program descriptors. Half-made work is taken back. Raises OSError.
        """
        namespace = open_network(link.netns)
        try:
            self._make_veth(link, namespace)
            try:
                index = self._required(link.host_interface).ifindex
                self._set_up_host_side(link, index, from_container, to_container)
                with entered(namespace):
                    _set_up_pod_side(link)
            except BaseException:
                self.delete_link(link.host_interface)
                raise
        finally:
            os.close(namespace)
        return index

    def delete_link(self, name: str) -> bool:
        """Remove a link by name, its peer with it; whether it was there."""
        found = self.find(name)
        if found is None:
            return False
        self._run(rtnl.delete_link(found.ifindex))
        return True

    def pods(self) -> dict[int, Device]:
        """Endpoint id to host-side link of every pod link that is ours, half-made ones too."""
        found: dict[int, Device] = {}
        for reply in self._ask(rtnl.get_links()):
            endpoint = _endpoint_of(reply)
            if endpoint is not None:
                found[endpoint] = _device(reply)
        return found

    def filter_pods(
        self, indexes: Iterable[int], from_container: int, to_container: int | None = None
    ) -> dict[int, str]:
        """Put (new) programs onto pod links, each exchanged in place; the failures by ifindex."""
        failures: dict[int, str] = {}
        requests, owners = [], []
        for index in indexes:
            filters = _pod_filters(index, from_container, to_container)
            requests += filters
            owners += [index] * len(filters)
        for index, error in zip(owners, self._send(requests), strict=True):
            if error is not None:
                failures[index] = error.strerror or str(error)
        return failures

    # the node

    def ensure_host_pair(self, addresses: Sequence[str], mtu: int) -> HostPair:
        """The node's own veth pair with the router's addresses on it. Raises OSError."""
        host, net = self.find(HOST_DEVICE), self.find(NET_DEVICE)
        if host is None or net is None:
            for half in (HOST_DEVICE, NET_DEVICE):
                self.delete_link(half)
            self._run(
                rtnl.new_veth(
                    HOST_DEVICE, random_mac(), mtu, NET_DEVICE, random_mac(), flags=netlink.IFF_NOARP
                )
            )
            host, net = self._required(HOST_DEVICE), self._required(NET_DEVICE)
        for name in (HOST_DEVICE, NET_DEVICE):
            write_sysctls({path.format(name): value for path, value in HOST_SIDE_SYSCTLS.items()})
        self._run(
            *(
                rtnl.set_link(device.ifindex, up=True, mtu=mtu, link_local=False, noarp=True)
                for device in (net, host)
            ),
            *self._address_changes(host.ifindex, addresses),
        )
        return HostPair(host.ifindex, net.ifindex, self._mac(HOST_DEVICE))

    def ensure_vxlan(self, port: int, mtu: int) -> int:
        """The tunnel device; its ifindex. One with another port is replaced. Raises OSError."""
        found = self.find(TUNNEL_DEVICE)
        if found is not None and self._vxlan_port() != port:
            self.delete_link(TUNNEL_DEVICE)
            found = None
        if found is None:
            try:
                self._run(rtnl.new_vxlan(TUNNEL_DEVICE, random_mac(), mtu, port))
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.EADDRINUSE):
                    raise OSError(
                        error.errno, f"UDP port {port} already carries another VXLAN device"
                    ) from None
                raise
            found = self._required(TUNNEL_DEVICE)
        write_sysctls({path.format(TUNNEL_DEVICE): value for path, value in HOST_SIDE_SYSCTLS.items()})
        try:
            self._run(rtnl.set_link(found.ifindex, up=True, mtu=mtu, link_local=False))
        except NetlinkError as error:
            if error.errno == errno.EADDRINUSE:
                self.delete_link(TUNNEL_DEVICE)
                raise OSError(
                    errno.EADDRINUSE, f"UDP port {port} is in use: free it or choose another tunnel port"
                ) from None
            raise
        return found.ifindex

    def native_devices(self, addresses: Iterable[str] = ()) -> list[Device]:
        """Devices of default routes and those that carry one of `addresses`; our own left out."""
        indexes = {
            int.from_bytes(reply.attributes[rtnl.RTA_OIF], "little")
            for family in (socket.AF_INET, socket.AF_INET6)
            for reply in self._ask(rtnl.get_routes(family))
            if _is_default_route(reply)
        }
        wanted = set(addresses)
        indexes |= {index for index, address, _ in self._addresses() if address in wanted}
        devices = [_device(reply) for reply in self._ask(rtnl.get_links())]
        return [
            device
            for device in devices
            if device.ifindex in indexes and device.name not in ("lo", HOST_DEVICE, NET_DEVICE, TUNNEL_DEVICE)
        ]

    def addresses_of(self, index: int) -> list[str]:
        """The addresses on a device."""
        return [address for at, address, _ in self._addresses() if at == index]

    def local_addresses(self) -> list[str]:
        """Every address at which the node itself answers others: not loopback, not link-local."""
        found = (ipaddress.ip_address(address) for _, address, _ in self._addresses())
        return sorted(str(a) for a in found if not a.is_loopback and not a.is_link_local)

    def configure_node(self) -> None:
        """Sysctls the node needs to forward. Raises OSError.

        A node that forwards ignores router advertisements unless accept_ra is 2, and would lose a default
        route it learnt from them.
        """
        for device in self.native_devices():
            listens = f"ipv6/conf/{device.name}/accept_ra"
            if read_sysctl(listens) == "1":
                write_sysctls({listens: "2"})
        write_sysctls(NODE_SYSCTLS)

    def reserve_ports(self, first: int, last: int) -> None:
        """Keep the kernel from giving these ports to sockets that ask for any; others' reservations stay.
        Raises OSError."""
        reserved = [part for part in read_sysctl(RESERVED_PORTS).split(",") if part]
        wanted = f"{first}-{last}"
        if wanted not in reserved:
            write_sysctls({RESERVED_PORTS: ",".join([*reserved, wanted])})

    def attach_node(
        self, dataplane: Dataplane, pair: HostPair, tunnel_ifindex: int, native: Iterable[Device]
    ) -> None:
        """Hang the programs onto the node's devices; hooks on native devices not named go. Raises OSError."""
        self._attach(dataplane, "from_host", "from_host", pair.net_ifindex, Attach.TCX_INGRESS)
        self._attach(dataplane, "to_host", "to_host", pair.host_ifindex, Attach.TCX_INGRESS)
        if tunnel_ifindex:
            self._attach(dataplane, "from_overlay", "from_overlay", tunnel_ifindex, Attach.TCX_INGRESS)
        else:
            dataplane.detach("from_overlay")
        wanted = set()
        for device in native:
            names = [f"{prefix}{device.ifindex}" for prefix in NETDEV_LINKS]
            self._attach(dataplane, names[0], "from_netdev", device.ifindex, Attach.TCX_INGRESS)
            self._attach(dataplane, names[1], "to_netdev", device.ifindex, Attach.TCX_EGRESS)
            wanted.update(names)
        for name in dataplane.attached():
            if name.startswith(NETDEV_LINKS) and name not in wanted:
                dataplane.detach(name)

    def remove_all(self) -> int:
        """Remove every link that is ours, pods' too, and the clsact filters of kernels without TCX; how
        many links there were. Routes go with their devices."""
        names = [HOST_DEVICE, TUNNEL_DEVICE, *(device.name for device in self.pods().values())]
        for device in self.native_devices():
            self._send([rtnl.delete_filter(device.ifindex, parent) for parent in _PARENTS.values()])
        return sum(self.delete_link(name) for name in names)

    def find(self, name: str) -> Device | None:
        """A device by name, or None."""
        try:
            replies = self._ask(rtnl.get_link(name))
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _device(replies[0])

    # routes: what `Routes` needs

    def routes(self) -> dict[str, str]:
        """Prefix to device of the routes that carry our protocol number."""
        names = {device.ifindex: device.name for device in map(_device, self._ask(rtnl.get_links()))}
        found = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            for reply in self._ask(rtnl.get_routes(family)):
                if reply.fields[5] == rtnl.ROUTE_PROTOCOL:
                    index = int.from_bytes(reply.attributes.get(rtnl.RTA_OIF, b""), "little")
                    found[_route_prefix(reply)] = names.get(index, "")
        return found

    def send_route(self, request: Request) -> NetlinkError | None:
        """Carry out one route request; the failure, if any."""
        return self._send([request])[0]

    # the rest

    def _make_veth(self, link: PodLink, namespace: int) -> None:
        request = rtnl.new_veth(
            link.host_interface,
            link.host_mac,
            link.mtu,
            link.interface,
            link.mac,
            peer_namespace=namespace,
            group=POD_GROUP,
        )
        try:
            self._run(request)
        except NetlinkError as error:
            if error.errno != errno.EEXIST or not self.delete_link(link.host_interface):
                raise OSError(error.errno, f"{link.interface} can't be made: {error.strerror}") from error
            self._run(request)

    def _set_up_host_side(
        self, link: PodLink, index: int, from_container: int, to_container: int | None
    ) -> None:
        name = link.host_interface
        write_sysctls({path.format(name): value for path, value in HOST_SIDE_SYSCTLS.items()})
        self._run(
            *_pod_filters(index, from_container, to_container),
            rtnl.set_link(index, up=True, alias=f"{ALIAS_PREFIX}{link.endpoint}", link_local=False),
        )

    def _attach(self, dataplane: Dataplane, name: str, program: str, index: int, where: Attach) -> None:
        """A TCX link, or a clsact filter where the kernel knows none (EINVAL)."""
        try:
            dataplane.attach(name, program, index, where)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            parent = _PARENTS[where]
            self._run(
                rtnl.clsact(index), rtnl.bpf_filter(index, parent, dataplane.programs[program], program)
            )

    def _required(self, name: str) -> Device:
        found = self.find(name)
        if found is None:
            raise OSError(errno.ENODEV, f"device {name} vanished while it was being set up")
        return found

    def _mac(self, name: str) -> str:
        return self._ask(rtnl.get_link(name))[0].attributes[rtnl.IFLA_ADDRESS].hex(":")

    def _vxlan_port(self) -> int:
        reply = self._ask(rtnl.get_link(TUNNEL_DEVICE))[0]
        info = netlink.parse_attributes(reply.attributes.get(rtnl.IFLA_LINKINFO, b""))
        data = netlink.parse_attributes(info.get(rtnl.INFO_DATA, b""))
        return int.from_bytes(data.get(rtnl.VXLAN_PORT, b""), "big")

    def _addresses(self) -> list[tuple[int, str, int]]:
        """(ifindex, address, prefix length) of every address."""
        found = []
        for reply in self._ask(rtnl.get_addresses()):
            raw = reply.attributes.get(rtnl.IFA_LOCAL) or reply.attributes.get(rtnl.IFA_ADDRESS, b"")
            if raw:
                found.append((reply.fields[4], str(ipaddress.ip_address(raw)), reply.fields[1]))
        return found

    def _address_changes(self, index: int, addresses: Sequence[str]) -> list[Request]:
        present = {address: bits for at, address, bits in self._addresses() if at == index}
        wanted = {str(ipaddress.ip_address(address)) for address in addresses}
        stale = [rtnl.delete_address(index, old, bits) for old, bits in present.items() if old not in wanted]
        return stale + [rtnl.add_address(index, address) for address in sorted(wanted)]

    def _run(self, *requests: Request) -> None:
        with self._lock:
            self._netlink.run(*requests)

    def _send(self, requests: Sequence[Request]) -> list[NetlinkError | None]:
        with self._lock:
            return self._netlink.send(requests) if requests else []

    def _ask(self, request: Request) -> list[Reply]:
        with self._lock:
            return self._netlink.ask(request)


class Routes:
    """Target of `Desired.routes`: the host's own ways to pods, marked with our protocol number."""

    def __init__(self, links: Links) -> None:
        self._links = links

    def desired(self, rows: Sequence[Route]) -> list[Request | None]:
        """A request per row; None where the device does not exist."""
        indexes = {name: self._links.find(name) for name in {row.device for row in rows}}
        return [
            rtnl.replace_route(
                row.prefix, device.ifindex, gateway=row.gateway, source=row.source, mtu=row.mtu
            )
            if (device := indexes[row.device]) is not None
            else None
            for row in rows
        ]

    def update(self, rows: Sequence[Route]) -> dict[str, str]:
        """Write the routes."""
        failures: dict[str, str] = {}
        for row, request in zip(rows, self.desired(rows), strict=True):
            if request is None:
                failures[row.prefix] = f"device {row.device} does not exist"
            elif (error := self._links.send_route(request)) is not None:
                failures[row.prefix] = f"route {row.prefix}: {error.strerror}"
        return failures

    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        """Remove routes; absent ones are no error."""
        failures: dict[str, str] = {}
        for prefix in keys:
            error = self._links.send_route(rtnl.delete_route(prefix))
            if error is not None:
                failures[prefix] = f"route {prefix}: {error.strerror}"
        return failures

    def prune(self, keep: Iterable[Route]) -> int:
        """Remove our routes that are not in `keep`."""
        stale = self.ours() - {str(ipaddress.ip_network(row.prefix)) for row in keep}
        self.delete(sorted(stale))
        return len(stale)

    def ours(self) -> set[str]:
        """Prefixes of the routes with our protocol number."""
        return set(self._links.routes())


_PARENTS = {Attach.TCX_INGRESS: rtnl.INGRESS_PARENT, Attach.TCX_EGRESS: rtnl.EGRESS_PARENT}


def _device(reply: Reply) -> Device:
    name = reply.attributes[rtnl.IFLA_IFNAME].rstrip(b"\0").decode()
    return Device(name, reply.fields[2], int.from_bytes(reply.attributes[rtnl.IFLA_MTU], "little"))


def _endpoint_of(reply: Reply) -> int | None:
    """Whose pod link it is; None for a link that is not ours. One without its alias yet is half-made, and
    known by its group; its name tells it from others."""
    name = _device(reply).name
    alias = reply.attributes.get(rtnl.IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace")
    number = alias.removeprefix(ALIAS_PREFIX)
    if not name.startswith(POD_PREFIX):
        return None
    if alias.startswith(ALIAS_PREFIX) and number.isdecimal():
        return int(number)
    if int.from_bytes(reply.attributes.get(rtnl.IFLA_GROUP, b""), "little") != POD_GROUP:
        return None
    try:
        return int(name.removeprefix(POD_PREFIX), 16)
    except ValueError:
        return None


def _is_default_route(reply: Reply) -> bool:
    return reply.fields[1] == 0 and reply.fields[4] == rtnl.TABLE_MAIN and rtnl.RTA_OIF in reply.attributes


def _route_prefix(reply: Reply) -> str:
    family, bits = reply.fields[0], reply.fields[1]
    raw = reply.attributes.get(rtnl.RTA_DST, bytes(4 if family == socket.AF_INET else 16))
    return f"{socket.inet_ntop(family, raw)}/{bits}"


def _pod_filters(index: int, from_container: int, to_container: int | None) -> list[Request]:
    filters = [
        rtnl.clsact(index),
        rtnl.bpf_filter(index, rtnl.INGRESS_PARENT, from_container, "from_container"),
    ]
    if to_container is not None:
        filters.append(rtnl.bpf_filter(index, rtnl.EGRESS_PARENT, to_container, "to_container"))
    return filters


def _set_up_pod_side(link: PodLink) -> None:
    """Addresses, routes and the gateway's neighbour entries; runs inside the pod's namespace."""
    if link.ipv6:
        write_sysctls({path.format(link.interface): value for path, value in POD_SIDE_SYSCTLS.items()})
    with Netlink() as inside:
        (reply,) = inside.ask(rtnl.get_link(link.interface))
        index = reply.fields[2]
        requests = [rtnl.set_link(LOOPBACK_INDEX, up=True)]
        requests += [rtnl.add_address(index, address) for address in (link.ipv4, link.ipv6) if address]
        requests.append(rtnl.set_link(index, up=True))
        for address, gateway, everything in (
            (link.ipv4, link.gateway_ipv4, "0.0.0.0/0"),
            (link.ipv6, link.gateway_ipv6, "::/0"),
        ):
            if address and gateway:
                requests += _gateway(index, gateway, everything, link.host_mac)
        inside.run(*requests)


def _gateway(index: int, gateway: str, everything: str, mac: str) -> list[Request]:
    """The gateway is on the link though it shares no prefix with the pod; nobody needs to ask for its MAC."""
    whole = f"{gateway}/{128 if ':' in gateway else 32}"
    return [
        rtnl.replace_route(whole, index),
        rtnl.replace_route(everything, index, gateway=gateway, on_link=True),
        rtnl.permanent_neighbour(index, gateway, mac),
    ]
