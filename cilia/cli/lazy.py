"""Subcommands that are imported when they are called: `cilia --help` must not load the whole program."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup
from typer.utils import get_params_from_function


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
    for each in (command, *getattr(command, "commands", {}).values()):
        _tell_of_arguments(each)
    return command


def _tell_of_arguments(command: Any) -> None:
    """Give arguments the help they were declared with: Click 8.5 empties what Typer 0.24 has set before, and
    would list them a second time."""
    if command.callback is None:
        return
    command.format_arguments = lambda _context, _formatter: None
    declared = get_params_from_function(inspect.unwrap(command.callback))
    for parameter in command.params:
        if isinstance(parameter, TyperArgument) and parameter.name in declared:
            parameter.help = getattr(declared[parameter.name].default, "help", None)
