"""Finding sockets by whom they talk to, and ending them: the messages of SOCK_DIAG, as bytes.

Wire format: linux/inet_diag.h, linux/sock_diag.h (sock_diag(7)). The kernel filters: a request carries a
little program of conditions (struct inet_diag_bc_op), and only sockets that it accepts are told of.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence

import msgspec

from cilia.dataplane import netlink
from cilia.dataplane.netlink import Request

PROTOCOL = 4
"""NETLINK_SOCK_DIAG"""
BY_FAMILY, DESTROY = 20, 21
FAMILIES = (socket.AF_INET, socket.AF_INET6)
MOST_PEERS = 1000
"""In one question: an operation's jump to the end of the program has 16 bits."""

ASK = struct.Struct("=BBBxI")
SOCKET_ID = struct.Struct("=HH16s16sIII")
ANSWER = struct.Struct("=BBBB")
OPERATION = struct.Struct("=BBH")
CONDITION = struct.Struct("=BBxxi")
BYTECODE_ATTRIBUTE = 1
OP_JUMP, OP_DESTINATION = 1, 8

TCP_ESTABLISHED, TCP_SYN_SENT, TCP_CLOSE_WAIT = 1, 2, 8
CONNECTED: dict[int, int] = {
    socket.IPPROTO_TCP: 1 << TCP_ESTABLISHED | 1 << TCP_SYN_SENT | 1 << TCP_CLOSE_WAIT,
    socket.IPPROTO_UDP: 1 << TCP_ESTABLISHED,
}
"""States of sockets that have a peer, by protocol; a connected UDP socket counts as established."""


class Peer(msgspec.Struct, frozen=True):
    """Whom a socket talks to: an address in network order (4 or 16 bytes) and a port."""

    address: bytes
    port: int


class Found(msgspec.Struct, frozen=True):
    """A socket: its cookie, and the bytes by which the kernel finds it again."""

    cookie: int
    family: int
    protocol: int
    identifier: bytes


def find(family: int, protocol: int, peers: Sequence[Peer]) -> Request:
    """Ask for the connected sockets of a family that talk to one of at most MOST_PEERS peers."""
    body = ASK.pack(family, protocol, 0, CONNECTED[protocol]) + bytes(SOCKET_ID.size)
    program = netlink.attribute(BYTECODE_ATTRIBUTE, one_of(peers))
    return Request(BY_FAMILY, netlink.DUMP, body + program)


def destroy(found: Found) -> Request:
    """End a socket: whoever waits at it is told ECONNABORTED. One that has just gone is no error."""
    body = ASK.pack(found.family, found.protocol, 0, 0xFFFFFFFF) + found.identifier
    return Request(DESTROY, 0, body, ignore=(errno.ENOENT,))


def parse(protocol: int, answers: Iterator[tuple[int, bytes]]) -> Iterator[Found]:
    """The sockets of an answer (struct inet_diag_msg)."""
    for kind, body in answers:
        if kind != BY_FAMILY:
            continue
        family = ANSWER.unpack_from(body)[0]
        identifier = body[ANSWER.size : ANSWER.size + SOCKET_ID.size]
        low, high = SOCKET_ID.unpack(identifier)[5:]
        yield Found(high << 32 | low, family, protocol, identifier)


def one_of(peers: Sequence[Peer]) -> bytes:
    """The program that accepts a socket whose destination is one of the peers: conditions, each with a jump
    to the end behind it, which the unmet skip. To end at the program's end is to accept; the last condition,
    unmet, goes one operation beyond it. IPv4 conditions match the mapped addresses of IPv6 sockets, too."""
    program = b""
    for peer in reversed(peers):
        family = socket.AF_INET if len(peer.address) == 4 else socket.AF_INET6
        condition = CONDITION.pack(family, 8 * len(peer.address), peer.port) + peer.address
        size = OPERATION.size + len(condition)
        jump = OPERATION.pack(OP_JUMP, OPERATION.size, OPERATION.size + len(program)) if program else b""
        program = OPERATION.pack(OP_DESTINATION, size, size + OPERATION.size) + condition + jump + program
    return program
