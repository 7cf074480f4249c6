"""The rtnetlink codec: bytes of requests, replies cut off or explained."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.dataplane import netlink, rtnl


def test_attributes_are_padded_and_parsed_back() -> None:
    data = netlink.attribute(3, b"abc") + netlink.number(4, 7) + netlink.text(5, "eth0")
    assert len(data) % 4 == 0
    assert netlink.parse_attributes(data) == {3: b"abc", 4: b"\x07\0\0\0", 5: b"eth0\0"}


def test_nested_attributes_lose_their_flag() -> None:
    data = netlink.nested(18, netlink.text(1, "veth"))
    assert netlink.parse_attributes(netlink.parse_attributes(data)[18]) == {1: b"veth\0"}


@given(st.binary(max_size=200))
def test_garbage_never_raises(data: bytes) -> None:
    netlink.parse_attributes(data)
    list(netlink.messages(data))


def test_a_request_is_a_whole_message() -> None:
    raw = rtnl.set_link(7, up=True, mtu=1450).encode(42)
    ((kind, flags, sequence, body),) = netlink.messages(raw)
    assert (kind, sequence) == (netlink.SET_LINK, 42) and flags & netlink.ACK
    assert netlink.LINK.unpack_from(body)[2:] == (7, netlink.IFF_UP, netlink.IFF_UP)
    assert netlink.parse_attributes(body[netlink.LINK.size :])[rtnl.IFLA_MTU] == struct.pack("=I", 1450)


def test_errors_carry_the_kernels_own_words() -> None:
    echo = b"\0" * netlink.HEADER.size
    words = netlink.text(1, "device is busy with something")
    body = struct.pack("=i", -errno.EBUSY) + echo + words
    error = netlink.failure(netlink.CAPPED | netlink.ACK_ATTRIBUTES, body, 500)
    assert error is not None and error.errno == errno.EBUSY
    assert error.strerror == "device is busy with something"
    plain = netlink.failure(0, struct.pack("=i", -errno.ENODEV), 16)
    assert plain is not None and plain.strerror == "No such device"
    assert netlink.failure(0, struct.pack("=i", 0), 16) is None


@pytest.mark.parametrize(
    ("prefix", "family", "bits"), [("10.0.0.0/24", 2, 24), ("0.0.0.0/0", 2, 0), ("fd00::/64", 10, 64)]
)
def test_routes_carry_our_protocol(prefix: str, family: int, bits: int) -> None:
    body = rtnl.replace_route(prefix, 3, mtu=1450).body
    fields = netlink.ROUTE.unpack_from(body)
    assert fields[0] == family and fields[1] == bits and fields[5] == rtnl.ROUTE_PROTOCOL
    assert (rtnl.RTA_DST in netlink.parse_attributes(body[netlink.ROUTE.size :])) == bool(bits)
