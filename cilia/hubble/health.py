"""grpc.health.v1.Health: what probes ask.

The two messages of that service have one field each, so they are read and written by hand. Source: the
health checking page of the gRPC repository (doc/health-checking.md).
"""

from __future__ import annotations

from collections.abc import Iterable

from cilia.hubble.encode import text
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.hubble.rpc.server import Methods, Sink

SERVING = b"\x08\x01"


class Health:
    """Serving, as long as it answers."""

    def __init__(self, services: Iterable[str]) -> None:
        """`services`: full names, such as observer.Observer."""
        self._requests = {text(1, service) for service in ("", *services)}

    def methods(self) -> Methods:
        """By path, for `rpc.server.Server`."""
        return {"/grpc.health.v1.Health/Check": self.check}

    async def check(self, data: bytes, sink: Sink) -> None:
        """The server as a whole (an empty name), or one service."""
        if data not in self._requests:
            raise RpcError(Code.NOT_FOUND, "that service is not served here: ask for the empty name")
        await sink.send([SERVING])
