"""A disk that gives back other bytes than it was given: a file is read as it was written, or not at all."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cilia.hubble.columns import octets
from cilia.hubble.history import codec
from cilia.hubble.history.codec import Damaged, SealedFile
from cilia.hubble.ring import Rows
from tests.support.hubble import DTYPE, NODE, VARIED, WALL, events, store

PLACES = 300
"""Where a bit is turned, all over the file."""


def sealed(path: Path) -> Rows:
    """Write a file; gives its rows as they are read."""
    flows = store()
    flows.append([events(*VARIED * 20)], offset=WALL)
    codec.write(path, codec.detach(flows.spans(0, flows.head), flows, []), NODE.name)
    return read(path)


def read(path: Path) -> Rows:
    with closing(SealedFile(path, DTYPE)) as file:
        (group,) = file.groups()
        file.times(group)
        return file.read(group)


def same(one: Rows, other: Rows) -> bool:
    columns: list[Any] = [(rows.numbers, rows.wall, *rows[3:]) for rows in (one, other)]
    records: list[Any] = [[octets(rows.events, name) for name in DTYPE.names or ()] for rows in (one, other)]
    pairs = zip([*columns[0], *records[0]], [*columns[1], *records[1]], strict=True)
    return all(np.array_equal(mine, theirs) for mine, theirs in pairs)


def test_a_turned_bit_is_found_wherever_it_matters(tmp_path: Path) -> None:
    path = tmp_path / "one.parquet"
    rows = sealed(path)
    whole = path.read_bytes()
    found = 0
    for place in range(0, len(whole), max(1, len(whole) // PLACES)):
        path.write_bytes(whole[:place] + bytes((whole[place] ^ 1 << place % 8,)) + whole[place + 1 :])
        try:
            assert same(rows, read(path)), f"byte {place}"
        except Damaged:
            found += 1
    assert found > PLACES // 2


@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"PAR1PAR1", b"PAR1\xff\xff\xff\xffPAR1", b"PAR1\0\0\0\0PAR1", bytes(99)]
)
def test_what_is_no_file_of_ours_is_damage(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "one.parquet"
    path.write_bytes(data)
    with pytest.raises(Damaged):
        SealedFile(path, DTYPE)


def test_a_file_that_is_cut_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "one.parquet"
    sealed(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 101):
        path.write_bytes(whole[:size])
        with pytest.raises(Damaged):
            SealedFile(path, DTYPE)


def test_others_read_it(tmp_path: Path) -> None:
    path = tmp_path / "one.parquet"
    rows = sealed(path)
    assert pq.read_table(path)["number"].to_pylist() == rows.numbers.tolist()


def test_nobody_reads_metadata_that_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.parquet"
    sealed(path)
    whole = path.read_bytes()
    monkeypatch.setattr(pq, "ParquetFile", lambda *_args, **_choices: pytest.fail("it was opened"))
    for place in (len(whole) - 9, len(whole) - 99, len(whole) - 2000):
        path.write_bytes(whole[:place] + bytes((whole[place] ^ 1,)) + whole[place + 1 :])
        with pytest.raises(Damaged, match="not what was written"):
            SealedFile(path, DTYPE)
