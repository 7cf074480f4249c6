"""Selections equal a scan of all identities with the selector's own definition, whatever came before."""

from __future__ import annotations

import ipaddress

from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.control.identity import cidr_labels
from cilia.control.policy.meaning.selection import Selections, cidr_label, network_of
from cilia.control.policy.meaning.spans import Prefixes, Span
from cilia.control.policy.rules import Cidr, Cidrs, Operator, Requirement, Selector, reserved
from cilia.model.identity import (
    LOCAL_CIDR_FIRST,
    LOCAL_NODE_FIRST,
    WORLD_IPV4,
    WORLD_IPV6,
    Identity,
    reserved_identities,
)
from cilia.model.ids import IdentityId
from cilia.model.labels import Label, Labels

SOURCES, KEYS, VALUES = ("k8s", "reserved"), ("a", "b"), ("", "x", "y")
requirements = st.builds(
    lambda source, key, operator, values: Requirement(
        source, key, operator, tuple(sorted(values)) if operator.endswith("In") else ()
    ),
    st.sampled_from((*SOURCES, "any")),
    st.sampled_from(KEYS),
    st.sampled_from(list(Operator)),
    st.sets(st.sampled_from(VALUES), min_size=1),
)
selectors = st.lists(requirements, max_size=3).map(Selector.of)
label_sets = st.sets(
    st.builds(Label, st.sampled_from(SOURCES), st.sampled_from(KEYS), st.sampled_from(VALUES)), max_size=4
).map(Labels.of)
Change = tuple[IdentityId, Labels | None]
events = st.lists(st.tuples(st.integers(1, 5).map(IdentityId), st.none() | label_sets), max_size=12)


@settings(max_examples=100, deadline=None)
@given(st.lists(selectors, max_size=4, unique=True), st.lists(selectors, max_size=2, unique=True), events)
def test_members_equal_a_scan(early: list[Selector], late: list[Selector], changes: list[Change]) -> None:
    selections = Selections()
    for selector in early:
        selections.acquire(selector)
    present: dict[IdentityId, Labels] = {}
    for identity, labels in changes:
        before = {selector: identity in selections.members(selector) for selector in early}
        if labels is None:
            present.pop(identity, None)
            changed = selections.remove(identity)
        else:
            present[identity] = labels
            changed = selections.put(identity, labels)
        after = {selector: identity in selections.members(selector) for selector in early}
        assert set(changed) == {selector for selector in early if before[selector] != after[selector]}
    for selector in late:
        selections.acquire(selector)
    for selector in {*early, *late}:
        assert selections.members(selector) == {
            identity for identity, labels in present.items() if selector.matches(labels)
        }


networks = st.integers(0, 6).flatmap(
    lambda length: st.integers(0, (1 << length) - 1).map(
        lambda value: str(ipaddress.ip_network((value << (32 - length), length)))
    )
)


@settings(max_examples=100, deadline=None)
@given(st.sets(networks), networks, st.sets(networks, max_size=2))
def test_addresses_equal_a_scan(known: set[str], prefix: str, excepts: set[str]) -> None:
    wide = ipaddress.ip_network(prefix)
    known |= {prefix} | excepts
    inner = tuple(sorted(e for e in excepts if ipaddress.IPv4Network(e).subnet_of(wide)))  # type: ignore[arg-type]
    cidr = Cidr(prefix, inner)
    before, after = Selections(), Selections()
    before.acquire(cidr)
    numbers = {text: IdentityId(LOCAL_CIDR_FIRST + n) for n, text in enumerate(sorted(known), 1)}
    for text, number in numbers.items():
        before.put(number, cidr_labels(text))
        after.put(number, cidr_labels(text))
    after.acquire(cidr)
    meant = {
        number
        for text, number in numbers.items()
        if ipaddress.IPv4Network(text).subnet_of(wide)  # type: ignore[arg-type]
        and not any(ipaddress.IPv4Network(text).subnet_of(ipaddress.IPv4Network(e)) for e in inner)
    }
    assert before.members(cidr) == after.members(cidr) == meant


def test_everywhere_means_the_world_of_its_family() -> None:
    selections = Selections()
    for identity in reserved_identities():
        selections.put(identity.id, identity.labels)
    for prefix, world in (("0.0.0.0/0", WORLD_IPV4), ("::/0", WORLD_IPV6)):
        selections.acquire(Cidr(prefix))
        assert selections.members(Cidr(prefix)) == {world}


def test_a_peer_is_followed_until_its_last_user_goes() -> None:
    selections = Selections()
    host = reserved("host")
    selections.acquire(host)
    selections.acquire(host)
    selections.release(host)
    assert selections.put(IdentityId(1), Labels.reserved("host")) == [host]
    selections.release(host)
    assert selections.remove(IdentityId(1)) == []
    assert selections.remove(IdentityId(1)) == []


def test_an_equal_identity_changes_nothing() -> None:
    selections = Selections()
    selections.acquire(reserved("host"))
    selections.put(IdentityId(1), Labels.reserved("host"))
    assert selections.put(IdentityId(1), Labels.reserved("host")) == []


def test_labels_of_prefixes_are_read_back() -> None:
    for text in ("10.0.0.0/8", "2001:db8::/32", "::/1", "::1/128", "0.0.0.0/1"):
        label = cidr_label(text)
        assert ":" not in label.key
        assert not label.key.startswith("-")
        identity = Identity(IdentityId(LOCAL_CIDR_FIRST + 1), cidr_labels(text))
        assert network_of(identity.id, identity.labels) == ipaddress.ip_network(text)
    assert str(cidr_label("2001:db8::/32")) == "cidr:2001-db8--0/32"


cidrs = st.lists(st.tuples(networks, st.sets(networks, max_size=2)), min_size=1, max_size=4).map(
    lambda written: Cidrs(tuple(Cidr(prefix, tuple(sorted(excepts))) for prefix, excepts in written))
)


def subnet(one: str, other: str) -> bool:
    return ipaddress.IPv4Network(one).subnet_of(ipaddress.IPv4Network(other))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(cidrs, min_size=1, max_size=3, unique=True),
    st.lists(st.tuples(networks, st.booleans()), max_size=20),
)
def test_blocks_equal_a_scan_as_prefixes_come_and_go(
    peers: list[Cidrs], moves: list[tuple[str, bool]]
) -> None:
    selections = Selections()
    for peer in peers:
        selections.acquire(peer)
    numbers: dict[str, IdentityId] = {}
    present: set[str] = set()
    for prefix, comes in moves:
        number = numbers.setdefault(prefix, IdentityId(LOCAL_CIDR_FIRST + 1 + len(numbers)))
        if comes:
            selections.put(number, cidr_labels(prefix))
            present.add(prefix)
        else:
            selections.remove(number)
            present.discard(prefix)
    for peer in peers:
        meant = {
            numbers[prefix]
            for prefix in present
            for block in peer.blocks
            if subnet(prefix, block.prefix) and not any(subnet(prefix, part) for part in block.excepts)
        }
        assert selections.members(peer) == selections.index.select(peer) == meant
    for peer in peers:
        selections.release(peer)
    assert not selections._speaking
    assert not selections._blocks


def test_nodes_are_in_blocks_only_when_asked() -> None:
    node, host = IdentityId(LOCAL_NODE_FIRST + 1), IdentityId(1)
    remote = Labels.of([cidr_label("192.0.2.7/32"), Label("reserved", "remote-node")])
    own = Labels.of([cidr_label("192.0.2.8/32"), cidr_label("2001:db8::8/128"), Label("reserved", "host")])
    for cidr_nodes in (False, True):
        selections = Selections(cidr_nodes=cidr_nodes)
        selections.put(node, remote)
        selections.put(host, own)
        wide, six = Cidr("192.0.2.0/24", ("192.0.2.7/32",)), Cidr("2001:db8::/32")
        selections.acquire(wide)
        selections.acquire(six)
        assert selections.members(wide) == ({host} if cidr_nodes else set())
        assert selections.members(six) == ({host} if cidr_nodes else set())
        assert set(selections.remove(host)) == ({wide, six} if cidr_nodes else set())


def test_prefixes_as_numbers() -> None:
    for text in ("10.1.2.0/24", "0.0.0.0/0", "192.0.2.1/32", "::/0", "2001:db8::/33", "::1/128"):
        span, network = Span(text), ipaddress.ip_network(text)
        assert (span.first, span.last) == (int(network.network_address), int(network.broadcast_address))
        assert span.network == network
    assert Span("192.0.2.1").prefix == Span("192.0.2.1/32").prefix
    assert Span("2001:db8::1").bits == 128
    known = Prefixes(["10.0.0.0/8", "10.0.0.0/8", "2001:db8::/32"])
    assert known.contain(Span("10.1.0.0/16"))
    assert known.contain(Span("10.0.0.0/8"))
    assert not known.contain(Span("0.0.0.0/0"))
    assert not known.contain(Span("::/0"))
    assert known.contain(Span("2001:db8:1::/48"))
