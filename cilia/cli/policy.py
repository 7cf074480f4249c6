"""`cilia policy ...`: policies, what became of them, and the rules behind verdicts."""

from __future__ import annotations

from typing import Annotated

import typer

from cilia.cli.endpoint import rule_text
from cilia.cli.options import AgentSocket, Output, UserError, connect, group
from cilia.cli.output import Format, print_json, print_table

app = group("Policies as this node sees them.")


@app.command("get")
def get_policies(output: Output = Format.TABLE, socket: AgentSocket = None) -> None:
    """List all policies, whether each is enforced, and why not."""
    policies = connect(socket).policies()
    if output is Format.JSON:
        return print_json(policies)
    typer.echo(f"Revision {policies.revision}, enforced by all endpoints: {policies.realized}")
    return print_table(
        ("KIND", "POLICY", "STATE", "PROBLEMS"),
        (
            (
                p.kind,
                f"{p.namespace}/{p.name}" if p.namespace else p.name,
                p.state,
                tuple(f"{problem.path}: {problem.sentence}" for problem in p.problems),
            )
            for p in policies.policies
        ),
        empty="No policies.",
    )


@app.command("wait")
def wait_policy(
    revision: Annotated[
        int | None, typer.Argument(min=0, help="The revision; the newest computed when left out.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, max=300, help="Seconds to wait at most.")] = 60.0,
    socket: AgentSocket = None,
) -> None:
    """Wait until all endpoints of this node enforce a policy revision."""
    client = connect(socket)
    wanted = client.policies().revision if revision is None else revision
    answer = client.wait_policy(wanted, timeout)
    if not answer.reached:
        raise UserError(
            f"After {timeout:g} seconds revision {answer.realized} is enforced and {wanted} is not; "
            "`cilia status` shows what holds it up."
        )
    typer.echo(f"Revision {answer.realized} is enforced.")


@app.command("rule")
def show_rule(
    cookie: Annotated[int, typer.Argument(min=0, help="A rule cookie, as events carry it.")],
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """Show the rules a cookie stands for."""
    answer = connect(socket).cookie(cookie)
    if output is Format.JSON:
        return print_json(answer)
    kind = "the default verdict; these policies isolate" if answer.default else "these rules"
    typer.echo(f"Cookie {answer.cookie} stands for {kind}:")
    for rule in answer.rules:
        typer.echo(f"  {rule_text(rule)} (resourceVersion {rule.resource_version})")
    return None
