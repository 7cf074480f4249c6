"""grpcio as a client: the implementation that is not ours asks our servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from cilia.hubble.rpc.server import Methods, Server
from cilia.proto.observer import observer_pb2
from tests.support.hubble import Beside


def get_flows(channel: grpc.Channel, timeout: float = 60, metadata: Any = None, **fields: Any) -> Any:
    """A GetFlows call; `fields` are the request's."""
    call = channel.unary_stream(
        "/observer.Observer/GetFlows",
        request_serializer=observer_pb2.GetFlowsRequest.SerializeToString,
        response_deserializer=observer_pb2.GetFlowsResponse.FromString,
    )
    return call(observer_pb2.GetFlowsRequest(**fields), timeout=timeout, metadata=metadata)


def unary(channel: grpc.Channel, method: str, request: Any, answer: Any, metadata: Any = None) -> Any:
    """Another call of the Observer; `answer` is the class of what comes."""
    call = channel.unary_unary(
        f"/observer.Observer/{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=answer.FromString,
    )
    return call(request, timeout=60, metadata=metadata)


@contextmanager
def served_over_tcp(beside: Beside, methods: Methods) -> Iterator[tuple[Server, grpc.Channel]]:
    """One more server on an observer's loop, and a channel to it by loopback."""
    server = Server(methods)
    port = beside.run(server.listen_tcp("127.0.0.1", 0))
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield server, channel
    finally:
        beside.run(server.close())
