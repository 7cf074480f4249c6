"""Subject numbers: small, stable, and never handed from one owner to the next at once."""

from __future__ import annotations

from cilia.control.policy.entries.subjects import SubjectAllocator
from cilia.model.endpoint import NamedPort
from cilia.model.ids import EndpointId, IdentityId, SubjectId
from cilia.model.policy import SubjectKey

A, B, C, D = (SubjectKey(IdentityId(number)) for number in (300, 301, 302, 303))
HTTP = SubjectKey(A.identity, (NamedPort("http", 80),))


def present(*keys: SubjectKey) -> dict[SubjectKey, list[EndpointId]]:
    return {key: [EndpointId(number)] for number, key in enumerate(keys, 1)}


def test_the_lowest_free_number() -> None:
    allocator = SubjectAllocator()
    assert allocator.settle(present(B, A)) == ([A, B], [])
    assert (allocator.get(A), allocator.get(B)) == (1, 2)
    assert allocator.settle(present(B)) == ([], [SubjectId(1)])
    assert allocator.settle(present(B, C)) == ([C], [])
    assert allocator.get(C) == 1


def test_a_freed_number_waits_a_turn() -> None:
    allocator = SubjectAllocator()
    allocator.settle(present(A))
    assert allocator.settle(present(B)) == ([B], [SubjectId(1)])
    assert allocator.get(B) == 2


def test_what_policy_tells_apart_is_another_subject() -> None:
    allocator = SubjectAllocator()
    allocator.settle(present(A, HTTP))
    assert allocator.get(A) != allocator.get(HTTP)


def test_restored_numbers_are_kept_until_the_inputs_are_complete() -> None:
    allocator = SubjectAllocator({EndpointId(1): SubjectId(1), EndpointId(2): SubjectId(2)})
    allocator.settle({C: [EndpointId(9)]})
    assert allocator.get(C) == 3
    allocator.settle({C: [EndpointId(9)], B: [EndpointId(2)]})
    assert allocator.get(B) == 2
    allocator.forget_restored()
    allocator.settle({C: [EndpointId(9)], B: [EndpointId(2)], D: [EndpointId(1)]})
    assert allocator.get(D) == 1
    assert A not in allocator


def test_of_two_that_shared_a_number_one_keeps_it() -> None:
    allocator = SubjectAllocator({EndpointId(1): SubjectId(5), EndpointId(2): SubjectId(5)})
    allocator.settle({A: [EndpointId(1)], HTTP: [EndpointId(2)]})
    assert (allocator.get(A), allocator.get(HTTP)) == (5, 1)
