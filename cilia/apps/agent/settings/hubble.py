"""How many flows are kept in memory, and the doors to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from cilia.kit.flags import period, power_of_two


@dataclass(frozen=True, kw_only=True)
class HubbleServerSettings:
    """How many flows are kept in memory, and the doors to them."""

    enable_hubble: Annotated[
        bool,
        Option(
            help="Off: no events, no socket, no metrics, no files, whatever the other flags of Hubble say."
        ),
    ] = True
    hubble_capacity: Annotated[
        int,
        Option(
            "--hubble-capacity",
            "--hubble-event-buffer-capacity",
            parser=power_of_two,
            help="Flows kept in memory; a power of two.",
        ),
    ] = 65_536
    hubble_socket: Annotated[
        Path,
        Option(
            "--hubble-socket",
            "--hubble-socket-path",
            show_default="hubble.sock in --state-dir",
            help="Where Hubble answers on this node.",
        ),
    ] = Path("/var/run/cilia/hubble.sock")
    hubble_socket_group: Annotated[
        str, Option(help="Whose members may connect to it, besides root and the agent's user.")
    ] = ""
    hubble_listen_address: Annotated[
        str,
        Option(help="[HOST]:PORT of Hubble for other nodes; empty: :4244 with certificates, none without."),
    ] = ""
    hubble_prefer_ipv6: Annotated[
        bool, Option(help="Tell relays the IPv6 address of nodes that have one of either family.")
    ] = False
    hubble_disable_tls: Annotated[
        bool, Option(help="Serve Hubble on TCP to everybody who can connect, in plain text.")
    ] = False
    hubble_tls_cert_file: Annotated[
        Path | None, Option(readable=False, help="PEM, followed; the port opens once it is there.")
    ] = None
    hubble_tls_key_file: Annotated[
        Path | None, Option(readable=False, help="PEM; the key of that certificate.")
    ] = None
    hubble_tls_client_ca_files: Annotated[
        str, Option(help="PEM files with commas: the authorities of those whom Hubble serves on TCP.")
    ] = ""
    hubble_lost_event_send_interval: Annotated[
        float,
        Option(parser=period, show_default="1s", help="Between two notes to one client about lost events."),
    ] = 1.0
    """Seconds; what happens in between is added up."""
    hubble_network_policy_correlation_enabled: Annotated[
        bool, Option(help="Name the policies that decided in flows, metrics and Events.")
    ] = True
    hubble_skip_unknown_cgroup_ids: Annotated[
        bool, Option(help="Leave out translations of sockets that belong to no pod and not to the node.")
    ] = False
    hubble_event_queue_size: Annotated[
        int,
        Option(
            min=0, help="Taken for the sake of files that have it, and without meaning: nothing queues here."
        ),
    ] = 0
