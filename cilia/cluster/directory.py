"""A store over a directory of YAML files, for one node without an API server.

    files of the user ──► manifests ──┐
                                      ├─► merge (the user's fields win) ──► objects ──► change log ──► watches
    state_dir/objects ──► own writes ─┘

What Cilia itself writes (identities, endpoints, nodes, leases, and the status of anything) is kept in
`state_dir/objects`, one JSON file an object, so that user files are never written to. A field that a user's
file sets wins over one Cilia wrote; an object that a file defines can't be deleted through the store.

Own writes are atomic but not synced to disk: they mean nothing after a reboot, when the kernel state is gone
too. An Event has no reader here and is logged instead.
"""

import asyncio
import hashlib
import re
import uuid
from collections import deque
from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog

from cilia.cluster import store
from cilia.cluster.embedded import selectors
from cilia.cluster.embedded.errors import ApiError
from cilia.cluster.embedded.patch import merge_patch
from cilia.cluster.manifests import Fields, Key, Manifests, Problem
from cilia.cluster.store import (
    CILIUM_ENDPOINTS,
    CILIUM_IDENTITIES,
    CILIUM_NODES,
    EVENTS,
    LEASES,
    RESOURCES,
    Listing,
    Preconditions,
    Resource,
    WatchEvent,
)
from cilia.kit.files import private_directory, write_atomic
from cilia.kit.tasks import TaskGroup

log = structlog.get_logger(__name__)

OWN_KINDS = frozenset({CILIUM_ENDPOINTS, CILIUM_IDENTITIES, CILIUM_NODES, LEASES})
"""Kinds that Cilia creates. Of all others it writes the status only."""

HISTORY = 4096
"""Changes kept for watches that come back; a reader that is further behind lists again."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.:]{0,251}[a-z0-9])?\Z")
_UIDS = uuid.UUID("6f2c1c0e-9b1d-5a52-8f0b-3a4f0d6d2a11")


class _Object(msgspec.Struct, frozen=True):
    """An object as readers see it."""

    fields: Fields
    raw: bytes

    @property
    def version(self) -> str:
        return str(self.fields["metadata"]["resourceVersion"])


class _Change(msgspec.Struct, frozen=True):
    sequence: int
    resource: Resource
    before: _Object | None
    after: _Object | None


class _Selector(msgspec.Struct, frozen=True):
    """What a list or watch asked for."""

    namespace: str | None
    labels: selectors.LabelSelector
    fields: tuple[tuple[str, str, bool], ...]

    def matches(self, item: _Object | None) -> bool:
        if item is None:
            return False
        metadata = item.fields["metadata"]
        if self.namespace is not None and metadata.get("namespace", "") != self.namespace:
            return False
        if not self.labels.matches(metadata.get("labels") or {}):
            return False
        return all((_text(item.fields, path) == value) == equal for path, value, equal in self.fields)


class DirectoryStore:
    """YAML files as a `cilia.cluster.store.Store`. Use as `async with DirectoryStore(...) as store`."""

    def __init__(self, directory: Path, state_dir: Path, *, poll: float = 0.2) -> None:
        """`poll` is the pause between looks at the directory, in seconds."""
        self.problems: tuple[Problem, ...] = ()
        self._manifests = Manifests(directory)
        self._own_dir = state_dir / "objects"
        self._poll = poll
        self._files: dict[Resource, dict[Key, Fields]] = {}
        self._own: dict[Resource, dict[Key, Fields]] = {}
        self._objects: dict[Resource, dict[Key, _Object]] = {resource: {} for resource in RESOURCES}
        self._sequence = 0
        self._history: deque[_Change] = deque(maxlen=HISTORY)
        self._changed = asyncio.Condition()
        self._tasks = TaskGroup()

    async def __aenter__(self) -> Self:
        if not self._manifests.directory.is_dir():
            raise store.Invalid(f"{self._manifests.directory} is not a directory: create it or name another")
        private_directory(self._own_dir)
        self._load_own()
        self._scan(settled=False)
        self._tasks.spawn("manifests", self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.close()

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Listing:
        wanted = _selector(namespace, label_selector, field_selector)
        found = [msgspec.Raw(item.raw) for item in self._objects[resource].values() if wanted.matches(item)]
        return Listing(found, str(self._sequence))

    async def watch(
        self,
        resource: Resource,
        *,
        since: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> AsyncGenerator[WatchEvent, None]:
        wanted = _selector(namespace, label_selector, field_selector)
        seen = int(since) if since.isdecimal() else -1
        while True:
            oldest = self._sequence - len(self._history)
            if not oldest <= seen <= self._sequence:
                raise store.Gone(f"changes since {since} are no longer known: list again")
            events = [
                event
                for change in self._history
                if change.sequence > seen and change.resource == resource
                for event in _events(change, wanted)
            ]
            seen = self._sequence
            for event in events:
                yield event
            if events:
                yield _bookmark(resource, seen)
            async with self._changed:
                while self._sequence == seen:
                    await self._changed.wait()

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> bytes:
        return self._existing(resource, (namespace or "", name)).raw

    async def create(self, resource: Resource, body: bytes, *, namespace: str | None = None) -> bytes:
        fields = _parsed(body)
        if resource == EVENTS:
            log.info("event", reason=fields.get("reason"), message=fields.get("message"))
            return body
        key = (namespace or "", str(fields["metadata"].get("name", "")))
        if key in self._objects[resource]:
            raise store.AlreadyExists(f"{resource.kind} {key[1]} exists")
        return await self._write(resource, key, fields)

    async def replace(
        self,
        resource: Resource,
        name: str,
        body: bytes,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> bytes:
        key = (namespace or "", name)
        current = self._existing(resource, key)
        fields = _parsed(body)
        _check_version(current, fields["metadata"].get("resourceVersion"))
        if subresource == "status":
            fields = {**current.fields, "status": fields.get("status")}
        return await self._write(resource, key, fields)

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: bytes,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> bytes:
        key = (namespace or "", name)
        current = self._existing(resource, key)
        try:
            change = msgspec.json.decode(patch, type=Fields)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise store.Invalid(f"the patch is not a JSON object: {error}") from error
        _check_version(current, (change.get("metadata") or {}).get("resourceVersion"))
        if subresource == "status":
            change = {"status": change.get("status")}
        return await self._write(resource, key, merge_patch(current.fields, change))

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
        key = (namespace or "", name)
        current = self._existing(resource, key)
        if preconditions is not None:
            _check_version(current, preconditions.resource_version)
            if preconditions.uid not in (None, current.fields["metadata"]["uid"]):
                raise store.Conflict(f"{resource.kind} {name} is another object by now")
        if key in self._files.get(resource, {}):
            raise store.Forbidden(f"{resource.kind} {name} is defined by a file: remove it there")
        _own_path(self._own_dir, resource, key).unlink(missing_ok=True)
        self._own.get(resource, {}).pop(key, None)
        await self._publish(resource, key)

    def _existing(self, resource: Resource, key: Key) -> _Object:
        found = self._objects[resource].get(key)
        if found is None:
            raise store.NotFound(f"{resource.kind} {'/'.join(part for part in key if part)} does not exist")
        return found

    async def _write(self, resource: Resource, key: Key, fields: Fields) -> bytes:
        """Keep what may be kept of `fields` as our own part of the object."""
        in_file = key in self._files.get(resource, {})
        if resource not in OWN_KINDS:
            if not in_file:
                raise store.Forbidden(
                    f"{resource.kind} objects come from {self._manifests.directory}: add a file"
                )
            fields = {"status": fields.get("status")}
        own = msgspec.json.decode(msgspec.json.encode(fields), type=Fields)
        own.get("metadata", {}).pop("resourceVersion", None)
        path = _own_path(self._own_dir, resource, key)
        try:
            write_atomic(path, msgspec.json.encode(own), durable=False)
        except OSError as error:
            raise store.Unavailable(f"{path} can't be written: {error.strerror}") from error
        self._own.setdefault(resource, {})[key] = own
        await self._publish(resource, key)
        return self._objects[resource][key].raw

    async def _publish(self, resource: Resource, key: Key) -> None:
        if self._refresh(resource, key):
            async with self._changed:
                self._changed.notify_all()

    def _refresh(self, resource: Resource, key: Key) -> bool:
        """Recompute one object from its two parts; returns whether readers see a difference."""
        before = self._objects[resource].get(key)
        after = _merged(
            resource, key, self._own.get(resource, {}).get(key), self._files.get(resource, {}).get(key)
        )
        if (before.raw if before else None) == (after.raw if after else None):
            return False
        if after is None:
            del self._objects[resource][key]
        else:
            self._objects[resource][key] = after
        self._sequence += 1
        self._history.append(_Change(self._sequence, resource, before, after))
        return True

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll)
            if self._scan(settled=True):
                async with self._changed:
                    self._changed.notify_all()

    def _scan(self, *, settled: bool) -> bool:
        """Look at the files once; returns whether readers see a difference."""
        try:
            if not self._manifests.scan(settled=settled):
                return False
        except OSError as error:
            # Without the directory nothing is known: that is no reason to forget the objects.
            self._report((Problem(str(self._manifests.directory), f"can't be read: {error.strerror}"),))
            return False
        earlier = self._files
        self._files, problems = self._manifests.objects()
        self._report(tuple(problems))
        touched = {
            (resource, key)
            for part in (earlier, self._files)
            for resource, objects in part.items()
            for key in objects
            if earlier.get(resource, {}).get(key) is not self._files.get(resource, {}).get(key)
        }
        before = self._sequence
        for resource, key in sorted(touched, key=_readable):
            self._refresh(resource, key)
        return self._sequence > before

    def _report(self, problems: tuple[Problem, ...]) -> None:
        for problem in problems:
            if problem not in self.problems:
                log.error("manifest", path=problem.path, problem=problem.sentence)
        self.problems = problems

    def _load_own(self) -> None:
        kinds = {_directory_name(resource): resource for resource in RESOURCES}
        for path in sorted(self._own_dir.glob("*/*/*.json")):
            resource = kinds.get(path.parent.parent.name)
            try:
                fields = msgspec.json.decode(path.read_bytes(), type=Fields)
            except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
                log.error("own object can't be read, it is ignored", path=str(path), error=str(error))
                continue
            if resource is not None:
                key = (path.parent.name.strip("_"), path.stem)
                self._own.setdefault(resource, {})[key] = fields
                self._refresh(resource, key)


def _merged(resource: Resource, key: Key, own: Fields | None, file: Fields | None) -> _Object | None:
    """Return the object of both parts; without a file, only kinds of our own exist."""
    if file is None and (own is None or resource not in OWN_KINDS):
        return None
    fields: Fields = {"apiVersion": resource.api_version, "kind": resource.kind}
    fields |= merge_patch(own or {}, file or {})
    namespace, name = key
    metadata: Fields = {**fields.get("metadata", {}), "name": name}
    if namespace:
        metadata["namespace"] = namespace
    metadata.setdefault("uid", str(uuid.uuid5(_UIDS, f"{resource.plural}/{namespace}/{name}")))
    metadata.pop("resourceVersion", None)
    # What a file says of its generation was true where it was copied from.
    written = {name: part for name, part in fields.items() if name not in ("metadata", "status")}
    metadata["generation"] = 1 + _digest(written, 6)
    fields["metadata"] = metadata
    metadata["resourceVersion"] = str(_digest(fields, 7))
    return _Object(fields, msgspec.json.encode(fields))


def _digest(fields: Fields, size: int) -> int:
    encoded = msgspec.json.encode(fields, order="deterministic")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=size).digest())


def _events(change: _Change, wanted: _Selector) -> list[WatchEvent]:
    """Return a change as one reader sees it: coming into its selection is ADDED, leaving it DELETED."""
    was, now = wanted.matches(change.before), wanted.matches(change.after)
    if now and change.after is not None:
        return [WatchEvent("MODIFIED" if was else "ADDED", msgspec.Raw(change.after.raw))]
    if was and change.before is not None:
        return [WatchEvent("DELETED", msgspec.Raw((change.after or change.before).raw))]
    return []


def _bookmark(resource: Resource, sequence: int) -> WatchEvent:
    body = store.encode(resource, {"metadata": {"resourceVersion": str(sequence)}})
    return WatchEvent("BOOKMARK", msgspec.Raw(body))


def _selector(namespace: str | None, labels: str | None, fields: str | None) -> _Selector:
    try:
        return _Selector(namespace, selectors.parse_labels(labels or ""), tuple(_field_terms(fields or "")))
    except ApiError as error:
        raise store.Invalid(str(error)) from error


def _field_terms(text: str) -> list[tuple[str, str, bool]]:
    terms = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"([A-Za-z.]+)(==|!=|=)(.*)", part)
        if found is None:
            raise store.Invalid(f"field selector {part!r} is not field=value or field!=value")
        terms.append((found[1], found[3], found[2] != "!="))
    return terms


def _text(fields: Fields, path: str) -> str:
    """Return the text at a dotted path, empty where there is none."""
    value: Any = fields
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""


def _parsed(body: bytes) -> Fields:
    try:
        fields = msgspec.json.decode(body, type=Fields)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise store.Invalid(f"the body is not a JSON object: {error}") from error
    if not isinstance(fields.get("metadata"), dict):
        raise store.Invalid("the object has no metadata")
    return fields


def _check_version(current: _Object, expected: Any) -> None:
    if expected not in (None, "", current.version):
        name = current.fields["metadata"]["name"]
        raise store.Conflict(f"{name} changed since it was read: read it again and repeat the change")


def _own_path(root: Path, resource: Resource, key: Key) -> Path:
    namespace, name = key
    if not _NAME.match(name) or (namespace and not _NAME.match(namespace)):
        raise store.Invalid(f"{name!r} is not a name of lower-case letters, digits, '-' and '.'")
    return root / _directory_name(resource) / (namespace or "_") / f"{name}.json"


def _directory_name(resource: Resource) -> str:
    return f"{resource.plural}.{resource.group}" if resource.group else resource.plural


def _readable(touched: tuple[Resource, Key]) -> tuple[str, Key]:
    return touched[0].plural, touched[1]
