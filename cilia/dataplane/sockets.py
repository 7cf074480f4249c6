"""Services of sockets: the hooks on the node's control groups, and the end of sockets whose backend is gone.

The hooks hang on one directory of the control-group file system (version 2) and hold for all processes below
it: the node's own and its pods'. They are ours by the names of their links and outlive the agent.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cilia.dataplane import namespaces, sockdiag
from cilia.dataplane.bpf import Array, Attach, BpfError, Map
from cilia.dataplane.loader import Dataplane
from cilia.dataplane.maps import packing
from cilia.dataplane.netlink import Netlink
from cilia.dataplane.sockdiag import Found, Peer
from cilia.model.service import Backend, Protocol

HOOKS = {
    "sock_connect4": Attach.CGROUP_INET4_CONNECT,
    "sock_connect6": Attach.CGROUP_INET6_CONNECT,
    "sock_sendmsg4": Attach.CGROUP_UDP4_SENDMSG,
    "sock_sendmsg6": Attach.CGROUP_UDP6_SENDMSG,
    "sock_recvmsg4": Attach.CGROUP_UDP4_RECVMSG,
    "sock_recvmsg6": Attach.CGROUP_UDP6_RECVMSG,
    "sock_getpeername4": Attach.CGROUP_INET4_GETPEERNAME,
    "sock_getpeername6": Attach.CGROUP_INET6_GETPEERNAME,
    "sock_post_bind4": Attach.CGROUP_INET4_POST_BIND,
    "sock_post_bind6": Attach.CGROUP_INET6_POST_BIND,
    "sock_release": Attach.CGROUP_INET_SOCK_RELEASE,
}
"""Programs, which are also the names of their links, and their hooks."""
CONNECTED = (Protocol.TCP, Protocol.UDP)


def attach(dataplane: Dataplane, cgroup: Path) -> None:
    """Hang the programs onto a control group and all below it; again: exchange them in place.

    Raises BpfError when the directory is not one of a version 2 control group.
    """
    try:
        for program, where in HOOKS.items():
            dataplane.attach_cgroup(program, program, cgroup, where)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.ENOENT, errno.ENOTDIR):
            raise
        raise BpfError(
            f"{cgroup} is no control group of version 2 ({os.strerror(error.errno)}): name the one that "
            "holds the node's processes and pods with --cgroup-root"
        ) from error


def detach(dataplane: Dataplane) -> None:
    """Take the programs away; the absent is no error."""
    for name in HOOKS:
        dataplane.detach(name)


def destroy(
    remembered: Map,
    networks: Iterable[str],
    backends: Iterable[Backend],
    left: Iterable[tuple[int, Backend]] = (),
) -> int:
    """End the connected sockets that a service gave one of these backends; how many they were.

    `remembered`: the map socket_services. `networks`: paths of the network namespaces to look in; one that is
    gone by now is passed over. `left`: a backend, and the number of the frontend whose sockets end, only. It
    blocks for about a millisecond per namespace and enters them: run it in a thread. Sockets that talk to a
    backend by its own address are left alone. Raises OSError.
    """
    keys = _given(remembered, [*((0, backend) for backend in backends), *left])
    if not len(keys):
        return 0
    wanted = {(int(key["cookie"]), int(key["protocol"])) for key in keys}
    peers = {protocol: _peers(keys[keys["protocol"] == protocol]) for protocol in CONNECTED}
    ended = 0
    for path in networks:
        try:
            network = namespaces.open_network(path)
        except FileNotFoundError:
            continue
        try:
            with namespaces.entered(network), Netlink(sockdiag.PROTOCOL) as netlink:
                ended += _destroy_here(netlink, peers, wanted)
        finally:
            os.close(network)
    remembered.remove(keys)
    return ended


def _destroy_here(netlink: Netlink, peers: dict[Protocol, list[Peer]], wanted: set[tuple[int, int]]) -> int:
    found = [
        each
        for protocol, wished in peers.items()
        for each in _find(netlink, protocol, wished)
        if (each.cookie, each.protocol) in wanted
    ]
    outcomes = netlink.send([sockdiag.destroy(each) for each in found])
    for error in filter(None, outcomes):
        raise error
    return len(found)


def _find(netlink: Netlink, protocol: Protocol, peers: Sequence[Peer]) -> list[Found]:
    found: list[Found] = []
    for at in range(0, len(peers), sockdiag.MOST_PEERS):
        for family in sockdiag.FAMILIES:
            question = sockdiag.find(family, protocol, peers[at : at + sockdiag.MOST_PEERS])
            found += sockdiag.parse(protocol, netlink.answers(question))
    return found


def _given(remembered: Map, given: Sequence[tuple[int, Backend]]) -> Array:
    """The keys of all sockets that were given one of these backends, by the frontend of its number or, 0, by
    any."""
    backends = [backend for _, backend in given]
    wanted = remembered.keys(len(backends))
    wanted["address"] = packing.addresses([backend.address for backend in backends], wanted.dtype["address"])
    wanted["port"] = [backend.port for backend in backends]
    wanted["protocol"] = [backend.protocol for backend in backends]
    asked = [frontend for frontend, _ in given]
    targets = set(zip(packing.raw_rows(wanted), asked, strict=True))
    kept: list[bytes] = []
    for keys, values in remembered.batches():
        likely = np.isin(keys["address"]["lo"], wanted["address"]["lo"])
        keys, frontends = keys[likely], values["service"][likely].tolist()
        anonymous = keys.copy()
        anonymous["cookie"] = 0
        rows = zip(packing.raw_rows(keys), packing.raw_rows(anonymous), frontends, strict=True)
        kept += [row for row, peer, by in rows if (peer, 0) in targets or (peer, by) in targets]
    return np.frombuffer(b"".join(kept), remembered.key)


def _peers(keys: Array) -> list[Peer]:
    peers = set()
    for raw, port in zip(packing.raw_rows(keys["address"].copy()), keys["port"], strict=True):
        address = raw.removeprefix(packing.MAPPED) if raw.startswith(packing.MAPPED) else raw
        peers.add(Peer(address, int(port)))
    return sorted(peers, key=lambda peer: (peer.address, peer.port))
