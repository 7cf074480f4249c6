"""Tables: what readers see of changes; the reconciler: what a target is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.tables.reconciler import Reconciler, State
from cilia.tables.table import Table


class Row(msgspec.Struct, frozen=True):
    key: str
    value: int


class FakeTarget:
    """A dictionary with the three verbs and faults on demand."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.broken: set[str] = set()
        self.calls: list[tuple[str, tuple[str, ...]]] = []

    def update(self, rows: Sequence[Row]) -> dict[str, str]:
        self.calls.append(("update", tuple(row.key for row in rows)))
        for row in rows:
            if row.key not in self.broken:
                self.held[row.key] = row.value
        return {row.key: "the map is full" for row in rows if row.key in self.broken}

    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        self.calls.append(("delete", tuple(keys)))
        for key in keys:
            self.held.pop(key, None)
        return {}

    def prune(self, keep: Iterable[Row]) -> int:
        wanted = {row.key for row in keep}
        stale = [key for key in self.held if key not in wanted]
        for key in stale:
            del self.held[key]
        return len(stale)


def table() -> Table[str, Row]:
    return Table("rows", lambda row: row.key, {"value": lambda row: (row.value,)})


def test_a_cursor_sees_present_rows_then_only_changes() -> None:
    rows = table()
    rows.put(Row("a", 1))
    cursor = rows.cursor()
    assert cursor.take() == ([Row("a", 1)], [])
    rows.put(Row("a", 2))
    rows.put(Row("a", 3))
    rows.put(Row("b", 1))
    rows.delete("b")
    assert cursor.take() == ([Row("a", 3)], ["b"])
    assert not cursor.pending


def test_an_equal_row_is_no_change() -> None:
    rows = table()
    assert rows.put(Row("a", 1))
    revision = rows.revision
    assert not rows.put(Row("a", 1))
    assert rows.revision == revision


def test_replace_announces_only_what_changed() -> None:
    rows = table()
    rows.replace([Row("a", 1), Row("b", 2)])
    cursor = rows.cursor()
    cursor.take()
    rows.replace([Row("b", 2), Row("c", 3)])
    assert cursor.take() == ([Row("c", 3)], ["a"])


def test_nobody_tests_a_table_for_truth_by_accident() -> None:
    with pytest.raises(TypeError):
        bool(table())


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(0, 3)))))
def test_indexes_equal_a_scan(changes: list[tuple[str, int | None]]) -> None:
    rows = table()
    for key, value in changes:
        if value is None:
            rows.delete(key)
        else:
            rows.put(Row(key, value))
    for value in range(4):
        assert sorted(r.key for r in rows.by("value", value)) == sorted(
            r.key for r in rows if r.value == value
        )


def test_a_failed_row_is_retried_after_its_pause_and_knows_since_when() -> None:
    rows, target = table(), FakeTarget()
    reconciler = Reconciler(rows, target, retry=1.0)
    target.broken = {"a"}
    rows.put(Row("a", 1))
    rows.put(Row("b", 1))
    reconciler.step(10.0)
    assert target.held == {"b": 1}
    assert reconciler.status["a"].state is State.ERROR
    assert reconciler.status["a"].error == "the map is full"
    reconciler.step(10.5)
    assert len(target.calls) == 1
    reconciler.step(11.0)
    assert reconciler.status["a"].attempts == 2
    assert reconciler.status["a"].since == 10.0
    target.broken = set()
    assert reconciler.next_retry() == 13.0
    reconciler.step(13.0)
    assert target.held == {"a": 1, "b": 1}
    assert reconciler.done("a")
    assert reconciler.errors() == {}


def test_deletes_and_updates_can_be_stepped_apart() -> None:
    rows, target = table(), FakeTarget()
    reconciler = Reconciler(rows, target)
    rows.replace([Row("a", 1), Row("b", 1)])
    reconciler.step(0.0)
    rows.replace([Row("b", 2)])
    target.calls.clear()
    reconciler.step_deletes(1.0)
    assert target.calls == [("delete", ("a",))]
    assert not reconciler.done("b")
    reconciler.step_updates(1.0)
    assert target.held == {"b": 2}
    assert reconciler.done("b")


def test_many_rows_can_be_brought_in_parts() -> None:
    table: Table[str, Row] = Table("rows", lambda row: row.key)
    target = FakeTarget()
    reconciler = Reconciler(table, target)
    for key in "abcde":
        table.put(Row(key, 1))
    table.delete("b")
    reconciler.step_deletes(1.0)
    assert [reconciler.step_updates(1.0, 3) for _ in range(3)] == [3, 1, 0]
    assert target.calls == [("delete", ("b",)), ("update", ("a", "c", "d")), ("update", ("e",))]
    assert not reconciler.pending


def test_a_marked_row_is_brought_again() -> None:
    table: Table[str, Row] = Table("rows", lambda row: row.key)
    target = FakeTarget()
    reconciler = Reconciler(table, target)
    table.put(Row("a", 1))
    reconciler.step(1.0)
    target.held.clear()
    reconciler.mark("a")
    assert reconciler.pending and not reconciler.done("a")
    reconciler.step(2.0)
    assert target.held == {"a": 1} and reconciler.done("a")


def test_nothing_is_pruned_before_the_table_is_complete() -> None:
    rows, target = table(), FakeTarget()
    target.held = {"stale": 1}
    reconciler = Reconciler(rows, target)
    with pytest.raises(RuntimeError, match="not complete"):
        reconciler.prune()
    rows.synced = True
    assert reconciler.prune() == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 2)), st.booleans())))
def test_the_target_ends_up_equal_whatever_the_rhythm(changes: list[tuple[str, int | None, bool]]) -> None:
    rows, target = table(), FakeTarget()
    reconciler = Reconciler(rows, target)
    for key, value, flush in changes:
        if value is None:
            rows.delete(key)
        else:
            rows.put(Row(key, value))
        if flush:
            reconciler.step(0.0)
    reconciler.step(0.0)
    assert target.held == {row.key: row.value for row in rows}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 2)), st.booleans())))
def test_errors_are_those_that_stand(changes: list[tuple[str, int | None, bool]]) -> None:
    """They are kept apart from the other states, which may be ten thousand."""
    rows, target = table(), FakeTarget()
    reconciler = Reconciler(rows, target)
    for at, (key, value, is_broken) in enumerate(changes):
        (target.broken.add if is_broken else target.broken.discard)(key)
        if value is None:
            rows.delete(key)
        else:
            rows.put(Row(key, value))
        reconciler.step(float(at))
        failed = {key: found for key, found in reconciler.status.items() if found.state is State.ERROR}
        assert reconciler.errors() == failed
