"""Packets per second that one node passes on for a node port: in the driver (XDP), and by the tc programs.

Packets do not come out of a stack, which would have made a socket buffer of each, but as a network card hands
them to its driver: BPF_PROG_TEST_RUN puts frames straight into the other end of the node's device
(BPF_F_TEST_XDP_LIVE_FRAMES, Documentation/bpf/bpf_prog_run.rst). They are datagrams of one flow, for a pod of
another node that is not there: what the node sends for it comes back over the same wire and is counted and
thrown away. Sender, node and counter share one CPU.

    wire ── BPF_PROG_TEST_RUN ──► eth0 of the node: from_driver, or from_netdev ──► VXLAN ──┐
      ▲─────────────────────────────────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import platform
import socket
import statistics
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from bench import services
from bench.topologies import PREFIX, CiliaNode, in_namespace, ip, namespaces, veth
from cilia.dataplane import bpf
from cilia.dataplane.bpf import Attach
from cilia.model.node import IpcacheEntry, NodeAddress
from cilia.model.service import FrontendKind, Protocol

BATCHES, BATCH = 3_000, 64
ROUNDS = 9
CPU = 1
PROG_LOAD = 5
"""BPF_PROG_LOAD (linux/bpf.h), as the next."""
SCHED_CLS, XDP = 3, 6
"""BPF_PROG_TYPE_SCHED_CLS, BPF_PROG_TYPE_XDP."""
LIVE_FRAMES = 2
XDP_DROP, XDP_TX, TC_ACT_SHOT = 1, 3, 2
MOVE, EXIT, LOAD, COPY, ADD, IF_ABOVE, STORE = 0xB7, 0x95, 0x61, 0xBF, 0x07, 0x2D, 0x62
"""Instructions (Documentation/bpf/standardization/instruction-set.rst): a register is a constant; the end; 32
bits from memory; a register is another; plus a constant; jump if above; a constant of 32 bits into memory."""
SIOCETHTOOL, SET_GRO = 0x8946, 0x2C
"""linux/sockios.h; ETHTOOL_SGRO."""
WIRE, WIRE_MAC, NODE_MAC = "wire", "02:00:00:00:00:09", "02:00:00:00:00:01"
SOURCE_PORT, NODE_PORT = 4_000, 30_000
PAYLOAD = bytes(18)


def packets(quick: bool) -> list[dict[str, Any]]:
    """Both ways in turn, on a node each: the driver's against the tc programs'."""
    samples: dict[str, list[float]] = {"tc": [], "XDP": []}
    with _sender(79, "disabled") as by_tc, _sender(80, "native") as by_driver:
        for _ in range(3 if quick else ROUNDS):
            for name, sender in (("tc", by_tc), ("XDP", by_driver)):
                samples[name].append(sender.rate(BATCHES // 5 if quick else BATCHES))
    ratios = [there / here for here, there in zip(samples["tc"], samples["XDP"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return [
        {
            "group": "services-xdp",
            "test": "NodePort packets per second, one CPU",
            "path": "XDP",
            "against": "tc",
            "ratio": round(statistics.median(ratios), 3),
            "spread": round((quartiles[2] - quartiles[0]) / 2, 3),
            "baseline": round(statistics.median(samples["tc"])),
            "measured": round(statistics.median(samples["XDP"])),
            "reach": 1.0,
            "rounds": len(ratios),
            "load": round(os.getloadavg()[0], 1),
        }
    ]


class Sender:
    """The far end of the wire: puts frames into the node's device and counts what comes back."""

    def __init__(self, namespace: str, frame: bytes, program: int) -> None:
        self._namespace, self._frame, self._program = namespace, frame, program

    def rate(self, batches: int) -> float:
        """Packets per second that came back. Raises OSError."""
        with in_namespace(self._namespace), _pinned(CPU):
            before, start = _came(), time.perf_counter()
            _run_live(self._program, socket.if_nametoindex(WIRE), self._frame, batches * BATCH)
            seconds = time.perf_counter() - start
            return (_came() - before) / seconds


@contextmanager
def _sender(number: int, acceleration: str) -> Iterator[Sender]:
    """A node with a node port for a pod behind the tunnel, and the wire to it."""
    space, wire = f"{PREFIX}-a{number}n", f"{PREFIX}-a{number}w"
    own, peer, client = (f"172.30.{number}.{at}" for at in (1, 2, 9))
    pod = f"10.{number}.2.2"
    with namespaces(space, wire), ExitStack() as stack:
        veth(space, "eth0", wire, WIRE)
        ip("link", "set", "eth0", "address", NODE_MAC, namespace=space)
        ip("link", "set", WIRE, "address", WIRE_MAC, namespace=wire)
        ip("addr", "add", f"{own}/24", "dev", "eth0", namespace=space)
        for address in (peer, client):
            words = f"neigh add {address} lladdr {WIRE_MAC} dev eth0 nud permanent"
            ip(*words.split(), namespace=space)
        with in_namespace(space):
            _poll_by_ring("eth0")
        node = CiliaNode(space, f"10.{number}.1.0/24", events=False, bpf_lb_acceleration=acceleration)
        stack.callback(node.close)
        node.desired.node_addresses.put(NodeAddress(address=peer, node="peer", local=False, mtu=1500))
        node.desired.ipcache.put(
            IpcacheEntry(prefix=f"{pod}/32", identity=502, tunnel_endpoint=peer, flags=1)
        )
        node.desired.service_entries.put(
            services.entry(
                own,
                NODE_PORT,
                (pod, 8080),
                protocol=Protocol.UDP,
                kind=FrontendKind.NODE_PORT,
                outside=True,
            )
        )
        node.apply()
        _throw_away(stack, wire, driver=acceleration == "native")
        frame = _datagram(client, own)
        yield Sender(wire, frame, _load(stack, XDP, _sending(frame)))


def _throw_away(stack: ExitStack, namespace: str, *, driver: bool) -> None:
    """Drop what comes out of the wire: in the driver, if that is how it comes, or right behind it."""
    with in_namespace(namespace):
        index = socket.if_nametoindex(WIRE)
        if driver:
            link = bpf.link_create(_load(stack, XDP, _answering(XDP_DROP)), index, Attach.XDP, bpf.XDP_DRIVER)
        else:
            link = bpf.link_create(
                _load(stack, SCHED_CLS, _answering(TC_ACT_SHOT)), index, Attach.TCX_INGRESS
            )
    stack.callback(os.close, link)


def _answering(answer: int) -> bytes:
    """Instructions of a program that always answers the same."""
    return _instruction(MOVE, 0, 0, 0, answer) + _instruction(EXIT)


def _sending(frame: bytes) -> bytes:
    """Instructions of a program that writes the frame anew (what is sent comes back as the last receiver has
    left it) and sends it."""
    words = struct.unpack(f"<{len(frame) // 4}i", frame)
    code = [
        _instruction(LOAD, 2, 1, 0),
        _instruction(LOAD, 3, 1, 4),
        _instruction(COPY, 4, 2),
        _instruction(ADD, 4, 0, 0, len(frame)),
        _instruction(IF_ABOVE, 4, 3, len(words)),
        *(_instruction(STORE, 2, 0, 4 * at, word) for at, word in enumerate(words)),
        _answering(XDP_TX),
    ]
    return b"".join(code)


def _instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, constant: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | to, offset, constant)


def _load(stack: ExitStack, kind: int, instructions: bytes) -> int:
    """A program; its descriptor. Raises OSError."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    fields = (kind, len(code) // 8, ctypes.addressof(code), ctypes.addressof(licence))
    attribute = struct.pack("<IIQQ", *fields).ljust(128, b"\0")
    number = bpf.SYSCALL_NUMBERS[platform.machine()]
    descriptor: int = ctypes.CDLL(None, use_errno=True).syscall(number, PROG_LOAD, attribute, len(attribute))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "a small program could not be loaded")
    stack.callback(os.close, descriptor)
    return descriptor


def _run_live(program: int, ifindex: int, frame: bytes, count: int) -> None:
    """Send a frame `count` times out of a device, by a program that answers XDP_TX. Raises OSError."""
    data = ctypes.create_string_buffer(frame, len(frame))
    # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    context = ctypes.create_string_buffer(struct.pack("<6I", 0, len(frame), 0, ifindex, 0, 0), 24)
    attribute = bpf.TEST_RUN.pack(
        program, 0, len(frame), 0, ctypes.addressof(data), 0, count, 0,
        len(context), 0, ctypes.addressof(context), 0, LIVE_FRAMES, 0, BATCH,
    )  # fmt: skip
    bpf.call(bpf.Command.TEST_RUN, attribute)


def _datagram(source: str, destination: str) -> bytes:
    """A frame from the wire to the node port, its checksums whole, as a network card would check them."""
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    size = 8 + len(PAYLOAD)
    ports = struct.pack(">HHH", SOURCE_PORT, NODE_PORT, size)
    sum_of = _checksum(addresses + struct.pack(">HH", socket.IPPROTO_UDP, size) + ports + b"\0\0" + PAYLOAD)
    udp = ports + struct.pack(">H", sum_of) + PAYLOAD
    start = struct.pack(">BBHHHBB", 0x45, 0, 20 + size, 0, 0, 64, socket.IPPROTO_UDP)
    header = start + struct.pack(">H", _checksum(start + b"\0\0" + addresses)) + addresses
    macs = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in (NODE_MAC, WIRE_MAC))
    return macs + b"\x08\x00" + header + udp


def _checksum(data: bytes) -> int:
    """RFC 1071, over an even number of bytes."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = total % 0x10000 + total // 0x10000
    return 0xFFFF - int(total)


def _poll_by_ring(device: str) -> None:
    """Have a veth device take frames as a network card does (it does so with GRO on)."""
    value = array.array("B", struct.pack("=II", SET_GRO, 1))
    request = struct.pack("16sP", device.encode(), value.buffer_info()[0])
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)


@contextmanager
def _pinned(cpu: int) -> Iterator[None]:
    """This thread on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _came() -> int:
    """Packets that came out of the wire, in the network namespace of this thread."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, numbers = line.strip().partition(":")
        if name == WIRE:
            return int(numbers.split()[1])
    raise RuntimeError(f"there is no device {WIRE}")
