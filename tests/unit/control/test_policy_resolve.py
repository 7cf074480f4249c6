"""Groups and the decision: what a look-up makes of entries, what groups depend on, what they share."""

from __future__ import annotations

from collections.abc import Mapping, Set

import msgspec
import pytest

from cilia.control.policy.entries import layers, sides
from cilia.control.policy.entries.cookies import CookieBook
from cilia.control.policy.entries.resolve import Group, decide, fingerprint
from cilia.control.policy.rules import (
    ALL_PORTS,
    TCP,
    UDP,
    Action,
    Cidr,
    Meant,
    Peer,
    PortName,
    PortRange,
    Ports,
    Rule,
    Section,
    Selector,
    Tier,
)
from cilia.model.endpoint import NamedPort
from cilia.model.ids import Cookie, IdentityId
from cilia.model.policy import Direction, Entry, EntryFlags, EntryKey, MatchKind, PolicyMode, RuleRef

A, B = IdentityId(300), IdentityId(301)
WEB, LAN = Selector(), Cidr("10.0.0.0/8")
HTTP = PortName(TCP, "http")


class Told:
    """A world that was told its answers."""

    def __init__(
        self,
        members: Mapping[Meant, Set[IdentityId]] | None = None,
        ports: Mapping[IdentityId, frozenset[int]] | None = None,
    ) -> None:
        self._members = members or {}
        self._ports = ports or {}

    def members(self, peer: Meant) -> Set[IdentityId]:
        return self._members.get(peer, frozenset())

    def port_numbers(self, identity: IdentityId, name: PortName) -> frozenset[int]:
        return self._ports.get(identity, frozenset())

    def naming(self, name: PortName) -> Set[IdentityId]:
        return self._ports.keys()


def section(name: str, *rules: Rule, tier: Tier = Tier.NORMAL, priority: int = 0) -> Section:
    isolates = tuple(dict.fromkeys(rule.direction for rule in rules)) if tier is Tier.NORMAL else ()
    ref = RuleRef("NetworkPolicy", "n", name, "1", "spec")
    return Section(subject=Selector(), ref=ref, isolates=isolates, rules=rules, tier=tier, priority=priority)


def rule(
    path: str,
    peer: Peer = WEB,
    *ports: Ports,
    action: Action = Action.ALLOW,
    direction: Direction = Direction.EGRESS,
) -> Rule:
    return Rule(direction, peer, ports or ALL_PORTS, action, RuleRef("NetworkPolicy", "n", "p", "1", path))


def built(group: Group, world: Told) -> dict[EntryKey, tuple[bool, tuple[str, ...]]]:
    """Keys of the entries about certain peers, whether they allow, and the rules they name."""
    book = CookieBook()
    group.build(world, book)
    return {
        key: (entry.allow, tuple(ref.path for ref in book.row(entry.cookie).rules))
        for key, entry in group.entries.items()
        if key.peer
    }


class TestDecide:
    def entry(self, rank: int, allow: bool) -> Entry:
        return Entry(rank, allow, Cookie(0), MatchKind.NONE)

    def test_the_longest_prefix_of_each_look_up_counts(self) -> None:
        wide, narrow = EntryKey(1, 5, TCP, 0, 8), EntryKey(1, 5, TCP, 80, 24)
        entries = {wide: self.entry(9, False), narrow: self.entry(1, True)}
        assert decide(entries, 5, 1, TCP, 80) == (narrow, entries[narrow])
        assert decide(entries, 5, 1, TCP, 81) == (wide, entries[wide])

    def test_the_higher_precedence_of_both_look_ups_wins(self) -> None:
        mine, anyones = EntryKey(1, 5), EntryKey(1, 0)
        entries = {mine: self.entry(1, True), anyones: self.entry(2, False)}
        assert decide(entries, 5, 1, TCP, 80) == (anyones, entries[anyones])
        entries[mine] = self.entry(3, True)
        assert decide(entries, 5, 1, TCP, 80) == (mine, entries[mine])

    def test_a_tie_denies(self) -> None:
        for mine in (True, False):
            entries = {
                EntryKey(1, 5): self.entry(1, mine),
                EntryKey(1, 0): self.entry(1, not mine),
            }
            hit = decide(entries, 5, 1, TCP, 80)
            assert hit is not None
            assert not hit[1].allow

    def test_nothing_found(self) -> None:
        assert decide({}, 5, 1, TCP, 80) is None
        assert decide({EntryKey(2, 0): self.entry(1, True)}, 5, 1, TCP, 80) is None


class TestFingerprint:
    def test_it_tells_modes_apart(self) -> None:
        found = {
            fingerprint([b""], mode, audit, (), host)
            for mode in PolicyMode
            for host in (True, False)
            for audit in (True, False)
        }
        assert len(found) == 12

    def test_only_named_ports_that_rules_speak_of_count(self) -> None:
        mine = section("p", rule("a", None, HTTP, direction=Direction.INGRESS))
        http, other = NamedPort("http", 80), NamedPort("metrics", 9090)

        def name(*ports: NamedPort) -> str:
            return Group([mine], PolicyMode.DEFAULT, named_ports=ports).rules

        assert name(http) == name(http, other) != name(other) == name()

    def test_the_order_of_sections_does_not_matter(self) -> None:
        one, two = section("p", rule("a")), section("q", rule("b"))
        assert Group([one, two], PolicyMode.DEFAULT).rules == Group([two, one], PolicyMode.DEFAULT).rules


class TestGroup:
    def test_rules_alike_become_one_entry(self) -> None:
        group = Group([section("p", rule("b"), rule("a"))], PolicyMode.DEFAULT)
        assert built(group, Told({WEB: {A}})) == {EntryKey(2, A): (True, ("a", "b"))}

    def test_peers_alike_share_a_layer(self) -> None:
        group = Group([section("p", rule("a"), rule("b", LAN))], PolicyMode.DEFAULT)
        group.build(Told({WEB: {A, B}, LAN: {A, B}}), CookieBook())
        assert group.entries.layer(2, A) is group.entries.layer(2, B)
        assert set(group.peers) == {WEB, LAN}

    def test_admin_rules_are_heard_by_priority_then_name_then_place(self) -> None:
        admin = [
            section("z", rule("late", action=Action.DENY), tier=Tier.ADMIN, priority=1),
            section("b", rule("second"), rule("third", action=Action.DENY), tier=Tier.ADMIN),
            section("a", rule("first", WEB, PortRange(TCP), action=Action.DENY), tier=Tier.ADMIN),
        ]
        for sections in (admin, admin[::-1]):
            found = built(Group(sections, PolicyMode.DEFAULT), Told({WEB: {A}}))
            assert found == {
                EntryKey(2, A): (True, ("second",)),
                EntryKey(2, A, TCP, 0, 8): (False, ("first",)),
            }

    def test_baseline_is_left_out_where_a_policy_isolates(self) -> None:
        baseline = section("d", rule("d", action=Action.DENY), tier=Tier.BASELINE)
        assert built(Group([baseline], PolicyMode.DEFAULT), Told({WEB: {A}})) == {
            EntryKey(2, A): (False, ("d",))
        }
        isolating = section("p", rule("a", LAN))
        assert built(Group([baseline, isolating], PolicyMode.DEFAULT), Told({WEB: {A}})) == {}

    def test_more_rules_than_the_number_can_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (layers, sides):
            monkeypatch.setattr(module, "HIGHEST_PRIORITY", 2)
        ports = [PortRange(UDP, port, port) for port in range(1, 8)]
        deny = rule("deny", WEB, ports[4], action=Action.DENY)
        rules = [*(rule(str(p.first), WEB, p) for p in ports[:4]), deny, rule("late", WEB, ports[4])]
        found = built(Group([section("m", *rules, tier=Tier.ADMIN)], PolicyMode.DEFAULT), Told({WEB: {A}}))
        assert found[EntryKey(2, A, UDP, 5, 24)] == (False, ("deny",))
        assert found[EntryKey(2, A, UDP, 4, 24)] == (True, ("4",))

    def test_mode_never_says_nothing(self) -> None:
        group = Group([section("p", rule("a"))], PolicyMode.NEVER)
        assert built(group, Told({WEB: {A}})) == {}
        assert not group.egress_enforced
        assert group.peers == ()
        assert all(entry.allow for entry in group.entries.values())

    def test_a_changed_copy_shares_what_did_not_change(self) -> None:
        book = CookieBook()
        group = Group([section("p", rule("a"))], PolicyMode.DEFAULT)
        group.build(Told({WEB: {A}}), book)
        before = group.entries
        group.patch({B}, Told({WEB: {A}}), book)
        assert group.entries is before
        group.patch({B}, Told({WEB: {A, B}}), book)
        assert before.keys() < group.entries.keys()
        assert list(group.entries.since(before).added) == [EntryKey(2, B)]

    def test_audit_of_all_denies_nothing(self) -> None:
        group = Group([section("p", rule("a", LAN))], PolicyMode.ALWAYS, audit=True)
        group.build(Told(), CookieBook())
        denials = [entry for entry in group.entries.values() if not entry.allow]
        assert len(denials) == 2
        assert all(entry.flags & EntryFlags.AUDIT for entry in denials)


class TestPortNames:
    def test_ingress_means_what_the_subject_itself_calls_so(self) -> None:
        mine = section("p", rule("a", WEB, HTTP, direction=Direction.INGRESS))
        ports = (NamedPort("http", 80), NamedPort("http", 53, "UDP"))
        group = Group([mine], PolicyMode.DEFAULT, named_ports=ports, allow_localhost=False)
        assert built(group, Told({WEB: {A}})) == {EntryKey(1, A, TCP, 80, 24): (True, ("a",))}
        assert group.names == ()

    def test_a_name_the_subject_lacks_means_nothing(self) -> None:
        mine = section("p", rule("a", WEB, HTTP, direction=Direction.INGRESS))
        group = Group([mine], PolicyMode.DEFAULT, allow_localhost=False)
        assert built(group, Told({WEB: {A}})) == {}

    def test_egress_means_what_each_peer_calls_so(self) -> None:
        group = Group([section("p", rule("a", None, HTTP, PortRange(UDP)))], PolicyMode.DEFAULT)
        world = Told(ports={A: frozenset({80, 8080}), B: frozenset({81})})
        assert group.names == (HTTP,)
        assert built(group, world) == {
            EntryKey(2, A, TCP, 80, 24): (True, ("a",)),
            EntryKey(2, A, TCP, 8080, 24): (True, ("a",)),
            EntryKey(2, B, TCP, 81, 24): (True, ("a",)),
        }

    def test_a_patch_follows_other_numbers(self) -> None:
        book = CookieBook()
        group = Group([section("p", rule("a", WEB, HTTP))], PolicyMode.DEFAULT)
        group.build(Told({WEB: {A}}, {A: frozenset({80})}), book)
        group.patch({A}, Told({WEB: {A}}, {A: frozenset({81})}), book)
        assert [key for key in group.entries if key.peer] == [EntryKey(2, A, TCP, 81, 24)]


def test_sections_alike_have_one_digest_however_they_were_made() -> None:
    one = section("p", rule("a"))
    other = msgspec.structs.replace(one)
    assert other is not one
    assert Group([one], PolicyMode.DEFAULT).rules == Group([other], PolicyMode.DEFAULT).rules
