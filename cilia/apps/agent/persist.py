"""Work for a store that may refuse, be away, and come back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from cilia.cluster import store as cluster
from cilia.kit.backoff import Backoff

log = structlog.get_logger(__name__)

T = TypeVar("T")


async def each(
    items: Sequence[T], work: Callable[[T], Awaitable[object]], retry: Callable[[T], None]
) -> None:
    """Do the work for every item; those it fails for go to `retry`. Raises the first StoreError then.

    One that the store refuses does not hold up the others; when the store is away, all that is left is
    handed to `retry` at once.
    """
    failure: cluster.StoreError | None = None
    for at, item in enumerate(items):
        try:
            await work(item)
        except cluster.Unavailable:
            for left in items[at:]:
                retry(left)
            raise
        except cluster.StoreError as error:
            retry(item)
            failure = failure or error
    if failure is not None:
        raise failure


async def persist(name: str, wake: asyncio.Event, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` whenever `wake` is set, and again after a growing pause while the store refuses.

    A refusal is tried again beside the work that comes meanwhile; a store that is away is left alone for
    the pause.
    """
    backoff = Backoff()
    said = ""
    while True:
        await wake.wait()
        wake.clear()
        try:
            await work()
            backoff.reset()
            said = ""
        except cluster.StoreError as error:
            if str(error) != said:
                log.warning("not written yet", what=name, error=str(error))
                said = str(error)
            if isinstance(error, cluster.Unavailable):
                await asyncio.sleep(backoff.next())
                wake.set()
            else:
                asyncio.get_running_loop().call_later(backoff.next(), wake.set)
