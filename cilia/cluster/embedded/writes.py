"""Create, change and remove objects: every rule between a client's wish and :meth:`Engine.write`.

Each method judges a wish against the head and queues it without awaiting in between; then it awaits the
disk. The garbage collector uses the same methods as the HTTP side.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from . import crds, meta, services
from .engine import Change, Engine, Entry
from .errors import (
    ApiError,
    FieldError,
    already_exists,
    conflict,
    invalid,
    not_found,
    unprocessable,
)
from .patch import same
from .registry import Kind, Registry, Value, Version
from .schema import apply_defaults, prune, validate
from .services import SERVICES, Allocator
from .storage import Key

NAMESPACES: Final = "/namespaces"
PODS: Final = "/pods"
ALWAYS_THERE: Final = ("default", "kube-system", "kube-public", "kube-node-lease")
CRD_FINALIZER: Final = "customresourcecleanup.apiextensions.k8s.io"
FOREGROUND: Final = "foregroundDeletion"
ORPHAN: Final = "orphan"
_ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"
# Kinds whose creator brings the status along, as the kubelet does when it registers a node.
_STATUS_AT_CREATION: Final = frozenset({"/nodes"})

Guard = Callable[[Value | None, Value | None], None]


class Preconditions(msgspec.Struct, frozen=True):
    """What must still be true of an object that is to be deleted."""

    uid: str | None = None
    resourceVersion: str | None = None  # noqa: N815 - the wire name


class DeleteOptions(msgspec.Struct, frozen=True):
    """The body of a DELETE; unknown fields are ignored."""

    propagationPolicy: str | None = None  # noqa: N815 - the wire names
    gracePeriodSeconds: int | None = None  # noqa: N815
    preconditions: Preconditions | None = None
    orphanDependents: bool | None = None  # noqa: N815
    dryRun: list[str] | None = None  # noqa: N815


class Options(msgspec.Struct, frozen=True):
    """How a write is to be done. ``validation`` is Ignore, Warn or Strict; ``guard`` may raise 403."""

    validation: str = "Warn"
    dry_run: bool = False
    guard: Guard = lambda old, new: None


class Written(msgspec.Struct, frozen=True):
    """The outcome: the object as it is now, and warnings for the client."""

    entry: Entry
    warnings: list[str] = []


class Writer:
    """The writing half of the API."""

    def __init__(
        self, engine: Engine, registry: Registry, wall: Callable[[], float], allocator: Allocator
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._wall = wall
        self._allocator = allocator

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._wall(), UTC)

    def stamp(self, later: float = 0) -> str:
        """A time in the form of ``creationTimestamp``."""
        return (self.now() + timedelta(seconds=later)).strftime("%Y-%m-%dT%H:%M:%SZ")

    # --- create ------------------------------------------------------------------------------------------

    async def create(
        self, kind: Kind, version: Version, namespace: str, value: Value, options: Options
    ) -> Written:
        """Create an object from a request's body."""
        value = self._receive(kind, version, namespace, value)
        name = self._name(value)
        key = Key(kind.key, namespace, name)
        options.guard(None, value)
        if value["metadata"].get("resourceVersion"):
            raise ApiError(400, "resourceVersion should not be set on objects to be created")
        self._check_namespace(kind, namespace, name)
        if self._terminating(kind):
            raise ApiError(409, f"create not allowed while the definition of {kind.kind} is terminating")
        if version.status and kind.key not in _STATUS_AT_CREATION:
            value.pop("status", None)
        self._own(value)
        warnings = self._refine(kind, version, value, None, options)
        if self._engine.head(key) is not None:
            raise already_exists(kind.plural, kind.group, name)
        return await self._put(kind, key, value, options, warnings)

    def _receive(self, kind: Kind, version: Version, namespace: str, value: Value) -> Value:
        """Check that a body is of the kind and place the URL names, and bring it into the stored version."""
        expected = kind.api_version(version.name)
        for field, wanted in (("apiVersion", expected), ("kind", kind.kind)):
            got = value.setdefault(field, wanted)
            if got != wanted:
                what = "API version" if field == "apiVersion" else "kind"
                raise ApiError(
                    400,
                    f"the {what} in the data ({str(got)[:99]}) does not match the expected {what} ({wanted})",
                )
        faults = meta.shape(value)
        if faults:
            given = value["metadata"].get("name") if isinstance(value["metadata"], dict) else ""
            raise unprocessable(kind.kind, kind.group, str(given or ""), faults)
        given = value["metadata"].get("namespace", "")
        if kind.namespaced and given not in ("", namespace):
            raise ApiError(
                400,
                "the namespace of the provided object does not match the namespace sent on the request: "
                f"{given} != {namespace}",
            )
        value["metadata"].pop("namespace", None)
        if kind.namespaced:
            value["metadata"]["namespace"] = namespace
        if version.inward is not None:
            value = version.inward(value)
        stored = self._registry.by_key(kind.key) or kind
        value["apiVersion"] = stored.api_version(stored.storage)
        return value

    def _name(self, value: Value) -> str:
        metadata = value["metadata"]
        if not metadata.get("name") and metadata.get("generateName"):
            suffix = "".join(secrets.choice(_ALPHABET) for _ in range(5))
            metadata["name"] = metadata["generateName"][:248] + suffix
        return str(metadata.get("name", ""))

    def _check_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        if not kind.namespaced:
            return
        found = self._engine.head(Key(NAMESPACES, "", namespace))
        if found is None:
            raise not_found("namespaces", "", namespace)
        if found.deleting:
            text = (
                f'{kind.plural} "{name}" is forbidden: unable to create new content in namespace {namespace} '
                "because it is being terminated"
            )
            cause = {"reason": "NamespaceTerminating", "message": text, "field": "metadata.namespace"}
            raise ApiError(403, text, details={"name": name, "kind": kind.plural, "causes": [cause]})

    def _terminating(self, kind: Kind) -> bool:
        if not kind.custom:
            return False
        definition = self._engine.head(Key(crds.KEY, "", f"{kind.plural}.{kind.group}"))
        return definition is None or definition.deleting

    def _own(self, value: Value) -> None:
        metadata = value["metadata"]
        for name in ("deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"):
            metadata.pop(name, None)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = self.stamp()
        metadata["generation"] = 1

    # --- update ------------------------------------------------------------------------------------------

    async def replace(
        self, kind: Kind, version: Version, key: Key, subresource: str, value: Value, options: Options
    ) -> Written:
        """Replace an object (or its status) by a request's body."""
        current = self._engine.head(key)
        if current is None:
            raise not_found(kind.plural, kind.group, key.name)
        value = self._receive(kind, version, key.namespace, value)
        given = value["metadata"].setdefault("name", key.name)
        if given != key.name:
            raise ApiError(
                400, f"the name of the object ({given}) does not match the name on the URL ({key.name})"
            )
        if kind.custom and not value["metadata"].get("resourceVersion"):
            fault = invalid("metadata.resourceVersion", "", "must be specified for an update")
            raise unprocessable(kind.kind, kind.group, key.name, [fault])
        return await self._change(kind, version, current, value, subresource, options)

    async def patch(
        self,
        kind: Kind,
        version: Version,
        key: Key,
        subresource: str,
        apply: Callable[[Value], Any],
        options: Options,
    ) -> Written:
        """Change an object by a function of its present value."""
        current = self._engine.head(key)
        if current is None:
            raise not_found(kind.plural, kind.group, key.name)
        before = current.decoded()
        if version.outward is not None:
            before = version.outward(before)
        before["apiVersion"] = kind.api_version(version.name)
        value = apply(before)
        if not isinstance(value, dict):
            raise ApiError(422, "the patch does not leave an object")
        value = self._receive(kind, version, key.namespace, value)
        if value["metadata"].get("name") != key.name:
            fault = invalid("metadata.name", value["metadata"].get("name"), "field is immutable")
            raise unprocessable(kind.kind, kind.group, key.name, [fault])
        return await self._change(kind, version, current, value, subresource, options)

    async def _change(
        self, kind: Kind, version: Version, current: Entry, value: Value, subresource: str, options: Options
    ) -> Written:
        key, old = current.key, current.decoded()
        self._check_preconditions(kind, key, old, value["metadata"])
        if subresource == "status":
            value = (
                {**old, "status": value.get("status")}
                if value.get("status") is not None
                else _without_status(old)
            )
            value["metadata"] = dict(old["metadata"])
        elif version.status:
            value.pop("status", None)
            if "status" in old:
                value["status"] = old["status"]
        meta.keep_server_owned(value, old)
        options.guard(old, value)
        warnings = self._refine(kind, version, value, old, options)
        if _spec_changed(kind, version, old, value):
            value["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
        value = meta.tidy(value)
        if same(value, old):
            await self._engine.settled()
            return Written(current, warnings)
        metadata = value["metadata"]
        if "deletionTimestamp" in metadata and _may_go(kind, value):
            return await self._remove(key, options.dry_run, value)
        return await self._put(kind, key, value, options, warnings)

    def _check_preconditions(self, kind: Kind, key: Key, old: Value, wanted: Value) -> None:
        version, uid = wanted.get("resourceVersion"), wanted.get("uid")
        present = old["metadata"]["uid"]
        if version not in (None, "", "0", old["metadata"]["resourceVersion"]):
            raise conflict(kind.plural, kind.group, key.name)
        if uid not in (None, "", present):
            raise conflict(
                kind.plural,
                kind.group,
                key.name,
                f"Precondition failed: UID in precondition: {uid}, UID in object meta: {present}",
            )

    def _refine(
        self, kind: Kind, version: Version, value: Value, old: Value | None, options: Options
    ) -> list[str]:
        """Defaults, unknown fields, validation; returns warnings, raises 400 or 422."""
        warnings: list[str] = []
        schema = self._stored_schema(kind, version)
        if schema is not None:
            unknown = self._unknown_fields(kind, schema, value)
            if unknown and options.validation == "Strict":
                listed = ", ".join(f'unknown field "{path}"' for path in unknown)
                raise ApiError(
                    400,
                    f'{kind.kind} in version "{version.name}" cannot be handled as a {kind.kind}: '
                    f"strict decoding error: {listed}",
                )
            if options.validation == "Warn":
                warnings = [f'unknown field "{path}"' for path in unknown[:20]]
            apply_defaults(schema, value)
        faults = meta.check(kind, value)
        if old is not None:
            faults += meta.check_change(value, old)
        if schema is not None:
            faults += validate(schema, value)
        if not faults:
            if kind.key == SERVICES:
                services.carry_over(value, old)
            kind.complete(value)
            faults = self._check(kind, value, old)
        if not faults and kind.key == SERVICES:
            metadata = value["metadata"]
            key = Key(SERVICES, metadata["namespace"], metadata["name"])
            faults = self._allocator.assign(key, value, old)
        if faults:
            raise unprocessable(kind.kind, kind.group, value["metadata"].get("name", ""), faults)
        return warnings

    def _stored_schema(self, kind: Kind, version: Version) -> dict[str, Any] | None:
        if version.inward is None:
            return version.schema
        stored = self._registry.by_key(kind.key)
        own = stored.version(stored.storage) if stored else None
        return own.schema if own else None

    def _unknown_fields(self, kind: Kind, schema: dict[str, Any], value: Value) -> list[str]:
        """Built-in kinds keep what their light schemas don't know; custom ones are pruned."""
        if kind.custom:
            return prune(schema, value)
        return prune(schema, msgspec.json.decode(msgspec.json.encode(value)))

    def _check(self, kind: Kind, value: Value, old: Value | None) -> list[FieldError]:
        if kind.key != crds.KEY:
            return kind.check(value, old)
        crds.complete(value)
        faults = crds.check(value, old)
        if not faults and "deletionTimestamp" not in value["metadata"]:
            clash = crds.clash(value, self._registry.kinds())
            value["status"] = crds.status(value, clash, self.stamp())
        return faults

    # --- delete ------------------------------------------------------------------------------------------

    async def delete(self, kind: Kind, key: Key, wish: DeleteOptions, options: Options) -> tuple[Entry, bool]:
        """Delete, or mark for deletion where a finalizer, a grace period or dependents ask for it.

        Returns the object as it is now (or last was) and whether it is gone.
        """
        current = self._engine.head(key)
        if current is None:
            raise not_found(kind.plural, kind.group, key.name)
        old = current.decoded()
        if wish.preconditions is not None:
            checks = {"uid": wish.preconditions.uid, "resourceVersion": wish.preconditions.resourceVersion}
            self._check_preconditions(kind, key, old, checks)
        options.guard(old, None)
        if kind.key == NAMESPACES and key.name in ALWAYS_THERE:
            raise ApiError(
                403,
                f'namespaces "{key.name}" is forbidden: this namespace may not be deleted',
                details={"name": key.name, "kind": "namespaces"},
            )
        value = self._mark(kind, old, wish)
        if _may_go(kind, value):
            written = await self._remove(key, options.dry_run, value)
            return written.entry, True
        value = meta.tidy(value)
        if same(value, old):
            await self._engine.settled()
            return current, False
        written = await self._put(kind, key, value, options, [])
        return written.entry, False

    def _mark(self, kind: Kind, old: Value, wish: DeleteOptions) -> Value:
        """The object as marked for deletion."""
        metadata = dict(old["metadata"])
        value = {**old, "metadata": metadata}
        finalizers = [name for name in metadata.get("finalizers") or () if name not in (FOREGROUND, ORPHAN)]
        policy = "Orphan" if wish.orphanDependents else wish.propagationPolicy
        if policy not in (None, "", "Background", "Foreground", "Orphan"):
            raise ApiError(
                400, f"propagationPolicy must be Background, Foreground or Orphan, not {policy[:40]!r}"
            )
        if self._engine.owned_by(metadata["uid"]):
            finalizers += {"Foreground": [FOREGROUND], "Orphan": [ORPHAN]}.get(policy or "", [])
        if kind.key == crds.KEY and CRD_FINALIZER not in finalizers and self._has_instances(old):
            finalizers.append(CRD_FINALIZER)
        metadata["finalizers"] = finalizers
        grace = _grace(kind, old, wish)
        if "deletionTimestamp" not in metadata:
            metadata["deletionTimestamp"] = self.stamp(grace)
            metadata["deletionGracePeriodSeconds"] = grace
            metadata["generation"] = metadata.get("generation", 1) + 1
        elif grace < metadata.get("deletionGracePeriodSeconds", 0):
            metadata["deletionTimestamp"] = self.stamp(grace)
            metadata["deletionGracePeriodSeconds"] = grace
        if kind.key == NAMESPACES:
            value["status"] = {**(old.get("status") or {}), "phase": "Terminating"}
        return value

    def _has_instances(self, definition: Value) -> bool:
        spec = definition["spec"]
        return bool(self._engine.entries(f"{spec['group']}/{spec['names']['plural']}"))

    async def finish(self, key: Key, finalizer: str) -> None:
        """Take a finalizer off an object being deleted; the last one lets it go. For the collector."""
        current = self._engine.head(key)
        kind = self._registry.by_key(key.resource)
        if current is None or kind is None or not current.deleting:
            return
        value = current.decoded()
        finalizers = value["metadata"].get("finalizers") or []
        value["metadata"]["finalizers"] = [name for name in finalizers if name != finalizer]
        if key.resource == NAMESPACES and finalizer == "kubernetes":
            value["spec"]["finalizers"] = []
        if _may_go(kind, value):
            await self._remove(key, False, value)
        else:
            await self._put(kind, key, meta.tidy(value), Options(), [])

    async def disown(self, key: Key, uid: str) -> None:
        """Remove one owner from an object. For the collector."""
        current = self._engine.head(key)
        kind = self._registry.by_key(key.resource)
        if current is None or kind is None or uid not in current.owners:
            return
        value = current.decoded()
        owners = value["metadata"]["ownerReferences"]
        value["metadata"]["ownerReferences"] = [owner for owner in owners if owner["uid"] != uid]
        await self._put(kind, key, meta.tidy(value), Options(), [])

    # --- the last step -----------------------------------------------------------------------------------

    async def _put(
        self, kind: Kind, key: Key, value: Value, options: Options, warnings: list[str]
    ) -> Written:
        value = meta.tidy(value)
        if options.dry_run:
            version = self._engine.version
            value["metadata"].setdefault("resourceVersion", str(version))
            return Written(self._engine.entry(key, version, msgspec.json.encode(value)), warnings)
        (entry,), committed = self._engine.write([Change(key, value)])
        if key.resource == SERVICES:
            self._allocator.note(key, value)
        await committed
        return Written(entry, warnings)

    async def _remove(self, key: Key, dry_run: bool, value: Value) -> Written:
        if dry_run:
            return Written(self._engine.entry(key, self._engine.version, msgspec.json.encode(value)))
        (entry,), committed = self._engine.write([Change(key, None)])
        if key.resource == SERVICES:
            self._allocator.note(key, None)
        await committed
        return Written(entry)


def _without_status(value: Value) -> Value:
    return {key: item for key, item in value.items() if key != "status"}


def _spec_changed(kind: Kind, version: Version, old: Value, new: Value) -> bool:
    ignored = {"metadata", "status"} if version.status or not kind.custom else {"metadata"}
    keys = (old.keys() | new.keys()) - ignored
    return any(not same(old.get(key), new.get(key)) for key in keys)


def _grace(kind: Kind, old: Value, wish: DeleteOptions) -> int:
    """Seconds a pod may take to end: none unless a kubelet has it."""
    spec, status = old.get("spec") or {}, old.get("status") or {}
    if kind.key != PODS or not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
        return 0
    asked = wish.gracePeriodSeconds
    return max(asked if asked is not None else int(spec.get("terminationGracePeriodSeconds") or 0), 0)


def _may_go(kind: Kind, value: Value) -> bool:
    """Whether nothing holds an object that is marked for deletion."""
    metadata = value["metadata"]
    if metadata.get("finalizers") or metadata.get("deletionGracePeriodSeconds", 0) > 0:
        return False
    return not (kind.key == NAMESPACES and value["spec"].get("finalizers"))
