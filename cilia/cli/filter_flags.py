"""The flags of `cilia observe` that make filters; what they mean is in flow_filters.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import typer
from typer.core import TyperOption

from cilia.cli import completing_flows as offer
from cilia.cli.errors import UserError
from cilia.cli.flow_filters import FlagError, Given
from cilia.cli.sections import Ordered, option

META = "cilia.filters"
PANEL = "Filters (of one flag any value, of different flags all)"


class Flag(NamedTuple):
    """One flag; of two sides, three."""

    name: str
    text: str
    short: str = ""
    complete: Callable[..., Any] | None = None
    switch: bool = False


SIDED = (
    Flag("pod", "[NAMESPACE/]POD prefix; default is the namespace unless told", complete=offer.pods),
    Flag("namespace", "Namespace", "-n", offer.namespaces),
    Flag("all-namespaces", "Pods and services in any namespace", "-A", switch=True),
    Flag("service", "[NAMESPACE/]SERVICE prefix that was asked for"),
    Flag("workload", "[KIND/]NAME of the pods' owner"),
    Flag("label", "Label selector", "-l"),
    Flag("identity", "Number or reserved name", complete=offer.identities),
    Flag("ip", "Address or CIDR"),
    Flag("port", "Port or range, such as 8000-8080"),
    Flag("fqdn", "DNS name, * for anything"),
    Flag("cluster", "Cluster name"),
)
PLAIN = (
    Flag("verdict", "FORWARDED, DROPPED, AUDIT, REDIRECTED, ERROR, TRACED, TRANSLATED.", "", offer.verdicts),
    Flag("drop-reason-desc", "Such as POLICY_DENIED.", complete=offer.drop_reasons),
    Flag(
        "type",
        "drop, trace, policy-verdict, trace-sock, l7; with a sub-type: trace:to-endpoint.",
        "-t",
        offer.types,
    ),
    Flag("traffic-direction", "ingress or egress.", complete=offer.directions),
    Flag("protocol", "tcp, udp, icmp, icmpv4, icmpv6, sctp, dns, http, kafka.", complete=offer.protocols),
    Flag("tcp-flags", "Such as SYN,ACK: all set.", complete=offer.tcp_flags),
    Flag("ipv4", "IPv4 only.", "-4", switch=True),
    Flag("ipv6", "IPv6 only.", "-6", switch=True),
    Flag("ip-version", "v4, v6 or none.", complete=offer.ip_versions),
    Flag("snat-ip", "Address or CIDR that the source was translated to."),
    Flag("node-name", "[CLUSTER/]NODE that saw it, * for anything.", complete=offer.nodes),
    Flag("node-label", "Label selector over nodes."),
    Flag("interface", "Name or index."),
    Flag("uuid", "One flow."),
    Flag("http-method", "HTTP method.", complete=offer.http_methods),
    Flag("http-path", "Regular expression for the HTTP path."),
    Flag("http-url", "Regular expression for the HTTP URL."),
    Flag("http-status", "404, or 4+ for all of its class."),
    Flag("http-header", "NAME:VALUE."),
    Flag("dns-query", "Regular expression for the DNS query."),
    Flag("trace-id", "Trace ID of an application."),
    Flag("ip-trace-id", "Number from an IP option."),
    Flag("cel-expression", "CEL over _flow, such as: _flow.l4.TCP.destination_port > 1024u"),
)
CHOICES = {
    "--reply/--no-reply": "Replies only, or none.",
    "--encrypted/--unencrypted": "Encrypted only, or plain only.",
}
PREFIXES = {"": ", either side.", "from-": ", of the source.", "to-": ", of the destination."}


def keep(ctx: typer.Context, parameter: Any, value: Any) -> None:
    """Put the values where `given` finds them."""
    ctx.meta.setdefault(META, {})[parameter.name] = value


def filter_options() -> list[TyperOption]:
    """All of them."""
    options = [_not()]
    for flag in SIDED:
        for prefix, side in PREFIXES.items():
            text = flag.text + side if not prefix else f"The same{side}"
            options.append(_option(flag, prefix + flag.name, "" if prefix else flag.short, text))
    options += [_option(flag, flag.name, flag.short, flag.text) for flag in PLAIN]
    for names, text in CHOICES.items():
        options.append(option(PANEL, [names], text, keep=keep))
    return options


def _not() -> TyperOption:
    text = "Turn the next filter around; repeat it for each."
    return option(PANEL, ["--not", "not_"], text, keep=keep, switch=True)


def _option(flag: Flag, name: str, short: str, text: str) -> TyperOption:
    declarations = [f"--{name}", *([short] if short else []), *(["type_"] if name == "type" else [])]
    return option(
        PANEL,
        declarations,
        text,
        keep=keep,
        multiple=not flag.switch,
        switch=flag.switch,
        complete=flag.complete,
    )


def typed(ctx: typer.Context) -> Iterator[Given]:
    """The filters of a command line. Raises UserError for a `--not` without a flag."""
    try:
        yield from given(ctx.meta.get(Ordered.ORDER, ()), ctx.meta.get(META, {}))
    except FlagError as error:
        raise UserError(str(error)) from None


def given(order: Iterable[str], values: dict[str, Any]) -> Iterator[Given]:
    """Flags about filters in the order they were typed. Raises FlagError for a `--not` without a flag."""
    left = {
        name: iter(value if isinstance(value, list | tuple) else [value]) for name, value in values.items()
    }
    negated = False
    for name in order:
        if name == "not_":
            if negated:
                raise FlagError("--not twice in a row means nothing: leave out one")
            negated = True
        elif name in left:
            value = next(left[name], None)
            if value is not None:
                yield Given(name, value, negated)
            negated = False
    if negated:
        raise FlagError("--not stands before the flag it negates, such as --not --namespace kube-system")
