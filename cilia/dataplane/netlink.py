"""A small rtnetlink: links, addresses, routes, neighbours, tc filters; many requests in one system call.

Wire format: RFC 3549; linux/rtnetlink.h, if_link.h, pkt_cls.h. Written here because the Python netlink
library costs 0.6 s and 20 MiB to import and about a millisecond a request, and an endpoint takes a dozen.
Sans-I/O but for `Netlink`: requests are bytes made by functions.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
LINK = struct.Struct("=BxHiII")
ADDRESS = struct.Struct("=BBBBI")
ROUTE = struct.Struct("=BBBBBBBBI")
NEIGHBOUR = struct.Struct("=BxxxiHBB")
TRAFFIC = struct.Struct("=BxxxiIII")

NETLINK_ROUTE = 0
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11

ERROR, DONE = 2, 3
REQUEST, ACK = 0x1, 0x4
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400
DUMP = 0x300
CAPPED, ACK_ATTRIBUTES = 0x100, 0x200
NESTED = 0x8000
TYPE_MASK = 0x3FFF

NEW_LINK, DEL_LINK, GET_LINK, SET_LINK = 16, 17, 18, 19
NEW_ADDRESS, DEL_ADDRESS, GET_ADDRESS = 20, 21, 22
NEW_ROUTE, DEL_ROUTE, GET_ROUTE = 24, 25, 26
NEW_NEIGHBOUR = 28
NEW_QDISC = 36
NEW_FILTER, DEL_FILTER = 44, 45

IFF_UP = 0x1
IFF_NOARP = 0x80

BUFFER = 1 << 17
RUN = 64
"""Requests at once: their acknowledgements must fit the socket's receive buffer."""


class NetlinkError(OSError):
    """The kernel refused a request; the text carries its own explanation when it gave one."""


class Reply:
    """A message the kernel sent back: fixed header fields and attributes by type."""

    __slots__ = ("attributes", "fields", "type")

    def __init__(self, kind: int, fields: tuple[int, ...], attributes: dict[int, bytes]) -> None:
        self.type = kind
        self.fields = fields
        self.attributes = attributes


FAMILY_HEADERS = {
    NEW_LINK: LINK,
    NEW_ADDRESS: ADDRESS,
    NEW_ROUTE: ROUTE,
    NEW_NEIGHBOUR: NEIGHBOUR,
    NEW_QDISC: TRAFFIC,
    NEW_FILTER: TRAFFIC,
}


class Request:
    """A message to the kernel, without its sequence number yet."""

    __slots__ = ("body", "flags", "ignore", "type")

    def __init__(self, kind: int, flags: int, body: bytes, ignore: tuple[int, ...] = ()) -> None:
        self.type = kind
        self.flags = REQUEST | ACK | flags
        self.body = body
        self.ignore = ignore
        """errno values that are no failure for this request."""

    def encode(self, sequence: int) -> bytes:
        """The bytes on the wire."""
        return HEADER.pack(HEADER.size + len(self.body), self.type, self.flags, sequence, 0) + self.body


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def number(kind: int, value: int) -> bytes:
    """A 32-bit attribute."""
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated attribute."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | NESTED, b"".join(parts))


def parse_attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by type; a cut-off tail ends the walk."""
    found: dict[int, bytes] = {}
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        size, kind = ATTRIBUTE.unpack_from(data, at)
        if size < ATTRIBUTE.size:
            break
        found[kind & TYPE_MASK] = data[at + ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
    return found


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of each message in a datagram."""
    at = 0
    while at + HEADER.size <= len(data):
        size, kind, flags, sequence, _port = HEADER.unpack_from(data, at)
        if size < HEADER.size:
            return
        yield kind, flags, sequence, data[at + HEADER.size : at + size]
        at += (size + 3) & ~3


def failure(flags: int, body: bytes, sent: int) -> NetlinkError | None:
    """What an ERROR message (RFC 3549, 2.3.2.2) says; None for an acknowledgement.

    `sent`: length of the request it answers, repeated in it unless it is capped.
    """
    code = -struct.unpack_from("=i", body)[0]
    if code == 0:
        return None
    sentence = os.strerror(code)
    if flags & ACK_ATTRIBUTES:
        start = 4 + (HEADER.size if flags & CAPPED else sent)
        explained = parse_attributes(body[start:]).get(1)
        if explained:
            sentence = explained.rstrip(b"\0").decode(errors="replace")
    return NetlinkError(code, sentence)


class Netlink:
    """A socket to the routing tables, or whatever the protocol names, of the network namespace the thread is
    in when it is made."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.bind((0, 0))
        self._sequence = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, requests: Sequence[Request]) -> list[NetlinkError | None]:
        """Make all requests, RUN of them in one system call; the outcome of each, in order."""
        outcomes: list[NetlinkError | None] = []
        for at in range(0, len(requests), RUN):
            outcomes += self._send_run(requests[at : at + RUN])
        return outcomes

    def _send_run(self, requests: Sequence[Request]) -> list[NetlinkError | None]:
        numbered = {next(self._sequence): request for request in requests}
        self._socket.send(b"".join(request.encode(at) for at, request in numbered.items()))
        outcomes: dict[int, NetlinkError | None] = {}
        while len(outcomes) < len(numbered):
            for kind, flags, sequence, body in messages(self._socket.recv(BUFFER)):
                if kind == ERROR and sequence in numbered:
                    request = numbered[sequence]
                    error = failure(flags, body, HEADER.size + len(request.body))
                    ignored = error is not None and error.errno in request.ignore
                    outcomes[sequence] = None if ignored else error
        return [outcomes[sequence] for sequence in numbered]

    def run(self, *requests: Request) -> None:
        """Make all requests; raises the first NetlinkError."""
        for error in self.send(requests):
            if error is not None:
                raise error

    def ask(self, request: Request) -> list[Reply]:
        """The kernel's answers to a GET request. Raises NetlinkError."""
        replies: list[Reply] = []
        for kind, body in self.answers(request):
            header = FAMILY_HEADERS[kind]
            fields = header.unpack_from(body)
            replies.append(Reply(kind, fields, parse_attributes(body[header.size :])))
        return replies

    def answers(self, request: Request) -> Iterator[tuple[int, bytes]]:
        """(type, body) of the kernel's answers to a request, to be read to their end. Raises NetlinkError."""
        sequence = next(self._sequence)
        self._socket.send(request.encode(sequence))
        while True:
            for kind, flags, answered, body in messages(self._socket.recv(BUFFER)):
                if answered != sequence:
                    continue
                if kind == DONE:
                    return
                if kind == ERROR:
                    error = failure(flags, body, HEADER.size + len(request.body))
                    if error is not None:
                        raise error
                    return
                yield kind, body
