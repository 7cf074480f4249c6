"""Subject numbers: lowest free, stable, restored, and never given on in the same turn."""

from __future__ import annotations

import pytest

from cilia.control.policy.subjects import SubjectAllocator
from cilia.model.ids import IdentityId, SubjectId


def ids(*numbers: int) -> list[IdentityId]:
    return [IdentityId(number) for number in numbers]


def test_the_lowest_free_number_is_given() -> None:
    subjects = SubjectAllocator()
    assert subjects.settle(ids(300, 301)) == (ids(300, 301), [])
    assert subjects.settle(ids(301, 302)) == (ids(302), [1])
    assert [subjects.get(identity) for identity in ids(301, 302)] == [2, 3]
    assert subjects.settle(ids(301, 302, 303)) == (ids(303), [])
    assert subjects.get(IdentityId(303)) == 1


def test_restored_numbers_wait_for_their_owner() -> None:
    subjects = SubjectAllocator({IdentityId(301): SubjectId(1), IdentityId(309): SubjectId(2)})
    subjects.settle(ids(300, 301))
    assert [subjects.get(identity) for identity in ids(300, 301)] == [3, 1]
    subjects.forget_restored()
    subjects.settle(ids(300, 301, 302))
    assert subjects.get(IdentityId(302)) == 2


def test_who_left_has_no_number() -> None:
    subjects = SubjectAllocator()
    subjects.settle(ids(300))
    subjects.settle([])
    assert IdentityId(300) not in subjects
    with pytest.raises(KeyError):
        subjects.get(IdentityId(300))
