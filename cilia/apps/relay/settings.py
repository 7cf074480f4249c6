"""What an operator may set about a relay: a dataclass for each part, one that has them all.

As with agents, nothing here imports the parts themselves: help is printed before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from cilia.kit.flags import period
from cilia.kit.log_settings import LogSettings

DEFAULT_PEER_SERVICE = "unix:///var/run/cilia/hubble.sock"


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Where clients ask, and how they are served there."""

    cluster_name: Annotated[str, Option(help="Name of this cluster.")] = "default"
    listen_address: Annotated[str, Option(help="HOST:PORT or unix:///PATH for clients; commas between.")] = (
        ":4245"
    )
    health_listen_address: Annotated[
        str, Option(help="HOST:PORT of gRPC health in plain text; empty: none.")
    ] = ":4222"
    metrics_listen_address: Annotated[
        str, Option(help="HOST:PORT of metrics for Prometheus; empty: none.")
    ] = ""
    tls_relay_server_cert_file: Annotated[
        Path | None, Option(help="The relay's certificate for clients (PEM).")
    ] = None
    tls_relay_server_key_file: Annotated[Path | None, Option(help="Its private key (PEM).")] = None
    tls_relay_client_ca_files: Annotated[
        list[Path] | None, Option(help="Authorities of clients' certificates; repeatable.")
    ] = None
    disable_server_tls: Annotated[bool, Option(help="Serve plain text.")] = False


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """Which nodes there are, and the way to them."""

    peers: Annotated[str, Option(help="NAME=HOST:PORT,... instead of the peer service.")] = ""
    peer_service: Annotated[str, Option(help="Who knows the nodes: HOST:PORT or unix:///PATH.")] = (
        DEFAULT_PEER_SERVICE
    )
    peer_service_tls_server_name: Annotated[
        str, Option(help="Name in the peer service's certificate, if not its host.")
    ] = ""
    dial_timeout: Annotated[
        float,
        Option(parser=period, show_default="5s", help="Until a node that does not answer is given up."),
    ] = 5.0
    retry_timeout: Annotated[
        float,
        Option(parser=period, show_default="30s", help="Longest pause between attempts to connect."),
    ] = 30.0
    tls_hubble_client_cert_file: Annotated[
        Path | None, Option(help="The relay's certificate for nodes (PEM).")
    ] = None
    tls_hubble_client_key_file: Annotated[Path | None, Option(help="Its private key (PEM).")] = None
    tls_hubble_server_ca_files: Annotated[
        list[Path] | None, Option(help="Authorities of the nodes' certificates; repeatable.")
    ] = None
    disable_client_tls: Annotated[bool, Option(help="Speak plain text to nodes.")] = False


@dataclass(frozen=True, kw_only=True)
class MergingSettings:
    """How answers become one."""

    sort_buffer_len_max: Annotated[
        int, Option(min=1, help="Flows a follower's merge holds back before it lets the oldest go.")
    ] = 100
    sort_buffer_drain_timeout: Annotated[
        float, Option(parser=period, show_default="1s", help="How long the merge waits for a silent node.")
    ] = 1.0
    error_aggregation_window: Annotated[
        float,
        Option(parser=period, show_default="1s", help="How long equal errors wait to be told together."),
    ] = 1.0


@dataclass(frozen=True, kw_only=True)
class ViewerSettings:
    """Who may see what."""

    require_tokens: Annotated[
        bool, Option(help="Let in only who brings a Kubernetes token; what it may see decides RBAC.")
    ] = False
    token_audience: Annotated[str, Option(help="What tokens must be made for.")] = ""
    token_cache_ttl: Annotated[
        float, Option(parser=period, show_default="60s", help="How long an answer about a token holds.")
    ] = 60.0
    mask_foreign_addresses: Annotated[
        bool, Option(help="Hide addresses, not only names, of peers a viewer may not see.")
    ] = False
    kubeconfig: Annotated[
        Path | None,
        Option(envvar="KUBECONFIG", help="How to reach the API server; else the pod's account."),
    ] = None


PARTS: tuple[tuple[str, type], ...] = (
    ("Clients", ClientSettings),
    ("Nodes", NodeSettings),
    ("Merging", MergingSettings),
    ("Who may see what", ViewerSettings),
    ("Log", LogSettings),
)
"""Each with its heading."""


@dataclass(frozen=True, kw_only=True)
class Settings(LogSettings, ViewerSettings, MergingSettings, NodeSettings, ClientSettings):
    """All settings of a relay; each is a flag and a variable, CILIA_RELAY_<FIELD> unless it has another."""
