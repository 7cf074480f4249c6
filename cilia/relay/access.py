"""Who may see what: bearer tokens checked by the Kubernetes API.

    token ─► TokenReview ─► user, groups ─► SubjectAccessReview: get flows.hubble.cilia.io ─► Viewer
                                            in all namespaces? else in each one by one

The group has no objects behind it; RBAC rules may name it all the same. Who may `get flows` in all namespaces
(a ClusterRoleBinding) sees everything; who may in some (RoleBindings) sees what these take part in. Answers
are remembered for a bounded time; when the API server does not answer, nobody is let in. Sources: Kubernetes
API reference, TokenReview (authentication.k8s.io/v1), SubjectAccessReview (authorization.k8s.io/v1).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from cilia.cluster.store import NAMESPACES, Listing, Resource, StoreError
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.kit.clock import Clock
from cilia.kit.tasks import TaskGroup

log = structlog.get_logger(__name__)

GROUP = "hubble.cilia.io"
TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", False)
ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", False)

REVIEWS = 16
"""Access reviews asked at a time for one viewer."""
REMEMBERED = 1024
"""Viewers remembered, and refused tokens beside them; then the oldest are forgotten."""
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises of an answer that is none, or has too many brackets."""
ASKED = 64
"""Tokens asked about at a time: strangers with many can't take all calls, nor flood the API server. Who was
let in before is asked about all the same, else strangers could end the calls of followers."""


class Reviews(Protocol):
    """What is needed of a Kubernetes API server."""

    async def create(self, resource: Resource, body: bytes, *, namespace: str | None = None) -> bytes:
        """Post a review. Raises StoreError."""
        ...

    async def list(self, resource: Resource) -> Listing:
        """All objects of a kind. Raises StoreError."""
        ...


class AccessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are checked."""

    audience: str = ""
    """What tokens must be made for; empty: the API server's own audience."""
    remember: float = 60.0
    """Seconds an answer holds; a right that was withdrawn is noticed after so long."""
    remember_refusal: float = 10.0
    """Seconds a token that is not valid stays refused without asking again."""
    patience: float = 15.0
    """Seconds for all reviews of one viewer together; then nobody is let in."""
    namespaces: int = 1000
    """The most namespaces asked for one viewer, one review each."""
    mask_addresses: bool = False
    """Hide addresses of peers in namespaces the viewer may not see, besides their names."""


class User(msgspec.Struct, frozen=True):
    """Whose token it is."""

    username: str = ""
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: dict[str, tuple[str, ...]] = {}


class Viewer(msgspec.Struct, frozen=True):
    """Somebody who may see something."""

    user: str
    namespaces: frozenset[str] | None
    """None: everything."""


class _TokenStatus(msgspec.Struct, frozen=True):
    authenticated: bool = False
    user: User = User()
    audiences: tuple[str, ...] = ()


class _TokenReview(msgspec.Struct, frozen=True):
    status: _TokenStatus = _TokenStatus()


class _AccessStatus(msgspec.Struct, frozen=True):
    allowed: bool = False
    denied: bool = False


class _AccessReview(msgspec.Struct, frozen=True):
    status: _AccessStatus = _AccessStatus()


class _Metadata(msgspec.Struct, frozen=True):
    name: str = ""


class _Object(msgspec.Struct, frozen=True):
    metadata: _Metadata = _Metadata()


Review = TypeVar("Review", _TokenReview, _AccessReview)


class Remembered(msgspec.Struct, frozen=True):
    """An answer, and until when (monotonic seconds) it holds."""

    answer: Viewer | RpcError
    until: float


class Access:
    """Answers who a token is and what it may see; end it with `close`."""

    def __init__(self, reviews: Reviews, settings: AccessSettings, clock: Clock) -> None:
        self._reviews = reviews
        self.settings = settings
        self._clock = clock
        self._viewers: dict[bytes, Remembered] = {}
        self._refused: dict[bytes, Remembered] = {}
        """Apart, so that many bad tokens don't push out the good ones."""
        self._asking: dict[bytes, asyncio.Task[Remembered]] = {}
        self._tasks = TaskGroup()

    async def close(self) -> None:
        """Ask no more."""
        await self._tasks.close()

    async def viewer(self, headers: Mapping[str, str]) -> Viewer:
        """Of a call.

        Raises RpcError: UNAUTHENTICATED, PERMISSION_DENIED, RESOURCE_EXHAUSTED or UNAVAILABLE.
        """
        token = bearer(headers)
        # The token itself is not kept.
        key = hashlib.sha256(token.encode()).digest()
        known = self._viewers.get(key) or self._refused.get(key)
        if known is None or known.until <= self._clock.monotonic():
            # All who wait share one answer, also a failure; who goes away does not take it from the others.
            known = await asyncio.shield(self._asking.get(key) or self._begin(key, token))
        if isinstance(known.answer, RpcError):
            raise RpcError(known.answer.code, known.answer.sentence)
        return known.answer

    def _begin(self, key: bytes, token: str) -> asyncio.Task[Remembered]:
        if len(self._asking) >= ASKED and key not in self._viewers:
            sentence = f"{ASKED} other tokens are being checked: try again later"
            raise RpcError(Code.RESOURCE_EXHAUSTED, sentence)
        asking = self._asking[key] = self._tasks.spawn("review of a viewer", self._ask(key, token))
        asking.add_done_callback(lambda _: self._asking.pop(key))
        return asking

    async def _ask(self, key: bytes, token: str) -> Remembered:
        self._viewers.pop(key, None)
        self._refused.pop(key, None)
        settings = self.settings
        try:
            async with asyncio.timeout(settings.patience):
                viewer = await self._review(token)
        except (StoreError, TimeoutError) as error:
            reason = str(error) or f"no answer within {settings.patience:g} s"
            log.warning("viewers can't be checked", reason=reason)
            sentence = "the Kubernetes API can't be asked what you may see: try again later"
            return Remembered(RpcError(Code.UNAVAILABLE, sentence), 0.0)
        except RpcError as error:
            return self._remember(self._refused, key, error, settings.remember_refusal)
        return self._remember(self._viewers, key, viewer, settings.remember)

    def _remember(
        self, memory: dict[bytes, Remembered], key: bytes, answer: Viewer | RpcError, seconds: float
    ) -> Remembered:
        while len(memory) >= REMEMBERED:
            del memory[next(iter(memory))]
        memory[key] = Remembered(answer, self._clock.monotonic() + seconds)
        return memory[key]

    async def _review(self, token: str) -> Viewer:
        user = await self._user(token)
        if await self._may(user, ""):
            return Viewer(user.username, None)
        names = await self._namespaces()
        if len(names) > self.settings.namespaces:
            sentence = (
                f"the cluster has {len(names)} namespaces, more than the {self.settings.namespaces} that are "
                f"asked one by one: have {user.username} bound by a ClusterRoleBinding, or raise the bound"
            )
            raise RpcError(Code.PERMISSION_DENIED, sentence)
        turns = asyncio.Semaphore(REVIEWS)

        async def may(name: str) -> bool:
            async with turns:
                return await self._may(user, name)

        asking = [asyncio.ensure_future(may(name)) for name in names]
        try:
            allowed = await asyncio.gather(*asking)
        finally:
            # One that fails is the end of all: the others must not go on behind the next attempt.
            for each in asking:
                each.cancel()
        seen = frozenset(name for name, yes in zip(names, allowed, strict=True) if yes)
        if not seen:
            sentence = (
                f"{user.username} may not `get` the resource `flows` of group {GROUP} in any namespace: "
                "have a Role with that rule bound"
            )
            raise RpcError(Code.PERMISSION_DENIED, sentence)
        return Viewer(user.username, seen)

    async def _user(self, token: str) -> User:
        audiences = [self.settings.audience] if self.settings.audience else []
        spec: dict[str, Any] = {"token": token, "audiences": audiences}
        status = (await self._post(TOKEN_REVIEWS, spec, _TokenReview)).status
        # A server that knows nothing of audiences leaves them out: then the token may be meant for others.
        for_us = not audiences or bool(set(audiences) & set(status.audiences))
        if not status.authenticated or not status.user.username or not for_us:
            sentence = "the token is not valid, or made for somebody else: make a new one"
            raise RpcError(Code.UNAUTHENTICATED, sentence)
        return status.user

    async def _may(self, user: User, namespace: str) -> bool:
        spec = {
            "user": user.username,
            "uid": user.uid,
            "groups": user.groups,
            "extra": user.extra,
            "resourceAttributes": {
                "group": GROUP,
                "resource": "flows",
                "verb": "get",
                "namespace": namespace,
            },
        }
        status = (await self._post(ACCESS_REVIEWS, spec, _AccessReview)).status
        return status.allowed and not status.denied

    async def _namespaces(self) -> list[str]:
        listing = await self._reviews.list(NAMESPACES)
        try:
            objects = [msgspec.json.decode(item, type=_Object) for item in listing.items]
        except UNREADABLE as error:
            raise StoreError(f"a namespace is no object: {error}") from error
        return sorted(each.metadata.name for each in objects)

    async def _post(self, resource: Resource, spec: dict[str, Any], model: type[Review]) -> Review:
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "spec": spec}
        answer = await self._reviews.create(resource, msgspec.json.encode(body))
        try:
            return msgspec.json.decode(answer, type=model)
        except UNREADABLE as error:
            raise StoreError(f"the answer to a {resource.kind} is none: {error}") from error


def bearer(headers: Mapping[str, str]) -> str:
    """The token of a call. Raises RpcError(UNAUTHENTICATED)."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        sentence = "this relay wants to know who you are: send `authorization: Bearer TOKEN`"
        raise RpcError(Code.UNAUTHENTICATED, sentence)
    return token.strip()
