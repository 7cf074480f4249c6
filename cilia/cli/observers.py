"""`cilia list nodes|namespaces`, `cilia watch peers`, `cilia hubble status`: what a Hubble server knows."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from google.protobuf.message import Message

from cilia.cli import flows, readers
from cilia.cli.errors import UserError
from cilia.cli.flow_json import to_json
from cilia.cli.flow_printing import JSON_FORMS, Form
from cilia.cli.hubble_server import ServerCommand, connected, settings
from cilia.cli.options import group
from cilia.cli.output import print_table, printable, printable_json
from cilia.hubble.status import completeness_of
from cilia.proto.observer import observer_pb2
from cilia.proto.peer import peer_pb2

list_app = group("List what a Hubble server knows.")
watch_app = group("Watch what a Hubble server learns.")
status_app = group("Show how a Hubble server is.")
UNKNOWN = "N/A"


class Listing(enum.StrEnum):
    """How lists are printed."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"


Shown = Annotated[Listing, typer.Option("--output", "-o", help="wide: more columns.")]


@list_app.callback()
def list_group() -> None:
    """List what a Hubble server knows."""


@list_app.command("nodes", cls=ServerCommand, short_help="List nodes, or those behind a relay.")
@list_app.command("node", cls=ServerCommand, hidden=True)
def list_nodes(ctx: typer.Context, output: Shown = Listing.TABLE) -> None:
    """List nodes with their state, flows per second and how full their memory is.

    \b
    Examples:
      cilia list nodes
      cilia list nodes --server tls://relay.example.com:443 -o wide
    """
    with connected(ctx) as client:
        found = sorted(client.get_nodes().nodes, key=lambda node: node.name)
    if output is Listing.JSON:
        print_messages(found)
        return
    columns = ["NAME", "STATUS", "AGE", "FLOWS/S", "CURRENT/MAX-FLOWS"]
    rows = [node_row(node) for node in found]
    if output is Listing.WIDE:
        columns += ["VERSION", "ADDRESS", "TLS"]
        rows = [[*row, *more_of(node)] for row, node in zip(rows, found, strict=True)]
    print_table(columns, rows, empty="The server knows no nodes.")


def node_row(node: observer_pb2.Node) -> list[str]:
    """Cells of a node."""
    seconds = node.uptime_ns / 1e9
    rate = f"{node.seen_flows / seconds:.2f}" if seconds else UNKNOWN
    return [
        node.name,
        flows.state(node.state).capitalize(),
        age(node.uptime_ns),
        rate,
        share(node.num_flows, node.max_flows),
    ]


def more_of(node: observer_pb2.Node) -> list[str]:
    """Cells of -o wide."""
    secured = "Enabled" if node.tls.enabled else "Disabled"
    return [node.version or UNKNOWN, node.address, secured if node.HasField("tls") else UNKNOWN]


@list_app.command("namespaces", cls=ServerCommand, short_help="List namespaces with flows in the last hour.")
@list_app.command("namespace", cls=ServerCommand, hidden=True)
def list_namespaces(ctx: typer.Context, output: Shown = Listing.TABLE) -> None:
    """List namespaces that had flows in the last hour.

    \b
    Examples:
      cilia list namespaces
    """
    with connected(ctx) as client:
        found = sorted(client.get_namespaces().namespaces, key=lambda each: (each.cluster, each.namespace))
    if output is Listing.JSON:
        print_messages(found)
    elif output is Listing.WIDE:
        rows = [(each.namespace, each.cluster) for each in found]
        print_table(("NAMESPACE", "CLUSTER"), rows, empty="There were no flows in the last hour.")
    else:
        names = [(name,) for name in sorted({each.namespace for each in found})]
        print_table(("NAMESPACE",), names, empty="There were no flows in the last hour.")


def print_messages(found: list[Any]) -> None:
    """A list as JSON, with the names of Hubble's API."""
    plain = [json_format.MessageToDict(each, preserving_proto_field_name=True) for each in found]
    print(printable_json(json.dumps(plain, indent=2, ensure_ascii=False)))


class Watching(enum.StrEnum):
    """How changes are printed."""

    COMPACT = "compact"
    JSON = "json"


@watch_app.callback()
def watch_group() -> None:
    """Watch what a Hubble server learns."""


@watch_app.command("peers", cls=ServerCommand, short_help="Watch observers come and go.")
@watch_app.command("peer", cls=ServerCommand, hidden=True)
def watch_peers(
    ctx: typer.Context,
    output: Annotated[Watching, typer.Option("--output", "-o", help="How to print.")] = Watching.COMPACT,
) -> None:
    """Watch the observers a node knows: all of them, then each that comes, changes or goes (Ctrl-C ends).

    \b
    Examples:
      cilia watch peers
    """
    with connected(ctx) as client, suppress(KeyboardInterrupt), readers.noticed():
        for change in client.peers():
            text = printable_json(to_json(change)) if output is Watching.JSON else peer_line(change)
            print(text)
            sys.stdout.flush()


def peer_line(change: peer_pb2.ChangeNotification) -> str:
    """`PEER_ADDED   192.0.2.1:4244 default/worker-1 (TLS.ServerName: worker-1....)`."""
    names = peer_pb2.ChangeNotificationType.DESCRIPTOR.values_by_number
    kind = names[change.type].name if change.type in names else str(change.type)
    secured = f" (TLS.ServerName: {change.tls.server_name})" if change.HasField("tls") else ""
    return printable(f"{kind:<12} {change.address} {change.name}{secured}")


@status_app.command("status", cls=ServerCommand)
def show_status(
    ctx: typer.Context,
    output: Annotated[Form, typer.Option("--output", "-o", help="How to print.")] = Form.COMPACT,
) -> None:
    """Show how a Hubble server is: whether it serves, its flows, the nodes behind it, what it missed.

    \b
    Examples:
      cilia hubble status
      cilia hubble status --server localhost:4245 -o json
    """
    target = settings(ctx).server
    with connected(ctx) as client:
        health = client.health("observer.Observer")
        if health != "SERVING":
            raise UserError(f"Hubble at {target} does not serve flows now ({health}): look at its log")
        answer = client.server_status()
    if output in JSON_FORMS:
        print(printable_json(to_json(answer)))
    elif output is Form.TABLE:
        told = list(facts(answer))
        print_table([name.upper() for name, _ in told], [[value for _, value in told]])
    elif output is Form.DICT:
        for name, value in facts(answer):
            print(printable(f"{name:>22}: {value}"))
    else:
        print(printable(f"Healthcheck (via {target}): Ok"))
        print("\n".join(map(printable, summary(answer))))


def facts(answer: observer_pb2.ServerStatusResponse) -> Iterator[tuple[str, str]]:
    """Names and values of what the server told."""
    yield "Num flows", f"{answer.num_flows:,}"
    yield "Max flows", f"{answer.max_flows:,}"
    yield "Seen flows", f"{answer.seen_flows:,}"
    yield "Flows per second", f"{answer.flows_rate:.2f}" if answer.flows_rate else UNKNOWN
    yield "Uptime", age(answer.uptime_ns)
    yield "Num connected nodes", number(answer, "num_connected_nodes")
    yield "Num unavailable nodes", number(answer, "num_unavailable_nodes")
    yield "Unavailable nodes", ", ".join(answer.unavailable_nodes) or "-"
    yield "Completeness", completeness(answer) or UNKNOWN
    yield "Version", answer.version or UNKNOWN


def summary(answer: observer_pb2.ServerStatusResponse) -> Iterator[str]:
    """A few lines for people."""
    yield f"Current/Max Flows: {share(answer.num_flows, answer.max_flows)}"
    yield f"Flows/s: {answer.flows_rate:.2f}" if answer.flows_rate else f"Flows/s: {UNKNOWN}"
    told = completeness(answer)
    if told:
        yield f"Completeness: {told}"
    connected_nodes, away = (number(answer, f"num_{state}_nodes") for state in ("connected", "unavailable"))
    if connected_nodes != UNKNOWN:
        total = int(connected_nodes) + (int(away) if away != UNKNOWN else 0)
        yield f"Connected Nodes: {connected_nodes}/{total}"
    if away not in (UNKNOWN, "0"):
        yield f"Unavailable Nodes: {away}"
        yield from (f"  - {name}" for name in answer.unavailable_nodes)


def number(message: Message, field: str) -> str:
    """A count that may be unknown."""
    return str(getattr(message, field).value) if message.HasField(field) else UNKNOWN


def completeness(answer: observer_pb2.ServerStatusResponse) -> str:
    """What a server says it missed; empty where it does not say."""
    told = completeness_of(answer)
    return told.sentence() if told else ""


def share(part: int, whole: int) -> str:
    """`8,192/16,383 (50.00%)`."""
    return f"{part:,}/{whole:,} ({100 * part / whole:.2f}%)" if whole else UNKNOWN


def age(nanoseconds: int) -> str:
    """`3d4h5m6s`, without the parts that are zero at the front."""
    seconds = nanoseconds // 10**9
    if not nanoseconds:
        return UNKNOWN
    parts = (("d", seconds // 86400), ("h", seconds // 3600 % 24), ("m", seconds // 60 % 60))
    text = "".join(f"{amount}{unit}" for unit, amount in parts if seconds >= UNITS[unit])
    return f"{text}{seconds % 60}s"


UNITS = {"d": 86400, "h": 3600, "m": 60}
