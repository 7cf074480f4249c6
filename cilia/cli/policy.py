"""`cilia policy ...`: policies, what became of them, and the rules behind verdicts."""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from cilia.api.client import AgentError
from cilia.api.types import CheckRequest, Document, PolicyUsage
from cilia.cli.completing import complete_ends, complete_policies
from cilia.cli.endpoint import rule_text
from cilia.cli.options import AgentSocket, Output, UserError, connect, group
from cilia.cli.output import Format, print_data, print_table, printable
from cilia.kit.durations import parse_duration
from cilia.model.explain import CheckReport

app = group("Policies as this node sees them: what they say, why, and what a change would do.")

SUFFIXES = (".yaml", ".yml", ".json")
SHOWN_USERS = 3


@app.command("get", short_help="List policies and what became of them.")
def get_policies(
    unused: Annotated[
        bool,
        typer.Option(
            "--unused", help="List the rules in force here that no packet has used, and since when."
        ),
    ] = False,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """List all policies: whether each is enforced, how many endpoints here it selects, what is wrong with it
    and what its rules hardly mean.

    \b
    Examples:
      cilia policy get
      cilia policy get --unused
      cilia policy get -o json
    """
    client = connect(socket)
    if unused:
        return print_unused(client.policy_usage(), output)
    policies = client.policies()
    if output is not Format.TABLE:
        return print_data(policies, output)
    typer.echo(f"Revision {policies.revision}, enforced by all endpoints: {policies.realized}")
    return print_table(
        ("KIND", "POLICY", "STATE", "ENDPOINTS HERE", "PROBLEMS", "WARNINGS"),
        (
            (
                p.kind,
                f"{p.namespace}/{p.name}" if p.namespace else p.name,
                f"{p.state}, audit" if p.audit else p.state,
                p.endpoints,
                tuple(f"{problem.path}: {problem.sentence}" for problem in p.problems),
                tuple(f"{warning.path}: {warning.sentence}" for warning in p.warnings),
            )
            for p in policies.policies
        ),
        empty="No policies.",
        below=("PROBLEMS", "WARNINGS"),
    )


def print_unused(usage: PolicyUsage, output: Format) -> None:
    """The rules nobody has used."""
    rules = [row.rule for row in usage.rules if not row.hits and not row.packets]
    if output is not Format.TABLE:
        return print_data({"counted-since": usage.counted_since, "rules": rules}, output)
    typer.echo(
        f"{len(rules)} of {len(usage.rules)} rules in force here were not used since {usage.counted_since}."
    )
    if rules:
        print_table(
            ("KIND", "POLICY", "RULE"),
            ((r.kind, f"{r.namespace}/{r.name}" if r.namespace else r.name, r.path) for r in rules),
        )
    return None


@app.command("explain", short_help="Explain why a packet passes or not.")
def explain_policy(
    flow: Annotated[
        str, typer.Argument(metavar="[FLOW-UUID]", help="A flow, as `cilia observe -o json` shows it.")
    ] = "",
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="END",
            help="NAMESPACE/POD, an endpoint or identity by number, an address, labels (app=web), or an "
            "entity such as world.",
            show_default=False,
            autocompletion=complete_ends,
        ),
    ] = "",
    destination: Annotated[
        str,
        typer.Option(
            "--to", metavar="END", help="The same.", show_default=False, autocompletion=complete_ends
        ),
    ] = "",
    port: Annotated[
        str,
        typer.Option(
            help="80, 80/TCP, a port's name, icmp or icmpv6 for a ping, icmp/13, 47/ip without ports."
        ),
    ] = "80/TCP",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the text of rules that did not decide, too.")
    ] = False,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Explain why a packet passes or not: which rules decide and which don't, whom they mean, and
    for a denial the smallest change that would allow it.

    The flow's UUID is in `cilia observe -o dict`. Without one, the question is about a packet that may never
    have been sent.

    \b
    Examples:
      cilia policy explain --from shop/front --to shop/web --port 8080
      cilia policy explain --from 203.0.113.7 --to app=web --port icmp/8
      cilia policy explain 5b6c0c0e-66a5-4f0c-9b1c-0e8b7a3c9f51
    """
    if flow and (source or destination):
        raise UserError("A flow has its ends already: leave out --from and --to, or the flow.")
    if not flow and not (source and destination):
        raise UserError("Say what to explain: a flow's UUID, or --from and --to.")
    client = connect(socket)
    told = client.explain_flow(flow) if flow else client.explain(source, destination, port)
    if output is not Format.TABLE:
        return print_data(told, output)
    # Imported late: rich is for people only.
    from cilia.cli.explain import print_explanation

    return print_explanation(told, verbose=verbose)


class FailOn(enum.StrEnum):
    """What makes `check` end with status 1."""

    NEWLY_DENIED = "newly-denied"
    NEWLY_ALLOWED = "newly-allowed"
    ANY = "any"
    NONE = "none"


@app.command("check", short_help="Check what a change would do.")
def check_policies(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE...", help="YAML or JSON, directories of such, or - for standard input."),
    ] = None,
    delete: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND/NS/NAME",
            help="A policy that would be removed; repeatable.",
            show_default=False,
            autocompletion=complete_policies,
        ),
    ] = None,
    since: Annotated[str, typer.Option(help="How far back flows are compared: 90s, 5m, 1h, or 0.")] = "5m",
    fail_on: Annotated[FailOn, typer.Option(help="Which findings give exit status 1.")] = FailOn.NEWLY_DENIED,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="List all flows and pairs that change.")
    ] = False,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Check what proposed policies would change: against flows that were seen here, and against every pair
    of live workloads. Nothing is applied.

    Other objects in the files are left out. Exit status: 0 nothing found, 1 findings (see --fail-on), 2 not
    valid, or it could not be checked.

    \b
    Examples:
      cilia policy check web.yaml
      kubectl kustomize overlays/live | cilia policy check -
      cilia policy check --delete NetworkPolicy/shop/web --fail-on any
    """
    try:
        if not files and not delete:
            raise UserError("Say what to check: files, directories, - for standard input, or --delete.")
        documents = tuple(Document(name=name, text=text) for name, text in read_all(files or ()))
        request = CheckRequest(documents=documents, delete=tuple(delete or ()), since=seconds(since))
        report = connect(socket).check(request)
    except (UserError, AgentError) as error:
        typer.echo(f"cilia: {printable(str(error))}", err=True)
        raise typer.Exit(2) from None
    if output is not Format.TABLE:
        print_data(report, output)
    else:
        from cilia.cli.explain import print_report

        print_report(report, verbose=verbose)
    raise typer.Exit(exit_code(report, fail_on))


def exit_code(report: CheckReport, fail_on: FailOn) -> int:
    """What CI should make of a report."""
    if report.problems:
        return 2
    rows = report.differences
    found = {
        FailOn.NEWLY_DENIED: any(row.newly_denied for row in rows),
        FailOn.NEWLY_ALLOWED: any(row.newly_allowed for row in rows),
        FailOn.ANY: bool(rows),
        FailOn.NONE: False,
    }
    return int(found[fail_on])


def read_all(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Name and text of every file named, or in a directory named. Raises UserError."""
    for name in names:
        if name == "-":
            yield "standard input", sys.stdin.read()
            continue
        path = Path(name)
        try:
            if path.is_dir():
                for inner in sorted(path.rglob("*")):
                    hidden = any(part.startswith(".") for part in inner.relative_to(path).parts)
                    if inner.suffix in SUFFIXES and inner.is_file() and not hidden:
                        yield str(inner), inner.read_text()
            else:
                yield name, path.read_text()
        except OSError as error:
            raise UserError(f"{error.filename or name} can't be read ({error.strerror}).") from None
        except UnicodeDecodeError:
            raise UserError(f"{name} is not text; write YAML or JSON in UTF-8.") from None


def seconds(text: str) -> float:
    """`90s`, `5m`, `1h` or bare seconds. Raises UserError."""
    try:
        value = parse_duration(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86400:
        raise UserError(f"--since can't be {text!r}; write 90s, 5m or up to 24h.")
    return value


@app.command("selectors", short_help="List selectors and whom they mean.")
def list_selectors(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="List all identities and all rules.")
    ] = False,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """List the selectors and prefixes that rules in force speak of, and how many identities each means.

    \b
    Examples:
      cilia policy selectors
      cilia policy selectors -v
    """
    found = connect(socket).selectors()
    if output is not Format.TABLE:
        return print_data(found, output)
    return print_table(
        ("SELECTOR", "IDENTITIES", "RULES"),
        (
            (
                view.selector,
                tuple(map(str, view.identities)) if verbose else len(view.identities),
                capped([rule_text(rule) for rule in view.users], None if verbose else SHOWN_USERS),
            )
            for view in found
        ),
        empty="No rule in force here speaks of anybody.",
        below=("RULES",),
    )


def capped(items: list[str], limit: int | None) -> tuple[str, ...]:
    """The first items, and how many more there are."""
    if limit is None or len(items) <= limit:
        return tuple(items)
    return (*items[:limit], f"{len(items) - limit} more")


@app.command("wait", short_help="Wait until policies are enforced.")
def wait_policy(
    revision: Annotated[
        int | None, typer.Argument(min=0, help="The revision; the newest computed when left out.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, max=300, help="Seconds to wait at most.")] = 60.0,
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Wait until all endpoints of this node enforce a policy revision.

    \b
    Examples:
      cilia policy wait
      cilia policy wait 17 --timeout 10 -o json
    """
    client = connect(socket)
    wanted = client.policies().revision if revision is None else revision
    answer = client.wait_policy(wanted, timeout)
    if not answer.reached:
        raise UserError(
            f"After {timeout:g} seconds revision {answer.realized} is enforced and {wanted} is not; "
            "`cilia status` shows what holds it up."
        )
    if output is not Format.TABLE:
        return print_data(answer, output)
    typer.echo(f"Revision {answer.realized} is enforced.")
    return None


@app.command("rule", short_help="Show the rules behind a cookie.")
def show_rule(
    cookie: Annotated[int, typer.Argument(min=0, help="A rule cookie, as events carry it.")],
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Show the rules a cookie stands for: the number by which events and entries name them.

    \b
    Example:
      cilia policy rule 2886794313
    """
    answer = connect(socket).cookie(cookie)
    if output is not Format.TABLE:
        return print_data(answer, output)
    kind = "the default verdict; these policies isolate" if answer.default else "these rules"
    typer.echo(f"Cookie {answer.cookie} stands for {kind}:")
    for rule in answer.rules:
        typer.echo(printable(f"  {rule_text(rule)} (resourceVersion {rule.resource_version})"))
    return None
