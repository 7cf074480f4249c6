"""More subjects than the kernel has maps for their policies: who gets none is closed, and told of."""

from __future__ import annotations

import struct

import numpy as np

from cilia.dataplane import bpf
from cilia.dataplane.loader import Dataplane
from cilia.dataplane.order import KernelState
from cilia.model.ids import SubjectId
from cilia.model.policy import EntryKey
from cilia.schema import Desired
from tests.support.dataplane import SIZES, allow, dataplane, kernel_state, loaded_once, needs_kernel, subject

__all__ = ["dataplane", "loaded_once"]
pytestmark = needs_kernel

ROOM = SIZES["policies"]
TCP = 6
PEER = 256


def put(desired: Desired, number: int, cookie: int) -> None:
    """Give a subject entries that no other one has, so that no map can be shared."""
    desired.subjects.put(subject(number, f"rules {cookie}", {EntryKey(1, PEER): allow(cookie)}))


def judged(dataplane: Dataplane, subjects: range) -> dict[int, int]:
    """The cookie under which the kernel allows each subject's peer; 0 where it denies."""
    cases = dataplane.maps["policy_cases"].memory()
    found: dict[int, int] = {}
    for first in range(subjects.start, subjects.stop, 500):
        some = range(first, min(first + 500, subjects.stop))
        asked = cases[: len(some)]
        asked["subject"], asked["peer"], asked["direction"] = np.array(some), PEER, 1
        asked["protocol"], asked["port"] = TCP, 80
        bpf.test_run(dataplane.programs["judge_policies"], context=struct.pack("<II", 0, len(some)))
        answers = cases[: len(some)]
        allowed = np.where(answers["verdict"] == 1, answers["cookie"], 0)
        found.update(zip(some, allowed.tolist(), strict=True))
    return found


def failed(state: KernelState) -> set[int]:
    return {int(error.key) for error in state.errors() if error.table == "subjects"}


def test_who_finds_no_map_is_closed_until_there_is_one(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    numbers = range(1, ROOM + 41)
    for number in numbers:
        put(desired, number, number)
    state.apply(1.0)
    without = failed(state)
    assert 40 <= len(without) < ROOM // 2
    assert all("policy maps are in use" in error.error for error in state.errors())
    assert judged(dataplane, numbers) == {n: 0 if n in without else n for n in numbers}

    served = next(number for number in numbers if number not in without)
    put(desired, served, 9999)
    state.apply(2.0)
    assert judged(dataplane, numbers)[served] in (0, 9999), "the old policy must not go on"
    for number in numbers[-100:]:
        desired.subjects.delete(SubjectId(number))
    state.apply(3.0)
    state.pool.settle()
    state.apply(1000.0)
    state.pool.settle()
    state.apply(2000.0)
    assert state.errors() == []
    left = numbers[:-100]
    assert judged(dataplane, left) == {n: 9999 if n == served else n for n in left}
