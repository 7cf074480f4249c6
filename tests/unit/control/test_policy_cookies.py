"""Cookies name contents: the same set is the same number everywhere, another set another number."""

from __future__ import annotations

import pytest

from cilia.control.policy.entries import cookies
from cilia.control.policy.entries.cookies import CookieBook, first_choice
from cilia.model.ids import Cookie
from cilia.model.policy import CookieRow, RuleRef


def ref(path: str) -> RuleRef:
    return RuleRef("NetworkPolicy", "n", "p", "1", path)


def test_equal_sets_have_one_cookie_in_every_book() -> None:
    one = CookieBook().name(frozenset({ref("a"), ref("b")}))
    other = CookieBook()
    other.name(frozenset({ref("c")}))
    assert other.name(frozenset({ref("b"), ref("a")})) == one
    assert other.row(one) == CookieRow(one, (ref("a"), ref("b")))


def test_content_of_any_kind_makes_a_difference() -> None:
    book = CookieBook()
    sets = [
        (frozenset[RuleRef](), True),
        (frozenset({ref("a")}), True),
        (frozenset({ref("a")}), False),
        (frozenset({RuleRef("NetworkPolicy", "n", "p", "2", "a")}), False),
    ]
    assert len({book.name(rules, default=default) for rules, default in sets} | {0}) == 5


def test_sets_that_hash_alike_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cookies, "first_choice", lambda rules, default: Cookie(0xFFFF_FFFF))
    book = CookieBook()
    assert [book.name(frozenset({ref(path)})) for path in "abca"] == [0xFFFF_FFFF, 1, 2, 0xFFFF_FFFF]


def test_zero_is_never_chosen() -> None:
    assert first_choice((), False) > 0


def test_rows_come_with_use_and_outlive_it_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cookies, "RETAINED", 1)
    book = CookieBook()
    a, b = book.name(frozenset({ref("a")})), book.name(frozenset({ref("b")}))
    fresh, forgotten = book.settle(frozenset({a, b}))
    assert {row.cookie for row in fresh} == {a, b}
    assert forgotten == []
    assert book.settle(frozenset({b})) == ([], [])
    assert book.settle(frozenset()) == ([], [a])
    assert book.name(frozenset({ref("b")})) == b
    assert book.name(frozenset({ref("a")})) == a
