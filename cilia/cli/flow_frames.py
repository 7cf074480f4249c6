"""Flows as data frames, asked for by the names of `cilia observe`'s flags."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from cilia.cli import flow_filters
from cilia.cli.flow_filters import FlagError, Given
from cilia.cli.hubble_server import DEFAULT_SERVER, SERVER_VARIABLES
from cilia.cli.moments import parse_moment
from cilia.hubble.client import Client
from cilia.hubble.frames.frame import DEFAULT_LIMIT, Frame, fetch
from cilia.proto.observer import observer_pb2

SIDES = ("", "from_", "to_")

Moment = str | datetime | None


def read(
    *,
    server: str | None = None,
    client: Client | None = None,
    since: Moment = None,
    until: Moment = None,
    last: int | None = None,
    first: int | None = None,
    limit: int = DEFAULT_LIMIT,
    progress: Callable[[int], None] | None = None,
    without: Mapping[str, Any] | None = None,
    **filters: Any,
) -> Frame:
    """The flows that a server has; `client`, where there is one already, in place of its address.

    `filters` are named as the flags of `cilia observe` (`pod="shop/web"`, `from_namespace=["a", "b"]`,
    `type="drop"`), and so is what is in `without`, which flows must not match. Moments are texts such as
    `5m` or `14:05`, or datetimes. `progress` is told now and then how many flows have come. Raises
    ValueError for what can't be read, RpcError where the server does not answer, FrameError for more than
    `limit` flows or without the extra.
    """
    request = make_request(
        since=since, until=until, last=last, first=first, filters=filters, without=without or {}
    )
    if client is not None:
        return fetch(client, request, limit=limit, progress=progress)
    with Client(server or server_of(os.environ)) as connection:
        return fetch(connection, request, limit=limit, progress=progress)


def make_request(
    *,
    since: Moment,
    until: Moment,
    last: int | None,
    first: int | None,
    filters: Mapping[str, Any],
    without: Mapping[str, Any],
) -> observer_pb2.GetFlowsRequest:
    """Raises ValueError with a sentence."""
    if last is not None and first is not None:
        raise ValueError("last and first exclude each other: keep one")
    allow, deny = flow_filters.build([*given(filters, negated=False), *given(without, negated=True)])
    request = observer_pb2.GetFlowsRequest(whitelist=allow, blacklist=deny, number=last or first or 0)
    request.first = first is not None
    if since is not None:
        request.since.FromDatetime(moment(since))
    if until is not None:
        request.until.FromDatetime(moment(until))
    return request


def given(filters: Mapping[str, Any], *, negated: bool) -> Iterator[Given]:
    """Filters as `flow_filters` takes them. Raises FlagError for a name that is none."""
    for name, values in filters.items():
        flag = f"{name}_" if f"{name}_" in flow_filters.PLAIN else name
        if flag not in known_filters():
            raise FlagError(f"unknown filter {name!r}: use one of {', '.join(sorted(known_filters()))}")
        for value in values if isinstance(values, list | tuple | set) else [values]:
            if value is not None:
                yield Given(flag, value if isinstance(value, bool) else str(value), negated)


def known_filters() -> list[str]:
    """Names of filters."""
    return [side + name for name in flow_filters.SIDED for side in SIDES] + list(flow_filters.PLAIN)


def moment(value: str | datetime) -> datetime:
    """What a text or a datetime means. Raises ValueError."""
    if isinstance(value, datetime):
        return value if value.tzinfo else value.astimezone()
    return parse_moment(value, datetime.now(UTC).astimezone())


def server_of(environment: Mapping[str, str]) -> str:
    """The server the environment names, or the agent's socket."""
    for variable in SERVER_VARIABLES:
        if environment.get(variable):
            return environment[variable]
    return DEFAULT_SERVER
