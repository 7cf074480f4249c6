"""What a server and its services agree on: calls, and the handlers that answer them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class Sink(Protocol):
    """Where a handler puts its answers."""

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send serialised messages in as few frames as possible; returns when there is room again."""
        ...


class BlockSink(Sink, Protocol):
    """One for handlers that have many small messages."""

    async def send_block(self, block: bytes) -> None:
        """Send messages that are framed already (`messages.frame`)."""
        ...


class Call(BlockSink, Protocol):
    """One call, for handlers that want to know who asks."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the request, by lower-case name; `:path` and the like, too."""
        ...

    @property
    def client(self) -> str:
        """Common name in the client's certificate; empty without TLS."""
        ...

    @property
    def peer(self) -> str:
        """Where the client is: `10.0.0.7:51234`, or `user 0` on a unix socket."""
        ...

    async def receive(self) -> bytes | None:
        """The next message of a conversation; None when the client has said all."""
        ...


Handler = Callable[[bytes, Call], Awaitable[None]]
"""Gets the serialised request; raises RpcError to end with another status than OK."""


@dataclass(frozen=True)
class Conversation:
    """A method to which a client may send any number of messages, at any time."""

    talk: Callable[[Call], Awaitable[None]]
    """Takes messages by `receive`; raises RpcError to end with another status than OK."""


Methods = Mapping[str, Handler | Conversation]
"""By path: `/package.Service/Method`."""
