"""Questions about sockets: the program that the kernel is given accepts just who was asked for."""

from __future__ import annotations

import errno
import socket

import pytest

from cilia.dataplane import sockdiag
from cilia.dataplane.sockdiag import Found, Peer

ONE, TWO = Peer(socket.inet_aton("10.0.0.1"), 80), Peer(socket.inet_aton("10.0.0.2"), 81)
SIX = Peer(socket.inet_pton(socket.AF_INET6, "fd00::1"), 80)


def accepts(program: bytes, peer: Peer) -> bool:
    """As inet_diag_bc_run does: the end is to be met exactly."""
    at = 0
    while at < len(program):
        code, met, unmet = sockdiag.OPERATION.unpack_from(program, at)
        if code == sockdiag.OP_JUMP:
            at += unmet
            continue
        assert code == sockdiag.OP_DESTINATION
        start = at + sockdiag.OPERATION.size
        family, bits, port = sockdiag.CONDITION.unpack_from(program, start)
        start += sockdiag.CONDITION.size
        wanted = Peer(program[start : start + bits // 8], port)
        assert family == (socket.AF_INET if bits == 32 else socket.AF_INET6)
        at += met if wanted == peer else unmet
    return at == len(program)


@pytest.mark.parametrize("peers", [[ONE], [ONE, TWO], [SIX, ONE, TWO], [TWO] * 5 + [SIX]])
def test_only_the_named_are_accepted(peers: list[Peer]) -> None:
    program = sockdiag.one_of(peers)
    for peer in (ONE, TWO, SIX, Peer(ONE.address, 81), Peer(TWO.address, 80)):
        assert accepts(program, peer) == (peer in peers)


def test_the_largest_question_fits_its_jumps() -> None:
    peers = [Peer(SIX.address, port) for port in range(1, sockdiag.MOST_PEERS + 1)]
    program = sockdiag.one_of(peers)
    assert accepts(program, peers[0]) and accepts(program, peers[-1]) and not accepts(program, ONE)


def test_an_answer_names_a_socket_that_can_be_ended() -> None:
    identifier = sockdiag.SOCKET_ID.pack(1, 2, bytes(16), bytes(16), 0, 7, 1)
    answer = sockdiag.ANSWER.pack(socket.AF_INET, 1, 0, 0) + identifier + bytes(20)
    found = list(sockdiag.parse(6, iter([(99, b""), (sockdiag.BY_FAMILY, answer)])))
    assert found == [Found(1 << 32 | 7, socket.AF_INET, 6, identifier)]
    request = sockdiag.destroy(found[0])
    assert request.body.endswith(identifier) and request.ignore == (errno.ENOENT,)
