"""The pool of inner policy maps: idle ones stand ready, used ones come back after a grace period.

    idle ──take()──► filled, then live (policy_active names its slot) ──retire()──► resting
      ▲                                                                                │
      └── a fresh empty map in the same slot ◄── no program can still read it ◄────────┘

Putting a map into the outer array waits for a grace period (5-17 ms), so it happens ahead of need, in
a thread that lives only while there is work. Switching a subject is one 8-byte store.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

import numpy as np
import structlog

from cilia import abi
from cilia.dataplane import bpf
from cilia.dataplane.bpf import BpfError, Map, MapType

log = structlog.get_logger(__name__)

INITIAL = 64
SPARE = 16
GROWTH = 8
POLICY_ENTRIES = 16384
"""What the policy of a subject may have."""
INNER_ENTRIES = 2 * POLICY_ENTRIES
"""What an inner map holds: while peers come and go, it has entries of what was and of what will be. It takes
memory for what is in it only."""
OPEN_LIMIT = 128
"""How many idle maps are kept open: a process may often have 1,024 descriptors only."""


class PolicyPool:
    """Slots of the outer map `policies`. Thread-safe."""

    def __init__(
        self, outer: Map, layout: abi.Layout, live: Iterable[int], *, initial: int = INITIAL
    ) -> None:
        """`live`: slots that policy_active names; whatever else the outer map holds is made fresh."""
        self._outer = outer
        self._key = layout.dtype("policy_key")
        self._value = layout.dtype("policy_entry")
        self._lock = threading.Lock()
        self._idle: deque[int] = deque()
        self._live = set(live)
        self._fresh: dict[int, Map] = {}
        """The maps of idle slots, open: filling one needs no question to the kernel."""
        self._size = self._count_slots()
        self._resting = [slot for slot in range(self._size) if slot not in self._live]
        self._initial = initial
        self._worker: threading.Thread | None = None
        self._closed = False
        self.problem = ""
        """Why the pool can't grow, or an empty string."""
        self.refill()

    @property
    def idle(self) -> int:
        """How many maps stand ready."""
        return len(self._idle)

    @property
    def size(self) -> int:
        """How many maps there are."""
        return self._size

    def take(self) -> int:
        """A slot whose map is empty and read by nobody. Raises BpfError when all are in use.

        Whoever takes and retires calls `refill` when done: the work would be in the way of theirs.
        """
        with self._lock:
            slot = self._idle.popleft() if self._idle else None
        if slot is None:
            self._insert(self._reserve(GROWTH))
            with self._lock:
                if not self._idle:
                    raise BpfError(
                        f"all {self._outer.info.max_entries} policy maps are in use: "
                        "raise the size of map policies"
                    )
                slot = self._idle.popleft()
        with self._lock:
            self._live.add(slot)
        return slot

    def retire(self, slot: int) -> None:
        """Give a slot back that policy_active names no more."""
        with self._lock:
            self._live.discard(slot)
            self._resting.append(slot)
            unused = self._fresh.pop(slot, None)
        if unused is not None:
            unused.close()

    def open(self, slot: int) -> Map:
        """The inner map in a slot; the caller closes it. Raises OSError."""
        with self._lock:
            fresh = self._fresh.pop(slot, None)
        if fresh is not None:
            return fresh
        found = self._outer.lookup(np.uint32(slot))
        if found is None:
            raise BpfError(f"slot {slot} of map {self._outer.name} is empty")
        return bpf.map_by_id(int(found), self._key, self._value, "policy")

    def refill(self) -> None:
        """See in the background that enough maps stand ready."""
        with self._lock:
            if self._worker is not None or not self._work_left():
                return
            self._worker = threading.Thread(target=self._work, name="policy-pool", daemon=True)
            self._worker.start()

    def close(self) -> None:
        """End the background work; the outer map may be closed afterwards."""
        with self._lock:
            self._closed = True
        self.settle()
        with self._lock:
            unused, self._fresh = self._fresh, {}
        for made in unused.values():
            made.close()

    def settle(self, timeout: float = 10.0) -> None:
        """Wait until the background work is done (seconds)."""
        worker = self._worker
        if worker is not None:
            worker.join(timeout)

    def _work_left(self) -> bool:
        return not self._closed and (bool(self._resting) or (self._shortage() > 0 and not self.problem))

    def _shortage(self) -> int:
        """How many more maps should stand ready: as many as live ones, so that all may change at once."""
        wanted = max(self._initial - len(self._live), len(self._live) + SPARE)
        room = self._outer.info.max_entries - self._size
        return min(wanted - len(self._idle) - len(self._resting), room)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._work_left():
                    self._worker = None
                    return
                shortage = self._shortage()
                resting, self._resting = self._resting, []
            try:
                if resting:
                    bpf.wait_for_programs()
                self._insert(resting + self._reserve(shortage))
            except OSError as error:
                self.problem = f"policy maps can't be made: {error.strerror}"
                log.error("policy pool can't grow", error=self.problem)
                with self._lock:
                    self._worker = None
                return

    def _reserve(self, count: int) -> list[int]:
        """The next `count` unused slots, or as many as there are."""
        with self._lock:
            first = self._size
            self._size = min(first + max(count, 0), self._outer.info.max_entries)
            return list(range(first, self._size))

    def _insert(self, slots: list[int]) -> None:
        """Put fresh maps into the slots and count them as idle. Raises OSError."""
        if not slots:
            return
        fresh = [
            bpf.create_map(
                MapType.LPM_TRIE,
                self._key,
                self._value,
                INNER_ENTRIES,
                flags=bpf.NO_PREALLOC,
                name="policy",
            )
            for _ in slots
        ]
        failures = self._outer.put(
            np.array(slots, self._outer.key), np.array([made.fd for made in fresh], self._outer.value)
        )
        with self._lock:
            for at, (slot, made) in enumerate(zip(slots, fresh, strict=True)):
                if at not in failures:
                    self._idle.append(slot)
                if at not in failures and len(self._fresh) < OPEN_LIMIT:
                    self._fresh[slot] = made
                else:
                    made.close()
        for error in failures.values():
            raise error

    def _count_slots(self) -> int:
        """Slots are filled in order, so the first hole ends them."""
        for slot in range(self._outer.info.max_entries):
            if self._outer.lookup(np.uint32(slot)) is None:
                return slot
        return self._outer.info.max_entries
