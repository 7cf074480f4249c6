"""Turns the object's BTF into numpy dtypes, enums and map specs."""

from __future__ import annotations

import enum
import functools
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cilia.abi import btf, elf
from cilia.abi.btf import Btf, Kind, Member, Type

LAYOUT = 5
"""Version of the pinned layouts: a part of every pin path, raised when a layout of bpf/abi changes."""

CONSTANTS_SECTION = ".rodata"
MAPS_SECTION = ".maps"


class ObjectMissing(RuntimeError):
    """The compiled object is not there, or can't be read."""


class MapSpec(msgspec.Struct, frozen=True):
    """A map as the object declares it (the loader may size it differently)."""

    name: str
    type: int
    key: str
    """Name of the key's struct, or of its scalar (u32); empty for maps without keys."""
    value: str
    max_entries: int
    flags: int


class Layout:
    """All layouts of one object."""

    def __init__(self, types: Btf) -> None:
        self._btf = types
        self._named: dict[str, int] = {}
        self.enums: dict[str, type[enum.IntEnum]] = {}
        self._values: dict[str, int] = {}
        for number, found in enumerate(types.types):
            if found.kind in (Kind.STRUCT, Kind.UNION, Kind.INT) and found.name:
                self._named.setdefault(found.name, number)
            elif found.kind in (Kind.ENUM, Kind.ENUM64):
                self._values.update(found.values)
                if found.name:
                    self.enums[found.name] = _enum(found)
        self.maps = {variable.name: self._map(variable) for variable in self._variables(MAPS_SECTION)}
        self.constants = {
            variable.name: self._dtype(variable.target)
            for variable in self._variables(CONSTANTS_SECTION)
            if types.resolve(variable.target).kind is Kind.INT
        }
        """Load-time constants: name to dtype."""
        self._dtypes = {name: np.dtype(code) for name, code in SCALARS.items()}

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype of a struct (`event`) or scalar (`u32`); nested structs nest. Raises KeyError."""
        found = self._dtypes.get(name)
        if found is None:
            found = self._dtypes[name] = self._dtype(self._named[name])
        return found

    def structs(self) -> list[str]:
        """Names of all structs."""
        return [name for name, number in self._named.items() if self._btf.types[number].kind is Kind.STRUCT]

    def enum(self, name: str) -> type[enum.IntEnum]:
        """An enum by its C name; drop_reason loses its DROP_ prefixes. Raises KeyError."""
        return self.enums[name]

    def value(self, constant: str) -> int:
        """An enumerator by its C name, such as ENDPOINT_HOST. Raises KeyError."""
        return self._values[constant]

    def _variables(self, section: str) -> list[Type]:
        return [
            self._btf.types[member.type]
            for found in self._btf.of_kind(Kind.DATASEC)
            if found.name == section
            for member in found.members
        ]

    def _dtype(self, number: int) -> np.dtype[Any]:
        found = self._btf.resolve(number)
        match found.kind:
            case Kind.INT if found.name == "_Bool":
                return np.dtype(np.bool_)
            case Kind.INT:
                order = ">" if self._btf.typedef_name(number) else "<"
                return np.dtype(f"{order}{'i' if found.signed else 'u'}{found.size}")
            case Kind.ENUM | Kind.ENUM64:
                return np.dtype(f"<u{found.size}")
            case Kind.PTR:
                return np.dtype("<u8")
            case Kind.ARRAY:
                return np.dtype((self._dtype(found.target), (found.length,)))
            case Kind.STRUCT:
                return self._struct(found)
        raise KeyError(f"{found.kind.name} {found.name or 'without a name'} has no dtype")

    def _struct(self, found: Type) -> np.dtype[Any]:
        if any(member.bitfield or not member.name for member in found.members):
            raise KeyError(f"struct {found.name} has bit fields or unnamed members")
        return np.dtype(
            {
                "names": [member.name for member in found.members],
                "formats": [self._dtype(member.type) for member in found.members],
                "offsets": [member.offset for member in found.members],
                "itemsize": found.size,
            }
        )

    def _map(self, variable: Type) -> MapSpec:
        members = {member.name: member for member in self._btf.resolve(variable.target).members}
        return MapSpec(
            name=variable.name,
            type=self._attribute(members, "type"),
            key=self._attribute_type(members, "key"),
            value=self._attribute_type(members, "value"),
            max_entries=self._attribute(members, "max_entries"),
            flags=self._attribute(members, "map_flags"),
        )

    def _attribute(self, members: dict[str, Member], name: str) -> int:
        """A number written by libbpf's __uint: the length of an array behind a pointer."""
        if name not in members:
            return 0
        pointer = self._btf.resolve(members[name].type)
        return self._btf.resolve(pointer.target).length

    def _attribute_type(self, members: dict[str, Member], name: str) -> str:
        """A type written by libbpf's __type (a pointer to it), or a bare size written by __uint."""
        if name not in members:
            size = self._attribute(members, f"{name}_size")
            return {4: "u32", 8: "u64"}.get(size, "")
        pointer = self._btf.resolve(members[name].type)
        found = self._btf.resolve(pointer.target)
        if found.kind is Kind.STRUCT:
            return found.name
        return f"u{found.size * 8}"


SCALARS = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "u64": "<u8"}


def _enum(found: Type) -> type[enum.IntEnum]:
    strip = "DROP_" if found.name == "drop_reason" else ""
    members = [(name.removeprefix(strip), value) for name, value in found.values]
    made: type[enum.IntEnum] = enum.IntEnum(found.name, members)  # type: ignore[misc]
    return made


def object_path() -> Path:
    """Where the compiled object is: beside this module."""
    return Path(__file__).with_name("cilia.bpf.o")


def read(path: Path) -> Layout:
    """The layouts of the object at `path`. Raises ObjectMissing with what to do."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ObjectMissing(f"the compiled eBPF object {path} is missing: run make bpf") from None
    try:
        return Layout(btf.parse(elf.section(data, ".BTF")))
    except (elf.ElfError, btf.BtfError) as error:
        raise ObjectMissing(f"{path} is not a usable eBPF object ({error}): run make bpf") from error


@functools.cache
def layout() -> Layout:
    """The layouts of the object that ships with the package. Raises ObjectMissing."""
    return read(object_path())
