"""Flows that are older than the ring: what the observer asks of whoever keeps them.

Rows of the past look like rows of the store, but point into values of their own, for they may come from an
earlier run of the agent. What reads rows therefore takes `Meanings`, which the store has, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from cilia.hubble.columns import Mask
from cilia.hubble.directory import Device, Party, Service
from cilia.hubble.store import LossRow, Rows, Rules

T_co = TypeVar("T_co", covariant=True)


class Values(Protocol[T_co]):
    """What the indexes of one column stand for."""

    @property
    def values(self) -> Sequence[T_co]:
        """By index."""
        ...

    @property
    def generation(self) -> int:
        """Grows when indexes are given out anew."""
        ...


class Meanings(Protocol):
    """What rows point into."""

    @property
    def boot(self) -> int:
        """First half of the UUID of every row."""
        ...

    @property
    def parties(self) -> Values[Party]: ...

    @property
    def rules(self) -> Values[Rules]: ...

    @property
    def devices(self) -> Values[Device]: ...

    @property
    def services(self) -> Values[Service]: ...

    def row_of(self, uuid: str) -> int | None:
        """The row a UUID names; None for others'."""
        ...


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of the past."""

    match: Callable[[Meanings], Callable[[Rows], Mask]]
    """Compiles the request's filters for rows that point into these meanings."""
    before: int
    """Rows of the running agent from this number on are the store's."""
    first: int | None = None
    """Only rows of the running agent, from this number on: older ones are answered. None: all there are."""
    since: int | None = None
    """Nanoseconds since the Unix epoch, as `until`; both are included."""
    until: int | None = None
    limit: int | None = None
    """Flows wanted at most."""
    newest: bool = False
    """The newest `limit` instead of the oldest."""


class Part(NamedTuple):
    """Some rows of the answer, in their order, and the gaps among them."""

    rows: Rows
    meanings: Meanings
    """The same object for all parts of one file."""
    gaps: Sequence[LossRow]
    """By `position` among the numbers of `rows`."""


class Past(Protocol):
    """Keeps what the ring can't."""

    @property
    def reach(self) -> int:
        """Rows of the running agent below this number are kept, or counted as lost."""
        ...

    def read(self, question: Question) -> AsyncIterator[Part]:
        """The answer, oldest first; nothing is read ahead of who takes it. Raises TooManyReaders."""
        ...


class TooManyReaders(Exception):
    """So many answers are being read from the past that another one would need too much memory."""
