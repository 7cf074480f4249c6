"""The client against a real HTTP server that behaves, misbehaves and goes away."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from aiohttp import web

from cilia.cluster import store
from cilia.cluster.kube.client import KubeStore
from cilia.cluster.kube.kubeconfig import Endpoint
from cilia.cluster.store import NODES, PODS, Preconditions
from cilia.model.resources.base import AnyObject

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def status(code: int, reason: str, **headers: str) -> web.Response:
    body = {"kind": "Status", "code": code, "reason": reason, "message": f"told {reason}"}
    return web.json_response(body, status=code, headers=headers)


def against(handler: Handler, story: Callable[[KubeStore], Awaitable[None]], **endpoint: Any) -> None:
    """Run a story with a client of a server on loopback."""

    async def run() -> None:
        server = web.Server(handler)
        runner = web.ServerRunner(server)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        try:
            async with KubeStore(Endpoint(server=f"http://{host}:{port}", **endpoint)) as kube:
                await story(kube)
        finally:
            await runner.cleanup()

    asyncio.run(run())


def names(listing: store.Listing) -> list[str]:
    return [store.decode(item, AnyObject).metadata.name for item in listing.items]


def page(*items: str, version: str = "9", token: str = "") -> web.Response:
    body = {
        "metadata": {"resourceVersion": version, "continue": token},
        "items": [{"metadata": {"name": name}} for name in items],
    }
    return web.json_response(body)


def test_a_list_follows_its_pages() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        assert request.path == "/api/v1/namespaces/n/pods"
        assert request.query["labelSelector"] == "a=b"
        assert request.headers["Authorization"] == "Bearer t"
        return page("three") if request.query.get("continue") == "c" else page("one", "two", token="c")

    async def story(kube: KubeStore) -> None:
        listing = await kube.list(PODS, namespace="n", label_selector="a=b")
        assert names(listing) == ["one", "two", "three"]
        assert listing.resource_version == "9"

    against(handler, story, token="t")


def test_a_list_whose_continuation_expired_starts_over_in_one_piece() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if "limit" not in request.query:
            return page("one", "two")
        return status(410, "Expired") if "continue" in request.query else page("one", token="c")

    async def story(kube: KubeStore) -> None:
        assert names(await kube.list(NODES)) == ["one", "two"]

    against(handler, story)


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (400, "BadRequest", store.Invalid),
        (403, "Forbidden", store.Forbidden),
        (404, "NotFound", store.NotFound),
        (409, "AlreadyExists", store.AlreadyExists),
        (409, "Conflict", store.Conflict),
        (410, "Expired", store.Gone),
        (422, "Invalid", store.Invalid),
        (500, "InternalError", store.Unavailable),
        (503, "ServiceUnavailable", store.Unavailable),
    ],
)
def test_errors_say_whose_fault_it_is(code: int, reason: str, error: type[store.StoreError]) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return status(code, reason)

    async def story(kube: KubeStore) -> None:
        with pytest.raises(error, match=f"told {reason}") as caught:
            await kube.get(NODES, "x")
        assert type(caught.value) is error

    against(handler, story)


def test_an_error_without_a_status_is_still_a_sentence() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=502, text="")

    async def story(kube: KubeStore) -> None:
        with pytest.raises(store.Unavailable, match="answered 502"):
            await kube.get(NODES, "x")

    against(handler, story)


def test_a_throttled_request_is_repeated() -> None:
    seen = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(await request.read())
        throttled = len(seen) < 3
        return status(429, "Slow", **{"Retry-After": "0"}) if throttled else web.Response(body=b"{}")

    async def story(kube: KubeStore) -> None:
        assert await kube.create(PODS, b'{"a": 1}', namespace="n") == b"{}"
        assert seen == [b'{"a": 1}'] * 3

    against(handler, story)


def test_writes_use_the_verbs_and_types_of_the_api() -> None:
    seen = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        seen.append((request.method, request.path, request.content_type, await request.text()))
        return web.Response(body=b"{}")

    async def story(kube: KubeStore) -> None:
        await kube.replace(NODES, "x", b"{1}")
        await kube.patch(NODES, "x", b"{2}", subresource="status")
        await kube.replace_status(PODS, "p", b"{3}", namespace="n")
        await kube.delete(PODS, "p", namespace="n", preconditions=Preconditions(uid="u"))

    against(handler, story)
    assert seen[:3] == [
        ("PUT", "/api/v1/nodes/x", "application/json", "{1}"),
        ("PATCH", "/api/v1/nodes/x/status", "application/merge-patch+json", "{2}"),
        ("PUT", "/api/v1/namespaces/n/pods/p/status", "application/json", "{3}"),
    ]
    assert seen[3][:2] == ("DELETE", "/api/v1/namespaces/n/pods/p")
    assert '"preconditions":{"uid":"u"}' in seen[3][3]


def test_a_watch_yields_events_until_the_server_ends_it() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        assert request.query["resourceVersion"] == "5"
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type":"ADDED","object":{"metadata":{"name":"a"}}}\n{"type":"DELE')
        await response.write(b'TED","object":{"metadata":{"name":"a"}}}\n')
        return response

    async def story(kube: KubeStore) -> None:
        events = [event async for event in kube.watch(PODS, since="5")]
        assert [event.type for event in events] == ["ADDED", "DELETED"]
        assert [store.decode(event.object, AnyObject).metadata.name for event in events] == ["a", "a"]

    against(handler, story)


@pytest.mark.parametrize("inside", [True, False])
def test_a_watch_whose_history_is_gone(inside: bool) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if not inside:
            return status(410, "Expired")
        return web.Response(
            body=b'{"type":"ERROR","object":{"code":410,"reason":"Expired","message":"old"}}\n'
        )

    async def story(kube: KubeStore) -> None:
        with pytest.raises(store.Gone):
            async for _ in kube.watch(PODS, since="5"):
                pass

    against(handler, story)


def test_a_watch_that_speaks_garbage_or_breaks_off_is_unavailable() -> None:
    bodies = [b"<html>\n", b'{"type":"ADDED","object":{}}\n']

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(bodies.pop(0))
        assert request.transport is not None
        request.transport.abort()
        return response

    async def story(kube: KubeStore) -> None:
        for _ in range(2):
            with pytest.raises(store.Unavailable, match="can't be reached"):
                async for _ in kube.watch(PODS, since="5"):
                    pass

    against(handler, story)


def test_a_watch_can_be_left_early() -> None:
    left = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type":"ADDED","object":{}}\n')
        try:
            while True:
                await asyncio.sleep(0.01)
                await response.write(b"\n")
        except ConnectionError:
            left.set()
            raise

    async def story(kube: KubeStore) -> None:
        async with aclosing(kube.watch(PODS, since="5")) as events:
            async for _ in events:
                break
        await asyncio.wait_for(left.wait(), 30)

    against(handler, story)


def test_a_refused_token_file_is_read_again(tmp_path: Any) -> None:
    token = tmp_path / "token"
    token.write_text("old")

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers["Authorization"] != "Bearer new":
            token.write_text("new")
            return status(401, "Unauthorized")
        return web.Response(body=b"{}")

    async def story(kube: KubeStore) -> None:
        assert await kube.get(NODES, "x") == b"{}"

    against(handler, story, token_file=token)


def test_nobody_listens() -> None:
    async def story() -> None:
        async with KubeStore(Endpoint(server="http://127.0.0.1:1")) as kube:
            with pytest.raises(store.Unavailable, match=r"http://127\.0\.0\.1:1 can't be reached"):
                await kube.list(PODS)

    asyncio.run(story())


def test_bad_certificates_are_a_sentence() -> None:
    async def story() -> None:
        async with KubeStore(Endpoint(server="https://127.0.0.1:1", ca=b"nonsense")) as kube:
            with pytest.raises(store.Forbidden, match="certificates can't be used"):
                await kube.list(PODS)

    asyncio.run(story())
