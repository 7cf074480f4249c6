"""The values of filters: prefixes, ports, patterns, selectors; and the errors that say what is wrong."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from cilia.hubble import selectors
from cilia.hubble.columns import FLAG_IPV6, Mask, Words, flagged
from cilia.hubble.store import Rows
from cilia.hubble.turns import unhurried
from cilia.model.address import pack, prefix_bits

COMPARED = 16
"""Prefixes and ranges of ports that are compared with each row, one after the other; more are looked up."""


class FilterError(ValueError):
    """A filter value that can't be read; its text is a sentence for the user."""


class UnsupportedFilter(Exception):
    """A filter field that is not evaluated here; its text is a sentence for the user."""


class Prefix(NamedTuple):
    """A CIDR, as raw words like those of `address_words`."""

    high: np.uint64
    low: np.uint64
    high_mask: np.uint64
    low_mask: np.uint64
    six: bool

    @classmethod
    def parse(cls, value: str) -> Prefix:
        """Read an address or a CIDR. Raises FilterError."""
        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise FilterError(f"{value!r} is neither an IP address nor a CIDR") from None
        bits = (1 << 128) - (1 << 128 - prefix_bits(network))
        words = np.frombuffer(pack(network.network_address) + bits.to_bytes(16, "big"), np.uint64)
        return cls(words[0], words[1], words[2], words[3], network.version == 6)


class Prefixes:
    """Which addresses lie in one of many CIDRs of their own family."""

    def __init__(self, values: Iterable[str]) -> None:
        """Raises FilterError."""
        self._all = [Prefix.parse(value) for value in unhurried(values)]
        self._ranges = [Ranges([each for each in self._all if each.six is six]) for six in (False, True)]

    def hold(self, rows: Rows, high: Words, low: Words) -> Mask:
        """Ask about an address of each row, given as words."""
        six = flagged(rows.events, FLAG_IPV6)
        if len(self._all) > COMPARED:
            addresses = texts_of(np.stack([high, low], axis=1))
            return np.where(six, self._ranges[True].hold(addresses), self._ranges[False].hold(addresses))
        matched = np.zeros(len(high), np.bool_)
        for prefix in self._all:
            inside = (high & prefix.high_mask) == prefix.high
            inside &= (low & prefix.low_mask) == prefix.low
            matched |= inside & (six == prefix.six)
        return matched


class Ranges:
    """Prefixes of one family in their order, those inside of others left out: a search finds the only one an
    address can lie in."""

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        firsts: list[bytes] = []
        lasts: list[bytes] = []
        for first, last in sorted(
            map(ends, unhurried(prefixes)), key=lambda pair: (pair[0], -int.from_bytes(pair[1]))
        ):
            if not lasts or first > lasts[-1]:
                firsts.append(first)
                lasts.append(last)
        self._firsts, self._lasts = np.array(firsts, "S16"), np.array(lasts, "S16")

    def hold(self, addresses: Any) -> Mask:
        """Which of some addresses, as texts of 16 bytes, lie in one."""
        if not len(self._firsts):
            return np.zeros(len(addresses), np.bool_)
        place = np.searchsorted(self._firsts, addresses, side="right") - 1
        inside: Mask = (place >= 0) & (addresses <= self._lasts[place])
        return inside


def ends(prefix: Prefix) -> tuple[bytes, bytes]:
    """First and last address."""
    high, low = prefix.high | ~prefix.high_mask, prefix.low | ~prefix.low_mask
    return prefix.high.tobytes() + prefix.low.tobytes(), high.tobytes() + low.tobytes()


def texts_of(words: Words) -> Any:
    """Addresses of shape (n, 2) as texts of 16 bytes, whose order is that of addresses: zeros at the
    end count as nothing, which is what they are."""
    return words.view("S16")[:, 0]


def port_range(value: str) -> tuple[int, int]:
    """First and last port. Raises FilterError."""
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", value)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not first <= last <= 65535:
        raise FilterError(f"{value!r} is not a port: use a number up to 65535 or a range such as 8000-8080")
    return first, last


class Ports:
    """Which ports lie in one of some ranges."""

    def __init__(self, values: Iterable[str]) -> None:
        """Raises FilterError."""
        self._ranges = [port_range(value) for value in unhurried(values)]
        self._table: Mask | None = None
        """By port, where there are many ranges: a request may have a thousand filters with few of them, and
        tables for all would take 64 MiB."""
        if len(self._ranges) > COMPARED:
            self._table = np.zeros(1 << 16, np.bool_)
            for first, last in self._ranges:
                self._table[first : last + 1] = True

    def hold(self, ports: Any) -> Mask:
        """Ask about a port of each row."""
        if self._table is not None:
            return np.asarray(self._table[ports], np.bool_)
        matched = np.zeros(len(ports), np.bool_)
        for first, last in self._ranges:
            matched |= (ports >= first) & (ports <= last)
        return matched


def parsed_selectors(values: list[str]) -> list[selectors.Selector]:
    """Read label selectors. Raises FilterError."""
    try:
        return [selectors.parse(value) for value in unhurried(values)]
    except selectors.SelectorError as error:
        raise FilterError(str(error)) from None


class Wildcard:
    """A pattern in which only `*` is special; its time grows with the text's length, whatever the pattern."""

    def __init__(self, pattern: str) -> None:
        self._first, *rest = re.split(r"\*+", pattern)
        self._last = rest.pop() if rest else None
        self._middle = rest

    def matches(self, text: str) -> bool:
        """Whether it describes all of a text."""
        if self._last is None:
            return text == self._first
        place, end = len(self._first), len(text) - len(self._last)
        if end < place or not (text.startswith(self._first) and text.endswith(self._last)):
            return False
        for part in self._middle:
            found = text.find(part, place, end)
            if found < 0:
                return False
            place = found + len(part)
        return True
