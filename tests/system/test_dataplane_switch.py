"""A policy switch while programs judge: no verdict from a half-filled or recycled map, ever."""

from __future__ import annotations

import struct
import threading
import time

import numpy as np

from cilia.dataplane import bpf
from cilia.dataplane.loader import Dataplane
from cilia.dataplane.maps import packing
from cilia.model.ids import SubjectId
from cilia.model.policy import EntryKey
from cilia.schema import Desired
from tests.support.dataplane import allow, dataplane, kernel_state, loaded_once, needs_kernel, subject

__all__ = ["dataplane", "loaded_once"]
pytestmark = needs_kernel

PEERS = range(256, 356)
CASES = 1000
SWITCHES = range(120, 5000)
"""At least and at most so many."""
TCP = 6


class Judge(threading.Thread):
    """Asks the kernel about the same peers over and over and counts what is not allowed."""

    def __init__(self, dataplane: Dataplane) -> None:
        super().__init__(daemon=True)
        self._program = dataplane.programs["judge_policies"]
        self._cases = dataplane.maps["policy_cases"].memory()
        self.done = threading.Event()
        self.rounds = 0
        self.denied = 0
        self.cookies: set[int] = set()
        questions = self._cases[:CASES]
        questions["subject"], questions["direction"], questions["protocol"] = 1, 1, TCP
        questions["peer"] = np.resize(np.array(PEERS), CASES)
        questions["port"] = 80

    def run(self) -> None:
        while not self.done.is_set():
            bpf.test_run(self._program, context=struct.pack("<II", 0, CASES))
            answers = self._cases[:CASES]
            self.denied += int((answers["verdict"] != 1).sum())
            self.cookies.update(np.unique(answers["cookie"]).tolist())
            self.rounds += 1


def test_switching_never_denies_what_both_policies_allow(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)

    def put(cookie: int) -> None:
        entries = {EntryKey(1, peer, TCP, 80, 24): allow(cookie) for peer in PEERS}
        desired.subjects.put(subject(1, f"rules {cookie}", entries))
        state.apply(float(cookie))
        assert state.errors() == []

    put(1)
    judge = Judge(dataplane)
    judge.start()
    try:
        for cookie in range(2, SWITCHES.stop):
            put(cookie)
            time.sleep(0.002)
            if cookie >= SWITCHES.start and judge.rounds > 20 and len(judge.cookies) > 20:
                break
    finally:
        judge.done.set()
        judge.join()
    assert judge.denied == 0 and judge.rounds > 20 and len(judge.cookies) > 20
    state.pool.settle()
    assert state.pool.size < 100, "used maps come back"


def test_a_switch_that_was_cut_off_leaves_no_trace(dataplane: Dataplane) -> None:
    """Killed between filling and switching: the old policy stands, the half-filled map is made fresh."""
    desired = Desired()
    state = kernel_state(dataplane, desired)
    desired.subjects.put(subject(1, "r1", {EntryKey(1, 256): allow(1)}))
    state.apply(1.0)
    slot = state.pool.take()
    inner = state.pool.open(slot)
    inner.put(*state.policies.desired({EntryKey(1, 0): allow(9)}))
    inner.close()
    word = state.policies._word(SubjectId(1))
    state.pool.close()
    successor = kernel_state(dataplane, Desired())
    assert successor.policies._word(SubjectId(1)) == word
    assert [row["cookie"] for row in successor.policies.entries(SubjectId(1))] == [1]
    inner = successor.pool.open(slot)
    try:
        assert packing.records(inner.dump()[0]) == []
    finally:
        inner.close()
