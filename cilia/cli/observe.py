"""`cilia observe`: the flows of a node, with the flags `hubble observe` users type."""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from typer.core import TyperCommand

from cilia.cli import flow_filters, flows
from cilia.cli.flow_filters import FlagError, Given
from cilia.cli.flow_frames import DEFAULT_SERVER, SERVER_VARIABLES, server_of
from cilia.cli.moments import parse_moment
from cilia.cli.options import UserError
from cilia.cli.output import printable_json, printable_lines
from cilia.hubble.client import Client
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.proto.observer import observer_pb2

DEFAULT_NUMBER = 20
EVERYTHING = 2**63 - 1

Response = observer_pb2.GetFlowsResponse


class Form(enum.StrEnum):
    """How flows are printed."""

    COMPACT = "compact"
    DICT = "dict"
    JSON = "json"
    JSONPB = "jsonpb"
    TABLE = "table"


class Colour(enum.StrEnum):
    """When to colour."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class OrderedCommand(TyperCommand):
    """Remembers in which order flags were typed: `--not` speaks of the next one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta["order"] = [parameter.name for parameter in order]
        return super().parse_args(ctx, args)


def given(order: Iterable[str], values: dict[str, Any]) -> Iterator[Given]:
    """Flags about filters in the order they were typed. Raises FlagError for a `--not` without a flag."""
    left = {
        name: iter(value if isinstance(value, list | tuple) else [value]) for name, value in values.items()
    }
    negated = False
    for name in order:
        if name == "not_":
            negated = True
        elif name in left:
            value = next(left[name], None)
            if value is not None:
                yield Given(name, value, negated)
            negated = False
    if negated:
        raise FlagError("--not stands before the flag it negates, such as --not --namespace kube-system")


def filter_flag(text: str, *names: str) -> Any:
    """A repeatable flag that makes a filter."""
    return typer.Option(*names, help=text, show_default=False, rich_help_panel="Filters")


Texts = list[str] | None

observe = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@observe.command("observe", cls=OrderedCommand)
def show_flows(
    ctx: typer.Context,
    last: Annotated[int | None, typer.Option("--last", min=0, help="The newest N flows (20).")] = None,
    first: Annotated[int | None, typer.Option("--first", min=0, help="The oldest N flows.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All flows the node still has.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as flows come.")] = False,
    since: Annotated[str, typer.Option(help="Since 5m, 14:05, yesterday, 2026-11-23T04:20:00Z.")] = "",
    until: Annotated[str, typer.Option(help="Until then; as --since.")] = "",
    not_: Annotated[bool, typer.Option("--not", help="Turn the next filter around.")] = False,
    verdict: Annotated[Texts, filter_flag("FORWARDED, DROPPED, AUDIT, ...", "--verdict")] = None,
    pod: Annotated[Texts, filter_flag("[NAMESPACE/]POD prefix, either side.", "--pod")] = None,
    from_pod: Annotated[Texts, filter_flag("The same, of the source.", "--from-pod")] = None,
    to_pod: Annotated[Texts, filter_flag("The same, of the destination.", "--to-pod")] = None,
    service: Annotated[
        Texts, filter_flag("[NAMESPACE/]SERVICE prefix that was asked for.", "--service")
    ] = None,
    from_service: Annotated[Texts, filter_flag("The same, in what it answers.", "--from-service")] = None,
    to_service: Annotated[Texts, filter_flag("The same, in what it is asked.", "--to-service")] = None,
    namespace: Annotated[Texts, filter_flag("Namespace, either side.", "--namespace", "-n")] = None,
    from_namespace: Annotated[Texts, filter_flag("Of the source.", "--from-namespace")] = None,
    to_namespace: Annotated[Texts, filter_flag("Of the destination.", "--to-namespace")] = None,
    ip: Annotated[Texts, filter_flag("Address or CIDR, either side.", "--ip")] = None,
    from_ip: Annotated[Texts, filter_flag("Of the source.", "--from-ip")] = None,
    to_ip: Annotated[Texts, filter_flag("Of the destination.", "--to-ip")] = None,
    ipv4: Annotated[bool, filter_flag("IPv4 only.", "--ipv4", "-4")] = False,
    ipv6: Annotated[bool, filter_flag("IPv6 only.", "--ipv6", "-6")] = False,
    label: Annotated[Texts, filter_flag("Label selector, either side.", "--label", "-l")] = None,
    from_label: Annotated[Texts, filter_flag("Of the source.", "--from-label")] = None,
    to_label: Annotated[Texts, filter_flag("Of the destination.", "--to-label")] = None,
    port: Annotated[Texts, filter_flag("Port or range, either side.", "--port")] = None,
    from_port: Annotated[Texts, filter_flag("Of the source.", "--from-port")] = None,
    to_port: Annotated[Texts, filter_flag("Of the destination.", "--to-port")] = None,
    protocol: Annotated[Texts, filter_flag("tcp, udp, icmp, icmpv4, icmpv6, sctp.", "--protocol")] = None,
    identity: Annotated[Texts, filter_flag("Number or reserved name, either side.", "--identity")] = None,
    from_identity: Annotated[Texts, filter_flag("Of the source.", "--from-identity")] = None,
    to_identity: Annotated[Texts, filter_flag("Of the destination.", "--to-identity")] = None,
    workload: Annotated[Texts, filter_flag("[KIND/]NAME, either side.", "--workload")] = None,
    from_workload: Annotated[Texts, filter_flag("Of the source.", "--from-workload")] = None,
    to_workload: Annotated[Texts, filter_flag("Of the destination.", "--to-workload")] = None,
    fqdn: Annotated[Texts, filter_flag("DNS name, * for anything, either side.", "--fqdn")] = None,
    from_fqdn: Annotated[Texts, filter_flag("Of the source.", "--from-fqdn")] = None,
    to_fqdn: Annotated[Texts, filter_flag("Of the destination.", "--to-fqdn")] = None,
    cluster: Annotated[Texts, filter_flag("Cluster name, either side.", "--cluster")] = None,
    type_: Annotated[
        Texts,
        filter_flag(
            "drop, trace, policy-verdict, trace-sock; with a sub-type: trace:to-endpoint.", "--type", "-t"
        ),
    ] = None,
    traffic_direction: Annotated[Texts, filter_flag("ingress or egress.", "--traffic-direction")] = None,
    drop_reason_desc: Annotated[Texts, filter_flag("Such as POLICY_DENIED.", "--drop-reason-desc")] = None,
    tcp_flags: Annotated[Texts, filter_flag("Such as SYN,ACK: all set.", "--tcp-flags")] = None,
    node_name: Annotated[Texts, filter_flag("[CLUSTER/]NODE, * for anything.", "--node-name")] = None,
    node_label: Annotated[Texts, filter_flag("Label selector over nodes.", "--node-label")] = None,
    interface: Annotated[Texts, filter_flag("Name or index.", "--interface")] = None,
    uuid: Annotated[Texts, filter_flag("One flow.", "--uuid")] = None,
    reply: Annotated[bool | None, filter_flag("Replies only, or none.", "--reply/--no-reply")] = None,
    encrypted: Annotated[
        bool | None, filter_flag("Encrypted only, or plain only.", "--encrypted/--unencrypted")
    ] = None,
    http_method: Annotated[Texts, filter_flag("HTTP method.", "--http-method")] = None,
    http_path: Annotated[Texts, filter_flag("HTTP path.", "--http-path")] = None,
    http_status: Annotated[Texts, filter_flag("HTTP status.", "--http-status")] = None,
    dns_query: Annotated[Texts, filter_flag("DNS query.", "--dns-query")] = None,
    ip_translation: Annotated[
        bool, typer.Option("--ip-translation/--no-ip-translation", help="Names in place of addresses.")
    ] = True,
    numeric: Annotated[bool, typer.Option("--numeric", help="Numbers only, no names.")] = False,
    print_policy_names: Annotated[
        bool, typer.Option("--print-policy-names/--no-print-policy-names", help="The rule that decided.")
    ] = True,
    print_node_name: Annotated[bool, typer.Option("--print-node-name", help="The node that saw it.")] = False,
    time_format: Annotated[
        flows.TimeFormat, typer.Option("--time-format", help="How times are printed.")
    ] = flows.TimeFormat.STAMP,
    color: Annotated[Colour, typer.Option("--color", help="When to colour.")] = Colour.AUTO,
    output: Annotated[Form, typer.Option("--output", "-o", help="How flows are printed.")] = Form.COMPACT,
    print_raw_filters: Annotated[
        bool, typer.Option("--print-raw-filters", help="Print the filters and stop.")
    ] = False,
    input_file: Annotated[
        str, typer.Option("--input-file", help="Read JSON lines from a file (- for standard input).")
    ] = "",
    server: Annotated[
        str,
        typer.Option("--server", help=f"unix:///path or host:port ({DEFAULT_SERVER}).", show_default=False),
    ] = "",
) -> None:
    """Show flows: who talked to whom, what became of it, and which rule decided.

    \b
    Examples:
      cilia observe --follow
      cilia observe --verdict DROPPED --last 5
      cilia observe --verdict DROPPED --last 1 -o dict      shows the UUID for cilia policy explain
      cilia observe --verdict AUDIT --to-pod shop/web
    """
    typed = {name: value for name, value in ctx.params.items() if is_filter(name)}
    now = datetime.now(UTC).astimezone()
    try:
        allow, deny = flow_filters.build(given(ctx.meta["order"], typed))
        request = observer_pb2.GetFlowsRequest(whitelist=allow, blacklist=deny, follow=follow)
        if since:
            request.since.FromDatetime(parse_moment(since, now))
        if until:
            request.until.FromDatetime(parse_moment(until, now))
    except ValueError as error:
        raise UserError(str(error)) from None
    if print_raw_filters:
        print_filters("allowlist", allow)
        print_filters("denylist", deny)
        return
    set_number(request, last, first, all_)
    style = flows.Style(
        colour=color is Colour.ALWAYS or (color is Colour.AUTO and wants_colour()),
        time_format=time_format,
        zone=now.tzinfo or UTC,
        names=ip_translation,
        numeric=numeric,
        rules=print_policy_names,
        node=print_node_name,
    )
    if input_file:
        if allow or deny:
            raise UserError("filters need a server: leave them out with --input-file, or filter with jq")
        responses = in_window(read_file(input_file), request)
        print_responses(responses, output, style)
        return
    try:
        with Client(server or server_of(os.environ)) as client:
            print_responses(client.get_flows(request), output, style)
    except RpcError as error:
        way = f" Name another server with --server or ${SERVER_VARIABLES[1]}."
        raise UserError(error.sentence + (way if error.code is Code.UNAVAILABLE else "")) from None


def is_filter(name: str) -> bool:
    """Whether a parameter makes a filter."""
    bare = name.removeprefix("from_").removeprefix("to_")
    return bare in flow_filters.SIDED or name in flow_filters.PLAIN


def set_number(
    request: observer_pb2.GetFlowsRequest, last: int | None, first: int | None, all_: bool
) -> None:
    """How many flows, and from which end. Raises UserError for flags that exclude each other."""
    if sum((last is not None, first is not None, all_)) > 1:
        raise UserError("--last, --first and --all exclude each other: keep one")
    if first is not None and request.follow:
        raise UserError("--first and --follow exclude each other: keep one")
    limited = request.follow or request.HasField("since") or request.HasField("until")
    if all_:
        request.number = EVERYTHING
    elif first is not None:
        request.first, request.number = True, first
    elif last is not None:
        request.number = last
    elif not limited:
        request.number = DEFAULT_NUMBER


def wants_colour() -> bool:
    """Whether standard output is a terminal whose user has nothing against colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def print_filters(title: str, filters: Iterable[Any]) -> None:
    """Filters as JSON in a YAML list, as other tools take them."""
    lines = [
        json_format.MessageToJson(each, preserving_proto_field_name=True, indent=None) for each in filters
    ]
    if lines:
        print(f"{title}:")
        for line in lines:
            print(f"    - '{line}'")


def read_file(name: str) -> Iterator[Response]:
    """Responses of a file of JSON lines. Raises UserError."""
    try:
        with open(0 if name == "-" else name, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield read_line(line, f"{name}, line {number}")
    except OSError as error:
        raise UserError(f"can't read {name}: {error.strerror}") from None


def read_line(line: str, where: str) -> Response:
    """A GetFlowsResponse, or a flow alone, as JSON. Raises UserError."""
    try:
        response = json_format.Parse(line, Response(), ignore_unknown_fields=True)
        if not response.WhichOneof("response_types"):
            json_format.Parse(line, response.flow, ignore_unknown_fields=True)
            response.time.CopyFrom(response.flow.time)
            response.node_name = response.flow.node_name
    except json_format.ParseError as error:
        raise UserError(f"{where} is not a flow: {error}") from None
    return response


def in_window(responses: Iterable[Response], request: observer_pb2.GetFlowsRequest) -> list[Response]:
    """What a server would answer without filters."""
    found = [
        response
        for response in responses
        if (not request.HasField("since") or response.time.ToNanoseconds() >= request.since.ToNanoseconds())
        and (not request.HasField("until") or response.time.ToNanoseconds() <= request.until.ToNanoseconds())
    ]
    if not request.number:
        return found
    return found[: request.number] if request.first else found[-request.number :]


def print_responses(responses: Iterable[Response], form: Form, style: flows.Style) -> None:
    """Print everything, and at the end on standard error how complete it was."""
    counted = flows.Completeness(style)
    rows = []
    try:
        for response in responses:
            counted.add(response)
            if form is Form.TABLE and response.HasField("flow"):
                rows.append(flows.table_row(response, style))
            else:
                print_one(response, form, style)
    except KeyboardInterrupt:
        pass
    if form is Form.TABLE:
        print(printable_lines("\n".join(flows.aligned(rows))))
    if form not in (Form.JSON, Form.JSONPB):
        sys.stdout.flush()
        print(counted.sentence(), file=sys.stderr)


def print_one(response: Response, form: Form, style: flows.Style) -> None:
    """Print one response as it comes."""
    if form in (Form.JSON, Form.JSONPB):
        print(printable_json(flows.to_json(response)))
    elif response.HasField("flow"):
        text = flows.LINES[form.value](response, style)
        print(printable_lines(text) + ("\n" if form is Form.DICT else ""))
    elif response.HasField("lost_events"):
        print(printable_lines(flows.gap_text(response, style)), file=sys.stderr)
    elif response.HasField("node_status"):
        print(printable_lines(flows.node_text(response, style)), file=sys.stderr)
    # A pipe's reader wants flows as they come, too.
    sys.stdout.flush()


if __name__ == "__main__":
    from cilia.cli.main import run

    sys.exit(run(observe))
