"""The text of 16 bytes: as the standard library writes it."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.model.address import address_text, pack, unpack

GROUP = st.sampled_from([b"\0\0", b"\xff\xff", b"\x00\x01", b"\xab\xcd"])


@given(st.binary(min_size=16, max_size=16) | st.lists(GROUP, min_size=8, max_size=8).map(b"".join))
def test_the_text_is_that_of_the_address(data: bytes) -> None:
    assert address_text(data) == str(unpack(data))


@pytest.mark.parametrize("text", ["10.0.0.1", "::", "::1", "::102:304", "fd00::1:5", "0.0.0.0"])
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    assert address_text(pack(ipaddress.ip_address(text))) == text
