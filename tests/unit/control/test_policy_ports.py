"""Ranges of ports become the fewest prefixes that cover them exactly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cilia.control.policy.ports import PortPrefix, icmp_type, mask, prefixes
from cilia.control.policy.rules import TCP, PortRange
from cilia.model.resources.cilium_policy import ICMP_TYPE_NAMES


def covered(prefix: PortPrefix) -> range:
    return range(prefix.port, prefix.port + (1 << (24 - prefix.bits)))


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_a_range_is_covered_exactly_once(one: int, other: int) -> None:
    first, last = sorted((one, other))
    cut = prefixes(PortRange(TCP, first, last))
    assert all(prefix.port & ~mask(prefix.bits) == 0 for prefix in cut)
    assert sorted(port for prefix in cut for port in (covered(prefix)[0], covered(prefix)[-1])) == [
        port for prefix in cut for port in (covered(prefix)[0], covered(prefix)[-1])
    ]
    assert sum(len(covered(prefix)) for prefix in cut) == last - first + 1
    assert (cut[0].port, covered(cut[-1])[-1]) == (first, last)
    assert len(cut) <= 30


def test_whole_and_single() -> None:
    assert prefixes(PortRange()) == (PortPrefix(0, 0, 0),)
    assert prefixes(PortRange(TCP)) == (PortPrefix(TCP, 0, 8),)
    assert prefixes(PortRange(TCP, 80, 80)) == (PortPrefix(TCP, 80, 24),)


def test_parents_are_every_wider_prefix() -> None:
    parents = list(PortPrefix(TCP, 0xFFFF, 24).parents())
    assert [parent.bits for parent in parents] == [*range(23, 7, -1), 0]
    assert parents[0] == PortPrefix(TCP, 0xFFFE, 23)
    assert parents[-2:] == [PortPrefix(TCP, 0, 8), PortPrefix()]
    assert list(PortPrefix().parents()) == []


def test_every_name_of_an_icmp_type_has_a_number() -> None:
    for name in ICMP_TYPE_NAMES:
        assert any(icmp_type(family, name) is not None for family in ("IPv4", "IPv6")), name
    assert icmp_type("IPv4", 8) == icmp_type("IPv4", "8") == icmp_type("IPv4", "Echo") == 8
    assert icmp_type("IPv6", "Echo") is None
