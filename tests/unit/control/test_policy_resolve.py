"""Entries: what is stored, under which precedence and kind, and what a look-up makes of it."""

from __future__ import annotations

from cilia.control.policy.cookies import CookieBook
from cilia.control.policy.ports import PortPrefix
from cilia.control.policy.resolve import (
    PolicyMode,
    Term,
    decide,
    fingerprint,
    layer,
    match_kind,
    precedence,
)
from cilia.control.policy.rules import TCP, Tier
from cilia.model.ids import Cookie
from cilia.model.policy import Entry, EntryKey, MatchKind, RuleRef

ALL, TCP_ALL, TCP_80 = PortPrefix(), PortPrefix(TCP, 0, 8), PortPrefix(TCP, 80, 24)
TCP_LOW = PortPrefix(TCP, 0, 9)


def ref(path: str) -> RuleRef:
    return RuleRef("NetworkPolicy", "n", "p", "1", path)


def term(path: str, *prefixes: PortPrefix, deny: bool = False) -> Term:
    return Term(None, prefixes, deny, ref(path))


class TestPrecedence:
    def test_the_fields_of_the_number(self) -> None:
        assert precedence(False, False, 0) == Tier.NORMAL << 24
        assert precedence(True, True, 24) == Tier.NORMAL << 24 | 1 << 7 | 1 << 6 | 24
        assert precedence(True, True, 24) < (Tier.NORMAL << 24) + (1 << 8)

    def test_deny_then_peer_then_port(self) -> None:
        order = [(False, False, 0), (False, False, 24), (False, True, 0), (False, True, 24), (True, False, 0)]
        ranks = [precedence(*which) for which in order]
        assert ranks == sorted(ranks)

    def test_match_kinds_are_hubbles(self) -> None:
        kinds = {(s, bits): match_kind(s, bits) for s in (False, True) for bits in (0, 8, 9, 24)}
        assert kinds[False, 0] is MatchKind.ALL
        assert kinds[False, 8] is MatchKind.PROTOCOL_ONLY
        assert kinds[False, 9] is kinds[False, 24] is MatchKind.L4_ONLY
        assert kinds[True, 0] is MatchKind.L3_ONLY
        assert kinds[True, 8] is MatchKind.L3_PROTOCOL
        assert kinds[True, 9] is kinds[True, 24] is MatchKind.L3_L4


class TestLayer:
    def setup_method(self) -> None:
        self.book = CookieBook()

    def layer(self, *terms: Term) -> dict[PortPrefix, tuple[bool, tuple[str, ...]]]:
        return {
            prefix: (entry.allow, tuple(r.path for r in self.book.row(entry.cookie).rules))
            for prefix, entry in layer(terms, True, self.book.name).items()
        }

    def test_a_narrower_allow_is_named_apart(self) -> None:
        assert self.layer(term("a", ALL), term("b", TCP_80)) == {
            ALL: (True, ("a",)),
            TCP_80: (True, ("b",)),
        }

    def test_a_wider_deny_makes_narrower_rules_needless(self) -> None:
        held = self.layer(term("a", TCP_80), term("d", TCP_LOW, deny=True), term("b", TCP_ALL))
        assert held == {TCP_LOW: (False, ("d",)), TCP_ALL: (True, ("b",))}

    def test_a_narrower_deny_makes_a_hole(self) -> None:
        held = self.layer(term("a", TCP_ALL), term("d", TCP_80, deny=True))
        assert held == {TCP_ALL: (True, ("a",)), TCP_80: (False, ("d",))}

    def test_rules_alike_are_named_together(self) -> None:
        assert self.layer(term("b", TCP_80), term("a", TCP_80, TCP_80)) == {TCP_80: (True, ("a", "b"))}

    def test_a_deny_silences_an_allow_at_the_same_place(self) -> None:
        held = self.layer(term("a", TCP_80), term("d", TCP_80, deny=True))
        assert held == {TCP_80: (False, ("d",))}


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


def test_the_fingerprint_tells_modes_apart() -> None:
    assert len({fingerprint((), mode, host) for mode in PolicyMode for host in (True, False)}) == 6
