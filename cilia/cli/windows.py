"""Which flows or events: how many, from which end, since and until when. Several commands share the flags."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer

from cilia.cli.errors import UserError
from cilia.cli.moments import parse_moment

DEFAULT_NUMBER = 20
EVERYTHING = 2**63 - 1
PANEL = "Which"


def flag(panel: str, names: str, text: str, **more: Any) -> Any:
    """A flag under a heading; `names` are separated by spaces."""
    return typer.Option(*names.split(), help=text, rich_help_panel=panel, **{"show_default": False, **more})


Last = Annotated[int | None, flag(PANEL, "--last", "The newest N (20); of each node.", min=0, max=EVERYTHING)]
First = Annotated[int | None, flag(PANEL, "--first", "The oldest N; of each node.", min=0, max=EVERYTHING)]
All = Annotated[bool, flag(PANEL, "--all", "All there are.")]
Follow = Annotated[bool, flag(PANEL, "--follow -f", "Go on as they come.")]
Since = Annotated[str, flag(PANEL, "--since", "Since 5m, 14:05, yesterday, 2026-11-23T04:20:00Z.")]
Until = Annotated[str, flag(PANEL, "--until", "Until then; as --since.")]


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What these flags say."""

    last: int | None = None
    first: int | None = None
    all: bool = False
    follow: bool = False
    since: str = ""
    until: str = ""

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
