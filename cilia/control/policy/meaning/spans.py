"""Prefixes as numbers: a prefix is within at most one other of each length, which a look-up finds."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from cilia.model.address import IPNetwork

_WIDTH = {4: 32, 6: 128}


class Span:
    """A prefix as the numbers of its first and last address."""

    __slots__ = ("bits", "first", "last", "version")

    def __init__(self, prefix: str) -> None:
        """`prefix` in canonical text; an address stands for itself. There may be tens of thousands."""
        if ":" in prefix:
            network = ipaddress.IPv6Network(prefix)
            self.version, self.bits = 6, network.prefixlen
            self.first = int(network.network_address)
        else:
            address, _, length = prefix.partition("/")
            a, b, c, d = address.split(".")
            self.version, self.bits = 4, int(length or 32)
            self.first = int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d)
        self.last = self.first + (1 << (_WIDTH[self.version] - self.bits)) - 1

    @property
    def prefix(self) -> tuple[int, int, int]:
        """Family, length and leading bits: what two equal prefixes share."""
        return (self.version, self.bits, self.first >> (_WIDTH[self.version] - self.bits))

    @property
    def address(self) -> str:
        """Its first address."""
        return str(self.network.network_address)

    @property
    def network(self) -> IPNetwork:
        """The prefix as the standard library has it."""
        kind = ipaddress.IPv6Network if self.version == 6 else ipaddress.IPv4Network
        return kind((self.first, self.bits))

    def around(self, lengths: Iterable[int]) -> Iterator[tuple[int, int, int]]:
        """The prefixes of these lengths that contain this one."""
        width = _WIDTH[self.version]
        for bits in lengths:
            if bits <= self.bits:
                yield (self.version, bits, self.first >> (width - bits))

    def within(self, other: Span) -> bool:
        """Whether every address of this prefix is in the other."""
        return self.version == other.version and other.first <= self.first and self.last <= other.last


class Lengths:
    """How many prefixes of each length there are, by family."""

    def __init__(self) -> None:
        self._counts: dict[int, dict[int, int]] = {4: {}, 6: {}}

    def of(self, version: int) -> Iterable[int]:
        """The lengths that occur."""
        return self._counts[version]

    def add(self, span: Span) -> None:
        """Count a prefix."""
        counts = self._counts[span.version]
        counts[span.bits] = counts.get(span.bits, 0) + 1

    def remove(self, span: Span) -> None:
        """Count one less."""
        counts = self._counts[span.version]
        counts[span.bits] -= 1
        if not counts[span.bits]:
            del counts[span.bits]


class Prefixes:
    """A set of prefixes, to ask whether one of them contains another."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._prefixes: set[tuple[int, int, int]] = set()
        self._lengths = Lengths()
        for text in texts:
            span = Span(text)
            if span.prefix not in self._prefixes:
                self._prefixes.add(span.prefix)
                self._lengths.add(span)

    def contain(self, span: Span) -> bool:
        """Whether one of them contains `span`, or is it."""
        return any(prefix in self._prefixes for prefix in span.around(self._lengths.of(span.version)))
