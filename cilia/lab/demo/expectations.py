"""What must be seen: who reaches whom, before and after the policies of `examples/demo`. Pure."""

from __future__ import annotations

from cilia.lab.probe import PROTOCOLS, Cell

PODS = tuple(
    f"{workload}-{number}"
    for workload in ("shop/frontend", "shop/backend", "guests/visitor")
    for number in (1, 2)
)
"""Namespace and name; the number is that of the node."""

OUTSIDE = "outside"
EVERYTHING = frozenset(PROTOCOLS)
NOTHING: frozenset[str] = frozenset()

AFTER_POLICIES: dict[tuple[str, str], frozenset[str]] = {
    ("frontend", "frontend"): EVERYTHING,
    ("frontend", "backend"): frozenset({"tcp"}),
    ("frontend", "visitor"): EVERYTHING,
    ("frontend", OUTSIDE): EVERYTHING,
    ("backend", "frontend"): NOTHING,
    ("backend", "backend"): NOTHING,
    ("backend", "visitor"): EVERYTHING,
    ("backend", OUTSIDE): EVERYTHING,
    ("visitor", "frontend"): frozenset({"udp"}),
    ("visitor", "backend"): NOTHING,
    ("visitor", "visitor"): EVERYTHING,
    ("visitor", OUTSIDE): NOTHING,
}
"""(from, to) to the protocols that get through, over both families, on one node and across nodes."""

SAMPLES = (
    Cell("shop/frontend-1", "shop/backend-2", "IPv4", "tcp"),
    Cell("shop/frontend-2", "shop/backend-2", "IPv6", "udp"),
    Cell("shop/backend-1", "shop/frontend-1", "IPv6", "tcp"),
    Cell("guests/visitor-1", "shop/frontend-2", "IPv4", "udp"),
    Cell("guests/visitor-1", "shop/frontend-1", "IPv4", "icmp"),
    Cell("guests/visitor-2", "shop/backend-1", "IPv6", "tcp"),
    Cell("guests/visitor-2", OUTSIDE, "IPv4", "tcp"),
)
"""Asked again one by one while the flows are shown live: each rule decides at least one of them."""

SERVICES = {"backend": "shop", "visitor": "guests"}
"""The Services and their namespaces."""
NODE_PORT = 30090

SERVICE_ANSWERS: dict[tuple[str, str], frozenset[str]] = {
    ("shop/frontend-1", "backend"): frozenset({"tcp"}),
    ("shop/frontend-2", "backend"): frozenset({"tcp"}),
    ("guests/visitor-1", "backend"): NOTHING,
    (OUTSIDE, "visitor"): frozenset({"tcp", "udp"}),
}
"""(from, Service) to the protocols that get through: as to its pods, whichever of them is chosen. Clients in
the cluster ask its cluster addresses, those outside its port at either node."""

POLICIES = {
    "NetworkPolicy": "backend-from-frontend",
    "CiliumNetworkPolicy": "frontend-for-guests",
    "CiliumClusterwideNetworkPolicy": "visitors-keep-out",
}


def workload(pod: str) -> str:
    """Return the workload of a pod: `frontend` for `shop/frontend-1`."""
    return pod.rpartition("/")[2].partition("-")[0]


def everything(_cell: Cell) -> bool:
    """Before the policies all reach all."""
    return True


def policies(cell: Cell) -> bool:
    """With the policies: the table above, for both families."""
    return cell.protocol in AFTER_POLICIES[workload(cell.source), workload(cell.target)]
