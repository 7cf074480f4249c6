"""Settings as flags: each field of a dataclass is a flag, a variable and a line of help under its heading.

    @dataclass(frozen=True, kw_only=True)
    class DoorSettings:
        port: Annotated[int, Option(min=1, help="Where it listens.")] = 4245

    PARTS = (("Doors", DoorSettings),)

    @app.command(cls=SectionedCommand)
    @taking(PARTS, variables="CILIA_RELAY_")
    def serve(**values: Any) -> None: ...

A field says in its type what may be written. Parsers take what a command line or a variable has, and
defaults, too, which they leave alone.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, TypeVar, get_args, get_type_hints

from typer import BadParameter, Context
from typer.models import OptionInfo

from cilia.kit.durations import parse_duration

Parts = Iterable[tuple[str, type]]
"""Dataclasses, each with its heading. All their fields together are one command's flags."""
Command = TypeVar("Command", bound=Callable[..., None])


def taking(parts: Parts, variables: str) -> Callable[[Command], Command]:
    """Gives a command all fields of these parts for flags, and for variables with this prefix. The command
    takes their values by name, besides its own."""

    def with_flags(command: Command) -> Command:
        own = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.kind is not parameter.VAR_KEYWORD
        ]
        flags = parameters(parts, variables)
        command.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
        return command

    return with_flags


def parameters(parts: Parts, variables: str) -> Iterator[inspect.Parameter]:
    """A command's parameters for all fields."""
    for heading, part in parts:
        types = get_type_hints(part, include_extras=True)
        for field in dataclasses.fields(part):
            kind, option = get_args(types[field.name])
            yield inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=Annotated[kind, _placed(option, f"{variables}{field.name.upper()}", heading)],
            )


def _placed(option: OptionInfo, variable: str, heading: str) -> OptionInfo:
    """Under its heading, and with this variable unless it has another."""
    placed = copy.copy(option)
    placed.rich_help_panel = heading
    placed.envvar = placed.envvar or variable
    return placed


def sources(context: Context) -> dict[str, str]:
    """Which parameters of a command somebody has set, and how: flag or environment."""
    words = {"COMMANDLINE": "flag", "ENVIRONMENT": "environment"}
    found = {name: context.get_parameter_source(name) for name in context.params}
    return {name: words[source.name] for name, source in found.items() if source and source.name in words}


def one_of(*known: str) -> Callable[[str], str]:
    """Refuses a value that is none of those known."""

    def word(text: str) -> str:
        if text not in known:
            words = [each or "empty" for each in known]
            raise BadParameter(f"must be {', '.join(words[:-1])} or {words[-1]}")
        return text

    return word


def power_of_two(text: str | int) -> int:
    """A number such as 65536. Cilium's charts write one less (4095) and mean as many."""
    found = int(text) if str(text).strip().isdecimal() else 0
    if found > 2 and not found & (found + 1):
        found += 1
    if found < 1 or found & (found - 1):
        raise BadParameter("must be a power of two")
    return found


def size(text: str | int) -> int:
    """A number of bytes such as 1Gi."""
    found = re.fullmatch(r"(\d+)(|Ki|Mi|Gi|Ti)", str(text).strip())
    if found is None or not int(found[1]):
        raise BadParameter("must be a number of bytes such as 512Mi or 10Gi")
    return int(found[1]) << 10 * ("", "Ki", "Mi", "Gi", "Ti").index(found[2])


def duration(text: str | float) -> float:
    """Seconds; none at all is understood."""
    try:
        return parse_duration(str(text).strip().lower())
    except ValueError as error:
        raise BadParameter(str(error)) from error


def period(text: str | float) -> float:
    """Seconds, more than none."""
    seconds = duration(text)
    if not seconds:
        raise BadParameter("must be a duration such as 60s, 12h or 7d")
    return seconds
