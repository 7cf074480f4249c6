"""Reads a ring buffer the plain way (Documentation/bpf/ringbuf.rst): a page with the consumer's position,
one with the producer's, then the data twice in a row; each record behind 8 bytes of length and page."""

from __future__ import annotations

import mmap
import struct
from typing import Any

import numpy as np

from cilia.dataplane.bpf import Map

BUSY, DISCARDED = 1 << 31, 1 << 30
HEADER = 8
WITH_VERDICT = {64: 2, 128: 1}
"""Flags of a trace's record that stands for verdicts, too, and their directions: egress before ingress."""
VERDICT = 3


class Ring:
    """One ring, of records of one dtype."""

    def __init__(self, ring: Map, record: np.dtype[Any]) -> None:
        self._size = ring.info.max_entries
        self._record = record
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(ring.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(
            ring.fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
        )

    def read(self) -> list[np.void]:
        """Everything that has been written since the last time."""
        (at,) = struct.unpack_from("<Q", self._consumer, 0)
        (end,) = struct.unpack_from("<Q", self._producer, 0)
        found = []
        while at < end:
            start = mmap.PAGESIZE + at % self._size
            (length,) = struct.unpack_from("<I", self._producer, start)
            if length & BUSY:
                break
            size = length & ~DISCARDED
            if not length & DISCARDED:
                found += events_of(np.frombuffer(self._producer, self._record, 1, start + HEADER)[0])
            at += (HEADER + size + 7) // 8 * 8
        struct.pack_into("<Q", self._consumer, 0, at)
        return found


def events_of(record: np.void) -> list[np.void]:
    """What one record stands for."""
    found = []
    sequence, flags = int(record["sequence"]), int(record["flags"])
    for flag, direction in WITH_VERDICT.items():
        if flags & flag:
            verdict = record.copy()
            verdict["kind"], verdict["direction"] = VERDICT, direction
            found.append(verdict)
    found.append(record.copy())
    for number, event in enumerate(found):
        event["sequence"], event["flags"] = sequence + number, flags & 63
        event["time"] += number
    return found
