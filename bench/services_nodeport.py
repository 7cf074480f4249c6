"""Node ports asked for from outside, against plain routing through the same machines.

The backend is a pod of the node that is asked, or of another, over VXLAN. There, the answers come back
through the node (SNAT) or go straight to the client (DSR); plain routing takes the same way back as forth.
"""

from __future__ import annotations

from typing import Any

from bench import netbench, outside
from bench.netbench import CONNECTIONS, ROUND_TRIP, Comparison, Way
from bench.outside import Network

BUILDS, ROUNDS, SECONDS = 3, 2, 0.8
"""Builds of the networks, rounds in each: two builds differ more than two rounds do."""
REACH = 0.9
TESTS = (ROUND_TRIP, CONNECTIONS)
POD = "cilia, no service"
"""The pod's own address is asked for: what conntrack and policy cost without any service."""
PLACES = {
    "the node's pod": {"NodePort": outside.BEHIND_NODE, POD: netbench.PORT},
    "another node's pod": {"NodePort, SNAT": outside.BY_NODE, "NodePort, DSR": outside.DIRECT},
}


def node_ports(quick: bool) -> list[dict[str, Any]]:
    """All rows."""
    found = {
        (place, test.name): Comparison(test, ["routed", *ports])
        for place, ports in PLACES.items()
        for test in TESTS
    }
    for _ in range(1 if quick else BUILDS):
        with outside.plain(77) as base, outside.cilia(78) as (ours, _):
            for pod, (place, ports) in enumerate(PLACES.items(), start=1):
                ways = [_way("routed", base, pod, base.pod(pod), netbench.PORT)]
                ways += [
                    _way(name, ours, pod, ours.pod(pod) if name == POD else ours.node(1), port)
                    for name, port in ports.items()
                ]
                for test in TESTS:
                    into = found[place, test.name]
                    netbench.compare(ways, into, rounds=ROUNDS, seconds=0.5 if quick else SECONDS)
    return [
        netbench.row("services-nodeport", comparison, name, None if name == POD else REACH, f", {place}")
        for (place, _), comparison in found.items()
        for name in PLACES[place]
    ]


def _way(name: str, network: Network, pod: int, address: str, port: int) -> Way:
    return Way(name, network.space("c"), network.space(f"p{pod}"), address, port)
