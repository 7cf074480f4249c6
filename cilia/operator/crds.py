"""Installs the custom resource definitions of Cilia's kinds, generated from the models.

A definition of a newer schema version is left alone: during an upgrade two operators run, and the older must
not take fields away. So is one that somebody else made for a kind that is not Cilia's.
"""

import asyncio
from typing import Any

import msgspec
import structlog

from cilia.cluster import store as cluster
from cilia.cluster.store import CRDS, Store, decode
from cilia.model.resources import crd
from cilia.model.resources.base import Condition, Object, ObjectMeta

log = structlog.get_logger(__name__)

ESTABLISH_SECONDS = 60.0
POLL_SECONDS = 0.1


class _Status(Object, frozen=True, kw_only=True):
    conditions: tuple[Condition, ...] | None = None


class InstalledDefinition(Object, frozen=True, kw_only=True):
    """A CustomResourceDefinition as found."""

    metadata: ObjectMeta
    status: _Status = _Status()

    @property
    def established(self) -> bool:
        """Whether objects of the kind can be created."""
        return any(row.type == "Established" and row.status == "True" for row in self.status.conditions or ())


def version(labels: dict[str, str] | None) -> tuple[int, ...]:
    """Return the schema version a definition carries; () for none or a strange one: the lowest."""
    text = (labels or {}).get(crd.SCHEMA_VERSION_LABEL, "")
    parts = text.split(".")
    return tuple(map(int, parts)) if all(part.isascii() and part.isdecimal() for part in parts) else ()


async def install(store: Store) -> None:
    """Create or upgrade all definitions and wait until they are established. Raises StoreError."""
    definitions = list(crd.all_definitions())
    for definition in definitions:
        await _install(store, definition)
    try:
        async with asyncio.timeout(ESTABLISH_SECONDS):
            for definition in definitions:
                await _established(store, definition["metadata"]["name"])
    except TimeoutError:
        raise cluster.Unavailable(
            f"the definitions were not established within {ESTABLISH_SECONDS:g} s: see `kubectl describe crd`"
        ) from None


async def _install(store: Store, definition: dict[str, Any]) -> None:
    name = definition["metadata"]["name"]
    try:
        installed = decode(await store.get(CRDS, name), InstalledDefinition)
    except cluster.NotFound:
        try:
            await store.create(CRDS, msgspec.json.encode(definition))
            log.info("definition created", name=name)
            return
        except cluster.AlreadyExists:
            installed = decode(await store.get(CRDS, name), InstalledDefinition)
    ours, theirs = definition["metadata"], installed.metadata
    digest = (theirs.annotations or {}).get(crd.DIGEST_ANNOTATION)
    foreign = digest is None and definition["spec"]["group"] != crd.OWN_GROUP
    newer = version(theirs.labels) > version(ours["labels"])
    if foreign or newer or digest == ours["annotations"][crd.DIGEST_ANNOTATION]:
        return
    metadata = {**ours, "resourceVersion": theirs.resource_version}
    await store.patch(CRDS, name, msgspec.json.encode({"metadata": metadata, "spec": definition["spec"]}))
    log.info("definition upgraded", name=name)


async def _established(store: Store, name: str) -> None:
    while not decode(await store.get(CRDS, name), InstalledDefinition).established:  # noqa: ASYNC110 - remote
        await asyncio.sleep(POLL_SECONDS)
