"""Rows of the store to a Parquet file and back, with everything they point into.

A file has columns for people and their tools (`friendly`), and beside them what answers need to the last bit:

    number            the row's number
    event   struct    the fields of the data path's record, by name; one that is 0 in all rows is left out
    refs    struct    the columns of indexes of `store.Rows`
    footer            what the indexes point into, and the gaps among the rows (msgpack, as text)

Disks give back other bytes than they were given. Pages have checksums. Parquet has none for its metadata, and
a bit turned there can end the process that reads it, so its checksum stands before it, where nobody looks.

Fields are read back by name: a file outlives a change of the record's layout, and what it lacks is zero.
"""

from __future__ import annotations

import base64
import contextlib
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cilia.hubble.columns import Events, Refs, blobs, octets
from cilia.hubble.directory import Device, Party, Service
from cilia.hubble.frames.schema import array, fixed_binary, native
from cilia.hubble.history.friendly import friendly_columns
from cilia.hubble.past import Meanings
from cilia.hubble.store import LossRow, Rows, Rules
from cilia.hubble.uuids import row_of
from cilia.kit.files import sync_directory

T = TypeVar("T")

FORMAT = 1
FOOTER = b"cilia.history"
CHECKSUM = struct.Struct("<I")
"""CRC-32 of all that follows it."""
MAGIC = b"PAR1"
TAIL = struct.Struct("<I4s")
"""How a Parquet file ends: length of its metadata, MAGIC."""
ROW_GROUP = 16_384
"""Rows an answer holds in memory at once."""
REFS = Rows._fields[3:]
POINTED = {
    "source": "parties",
    "destination": "parties",
    "egress": "rules",
    "ingress": "rules",
    "device": "devices",
    "service": "services",
}
"""What each column of indexes points into."""


class Damaged(Exception):
    """A file that can't be read; its text says why."""


class Fixed(msgspec.Struct, Generic[T], frozen=True):
    """Values that no longer change."""

    values: tuple[T, ...]
    generation: int = 0


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows of a block or of a file point into."""

    boot: int
    parties: Fixed[Party]
    rules: Fixed[Rules]
    devices: Fixed[Device]
    services: Fixed[Service]

    def row_of(self, uuid: str) -> int | None:
        """The row a UUID names; None for others'."""
        return row_of(uuid, self.boot)


class Footer(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says about its rows."""

    format: int
    node: str
    known: Known
    gaps: tuple[LossRow, ...]


class Block(NamedTuple):
    """Rows taken out of the store, with all they need to be understood later."""

    rows: Rows
    known: Known
    gaps: Sequence[LossRow]


def detach(spans: Sequence[Rows], meanings: Meanings, gaps: Sequence[LossRow]) -> Block:
    """Copy rows out of the ring (at least one span); their indexes then point into values of their own."""
    rows = joined_rows(spans)
    refs: dict[str, Any] = {}
    values: dict[str, Fixed[Any]] = {}
    for kind in dict.fromkeys(POINTED.values()):
        known = getattr(meanings, kind).values
        names = [name for name in REFS if POINTED[name] == kind]
        there = np.zeros(len(known), np.bool_)
        for name in names:
            there[getattr(rows, name)] = True
        used = np.flatnonzero(there)
        table = np.zeros(len(known), np.uint32)
        table[used] = np.arange(len(used))
        values[kind] = Fixed(tuple(known[ref] for ref in used.tolist()))
        refs |= {name: table[getattr(rows, name)] for name in names}
    return Block(rows._replace(**refs), Known(boot=meanings.boot, **values), gaps)


def joined(blocks: Sequence[Block]) -> Block:
    """Blocks of one run, one after the other, as one."""
    values: dict[str, Fixed[Any]] = {}
    refs: dict[str, list[Refs]] = {name: [] for name in REFS}
    for kind in dict.fromkeys(POINTED.values()):
        index: dict[Any, int] = {}
        for block in blocks:
            own = getattr(block.known, kind).values
            table = np.array([index.setdefault(value, len(index)) for value in own] or [0], np.uint32)
            for name in REFS:
                if POINTED[name] == kind:
                    refs[name].append(table[getattr(block.rows, name)])
        values[kind] = Fixed(tuple(index))
    rows = joined_rows([block.rows for block in blocks])
    whole: dict[str, Any] = {name: np.concatenate(columns) for name, columns in refs.items()}
    rows = rows._replace(**whole)
    gaps = [gap for block in blocks for gap in block.gaps]
    return Block(rows, Known(boot=blocks[0].known.boot, **values), gaps)


def joined_rows(spans: Sequence[Rows]) -> Rows:
    """One copy of several runs of rows; records are copied as bytes, in whatever order those are."""
    dtype = spans[0].events.dtype
    events = np.concatenate([blobs(np.ascontiguousarray(rows.events)) for rows in spans]).view(dtype)
    numbers, wall, *refs = (
        np.concatenate([rows[place] for rows in spans]) for place in (0, *range(2, len(Rows._fields)))
    )
    return Rows(numbers, events, wall, *refs)


# -- writing ------------------------------------------------------------------------------------------------


def write(path: Path, block: Block, node: str) -> int:
    """Seal a block under `path`; gives the file's size. Raises OSError; then nothing of it is left."""
    table = encode(block, node)
    footer = Footer(format=FORMAT, node=node, known=block.known, gaps=tuple(block.gaps))
    data = sealed(table, footer)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("xb") as file:
            size = sum(file.write(piece) for piece in data)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
    return size


def sealed(table: pa.Table, footer: Footer) -> tuple[memoryview, bytes, memoryview]:
    """The bytes of a file: its pages, the checksum of its metadata, its metadata to the end.

    It is made in memory: pyarrow takes the interpreter's lock for each piece it writes to a file of Python's.
    """
    names = leaves(table.schema)
    stream = pa.BufferOutputStream()
    with pq.ParquetWriter(
        stream,
        table.schema,
        compression=COMPRESSION,
        use_dictionary=[name for name in names if name not in PLAIN],
        column_encoding={name: PLAIN[name] for name in names if name in PLAIN},
        write_statistics=["time"],
        write_page_checksum=True,
        store_schema=True,
    ) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP)
        writer.add_key_value_metadata({FOOTER: packed(footer)})
    whole = memoryview(stream.getvalue()).cast("B")
    length, _ = TAIL.unpack(whole[-TAIL.size :])
    start = len(whole) - TAIL.size - length
    return whole[:start], CHECKSUM.pack(zlib.crc32(whole[start:])), whole[start:]


def verify(file: BinaryIO) -> None:
    """Raises Damaged where the metadata is not what was written."""
    start, metadata = metadata_of(file)
    file.seek(max(0, start - CHECKSUM.size))
    if file.read(CHECKSUM.size) != CHECKSUM.pack(zlib.crc32(metadata)):
        raise Damaged("its metadata is not what was written")


def metadata_of(file: BinaryIO) -> tuple[int, bytes]:
    """Where the metadata of a Parquet file begins, and its bytes to the file's end. Raises Damaged."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL.size))
    tail = file.read()
    length, magic = TAIL.unpack(tail) if len(tail) == TAIL.size else (0, b"")
    start = size - TAIL.size - length
    if magic != MAGIC or start < len(MAGIC) or length > MAX_FOOTER:
        raise Damaged("it has no end as Parquet files have")
    file.seek(start)
    return start, file.read()


COMPRESSION = "lz4"
"""A page costs half of what zstd takes, and is a tenth larger: most of it is packed already."""
PLAIN = {
    "time": "DELTA_BINARY_PACKED",
    "number": "DELTA_BINARY_PACKED",
    "uuid": "DELTA_BYTE_ARRAY",
    "event.time": "DELTA_BINARY_PACKED",
    "event.sequence": "DELTA_BINARY_PACKED",
}
"""Columns whose values hardly repeat, and how they become small; all others are dictionaries."""


def leaves(schema: pa.Schema) -> list[str]:
    """The names of the columns as Parquet sees them."""
    names = []
    for field in schema:
        if pa.types.is_struct(field.type):
            names += [f"{field.name}.{child.name}" for child in field.type]
        else:
            names.append(field.name)
    return names


def encode(block: Block, node: str) -> pa.Table:
    """A block as a table."""
    rows = block.rows
    columns: dict[str, pa.Array] = friendly_columns(rows, block.known, node)
    columns["number"] = array(rows.numbers, pa.int64())
    names = set_fields(rows.events)
    columns["event"] = struct_array(names, [field_array(rows.events, name) for name in names])
    columns["refs"] = struct_array(REFS, [array(getattr(rows, name), pa.uint32()) for name in REFS])
    schema = pa.schema([(name, column.type) for name, column in columns.items()])
    for place, name in enumerate(columns):
        if name in INNER:
            schema = schema.set(place, schema.field(place).with_nullable(False))
    return pa.Table.from_arrays(list(columns.values()), schema=schema)


INNER = ("number", "event", "refs")
"""Columns that are there in every row."""


def struct_array(names: Sequence[str], columns: Sequence[pa.Array]) -> pa.Array:
    """Columns that are there in every row, as one."""
    fields = [
        pa.field(name, column.type, nullable=False) for name, column in zip(names, columns, strict=True)
    ]
    return pa.StructArray.from_arrays(columns, fields=fields)


def set_fields(events: Events) -> list[str]:
    """The fields that are not 0 in all rows: one pass over the records, whole."""
    flat = events.view(np.uint8).reshape(len(events), events.dtype.itemsize)
    together = np.bitwise_or.reduce(flat, axis=0, keepdims=True).view(events.dtype)
    return [name for name in events.dtype.names or () if octets(together, name).any()]


def field_array(events: Events, name: str) -> pa.Array:
    """A field of the record: a number in the machine's order, or bytes as they are."""
    kind = events.dtype[name]
    if kind.kind in "ui" and kind.subdtype is None:
        native = np.ascontiguousarray(events[name], kind.newbyteorder("="))
        return array(native, pa.from_numpy_dtype(native.dtype))
    return fixed_binary(octets(events, name))


def packed(footer: Footer) -> bytes:
    """Compressed msgpack, with its length in front, as text: what Parquet keeps for others must be UTF-8, and
    some readers refuse the whole file where it is not."""
    data = msgspec.msgpack.encode(footer)
    compressed: bytes = pa.compress(data, "zstd", asbytes=True)
    return base64.b64encode(len(data).to_bytes(8, "little") + compressed)


def merge(paths: Sequence[Path], target: Path, dtype: np.dtype[np.void]) -> int:
    """Seal the rows of several files of one run as one; gives its size. Raises Damaged and OSError."""
    blocks = []
    for path in paths:
        with contextlib.closing(SealedFile(path, dtype)) as file:
            blocks.append(file.block())
            node = file.footer.node
    return write(target, joined(blocks), node)


# -- reading ------------------------------------------------------------------------------------------------


class SealedFile:
    """A file, opened; its footer is read, and nothing else yet. Close it after use."""

    def __init__(self, path: Path, dtype: np.dtype[np.void]) -> None:
        """Raises Damaged, and FileNotFoundError for one that was given up in the meantime."""
        self._dtype = dtype
        try:
            with path.open("rb") as file:
                verify(file)
            self._file = pq.ParquetFile(path, memory_map=False, page_checksum_verification=True)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise Damaged(str(error)) from error
        try:
            self.footer = unpacked((self._file.metadata.metadata or {}).get(FOOTER, b""))
        except Damaged:
            self._file.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    @property
    def known(self) -> Known:
        """What its rows point into."""
        return self.footer.known

    def groups(self) -> range:
        """Numbers of the pieces `read` takes."""
        return range(self._file.num_row_groups)

    def times(self, group: int) -> tuple[int, int]:
        """Earliest and latest nanosecond since the epoch of a group, from the footer."""
        statistics = self._file.metadata.row_group(group).column(0).statistics
        if statistics is None or not statistics.has_min_max:
            return -(1 << 63), (1 << 63) - 1
        return int(statistics.min_raw), int(statistics.max_raw)

    def read(self, group: int) -> Rows:
        """The rows of one group. Raises Damaged."""
        try:
            # One thread: the event loop needs a core, too.
            names = ["time", "number", "event", "refs"]
            table = self._file.read_row_group(group, columns=names, use_threads=False)
            return decode(table, self._dtype, self.footer.known)
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise Damaged(str(error)) from error

    def block(self) -> Block:
        """All rows. Raises Damaged."""
        rows = joined_rows([self.read(group) for group in self.groups()])
        return Block(rows, self.footer.known, self.footer.gaps)


def unpacked(data: bytes) -> Footer:
    """Raises Damaged."""
    try:
        if 0 not in data[:8]:
            # Files of before had the bytes as they are; their length ends in zeros.
            data = base64.b64decode(data, validate=True)
        size = int.from_bytes(data[:8], "little")
        if not 0 < size < MAX_FOOTER:
            raise Damaged("it has no footer of ours")
        plain = pa.decompress(data[8:], size, "zstd", asbytes=True)
        footer = msgspec.msgpack.decode(plain, type=Footer)
    except (msgspec.MsgspecError, OSError, ValueError, pa.ArrowException) as error:
        raise Damaged(f"its footer is unreadable: {error}") from error
    if footer.format != FORMAT:
        raise Damaged(f"it has format {footer.format}, and this version reads {FORMAT}")
    return footer


MAX_FOOTER = 256 << 20
"""Bytes of a footer that is believed."""


def decode(table: pa.Table, dtype: np.dtype[np.void], known: Known) -> Rows:
    """Rows of a table. Raises KeyError or ValueError where something is missing or points nowhere."""
    count = len(table)
    event, refs = (table[name].combine_chunks() for name in ("event", "refs"))
    events = np.zeros(count, dtype)
    for place, field in enumerate(event.type):
        if field.name in (dtype.names or ()):
            fill(events, field.name, event.field(place))
    columns = []
    for name in REFS:
        column = native(refs.field(refs.type.get_field_index(name)), np.uint32)
        if count and int(column.max()) >= len(getattr(known, POINTED[name]).values):
            raise ValueError(f"its column {name} points outside of its footer")
        columns.append(column)
    wall = native(table["time"].combine_chunks(), np.int64)
    return Rows(native(table["number"].combine_chunks(), np.int64), events, wall, *columns)


def fill(events: Events, name: str, column: pa.Array) -> None:
    """Put a column back into its field."""
    if not pa.types.is_fixed_size_binary(column.type):
        events[name] = native(column, column.type.to_pandas_dtype())
        return
    width = column.type.byte_width
    raw = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    octets(events, name)[:] = raw.reshape(len(column), width)
