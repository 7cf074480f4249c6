"""Text to kernel bytes and back: addresses, MACs, whole records."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from cilia.dataplane.bpf import Array, Map
from cilia.model.service import Protocol

K = TypeVar("K")

MAPPED = b"\0" * 10 + b"\xff\xff"
NO_ADDRESS = bytes(16)
NO_MAC = bytes(6)
ADDRESS_FIELDS = ("hi", "lo")
MAC_SHAPE = (6,)
PROTOCOLS = {int(protocol): protocol for protocol in Protocol}


class Content(msgspec.Struct, Generic[K], frozen=True):
    """Elements that a map is to have, and the key of the row that each is there for."""

    map: Map
    keys: Array
    values: Array
    owners: list[K]


def address_bytes(text: str) -> bytes:
    """16 bytes of an address, IPv4 as v4-mapped; zeros for an empty text. Raises OSError for nonsense."""
    if not text:
        return NO_ADDRESS
    if ":" in text:
        return socket.inet_pton(socket.AF_INET6, text)
    return MAPPED + socket.inet_pton(socket.AF_INET, text)


def address_text(raw: bytes) -> str:
    """The address behind 16 bytes; empty for zeros."""
    if raw == NO_ADDRESS:
        return ""
    if raw.startswith(MAPPED):
        return socket.inet_ntop(socket.AF_INET, raw[12:])
    text = socket.inet_ntop(socket.AF_INET6, raw)
    # The C library ends those of ::/96 in dots, and nobody else here does.
    return str(ipaddress.IPv6Address(raw)) if "." in text else text


def addresses(texts: Iterable[str], dtype: np.dtype[Any]) -> Array:
    """Addresses as an array of struct address."""
    return np.frombuffer(b"".join(map(address_bytes, texts)), dtype)


def mac_bytes(text: str) -> bytes:
    """6 bytes of aa:bb:cc:dd:ee:ff; zeros for an empty text."""
    return bytes.fromhex(text.replace(":", "")) if text else NO_MAC


def served_text(address: str, port: int, protocol: int) -> str:
    """What is served, as `model.service` writes it; a protocol that none of ours has by its number."""
    host = f"[{address}]" if ":" in address else address
    named = PROTOCOLS.get(protocol)
    return f"{host}:{port}/{named.name if named else protocol}"


def check_served(address: str, port: int, protocol: int) -> None:
    """Raise ValueError unless the kernel can be told of such a frontend or backend."""
    try:
        address_bytes(address)
    except (OSError, TypeError):
        raise ValueError(f"{address!r} is no address") from None
    if not 0 < port < 65536:
        raise ValueError(f"{port} is no port")
    if not 0 < protocol < 256:
        raise ValueError(f"{protocol} is no transport protocol")


def macs(texts: Iterable[str]) -> Array:
    """MACs as an array (n, 6)."""
    return np.frombuffer(b"".join(map(mac_bytes, texts)), np.uint8).reshape(-1, 6)


def raw_rows(array: Array) -> list[bytes]:
    """Each element's bytes, usable in sets."""
    size = array.dtype.itemsize
    data = array.tobytes()
    return [data[at : at + size] for at in range(0, len(data), size)]


def records(array: Array) -> list[Any]:
    """Kernel records as plain data, column by column: addresses and MACs as text, nested structs as
    dictionaries, reserved fields left out."""
    dtype = array.dtype
    if dtype.names and array.ndim == 2:
        flat, width = records(array.reshape(-1)), array.shape[1]
        return [flat[at : at + width] for at in range(0, len(flat), width)]
    if dtype.names == ADDRESS_FIELDS:
        return list(map(address_text, raw_rows(array)))
    if dtype.names:
        names = [name for name in dtype.names if not name.startswith("reserved")]
        columns = [records(array[name]) for name in names]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    if array.shape[1:] == MAC_SHAPE and dtype == np.uint8:
        return [bytes(row).hex(":") for row in array]
    return list(array.tolist())


def text(record: Any) -> str:
    """One record of `records` for people."""
    if isinstance(record, dict):
        return ", ".join(f"{name} {text(value)}" for name, value in record.items())
    if isinstance(record, list):
        return " ".join(f"({text(value)})" for value in record)
    return str(record)


def sentences(target: Map, failures: Mapping[int, OSError]) -> dict[int, str]:
    """What went wrong, for people, by position."""
    return {at: sentence(target, error) for at, error in failures.items()}


def sentence(target: Map, error: OSError) -> str:
    """Why a write to a map failed and what helps."""
    if error.errno in (errno.E2BIG, errno.ENOSPC):
        return full(target)
    return f"map {target.name}: {error.strerror}"


def full(target: Map) -> str:
    """That nothing more fits into a map, and what helps."""
    return f"map {target.name} is full ({target.info.max_entries} entries): raise its size"
