"""`cilia status`: how this node is."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from cilia.api.client import AgentClient, AgentError
from cilia.api.types import Component, ExporterStatus, Health, HistoryStatus, StatusResponse
from cilia.cli.options import AgentSocket, Output, UserError, connect
from cilia.cli.output import Format, cell, console, health, print_data, printable

POLL_SECONDS = 0.5
FULL_AT = 0.8
"""From which share on a kernel map is worth a line."""


def status(
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the node is well.")] = False,
    wait_duration: Annotated[
        float, typer.Option("--wait-duration", min=0, help="Seconds to wait at most.")
    ] = 60.0,
    brief: Annotated[bool, typer.Option("--brief", help="One line: OK, or what is wrong.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Every controller and map.")] = False,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Show how this node is. Exit code 1 when it isn't well."""
    client = connect(socket, timeout=10.0)
    answer = await_ready(client, wait_duration) if wait else client.status()
    if output is not Format.TABLE:
        print_data(answer, output)
    elif brief:
        typer.echo(printable(brief_line(answer.agent)))
    else:
        print_status(answer, verbose=verbose)
    if not answer.ready:
        raise typer.Exit(1)


def brief_line(agent: Component) -> str:
    """OK, or what is wrong."""
    return "OK" if agent.state is Health.OK else f"{agent.state}: {agent.msg}"


def await_ready(client: AgentClient, seconds: float) -> StatusResponse:
    """Ask until the node is well. Raises `UserError` with the last reason after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            answer = client.status()
            if answer.ready:
                return answer
            reason = brief_line(answer.agent)
        except AgentError as error:
            reason = str(error)
        if time.monotonic() >= deadline:
            raise UserError(f"The node isn't well after {seconds:g} seconds: {reason}")
        time.sleep(POLL_SECONDS)


def print_status(answer: StatusResponse, *, verbose: bool = False) -> None:
    """The whole page."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines(answer):
        table.add_row(name, cell(value) if isinstance(value, str) else value)
    out = console()
    out.print(table)
    for title, rows in details(answer, verbose=verbose):
        out.print(f"\n[bold]{title}[/bold]")
        for row in rows:
            out.print(f"  {printable(row)}", markup=False)


def lines(answer: StatusResponse) -> list[tuple[str, Any]]:
    """Component and text, in the order of the page."""
    hubble = answer.hubble
    flows = f"{hubble.current_flows}/{hubble.max_flows} flows"
    history = f"{hubble.seen_flows} seen, {hubble.lost_events} lost"
    told = hubble.msg if hubble.state is Health.DISABLED else _join(flows, history, hubble.msg)
    return [
        (
            "Node",
            f"{answer.node or '-'}, Cilia {answer.version or '-'}, up {duration(answer.uptime_seconds)}",
        ),
        ("Agent", _component(answer.agent)),
        ("Kubernetes", _component(answer.kubernetes)),
        ("Operator", _component(answer.operator)),
        ("Data path", _component(answer.datapath)),
        ("Hubble", health(hubble.state, told)),
        ("CNI", _component(answer.cni_file)),
        ("IPAM", _ipam(answer)),
        ("Policy", _policy(answer)),
        ("Services", _services(answer)),
        *([("NAT", _component(answer.nat))] if answer.nat.state is not Health.OK else []),
        ("Kernel", _component(answer.kernel)),
        ("Endpoints", _endpoints(answer.endpoints)),
        ("Identities", str(answer.identity_count)),
        ("Nodes", str(answer.node_count)),
        ("Controllers", _controllers(answer)),
    ]


def details(answer: StatusResponse, *, verbose: bool) -> list[tuple[str, list[str]]]:
    """What is shown below the page: failing controllers and full maps, or all of them."""
    controllers = [
        f"{c.name}: {c.success_count} runs, {c.failure_count} failures"
        + (f", last: {c.last_failure_msg}" if c.last_failure_msg else "")
        for c in answer.controllers
        if verbose or c.consecutive_failure_count
    ]
    maps = [
        f"{m.name}: {m.used} of {m.size} ({m.used / m.size:.0%})"
        for m in answer.maps
        if m.size and (verbose or m.used >= FULL_AT * m.size)
    ]
    exporters = [_exporter(each) for each in answer.hubble.exporters if verbose or each.problem]
    history = answer.hubble.history
    sealed = [_history(history)] if history is not None and (verbose or history.problem) else []
    titles = ("Controllers", "Maps") if verbose else ("Failing controllers", "Nearly full maps")
    found = zip(
        (*titles, "Exporters of flows", "History of flows"),
        (controllers, maps, exporters, sealed),
        strict=True,
    )
    return [(title, rows) for title, rows in found if rows]


def _exporter(exporter: ExporterStatus) -> str:
    counts = f"{exporter.lines} lines, {exporter.lost_events} events lost, {exporter.waiting} waiting"
    problem = f": {exporter.problem}" if exporter.problem else ""
    return f"{exporter.name} ({exporter.path}): {exporter.state}, {counts}{problem}"


def _history(history: HistoryStatus) -> str:
    counts = f"{history.flows} flows in {history.files} files ({history.bytes >> 20} MiB)"
    problem = f": {history.problem}" if history.problem else ""
    return f"{counts}, {history.lost_flows} lost{problem}"


def duration(seconds: float) -> str:
    """Such as 3d4h, 2h5m, 1m9s."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m{whole % 60}s" if minutes else f"{whole}s"


def _component(component: Component) -> Any:
    return health(component.state, component.msg)


def _policy(answer: StatusResponse) -> Any:
    """In a warning's colour where denials are not enforced or a policy is refused."""
    count = _count(answer.policy_count, "policy", "policies")
    told = _join(f"revision {answer.policy_revision}, {count}", answer.policy.msg)
    return told if answer.policy.state is Health.OK else health(answer.policy.state, told)


def _services(answer: StatusResponse) -> Any:
    if answer.services.state is Health.DISABLED:
        return _component(answer.services)
    told = _join(_count(answer.service_count, "frontend", "frontends"), answer.services.msg)
    return told if answer.services.state is Health.OK else health(answer.services.state, told)


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _ipam(answer: StatusResponse) -> str:
    ipam = answer.ipam
    families = [
        f"{name} {used}/{total}"
        for name, used, total in (
            ("IPv4", ipam.ipv4_used, ipam.ipv4_total),
            ("IPv6", ipam.ipv6_used, ipam.ipv6_total),
        )
        if total
    ]
    return f"{_join(*families) or 'no addresses'} ({ipam.mode})"


def _endpoints(states: dict[str, int]) -> str:
    ready = states.get("ready", 0)
    others = [f"{number} {state}" for state, number in sorted(states.items()) if state != "ready"]
    return _join(f"{ready}/{sum(states.values())} ready", *others)


def _controllers(answer: StatusResponse) -> str:
    failing = sum(1 for c in answer.controllers if c.consecutive_failure_count)
    return f"{len(answer.controllers) - failing}/{len(answer.controllers)} healthy"
