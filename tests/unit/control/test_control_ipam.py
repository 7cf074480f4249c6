"""Prefixes and addresses are unique, kept, returned, and missed with a sentence."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.control.ipam import AddressPool, NodeClaim, NodePool, NodePools, PoolError
from cilia.model.address import IPNetwork


def net(text: str) -> IPNetwork:
    return ipaddress.ip_network(text)


def pools(*specs: tuple[str, int]) -> NodePools:
    return NodePools([NodePool(net(text), mask) for text, mask in specs])


DUAL = (("10.0.0.0/8", 24), ("fd00::/104", 120))


def test_nodes_get_the_lowest_prefixes_of_both_families() -> None:
    grants = pools(*DUAL).assign([NodeClaim(name="b"), NodeClaim(name="a")])
    assert grants["a"].cidrs == ("10.0.0.0/24", "fd00::/120")
    assert grants["b"].cidrs == ("10.0.1.0/24", "fd00::100/120")


def test_a_node_keeps_what_it_has_and_gets_the_family_it_lacks() -> None:
    claims = [
        NodeClaim(name="old", created="1", cidrs=("10.0.0.0/24",)),
        NodeClaim(name="foreign", created="2", cidrs=("192.168.7.0/24", "fd00::/120")),
        NodeClaim(name="new", created="3"),
    ]
    grants = pools(*DUAL).assign(claims)
    assert grants["old"].cidrs == ("10.0.0.0/24", "fd00::100/120")
    assert grants["foreign"].cidrs == ("192.168.7.0/24", "fd00::/120")
    assert grants["new"].cidrs == ("10.0.1.0/24", "fd00::200/120")
    assert not any(grant.error for grant in grants.values())


def test_the_next_pool_serves_when_the_first_is_full() -> None:
    two = pools(("10.0.0.0/24", 24), ("10.9.0.0/23", 24))
    grants = two.assign([NodeClaim(name=name) for name in "abcd"])
    assert [grants[name].cidrs for name in "abc"] == [("10.0.0.0/24",), ("10.9.0.0/24",), ("10.9.1.0/24",)]
    assert grants["d"].cidrs == ()
    assert grants["d"].error == (
        "no IPv4 prefix is left in 10.0.0.0/24, 10.9.0.0/23: append another cluster pool"
    )
    assert two.free([NodeClaim(name="a", cidrs=("10.0.0.0/24",))], 4) == 2


def test_two_nodes_with_one_prefix() -> None:
    claims = [
        NodeClaim(name="late", created="2026-02", cidrs=("10.0.0.0/24",)),
        NodeClaim(name="early", created="2026-01", cidrs=("10.0.0.0/24",)),
    ]
    grants = pools(*DUAL).assign(claims)
    assert grants["early"].error == ""
    assert "overlaps with that of node early" in grants["late"].error
    assert grants["late"].cidrs == ("10.0.0.0/24",), "nothing is taken from or given to a node in conflict"


def test_a_wider_prefix_occupies_all_it_covers() -> None:
    grants = pools(("10.0.0.0/16", 24)).assign(
        [NodeClaim(name="wide", created="1", cidrs=("10.0.0.0/22",)), NodeClaim(name="x", created="2")]
    )
    assert grants["x"].cidrs == ("10.0.4.0/24",)


def test_rubbish_is_named() -> None:
    grants = pools(*DUAL).assign([NodeClaim(name="x", cidrs=("rubbish",))])
    assert "'rubbish' is not a prefix" in grants["x"].error


def test_pools_that_can_not_be() -> None:
    with pytest.raises(PoolError, match="choose a mask size from 16 to 32"):
        pools(("10.0.0.0/16", 8))
    with pytest.raises(PoolError, match="overlap"):
        pools(("10.0.0.0/8", 24), ("10.3.0.0/16", 24))


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([24, 25, 23])), max_size=8), st.integers(0, 12))
def test_grants_never_overlap(held: list[tuple[int, int]], fresh: int) -> None:
    node_pools = pools(("10.0.0.0/21", 24), ("10.1.0.0/23", 24))
    claims = [
        NodeClaim(name=f"h{index}", cidrs=(str(ipaddress.ip_network(f"10.0.{at}.0/{mask}", strict=False)),))
        for index, (at, mask) in enumerate(held)
    ] + [NodeClaim(name=f"n{index}") for index in range(fresh)]
    grants = node_pools.assign(claims)
    networks = [net(cidr) for grant in grants.values() if not grant.error for cidr in grant.cidrs]
    for index, one in enumerate(networks):
        assert not any(one.overlaps(other) for other in networks[:index])
    again = node_pools.assign([NodeClaim(name=name, cidrs=grant.cidrs) for name, grant in grants.items()])
    assert {name: grant.cidrs for name, grant in again.items() if not grant.error} == {
        name: grant.cidrs for name, grant in grants.items() if not again[name].error
    }
    assert node_pools.free(claims, 4) >= 0


@pytest.mark.parametrize(
    ("prefix", "router", "first", "capacity"),
    [
        ("10.0.0.0/24", "10.0.0.1", "10.0.0.2", 253),
        ("10.0.0.0/30", "10.0.0.1", "10.0.0.2", 1),
        ("fd00::/120", "fd00::1", "fd00::2", 254),
        ("fd00::/64", "fd00::1", "fd00::2", 2**64 - 2),
    ],
)
def test_what_a_prefix_holds(prefix: str, router: str, first: str, capacity: int) -> None:
    pool = AddressPool(net(prefix))
    assert str(pool.router) == router
    assert str(pool.allocate("a", 0)) == first
    assert pool.capacity == capacity


@pytest.mark.parametrize("prefix", ["10.0.0.0/31", "10.0.0.0/32", "fd00::/127", "fd00::/128"])
def test_a_prefix_without_room(prefix: str) -> None:
    with pytest.raises(PoolError, match="no address for a pod"):
        AddressPool(net(prefix))


def test_addresses_rest_before_they_are_used_again() -> None:
    pool = AddressPool(net("10.0.0.0/29"), quarantine=10)
    given_out = [pool.allocate(str(index), 0) for index in range(5)]
    with pytest.raises(PoolError, match=r"all 5 addresses of 10\.0\.0\.0/29 are in use"):
        pool.allocate("x", 0)
    assert pool.release(given_out[3], 1)
    assert pool.release(given_out[1], 2)
    assert not pool.release(given_out[1], 2), "it is free already"
    assert pool.allocate("x", 3) == given_out[3], "nothing else is left: the longest rested"
    pool.release(given_out[0], 5)
    assert pool.allocate("y", 13) == given_out[1], "rested, while the other still rests"
    assert len(pool) == 4


def test_next_fit_goes_on_after_the_last() -> None:
    pool = AddressPool(net("10.0.0.0/24"), quarantine=0)
    first = pool.allocate("a", 0)
    pool.release(first, 0)
    assert pool.allocate("b", 100) != first


def test_restored_addresses_are_kept() -> None:
    pool = AddressPool(net("10.0.0.0/24"))
    kept = ipaddress.ip_address("10.0.0.2")
    pool.claim(kept, "a")
    pool.claim(kept, "a")
    with pytest.raises(PoolError, match="belongs to a"):
        pool.claim(kept, "b")
    for wrong in ("10.0.0.1", "10.0.0.0", "10.0.0.255", "10.0.1.2", "fd00::2"):
        with pytest.raises(PoolError, match="is not an address for pods"):
            pool.claim(ipaddress.ip_address(wrong), "a")
    assert pool.allocate("b", 0) == ipaddress.ip_address("10.0.0.3")
    assert not pool.release(kept, 0, owner="b")
    assert list(pool.owners()) == [(kept, "a"), (ipaddress.ip_address("10.0.0.3"), "b")]


@given(st.lists(st.one_of(st.just("take"), st.integers(0, 20)), max_size=60))
def test_no_address_has_two_owners(script: list[str | int]) -> None:
    pool = AddressPool(net("10.0.0.0/28"), quarantine=3)
    held: dict[object, int] = {}
    for now, step in enumerate(script):
        if step == "take":
            try:
                address = pool.allocate(str(now), now)
            except PoolError:
                assert len(held) == pool.capacity
                continue
            assert address not in held
            held[address] = now
        elif isinstance(step, int) and held:
            chosen = list(held)[step % len(held)]
            del held[chosen]
            assert pool.release(chosen, now)  # type: ignore[arg-type]
    assert {address for address, _ in pool.owners()} == set(held)
