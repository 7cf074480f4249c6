"""Finds a section in an ELF64 little-endian object: all that is needed to reach its BTF."""

from __future__ import annotations

import struct

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SECTION = struct.Struct("<IIQQQQIIQQ")
MAGIC = b"\x7fELF\x02\x01"


class ElfError(ValueError):
    """The file is not an object this reader understands."""


def section(data: bytes, name: str) -> bytes:
    """The bytes of section `name`. Raises ElfError when it is missing or the file is cut off."""
    if not data.startswith(MAGIC) or len(data) < HEADER.size:
        raise ElfError("not a 64-bit little-endian ELF file")
    fields = HEADER.unpack_from(data)
    table, entry_size, count, names_index = fields[6], fields[11], fields[12], fields[13]
    try:
        headers = [SECTION.unpack_from(data, table + i * entry_size) for i in range(count)]
        names = headers[names_index]
    except (struct.error, IndexError) as error:
        raise ElfError("the section table is cut off") from error
    wanted = name.encode()
    for header in headers:
        start = names[4] + header[0]
        if data[start : data.find(b"\0", start)] == wanted:
            return _body(data, header[4], header[5], name)
    raise ElfError(f"the object has no section {name}")


def _body(data: bytes, offset: int, size: int, name: str) -> bytes:
    body = data[offset : offset + size]
    if len(body) != size:
        raise ElfError(f"section {name} is cut off")
    return body
