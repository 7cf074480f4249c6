"""`cilia observe`: flows and events, with the flags `hubble observe` users type."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from google.protobuf import json_format

from cilia.cli import filter_flags, flows
from cilia.cli.completing_flows import fields
from cilia.cli.errors import UserError
from cilia.cli.flow_printing import JSON_FORMS, TABLES, Colour, Form, Printer, wants_colour
from cilia.cli.hubble_server import ServerGroup, connected, server_options
from cilia.cli.observe_events import add_to
from cilia.cli.request_filters import Allowlist, Denylist, set_filters
from cilia.cli.sections import Ordered
from cilia.cli.windows import Window, flag, window_options
from cilia.proto.observer import observer_pb2

VISIBLE = (
    *("time", "node_name", "uuid", "verdict", "drop_reason", "drop_reason_desc", "event_type", "Summary"),
    *("IP", "l4", "l7", "source", "source_names", "source_service", "is_reply", "traffic_direction"),
    *("destination", "destination_names", "destination_service", "policy_match_type"),
    *("trace_observation_point", "sock_xlate_point"),
    *("egress_allowed_by", "ingress_allowed_by", "egress_denied_by", "ingress_denied_by"),
)
"""Fields of a flow that the forms for people show."""

PRINTING, OTHER = "Printing", "Other"


class ObserveGroup(Ordered, ServerGroup):
    """Shows flows itself; `flows` as its first word says the same."""

    before = staticmethod(window_options)
    more = staticmethod(lambda: [*filter_flags.filter_options(), *server_options()])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Leave out the word `flows`."""
        return super().parse_args(ctx, args[1:] if args[:1] == ["flows"] else args)


Output = Annotated[Form, flag(PRINTING, "--output -o", "How flows are printed.", show_default=True)]
AsJson = Annotated[bool, flag(PRINTING, "--json -j", "What -o json was called once.", hidden=True)]
Times = Annotated[
    flows.TimeFormat, flag(PRINTING, "--time-format", "How times are printed.", show_default=True)
]
Color = Annotated[Colour, flag(PRINTING, "--color", "When to colour.", show_default=True)]
Names = Annotated[
    bool, flag(PRINTING, "--ip-translation/--no-ip-translation", "Names in place of addresses.")
]
Numeric = Annotated[bool, flag(PRINTING, "--numeric", "Numbers only, no names.")]
Rules = Annotated[
    bool, flag(PRINTING, "--print-policy-names/--no-print-policy-names", "The rule that decided.")
]
Node = Annotated[bool, flag(PRINTING, "--print-node-name", "The node that saw it.")]
FieldMask = Annotated[
    list[str] | None,
    flag(
        PRINTING,
        "--field-mask --experimental-field-mask",
        "Only these fields of flows, such as source.pod_name,verdict; with -o json.",
        autocompletion=fields,
    ),
]
DefaultMasks = Annotated[
    bool,
    flag(
        PRINTING,
        "--use-default-field-masks --experimental-use-default-field-masks",
        "Ask only for what is printed.",
    ),
]
RawFilters = Annotated[bool, flag(OTHER, "--print-raw-filters", "Print the filters and stop.")]
InputFile = Annotated[str, flag(OTHER, "--input-file", "Read JSON lines from a file (- for standard input).")]
Silent = Annotated[
    bool, flag(OTHER, "--silent-errors -s", "Don't tell what is missing, nor of nodes that fail.")
]

observe = typer.Typer(
    cls=ObserveGroup,
    invoke_without_command=True,
    add_completion=False,
    suggest_commands=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@observe.callback()
def show_flows(
    ctx: typer.Context,
    allowlist: Allowlist = None,
    denylist: Denylist = None,
    output: Output = Form.COMPACT,
    as_json: AsJson = False,
    time_format: Times = flows.TimeFormat.STAMP,
    color: Color = Colour.AUTO,
    ip_translation: Names = True,
    numeric: Numeric = False,
    print_policy_names: Rules = True,
    print_node_name: Node = False,
    field_mask: FieldMask = None,
    default_masks: DefaultMasks = False,
    print_raw_filters: RawFilters = False,
    input_file: InputFile = "",
    silent: Silent = False,
) -> None:
    """Show flows: who talked to whom, what became of it, and which rule decided.

    \b
    Examples:
      cilia observe --follow
      cilia observe --verdict DROPPED --last 5
      cilia observe --verdict DROPPED --last 1 -o dict      shows the UUID for cilia policy explain
      cilia observe --verdict AUDIT --to-pod shop/web
      cilia observe -n shop --not --protocol udp --since 5m -o json > flows.json
      cilia observe --input-file flows.json --to-port 443
      cilia observe agent-events --follow
    """
    if ctx.invoked_subcommand:
        return
    output = Form.JSON if as_json else output
    now = datetime.now(UTC).astimezone()
    request = observer_pb2.GetFlowsRequest()
    set_filters(request, ctx, allowlist or (), denylist or ())
    window = Window.typed(ctx)
    window.put(request, now, whole=bool(input_file))
    if print_raw_filters:
        print_filters("allowlist", request.whitelist)
        print_filters("denylist", request.blacklist)
        return
    set_mask(request, field_mask or (), output, default_masks)
    if window.follow and output in TABLES:
        raise UserError("a table ends, --follow does not: use -o compact")
    style = flows.Style(
        colour=wants_colour(color),
        time_format=time_format,
        zone=now.tzinfo or UTC,
        names=ip_translation,
        numeric=numeric,
        rules=print_policy_names,
        node=print_node_name,
    )
    printer = Printer(output, style, follow=window.follow, silent=silent)
    with answer(ctx, request, input_file) as responses:
        printer.print_all(responses)


@contextmanager
def answer(
    ctx: typer.Context, request: observer_pb2.GetFlowsRequest, input_file: str
) -> Iterator[Iterable[observer_pb2.GetFlowsResponse]]:
    """From a file of flows, or from the server where no file is named."""
    if input_file:
        from cilia.cli import flow_files

        yield flow_files.answer(input_file, request)
        return
    with connected(ctx) as client:
        yield client.get_flows(request)


def set_mask(request: observer_pb2.GetFlowsRequest, masks: Iterable[str], form: Form, default: bool) -> None:
    """Fields a client wants. Raises UserError."""
    paths = [path.strip() for text in masks for path in text.split(",") if path.strip()]
    if paths and form not in JSON_FORMS:
        raise UserError(f"-o {form} shows fields of its own choice: use --field-mask with -o json")
    if default and form not in JSON_FORMS:
        paths = list(VISIBLE)
    request.field_mask.paths.extend(paths)


def print_filters(title: str, filters: Iterable[Any]) -> None:
    """Filters as JSON in a YAML list, as other tools take them."""
    lines = [
        json_format.MessageToJson(each, preserving_proto_field_name=True, indent=None) for each in filters
    ]
    if lines:
        print(f"{title}:")
        for line in lines:
            print(f"    - '{line.replace(chr(39), chr(39) * 2)}'")


add_to(observe)

if __name__ == "__main__":
    from cilia.cli.main import run

    sys.exit(run(observe))
