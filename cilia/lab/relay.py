"""The lab's relay, and what lets it and the agents trust each other.

    CA ─┬─ server         every agent's Hubble server: *.default.hubble-grpc.cilium.io
        ├─ relay-client   the relay towards the agents
        ├─ relay-server   the relay towards its clients, by its address
        └─ ui-client      whoever asks the relay by TLS

Folders and names are those of `cilia hubble certs make`.
"""

from __future__ import annotations

from pathlib import Path

from cilia.kit import certificates
from cilia.kit.certificates import Issued
from cilia.kit.files import private_directory, write_atomic
from cilia.lab import processes
from cilia.lab.plan import LabPlan

DAYS = 30.0
"""A lab that lives longer is started anew."""

METRICS = (
    "flow:sourceContext=pod|reserved-identity;destinationContext=pod|reserved-identity "
    "drop:sourceContext=pod|reserved-identity;destinationContext=pod|reserved-identity "
    "policy tcp icmp port-distribution"
)
"""What agents count; a user's own --hubble-metrics comes later on the command line and wins."""


def write_certificates(plan: LabPlan, now: float) -> None:
    """Make an authority and what it signs, valid from `now` (seconds since the epoch) on; all 0600."""
    directory = Path(plan.certificates)
    authority = certificates.make_authority("Lab CA", now=now, days=DAYS)

    def sign(folder: str, name: str, *more: str, server: bool) -> None:
        issued = certificates.issue(
            authority, name, names=more, now=now, days=DAYS, server=server, client=not server
        )
        _write(directory / folder, issued, authority.certificate)

    sign("server", "*.default.hubble-grpc.cilium.io", server=True)
    sign("relay-client", "*.hubble-relay.cilium.io", server=False)
    sign("relay-server", "*.hubble-relay.cilium.io", plan.api_address, server=True)
    sign("ui-client", "*.hubble-ui.cilium.io", server=False)


def _write(folder: Path, issued: Issued, authority: bytes) -> None:
    private_directory(folder)
    for name, content in (("tls.crt", issued.certificate), ("tls.key", issued.key), ("ca.crt", authority)):
        write_atomic(folder / name, content, durable=False)


def agent_flags(plan: LabPlan) -> list[str]:
    """Return what agents need so that the relay can ask them; and let them count."""
    folder = f"{plan.certificates}/server"
    tls = {
        "hubble-tls-cert-file": f"{folder}/tls.crt",
        "hubble-tls-key-file": f"{folder}/tls.key",
        "hubble-tls-client-ca-files": f"{folder}/ca.crt",
        "hubble-metrics": METRICS,
    }
    return [f"--{name}={value}" for name, value in tls.items()]


def command(plan: LabPlan) -> list[str]:
    """Return the command line of the relay: it finds the nodes by the first agent's peer service."""
    client, server = f"{plan.certificates}/relay-client", f"{plan.certificates}/relay-server"
    options = {
        "listen-address": f"{plan.relay_address},unix://{plan.relay_socket}",
        "peer-service": f"unix://{plan.nodes[0].hubble_socket}",
        "tls-hubble-client-cert-file": f"{client}/tls.crt",
        "tls-hubble-client-key-file": f"{client}/tls.key",
        "tls-hubble-server-ca-files": f"{client}/ca.crt",
        "tls-relay-server-cert-file": f"{server}/tls.crt",
        "tls-relay-server-key-file": f"{server}/tls.key",
        "tls-relay-client-ca-files": f"{server}/ca.crt",
        "retry-timeout": "1s",
    }
    return [*processes.program("relay"), "serve", *(f"--{name}={value}" for name, value in options.items())]
