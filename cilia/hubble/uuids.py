"""The UUIDs of flows: the run that saw it in the first half, the row's number in the second.

8f1c20d4-77aa-4a5e-8000-0000000004d2
run of the store        row 1234
"""

from __future__ import annotations

import numpy as np

from cilia.hubble.blocks import hex_digits
from cilia.hubble.columns import Bytes, Times


def row_of(uuid: str, boot: int) -> int | None:
    """The row a UUID of the run `boot` names; None for others'."""
    digits = uuid.replace("-", "").lower()
    try:
        run, row = int(digits[:16], 16), int(digits[16:], 16)
    except ValueError:
        return None
    if len(digits) != 32 or run != boot or row >> 48 != 0x8000:
        return None
    return row & (1 << 48) - 1


def uuid_texts(boot: int, numbers: Times) -> Bytes:
    """The UUIDs of rows as text: shape (n, 36)."""
    run = f"{boot:016x}"
    head = f"{run[:8]}-{run[8:12]}-{run[12:]}-8000-".encode()
    text = np.empty((len(numbers), 36), np.uint8)
    text[:, :24] = np.frombuffer(head, np.uint8)
    text[:, 24:] = hex_digits(numbers)
    return text
