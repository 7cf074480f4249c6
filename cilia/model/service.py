"""Services as the data path knows them: a frontend, and the backends it stands for.

One Kubernetes Service gives many frontends: per cluster address and port, per node port and node address, per
load-balancer address, external address and host port. Each is one row, complete in itself.
"""

from __future__ import annotations

import enum

import msgspec


class Protocol(enum.IntEnum):
    """Transport protocols that have ports to balance (IANA protocol numbers)."""

    TCP = 6
    UDP = 17
    SCTP = 132


class FrontendKind(enum.StrEnum):
    """Why an address is a service's; the words users know."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_IP = "ExternalIPs"
    HOST_PORT = "HostPort"
    LOCAL_REDIRECT = "LocalRedirect"
    STANDALONE = "Standalone"
    """Written by hand on this node, not by the cluster."""


class Algorithm(enum.StrEnum):
    """How a new flow finds its backend."""

    RANDOM = "random"
    MAGLEV = "maglev"


class ForwardingMode(enum.StrEnum):
    """How a backend on another node answers a client from outside."""

    SNAT = "snat"
    """Through this node, whose address it sees."""
    DSR = "dsr"
    """Itself, with the frontend's address."""


class Frontend(msgspec.Struct, frozen=True, order=True, gc=False):
    """An address, a port and a protocol: what a client asks for. Canonical text; the zero address of a family
    ("0.0.0.0", "::") with a node port stands for every address of every node."""

    address: str
    port: int
    protocol: Protocol

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}/{self.protocol.name}"


class Backend(msgspec.Struct, frozen=True, order=True, gc=False):
    """One that serves."""

    address: str
    port: int
    protocol: Protocol
    weight: int = 1
    """Its share of new flows among all; 0: none (maintenance)."""
    node: str = ""
    """Where it lives, for people."""
    zone: str = ""

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}/{self.protocol.name}"


class ServiceEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A frontend and all that the data path must know of it. Rows of one Service share their tuples."""

    frontend: Frontend
    kind: FrontendKind
    namespace: str = ""
    name: str = ""
    """Of the Service, the redirect policy, the pod with the host port, or as given by hand."""
    port_name: str = ""
    internal: tuple[Backend, ...] = ()
    """Candidates for clients of the cluster, sorted."""
    external: tuple[Backend, ...] = ()
    """Candidates for clients outside, sorted."""
    draining: tuple[Backend, ...] = ()
    """No candidates any more, but the flows they have go on; sorted."""
    outside: bool = False
    """Clients outside the cluster are served at all."""
    keeps_client: bool = False
    """Outside clients keep their address (externalTrafficPolicy: Local)."""
    algorithm: Algorithm = Algorithm.RANDOM
    mode: ForwardingMode = ForwardingMode.SNAT
    affinity: int = 0
    """Seconds a client stays with its backend after its last connection; 0: no affinity."""
    source_ranges: tuple[str, ...] = ()
    """Prefixes, canonical, sorted; empty: no restriction."""
    sources_denied: bool = False
    """The ranges keep clients out instead of in."""
    reject: bool = True
    """Without a backend the client is told; else its packets vanish."""
    loose: bool = False
    """Without a backend the packet goes its way as if there were no frontend (redirect by address)."""
    skip: tuple[str, ...] = ()
    """Of a redirect: addresses of the local pods that it does not catch, sorted."""


class ServiceState(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an object that asks for frontends: for `service list`, Events and statuses."""

    kind: str
    """Service, CiliumLocalRedirectPolicy, Pod (host ports), Standalone, EndpointSlice (without a Service)."""
    namespace: str
    name: str
    problems: tuple[str, ...] = ()
    """Sentences, each with the field at fault; what they speak of has no effect, all else has."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.namespace, self.name


class HealthCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A healthCheckNodePort: an HTTP server that says whether the Service has backends on this node."""

    port: int
    namespace: str
    name: str
    local_endpoints: int = 0
    addresses: tuple[str, ...] = ()
    """Load-balancer addresses it also answers at, when the node does so."""
