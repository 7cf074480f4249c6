"""Cookies: a 32-bit name for a set of rules, made from its content.

The same set has the same cookie on every node and after every restart. Two sets that hash alike are told
apart by taking the next free number; that choice, alone, depends on which came first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set

from cilia.model.ids import Cookie
from cilia.model.policy import CookieRow, RuleRef

RETAINED = 4096
"""Cookies kept after their last use, so that recent flows still find their rules."""

Content = tuple[frozenset[RuleRef], bool]


class CookieBook:
    """Hands out cookies and remembers what they stand for."""

    def __init__(self) -> None:
        self._rows: dict[Cookie, CookieRow] = {}
        self._by_content: dict[Content, Cookie] = {}
        self._together: dict[tuple[Cookie, Cookie], Cookie] = {}
        """Of pairs that were named together: the same rules meet again at many peers."""
        self._named: set[Cookie] = set()
        """Given out since the last `settle`."""
        self._unused: dict[Cookie, None] = {}
        """Once used and not any more, the longest ago first."""
        self._used: Set[Cookie] = frozenset()

    def name(self, rules: frozenset[RuleRef], default: bool = False) -> Cookie:
        """The cookie of a set of rules."""
        known = self._by_content.get((rules, default))
        if known is not None:
            return known
        content = (tuple(sorted(rules)), default)
        cookie = first_choice(*content)
        while cookie in self._rows:
            cookie = Cookie(cookie % 0xFFFF_FFFF + 1)
        self._rows[cookie] = CookieRow(cookie, *content)
        self._by_content[rules, default] = cookie
        self._named.add(cookie)
        return cookie

    def together(self, one: Cookie, other: Cookie) -> Cookie:
        """The cookie of the rules of two."""
        known = self._together.get((one, other))
        if known is None:
            rules = frozenset(self._rows[one].rules + self._rows[other].rules)
            known = self._together[one, other] = self.name(rules)
        return known

    def row(self, cookie: Cookie) -> CookieRow:
        """What a cookie stands for."""
        return self._rows[cookie]

    def settle(self, used: Set[Cookie]) -> tuple[list[CookieRow], list[Cookie]]:
        """Tell which cookies are in use now; returns the rows that came into use and those to forget.

        A cookie out of use is forgotten when `RETAINED` others have gone out of use after it, one that nobody
        ever used at once.
        """
        fresh = [self._rows[cookie] for cookie in sorted(used - self._used)]
        for cookie in used - self._used:
            self._unused.pop(cookie, None)
        self._unused.update(dict.fromkeys(sorted(self._used - used)))
        for cookie in self._named - used:
            self._forget(cookie)
        self._named.clear()
        self._used = used
        forgotten = list(self._unused)[: max(0, len(self._unused) - RETAINED)]
        for cookie in forgotten:
            del self._unused[cookie]
            self._forget(cookie)
        return fresh, forgotten

    def _forget(self, cookie: Cookie) -> None:
        row = self._rows.pop(cookie)
        self._together.clear()
        del self._by_content[frozenset(row.rules), row.default]


def first_choice(rules: tuple[RuleRef, ...], default: bool) -> Cookie:
    """The cookie of sorted rules unless another set has it already; never 0."""
    parts = ["default" if default else "rules"]
    for ref in rules:
        parts += (ref.kind, ref.namespace, ref.name, ref.resource_version, ref.path, ref.log)
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=4).digest()
    return Cookie(int.from_bytes(digest, "big") or 1)
