"""Numbers given to things, and stretches of an array: what is free, in use, or resting after use.

Whoever reads a map while it changes may still hold a number or a stretch that was just given back. So what
is given back rests, keeps its name (the same thing gets the same number again), and is given out again only
when its owner says that nobody holds it any more. Pure bookkeeping: times are arguments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Numbers(Generic[K]):
    """Numbers 1 .. size - 1, by the thing that has each. Fresh ones first, then those longest free."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._fresh = 1
        self._known: dict[K, int] = {}
        self._resting: dict[int, tuple[K, float]] = {}
        self._free: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._known) - len(self._resting)

    @property
    def resting(self) -> int:
        """How many are neither in use nor free."""
        return len(self._resting)

    def get(self, key: K) -> int | None:
        """The number of `key`, in use or resting."""
        return self._known.get(key)

    def take(self, key: K) -> int | None:
        """The number of `key`, a new one if it has none; None when all are in use or resting."""
        number = self._known.get(key)
        if number is not None:
            self._resting.pop(number, None)
            return number
        if self._fresh < self._size:
            number = self._fresh
            self._fresh += 1
        elif self._free:
            number = self._free.popleft()
        else:
            return None
        self._known[key] = number
        return number

    def release(self, key: K, now: float) -> None:
        """`key` is gone; its number rests from `now` on."""
        self._resting[self._known[key]] = (key, now)

    def reclaim(self, before: float, busy: Callable[[int], bool] = lambda number: False) -> list[int]:
        """Free the numbers that rest since before a time and are not busy; which they are."""
        done = [n for n, (_, since) in self._resting.items() if since < before and not busy(n)]
        for number in done:
            key, _ = self._resting.pop(number)
            del self._known[key]
            self._free.append(number)
        return done

    def adopt(self, found: dict[K, int], resting: dict[K, int], now: float) -> None:
        """Begin with numbers given out by a predecessor: those in use, and those of things that are gone."""
        self._known = {**resting, **found}
        self._resting = {number: (key, now) for key, number in resting.items() if key not in found}
        taken = set(self._known.values())
        self._fresh = max(taken, default=0) + 1
        self._free = deque(number for number in range(1, self._fresh) if number not in taken)


class Stretches:
    """Stretches of an array, each in a block of the next power of two (the buddy system): what is given back
    grows together again, and the sizes of Maglev tables lie just below such powers."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[set[int]] = [set() for _ in range(size.bit_length())]
        self._resting: deque[tuple[float, int, int]] = deque()
        start = 0
        while start < size:
            order = (size - start).bit_length() - 1
            self._free[order].add(start)
            start += 1 << order

    def take(self, count: int) -> int | None:
        """The beginning of a free stretch of `count` (at least 1); None when none is long enough."""
        order = (count - 1).bit_length()
        larger = next((at for at in range(order, len(self._free)) if self._free[at]), None)
        if larger is None:
            return None
        start = self._free[larger].pop()
        self._split(start, start, larger, order)
        return start

    def fits(self, count: int) -> bool:
        """Whether a stretch of `count` is free, or may be when those that rest are."""
        return bool(self._resting) or any(self._free[(count - 1).bit_length() :])

    def reserve(self, first: int, count: int) -> bool:
        """Take this very stretch; whether it is free and one that `take` could have given."""
        order = (count - 1).bit_length()
        if count < 1 or first & ((1 << order) - 1):
            return False
        for larger in range(order, len(self._free)):
            start = first & ~((1 << larger) - 1)
            if start in self._free[larger]:
                self._free[larger].remove(start)
                self._split(start, first, larger, order)
                return True
        return False

    def retire(self, first: int, count: int, now: float) -> None:
        """A stretch is not used any more; it rests from `now` on."""
        self._resting.append((now, first, count))

    def reclaim(self, before: float) -> int:
        """Free the stretches that rest since before a time; how many there were."""
        done = 0
        while self._resting and self._resting[0][0] < before:
            _, first, count = self._resting.popleft()
            self._join(first, (count - 1).bit_length())
            done += 1
        return done

    @property
    def resting(self) -> int:
        """How many stretches rest."""
        return len(self._resting)

    @property
    def free(self) -> int:
        """How many elements are free."""
        return sum(len(starts) << order for order, starts in enumerate(self._free))

    def _split(self, start: int, wanted: int, order: int, down_to: int) -> None:
        """Halve a block until it is the wanted one; the other halves are free."""
        while order > down_to:
            order -= 1
            middle = start + (1 << order)
            if wanted >= middle:
                self._free[order].add(start)
                start = middle
            else:
                self._free[order].add(middle)

    def _join(self, start: int, order: int) -> None:
        while order < len(self._free) - 1 and start ^ (1 << order) in self._free[order]:
            self._free[order].remove(start ^ (1 << order))
            start &= ~(1 << order)
            order += 1
        self._free[order].add(start)
