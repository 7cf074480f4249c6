"""The values of filters: prefixes, ports, patterns, selectors; and the errors that say what is wrong."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

import numpy as np

from cilia.hubble import selectors
from cilia.hubble.columns import FLAG_IPV6, Mask, Words, flagged
from cilia.hubble.store import Rows
from cilia.model.address import pack, prefix_bits


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


def in_prefixes(rows: Rows, high: Words, low: Words, prefixes: list[Prefix]) -> Mask:
    """Which addresses lie in one of the prefixes of their own family."""
    six = flagged(rows.events, FLAG_IPV6)
    matched = np.zeros(len(high), np.bool_)
    for prefix in prefixes:
        inside = (high & prefix.high_mask) == prefix.high
        inside &= (low & prefix.low_mask) == prefix.low
        matched |= inside & (six == prefix.six)
    return matched


def port_range(value: str) -> tuple[int, int]:
    """First and last port. Raises FilterError."""
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", value)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not first <= last <= 65535:
        raise FilterError(f"{value!r} is not a port: use a number up to 65535 or a range such as 8000-8080")
    return first, last


def parsed_selectors(values: list[str]) -> list[selectors.Selector]:
    """Read label selectors. Raises FilterError."""
    try:
        return [selectors.parse(value) for value in values]
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
