"""A blocking gRPC client for Hubble: enough for command lines, tests and tools.

    with Client("unix:///var/run/cilia/hubble.sock") as client:
        for response in client.get_flows(GetFlowsRequest(number=20)):
            ...

Targets: `unix:///path` (or a path), `host:port`, `tcp://host:port`, `tls://host:port`.
"""

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import h2.events
import h2.exceptions

from cilia.hubble.rpc.http2 import client_side
from cilia.hubble.rpc.messages import (
    Code,
    FramingError,
    RpcError,
    Unframer,
    frame,
    request_headers,
    status_of,
)
from cilia.hubble.rpc.targets import host_and_port, socket_path
from cilia.proto.health import health_pb2
from cilia.proto.observer import observer_pb2
from cilia.proto.peer import peer_pb2

WINDOW = 4 << 20
"""Bytes the server may send ahead."""
READ = 256 << 10


class Client:
    """One connection; calls run one after the other."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float = 5.0,
        tls: ssl.SSLContext | None = None,
        server_name: str = "",
        authorization: str = "",
        patience: float = 10.0,
    ) -> None:
        """Connect. Raises RpcError(UNAVAILABLE) when nobody answers within `timeout` seconds.

        `patience`: seconds to wait for the answer of a call that has one.
        `server_name`: what the server's certificate must name; empty: the target's host. `authorization`:
        the header of that name, which says who asks (`Bearer TOKEN`); empty: none.
        """
        self._target = target
        self._authorization = authorization
        self._patience = patience
        self._socket = connect(target, timeout, tls, server_name)
        self._h2 = client_side(WINDOW, WINDOW, READ)
        self._unacknowledged = 0

    def close(self) -> None:
        """Close the connection; a running call is cancelled by that."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    # -- calls --------------------------------------------------------------------------------------------

    def stream(self, method: str, request: bytes, *, timeout: float | None = None) -> Iterator[bytes]:
        """Serialised answers of a call. Raises RpcError when the server says so or goes away."""
        authorization = [("authorization", self._authorization)] if self._authorization else []
        stream_id = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream_id, request_headers(method, timeout, authorization))
        self._send_request(stream_id, frame([request]))
        yield from self._answers(stream_id)

    def unary(self, method: str, request: bytes, *, timeout: float | None = None) -> bytes:
        """The one serialised answer of a call, within `timeout` seconds in place of the client's patience.
        Raises RpcError."""
        seconds = self._patience if timeout is None else timeout
        # The server is told when to give up; the second more is for one that hangs.
        self._socket.settimeout(seconds + 1)
        try:
            answers = list(self.stream(method, request, timeout=seconds))
        finally:
            self._socket.settimeout(None)
        if len(answers) != 1:
            raise RpcError(Code.INTERNAL, f"the server sent {len(answers)} answers to a call that has one")
        return answers[0]

    def get_flows(self, request: observer_pb2.GetFlowsRequest) -> Iterator[observer_pb2.GetFlowsResponse]:
        """Flows, gaps and node states. Raises RpcError."""
        for data in self.stream("/observer.Observer/GetFlows", request.SerializeToString()):
            yield observer_pb2.GetFlowsResponse.FromString(data)

    def server_status(self) -> observer_pb2.ServerStatusResponse:
        """Counters of the server. Raises RpcError."""
        return observer_pb2.ServerStatusResponse.FromString(
            self.unary("/observer.Observer/ServerStatus", b"")
        )

    def get_nodes(self) -> observer_pb2.GetNodesResponse:
        """Nodes the server knows. Raises RpcError."""
        return observer_pb2.GetNodesResponse.FromString(self.unary("/observer.Observer/GetNodes", b""))

    def get_namespaces(self) -> observer_pb2.GetNamespacesResponse:
        """Namespaces seen lately. Raises RpcError."""
        return observer_pb2.GetNamespacesResponse.FromString(
            self.unary("/observer.Observer/GetNamespaces", b"")
        )

    def peers(self) -> Iterator[peer_pb2.ChangeNotification]:
        """Observers that come and go. Raises RpcError."""
        for data in self.stream("/peer.Peer/Notify", b""):
            yield peer_pb2.ChangeNotification.FromString(data)

    def health(self, service: str) -> str:
        """The name of a service's state, such as SERVING. Raises RpcError."""
        asked = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        answer = health_pb2.HealthCheckResponse.FromString(self.unary("/grpc.health.v1.Health/Check", asked))
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    # -- the wire -----------------------------------------------------------------------------------------

    def _send_request(self, stream_id: int, data: bytes) -> None:
        while data:
            size = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if size <= 0:
                for event in self._receive():
                    self._ended(event, stream_id)
                continue
            self._h2.send_data(stream_id, data[:size], end_stream=size >= len(data))
            data = data[size:]
        self._flush()

    def _answers(self, stream_id: int) -> Iterator[bytes]:
        unframer = Unframer(WINDOW)
        ready: deque[bytes] = deque()
        ended = False
        while not ended:
            for event in self._receive():
                if isinstance(event, h2.events.DataReceived) and event.stream_id == stream_id:
                    self._acknowledge(event)
                    ready += unframer.feed(event.data)
                ended = ended or self._ended(event, stream_id)
            while ready:
                yield ready.popleft()

    def _ended(self, event: h2.events.Event, stream_id: int) -> bool:
        """Whether the call is over; raises its error."""
        if isinstance(event, (h2.events.TrailersReceived, h2.events.ResponseReceived)):
            headers = {str(name): str(value) for name, value in event.headers}
            if "grpc-status" in headers or headers.get(":status", "200") != "200":
                error = status_of(headers)
                if error:
                    raise error
        if isinstance(event, h2.events.StreamReset) and event.stream_id == stream_id:
            raise RpcError(Code.UNAVAILABLE, f"{self._target} ended the call")
        if isinstance(event, h2.events.ConnectionTerminated):
            raise RpcError(Code.UNAVAILABLE, f"{self._target} is shutting down: try again")
        return isinstance(event, h2.events.StreamEnded) and event.stream_id == stream_id

    def _acknowledge(self, event: h2.events.DataReceived) -> None:
        """Give window back in big steps: a WINDOW_UPDATE per frame would cost as much as the frame."""
        self._unacknowledged += event.flow_controlled_length or 0
        if self._unacknowledged >= WINDOW // 4:
            self._h2.acknowledge_received_data(self._unacknowledged, event.stream_id)
            self._unacknowledged = 0

    def _receive(self) -> list[h2.events.Event]:
        self._flush()
        try:
            data = self._socket.recv(READ)
            if not data:
                raise RpcError(
                    Code.UNAVAILABLE, f"{self._target} closed the connection: is it Hubble, and alive?"
                )
            events = self._h2.receive_data(data)
        except ssl.SSLError as error:
            raise untrusted(self._target, error) from error
        except (OSError, h2.exceptions.ProtocolError, FramingError) as error:
            raise RpcError(Code.UNAVAILABLE, f"the connection to {self._target} broke: {error}") from error
        self._flush()
        return events

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if not data:
            return
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise RpcError(Code.UNAVAILABLE, f"the connection to {self._target} broke: {error}") from error


def connect(
    target: str, timeout: float, tls: ssl.SSLContext | None = None, server_name: str = ""
) -> socket.socket:
    """A connected socket without a time-out. Raises RpcError(UNAVAILABLE)."""
    try:
        path = socket_path(target)
        if path is not None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(timeout)
            connection.connect(path)
        else:
            scheme, host, port = split_target(target)
            connection = socket.create_connection((host, port), timeout)
            if scheme == "tls" or tls:
                context = tls or ssl.create_default_context()
                context.set_alpn_protocols(["h2"])
                connection = context.wrap_socket(connection, server_hostname=server_name or host)
    except ssl.SSLError as error:
        raise untrusted(target, error) from error
    except (OSError, ValueError) as error:
        raise RpcError(Code.UNAVAILABLE, unreachable(target, error, timeout)) from error
    connection.settimeout(None)
    return connection


def unreachable(target: str, error: Exception, timeout: float) -> str:
    """Why nobody can be asked there, and what to look at."""
    match error:
        case ValueError():
            return f"{target!r} is no address of a server: write unix:///path or host:port"
        case FileNotFoundError():
            return f"there is no socket {target}: is the agent running, with Hubble on?"
        case PermissionError():
            return f"you may not use {target}: try as root, or as a member of the socket's group"
        case TimeoutError():
            return f"{target} did not answer within {timeout:g} s: is it running, and may you reach it?"
        case socket.gaierror():
            return f"no address is known for the host of {target} ({error.strerror}): is its name right?"
        case ConnectionRefusedError():
            return f"nobody answers at {target}: is the agent running, and does it listen there?"
    return (
        f"can't reach Hubble at {target} ({getattr(error, 'strerror', None) or error}): is the agent running?"
    )


def untrusted(target: str, error: ssl.SSLError) -> RpcError:
    """What is wrong with the certificates of one side."""
    # Imported late: a client of a socket needs no TLS, whose module takes as long to load as all others.
    from cilia.kit.tls import refusal

    return RpcError(
        Code.UNAVAILABLE, f"Hubble at {target} is not trusted, or does not trust us: {refusal(error)}"
    )


def split_target(target: str) -> tuple[str, str, int]:
    """Scheme, host and port of `host:port`, `tcp://host:port` or `tls://host:port`. Raises ValueError."""
    scheme, _, rest = target.rpartition("://")
    host, port = host_and_port(rest)
    if not host or "/" in host or scheme not in ("", "tcp", "tls") or not port:
        raise ValueError(target)
    return scheme, host, port
