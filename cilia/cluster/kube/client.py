"""The store protocol over HTTP, against any Kubernetes API server.

Source: Kubernetes API concepts; HTTP verbs, list chunking, watches, Status objects.
"""

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from cilia.cluster import store
from cilia.cluster.kube.credentials import Credential, Credentials
from cilia.cluster.kube.kubeconfig import ConfigError, Endpoint, discover
from cilia.cluster.kube.tls import client_context, without_system_authorities
from cilia.cluster.store import Listing, Preconditions, Resource, WatchEvent
from cilia.kit.clock import Clock, SystemClock
from cilia.wire.watch_stream import ProtocolError, WatchFailure, WatchStream

with without_system_authorities():
    # It makes two default contexts that trust them; every request here brings a context of its own.
    import aiohttp

PAGE = 500
"""Objects an answer of a list may hold; client-go's default."""

REQUEST_SECONDS = 30.0
CONNECT_SECONDS = 10.0
WATCH_SECONDS = (300, 600)
"""A watch is asked to end after a random time in this range, so that clients spread over servers."""

MAX_THROTTLED = 5
"""How often a request that the server put off (429) is repeated before it is reported."""

MAX_PAUSE_SECONDS = 10.0


class _Status(msgspec.Struct, frozen=True):
    """A meta/v1 Status, as far as errors go."""

    code: int = 0
    reason: str = ""
    message: str = ""


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMeta = _ListMeta()
    items: list[msgspec.Raw] | None = None


class KubeStore:
    """A Kubernetes API server as a `cilia.cluster.store.Store`.

    Use as `async with KubeStore(endpoint) as store`. All errors are StoreErrors.
    """

    def __init__(self, endpoint: Endpoint, *, clock: Clock | None = None, user_agent: str = "cilia") -> None:
        self._endpoint = endpoint
        self._credentials = Credentials(endpoint, clock or SystemClock())
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None
        self._tls: tuple[Credential, ssl.SSLContext] | None = None

    @classmethod
    def discover(
        cls,
        kubeconfig: Path | None,
        environ: Mapping[str, str],
        *,
        context: str | None = None,
        user_agent: str = "cilia",
    ) -> Self:
        """Find the server as kubectl would; raises ConfigError."""
        return cls(discover(kubeconfig, environ, context=context), user_agent=user_agent)

    @property
    def server(self) -> str:
        """The URL of the server, for people."""
        return self._endpoint.server

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Listing:
        path = resource.path(namespace=namespace)
        selectors = _selectors(label_selector, field_selector)
        try:
            return await self._list_pages(path, {**selectors, "limit": str(PAGE)})
        except store.Gone:
            # The continuation expired between pages; ask for all at once, which can't expire.
            return await self._list_pages(path, selectors)

    async def _list_pages(self, path: str, params: dict[str, str]) -> Listing:
        items: list[msgspec.Raw] = []
        while True:
            page = _decoded(await self._request("GET", path, params=params), _List)
            items += page.items or ()
            if not page.metadata.continue_:
                return Listing(items, page.metadata.resource_version)
            params = {**params, "continue": page.metadata.continue_}

    async def watch(
        self,
        resource: Resource,
        *,
        since: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> AsyncGenerator[WatchEvent, None]:
        params = {
            **_selectors(label_selector, field_selector),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": since,
            "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),
        }
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=WATCH_SECONDS[1] + REQUEST_SECONDS
        )
        frames = WatchStream()
        try:
            async with await self._send(
                "GET", resource.path(namespace=namespace), params=params, timeout=timeout
            ) as response:
                if response.status != 200:
                    raise _error(response, await response.read())
                async for chunk in response.content.iter_any():
                    for event in frames.feed(chunk):
                        if isinstance(event, WatchFailure):
                            raise _failure(event.code, event.reason, event.message)
                        yield event
        except (aiohttp.ClientError, TimeoutError, OSError, ProtocolError) as error:
            raise self._unreachable(error) from error

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> bytes:
        return await self._request("GET", resource.path(namespace=namespace, name=name))

    async def create(self, resource: Resource, body: bytes, *, namespace: str | None = None) -> bytes:
        return await self._request("POST", resource.path(namespace=namespace), body=body)

    async def replace(
        self,
        resource: Resource,
        name: str,
        body: bytes,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> bytes:
        path = resource.path(namespace=namespace, name=name, subresource=subresource)
        return await self._request("PUT", path, body=body)

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: bytes,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> bytes:
        path = resource.path(namespace=namespace, name=name, subresource=subresource)
        return await self._request("PATCH", path, body=patch, content_type="application/merge-patch+json")

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
        options: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
        }
        if preconditions is not None:
            given = {"uid": preconditions.uid, "resourceVersion": preconditions.resource_version}
            options["preconditions"] = {key: value for key, value in given.items() if value is not None}
        path = resource.path(namespace=namespace, name=name)
        await self._request("DELETE", path, body=msgspec.json.encode(options))

    async def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        """Send a request and return the body of its success; waits and repeats when told to slow down."""
        throttled = 0
        while True:
            try:
                async with await self._send(
                    method, path, params=params, body=body, content_type=content_type
                ) as response:
                    answer = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise self._unreachable(error) from error
            if response.status < 300:
                return answer
            problem = _error(response, answer)
            throttled += 1
            if response.status != 429 or throttled > MAX_THROTTLED:
                raise problem
            pause = problem.retry_after if isinstance(problem, store.Unavailable) else None
            await asyncio.sleep(min(MAX_PAUSE_SECONDS, 1.0 if pause is None else pause))

    async def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:
        """Send once, or twice when the server does not know the credential: it may have been renewed."""
        response = await self._send_once(method, path, params, body, content_type, timeout)
        if response.status != 401:
            return response
        response.release()
        self._credentials.forget()
        return await self._send_once(method, path, params, body, content_type, timeout)

    async def _send_once(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: bytes | None,
        content_type: str,
        timeout: aiohttp.ClientTimeout | None,
    ) -> aiohttp.ClientResponse:
        try:
            credential = await self._credentials.current()
            context = self._context(credential)
        except ConfigError as error:
            raise store.Forbidden(str(error)) from error
        headers = {"Accept": "application/json", "User-Agent": self._user_agent}
        if credential.authorization is not None:
            headers["Authorization"] = credential.authorization
        if body is not None:
            headers["Content-Type"] = content_type
        options: dict[str, Any] = {"timeout": timeout} if timeout is not None else {}
        return await self._open().request(
            method,
            self._endpoint.server + path,
            params=params,
            data=body,
            headers=headers,
            ssl=context,
            server_hostname=self._endpoint.server_name,
            proxy=self._endpoint.proxy,
            allow_redirects=False,
            **options,
        )

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=_socket, happy_eyeballs_delay=0.25),
                timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS),
                auto_decompress=True,
            )
        return self._session

    def _context(self, credential: Credential) -> ssl.SSLContext:
        """Return the TLS context of a credential; a new one only when the client certificate changed."""
        if self._tls is None or (self._tls[0].client_certificate, self._tls[0].client_key) != (
            credential.client_certificate,
            credential.client_key,
        ):
            context = client_context(
                self._endpoint.ca,
                credential.client_certificate,
                credential.client_key,
                insecure=self._endpoint.insecure,
            )
            self._tls = (credential, context)
        return self._tls[1]

    def _unreachable(self, error: Exception) -> store.Unavailable:
        what = str(error) or type(error).__name__
        return store.Unavailable(f"API server {self.server} can't be reached: {what}")


def _socket(address: Any) -> socket.socket:
    """Return a socket that notices within half a minute that the other side is gone (a watch only reads)."""
    family, kind, protocol, _, _ = address
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return opened


def _selectors(labels: str | None, fields: str | None) -> dict[str, str]:
    given = {"labelSelector": labels, "fieldSelector": fields}
    return {key: value for key, value in given.items() if value}


def _decoded(answer: bytes, model: type[_List]) -> _List:
    try:
        return msgspec.json.decode(answer, type=model)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise store.Unavailable(f"the API server's answer is not a list: {error}") from error


def _error(response: aiohttp.ClientResponse, answer: bytes) -> store.StoreError:
    """Translate an error answer, with or without a Status in it."""
    try:
        status = msgspec.json.decode(answer, type=_Status)
    except (msgspec.DecodeError, UnicodeDecodeError):
        status = _Status(message=answer[:200].decode(errors="replace").strip())
    message = status.message or f"the API server answered {response.status} {response.reason}"
    after = response.headers.get("Retry-After", "")
    return _failure(response.status, status.reason, message, float(after) if after.isdecimal() else None)


def _failure(code: int, reason: str, message: str, retry_after: float | None = None) -> store.StoreError:
    """Return the store's error for an HTTP status and a Status reason."""
    match code:
        case 404:
            return store.NotFound(message)
        case 409 if reason == "AlreadyExists":
            return store.AlreadyExists(message)
        case 409:
            return store.Conflict(message)
        case 410:
            return store.Gone(message)
        case 401 | 403:
            return store.Forbidden(message)
        case 429:
            return store.Unavailable(message, retry_after)
        case _ if 400 <= code < 500:
            return store.Invalid(message)
    return store.Unavailable(message, retry_after)
