"""Subject numbers: one small integer for all endpoints on this node that policy can't tell apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cilia.model.ids import EndpointId, SubjectId
from cilia.model.policy import SubjectKey


class SubjectAllocator:
    """Gives each subject the lowest free number from 1, or the one its endpoints had in the kernel at start.

    0 stands for none. A number that becomes free is not given out again in the same turn, so that no
    endpoint of its old owner is judged by the new one's policy.
    """

    def __init__(self, restored: Mapping[EndpointId, SubjectId] | None = None) -> None:
        self._restored = dict(restored or {})
        self._subjects: dict[SubjectKey, SubjectId] = {}

    def __contains__(self, key: SubjectKey) -> bool:
        return key in self._subjects

    def get(self, key: SubjectKey) -> SubjectId:
        """The number of a subject that is present."""
        return self._subjects[key]

    def settle(
        self, present: Mapping[SubjectKey, Iterable[EndpointId]]
    ) -> tuple[list[SubjectKey], list[SubjectId]]:
        """Tell which subjects live here now, and their endpoints; returns those that came and the numbers
        set free."""
        fresh = sorted(present.keys() - self._subjects.keys())
        given = set(self._subjects.values())
        taken = given | set(self._restored.values())
        lowest = 1
        for key in fresh:
            subject = self._before(present[key], given)
            if subject is None:
                while lowest in taken:
                    lowest += 1
                subject = SubjectId(lowest)
            taken.add(subject)
            given.add(subject)
            self._subjects[key] = subject
        gone = sorted(self._subjects.keys() - present.keys())
        return fresh, [self._subjects.pop(key) for key in gone]

    def forget_restored(self) -> None:
        """The inputs are complete: numbers of endpoints that did not come back are free."""
        self._restored.clear()

    def _before(self, endpoints: Iterable[EndpointId], given: set[SubjectId]) -> SubjectId | None:
        """The number that these endpoints had, unless others that had it, too, came first."""
        found = (self._restored.get(endpoint) for endpoint in sorted(endpoints))
        return next((subject for subject in found if subject is not None and subject not in given), None)
