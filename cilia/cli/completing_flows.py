"""What a shell offers after Tab for the flags of Hubble's commands.

Fixed words come from Hubble's API; namespaces, pods and nodes from the server that the flags typed so far
name. Where it does not answer within a second, nothing is offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from cilia.hubble.client import Client

SECONDS = 1.0
RECENT = 2000
"""Flows whose pods are offered."""


def words(*choices: str) -> Callable[[str], list[str]]:
    """A completer of fixed words, the last one of several separated by commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [
            before + comma + choice for choice in choices if choice.lower().startswith(last.strip().lower())
        ]

    return complete


def enum_words(name: str) -> Callable[[str], list[str]]:
    """The same for an enum of the API, whose first value means none."""

    def complete(incomplete: str) -> list[str]:
        # Imported late: only who completes needs it this early.
        from cilia.proto.flow import flow_pb2

        return words(*flow_pb2.DESCRIPTOR.enum_types_by_name[name].values_by_name)(incomplete)

    return complete


verdicts = words("FORWARDED", "DROPPED", "AUDIT", "REDIRECTED", "ERROR", "TRACED", "TRANSLATED")
drop_reasons = enum_words("DropReason")
directions = words("ingress", "egress")
protocols = words("tcp", "udp", "icmp", "icmpv4", "icmpv6", "sctp", "dns", "http", "kafka")
tcp_flags = words("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
ip_versions = words("v4", "v6", "none")
http_methods = words("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")


def identities(incomplete: str) -> list[str]:
    """Names of reserved identities."""
    from cilia.cli.flow_filters import IDENTITIES

    return words(*IDENTITIES)(incomplete)


def types(incomplete: str) -> list[str]:
    """Types of events, traces with their points."""
    from cilia.cli.flow_filters import EVENT_TYPES, SOCKET_POINTS
    from cilia.proto.flow import flow_pb2

    points = [name.lower().replace("_", "-") for name in flow_pb2.TraceObservationPoint.keys()[1:]]
    return words(
        *EVENT_TYPES,
        *(f"trace:{point}" for point in points),
        *(f"trace-sock:{point}" for point in SOCKET_POINTS),
    )(incomplete)


def fields(incomplete: str) -> list[str]:
    """Fields of a flow, and those inside of a message that is named already."""
    from cilia.proto.flow import flow_pb2

    path = incomplete.rpartition(",")[2].split(".")[:-1]
    message: Any = flow_pb2.Flow.DESCRIPTOR
    for name in path:
        field = message.fields_by_name.get(name)
        if field is None or field.message_type is None:
            return []
        message = field.message_type
    return words(*(".".join([*path, name]) for name in message.fields_by_name))(incomplete)


def asked(ctx: typer.Context, names: Callable[[Client], Iterable[str]], incomplete: str) -> list[str]:
    """Names from the server that begin as typed."""
    import msgspec

    from cilia.cli import hubble_server
    from cilia.cli.errors import UserError
    from cilia.hubble.rpc.messages import RpcError

    try:
        chosen = msgspec.structs.replace(
            hubble_server.settings(ctx), timeout=SECONDS, request_timeout=SECONDS
        )
        with hubble_server.client(chosen) as client:
            return words(*sorted(set(names(client))))(incomplete)
    except (RpcError, UserError):
        return []


def namespaces(ctx: typer.Context, incomplete: str) -> list[str]:
    """Namespaces of the flows of the last hour."""

    def names(client: Client) -> Iterable[str]:
        return (each.namespace for each in client.get_namespaces().namespaces)

    return asked(ctx, names, incomplete)


def nodes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Nodes the server knows."""
    return asked(ctx, lambda client: (each.name for each in client.get_nodes().nodes), incomplete)


def pods(ctx: typer.Context, incomplete: str) -> list[str]:
    """Pods of the newest flows."""

    def names(client: Client) -> Iterable[str]:
        from cilia.proto.observer import observer_pb2

        request = observer_pb2.GetFlowsRequest(number=RECENT)
        request.field_mask.paths.extend(
            f"{side}.{field}" for side in ("source", "destination") for field in ("namespace", "pod_name")
        )
        for response in client.get_flows(request):
            for end in (response.flow.source, response.flow.destination):
                if end.pod_name:
                    yield f"{end.namespace}/{end.pod_name}"

    return asked(ctx, names, incomplete)
