"""How services are served on this node: what its administrator may choose."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from cilia.model.service import Algorithm, ForwardingMode, Protocol


class Mode(enum.StrEnum):
    """How backends on other nodes answer clients from outside, where a Service says nothing."""

    SNAT = "snat"
    DSR = "dsr"
    HYBRID = "hybrid"
    """DSR for TCP, SNAT for all else."""

    def forwarding(self, protocol: Protocol) -> ForwardingMode:
        """What it means for a protocol."""
        if self is Mode.DSR or (self is Mode.HYBRID and protocol is Protocol.TCP):
            return ForwardingMode.DSR
        return ForwardingMode.SNAT


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Defaults are Cilium's, but for `topology`."""

    enabled: bool = True
    """Services are served at all; off: somebody else does it, and no frontend is wanted."""
    algorithm: Algorithm = Algorithm.RANDOM
    """Where the annotation service.cilium.io/lb-algorithm says nothing."""
    mode: Mode = Mode.SNAT
    """Where the annotation service.cilium.io/forwarding-mode says nothing."""
    external_cluster_ip: bool = False
    """Clients outside the cluster are served at cluster addresses, too."""
    source_ranges_everywhere: bool = False
    """loadBalancerSourceRanges hold for node ports and cluster addresses, too."""
    reject: bool = True
    """Without a backend clients are told; off: their packets vanish."""
    proxy_name: str = ""
    """Only Services whose label service.kubernetes.io/service-proxy-name is this; empty: those without it."""
    topology: bool = True
    """Hints of slices and spec.trafficDistribution are followed, as kube-proxy does. Cilium's default is off,
    and whoever asks for nearby backends then gets any."""
    node_port_addresses: tuple[str, ...] = ()
    """Addresses of this node where node ports and host ports are; empty: all its underlay addresses."""
    node_ports: tuple[int, int] = (30000, 32767)
    """First and last: node ports beyond them are refused, as are host ports among them."""
    health_checks: bool = True
    """Health-check node ports are answered."""
    health_checks_at_load_balancer: bool = False
    """Also at the Service's load-balancer addresses."""
    local_redirects: bool = False
    """CiliumLocalRedirectPolicies are followed: they let a namespace's owner take over addresses."""
    redirect_prefixes: tuple[str, ...] = ()
    """Addresses that redirects by address may name; empty: any."""
    max_backends: int = 16_384
    """Of one frontend: an eighth of what the data path has room for, so that one Service leaves the others
    theirs."""
