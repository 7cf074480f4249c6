"""`cilia service ...`: addresses that stand for others, and who serves them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec
import typer

from cilia.api.client import AgentClient
from cilia.api.types import (
    LocalBackend,
    LocalService,
    ServiceBackend,
    ServiceList,
    ServiceProblem,
    ServiceView,
)
from cilia.cli.completing import complete_by_hand, complete_services
from cilia.cli.options import AgentSocket, Output, UserError, connect, group
from cilia.cli.output import Format, console, end, print_data, print_table
from cilia.kit.durations import parse_duration

app = group("Services: what clients may ask for, and who answers.")

SHOWN_BACKENDS = 6
"""Of one frontend, in a terminal's list."""

Reference = Annotated[
    str,
    typer.Argument(
        metavar="SERVICE",
        help="NAMESPACE/NAME, or ADDRESS:PORT[/PROTOCOL].",
        autocompletion=complete_services,
    ),
]
ByHand = Annotated[
    str,
    typer.Argument(
        metavar="FRONTEND",
        help="ADDRESS:PORT[/PROTOCOL].",
        autocompletion=complete_by_hand,
        show_default=False,
    ),
]


@app.command("list", short_help="List all services.")
def list_services(
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Only of this namespace.")] = "",
    kind: Annotated[
        str, typer.Option("--type", help="Only ClusterIP, NodePort, LoadBalancer, HostPort, ...")
    ] = "",
    idle: Annotated[bool, typer.Option("--without-backends", help="Only where nobody serves.")] = False,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """List all frontends with their backends, and what is wrong with the objects they come from.

    \b
    Examples:
      cilia service list -n shop
      cilia service list --without-backends
    """
    found = _chosen(connect(socket).services(), namespace, kind, idle=idle)
    if output is not Format.TABLE:
        return print_data(found, output)
    shown = SHOWN_BACKENDS if console().is_terminal else 1 << 30
    print_table(
        ("ID", "FRONTEND", "TYPE", "SERVICE", "BACKENDS", "STATE", "NOTE"),
        (
            (
                view.spec.id or None,
                frontend(view),
                view.spec.flags.type,
                name(view),
                tuple(few(view.spec.backend_addresses, shown)),
                view.status.state,
                view.status.error or view.status.why_none,
            )
            for view in found.services
        ),
        empty="There are no services here.",
        below=("BACKENDS", "NOTE"),
    )
    return print_problems(found.problems)


@app.command("get", short_help="Show one service.")
def get_service(reference: Reference, output: Output = Format.TABLE, socket: AgentSocket = None) -> None:
    """Show one service: each address and port, who serves clients inside and outside, what the kernel has.

    \b
    Examples:
      cilia service get shop/web
      cilia service get 10.96.0.10:53/UDP -o yaml
    """
    found = connect(socket).service(reference)
    if output is not Format.TABLE:
        return print_data(found, output)
    for number, view in enumerate(found.services):
        if number:
            typer.echo()
        print_table(("FIELD", "VALUE"), fields(view))
    return print_problems(found.problems)


@app.command("update", short_help="Write a service by hand.")
def update_service(
    at: Annotated[str, typer.Option("--frontend", help="ADDRESS:PORT[/PROTOCOL]; without protocol TCP.")],
    backends: Annotated[
        list[str] | None,
        typer.Option("--backend", "--backends", help="ADDRESS:PORT, several with commas or by repeating."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--backend-weights", help="One for each backend, with commas; 0: no new flows."),
    ] = None,
    title: Annotated[str | None, typer.Option("--name", help="What people call it.")] = None,
    algorithm: Annotated[str | None, typer.Option("--algorithm", help="random or maglev.")] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", help="How backends on other machines answer: snat or dsr.")
    ] = None,
    affinity: Annotated[
        str | None,
        typer.Option("--affinity", help="How long a client stays with its backend: 60s, 2h; 0."),
    ] = None,
    source_ranges: Annotated[
        list[str] | None,
        typer.Option("--source-range", help="Serve only these outside clients: a prefix; repeatable."),
    ] = None,
    local_only: Annotated[
        bool | None,
        typer.Option("--local-only/--no-local-only", help="Only backends here; clients keep their address."),
    ] = None,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Write a service by hand on this node, or change one: what is not told stays as it is.

    \b
    Examples:
      cilia service update --frontend 192.0.2.10:80/TCP --backend 10.0.0.5:8080,10.0.0.6:8080
      cilia service update --frontend 192.0.2.10:80 --algorithm maglev --affinity 60s
      cilia service update --frontend '[2001:db8::10]:53/UDP' --backend '[2001:db8::5]:5353' --mode dsr
    """
    client = connect(socket)
    before = _by_hand(client, at)
    if before is None and backends is None:
        raise UserError(f"There is no service by hand at {at} yet; name its backends with --backend.")
    told = {
        "backends": read_backends(backends, weights, before),
        "name": title,
        "algorithm": algorithm,
        "mode": mode,
        "affinity": None if affinity is None else seconds(affinity),
        "source_ranges": None if source_ranges is None else tuple(filter(None, source_ranges)),
        "local_only": local_only,
    }
    changes = {key: value for key, value in told.items() if value is not None}
    written = client.put_local_service(
        msgspec.structs.replace(before or LocalService(frontend=at), **changes)
    )
    if output is not Format.TABLE:
        return print_data(written, output)
    typer.echo(f"{written.frontend} is written, with {len(written.backends)} backends.")
    return None


@app.command("delete", short_help="Remove a service by hand.")
def delete_service(at: ByHand, socket: AgentSocket = None) -> None:
    """Remove a service that was written by hand. Flows it has lose their way back.

    \b
    Examples:
      cilia service delete 192.0.2.10:80/TCP
    """
    client = connect(socket)
    found = _by_hand(client, at)
    client.delete_local_service(found.frontend if found is not None else at)
    typer.echo(f"{found.frontend if found is not None else at} is removed.")


# --- to text ------------------------------------------------------------------------------------------


def frontend(view: ServiceView) -> str:
    """ADDRESS:PORT/PROTOCOL."""
    at = view.spec.frontend_address
    return end(at.ip, at.port, at.protocol)


def name(view: ServiceView) -> str:
    """Whose it is."""
    flags = view.spec.flags
    return f"{flags.namespace}/{flags.name}" if flags.namespace else flags.name


def few(backends: tuple[ServiceBackend, ...], shown: int) -> Iterator[str]:
    """The first of them, and how many more there are."""
    yield from map(backend_text, backends[:shown])
    if len(backends) > shown:
        yield f"and {len(backends) - shown} more"


def backend_text(backend: ServiceBackend) -> str:
    """`10.244.1.5:8080 (active)`; what is not usual about it is told, too."""
    words = [backend.state, f"{backend.only} clients only" if backend.only else ""]
    if backend.weight > 1:
        words.append(f"weight {backend.weight}")
    return f"{end(backend.ip, backend.port)} ({', '.join(filter(None, words))})"


def _lives(backend: ServiceBackend) -> str:
    """Where it is, for the page of one service."""
    zone = f" zone {backend.zone}" if backend.zone else ""
    where = f" on {backend.node_name}{zone}" if backend.node_name else ""
    return backend_text(backend) + (f" {backend.pod}" if backend.pod else "") + where


def fields(view: ServiceView) -> list[tuple[str, object]]:
    """The page of one frontend."""
    spec, flags, status = view.spec, view.spec.flags, view.status
    outside = spec.frontend_address.scope == "external"
    found = [
        ("frontend", frontend(view)),
        ("service", name(view)),
        ("type", flags.type),
        ("port", flags.port_name),
        ("number", spec.id or None),
        ("state", status.state),
        ("error", status.error),
        ("clients outside", "are served" if outside else "are not served"),
        ("traffic from outside", flags.ext_traffic_policy),
        ("backends", tuple(_lives(backend) for backend in spec.backend_addresses)),
        ("why nobody serves", status.why_none),
        ("without backends", flags.without_backends),
        ("algorithm", flags.algorithm),
        ("mode", flags.mode),
        ("affinity", f"{flags.affinity} seconds" if flags.affinity else ""),
        ("source ranges" if not flags.sources_denied else "sources kept out", flags.source_ranges),
        ("pods left alone", flags.skip),
        *_kernel_fields(view),
        ("problems", status.problems),
    ]
    return [(title, value) for title, value in found if value or title == "backends"]


def _kernel_fields(view: ServiceView) -> list[tuple[str, object]]:
    kernel = view.status.kernel
    if kernel is None:
        return [("kernel", "does not have it")]
    found = tuple(
        f"{one.map} {one.key}: {one.actual or 'missing'} in place of {one.intended or 'nothing'}"
        for one in kernel.differences
    )
    return [
        ("kernel", found or "as intended"),
        ("kernel, clients inside", kernel.internal),
        ("kernel, clients outside", kernel.external),
        ("kernel, flags", ", ".join(kernel.flags)),
    ]


def print_problems(problems: tuple[ServiceProblem, ...]) -> None:
    if not problems:
        return
    typer.echo("\nWhat has no effect:")
    print_table(
        ("OBJECT", "PROBLEM"),
        (
            (" ".join((one.kind, "/".join(filter(None, (one.namespace, one.name))))), sentence)
            for one in problems
            for sentence in one.problems
        ),
        below=("PROBLEM",),
    )


def _chosen(found: ServiceList, namespace: str, kind: str, *, idle: bool) -> ServiceList:
    services = tuple(
        view
        for view in found.services
        if (not namespace or view.spec.flags.namespace == namespace)
        and (not kind or view.spec.flags.type.lower() == kind.lower())
        and (not idle or view.status.why_none)
    )
    problems = tuple(one for one in found.problems if not namespace or one.namespace == namespace)
    return ServiceList(services=services, problems=problems)


# --- from text ----------------------------------------------------------------------------------------


def canonical(text: str) -> str:
    """A frontend in its one spelling; what makes no sense as it is, for the agent to refuse."""
    where, _, protocol = text.partition("/")
    host, _, port = where.rpartition(":")
    try:
        address = str(ipaddress.ip_address(host.strip("[]")))
        return end(address, int(port), (protocol or "TCP").upper())
    except ValueError:
        return text


def _by_hand(client: AgentClient, text: str) -> LocalService | None:
    wanted = canonical(text)
    return next((found for found in client.local_services() if found.frontend == wanted), None)


def read_backends(
    texts: list[str] | None, weights: str | None, before: LocalService | None
) -> tuple[LocalBackend, ...] | None:
    """Backends with their weights; None: as they are. Raises UserError."""
    if texts is None and weights is None:
        return None
    if texts is None:
        known: Iterable[LocalBackend | str] = before.backends if before is not None else ()
        found = [LocalBackend(address=one) if isinstance(one, str) else one for one in known]
    else:
        parts = [part.strip() for text in texts for part in text.split(",")]
        found = [LocalBackend(address=part) for part in parts if part]
    if weights is None:
        return tuple(found)
    numbers = [part.strip() for part in weights.split(",")]
    if len(numbers) != len(found) or not all(part.isdecimal() and part.isascii() for part in numbers):
        raise UserError(
            f"--backend-weights {weights!r} does not fit; write {len(found)} numbers with commas, "
            "one for each backend in its order."
        )
    return tuple(
        msgspec.structs.replace(one, weight=int(part)) for one, part in zip(found, numbers, strict=True)
    )


def seconds(text: str) -> int:
    """60, 60s, 5m or 2h. Raises UserError."""
    try:
        found = parse_duration(text.strip())
    except ValueError:
        found = -1.0
    if found < 0 or not found.is_integer():
        raise UserError(f"--affinity {text!r} is no time; write 60s, 5m or 2h, or 0 for none.")
    return int(found)
