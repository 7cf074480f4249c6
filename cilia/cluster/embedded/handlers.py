"""From a parsed request to an answer: one method per verb."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import msgspec

from . import auth, crds, discovery, protobuf
from .auth import User
from .engine import Engine, Entry, encode
from .errors import ApiError, conflict, expired, not_found
from .patch import json_patch, merge_patch
from .printing import IncludeObject, table
from .registry import META_FIELDS, Kind, Registry, Value, Version
from .requests import Query, Target, decode_json, decode_object, representation
from .selectors import parse_fields, parse_labels
from .storage import Key
from .strategic import strategic_merge
from .watch import Filter, Shape, Watcher
from .writes import DeleteOptions, Options, Writer

MAX_SNAPSHOTS: Final = 16
"""How many paged lists may be under way; the oldest gives way and its client starts over."""
WATCH_SECONDS: Final = 1800


class Request(msgspec.Struct, frozen=True):
    """One request, read whole."""

    method: str
    path: str
    query: Query
    accept: str
    content_type: str
    body: bytes
    user: User


class Reply(msgspec.Struct, frozen=True):
    """An answer that is sent at once."""

    code: int
    body: bytes
    warnings: list[str] = []
    content_type: bytes = b"application/json"


class Stream(msgspec.Struct, frozen=True):
    """An answer that goes on: a watch."""

    watcher: Watcher
    stop: Callable[[], None]
    timeout: float
    bookmarks: bool


def json_reply(code: int, value: Any) -> Reply:
    return Reply(code, encode(value))


class Handlers:
    """The API, without HTTP."""

    def __init__(
        self, engine: Engine, registry: Registry, writer: Writer, monotonic: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._writer = writer
        self.monotonic = monotonic
        # A paged list in progress: token -> (version, entries still to send)
        self._snapshots: OrderedDict[str, tuple[int, list[Entry]]] = OrderedDict()
        # The index of schemas hashes them all: kept for as long as the kinds stay the same.
        self._index: tuple[int, Any] = (-1, None)

    async def answer(self, request: Request, target: Target | None) -> Reply | Stream:
        """Authorise and carry out; raises ApiError."""
        if target is None:
            return self._documents(request)
        verb = _verb(request, target)
        auth.authorize(request.user, verb, target)
        if verb == "create" and (review := self._review(request, target)) is not None:
            return review
        kind, version = self._find(target)
        self._check_scope(kind, target, verb)
        match verb:
            case "get":
                return self._get(request, target, kind, version)
            case "list":
                return self._list(request, target, kind, version)
            case "watch":
                return self._watch(request, target, kind, version)
            case "create":
                return await self._create(request, target, kind, version)
            case "update":
                return await self._update(request, target, kind, version)
            case "patch":
                return await self._patch(request, target, kind, version)
            case "delete":
                return await self._delete(request, target, kind, version)
        return await self._delete_collection(request, target, kind, version)

    def _find(self, target: Target) -> tuple[Kind, Version]:
        found = self._registry.find(target.group, target.version, target.plural)
        if found is None:
            raise ApiError(404, "the server could not find the requested resource")
        kind, version = found
        below = target.subresource
        if below and (below not in kind.subresources or (below == "status" and not version.status)):
            raise ApiError(
                404, f"the server could not find the requested resource: {kind.plural} have no {below} here"
            )
        return found

    def _check_scope(self, kind: Kind, target: Target, verb: str) -> None:
        if (
            kind.namespaced
            and not target.namespace
            and (target.name or verb in ("create", "deletecollection"))
        ):
            raise ApiError(
                404, f"the server could not find the requested resource: {kind.plural} are in namespaces"
            )
        if not kind.namespaced and target.namespace:
            raise ApiError(
                404, f"the server could not find the requested resource: {kind.plural} are not in namespaces"
            )
        if verb not in kind.verbs:
            raise ApiError(405, "the server does not allow this method on the requested resource")

    # --- reading -----------------------------------------------------------------------------------------

    def _shape(self, request: Request, kind: Kind, version: Version) -> Shape:
        include = request.query.text("includeObject") or "Metadata"
        if include not in ("None", "Metadata", "Object"):
            raise ApiError(400, f"includeObject must be None, Metadata or Object, not {include[:40]!r}")
        chosen: IncludeObject = include  # type: ignore[assignment]
        return Shape(kind, version, representation(request.accept), chosen)

    def _filter(self, request: Request, target: Target, kind: Kind) -> Filter:
        known = frozenset((*META_FIELDS, *kind.fields))
        fields = request.query.text("fieldSelector")
        if kind.group == "events.k8s.io":
            fields = fields.replace("regarding.", "involvedObject.")
        text = request.query.text("labelSelector")
        return Filter(target.namespace, parse_labels(text), parse_fields(fields, known))

    def _get(self, request: Request, target: Target, kind: Kind, version: Version) -> Reply:
        entry = self._engine.get(Key(kind.key, target.namespace, target.name))
        if entry is None:
            raise not_found(kind.plural, kind.group, target.name)
        return self._one(200, request, self._shape(request, kind, version), entry)

    def _one(
        self, code: int, request: Request, shape: Shape, entry: Entry, warnings: list[str] | None = None
    ) -> Reply:
        if shape.name != "Table":
            return Reply(code, shape.body(entry), warnings or [])
        metadata = {"resourceVersion": str(entry.version)}
        body = table(shape.version.columns, [shape.value(entry)], self._writer.now(), shape.include, metadata)
        return Reply(code, encode(body), warnings or [])

    def _list(self, request: Request, target: Target, kind: Kind, version: Version) -> Reply:
        shape = self._shape(request, kind, version)
        asked = request.query.number("resourceVersion")
        match = request.query.text("resourceVersionMatch")
        if match not in ("", "Exact", "NotOlderThan"):
            raise ApiError(400, f"resourceVersionMatch must be Exact or NotOlderThan, not {match[:40]!r}")
        limit = request.query.number("limit") or 0
        token = request.query.text("continue")
        if token:
            at, entries = self._resume(token)
        else:
            at, entries = (
                self._engine.version,
                self._select(target, kind, self._filter(request, target, kind)),
            )
            if asked and match == "Exact" and asked != at:
                raise expired(f"the resourceVersion {asked} for the provided list is no longer kept")
            if asked and asked > at:
                raise ApiError(504, f"Too large resource version: {asked}, current: {at}")
        page, rest = (entries[:limit], entries[limit:]) if limit else (entries, [])
        metadata: dict[str, Any] = {"resourceVersion": str(at)}
        if rest:
            metadata["continue"] = self._suspend(at, rest)
            metadata["remainingItemCount"] = len(rest)
        return Reply(200, self._listing(shape, page, metadata))

    def _select(self, target: Target, kind: Kind, chosen: Filter) -> list[Entry]:
        name = target.name or chosen.fields.exact("metadata.name")
        if name is not None and (target.namespace or not kind.namespaced):
            entry = self._engine.get(Key(kind.key, target.namespace, name))
            return [entry] if entry is not None and chosen.admits(entry) else []
        return [e for e in self._engine.entries(kind.key, target.namespace) if chosen.selects(e.view)]

    def _suspend(self, at: int, rest: list[Entry]) -> str:
        token = secrets.token_urlsafe(16)
        self._snapshots[token] = (at, rest)
        while len(self._snapshots) > MAX_SNAPSHOTS:
            self._snapshots.popitem(last=False)
        return token

    def _resume(self, token: str) -> tuple[int, list[Entry]]:
        # Kept, not taken: a client that lost the answer asks again with the same token.
        found = self._snapshots.get(token)
        if found is None:
            raise expired("The provided continue parameter is too old; list again from the beginning")
        return found

    def _listing(self, shape: Shape, entries: list[Entry], metadata: dict[str, Any]) -> bytes:
        if shape.name == "Table":
            values = [shape.value(entry) for entry in entries]
            now = self._writer.now()
            return encode(table(shape.version.columns, values, now, shape.include, metadata))
        kind, api_version = shape.kind.list_kind, shape.kind.api_version(shape.version.name)
        if shape.name:
            kind, api_version = f"{shape.name}List", "meta.k8s.io/v1"
        head = encode({"kind": kind, "apiVersion": api_version, "metadata": metadata})
        return b'%s,"items":[%s]}' % (head[:-1], b",".join(shape.body(entry) for entry in entries))

    def _watch(self, request: Request, target: Target, kind: Kind, version: Version) -> Stream:
        query, shape = request.query, self._shape(request, kind, version)
        chosen = self._filter(request, target, kind)
        if target.name:
            chosen = msgspec.structs.replace(
                chosen, fields=parse_fields(f"metadata.name={target.name}", frozenset(META_FIELDS))
            )
        since = query.number("resourceVersion") or 0
        initial = query.flag("sendInitialEvents")
        if initial and query.text("resourceVersionMatch") != "NotOlderThan":
            raise ApiError(422, "sendInitialEvents needs resourceVersionMatch=NotOlderThan", reason="Invalid")
        bookmarks = query.flag("allowWatchBookmarks")
        if initial and since > self._engine.version:
            raise ApiError(504, f"Too large resource version: {since}, current: {self._engine.version}")
        watcher = Watcher(shape, chosen, self._writer.now)
        missed = self._engine.since(since, kind.key) if since and not initial else None
        if missed is None:
            watcher.begin(self._select(target, kind, chosen))
            if initial and bookmarks:
                watcher.bookmark(self._engine.version, initial_end=True)
        else:
            watcher.offer(missed)
        timeout = query.number("timeoutSeconds") or WATCH_SECONDS
        return Stream(watcher, self._engine.listen(kind.key, watcher), float(min(timeout, 86400)), bookmarks)

    # --- writing -----------------------------------------------------------------------------------------

    def _options(self, request: Request, target: Target, kind: Kind, verb: str) -> Options:
        validation = request.query.text("fieldValidation") or "Warn"
        if validation not in ("Ignore", "Warn", "Strict"):
            raise ApiError(400, f"fieldValidation must be Ignore, Warn or Strict, not {validation[:40]!r}")

        def guard(old: Value | None, new: Value | None) -> None:
            auth.check_object(request.user, verb, target, kind, old, new, self._lookup)

        return Options(validation, request.query.dry_run, guard)

    def _lookup(self, resource: str, namespace: str, name: str) -> Value | None:
        entry = self._engine.head(Key(resource, namespace, name))
        return entry.decoded() if entry is not None else None

    async def _create(self, request: Request, target: Target, kind: Kind, version: Version) -> Reply:
        value = _read_object(request)
        if target.subresource == "binding":
            return await self._bind(request, target, kind, version, value)
        if target.name:
            raise ApiError(405, "the server does not allow this method on the requested resource")
        options = self._options(request, target, kind, "create")
        written = await self._writer.create(kind, version, target.namespace, value, options)
        return self._one(201, request, self._shape(request, kind, version), written.entry, written.warnings)

    async def _bind(
        self, request: Request, target: Target, kind: Kind, version: Version, value: Value
    ) -> Reply:
        node = (value.get("target") or {}).get("name") if isinstance(value.get("target"), dict) else None
        if not isinstance(node, str) or not node:
            raise ApiError(400, "a Binding needs target.name, the name of a node")

        def bind(pod: Value) -> Value:
            if pod["spec"].get("nodeName"):
                why = f"pod {target.name} is already assigned to node {pod['spec']['nodeName']}"
                raise conflict("pods/binding", "", target.name, why)
            pod["spec"]["nodeName"] = node
            return pod

        key = Key(kind.key, target.namespace, target.name)
        await self._writer.patch(kind, version, key, "", bind, Options(dry_run=request.query.dry_run))
        return json_reply(201, _success())

    async def _update(self, request: Request, target: Target, kind: Kind, version: Version) -> Reply:
        value = _read_object(request)
        key = Key(kind.key, target.namespace, target.name)
        options = self._options(request, target, kind, "update")
        below = "" if target.subresource == "finalize" else target.subresource
        written = await self._writer.replace(kind, version, key, below, value, options)
        return self._one(200, request, self._shape(request, kind, version), written.entry, written.warnings)

    async def _patch(self, request: Request, target: Target, kind: Kind, version: Version) -> Reply:
        apply = _patcher(request, kind)
        key = Key(kind.key, target.namespace, target.name)
        options = self._options(request, target, kind, "patch")
        written = await self._writer.patch(kind, version, key, target.subresource, apply, options)
        return self._one(200, request, self._shape(request, kind, version), written.entry, written.warnings)

    async def _delete(self, request: Request, target: Target, kind: Kind, version: Version) -> Reply:
        if target.subresource:
            raise ApiError(405, "the server does not allow this method on the requested resource")
        wish, dry_run = _delete_options(request)
        options = msgspec.structs.replace(self._options(request, target, kind, "delete"), dry_run=dry_run)
        entry, gone = await self._writer.delete(
            kind, Key(kind.key, target.namespace, target.name), wish, options
        )
        if gone:
            details = {"name": target.name, "group": kind.group, "kind": kind.plural, "uid": entry.uid}
            return json_reply(200, _success({key: value for key, value in details.items() if value}))
        return self._one(200, request, self._shape(request, kind, version), entry)

    async def _delete_collection(
        self, request: Request, target: Target, kind: Kind, version: Version
    ) -> Reply:
        wish, dry_run = _delete_options(request)
        options = msgspec.structs.replace(
            self._options(request, target, kind, "deletecollection"), dry_run=dry_run
        )
        for entry in self._select(target, kind, self._filter(request, target, kind)):
            try:
                await self._writer.delete(kind, entry.key, wish, options)
            except ApiError as error:
                if error.code != 404:
                    raise
        return json_reply(200, _success({"group": kind.group, "kind": kind.plural}))

    # --- documents and questions -------------------------------------------------------------------------

    def _documents(self, request: Request) -> Reply:
        if request.method not in ("GET", "HEAD"):
            raise ApiError(405, "the server does not allow this method on the requested resource")
        parts = [part for part in request.path.split("/") if part]
        aggregated = "as=APIGroupDiscoveryList" in request.accept and "v=v2" in request.accept.replace(
            "v2beta1", ""
        )
        found: Any = None
        match parts:
            case ["healthz" | "livez" | "readyz", *_]:
                return Reply(200, b"ok", content_type=b"text/plain; charset=utf-8")
            case ["version"]:
                found = discovery.version()
            case ["api" | "apis" as root] if aggregated:
                body = encode(discovery.aggregated(self._registry, core=root == "api"))
                kind = b"application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
                return Reply(200, body, content_type=kind)
            case ["api"]:
                found = discovery.core_versions()
            case ["apis"]:
                found = discovery.group_list(self._registry)
            case ["api", version]:
                found = discovery.resource_list(self._registry, "", version)
            case ["apis", group]:
                found = discovery.group(self._registry, group)
            case ["apis", group, version]:
                found = discovery.resource_list(self._registry, group, version)
            case ["openapi", "v3"]:
                found = self._openapi_index()
            case ["openapi", "v3", "api", version]:
                found = discovery.openapi(self._registry, "", version)
            case ["openapi", "v3", "apis", group, version]:
                found = discovery.openapi(self._registry, group, version)
            case []:
                found = {
                    "paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]
                }
        if found is None:
            raise ApiError(404, "the server could not find the requested resource")
        return json_reply(200, found)

    def _openapi_index(self) -> Any:
        if self._index[0] != self._registry.generation:
            self._index = (self._registry.generation, discovery.openapi_index(self._registry))
        return self._index[1]

    def _review(self, request: Request, target: Target) -> Reply | None:
        """Answer ``kubectl auth can-i`` and ``kubectl auth whoami``."""
        user = request.user
        if (target.group, target.version, target.plural) not in {q[:3] for q in discovery.QUESTIONS}:
            return None
        value = _read_object(request)
        spec = value["spec"] if isinstance(value.get("spec"), dict) else {}
        match target.plural:
            case "selfsubjectreviews":
                info: Any = {"username": user.name, "groups": user.groups}
                if user.node:
                    info["extra"] = {"cilia.io/node": [user.node]}
                value["status"] = {"userInfo": info}
            case "selfsubjectaccessreviews":
                value["status"] = _access(user, spec)
            case _:
                value["status"] = {
                    "resourceRules": auth.describe(user),
                    "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["*"]}],
                    "incomplete": False,
                }
        value.setdefault("metadata", {})
        return json_reply(201, value)


def _access(user: User, spec: Value) -> Value:
    asked = spec.get("resourceAttributes")
    if not isinstance(asked, dict):
        plain = spec.get("nonResourceAttributes")
        verb = plain.get("verb") if isinstance(plain, dict) else ""
        return {"allowed": verb == "get" or user.role == "admin"}

    def text(name: str) -> str:
        found = asked.get(name)
        return found if isinstance(found, str) else ""

    target = Target(text("group"), "", text("resource"), text("namespace"), text("name"), text("subresource"))
    if auth.allowed(user, text("verb"), target):
        return {"allowed": True, "reason": f"the role {user.role} allows it"}
    return {"allowed": False, "reason": f"the role {user.role} does not allow it"}


def _verb(request: Request, target: Target) -> str:
    match request.method:
        case "GET" | "HEAD":
            if request.query.flag("watch"):
                return "watch"
            return "get" if target.name else "list"
        case "POST":
            return "create"
        case "PUT" if target.name:
            return "update"
        case "PATCH" if target.name:
            return "patch"
        case "DELETE":
            return "delete" if target.name else "deletecollection"
    raise ApiError(405, "the server does not allow this method on the requested resource")


def _read_object(request: Request) -> Value:
    """The object in a request's body; 415 if it is written in anything unknown."""
    match request.content_type:
        case "" | "application/json":
            return decode_object(request.body)
        case protobuf.CONTENT_TYPE:
            return protobuf.decode_body(request.body)
    raise ApiError(415, f"the body is {request.content_type[:80]}; this server reads application/json")


def _patcher(request: Request, kind: Kind) -> Callable[[Value], Any]:
    """How a patch's content type says to apply it."""
    if request.content_type in ("application/apply-patch+yaml", "application/apply-patch+cbor"):
        raise ApiError(
            415,
            "this server has no server-side apply; use client-side apply (leave --server-side out)",
        )
    patch = decode_json(request.body)
    match request.content_type:
        case "application/json-patch+json":
            return lambda value: json_patch(value, patch)
        case "application/merge-patch+json":
            if not isinstance(patch, dict):
                raise ApiError(400, "a merge patch must be a JSON object")
            return lambda value: merge_patch(value, patch)
        case "application/strategic-merge-patch+json" if not kind.custom:
            return lambda value: strategic_merge(kind.kind, value, patch)
    accepted = ["application/json-patch+json", "application/merge-patch+json"]
    if not kind.custom:
        accepted.append("application/strategic-merge-patch+json")
    raise ApiError(
        415,
        "the body of the request was in an unknown format - accepted media types include: "
        + ", ".join(accepted),
    )


def _delete_options(request: Request) -> tuple[DeleteOptions, bool]:
    """Options from the body, or else from the query; and whether it is a dry run."""
    wish = DeleteOptions()
    if request.body.strip():
        try:
            wish = msgspec.convert(_read_object(request), DeleteOptions)
        except msgspec.ValidationError as error:
            raise ApiError(400, f"the body is not DeleteOptions: {error}") from error
    query = request.query
    grace = query.number("gracePeriodSeconds")
    wish = msgspec.structs.replace(
        wish,
        propagationPolicy=wish.propagationPolicy or query.text("propagationPolicy") or None,
        gracePeriodSeconds=grace if wish.gracePeriodSeconds is None else wish.gracePeriodSeconds,
    )
    return wish, query.dry_run or wish.dryRun == ["All"]


def _success(details: dict[str, Any] | None = None) -> dict[str, Any]:
    status: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    if details:
        status["details"] = details
    return status


def follow_definitions(engine: Engine, registry: Registry) -> None:
    """Keep the registry in step with committed CustomResourceDefinitions."""

    def notice(events: list[Any]) -> None:
        for event in events:
            if event.entry.key.resource != crds.KEY:
                continue
            value = event.entry.decoded()
            group, plural = value["spec"]["group"], value["spec"]["names"]["plural"]
            if event.type == "DELETED" or not crds.established(value):
                registry.remove(group, plural)
                engine.hang_up(f"{group}/{plural}")
                continue
            before, after = registry.get(group, plural), crds.kind_of(value)
            registry.add(after)
            if before is not None and before.fields != after.fields:
                engine.index_again(after.key)

    engine.observe(notice)
