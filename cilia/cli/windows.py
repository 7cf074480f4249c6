"""Which flows or events: how many, from which end, since and until when. Several commands share the flags."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
import typer
from typer.core import TyperOption

from cilia.cli.errors import UserError
from cilia.cli.moments import parse_moment
from cilia.cli.sections import option

DEFAULT_NUMBER = 20
EVERYTHING = 2**63 - 1
PANEL = "Which"
META = "cilia.window"


def flag(panel: str, names: str, text: str, **more: Any) -> Any:
    """A flag under a heading; `names` are separated by spaces."""
    return typer.Option(*names.split(), help=text, rich_help_panel=panel, **{"show_default": False, **more})


def keep(ctx: typer.Context, parameter: Any, value: Any) -> None:
    """Put what was typed where `Window.typed` finds it."""
    if value is not None:
        ctx.meta.setdefault(META, {})[parameter.name] = value


def keep_number(ctx: typer.Context, parameter: Any, value: int | None) -> None:
    """A number that a request has room for."""
    if value is not None and not 0 <= value <= EVERYTHING:
        raise typer.BadParameter(f"{value} is not in the range 0<=x<={EVERYTHING}.", ctx, parameter)
    keep(ctx, parameter, value)


def window_options() -> list[TyperOption]:
    """The flags, for a command's `before`; `Window.typed` has what they say."""
    return [
        option(PANEL, ["--last"], "The newest N (20).", keep=keep_number, type=int),
        option(PANEL, ["--first"], "The oldest N.", keep=keep_number, type=int),
        option(PANEL, ["--all"], "All there are.", keep=keep, switch=True),
        option(PANEL, ["--follow", "-f"], "Go on as they come.", keep=keep, switch=True),
        option(PANEL, ["--since"], "Since 5m, 14:05, yesterday, 2026-11-23T04:20:00Z.", keep=keep),
        option(PANEL, ["--until"], "Until then; as --since.", keep=keep),
    ]


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What these flags say."""

    last: int | None = None
    first: int | None = None
    all: bool = False
    follow: bool = False
    since: str = ""
    until: str = ""

    @classmethod
    def typed(cls, ctx: typer.Context) -> Window:
        """What was typed for a command or its group."""
        return cls(**ctx.meta.get(META, {}))

    def put(self, request: Any, now: datetime, *, whole: bool = False) -> None:
        """Into a request for flows or events; `whole`: all of them unless told otherwise. Raises UserError
        for what can't be read and for flags that exclude each other."""
        if sum((self.last is not None, self.first is not None, self.all)) > 1:
            raise UserError("--last, --first and --all exclude each other: keep one")
        if self.first is not None and self.follow:
            raise UserError("--first and --follow exclude each other: keep one")
        request.follow = self.follow
        try:
            if self.since:
                request.since.FromDatetime(parse_moment(self.since, now))
            if self.until:
                request.until.FromDatetime(parse_moment(self.until, now))
        except ValueError as error:
            raise UserError(str(error)) from None
        request.first = self.first is not None
        request.number = self._number(whole or bool(self.follow or self.since or self.until))

    def _number(self, limited: bool) -> int:
        if self.all:
            return EVERYTHING
        if self.first is not None:
            return self.first
        if self.last is not None:
            return self.last
        return 0 if limited else DEFAULT_NUMBER
