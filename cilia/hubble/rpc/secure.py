"""TLS between a socket and a connection, so that a refused client is counted, timed and named.

asyncio's own TLS keeps a failed handshake to itself, and one context for good. Here the handshake is ours:
each connection asks `ServerTls` for the context in force.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Protocol

from cilia.hubble.rpc.connection import Connection
from cilia.hubble.rpc.rounds import Rounds
from cilia.kit.tls import GRPC, ServerTls, refusal

READ = 16 << 10
"""Bytes decrypted in one step: what a record of TLS has at most (RFC 8446, 5.1)."""
MOST_UNREAD = 64 << 10
"""Encrypted bytes that may wait for their turn before nothing more is taken from the socket."""


class Gate(Protocol):
    """What handshakes need of their server."""

    rounds: Rounds
    """For what clients send."""

    def handshaking(self, secured: Secured) -> bool:
        """Whether one more handshake may begin."""
        ...

    def handshaken(self, secured: Secured, failure: str | None) -> None:
        """A handshake is over; why it failed, or None when it did not."""
        ...


class Secured(asyncio.Protocol):
    """One client behind TLS; towards the connection inside it is the transport."""

    def __init__(
        self, gate: Gate, tls: ServerTls, patience: float, connection: Callable[[], Connection]
    ) -> None:
        self._gate = gate
        self._patience = patience
        self._connection = connection
        self._inner: Connection | None = None
        self._context = tls
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject
        """From when it is this client's turn for the first time."""
        self._begun = False
        self._transport: asyncio.Transport | None = None
        self._waiting = False
        """For a turn."""
        self._held = False
        """The connection wants nothing more for now."""
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    @property
    def peer(self) -> str:
        """`10.0.0.7:51234`."""
        return address(self.get_extra_info("peername"))

    # -- the socket's side --------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if not self._gate.handshaking(self):
            self._over = True
            transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(
            self._patience, self._fail, f"it took more than {self._patience:g} s for its handshake"
        )

    def data_received(self, data: bytes) -> None:
        if self._over and self._inner is None:
            return
        self._incoming.write(data)
        self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        """Have the next part of the handshake done or the next record read, when it is its turn."""
        if not self._waiting and not self._held:
            self._waiting = True
            self._gate.rounds.add(self._take_turn, self.abort)
        self._regulate()

    def _take_turn(self) -> None:
        """A handshake takes half a millisecond; many come at once."""
        self._waiting = False
        if self.is_closing() or (self._over and self._inner is None):
            return
        try:
            more = self._shake_hands() if self._inner is None else self._read()
        except ssl.SSLError as error:
            if self._inner is None:
                self._fail(refusal(error))
            else:
                self.abort()
            return
        if more and not self.is_closing():
            self._wait_for_turn()
        self._regulate()

    def _regulate(self) -> None:
        """Stop or go on to take from the socket."""
        wanted = self._held or self._incoming.pending > MOST_UNREAD
        if wanted is self._paused:
            return
        self._paused = wanted
        if self._transport and not self._transport.is_closing():
            (self._transport.pause_reading if wanted else self._transport.resume_reading)()

    def pause_writing(self) -> None:
        if self._inner:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner:
            self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._settle("it went away during its handshake")
        if self._inner:
            self._inner.connection_lost(error)

    # -- TLS ----------------------------------------------------------------------------------------------

    def _shake_hands(self) -> bool:
        """Go on with the handshake; whether there is more to be read now. Raises SSLError."""
        if not self._begun:
            self._begun = True
            context = self._context.context()
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        self._flush()
        if self._tls.selected_alpn_protocol() not in GRPC:
            self._fail("it does not ask for h2 (ALPN): use a gRPC client")
            return False
        self._settle(None)
        self._inner = self._connection()
        self._inner.client = common_name(self._tls.getpeercert() or {})
        self._inner.connection_made(self)
        return True

    def _read(self) -> bool:
        """Pass on a record; whether there may be more. Raises SSLError."""
        assert self._inner is not None
        try:
            data = self._tls.read(READ)
        except ssl.SSLWantReadError:
            data = None
        except ssl.SSLZeroReturnError:
            data = b""
        if data:
            self._inner.data_received(data)
        elif data is not None:
            self.close()
        self._flush()
        return bool(data)

    def give_way(self) -> None:
        """End the handshake: another machine needs its place."""
        self._settle("it took longest for its handshake where others came from other machines")
        self.abort()

    def _fail(self, reason: str) -> None:
        """End a handshake; an alert that OpenSSL made says why to the client."""
        self._flush()
        self._settle(reason)
        if self._transport:
            self._transport.close()

    def _settle(self, failure: str | None) -> None:
        if self._over:
            return
        self._over = True
        if self._timer:
            self._timer.cancel()
        self._gate.handshaken(self, failure)

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data and self._transport and not self._transport.is_closing():
            self._transport.write(data)

    # -- the connection's side: a transport ---------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Encrypt and send."""
        self._tls.write(data)
        self._flush()

    def close(self) -> None:
        """Say goodbye and close."""
        if self._transport is None or self._transport.is_closing():
            return
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # It waits for the other side's goodbye, which nobody needs.
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport:
            self._transport.abort()

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport is None or self._transport.is_closing()

    def pause_reading(self) -> None:
        """Pass nothing more on, and soon take nothing more from the socket."""
        self._held = True
        self._regulate()

    def resume_reading(self) -> None:
        """Pass on again what comes."""
        self._held = False
        self._wait_for_turn()

    def get_write_buffer_size(self) -> int:
        """Bytes that the socket did not take yet."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Of the socket."""
        return self._transport.get_extra_info(name, default) if self._transport else default


def common_name(certificate: dict[str, Any]) -> str:
    """Of what `getpeercert` gives."""
    for relative in certificate.get("subject", ()):
        for key, value in relative:
            if key == "commonName":
                return str(value)
    return ""


def address(name: Any) -> str:
    """A socket's address for people."""
    if not isinstance(name, tuple):
        return "nowhere"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
