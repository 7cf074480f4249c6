"""How packets leave the node, and how much of them is remembered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typer import Option

from cilia.kit.flags import one_of


@dataclass(frozen=True, kw_only=True)
class DatapathSettings:
    """How packets leave the node, and how much of them is remembered."""

    tunnel: Annotated[
        str, Option(parser=one_of("vxlan", "disabled"), help="vxlan, or disabled for native routing.")
    ] = "vxlan"
    tunnel_port: Annotated[int, Option(min=1, max=65535, help="UDP port of the tunnels.")] = 8472
    ipv4_pod_cidr: Annotated[
        str, Option(help="This node's pods, when nobody else allocates them (source directory).")
    ] = ""
    ipv6_pod_cidr: Annotated[str, Option(help="The same for IPv6.")] = ""
    native_device: Annotated[
        str, Option(help="Device that carries the tunnels; empty: that of the default route.")
    ] = ""
    masquerade: Annotated[bool, Option(help="Give traffic that leaves the cluster the node's address.")] = (
        True
    )
    conntrack_entries: Annotated[int, Option(min=64, help="Flows tracked at once.")] = 131_072
    conntrack_quota: Annotated[int, Option(min=0, help="Flows one pod may have; 0: a quarter of all.")] = 0
    conntrack_gc_interval: Annotated[
        float, Option(min=0.1, help="Seconds between two looks for expired flows.")
    ] = 15.0
    nat_map_max: Annotated[
        int, Option("--bpf-nat-global-max", min=0, help="Translations of source addresses.")
    ] = 0

    @property
    def is_tunneled(self) -> bool:
        """Pods of other nodes are reached through VXLAN."""
        return self.tunnel == "vxlan"
