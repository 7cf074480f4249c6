"""Opens, configures and loads a compiled object with the system's libbpf (1.0 or newer).

Only what a generic loader is needed for: ELF, relocations, BTF, creating maps, handing programs to the
verifier. What libbpf prints on the way (the verifier's log too) is kept for the error.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cilia.abi import btf
from cilia.dataplane.bpf import BpfError

LIBRARY = "libbpf.so.1"
LOG_LIMIT = 400
"""Lines of libbpf's output kept for an error; the verifier's last words come last."""

PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
POINTER_FUNCTIONS = {
    "bpf_object__open": [ctypes.c_char_p],
    "bpf_object__btf": [ctypes.c_void_p],
    "bpf_object__next_map": [ctypes.c_void_p, ctypes.c_void_p],
    "bpf_object__next_program": [ctypes.c_void_p, ctypes.c_void_p],
    "bpf_object__find_map_by_name": [ctypes.c_void_p, ctypes.c_char_p],
    "bpf_map__initial_value": [ctypes.c_void_p, ctypes.c_void_p],
    "btf__raw_data": [ctypes.c_void_p, ctypes.c_void_p],
}
TEXT_FUNCTIONS = {
    "bpf_map__name": [ctypes.c_void_p],
    "bpf_program__name": [ctypes.c_void_p],
}
NUMBER_FUNCTIONS = {
    "bpf_object__load": [ctypes.c_void_p],
    "bpf_map__fd": [ctypes.c_void_p],
    "bpf_map__set_max_entries": [ctypes.c_void_p, ctypes.c_uint32],
    "bpf_map__reuse_fd": [ctypes.c_void_p, ctypes.c_int],
    "bpf_program__fd": [ctypes.c_void_p],
}


class Library:
    """The shared library with its functions typed, and what it printed last."""

    def __init__(self) -> None:
        try:
            self.functions = ctypes.CDLL(LIBRARY, use_errno=True)
        except OSError as error:
            raise BpfError(f"{LIBRARY} can't be loaded ({error}): install the package libbpf1") from error
        for result, table in (
            (ctypes.c_void_p, POINTER_FUNCTIONS),
            (ctypes.c_char_p, TEXT_FUNCTIONS),
            (ctypes.c_int, NUMBER_FUNCTIONS),
        ):
            for name, arguments in table.items():
                function = getattr(self.functions, name)
                function.restype, function.argtypes = result, arguments
        self.functions.bpf_object__close.argtypes = [ctypes.c_void_p]
        self.functions.libbpf_set_print.argtypes = [PRINT]
        self.lines: list[str] = []
        self._format = ctypes.CDLL(None).vsnprintf
        self._format.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]
        self._print = PRINT(self._printed)
        self.functions.libbpf_set_print(self._print)

    def _printed(self, level: int, text: bytes, arguments: int) -> int:
        if level >= 2:
            return 0
        buffer = ctypes.create_string_buffer(1 << 20)
        self._format(buffer, len(buffer), text, arguments)
        self.lines += buffer.value.decode(errors="replace").rstrip("\n").split("\n")
        del self.lines[:-LOG_LIMIT]
        return 0


@functools.cache
def library() -> Library:
    """The one instance: libbpf's print function is a global of the process."""
    return Library()


class Loaded:
    """Descriptors of a loaded object, duplicated so that libbpf's own can go."""

    def __init__(self) -> None:
        self.maps: dict[str, int] = {}
        self.programs: dict[str, int] = {}


class BpfObject:
    """An object between open and load; use as a context manager, `load` duplicates what should stay."""

    def __init__(self, path: Path) -> None:
        self.library = library()
        self.library.lines.clear()
        self._functions = self.library.functions
        self._path = path
        self._object = self._functions.bpf_object__open(os.fsencode(path))
        if not self._object:
            raise self._error("can't be opened")

    def __enter__(self) -> BpfObject:
        return self

    def __exit__(self, *_: object) -> None:
        self._functions.bpf_object__close(self._object)

    def maps(self) -> Iterator[tuple[str, int]]:
        """(name, libbpf's handle) of every map."""
        handle = self._functions.bpf_object__next_map(self._object, None)
        while handle:
            yield self._functions.bpf_map__name(handle).decode(), handle
            handle = self._functions.bpf_object__next_map(self._object, handle)

    def programs(self) -> Iterator[tuple[str, int]]:
        """(name, libbpf's handle) of every program."""
        handle = self._functions.bpf_object__next_program(self._object, None)
        while handle:
            yield self._functions.bpf_program__name(handle).decode(), handle
            handle = self._functions.bpf_object__next_program(self._object, handle)

    def set_constants(self, constants: dict[str, Any], dtypes: dict[str, np.dtype[Any]]) -> None:
        """Write load-time constants by name. Raises BpfError for a name the object does not have."""
        offsets = self._constant_offsets()
        section = self._functions.bpf_object__find_map_by_name(self._object, b".rodata")
        size = ctypes.c_size_t()
        start = self._functions.bpf_map__initial_value(section, ctypes.byref(size)) if section else None
        for name, value in constants.items():
            if start is None or name not in offsets or name not in dtypes:
                raise BpfError(f"{self._path.name} has no load-time constant {name}")
            raw = np.array(value, dtypes[name]).tobytes()
            ctypes.memmove(start + offsets[name], raw, len(raw))

    def resize(self, handle: int, max_entries: int) -> None:
        """Give a map another size than the object declares."""
        self._check(self._functions.bpf_map__set_max_entries(handle, max_entries), "resize a map of")

    def reuse(self, handle: int, fd: int) -> None:
        """Use an existing map instead of making one (`fd` stays the caller's)."""
        self._check(self._functions.bpf_map__reuse_fd(handle, fd), "adopt a pinned map for")

    def load(self) -> Loaded:
        """Create the maps, verify the programs. Raises BpfError with the verifier's last lines."""
        self._check(self._functions.bpf_object__load(self._object), "load")
        loaded = Loaded()
        for name, handle in self.maps():
            if "." not in name:
                loaded.maps[name] = os.dup(self._functions.bpf_map__fd(handle))
        for name, handle in self.programs():
            loaded.programs[name] = os.dup(self._functions.bpf_program__fd(handle))
        return loaded

    def _constant_offsets(self) -> dict[str, int]:
        """Where each constant lies in .rodata: libbpf has put the offsets into its copy of the BTF."""
        size = ctypes.c_uint32()
        types = self._functions.bpf_object__btf(self._object)
        raw = ctypes.string_at(self._functions.btf__raw_data(types, ctypes.byref(size)), size.value)
        parsed = btf.parse(raw)
        return {
            parsed.types[variable.type].name: variable.offset
            for section in parsed.of_kind(btf.Kind.DATASEC)
            if section.name == ".rodata"
            for variable in section.members
        }

    def _check(self, result: int, verb: str) -> None:
        if result < 0:
            raise self._error(f"the kernel would not {verb} it: {os.strerror(-result)}")

    def _error(self, what: str) -> BpfError:
        log = "\n".join(self.library.lines)
        return BpfError(f"{self._path.name}: {what}\n{log}".rstrip())
