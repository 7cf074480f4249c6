"""Whatever a pod cuts its packets into: what its peer could put together is what policy allowed."""

from __future__ import annotations

import ipaddress
import itertools
import os
import random
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.support.datapath_world import DENY, EGRESS, UDP, Rule, World

pytestmark = pytest.mark.root

CASES = 5000 if os.environ.get("CILIA_LONG") == "1" else 250
SEED = 7
MACS = bytes.fromhex("0e000000000a0a000000000a")
ENDS = {4: ("10.0.0.11", "10.0.0.12"), 6: ("fd00::11", "fd00::12")}
HOP_BY_HOP, FRAGMENT, AH, DESTINATION, UNKNOWN = 0, 44, 51, 60, 253
ALLOWED = (UDP, 53)
ONLY_DNS = (
    Rule(EGRESS, protocol=UDP, port=53, bits=24, precedence=200, cookie=9),
    Rule(EGRESS, DENY, precedence=1, cookie=4, flags=4),
)


class Piece(NamedTuple):
    """A fragment: `number` is what it says comes behind the fragment header (IPv6), or its protocol."""

    number: int
    offset: int
    more: bool
    body: bytes


class Whole(NamedTuple):
    """What is cut: the number of its first header, and everything from there on."""

    number: int
    body: bytes


def transport(rng: random.Random) -> Whole:
    port = rng.choice((53, 53, 22))
    protocol = rng.choice((17, 17, 17, 6, 132, 1, 58, 50))
    heads = {
        17: struct.pack(">HHHH", 4000, port, 48, 0),
        6: struct.pack(">HHIIBBHHH", 4000, port, 1, 0, 0x50, 2, 100, 0, 0),
        132: struct.pack(">HHIIBBH", 4000, port, 0, 0, 1, 0, 20),
    }
    head = heads.get(protocol, struct.pack(">BBHHH", rng.choice((8, 128, 3)), 0, 0, 7, port))
    return Whole(protocol, head + rng.randbytes(rng.randrange(0, 40)))


def chained(rng: random.Random, whole: Whole) -> Whole:
    """The same behind extension headers, some of which lie about their length."""
    for _ in range(rng.choice((0, 0, 1, 2))):
        kind = rng.choice((DESTINATION, DESTINATION, AH, HOP_BY_HOP, 43))
        units = rng.choice((0, 1, 4))
        size = (units + 2) * 4 if kind == AH else (units + 1) * 8
        body = bytes([whole.number, units]) + bytes([rng.choice((2, 4)), 0]) + bytes(size - 4)
        whole = Whole(kind, body + whole.body)
    return whole


def cut(rng: random.Random, whole: Whole) -> list[Piece]:
    """All of it in pieces; later ones say anything about what they are."""
    marks = sorted({8 * rng.randrange(1, 1 + len(whole.body) // 8) for _ in range(rng.choice((1, 1, 2, 3)))})
    bounds = [0, *(mark for mark in marks if mark < len(whole.body)), len(whole.body)]
    pieces = []
    for start, end in itertools.pairwise(bounds):
        claims = whole.number if not start else rng.choice((whole.number, 17, 6, 50, DESTINATION, UNKNOWN))
        pieces.append(Piece(claims, start, end < len(whole.body), whole.body[start:end]))
    return pieces


def on_wire(family: int, ident: int, piece: Piece) -> bytes:
    source, destination = (ipaddress.ip_address(text).packed for text in ENDS[family])
    place = piece.offset | int(piece.more)
    if family == 4:
        flags = piece.offset // 8 | (0x2000 if piece.more else 0)
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(piece.body), ident, flags, 64, piece.number, 0)
        return MACS + b"\x08\x00" + head + source + destination + piece.body
    inner = struct.pack(">BBHI", piece.number, 0, place, ident) + piece.body
    return (
        MACS
        + b"\x86\xdd"
        + struct.pack(">IHBB", 6 << 28, len(inner), FRAGMENT, 64)
        + source
        + destination
        + inner
    )


def together(family: int, pieces: list[Piece]) -> Iterator[Whole]:
    """Every datagram that some order of some pieces makes, where they do not overlap (RFC 5722)."""
    ends: dict[int, list[Piece]] = {}
    for piece in pieces:
        ends.setdefault(piece.offset, []).append(piece)

    def grow(first: Piece, body: bytes) -> Iterator[Whole]:
        for piece in ends.get(len(body), ()):
            if family == 4 and piece.number != first.number:
                continue
            if not piece.more:
                yield Whole(first.number, body + piece.body)
            elif piece.body:
                yield from grow(first, body + piece.body)

    for first in ends.get(0, ()):
        if not first.more:
            yield Whole(first.number, first.body)
        elif first.body:
            yield from grow(first, first.body)


def arrives(family: int, whole: Whole) -> tuple[int, int]:
    """Protocol and port as a receiver reads them; protocols without ports have 0."""
    number, body = whole
    while family == 6 and number in (HOP_BY_HOP, 43, AH, DESTINATION) and len(body) >= 8:
        size = (body[1] + 2) * 4 if number == AH else (body[1] + 1) * 8
        number, body = body[0], body[size:]
    if number in (6, 17, 132) and len(body) >= 4:
        return number, int.from_bytes(body[2:4], "big")
    return number, 0


@pytest.mark.parametrize("family", [4, 6])
def test_what_can_be_put_together_is_what_was_allowed(world: World, family: int) -> None:
    rng = random.Random(SEED)
    world.set_policy(world.pod_a.subject, ONLY_DNS)
    passed_whole = 0
    for case in range(CASES):
        sources = [transport(rng) for _ in range(rng.choice((1, 2, 2)))]
        if family == 6:
            sources = [chained(rng, whole) for whole in sources]
        pieces = [piece for whole in sources for piece in cut(rng, whole)]
        rng.shuffle(pieces)
        # Some come again: by then their first one has been seen.
        pieces += rng.sample(pieces, rng.randrange(len(pieces) + 1))
        kept = [
            piece
            for piece in pieces
            if world.from_pod(world.pod_a, on_wire(family, case + 1, piece)).action != "DROP"
        ]
        for whole in together(family, kept):
            passed_whole += 1
            assert arrives(family, whole) == ALLOWED, (case, sources, kept)
    assert passed_whole > CASES // 10
