"""Which sections select which local identities, found by their labels from either side."""

from __future__ import annotations

from collections.abc import Iterable

from cilia.control.policy.meaning.selection import Selections
from cilia.control.policy.rules import PortName, Section, Selector
from cilia.model.ids import IdentityId
from cilia.model.labels import Labels
from cilia.model.policy import Direction


class Applying:
    """Sections in force, by serial number, and the identities with endpoints here.

    A section's subject is a selector over the few local identities, kept current as those of peers are.
    """

    def __init__(self) -> None:
        self.sections: dict[int, Section] = {}
        self._names: dict[int, frozenset[str]] = {}
        """The port names that a section's ingress rules speak of."""
        self._local = Selections()
        self._by_subject: dict[Selector, dict[int, Section]] = {}
        self._selected: dict[IdentityId, set[int]] = {}
        self._serial = 0

    def add(self, sections: Iterable[Section]) -> tuple[tuple[int, ...], set[IdentityId]]:
        """Put sections in force; returns their serial numbers and the identities they select."""
        serials: list[int] = []
        touched: set[IdentityId] = set()
        for section in sections:
            self._serial += 1
            serials.append(self._serial)
            self.sections[self._serial] = section
            names = _ingress_names(section)
            if names:
                self._names[self._serial] = names
            alike = self._by_subject.setdefault(section.subject, {})
            if not alike:
                self._local.acquire(section.subject)
            alike[self._serial] = section
            for identity in self._local.members(section.subject):
                if self._is_for(section, identity):
                    self._selected[identity].add(self._serial)
                    touched.add(identity)
        return tuple(serials), touched

    def drop(self, serials: Iterable[int]) -> set[IdentityId]:
        """Take sections out of force; returns the identities they selected."""
        touched: set[IdentityId] = set()
        for serial in serials:
            section = self.sections.pop(serial)
            self._names.pop(serial, None)
            for identity in self._local.members(section.subject):
                if serial in self._selected[identity]:
                    self._selected[identity].remove(serial)
                    touched.add(identity)
            alike = self._by_subject[section.subject]
            del alike[serial]
            if not alike:
                del self._by_subject[section.subject]
                self._local.release(section.subject)
        return touched

    def put(self, identity: IdentityId, labels: Labels) -> bool:
        """Add or relabel a local identity; returns whether others select it now."""
        before = self._selected.get(identity)
        self._local.put(identity, labels)
        # A relabelled identity may become, or cease to be, a host: all its sections are looked at again.
        found = {
            serial
            for selector in self._local.meaning(identity)
            if isinstance(selector, Selector)
            for serial, section in self._by_subject[selector].items()
            if section.nodes == labels.is_host
        }
        self._selected[identity] = found
        return found != before

    def remove(self, identity: IdentityId) -> None:
        """Remove an identity without endpoints here; removing the absent is no error."""
        self._local.remove(identity)
        self._selected.pop(identity, None)

    def __contains__(self, identity: IdentityId) -> bool:
        return identity in self._selected

    def of(self, identity: IdentityId) -> tuple[int, ...]:
        """The sections that select a local identity."""
        return tuple(sorted(self._selected[identity]))

    def names(self, serials: Iterable[int]) -> frozenset[str]:
        """The port names whose numbers depend on the subject."""
        return frozenset(name for serial in serials for name in self._names.get(serial, ()))

    def _is_for(self, section: Section, identity: IdentityId) -> bool:
        labels = self._local.index.get(identity)
        return labels is not None and section.nodes == labels.is_host


def _ingress_names(section: Section) -> frozenset[str]:
    return frozenset(
        [
            ports.name
            for rule in section.rules
            if rule.direction is Direction.INGRESS
            for ports in rule.ports
            if type(ports) is PortName
        ]
    )
