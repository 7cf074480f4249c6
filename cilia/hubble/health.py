"""grpc.health.v1.Health: what probes ask.

Source: the health checking page of the gRPC repository (doc/health-checking.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from google.protobuf.message import DecodeError

from cilia.hubble.rpc.calls import Methods, Sink
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.proto.health.health_pb2 import HealthCheckRequest, HealthCheckResponse


class Health:
    """What is served, and who wants to hear when that changes."""

    def __init__(self, services: Iterable[str]) -> None:
        """`services`: full names, such as observer.Observer; all are served at first."""
        self._statuses = dict.fromkeys(("", *services), HealthCheckResponse.SERVING)
        self._listeners: set[asyncio.Event] = set()

    def methods(self) -> Methods:
        """By path, for `rpc.server.Server`."""
        return {"/grpc.health.v1.Health/Check": self.check, "/grpc.health.v1.Health/Watch": self.watch}

    def set(self, serving: bool, *services: str) -> None:
        """Say whether services are served; none named: the server as a whole."""
        status = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
        self._statuses |= dict.fromkeys(services or ("",), status)
        for listener in self._listeners:
            listener.set()

    async def check(self, data: bytes, sink: Sink) -> None:
        """The server as a whole (an empty name), or one service."""
        status = self._statuses.get(_service(data))
        if status is None:
            raise RpcError(Code.NOT_FOUND, "that service is not served here: ask for the empty name")
        await sink.send([HealthCheckResponse(status=status).SerializeToString()])

    async def watch(self, data: bytes, sink: Sink) -> None:
        """The same, at once and whenever it changes; a service that is not served may come to be."""
        service = _service(data)
        told: int | None = None
        changed = asyncio.Event()
        self._listeners.add(changed)
        try:
            while True:
                status = self._statuses.get(service, HealthCheckResponse.SERVICE_UNKNOWN)
                if status != told:
                    await sink.send([HealthCheckResponse(status=status).SerializeToString()])
                told = status
                await changed.wait()
                changed.clear()
        finally:
            self._listeners.discard(changed)


def _service(data: bytes) -> str:
    try:
        return HealthCheckRequest.FromString(data).service
    except DecodeError:
        raise RpcError(Code.INVALID_ARGUMENT, "the request is not a HealthCheckRequest") from None
