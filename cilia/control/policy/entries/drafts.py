"""Sections as groups read them: rules with their ports cut into prefixes, each section read once.

Rules that say the same share one `Matter`, whatever policies they stand in; so a thousand policies that say
the same are put together by identity, not by comparing what they say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import NamedTuple
from weakref import WeakKeyDictionary, ref

import msgspec

from cilia.control.policy.entries.layers import Matter, Term, order
from cilia.control.policy.ports import numbers, prefixes, whole
from cilia.control.policy.rules import CidrGroup, PortName, PortRange, Rule, Section, ServicePeer
from cilia.model.endpoint import NamedPort
from cilia.model.policy import Direction


class Draft(NamedTuple):
    """A rule of a section."""

    term: Term
    """As the first of its tier."""
    own: tuple[PortName, ...]
    """Names of the subject's own ports: their numbers are still to be added to the matter's prefixes."""

    def settled(self, named_ports: tuple[NamedPort, ...]) -> Term:
        """The term for subjects with these named ports, where there are names to settle."""
        matter = self.term.matter
        added = (whole(name.protocol, n) for name in self.own for n in sorted(numbers(named_ports, name)))
        prefixes = tuple(dict.fromkeys((*matter.prefixes, *added)))
        return self.term._replace(matter=_shared(Matter(matter.peer, prefixes, None, matter.action)))


class Reading(NamedTuple):
    """A section, read."""

    section: Section
    digest: bytes
    """Of all that it says."""
    names: frozenset[str]
    """The port names that its ingress rules speak of."""
    drafts: Mapping[Direction, tuple[Draft, ...]]
    """In the order written. A rule in egress that has ranges and names of ports is in several of them."""


_readings: dict[int, tuple[ref[Section], Reading]] = {}
"""By the `id` of sections that are still in use."""

_matters: WeakKeyDictionary[Matter, ref[Matter]] = WeakKeyDictionary()
"""Each matter in use, found by what it says."""


def reading(section: Section) -> Reading:
    """What a section says; remembered as long as somebody holds the section."""
    key = id(section)
    known = _readings.get(key)
    if known is not None:
        return known[1]
    # The copy keeps the memory from holding the very section whose end it waits for.
    read = _read(msgspec.structs.replace(section))
    _readings[key] = (ref(section, lambda _: _readings.pop(key, None)), read)
    return read


def _read(section: Section) -> Reading:
    place, audit = order(section.tier), section.audit
    drafts = {
        direction: tuple(
            draft
            for rule in section.rules
            if rule.direction is direction
            for draft in _drafts(rule, place, audit)
        )
        for direction in Direction
    }
    digest = hashlib.blake2b(msgspec.msgpack.encode(section), digest_size=16).digest()
    names = frozenset(name.name for draft in drafts[Direction.INGRESS] for name in draft.own)
    return Reading(section, digest, names, drafts)


def _drafts(rule: Rule, place: int, audit: bool) -> Iterator[Draft]:
    peer, refs = rule.peer, frozenset((rule.ref,))
    assert not isinstance(peer, CidrGroup | ServicePeer), "references are followed before"
    named = tuple(dict.fromkeys([ports for ports in rule.ports if type(ports) is PortName]))
    ranges = [ports for ports in rule.ports if type(ports) is PortRange]
    found = dict.fromkeys(chain.from_iterable(map(prefixes, ranges)))
    own = named if rule.direction is Direction.INGRESS else ()
    if found or own:
        matter = _shared(Matter(peer, tuple(found), None, rule.action))
        yield Draft(Term(matter, place, audit, refs), own)
    if rule.direction is Direction.EGRESS:
        for name in named:
            matter = _shared(Matter(peer, (), name, rule.action))
            yield Draft(Term(matter, place, audit, refs), ())


def _shared(matter: Matter) -> Matter:
    """The one matter that says this."""
    known = _matters.setdefault(matter, ref(matter))()
    return known if known is not None else matter
