"""How much a server lets its clients take of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Bounds; who hits one is told so in a sentence, and the others don't notice."""

    connections: int = 256
    """Clients at once. When all are taken, the one longest without a call gives way to a new one."""
    handshakes: int = 64
    """TLS handshakes at once; they come from anybody, so they don't count as clients."""
    streams: int = 64
    """Calls at once on one connection; what HTTP/2 tells the client."""
    calls: int = 512
    """Calls at once in all. Each may hold one chunk of answers that its client does not take."""
    request: int = 1 << 20
    """Bytes of one message of a request."""
    unfinished: int = 4 << 20
    """Bytes of requests that are not whole, of all calls of one connection."""
    waiting: int = 64
    """Messages of a conversation that are not answered yet."""
    headers: int = 16 << 10
    """Bytes of a request's headers, as HTTP/2 counts them: 32 on top for each."""
    patience: float = 10.0
    """Seconds for a handshake, for the first frame, and for a request to arrive whole."""
    cancels: int = 1000
    """Calls a client may cancel at once; every second forgives `forgiven` of them."""
    forgiven: float = 10.0
    unread: int = 1 << 20
    """Bytes of answers to pings and settings that a client may leave unread while it goes on asking."""
