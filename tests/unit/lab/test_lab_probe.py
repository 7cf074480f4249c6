"""The matrix: what it says of what was seen."""

from __future__ import annotations

import io
from itertools import product

import pytest
from rich.console import Console

from cilia.lab import probe
from cilia.lab.demo import expectations
from cilia.lab.probe import PROTOCOLS, Cell, Result

OK, LATE = Result("ok", 1.0), Result("timeout", 400.0)


def cells(source: str, target: str) -> list[Cell]:
    return [Cell(source, target, family, name) for family in ("IPv4", "IPv6") for name in PROTOCOLS]


def text(matrix: probe.Matrix, expected: probe.Expectation | None = None) -> str:
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(probe.render(matrix, expected))
    return capture.get()


def test_all_and_nothing_are_one_sign() -> None:
    matrix = dict.fromkeys(cells("a/x", "a/y"), OK) | dict.fromkeys(cells("a/y", "a/x"), LATE)
    shown = text(matrix)
    assert "✓" in shown
    assert "✗" in shown
    assert "tcp" not in shown


@pytest.mark.parametrize(
    ("reached", "words"),
    [
        ([("IPv4", "tcp"), ("IPv6", "tcp")], "tcp"),
        ([("IPv4", "udp")], "udp4"),
        ([("IPv4", "tcp"), ("IPv6", "tcp"), ("IPv6", "icmp")], "tcp icmp6"),
    ],
)
def test_parts_are_named(reached: list[tuple[str, str]], words: str) -> None:
    asked = cells("a", "b")
    assert probe.summary(asked, [Cell("a", "b", *pair) for pair in reached]) == words


def test_what_is_not_as_expected_is_marked_and_listed() -> None:
    matrix = dict.fromkeys(cells("a/x", "a/y"), OK)
    assert "!" not in text(matrix, lambda _: True)
    assert "!" in text(matrix, lambda cell: cell.protocol != "udp")
    wrong = probe.differences(matrix, lambda cell: cell.protocol != "udp")
    assert [cell.family for cell, _ in wrong] == ["IPv4", "IPv6"]


def test_the_demo_says_what_to_expect_of_every_pair() -> None:
    targets = (*expectations.PODS, expectations.OUTSIDE)
    for source, target, family, protocol in product(expectations.PODS, targets, ("IPv4", "IPv6"), PROTOCOLS):
        if source != target:
            expectations.policies(Cell(source, target, family, protocol))
