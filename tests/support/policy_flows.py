"""Conversations that never stop: numbered messages both ways over connections between pods, each one's fate
known.

The sockets live in the pods' network namespaces and are used from a thread of the test. A message carries
when it was sent, so that what was sent after some moment and arrived is told apart from what was under way.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Iterable, Sequence

from cilia.lab import kernel
from tests.support.background import Background

MESSAGE = struct.Struct("!Qd")
"""Number and time of sending (monotonic, seconds)."""
PAUSE = 0.004
"""Seconds between two messages of one direction."""


class End:
    """One end of a conversation: sends, and notes what arrives."""

    def __init__(self, name: str, opened: socket.socket) -> None:
        self.name = name
        self.socket = opened
        self._sent = 0
        self.latest = 0.0
        """When the latest message was sent that has arrived here."""
        self.arrived = 0.0
        """When anything last arrived here."""
        self.missing = 0
        """Messages that were overtaken by later ones."""
        self._number = 0
        self._stream = opened.type == socket.SOCK_STREAM
        self._rest = b""
        self._unsent = b""

    def send(self) -> None:
        """Send the next message; a stream that takes no more gets it when it does."""
        if not self._unsent:
            self._sent += 1
            self._unsent = MESSAGE.pack(self._sent, time.monotonic())
        try:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            # A datagram that was answered with an ICMP error: the next one is sent as if nothing had been.
            if self._stream:
                raise
            self._unsent = b""

    def receive(self) -> None:
        """Take what has arrived."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            if self._stream:
                raise
            return
        self.arrived = time.monotonic()
        self._rest += data
        whole = len(self._rest) - len(self._rest) % MESSAGE.size
        for number, sent in MESSAGE.iter_unpack(self._rest[:whole]):
            self.latest = max(self.latest, sent)
            self.missing += number - self._number - 1
            self._number = number
        self._rest = self._rest[whole:]


class Conversation:
    """Two ends; `kind` is SOCK_STREAM or SOCK_DGRAM."""

    def __init__(self, name: str, netns: Sequence[str], address: str, port: int, kind: int) -> None:
        """Connect from the first namespace to an address in the second. Raises OSError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with kernel.inside_network(netns[1]):
            server = socket.socket(family, kind)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        with kernel.inside_network(netns[0]):
            client = socket.socket(family, kind)
        client.settimeout(30)
        if kind == socket.SOCK_STREAM:
            server.listen()
            client.connect((address, port))
            accepted, _ = server.accept()
            server.close()
            server = accepted
            for opened in (client, server):
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            client.connect((address, port))
            server.connect(client.getsockname())
            # The client begins, so that it is the initiator of the flow for both nodes.
            client.send(MESSAGE.pack(0, 0.0))
            server.settimeout(30)
            server.recv(MESSAGE.size)
        for opened in (client, server):
            opened.setblocking(False)
        self.name = name
        self.ends = (End(f"{name}, requests", server), End(f"{name}, replies", client))
        """Named after what arrives there."""


class Conversations(Background):
    """Keeps conversations going in a thread until closed."""

    def __init__(self, conversations: Iterable[Conversation]) -> None:
        super().__init__()
        self._conversations = tuple(conversations)
        self.ends = tuple(end for one in self._conversations for end in one.ends)
        self.failure: OSError | None = None
        """What ended a stream: policies must not."""
        self._idle = 0
        """How often there was nothing left to read."""

    def _close(self) -> None:
        for end in self.ends:
            end.socket.close()

    def arriving_after(self, moment: float) -> list[str]:
        """Directions in which something arrived that was sent after a moment."""
        return [end.name for end in self.ends if end.latest > moment]

    def heard_after(self, moment: float) -> list[str]:
        """Directions in which anything arrived after a moment, whenever it was sent."""
        return [end.name for end in self.ends if end.arrived > moment]

    def catch_up(self) -> None:
        """Return when everything that has been delivered by now has been read."""
        wanted = self._idle + 2
        while self._idle < wanted and self._thread.is_alive():
            time.sleep(PAUSE)

    def missing(self) -> int:
        """Messages that are lost."""
        return sum(end.missing for end in self.ends)

    def _run(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                for end in self.ends:
                    selector.register(end.socket, selectors.EVENT_READ, end)
                self._pump(selector)
        except OSError as error:
            self.failure = error

    def _pump(self, selector: selectors.BaseSelector) -> None:
        due = time.monotonic()
        while not self._stopping.is_set():
            readable = selector.select(max(0.0, due - time.monotonic()))
            for key, _ in readable:
                key.data.receive()
            self._idle += not readable
            if time.monotonic() >= due:
                due = time.monotonic() + PAUSE
                for end in self.ends:
                    end.send()
