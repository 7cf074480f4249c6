"""What the system tests of the data plane share: a prefix of their own, rows of all tables."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cilia import abi
from cilia.dataplane import loader
from cilia.dataplane.bpf import MMAPABLE, MapType
from cilia.dataplane.loader import Dataplane
from cilia.dataplane.maps import listing
from cilia.dataplane.order import KernelState
from cilia.dataplane.ringbuf import Ring
from cilia.model.endpoint import EndpointEntry
from cilia.model.ids import Cookie, EndpointId, IdentityId, Revision, SubjectId
from cilia.model.labels import Labels
from cilia.model.node import Route
from cilia.model.policy import Entry, EntryKey, MatchKind, SubjectKey, SubjectPolicy
from cilia.schema import Desired

PREFIX = Path(f"/sys/fs/bpf/cilia-test-dataplane-{os.getpid()}")
SIZES = {"conntrack": 4096, "ipcache": 4096, "ipcache_hosts": 4096, "snat": 1024, "policies": 512}

SMALL = dict.fromkeys(
    ("services_enabled", "host_firewall_enabled", "ipv6_enabled", "tunnel_enabled", "events_enabled"), False
)
"""Load-time constants that leave the verifier a quarter of its work."""

needs_kernel = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not abi.object_path().exists(), reason="needs the eBPF object: run make bpf"),
]


class NoRoutes:
    """A target for routes that keeps them to itself."""

    def update(self, rows: Sequence[Route]) -> dict[str, str]:
        return {}

    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        return {}

    def prune(self, keep: Any) -> int:
        return 0


@contextmanager
def loaded(**options: Any) -> Iterator[Dataplane]:
    """A data plane for the length of a block; the prefix stays for the next agent."""
    dataplane = loader.load(PREFIX, sizes=SIZES, **options)
    try:
        yield dataplane
    finally:
        dataplane.close()


def loaded_small(**constants: Any) -> AbstractContextManager[Dataplane]:
    """The same with small programs and these constants: for tests of how programs and maps come and go."""
    return loaded(constants={**SMALL, **constants})


def clean() -> None:
    """Take the prefix away, whatever state it is in."""
    try:
        loader.remove(PREFIX)
    finally:
        shutil.rmtree(PREFIX, ignore_errors=True)


@pytest.fixture(scope="module")
def loaded_once() -> Iterator[Dataplane]:
    """One data plane for a module's tests: the verifier takes a second."""
    try:
        with loaded() as found:
            yield found
    finally:
        clean()


@pytest.fixture
def dataplane(loaded_once: Dataplane) -> Iterator[Dataplane]:
    """A data plane whose maps, rings and hooks are empty."""
    try:
        yield loaded_once
    finally:
        empty(loaded_once)


def empty(dataplane: Dataplane) -> None:
    """Take everything out of the maps that tests fill, and all hooks away."""
    for stop in dataplane.on_close:
        stop()
    dataplane.on_close.clear()
    for name in dataplane.attached():
        dataplane.detach(name)
    for found in dataplane.maps.values():
        if found.type in listing.COUNTED:
            found.remove(found.dump()[0])
        elif found.type is MapType.ARRAY and found.info.flags & MMAPABLE:
            memory = found.memory()
            memory[:] = np.zeros(1, memory.dtype)
        elif found.type is MapType.ARRAY:
            keys = found.dump()[0]
            found.put(keys, found.values(len(keys)))
        elif found.type is MapType.RINGBUF:
            ring = Ring(found, dataplane.layout)
            ring.read()
            ring.close()


def kernel_state(dataplane: Dataplane, desired: Desired) -> KernelState:
    """All reconcilers, with the pool filled."""
    state = KernelState(dataplane, desired, NoRoutes())
    state.pool.settle()
    return state


def endpoint(
    number: int, ipv4: str = "", ipv6: str = "", *, ifindex: int = 0, subject: int = 1
) -> EndpointEntry:
    """An endpoint row."""
    return EndpointEntry(
        id=EndpointId(number),
        ifindex=ifindex or 1000 + number,
        identity=IdentityId(256 + number),
        subject=SubjectId(subject),
        mac="02:00:00:00:00:01",
        host_mac="02:00:00:00:00:02",
        ipv4=ipv4,
        ipv6=ipv6,
    )


def allow(cookie: int = 1, precedence: int = 100) -> Entry:
    """An allowing entry."""
    return Entry(precedence, True, Cookie(cookie), MatchKind.L3_ONLY)


def deny(cookie: int = 2, precedence: int = 200) -> Entry:
    """A denying entry."""
    return Entry(precedence, False, Cookie(cookie), MatchKind.L3_ONLY)


def subject(number: int, rules: str, entries: Mapping[EntryKey, Entry]) -> SubjectPolicy:
    """A subject's policy."""
    return SubjectPolicy(
        subject=SubjectId(number),
        key=SubjectKey(IdentityId(300)),
        labels=Labels(),
        rules=rules,
        revision=Revision(1),
        entries=entries,
        ingress_enforced=True,
        egress_enforced=True,
    )
