"""Rows that make no sense, and maps that a predecessor can't have written so: each costs itself only, and no
packet is led to a backend of another service."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from cilia.dataplane.bpf import Map
from cilia.dataplane.maps import packing
from cilia.model.service import Algorithm, Frontend, ServiceEntry
from tests.support.dataplane import needs_kernel
from tests.support.service_rows import Clock, backend, entry, frontend, service_maps, target

pytestmark = needs_kernel

GOOD = entry(1, 1, 2)


@pytest.fixture
def maps() -> Iterator[dict[str, Map]]:
    with service_maps() as made:
        yield made


def changed(number: int, **fields: object) -> ServiceEntry:
    return msgspec.structs.replace(entry(number, 1, 2), **fields)


NONSENSE = {
    "the frontend's address": changed(2, frontend=Frontend("moon", 80, frontend(2).protocol)),
    "the frontend's port": changed(2, frontend=Frontend("10.96.0.2", 70_000, frontend(2).protocol)),
    "no port": changed(2, frontend=Frontend("10.96.0.2", 0, frontend(2).protocol)),
    "a backend's address": changed(2, internal=(msgspec.structs.replace(backend(9), address="1.2.3"),)),
    "a backend's port": changed(2, external=(msgspec.structs.replace(backend(9), port=-1),)),
    "one that drains": changed(2, draining=(msgspec.structs.replace(backend(9), port=1 << 40),)),
    "a weight": changed(2, internal=(backend(3), msgspec.structs.replace(backend(9), weight="many"))),
    "a range": changed(2, source_ranges=("192.0.2.0/24", "moon/33")),
    "the affinity": changed(2, affinity=1 << 32),
    "the whole row": changed(2, internal=None),
}


@pytest.mark.parametrize("bad", NONSENSE.values(), ids=NONSENSE)
def test_a_row_that_makes_no_sense_costs_itself(maps: dict[str, Map], bad: ServiceEntry) -> None:
    services = target(maps)
    after = entry(3, 2, 3)
    failures = services.update([GOOD, bad, after])
    assert set(failures) == {bad.frontend} and "report it" in failures[bad.frontend]
    assert services.ours() == {GOOD.frontend, after.frontend}
    assert services.differences([GOOD.frontend, after.frontend]) == []
    assert services.delete([bad.frontend, after.frontend]) == {}
    assert services.ours() == {GOOD.frontend}
    services.delete([GOOD.frontend])
    assert not maps["backends"].memory()["flags"].any(), "a backend of the bad row lives"
    assert len(services.backends._numbers) == 0 and len(services._ids) == 0


def test_a_row_that_no_longer_makes_sense_keeps_what_it_had(maps: dict[str, Map]) -> None:
    services = target(maps)
    services.update([GOOD])
    bad = msgspec.structs.replace(GOOD, internal=NONSENSE["a weight"].internal)
    assert set(services.update([bad])) == {GOOD.frontend}
    assert services.differences([GOOD.frontend]) == []
    assert services.update([GOOD]) == {}


# -- what a predecessor left ---------------------------------------------------------------------------------


def leads(maps: dict[str, Map]) -> dict[str, set[str]]:
    """As packets find it: by frontend, the live backends that any of its slots leads to."""
    slots, backends = maps["slots"].memory(), maps["backends"].memory()
    found: dict[str, set[str]] = {}
    keys, values = maps["services"].dump()
    for key, value in zip(packing.records(keys), packing.records(values), strict=True):
        numbers: set[int] = set()
        for where in value["range"]:
            numbers.update(slots[where["first"] :][: where["count"]].tolist())
        rows = [backends[number] for number in numbers if number < len(backends)]
        live = [packing.records(row.reshape(1))[0] for row in rows if row["flags"]]
        found[key["address"]] = {row["address"] for row in live}
    return found


LISTS = [entry(at, at, at + 1, at + 2, source_ranges=("192.0.2.0/24",)) for at in range(1, 9)]
TABLES = [entry(at, at, 40, algorithm=Algorithm.MAGLEV) for at in range(20, 24)]
ROWS = {row.frontend: row for row in (*LISTS, *TABLES)}


def meant(row: ServiceEntry) -> set[str]:
    return {one.address for one in row.internal}


def number_of(maps: dict[str, Map], where: str, **fields: int) -> None:
    """Overwrite fields of a frontend's entry."""
    keys, values = maps["services"].dump()
    at, values = packing.records(keys["address"]).index(where), values.copy()
    for name, value in fields.items():
        if name in ("first", "count"):
            values["range"][name][at] = value
        else:
            values[name][at] = value
    maps["services"].update(keys[at], values[at])


def zeros(name: str, field: str) -> Callable[[dict[str, Map]], None]:
    def damage(maps: dict[str, Map]) -> None:
        maps[name].memory()[field][:] = 0

    return damage


def empty(name: str) -> Callable[[dict[str, Map]], None]:
    """As a pin that was missing is made anew."""

    def damage(maps: dict[str, Map]) -> None:
        if name in ("slots", "backends", "frontends"):
            memory = maps[name].memory()
            memory[:] = np.zeros(1, memory.dtype)
        else:
            maps[name].remove(maps[name].dump()[0])

    return damage


def noise(name: str) -> Callable[[dict[str, Map]], None]:
    """Random bytes in the first elements."""

    def damage(maps: dict[str, Map]) -> None:
        memory = maps[name].memory()
        raw = random.Random(name).randbytes(memory.dtype.itemsize * 64)
        memory[:64] = np.frombuffer(raw, memory.dtype)

    return damage


DAMAGES: dict[str, Callable[[dict[str, Map]], None]] = {
    **{f"no {name}": empty(name) for name in ("services", "frontends", "backends", "slots", "source_ranges")},
    **{f"noise in {name}": noise(name) for name in ("frontends", "backends", "slots")},
    "no flags": zeros("backends", "flags"),
    "slots of nobody": lambda maps: maps["slots"].memory().__setitem__(slice(0, 40), 4_000_000_000),
    "slots of a number not given yet": lambda maps: maps["slots"].memory().__setitem__(slice(0, 40), 60),
    "a range far away": lambda maps: number_of(maps, "10.96.0.3", first=4_294_967_290, count=3),
    "an endless range": lambda maps: number_of(maps, "10.96.0.3", count=4_294_967_295),
    "a range within another": lambda maps: number_of(maps, "10.96.0.3", first=1, count=2),
    "a number beyond": lambda maps: number_of(maps, "10.96.0.3", id=4_000_000_000),
    "the number of another": lambda maps: number_of(maps, "10.96.0.3", id=1),
    "no number": lambda maps: number_of(maps, "10.96.0.3", id=0),
    "a revision at the end": lambda maps: number_of(maps, "10.96.0.3", revision=4_294_967_295),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_maps_are_made_anew(maps: dict[str, Map], damage: Callable[[dict[str, Map]], None]) -> None:
    target(maps).update(list(ROWS.values()))
    before = leads(maps)
    damage(maps)
    with capture_logs() as logs:
        services = target(maps, clock := Clock())
    # Others are written first, whose numbers and slots must be nobody's.
    fresh = {row.frontend: row for row in (entry(number, number, number + 1) for number in range(100, 140))}
    batches = [list(fresh.values()), list(ROWS.values())]
    for batch in batches:
        assert services.update(batch) == {}
        for address, found in leads(maps).items():
            row = next(row for key, row in {**ROWS, **fresh}.items() if key.address == address)
            assert found <= meant(row) | (before.get(address, set())), f"{address} leads to others"
        clock.now += 1
    rows = {**ROWS, **fresh}
    services.prune(rows.values())
    assert services.differences(list(rows)) == []
    assert services.backends.differences(0, services.backends.size) == []
    assert all(services.strangers(found, found.dump()[0]) == [] for found in services.maps())
    assert leads(maps) == {row.frontend.address: meant(row) for row in rows.values()}
    revisions = maps["services"].dump()[1]["revision"].tolist()
    assert len(set(revisions)) == len(revisions)
    if logs:
        assert "written anew" in logs[0]["event"] and logs[0]["count"] > 0
    services.delete(list(rows))
    clock.now += 1
    services.backends._stretches.reclaim(clock.now)
    assert services.backends._stretches.free == len(maps["slots"].memory()), "a stretch is lost"
    assert not maps["backends"].memory()["flags"].any()


def test_sound_maps_are_not_called_damaged(maps: dict[str, Map]) -> None:
    target(maps).update(list(ROWS.values()))
    with capture_logs() as logs:
        target(maps)
    assert logs == []


def test_sticky_clients_forget_backends_when_revisions_begin_anew(maps: dict[str, Map]) -> None:
    target(maps).update([GOOD])
    keys, values = maps["affinity"].keys(1), maps["affinity"].values(1)
    values["revision"] = 4_294_967_295
    maps["affinity"].put(keys, values)
    services = target(maps)
    assert len(maps["affinity"].dump()[0]) == 0
    services.update([entry(1, 3)])
    assert maps["services"].dump()[1]["revision"].tolist() == [2]


def test_killed_before_flags_were_settled_a_successor_settles_them(maps: dict[str, Map]) -> None:
    target(maps).update([GOOD])
    flags = maps["backends"].memory()["flags"]
    flags[flags != 0] |= 2
    services = target(maps)
    services.update([GOOD])
    assert services.backends.differences(0, services.backends.size) == []
