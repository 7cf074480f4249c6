"""Follow one kind of object through list and watch, for the lab's controllers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

import msgspec
import structlog

from cilia.cluster.store import Gone, Resource, Store, StoreError, decode
from cilia.kit.backoff import Backoff
from cilia.model.resources.base import AnyObject

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=msgspec.Struct)
Key = tuple[str, str]


class Change(msgspec.Struct, Generic[T], frozen=True):
    """An object as it is now, or None when it is gone."""

    key: Key
    object: T | None


async def follow(store: Store, resource: Resource, model: type[T]) -> AsyncIterator[Change[T]]:
    """Yield every object, then every change, for ever; a lost watch starts over by itself.

    After starting over, objects that vanished in between are told as gone.
    """
    known: set[Key] = set()
    backoff = Backoff(limit=2.0)
    while True:
        try:
            listing = await store.list(resource)
            objects = [(_key(raw), decode(raw, model)) for raw in listing.items]
            for key in known - {key for key, _ in objects}:
                yield Change(key, None)
            known = {key for key, _ in objects}
            for key, item in objects:
                yield Change(key, item)
            async for change in _changes(store, resource, model, listing.resource_version, known):
                backoff.reset()
                yield change
        except Gone:
            continue
        except StoreError as error:
            log.warning("watch lost, trying again", kind=resource.kind, reason=str(error))
            await asyncio.sleep(backoff.next())


async def _changes(
    store: Store, resource: Resource, model: type[T], since: str, known: set[Key]
) -> AsyncIterator[Change[T]]:
    """Yield changes after `since`, over as many watches as it takes, and keep `known` up to date."""
    while True:
        async for event in store.watch(resource, since=since):
            meta = decode(event.object, AnyObject).metadata
            since = meta.resource_version or since
            key = (meta.namespace, meta.name)
            if event.type == "DELETED":
                known.discard(key)
                yield Change(key, None)
            elif event.type != "BOOKMARK":
                known.add(key)
                yield Change(key, decode(event.object, model))


def _key(raw: msgspec.Raw) -> Key:
    meta = decode(raw, AnyObject).metadata
    return meta.namespace, meta.name
