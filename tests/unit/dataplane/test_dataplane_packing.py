"""Text to kernel bytes and back; what a node lacks; names of links."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cilia.dataplane import links, requirements
from cilia.dataplane.maps import packing

ADDRESS = np.dtype([("hi", ">u8"), ("lo", ">u8")])
ROW = np.dtype([("who", ADDRESS), ("mac", "u1", (6,)), ("counts", "<u8", (2,)), ("reserved", "<u4")])
ALL_CAPABILITIES = "CapEff:\t000001ffffffffff\n"


@given(st.ip_addresses())
@example(ipaddress.ip_address("::102:304"))
@example(ipaddress.ip_address("::2"))
def test_addresses_come_back(address: object) -> None:
    text = str(address)
    raw = packing.address_bytes(text)
    assert len(raw) == 16
    if raw != packing.NO_ADDRESS and not (":" in text and raw.startswith(packing.MAPPED)):
        assert packing.address_text(raw) == text


def test_an_ipv4_address_is_mapped() -> None:
    (row,) = packing.addresses(["10.0.0.1"], ADDRESS)
    assert (int(row["hi"]), int(row["lo"])) == (0, 0xFFFF0A000001)
    assert len(packing.addresses([], ADDRESS)) == 0


@pytest.mark.parametrize("text", ["10.0.0", "fe80::1%eth0", "10.0.0.1/32", "x"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(OSError):
        packing.address_bytes(text)


def test_records_read_like_people_write() -> None:
    row = np.zeros(1, ROW)
    row["who"] = packing.addresses(["fd00::7"], ADDRESS)
    row["mac"] = packing.macs(["02:00:00:00:00:2a"])
    row["counts"] = [[1, 2]]
    assert packing.records(row) == [{"who": "fd00::7", "mac": "02:00:00:00:00:2a", "counts": [1, 2]}]


def test_a_capable_process_on_a_new_kernel_lacks_nothing() -> None:
    assert requirements.missing("6.6.31-cloud", ALL_CAPABILITIES) == []


@pytest.mark.parametrize(
    ("release", "status", "sentence"),
    [
        (
            "5.10.0-30",
            ALL_CAPABILITIES,
            "the kernel is 5.10.0-30: 6.2 or newer is needed, boot a newer kernel",
        ),
        ("weird", ALL_CAPABILITIES, "the kernel is weird: 6.2 or newer is needed, boot a newer kernel"),
        ("6.18.1", "CapEff:\t0\n", "the process lacks CAP_NET_ADMIN and CAP_SYS_ADMIN: run it as root"),
        ("6.18.1", "CapEff:\t0000000000001000\n", "the process lacks CAP_SYS_ADMIN: run it as root"),
        ("6.18.1", "", "the process lacks CAP_NET_ADMIN and CAP_SYS_ADMIN: run it as root"),
    ],
)
def test_each_thing_missing_is_one_sentence(release: str, status: str, sentence: str) -> None:
    assert requirements.missing(release, status) == [sentence]


def test_host_interfaces_fit_and_repeat() -> None:
    name = links.host_interface("a" * 64, "eth0")
    assert name == links.host_interface("a" * 64, "eth0") != links.host_interface("a" * 64, "eth1")
    assert name.startswith("lxc") and len(name) == 15


def test_random_macs_are_local_and_unicast() -> None:
    for _ in range(50):
        first = int(links.random_mac()[:2], 16)
        assert first & 0b11 == 0b10
