"""A store in memory with the semantics of an API server, and switches for its misbehaviour."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from cilia.cluster import store
from cilia.cluster.embedded.patch import merge_patch
from cilia.cluster.store import Listing, Preconditions, Resource, WatchEvent

Fields = dict[str, Any]
Key = tuple[str, str]


class MemoryStore:
    """A `cilia.cluster.store.Store`. `down` makes every call fail; `compact()` forgets the history."""

    def __init__(self) -> None:
        self.down: store.StoreError | None = None
        self.lists = 0
        self.writes: list[tuple[str, str, str]] = []
        self._objects: dict[Resource, dict[Key, Fields]] = {}
        self._version = 0
        self._oldest = 0
        self._history: list[tuple[int, Resource, str, Fields]] = []
        self._changed = asyncio.Condition()
        self._broken = 0

    def fields(self, resource: Resource, name: str, namespace: str = "") -> Fields:
        """An object as stored; raises KeyError."""
        return self._objects[resource][namespace, name]

    def names(self, resource: Resource) -> list[str]:
        """The names of all objects of a kind, sorted."""
        return sorted(name for _, name in self._objects.get(resource, {}))

    async def put(self, resource: Resource, fields: Fields) -> None:
        """Create or replace without conditions, as somebody else would."""
        metadata = fields["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        await self._store(resource, key, fields, key not in self._objects.get(resource, {}))

    async def compact(self) -> None:
        """Forget the history: readers that lag must list again."""
        self._version += 1
        self._oldest = self._version
        self._history.clear()
        await self.interrupt()

    async def interrupt(self) -> None:
        """End all running watches."""
        async with self._changed:
            self._broken += 1
            self._changed.notify_all()

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Listing:
        self._check()
        self.lists += 1
        items = [
            msgspec.Raw(json.dumps(fields).encode())
            for fields in self._objects.get(resource, {}).values()
            if _matches(fields, namespace, field_selector)
        ]
        return Listing(items, str(self._version))

    async def watch(
        self,
        resource: Resource,
        *,
        since: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> AsyncGenerator[WatchEvent, None]:
        self._check()
        seen, broken = int(since), self._broken
        while True:
            if seen < self._oldest:
                raise store.Gone("too old")
            for version, kind, what, fields in list(self._history):
                if version > seen and kind == resource and _matches(fields, namespace, field_selector):
                    yield WatchEvent(what, msgspec.Raw(json.dumps(fields).encode()))  # type: ignore[arg-type]
            seen = self._version
            async with self._changed:
                while self._version == seen and self._broken == broken:
                    await self._changed.wait()
            if self._broken != broken:
                self._check()
                return

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> bytes:
        self._check()
        return json.dumps(self._existing(resource, (namespace or "", name))).encode()

    async def create(self, resource: Resource, body: bytes, *, namespace: str | None = None) -> bytes:
        self._check()
        fields = json.loads(body)
        key = (namespace or "", fields["metadata"]["name"])
        if key in self._objects.get(resource, {}):
            raise store.AlreadyExists(f"{key} exists")
        self.writes.append(("create", resource.plural, key[1]))
        return await self._store(resource, key, fields, True)

    async def replace(
        self,
        resource: Resource,
        name: str,
        body: bytes,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> bytes:
        self._check()
        key = (namespace or "", name)
        fields = json.loads(body)
        current = self._existing(resource, key)
        if resource.group == "cilium.io" and not fields["metadata"].get("resourceVersion"):
            raise store.Invalid("metadata.resourceVersion must be specified for an update")
        _check_version(current, fields["metadata"].get("resourceVersion"))
        if subresource is not None:
            fields = {**current, subresource: fields.get(subresource)}
        self.writes.append(("replace", resource.plural, name))
        return await self._store(resource, key, fields, False)

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: bytes,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> bytes:
        self._check()
        key = (namespace or "", name)
        change = json.loads(patch)
        current = self._existing(resource, key)
        _check_version(current, change.get("metadata", {}).get("resourceVersion"))
        if subresource is not None:
            change = {subresource: change.get(subresource)}
        self.writes.append(("patch", resource.plural, name))
        return await self._store(resource, key, merge_patch(current, change), False)

    async def replace_status(
        self, resource: Resource, name: str, body: bytes, *, namespace: str | None = None
    ) -> bytes:
        return await self.replace(resource, name, body, namespace=namespace, subresource="status")

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        preconditions: Preconditions | None = None,
    ) -> None:
        self._check()
        key = (namespace or "", name)
        current = self._existing(resource, key)
        if preconditions is not None:
            _check_version(current, preconditions.resource_version)
            if preconditions.uid not in (None, current["metadata"].get("uid")):
                raise store.Conflict("another uid")
        self.writes.append(("delete", resource.plural, name))
        del self._objects[resource][key]
        await self._record(resource, "DELETED", current)

    def _check(self) -> None:
        if self.down is not None:
            raise self.down

    def _existing(self, resource: Resource, key: Key) -> Fields:
        try:
            return self._objects[resource][key]
        except KeyError:
            raise store.NotFound(f"{resource.kind} {key} does not exist") from None

    async def _store(self, resource: Resource, key: Key, fields: Fields, new: bool) -> bytes:
        metadata = {**fields["metadata"], "resourceVersion": str(self._version + 1)}
        current = self._objects.get(resource, {}).get(key)
        uid = current["metadata"]["uid"] if current is not None else f"uid-{self._version + 1}"
        metadata.setdefault("uid", uid)
        if key[0]:
            metadata["namespace"] = key[0]
        fields = {**fields, "metadata": metadata}
        self._objects.setdefault(resource, {})[key] = fields
        await self._record(resource, "ADDED" if new else "MODIFIED", fields)
        return json.dumps(fields).encode()

    async def _record(self, resource: Resource, what: str, fields: Fields) -> None:
        self._version += 1
        fields = {**fields, "metadata": {**fields["metadata"], "resourceVersion": str(self._version)}}
        self._history.append((self._version, resource, what, fields))
        async with self._changed:
            self._changed.notify_all()


def _matches(fields: Fields, namespace: str | None, field_selector: str | None) -> bool:
    if namespace is not None and fields["metadata"].get("namespace", "") != namespace:
        return False
    for term in filter(None, (field_selector or "").split(",")):
        path, _, wanted = term.partition("=")
        value: Any = fields
        for part in path.split("."):
            value = value.get(part, {})
        if value != wanted:
            return False
    return True


def _check_version(current: Fields, expected: str | None) -> None:
    if expected not in (None, "", current["metadata"]["resourceVersion"]):
        raise store.Conflict("changed since it was read")
