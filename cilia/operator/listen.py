"""/healthz and /metrics over plain HTTP, each on the address it is told, or together."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from cilia.operator.metrics import Metrics


class ListenError(Exception):
    """An address can't be listened on; the message says which and why."""


@asynccontextmanager
async def serving(
    health: str, metrics_address: str, *, why_unhealthy: Callable[[], str], metrics: Metrics
) -> AsyncGenerator[None, None]:
    """Serve while the context lasts; an empty address serves nothing.

    /healthz answers 200 `ok`, or 503 with the sentence `why_unhealthy` returns. Raises ListenError.
    """

    async def healthz(_request: web.Request) -> web.Response:
        problem = why_unhealthy()
        return web.Response(status=503 if problem else 200, text=problem or "ok")

    async def numbers(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    routes: dict[str, list[web.RouteDef]] = {}
    routes.setdefault(health, []).append(web.get("/healthz", healthz))
    routes.setdefault(metrics_address, []).append(web.get("/metrics", numbers))
    runners = []
    try:
        for address, found in routes.items():
            if address:
                runners.append(await _start(address, found))
        yield
    finally:
        for runner in runners:
            await runner.cleanup()


async def _start(address: str, routes: list[web.RouteDef]) -> web.AppRunner:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ListenError(f"{address!r} is not HOST:PORT")
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
    except (OSError, OverflowError) as error:
        await runner.cleanup()
        raise ListenError(f"{address} can't be listened on: {error}") from error
    return runner
