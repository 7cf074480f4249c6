"""The bpf(2) system call: maps, links, pins and test runs, over bytes and numpy arrays.

Layouts of the call's argument: linux/bpf.h, union bpf_attr. Keys and values travel as numpy structured
arrays (`Map.keys`, `Map.values` make empty ones), so a batch is one system call. Errors are OSError with
the call's own errno; `BpfError` adds a sentence where one is known.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import functools
import mmap
import os
import platform
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
MEMBARRIER_NUMBERS = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
MEMBARRIER_GLOBAL = 1
BATCH_CHUNK = 4096
LINK_CGROUP = 3
"""enum bpf_link_type"""
XDP_GENERIC, XDP_DRIVER = 2, 4
"""Flags of an XDP link: by the stack, for any device, or by the device's driver (linux/if_link.h)."""


class Command(enum.IntEnum):
    """enum bpf_cmd"""

    MAP_CREATE = 0
    LOOKUP = 1
    UPDATE = 2
    DELETE = 3
    PIN = 6
    GET = 7
    TEST_RUN = 10
    MAP_BY_ID = 14
    INFO = 15
    LOOKUP_BATCH = 24
    UPDATE_BATCH = 26
    DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29


class MapType(enum.IntEnum):
    """enum bpf_map_type, the ones in use."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    SK_STORAGE = 24
    RINGBUF = 27


class Attach(enum.IntEnum):
    """enum bpf_attach_type, the ones in use (TCX: kernel 6.6, commit e420bed02507)."""

    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_INET4_POST_BIND = 12
    CGROUP_INET6_POST_BIND = 13
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    CGROUP_UDP4_RECVMSG = 19
    CGROUP_UDP6_RECVMSG = 20
    CGROUP_INET4_GETPEERNAME = 29
    CGROUP_INET6_GETPEERNAME = 30
    CGROUP_INET_SOCK_RELEASE = 34
    XDP = 37
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class Update(enum.IntEnum):
    """Flags of an element update."""

    ANY = 0
    NOEXIST = 1
    EXIST = 2


NO_PREALLOC = 1
MMAPABLE = 1 << 10
PER_CPU = frozenset({MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH})
OF_MAPS = frozenset({MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS})


class BpfError(RuntimeError):
    """The kernel refused; the sentence says what and what to do next."""


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_NUMBER = ctypes.c_long(SYSCALL_NUMBERS.get(platform.machine(), -1))


def call(command: Command, attribute: bytes | ctypes.Array[ctypes.c_char]) -> int:
    """bpf(command, attribute). A buffer is also written to; bytes are not. Raises OSError."""
    if isinstance(attribute, bytes):
        attribute = ctypes.create_string_buffer(attribute, len(attribute))
    result: int = _libc.syscall(_NUMBER, int(command), attribute, len(attribute))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf({command.name}): {os.strerror(number)}")
    return result


ELEMENT = np.dtype([("map", "<u4"), ("pad", "<u4"), ("key", "<u8"), ("value", "<u8"), ("flags", "<u8")])
"""What union bpf_attr holds for one element."""

_element_call = ctypes.PyDLL(None, use_errno=True).syscall
"""By addresses: for calls in a row whose attributes stand side by side. Each is so short that letting other
threads run meanwhile would only mean to wait for them."""
_element_call.restype = ctypes.c_long
_element_call.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long)


def spread(maps: Array, keys: Array, values: Array) -> dict[int, OSError]:
    """Write one element each into maps, given by their descriptors; the failures by position.

    A batch into one map costs as much as half a dozen elements by themselves: this is for fewer per map.
    """
    keys, values = np.ascontiguousarray(keys), np.ascontiguousarray(values)
    attributes = np.zeros(len(maps), ELEMENT)
    attributes["map"] = maps
    attributes["key"] = keys.ctypes.data + keys.itemsize * np.arange(len(maps), dtype=np.uint64)
    attributes["value"] = values.ctypes.data + values.itemsize * np.arange(len(maps), dtype=np.uint64)
    number, command = _NUMBER.value, int(Command.UPDATE)
    first, size = attributes.ctypes.data, ELEMENT.itemsize
    failures: dict[int, OSError] = {}
    for at in range(len(maps)):
        if _element_call(number, command, first + at * size, size) < 0:
            code = ctypes.get_errno()
            failures[at] = OSError(code, f"bpf({Command.UPDATE.name}): {os.strerror(code)}")
    return failures


def wait_for_programs() -> None:
    """Return when every program that ran at the time of the call has ended (an RCU grace period; some
    milliseconds). membarrier(2), command GLOBAL, waits for just that."""
    result = _libc.syscall(
        ctypes.c_long(MEMBARRIER_NUMBERS.get(platform.machine(), -1)), MEMBARRIER_GLOBAL, 0, 0
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"membarrier: {os.strerror(number)}")


@functools.cache
def possible_cpus() -> int:
    """How many values a per-CPU element has."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.rsplit("-", 1)[-1].rsplit(",", 1)[-1]) + 1


class MapInfo(msgspec.Struct, frozen=True):
    """What the kernel says of a map (struct bpf_map_info)."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


INFO = struct.Struct("<IIIIII16s")


def map_info(fd: int) -> MapInfo:
    """Describe the map behind `fd`."""
    buffer = ctypes.create_string_buffer(128)
    call(Command.INFO, struct.pack("<IIQ", fd, len(buffer), ctypes.addressof(buffer)))
    kind, number, key, value, entries, flags, name = INFO.unpack_from(buffer)
    return MapInfo(kind, number, key, value, entries, flags, name.rstrip(b"\0").decode())


def object_id(fd: int) -> int:
    """The kernel's number of a program (struct bpf_prog_info begins with type and id)."""
    buffer = ctypes.create_string_buffer(256)
    call(Command.INFO, struct.pack("<IIQ", fd, len(buffer), ctypes.addressof(buffer)))
    return int(struct.unpack_from("<I", buffer, 4)[0])


def link_target(fd: int) -> tuple[int, int]:
    """(program id, target) of a link (struct bpf_link_info). The target of a TCX or XDP link is its ifindex,
    of a cgroup link the id of the group, which is its directory's inode; 0: it is gone."""
    buffer = ctypes.create_string_buffer(256)
    call(Command.INFO, struct.pack("<IIQ", fd, len(buffer), ctypes.addressof(buffer)))
    kind, program = struct.unpack_from("<I4xI", buffer, 0)
    (target,) = struct.unpack_from("<Q" if kind == LINK_CGROUP else "<I", buffer, 16)
    return program, target


def pin(fd: int, path: Path) -> None:
    """Pin an object; whatever is pinned there already is replaced in one step."""
    scratch = path.with_name(f"{path.name}_new")
    scratch.unlink(missing_ok=True)
    name = ctypes.create_string_buffer(os.fsencode(scratch))
    call(Command.PIN, struct.pack("<QI4x", ctypes.addressof(name), fd))
    scratch.replace(path)


def get(path: Path) -> int | None:
    """A descriptor of the pinned object, or None when nothing is pinned there."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        return call(Command.GET, struct.pack("<QI4x", ctypes.addressof(name), 0))
    except FileNotFoundError:
        return None


def link_create(program: int, target: int, attach: Attach, flags: int = 0) -> int:
    """Attach a program by a link, after those that are there; the link's descriptor. The target is a device's
    ifindex or, for the hooks of a control group, a descriptor of its directory. `flags`: XDP_DRIVER or
    XDP_GENERIC."""
    return call(Command.LINK_CREATE, struct.pack("<IIIIIIQ", program, target, int(attach), flags, 0, 0, 0))


def link_update(link: int, program: int) -> None:
    """Exchange the program of a link, atomically. ENOLINK: its target is gone."""
    call(Command.LINK_UPDATE, struct.pack("<IIII", link, program, 0, 0))


class RunResult(msgspec.Struct, frozen=True):
    """What a test run gave back."""

    value: int
    """The program's return value, signed."""
    data: bytes
    context: bytes
    nanoseconds: int
    """Average duration of one repetition."""


TEST_RUN = struct.Struct("<IIIIQQIIIIQQIII4x")
HEADROOM = 512
"""How much larger than its input a packet may come out."""


def test_run(
    program: int,
    data: bytes = b"",
    *,
    context: bytes = b"",
    repeat: int = 1,
    flags: int = 0,
) -> RunResult:
    """Run a program once (BPF_PROG_TEST_RUN) on `data`; for tc programs `context` is a struct __sk_buff
    whose mark, priority, ifindex, cb, tstamp, wire_len and gso fields count."""
    given = ctypes.create_string_buffer(data, len(data)) if data else None
    out = ctypes.create_string_buffer(len(data) + HEADROOM) if data else None
    context_in = ctypes.create_string_buffer(context, len(context)) if context else None
    context_out = ctypes.create_string_buffer(len(context)) if context and data else None
    attribute = ctypes.create_string_buffer(
        TEST_RUN.pack(
            program,
            0,
            len(data),
            len(out) if out else 0,
            ctypes.addressof(given) if given else 0,
            ctypes.addressof(out) if out else 0,
            repeat if data else 0,
            0,
            len(context),
            len(context_out) if context_out else 0,
            ctypes.addressof(context_in) if context_in else 0,
            ctypes.addressof(context_out) if context_out else 0,
            flags,
            0,
            0,
        ),
        TEST_RUN.size,
    )
    call(Command.TEST_RUN, attribute)
    fields = TEST_RUN.unpack(attribute.raw)
    value = struct.unpack("<i", struct.pack("<I", fields[1]))[0]
    return RunResult(
        value,
        out.raw[: fields[3]] if out else b"",
        context_out.raw[: fields[9]] if context_out else b"",
        fields[7],
    )


class Map:
    """A map by its descriptor, which it owns. `key` and `value` are its dtypes (see `cilia.abi`)."""

    def __init__(self, fd: int, key: np.dtype[Any], value: np.dtype[Any], name: str = "") -> None:
        self.fd = fd
        self.info = map_info(fd)
        self.name = name or self.info.name
        self.key = key
        self.value = value
        self.type = MapType(self.info.type)
        self._stride = self.info.value_size
        if self.type in PER_CPU:
            self._stride = (self.info.value_size + 7) // 8 * 8
        for what, dtype, size in (("key", key, self.info.key_size), ("value", value, self.info.value_size)):
            if self.type is not MapType.RINGBUF and dtype.itemsize != size:
                raise BpfError(
                    f"map {self.name} has {what}s of {size} bytes, this version's have {dtype.itemsize}: "
                    "remove the pins of the other version (cilia-agent --cleanup) and start again"
                )

    def close(self) -> None:
        """Close the descriptor; the map lives on where it is pinned."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def keys(self, count: int) -> Array:
        """`count` zeroed keys."""
        return np.zeros(count, self.key)

    def values(self, count: int) -> Array:
        """`count` zeroed values."""
        return np.zeros(count, self.value)

    def lookup(self, key: Array | np.void | np.generic) -> Array | None:
        """The value under `key` (per-CPU maps: one per CPU), or None."""
        raw = key.tobytes()
        copies = possible_cpus() if self.type in PER_CPU else 1
        buffer = ctypes.create_string_buffer(self._stride * copies)
        try:
            self._element(Command.LOOKUP, raw, ctypes.addressof(buffer), 0)
        except FileNotFoundError:
            return None
        found = self._typed(np.frombuffer(buffer.raw, np.uint8).reshape(copies, self._stride))
        return found if self.type in PER_CPU else found[0]

    def update(self, key: Array | np.generic, value: Array | np.generic, flags: Update = Update.ANY) -> None:
        """Write one element. Raises OSError (E2BIG: the map is full)."""
        raw = value.tobytes()
        buffer = ctypes.create_string_buffer(raw, len(raw))
        self._element(Command.UPDATE, key.tobytes(), ctypes.addressof(buffer), int(flags))

    def delete(self, key: Array | np.generic) -> bool:
        """Remove one element; whether it was there."""
        try:
            self._element(Command.DELETE, key.tobytes(), 0, 0)
        except FileNotFoundError:
            return False
        return True

    def put(self, keys: Array, values: Array) -> dict[int, OSError]:
        """Write many elements; the failures by position."""
        failures: dict[int, OSError] = {}
        keys, values = np.ascontiguousarray(keys), np.ascontiguousarray(values)
        at = 0
        while at < len(keys):
            done, error = self._batch_update(keys[at:], values[at:])
            at += done
            if error is not None and at < len(keys):
                failures |= self._put_one(keys, values, at)
                at += 1
        return failures

    def remove(self, keys: Array) -> int:
        """Delete many elements, present or not; how many were there."""
        keys = np.ascontiguousarray(keys)
        at = removed = 0
        while at < len(keys):
            attribute = self._batch(0, 0, keys[at:], None, len(keys) - at)
            try:
                call(Command.DELETE_BATCH, attribute)
                error = None
            except OSError as failure:
                error = failure
            done = 0 if error is not None and error.errno == errno.EINVAL else self._count(attribute)
            at, removed = at + done, removed + done
            if error is not None and at < len(keys):
                removed += self.delete(keys[at])
                at += 1
        return removed

    def batches(self, chunk: int = BATCH_CHUNK) -> Iterator[tuple[Array, Array]]:
        """All elements in runs of about `chunk`: (keys, values). Elements that come or go meanwhile may
        or may not be seen (for hashes; tries and arrays walk from key to key)."""
        cursor = ctypes.create_string_buffer(max(8, self.info.key_size))
        first = True
        while True:
            keys = np.zeros(chunk, self.key)
            raw = np.empty((chunk * self._copies(), self._stride), np.uint8)
            start = 0 if first else ctypes.addressof(cursor)
            attribute = self._batch(start, ctypes.addressof(cursor), keys, raw.ctypes.data, chunk)
            finished = False
            try:
                call(Command.LOOKUP_BATCH, attribute)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    chunk *= 2
                    continue
                if error.errno != errno.ENOENT:
                    raise
                finished = True
            count = self._count(attribute)
            if count:
                yield keys[:count], self._typed(raw[: count * self._copies()])
            if finished:
                return
            first = False

    def sample(self, count: int) -> tuple[Array, Array, float]:
        """Some elements of a hash, up to `count`, and how many it has by their share of its buckets: (keys,
        values, elements in all). Exact when all are there. Raises OSError."""
        end = ctypes.create_string_buffer(max(8, self.info.key_size))
        keys, values = np.zeros(count, self.key), np.zeros(count, self.value)
        attribute = self._batch(0, ctypes.addressof(end), keys, values.ctypes.data, count)
        buckets = 1 << (self.info.max_entries - 1).bit_length()
        try:
            call(Command.LOOKUP_BATCH, attribute)
            seen = int(struct.unpack_from("<I", end)[0]) / buckets
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            seen = 1.0
        found = self._count(attribute)
        return keys[:found], values[:found], found / seen if seen else float(found)

    def dump(self) -> tuple[Array, Array]:
        """All elements: (keys, values)."""
        runs = list(self.batches())
        if not runs:
            return self.keys(0), self.values(0)
        return _joined([keys for keys, _ in runs]), _joined([values for _, values in runs])

    def memory(self) -> Array:
        """An mmapable array map as a writable array of its values, shared with the kernel."""
        size = mmap.PAGESIZE * -(-self.info.max_entries * self._padded() // mmap.PAGESIZE)
        shared = mmap.mmap(self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        return np.ndarray((self.info.max_entries,), self.value, shared, strides=(self._padded(),))

    def _padded(self) -> int:
        return (self.info.value_size + 7) // 8 * 8

    def _copies(self) -> int:
        return possible_cpus() if self.type in PER_CPU else 1

    def _typed(self, raw: Array) -> Array:
        """Rows of bytes as values; only padded ones (per CPU) are copied."""
        if self._stride != self.value.itemsize:
            raw = raw[:, : self.value.itemsize].copy()
        return raw.reshape(-1).view(self.value)

    def _element(self, command: Command, key: bytes, value: int, flags: int) -> None:
        buffer = ctypes.create_string_buffer(key, len(key))
        call(command, struct.pack("<I4xQQQ", self.fd, ctypes.addressof(buffer), value, flags))

    def _batch(
        self, start: int, end: int, keys: Array, values: int | None, count: int
    ) -> ctypes.Array[ctypes.c_char]:
        raw = struct.pack("<QQQQIIQQ", start, end, keys.ctypes.data, values or 0, count, self.fd, 0, 0)
        return ctypes.create_string_buffer(raw, len(raw))

    def _count(self, attribute: ctypes.Array[ctypes.c_char]) -> int:
        return int(struct.unpack_from("<I", attribute, 32)[0])

    def _batch_update(self, keys: Array, values: Array) -> tuple[int, OSError | None]:
        """How many of the run were written, and what stopped it."""
        attribute = self._batch(0, 0, keys, values.ctypes.data, len(keys))
        try:
            call(Command.UPDATE_BATCH, attribute)
        except OSError as error:
            done = 0 if error.errno == errno.EINVAL else min(self._count(attribute), len(keys) - 1)
            return done, error
        return len(keys), None

    def _put_one(self, keys: Array, values: Array, at: int) -> dict[int, OSError]:
        try:
            self.update(keys[at], values[at])
        except OSError as error:
            return {at: error}
        return {}


def _joined(parts: list[Array]) -> Array:
    """np.concatenate of records; by itself it would turn big-endian fields into native ones."""
    dtype = parts[0].dtype
    return np.frombuffer(b"".join(part.tobytes() for part in parts), dtype)


def create_map(
    kind: MapType,
    key: np.dtype[Any],
    value: np.dtype[Any],
    max_entries: int,
    *,
    flags: int = 0,
    name: str = "",
) -> Map:
    """A new map. Raises OSError."""
    attribute = struct.pack(
        "<IIIIIII16s", int(kind), key.itemsize, value.itemsize, max_entries, flags, 0, 0, name.encode()[:15]
    )
    return Map(call(Command.MAP_CREATE, attribute), key, value, name)


def map_by_id(number: int, key: np.dtype[Any], value: np.dtype[Any], name: str = "") -> Map:
    """The map with the kernel's number, such as an inner map names. Raises OSError."""
    return Map(call(Command.MAP_BY_ID, struct.pack("<III", number, 0, 0)), key, value, name)
