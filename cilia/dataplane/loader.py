"""Loads the programs once per node and keeps what outlives the agent under one prefix of bpffs.

    <prefix>/                     0700; a lock on it says that an agent runs
      v1/maps/<name>              adopted by the next agent, with the size they have
      v1/programs/<print>-<n>/<name>
                                  the programs, under the fingerprint of object and constants and with their
                                  number: the next agent adopts them too when nothing changed and none is
                                  missing, and spares the verifier
      v1/links/<name>             on devices and control groups; other programs are exchanged in place

A restarted agent recognises its own by these paths alone. Pod filters (clsact) need no pin; `links`
replaces them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cilia import abi
from cilia.dataplane import bpf, libbpf, namespaces, requirements
from cilia.dataplane.bpf import Attach, BpfError, Map, MapType

REVISION_MAP = "policy_revision"
"""Highest policy revision ever given out: lives and dies with the conntrack that remembers them."""


class Dataplane:
    """The loaded data path of this node: maps by name, program descriptors by name."""

    def __init__(self, prefix: Path, layout: abi.Layout, lock: int) -> None:
        self.prefix = prefix
        self.layout = layout
        self.maps: dict[str, Map] = {}
        self.programs: dict[str, int] = {}
        self.links: dict[str, int] = {}
        self.adopted: frozenset[str] = frozenset()
        """Names of the maps that were there before."""
        self.on_close: list[Callable[[], None]] = []
        """Called before the maps are closed: whoever uses them in the background stops."""
        self._lock = lock

    @property
    def root(self) -> Path:
        """Where this layout version pins."""
        return root_of(self.prefix)

    def attach(self, name: str, program: str, ifindex: int, where: Attach, flags: int = 0) -> None:
        """Attach a program to a device under a link name; again: exchange it in place.

        Raises OSError; EINVAL when the kernel knows no TCX.
        """
        self._link(name, program, (ifindex, ifindex), where, flags)

    def attach_cgroup(self, name: str, program: str, directory: Path, where: Attach) -> None:
        """Attach a program to a control group (version 2) and all below it; again: exchange it in place.

        Raises OSError; EBADF when the directory is none of a control group's.
        """
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._link(name, program, (descriptor, os.fstat(descriptor).st_ino), where, 0)
        finally:
            os.close(descriptor)

    def detach(self, name: str) -> None:
        """Remove a link; the absent is no error."""
        link = self.links.pop(name, None)
        (self.root / "links" / name).unlink(missing_ok=True)
        if link is not None:
            os.close(link)

    def attached(self) -> list[str]:
        """Names of all pinned links."""
        return sorted(path.name for path in (self.root / "links").iterdir())

    def close(self) -> None:
        """Let go of everything; what is pinned stays and works on."""
        for stop in self.on_close:
            stop()
        for found in self.maps.values():
            found.close()
        for fd in (*self.programs.values(), *self.links.values(), self._lock):
            os.close(fd)
        self.maps, self.programs, self.links = {}, {}, {}

    def _link(self, name: str, program: str, target: tuple[int, int], where: Attach, flags: int) -> None:
        """`target`: as the kernel takes it, and as it tells it (`bpf.link_target`)."""
        path = self.root / "links" / name
        link = self.links.pop(name, None) or bpf.get(path)
        if link is not None:
            if self._exchange(link, program, target[1]):
                self.links[name] = link
                return
            os.close(link)
            path.unlink(missing_ok=True)
        link = bpf.link_create(self.programs[program], target[0], where, flags)
        bpf.pin(link, path)
        self.links[name] = link

    def _exchange(self, link: int, program: str, target: int) -> bool:
        """Put the program into an existing link; False when the link is not on that target (any more)."""
        if bpf.link_target(link)[1] != target:
            return False
        try:
            bpf.link_update(link, self.programs[program])
        except OSError as error:
            if error.errno == errno.ENOLINK:
                return False
            raise
        return True


def root_of(prefix: Path) -> Path:
    """The directory of this layout version."""
    return prefix / f"v{abi.LAYOUT}"


def load(
    prefix: Path,
    constants: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
    *,
    object_path: Path | None = None,
) -> Dataplane:
    """Load the programs, adopt or make the maps, pin both under `prefix`, and hold the lock on it.

    `constants`: load-time constants by name (bpf/config). `sizes`: max_entries of maps by name, for maps
    that are not pinned yet. Raises BpfError (one sentence, the verifier's log behind it) and ObjectMissing.
    """
    requirements.check()
    path = object_path or abi.object_path()
    layout = abi.read(path) if object_path else abi.layout()
    requirements.ensure_bpffs(prefix)
    lock = take_lock(prefix)
    dataplane = Dataplane(prefix, layout, lock)
    try:
        for name in ("maps", "programs", "links"):
            (dataplane.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        _load_into(dataplane, path, dict(constants or {}), dict(sizes or {}))
    except BaseException:
        dataplane.close()
        raise
    return dataplane


def own_node() -> int:
    """Make this process the only one that sets up or removes the links of its network namespace: two would
    take each other's down, whatever their pins. A descriptor that holds the lock. Raises BpfError."""
    try:
        return namespaces.lock_own()
    except BlockingIOError:
        raise BpfError("another agent runs on this node: stop it first") from None


def take_lock(prefix: Path) -> int:
    """Make the prefix and lock it; the lock goes with the descriptor. Raises BpfError when it is taken."""
    try:
        prefix.mkdir(mode=0o700, parents=True, exist_ok=True)
        prefix.chmod(0o700)
    except OSError as error:
        raise BpfError(f"{prefix} can't be made ({error.strerror}): check the BPF file system") from error
    lock = os.open(prefix, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise BpfError(
            f"another agent holds {prefix}: stop it first, or give this one its own --bpf-prefix"
        ) from None
    return lock


def remove(prefix: Path) -> None:
    """Take away everything under a prefix: links first, then the rest; the absent is no error.

    Raises BpfError when an agent still runs on it.
    """
    if not prefix.exists():
        return
    lock = take_lock(prefix)
    try:
        for links in prefix.glob("v*/links"):
            shutil.rmtree(links)
        shutil.rmtree(prefix)
    finally:
        os.close(lock)


def fingerprint(data: bytes, constants: Mapping[str, Any]) -> str:
    """Names what was loaded: the same object with the same constants gives the same programs."""
    digest = hashlib.sha256(data)
    digest.update(repr(sorted(constants.items())).encode())
    return digest.hexdigest()[:16]


def _load_into(dataplane: Dataplane, path: Path, constants: dict[str, Any], sizes: dict[str, int]) -> None:
    programs = dataplane.root / "programs"
    prefix = fingerprint(path.read_bytes(), constants)
    ready = next(programs.glob(f"{prefix}-*"), None)
    if ready is None or not _take_over(dataplane, ready):
        _load_object(dataplane, path, constants, sizes)
        _pin_programs(dataplane.programs, programs, prefix)
    dataplane.maps[REVISION_MAP] = _revision_map(dataplane.root / "maps" / REVISION_MAP)


def _take_over(dataplane: Dataplane, ready: Path) -> bool:
    """Adopt programs and maps as the last agent left them; False when one of them is missing."""
    layout = dataplane.layout
    pins = list(ready.iterdir())
    if len(pins) != int(ready.name.partition("-")[2]):
        return False
    maps = {name: bpf.get(dataplane.root / "maps" / name) for name in layout.maps}
    if None in maps.values():
        for fd in filter(None, maps.values()):
            os.close(fd)
        return False
    dataplane.maps = {name: _map(layout, name, fd) for name, fd in maps.items() if fd is not None}
    found = {path.name: bpf.get(path) for path in pins}
    dataplane.programs = {name: fd for name, fd in found.items() if fd is not None}
    dataplane.adopted = frozenset(maps)
    return True


def _load_object(dataplane: Dataplane, path: Path, constants: dict[str, Any], sizes: dict[str, int]) -> None:
    layout, pins = dataplane.layout, dataplane.root / "maps"
    adopted: set[str] = set()
    with libbpf.BpfObject(path) as found:
        found.set_constants(constants, layout.constants)
        for name, handle in found.maps():
            pinned = bpf.get(pins / name) if name in layout.maps else None
            if pinned is not None:
                _adopt(found, layout, name, handle, pinned)
                adopted.add(name)
            elif name in sizes:
                found.resize(handle, sizes[name])
        loaded = found.load()
    dataplane.programs = loaded.programs
    for name, fd in loaded.maps.items():
        dataplane.maps[name] = _map(layout, name, fd)
        if name not in adopted:
            bpf.pin(fd, pins / name)
    dataplane.adopted = frozenset(adopted)


def _pin_programs(programs: Mapping[str, int], directory: Path, prefix: str) -> None:
    """Pin all programs, whole or not at all: the directory gets its name last, which says how many there
    are."""
    for former in directory.iterdir():
        shutil.rmtree(former)
    scratch = directory / "incomplete"
    scratch.mkdir(mode=0o700)
    for name, fd in programs.items():
        bpf.pin(fd, scratch / name)
    scratch.rename(directory / f"{prefix}-{len(programs)}")


def _adopt(found: libbpf.BpfObject, layout: abi.Layout, name: str, handle: int, pinned: int) -> None:
    try:
        checked = _map(layout, name, os.dup(pinned))
        checked.close()
        found.resize(handle, checked.info.max_entries)
        found.reuse(handle, pinned)
    finally:
        os.close(pinned)


def _check_kind(layout: abi.Layout, name: str, fd: int) -> None:
    """Raise BpfError for a pinned map that this version would not have made so. Its size may be any."""
    info, spec = bpf.map_info(fd), layout.maps[name]
    what = "of another type" if info.type != spec.type else "made with other flags"
    if (info.type, info.flags) != (spec.type, spec.flags):
        raise BpfError(
            f"the pinned map {name} is {what} than this version's: remove the pins (cilia-agent --cleanup) "
            "and start again"
        )


def _map(layout: abi.Layout, name: str, fd: int) -> Map:
    _check_kind(layout, name, fd)
    spec = layout.maps[name]
    if spec.type == MapType.RINGBUF:
        return Map(fd, np.dtype("V0"), np.dtype("V0"), name)
    value = "u32" if spec.type in bpf.OF_MAPS else spec.value
    return Map(fd, layout.dtype(spec.key), layout.dtype(value), name)


def _revision_map(path: Path) -> Map:
    key, value = np.dtype("<u4"), np.dtype("<u8")
    fd = bpf.get(path)
    if fd is not None:
        return Map(fd, key, value, REVISION_MAP)
    made = bpf.create_map(MapType.ARRAY, key, value, 1, flags=bpf.MMAPABLE, name=REVISION_MAP)
    bpf.pin(made.fd, path)
    return made
