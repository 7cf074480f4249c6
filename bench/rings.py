"""How fast events get from the kernel's ring into Hubble's store."""

from __future__ import annotations

import ipaddress
import os
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench import topologies
from bench.topologies import PREFIX, CiliaNode, Pod
from cilia.apps.agent.flows import FlowPump
from cilia.dataplane import bpf, loader
from cilia.model.endpoint import EndpointEntry
from cilia.model.ids import IdentityId

REACH = 2.0
"""Million events per second of one core."""
FLOWS = 64
RUNS_PER_FLOW, PACKETS_PER_RUN = 3, 60
"""A run goes on with the packet as the program left it, until its TTL of 64 is used up."""
SKB_CONTEXT, SKB_IFINDEX = 192, 40
"""Size of struct __sk_buff and where its ifindex is (linux/bpf.h)."""


def drain(quick: bool) -> list[dict[str, Any]]:
    """Events of a well-filled ring into the store, per second of CPU time.

    With aggregation off, a pod's own program is run again and again (BPF_PROG_TEST_RUN) on packets of some
    flows and reports each; then the reader takes the ring's records and the store appends them, which alone
    is timed, once all memory has been touched. Nothing may be lost.
    """
    with reporting_node() as node:
        reader = node.kernel.reader(FlowPump(node.store).take)
        rates: list[float] = []
        fill(node)
        reader.drain()
        for _ in range(3 if quick else 15):
            fill(node)
            before, start = reader.received, time.thread_time()
            reader.drain()
            rates.append((reader.received - before) / (time.thread_time() - start) / 1e6)
        lost, received = reader.lost, reader.received
    value = statistics.median(rates)
    quartiles = statistics.quantiles(rates, n=4)
    return [
        {
            "group": "agent",
            "test": "events from ring to store, one core (M/s)",
            "path": "cilia",
            "against": "limit",
            "ratio": round(value / REACH, 2),
            "spread": round((quartiles[2] - quartiles[0]) / 2 / value, 2),
            "reach": 1.0,
            "baseline": REACH,
            "measured": round(value, 2),
            "events": received,
            "lost": lost,
        }
    ]


@contextmanager
def reporting_node() -> Iterator[CiliaNode]:
    node, client, server, fabric = (f"{PREFIX}-d{part}" for part in ("n", "c", "s", "f"))
    with topologies.namespaces(node, client, server, fabric):
        topologies.veth(node, "eth0", fabric, "eth0")
        topologies.ip("addr", "add", "172.30.74.1/24", "dev", "eth0", namespace=node)
        found = CiliaNode(node, "10.77.1.0/24", events=True, aggregation="none", drain=False)
        try:
            found.add_pod(Pod(client, "10.77.1.2", IdentityId(501), 1))
            found.add_pod(Pod(server, "10.77.1.3", IdentityId(502), 2))
            found.apply()
            yield found
        finally:
            found.close()


def fill(node: CiliaNode) -> None:
    """Have the sending pod's program judge and report its packets."""
    with reports(node) as report:
        for flow in range(FLOWS):
            for _ in range(RUNS_PER_FLOW):
                report(flow, PACKETS_PER_RUN)


def keep_filling(node: CiliaNode, rate: int, pace: float) -> None:
    """The same for ever, so many events a second, some every `pace` seconds."""
    with reports(node) as report:
        begin, reported = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - begin) * rate)
            while reported < due:
                packets = min(PACKETS_PER_RUN, due - reported)
                report(reported % FLOWS, packets)
                reported += packets
            time.sleep(pace)


@contextmanager
def reports(node: CiliaNode) -> Iterator[Callable[[int, int], None]]:
    """What has the sending pod's program judge and report so many packets of a flow."""
    (pinned,) = (loader.root_of(node.prefix) / "programs").glob("*/from_container")
    program = bpf.get(pinned)
    assert program is not None
    sender, receiver = sorted(node.desired.endpoint_entries, key=lambda entry: entry.id)
    context = bytearray(SKB_CONTEXT)
    struct.pack_into("<I", context, SKB_IFINDEX, sender.ifindex)

    def report(flow: int, packets: int) -> None:
        packet = _datagram(sender, receiver, 20_000 + flow)
        bpf.test_run(program, packet, context=bytes(context), repeat=packets)

    with topologies.in_namespace(node.namespace):
        yield report
    os.close(program)


def _datagram(sender: EndpointEntry, receiver: EndpointEntry, port: int) -> bytes:
    """A UDP datagram on its way from the sender's interface (RFC 894, 791, 768; checksums left out)."""
    ethernet = bytes.fromhex((sender.host_mac + sender.mac).replace(":", "")) + b"\x08\x00"
    payload = bytes(18)
    udp = struct.pack("!HHHH", port, 5002, 8 + len(payload), 0) + payload
    ends = (ipaddress.IPv4Address(end.ipv4).packed for end in (sender, receiver))
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, *ends)
    return ethernet + header + udp
