"""Cilia: connects, secures and observes containers with eBPF in the kernel and Python above it.

The rooms, top floor first (imports point down only; the build checks it):

    apps        one composition root per process
    cli plugins operator lab
    api         the agent's request types, server and client
    control     the brain: input tables -> desired tables, pure
    dataplane   the hands: desired tables -> kernel
    hubble      the eyes: event bytes -> flows -> answers
    sources     cluster objects -> input tables
    schema cluster
    abi wire
    model tables
    kit proto
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from cilia.hubble.frames.frame import Frame

__version__ = "0.1.0"


def flows(
    server: str | None = None,
    *,
    since: str | datetime | None = "1h",
    until: str | datetime | None = None,
    last: int | None = None,
    first: int | None = None,
    limit: int = 5_000_000,
    without: Mapping[str, Any] | None = None,
    **filters: Any,
) -> Frame:
    """Flows as a data frame: `cilia.flows(since="1d", verdict="DROPPED").pandas()`.

    `server` is a node's socket or address, or a relay's; unless told the one that `cilia observe` asks.
    `filters` are named as its flags (`pod`, `from_namespace`, `type`, ...), with a value or a list; so is
    what is in `without`, which flows must not match. With `last` or `first` as many flows are read, of all
    times unless `since` is given. The result has `.arrow()`, `.pandas()`, `.polars()` and `.sql("...")`.

    Needs the extra: pip install 'cilia[history]'. Raises ValueError for what can't be read, and
    cilia.hubble.rpc.messages.RpcError where the server does not answer.
    """
    # Only here: whoever imports a part of Cilia must not wait for all of it.
    from cilia.cli.flow_frames import read

    if since == "1h" and (last is not None or first is not None):
        since = None
    return read(
        server=server,
        since=since,
        until=until,
        last=last,
        first=first,
        limit=limit,
        without=without,
        **filters,
    )
