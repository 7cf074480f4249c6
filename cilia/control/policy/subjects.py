"""Subject numbers: one small integer per identity that lives on this node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cilia.model.ids import IdentityId, SubjectId


class SubjectAllocator:
    """Gives each identity the lowest free number from 1; numbers found in the kernel at start are kept.

    0 stands for none. A number that becomes free is not given out again in the same turn, so that no
    endpoint of its old owner is judged by the new one's policy.
    """

    def __init__(self, restored: Mapping[IdentityId, SubjectId] | None = None) -> None:
        self._restored = dict(restored or {})
        self._subjects: dict[IdentityId, SubjectId] = {}

    def __contains__(self, identity: IdentityId) -> bool:
        return identity in self._subjects

    def get(self, identity: IdentityId) -> SubjectId:
        """The number of an identity that is present."""
        return self._subjects[identity]

    def settle(self, present: Iterable[IdentityId]) -> tuple[list[IdentityId], list[SubjectId]]:
        """Tell which identities live here now; returns those that came and the numbers set free."""
        wanted = set(present)
        fresh = sorted(wanted - self._subjects.keys())
        taken = set(self._subjects.values()) | set(self._restored.values())
        lowest = 1
        for identity in fresh:
            subject = self._restored.pop(identity, None)
            if subject is None:
                while lowest in taken:
                    lowest += 1
                subject = SubjectId(lowest)
            taken.add(subject)
            self._subjects[identity] = subject
        gone = sorted(self._subjects.keys() - wanted)
        return fresh, [self._subjects.pop(identity) for identity in gone]

    def forget_restored(self) -> None:
        """The inputs are complete: numbers of identities that did not come back are free."""
        self._restored.clear()
