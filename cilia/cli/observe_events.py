"""`cilia observe agent-events` and `debug-events`: what agents did, and what data paths say of themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

import typer
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from cilia.cli import flows, readers
from cilia.cli.errors import UserError
from cilia.cli.flow_json import to_json
from cilia.cli.flow_printing import JSON_FORMS, Form
from cilia.cli.hubble_server import ServerCommand, connected
from cilia.cli.output import print_table, printable, printable_json
from cilia.cli.windows import Window, flag, window_options
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2


class Kind(NamedTuple):
    """One stream of events."""

    method: str
    request: type[Any]
    response: type[Any]
    event: str
    types: Any


AGENT = Kind(
    "/observer.Observer/GetAgentEvents",
    observer_pb2.GetAgentEventsRequest,
    observer_pb2.GetAgentEventsResponse,
    "agent_event",
    flow_pb2.AgentEventType,
)
DEBUG = Kind(
    "/observer.Observer/GetDebugEvents",
    observer_pb2.GetDebugEventsRequest,
    observer_pb2.GetDebugEventsResponse,
    "debug_event",
    flow_pb2.DebugEventType,
)


def words(message: Message) -> str:
    """The fields that are set: `id: 7, labels: [a, b]`; those of messages inside without a name before."""
    return ", ".join(_words(message))


def _words(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        if field.is_repeated:
            yield f"{_name(field)}: [{', '.join(map(str, value))}]"
        elif isinstance(value, Timestamp):
            yield f"{_name(field)}: {value.ToJsonString()}"
        elif isinstance(value, Message):
            wrapped = value.DESCRIPTOR.file.package == "google.protobuf"
            yield from [f"{_name(field)}: {value.value}"] if wrapped else _words(value)  # type: ignore[attr-defined]
        elif not (field.name == "type" and field.enum_type):
            yield f"{_name(field)}: {value}"


def _name(field: Any) -> str:
    return str(field.name).replace("_", " ")


def line(response: Any, kind: Kind, style: flows.Style) -> str:
    """`Nov 23 14:02:11.004 [node]: POLICY_UPDATED (labels: [...], revision: 3)`."""
    when, node, name, details = cells(response, kind, style)
    where = f" [{node}]" if style.node else ""
    return f"{when}{where}: {name}" + (f" ({details})" if details else "")


def cells(response: Any, kind: Kind, style: flows.Style) -> tuple[str, str, str, str]:
    """Time, node, type, details."""
    event = getattr(response, kind.event)
    known = kind.types.DESCRIPTOR.values_by_number
    name = known[event.type].name if event.type in known else str(event.type)
    return flows.moment(response.time, style), response.node_name, name, words(event)


def show(ctx: typer.Context, kind: Kind, window: Window, output: Form, style: flows.Style) -> None:
    """Ask and print."""
    request = kind.request()
    window.put(request, datetime.now(UTC).astimezone())
    with connected(ctx) as client:
        answers = client.stream(kind.method, request.SerializeToString())
        seen = readers.noticed() if window.follow else nullcontext()
        with suppress(KeyboardInterrupt), seen:
            print_events((kind.response.FromString(data) for data in answers), kind, output, style)


def print_events(responses: Iterable[Any], kind: Kind, output: Form, style: flows.Style) -> None:
    """In the form the user chose."""
    if output is Form.TABLE:
        rows = (cells(response, kind, style) for response in responses)
        print_table(COLUMNS, rows, empty="There are no events.")
        return
    for response in responses:
        if output in JSON_FORMS:
            print(printable_json(to_json(response)))
        elif output is Form.DICT:
            print(block(cells(response, kind, style)))
        else:
            print(printable(line(response, kind, style)))
        sys.stdout.flush()


COLUMNS = ("TIMESTAMP", "NODE", "TYPE", "DETAILS")


def block(told: tuple[str, str, str, str]) -> str:
    """A block of named lines."""
    pairs = zip(COLUMNS, told, strict=True)
    return "".join(f"{name:>11}: {printable(text)}\n" for name, text in pairs if text)


Output = Annotated[Form, flag("Printing", "--output -o", "How events are printed.", show_default=True)]
Times = Annotated[
    flows.TimeFormat, flag("Printing", "--time-format", "How times are printed.", show_default=True)
]
Node = Annotated[bool, flag("Printing", "--print-node-name", "The node that tells.")]


class EventsCommand(ServerCommand):
    """With the flags that say which events."""

    before = staticmethod(window_options)


def add_to(group: typer.Typer) -> None:
    """Make `agent-events` and `debug-events` commands of a group."""
    for name, kind, help_text in (
        ("agent-events", AGENT, "Show what the agent did: policies, endpoints, addresses."),
        ("debug-events", DEBUG, "Show what the data path says of itself, if it does."),
    ):
        group.command(name, cls=EventsCommand, help=help_text)(_command(kind))


def _command(kind: Kind) -> Any:
    def command(
        ctx: typer.Context,
        output: Output = Form.COMPACT,
        time_format: Times = flows.TimeFormat.STAMP,
        print_node_name: Node = False,
    ) -> None:
        window = Window.typed(ctx)
        if window.follow and output is Form.TABLE:
            raise UserError("a table ends, --follow does not: use -o compact")
        zone = datetime.now(UTC).astimezone().tzinfo or UTC
        style = flows.Style(time_format=time_format, zone=zone, node=print_node_name)
        show(ctx, kind, window, output, style)

    return command
