"""Subcommands that are imported when they are called: `cilia --help` must not load the whole program."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class LazyCommand(NamedTuple):
    """Where a command is: a module's Typer application, or a function of it."""

    module: str
    attribute: str
    help: str
    """Shown in the root's help; the module's own help is longer."""


class LazyGroup(TyperGroup):
    """A group whose commands are rows of a table until they are called."""

    table: ClassVar[dict[str, LazyCommand]] = {}

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # Typer suggests names for typing errors from this dictionary.
        self.commands = {
            name: TyperCommand(name, help=entry.help, short_help=entry.help, rich_markup_mode=None)
            for name, entry in self.table.items()
        }

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is called, and only now import it."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and command.name in self.table:
            command = load(command.name, self.table[command.name])
        return name, command, rest


def load(name: str, entry: LazyCommand) -> Any:
    """Import a command."""
    target = getattr(importlib.import_module(entry.module), entry.attribute)
    if not isinstance(target, typer.Typer):
        application = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        application.command(name)(target)
        target = application
    command = typer.main.get_command(target)
    command.name = name
    return command
