"""`cilia completion SHELL`: the script that makes a shell complete our commands."""

from __future__ import annotations

import enum
from typing import Annotated

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]


class Shell(enum.StrEnum):
    """Shells we have a script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="The shell.")]) -> None:
    """Print a completion script; for bash: `source <(cilia completion bash)`."""
    typer.echo(get_completion_script(prog_name="cilia", complete_var="_CILIA_COMPLETE", shell=shell.value))
