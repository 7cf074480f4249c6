"""`cilia lrp ...`: what local redirect policies catch, and which pods of this node take it."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from cilia.api.types import ServiceList
from cilia.cli.options import AgentSocket, Output, connect, group
from cilia.cli.output import Format, print_data, print_table
from cilia.cli.service import backend_text, frontend, name, print_problems

app = group("Local redirects: what they catch, and which pods of this node take it.")

REDIRECT = "LocalRedirect"
POLICY = "CiliumLocalRedirectPolicy"


@app.callback()
def redirects() -> None:
    """Local redirects: what they catch, and which pods of this node take it."""


@app.command("list", short_help="List local redirects.")
def list_redirects(
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Only of this namespace.")] = "",
    output: Output = Format.TABLE,
    socket: AgentSocket = None,
) -> None:
    """List what local redirect policies catch on this node, where it goes, and what is wrong with some.

    \b
    Examples:
      cilia lrp list
      cilia lrp list -n kube-system -o json
    """
    found = _redirects(connect(socket).services(), namespace)
    if output is not Format.TABLE:
        return print_data(found, output)
    print_table(
        ("POLICY", "FRONTEND", "BACKENDS", "STATE", "NOTE"),
        (
            (
                name(view),
                frontend(view),
                tuple(map(backend_text, view.spec.backend_addresses)),
                view.status.state,
                view.status.error or view.status.why_none,
            )
            for view in found.services
        ),
        empty="Nothing is redirected here.",
        below=("BACKENDS", "NOTE"),
    )
    return print_problems(found.problems)


def _redirects(found: ServiceList, namespace: str) -> ServiceList:
    """Those of local redirect policies."""
    return msgspec.structs.replace(
        found,
        services=tuple(
            view
            for view in found.services
            if view.spec.flags.type == REDIRECT and namespace in ("", view.spec.flags.namespace)
        ),
        problems=tuple(
            problem
            for problem in found.problems
            if problem.kind == POLICY and namespace in ("", problem.namespace)
        ),
    )
