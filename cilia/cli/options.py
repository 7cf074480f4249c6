"""Flags all commands share, and the way to the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cilia.api.client import SOCKET_VARIABLE, AgentClient
from cilia.cli.errors import UserError
from cilia.cli.output import Format

__all__ = ["AgentSocket", "Output", "UserError", "connect", "group"]

AgentSocket = Annotated[
    Path | None,
    typer.Option(
        "--agent-socket",
        envvar=SOCKET_VARIABLE,
        metavar="PATH",
        help="Socket of the agent's API; /run/cilia/agent.sock unless told.",
        show_default=False,
    ),
]
Output = Annotated[Format, typer.Option("--output", "-o", help="How to print.")]


def group(help_text: str) -> typer.Typer:
    """A group of commands such as `cilia endpoint ...`."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        suggest_commands=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def connect(socket: Path | None, timeout: float = 30.0) -> AgentClient:
    """A client of the agent behind `socket`, or of the one the environment or the default names."""
    return AgentClient(socket, timeout)
