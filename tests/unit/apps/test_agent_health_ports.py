"""Health checks of load balancers: what is answered, and which ports are open."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable

from cilia.apps.agent.health_ports import HealthPorts, encode, endpoints_reply, proxy_reply
from cilia.kit.clock import ManualClock
from cilia.kit.tasks import TaskGroup
from cilia.model.service import HealthCheck
from cilia.schema import Desired
from tests.support.machine import free_port


def check(port: int, count: int) -> HealthCheck:
    return HealthCheck(port=port, namespace="shop", name="web", local_endpoints=count)


def test_a_service_with_endpoints_here_is_healthy() -> None:
    reply = endpoints_reply(check(1, 2), healthy=True)
    assert (reply.status, reply.headers) == (200, {"X-Load-Balancing-Endpoint-Weight": "2"})
    assert reply.body == {
        "service": {"namespace": "shop", "name": "web"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }
    assert endpoints_reply(check(1, 0), healthy=True).status == 503
    assert endpoints_reply(check(1, 2), healthy=False).status == 503
    assert endpoints_reply(None, healthy=True).status == 503


def test_the_nodes_own_health() -> None:
    reply = proxy_reply("/healthz?x", healthy=True, updated=0, now=1)
    assert reply.status == 200
    assert reply.body["lastUpdated"] == "1970-01-01T00:00:00Z"
    assert proxy_reply("/livez", healthy=False, updated=0, now=1).status == 503
    assert proxy_reply("/metrics", healthy=True, updated=0, now=1).status == 404


def test_the_bytes_of_an_answer() -> None:
    data = encode(endpoints_reply(check(1, 0), healthy=True))
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert encode(endpoints_reply(check(1, 0), healthy=True), bodiless=True) == head + b"\r\n\r\n"


class Story:
    """A running set of listeners."""

    def __init__(self) -> None:
        self.desired = Desired()
        self.node = free_port("")
        self.healthy = True
        self.ports = HealthPorts(
            self.desired,
            node=f"127.0.0.1:{self.node}",
            healthy=lambda: self.healthy,
            clock=ManualClock(),
        )

    async def ask(self, port: int, request: bytes = b"GET /healthz HTTP/1.1\r\n\r\n") -> tuple[int, bytes]:
        async with asyncio.timeout(20):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0.01)
            writer.write(request)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            return int(head.split()[1]) if head else 0, body

    async def closed(self, port: int) -> None:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionError:
                    return
                writer.close()
                await asyncio.sleep(0.01)


def play(story: Callable[[Story], Awaitable[None]]) -> None:
    async def main() -> None:
        opened = Story()
        async with TaskGroup() as tasks:
            tasks.spawn("ports", opened.ports.run())
            await story(opened)

    asyncio.run(main())


def test_ports_open_and_close_with_their_services() -> None:
    async def story(opened: Story) -> None:
        port = free_port("")
        opened.desired.health_checks.put(check(port, 3))
        opened.ports.look()
        status, body = await opened.ask(port)
        assert (status, json.loads(body)["localEndpoints"]) == (200, 3)
        opened.desired.health_checks.put(check(port, 0))
        opened.ports.look()
        assert (await opened.ask(port))[0] == 503
        assert (await opened.ask(opened.node))[0] == 200
        opened.healthy = False
        assert (await opened.ask(opened.node))[0] == 503
        opened.desired.health_checks.delete(port)
        opened.ports.look()
        await opened.closed(port)

    play(story)


def test_what_is_no_request_gets_an_answer_or_none() -> None:
    async def story(opened: Story) -> None:
        for request, status in (
            (b"POST / HTTP/1.1\r\n\r\n", 405),
            (b"nonsense\r\n\r\n", 400),
            (b"GET /healthz HTTP/1.1\r\nx: " + b"a" * 20_000 + b"\r\n\r\n", 0),
            (b"HEAD /livez HTTP/1.0\r\n\r\n", 200),
        ):
            assert (await opened.ask(opened.node, request))[0] == status

    play(story)


def test_a_port_that_is_taken_holds_nothing_else_up() -> None:
    async def story(opened: Story) -> None:
        with socket.create_server(("", 0)) as taken:
            port = int(taken.getsockname()[1])
            opened.desired.health_checks.put(check(port, 1))
            other = free_port("")
            opened.desired.health_checks.put(check(other, 1))
            opened.ports.look()
            assert (await opened.ask(other))[0] == 200

    play(story)
