"""The prober's SCTP packets, read by somebody else's parser."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import IP
from scapy.layers.sctp import SCTP, SCTPChunkAbort, SCTPChunkInit, SCTPChunkInitAck

from cilia.lab.podinit import SCTP_ABORT, SCTP_INIT, SCTP_INIT_ACK, sctp_fields, sctp_packet


@pytest.mark.parametrize(
    ("chunk", "layer"),
    [(SCTP_INIT, SCTPChunkInit), (SCTP_INIT_ACK, SCTPChunkInitAck), (SCTP_ABORT, SCTPChunkAbort)],
)
def test_packets_are_what_they_say(chunk: int, layer: type) -> None:
    packet = sctp_packet(40000, 80, 7, chunk, 99)
    read = SCTP(packet)
    assert (read.sport, read.dport, read.tag) == (40000, 80, 7)
    assert layer in read
    checksum = read.chksum
    del read.chksum
    assert SCTP(bytes(read)).chksum == checksum


def test_raw_sockets_of_both_families_are_understood() -> None:
    packet = sctp_packet(80, 40000, 7, SCTP_INIT_ACK, 99)
    fields = (80, 40000, 7, SCTP_INIT_ACK, 99)
    assert sctp_fields(packet, socket.AF_INET6) == fields
    assert sctp_fields(bytes(IP(proto=132) / packet), socket.AF_INET) == fields
    abort = sctp_packet(80, 40000, 7, SCTP_ABORT, 0)
    assert sctp_fields(abort, socket.AF_INET6) == (80, 40000, 7, SCTP_ABORT, 0)


@pytest.mark.parametrize("data", [b"", b"\x45", b"\x0f" + bytes(15), bytes(15)])
def test_what_is_too_short_is_nothing(data: bytes) -> None:
    assert sctp_fields(data, socket.AF_INET) is None
    assert sctp_fields(data[:15], socket.AF_INET6) is None
