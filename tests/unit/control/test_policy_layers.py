"""Layers: what is stored at which prefix, under which precedence and kind, and which rules it names."""

from __future__ import annotations

import pytest

from cilia.control.policy.entries.cookies import CookieBook
from cilia.control.policy.entries.layers import (
    DEFAULT_DENY,
    HIGHEST_PRIORITY,
    PEER_BIT,
    Isolation,
    Layer,
    Matter,
    Namer,
    Ranked,
    Term,
    Weighed,
    match_kind,
    order,
    precedence,
)
from cilia.control.policy.ports import PortPrefix
from cilia.control.policy.rules import TCP, Action, Tier
from cilia.model.policy import EntryFlags, MatchKind, RuleRef

ALL, TCP_ALL, TCP_80 = PortPrefix(), PortPrefix(TCP, 0, 8), PortPrefix(TCP, 80, 24)
TCP_LOW = PortPrefix(TCP, 0, 9)
OPEN, CLOSED = Isolation(), Isolation(True, frozenset({RuleRef("NetworkPolicy", "n", "p", "1", "spec")}))


def ref(path: str) -> RuleRef:
    return RuleRef("NetworkPolicy", "n", "p", "1", path)


def term(
    path: str,
    *prefixes: PortPrefix,
    action: Action = Action.ALLOW,
    tier: Tier = Tier.NORMAL,
    place: int = 0,
    audit: bool = False,
) -> Term:
    matter = Matter(None, prefixes, None, action)
    return Term(matter, order(tier, place), audit, frozenset({ref(path)}))


def deny(path: str, *prefixes: PortPrefix, audit: bool = False) -> Term:
    return term(path, *prefixes, action=Action.DENY, audit=audit)


def of_peer(weighed: Weighed[str], **terms: list[Term]) -> Layer:
    """The layer of peers that all these mean, by name."""
    return weighed.of_peer(tuple(terms), terms.__getitem__)


class TestPrecedence:
    def test_the_fields_of_the_number(self) -> None:
        assert precedence(order(Tier.NORMAL), False, False, 0) == Tier.NORMAL << 24
        assert precedence(order(Tier.NORMAL), True, True, 24) == Tier.NORMAL << 24 | 1 << 7 | 1 << 6 | 24
        assert precedence(order(Tier.ADMIN), True, True, 24) < 1 << 32

    def test_deny_then_peer_then_port(self) -> None:
        rising = [
            (False, False, 0),
            (False, False, 24),
            (False, True, 0),
            (False, True, 24),
            (True, False, 0),
        ]
        ranks = [precedence(order(Tier.NORMAL), *which) for which in rising]
        assert ranks == sorted(ranks)

    def test_earlier_rules_and_tiers_are_higher(self) -> None:
        heard = [order(Tier.ADMIN), order(Tier.ADMIN, 1), order(Tier.ADMIN, 99_999), order(Tier.NORMAL)]
        heard += [DEFAULT_DENY >> 8, order(Tier.BASELINE), order(Tier.BASELINE, HIGHEST_PRIORITY), 0]
        assert heard == sorted(heard, reverse=True)
        assert precedence(order(Tier.BASELINE), True, True, 24) < DEFAULT_DENY

    def test_match_kinds_are_hubbles(self) -> None:
        kinds = {(s, bits): match_kind(s, bits) for s in (False, True) for bits in (0, 8, 9, 24)}
        assert kinds[False, 0] is MatchKind.ALL
        assert kinds[False, 8] is MatchKind.PROTOCOL_ONLY
        assert kinds[False, 9] is kinds[False, 24] is MatchKind.L4_ONLY
        assert kinds[True, 0] is MatchKind.L3_ONLY
        assert kinds[True, 8] is MatchKind.L3_PROTOCOL
        assert kinds[True, 9] is kinds[True, 24] is MatchKind.L3_L4


class Layers:
    """Layers in few words: prefix to verdict and paths of the rules named."""

    def setup_method(self) -> None:
        self.book = CookieBook()
        self.namer = Namer(self.book, False)

    def words(self, layer: Layer) -> dict[PortPrefix, tuple[str, ...]]:
        return {PortPrefix(*prefix): self.word(layer, prefix) for prefix in layer}

    def word(self, layer: Layer, prefix: tuple[int, int, int]) -> tuple[str, ...]:
        entry = layer[prefix]
        noted = "audit " if entry.flags & EntryFlags.AUDIT else ""
        named = self.book.row(entry.cookie).rules if entry.cookie else ()
        return (noted + ("allow" if entry.allow else "deny"), *(r.path for r in named))


class TestRanked(Layers):
    def layer(self, *terms: Term) -> dict[PortPrefix, tuple[str, ...]]:
        ranked: Ranked[int] = Ranked(self.namer, OPEN)
        names = tuple(range(len(terms)))
        return self.words(ranked.of_peer(names, lambda name: ranked.part([terms[name]], True)))

    def test_a_narrower_allow_is_named_apart(self) -> None:
        assert self.layer(term("a", ALL), term("b", TCP_80)) == {ALL: ("allow", "a"), TCP_80: ("allow", "b")}

    def test_a_wider_deny_makes_narrower_rules_needless(self) -> None:
        held = self.layer(term("a", TCP_80), deny("d", TCP_LOW), term("b", TCP_ALL))
        assert held == {TCP_LOW: ("deny", "d"), TCP_ALL: ("allow", "b")}

    def test_a_narrower_deny_makes_a_hole(self) -> None:
        held = self.layer(term("a", TCP_ALL), deny("d", TCP_80))
        assert held == {TCP_ALL: ("allow", "a"), TCP_80: ("deny", "d")}

    def test_rules_alike_are_named_together(self) -> None:
        held = self.layer(term("b", TCP_80), term("a", TCP_80, TCP_80), term("c", TCP_80))
        assert held == {TCP_80: ("allow", "a", "b", "c")}

    def test_a_deny_silences_an_allow_at_the_same_place(self) -> None:
        assert self.layer(term("a", TCP_80), deny("d", TCP_80)) == {TCP_80: ("deny", "d")}

    def test_an_earlier_admin_allow_beats_later_and_normal_denies(self) -> None:
        first = term("a", TCP_LOW, tier=Tier.ADMIN)
        held = self.layer(deny("d", TCP_80), term("e", TCP_80, tier=Tier.ADMIN, place=1), first)
        assert held == {TCP_LOW: ("allow", "a")}

    def test_the_default_stands_for_any_peer(self) -> None:
        ranked: Ranked[int] = Ranked(self.namer, CLOSED)
        assert self.words(ranked.of_anybody([])) == {ALL: ("deny", "spec")}
        assert ranked.of_anybody([])[ALL].precedence == DEFAULT_DENY
        assert self.words(ranked.of_anybody([term("a", ALL)])) == {ALL: ("allow", "a")}

    def test_where_all_is_in_audit_denials_are_noted(self) -> None:
        ranked: Ranked[int] = Ranked(Namer(self.book, True), CLOSED)
        layer = ranked.of_anybody([deny("d", TCP_80), term("a", TCP_ALL)])
        assert self.words(layer) == {
            ALL: ("audit deny", "spec"),
            TCP_80: ("audit deny", "d"),
            TCP_ALL: ("allow", "a"),
        }


class TestWeighed(Layers):
    def weighed(
        self, *anybody: Term, enforced: Isolation = OPEN, full: Isolation | None = None
    ) -> Weighed[str]:
        noting = Namer(self.book, True)
        return Weighed(self.namer, noting, anybody, enforced, full if full is not None else enforced)

    def test_a_pass_leaves_it_to_the_next_tier(self) -> None:
        weighed = self.weighed(deny("d", TCP_80), term("b", ALL, tier=Tier.BASELINE))
        layer = of_peer(weighed, p=[term("p", TCP_ALL, action=Action.PASS, tier=Tier.ADMIN)])
        assert self.words(layer) == {TCP_ALL: ("allow", "b"), TCP_80: ("deny", "d")}

    def test_a_pass_hides_later_rules_of_its_tier(self) -> None:
        weighed = self.weighed(term("x", TCP_80, action=Action.DENY, tier=Tier.ADMIN, place=1))
        layer = of_peer(weighed, p=[term("p", TCP_ALL, action=Action.PASS, tier=Tier.ADMIN)])
        assert self.words(layer)[TCP_ALL] == ("allow",)
        assert layer[TCP_ALL].flags == EntryFlags.DEFAULT

    def test_a_pass_in_the_baseline_tier_ends_in_the_default(self) -> None:
        weighed = self.weighed(term("x", TCP_80, action=Action.DENY, tier=Tier.BASELINE, place=1))
        layer = of_peer(weighed, p=[term("p", TCP_80, action=Action.PASS, tier=Tier.BASELINE)])
        assert self.words(layer) == {TCP_80: ("allow",)}

    def test_isolation_ends_the_normal_tier(self) -> None:
        weighed = self.weighed(term("b", ALL, tier=Tier.BASELINE), enforced=CLOSED)
        assert self.words(weighed.of_anybody()) == {ALL: ("deny", "spec")}

    @pytest.mark.parametrize("action", list(Action))
    def test_the_peers_layer_always_wins(self, action: Action) -> None:
        admin = term("x", TCP_80, action=Action.DENY, tier=Tier.ADMIN)
        weighed = self.weighed(admin, enforced=CLOSED)
        anybody = weighed.of_anybody()
        peer = of_peer(weighed, p=[term("y", TCP_ALL, action=action, tier=Tier.ADMIN, place=1)])
        assert all(entry.precedence & PEER_BIT for entry in peer.values())
        assert not any(entry.precedence & PEER_BIT for entry in anybody.values())
        assert peer[TCP_80].precedence > anybody[TCP_80].precedence
        assert self.word(peer, TCP_80) == self.word(anybody, TCP_80) == ("deny", "x")

    def test_a_denial_only_heard_is_noted(self) -> None:
        weighed = self.weighed(deny("d", TCP_80, audit=True), full=CLOSED)
        assert self.words(weighed.of_anybody()) == {ALL: ("audit deny", "spec"), TCP_80: ("audit deny", "d")}

    def test_an_allow_only_heard_lets_nothing_through(self) -> None:
        weighed = self.weighed(term("a", TCP_80, audit=True), enforced=CLOSED)
        assert self.words(weighed.of_anybody()) == {ALL: ("deny", "spec")}

    def test_an_enforced_denial_stays_one(self) -> None:
        weighed = self.weighed(deny("d", TCP_80), deny("e", TCP_ALL, audit=True))
        layer = weighed.of_anybody()
        assert self.words(layer) == {ALL: ("allow",), TCP_ALL: ("audit deny", "e"), TCP_80: ("deny", "d")}

    def test_a_narrow_entry_stays_where_it_alone_outranks_that_of_any_peer(self) -> None:
        """Left out, the peer's wider denial would lose to a rule that is only heard, and the packet pass."""
        loud = Term(
            Matter(None, (TCP_80,), None, Action.DENY), order(Tier.ADMIN), True, frozenset({ref("x")})
        )
        weighed = self.weighed(loud)
        anybody, peer = weighed.of_anybody(), of_peer(weighed, p=[deny("d", ALL)])
        assert self.words(anybody) == {ALL: ("allow",), TCP_80: ("audit deny", "x")}
        assert self.words(peer) == {ALL: ("deny", "d"), TCP_80: ("deny", "d")}
        assert peer[TCP_80].precedence > anybody[TCP_80].precedence

    def test_what_more_terms_are_about_is_judged_again(self) -> None:
        weighed = self.weighed(term("x", TCP_80, tier=Tier.ADMIN, place=1), deny("y", TCP_LOW))
        one, other = [deny("d", TCP_80)], [term("p", TCP_ALL, action=Action.PASS, tier=Tier.ADMIN)]
        for _ in range(2):
            assert self.words(of_peer(weighed, d=one)) == {TCP_80: ("allow", "x")}
            assert self.words(of_peer(weighed, d=one, p=other)) == {
                TCP_ALL: ("allow",),
                TCP_LOW: ("deny", "y"),
                TCP_80: ("deny", "d"),
            }
            assert self.words(of_peer(weighed, p=other)) == {TCP_ALL: ("allow",), TCP_LOW: ("deny", "y")}
            weighed.forget()

    def test_what_the_next_wider_prefix_says_already_is_left_out(self) -> None:
        weighed = self.weighed(deny("d", TCP_ALL))
        layer = of_peer(weighed, e=[deny("e", ALL)], a=[term("a", TCP_80)])
        assert self.words(layer) == {ALL: ("deny", "e")}
