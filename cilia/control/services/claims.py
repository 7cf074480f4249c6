"""Who has what several ask for: frontends, ports of health checks.

What only one asks for is in the table at once. What several ask for has the first of them in an order that
does not depend on who came first here; the others are told.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from cilia.control.services.drafts import Owner
from cilia.tables.table import Table

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


class Claims(Generic[K, R]):
    """The rows of one desired table, by who asks for them."""

    def __init__(
        self, table: Table[K, R], owner_of: Callable[[R], Owner], rank: Callable[[Owner, R], Any]
    ) -> None:
        """`rank`: of those that ask for one key the smallest has it."""
        self._table = table
        self._owner_of = owner_of
        self._rank = rank
        self._rivals: dict[K, dict[Owner, R]] = {}
        """All that is asked for by more than one."""
        self._contested: dict[K, None] = {}
        """What must be judged again."""

    def replace(self, owner: Owner, before: Iterable[K], rows: Mapping[K, R]) -> None:
        """An owner asks for `rows` now, no longer for all of `before`."""
        for key in before:
            if key not in rows:
                self._withdraw(owner, key)
        for key, row in rows.items():
            self._claim(owner, key, row)

    def settle(self) -> set[Owner]:
        """Judge what is contested; returns whom it concerns."""
        concerned: set[Owner] = set()
        for key in self._contested:
            rivals = self._rivals[key]
            concerned.update(rivals)
            if rivals:
                self._table.put(rivals[self._first(rivals)])
            else:
                self._table.delete(key)
            if len(rivals) < 2:
                del self._rivals[key]
        self._contested.clear()
        return concerned

    def lost(self, owner: Owner, keys: Iterable[K]) -> list[tuple[R, R]]:
        """Of what an owner asks for: what others have, as (its own row, theirs)."""
        if not self._rivals:
            return []
        rivals = [self._rivals[key] for key in keys if key in self._rivals]
        return [(each[owner], each[first]) for each in rivals if (first := self._first(each)) != owner]

    def _first(self, rivals: Mapping[Owner, R]) -> Owner:
        return min(rivals, key=lambda owner: (self._rank(owner, rivals[owner]), owner))

    def _claim(self, owner: Owner, key: K, row: R) -> None:
        rivals = self._rivals.get(key)
        if rivals is None:
            present = self._table.get(key)
            if present is None or (holder := self._owner_of(present)) == owner:
                self._table.put(row)
                return
            rivals = self._rivals[key] = {holder: present}
        rivals[owner] = row
        self._contested[key] = None

    def _withdraw(self, owner: Owner, key: K) -> None:
        rivals = self._rivals.get(key)
        if rivals is None:
            self._table.delete(key)
        else:
            rivals.pop(owner, None)
            self._contested[key] = None
