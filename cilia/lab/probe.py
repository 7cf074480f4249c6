"""Who reaches whom: ask the probers in the pods, all at once, and lay the answers out as a matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cilia.lab.control import ControlError, ask
from cilia.lab.records import PodRecord

PROTOCOLS = ("tcp", "udp", "sctp", "icmp")
TIMEOUT = 0.4
"""Seconds without an answer that mean no: far above a round trip in the lab, short enough to wait for."""


class Cell(msgspec.Struct, frozen=True, order=True):
    """One question of the matrix; source and target are `namespace/name`, or `outside`."""

    source: str
    target: str
    family: str
    protocol: str


class Result(msgspec.Struct, frozen=True):
    """The answer: `ok`, `timeout`, `refused`, `unreachable`, `prohibited`, or what else went wrong."""

    answer: str
    milliseconds: float = 0.0

    @property
    def reached(self) -> bool:
        """Whether the target answered."""
        return self.answer == "ok"


Matrix = dict[Cell, Result]
Expectation = Callable[[Cell], bool]
"""Whether a cell should be reached."""


def label(pod: PodRecord) -> str:
    """Return a pod's name as the matrix shows it."""
    return f"{pod.namespace}/{pod.name}" if pod.namespace else pod.name


def measure(
    sources: Sequence[PodRecord],
    targets: Sequence[PodRecord],
    *,
    protocols: Sequence[str] = PROTOCOLS,
    timeout: float = TIMEOUT,
) -> Matrix:
    """Ask every source about every other target at once; raises ControlError when a prober is gone."""
    with ThreadPoolExecutor(max_workers=max(1, len(sources))) as pool:
        parts = pool.map(lambda source: _ask(source, targets, protocols, timeout), sources)
    return {cell: result for part in parts for cell, result in part}


def _ask(
    source: PodRecord, targets: Sequence[PodRecord], protocols: Sequence[str], timeout: float
) -> list[tuple[Cell, Result]]:
    cells: list[Cell] = []
    questions: list[dict[str, Any]] = []
    for target in targets:
        if target.sandbox == source.sandbox:
            continue
        for address in target.ips:
            family = "IPv6" if ":" in address else "IPv4"
            for protocol in protocols:
                port = _port(target, protocol)
                if port is None:
                    continue
                cells.append(Cell(label(source), label(target), family, protocol))
                questions.append({"protocol": protocol, "address": address, "port": port, "timeout": timeout})
    if not questions:
        return []
    answers = ask(source.control_socket, {"probe": questions}, timeout=timeout + 10)["results"]
    if len(answers) != len(cells):
        raise ControlError(
            f"the prober of {label(source)} gave {len(answers)} answers to {len(cells)} questions"
        )
    results = (Result(str(answer["answer"]), float(answer["ms"])) for answer in answers)
    return list(zip(cells, results, strict=True))


def _port(target: PodRecord, protocol: str) -> int | None:
    """Return where to ask a target; None when it does not serve the protocol."""
    if protocol == "icmp":
        return 0
    return next((port for kind, port in target.ports if kind == protocol), None)


def differences(matrix: Matrix, expected: Expectation) -> list[tuple[Cell, Result]]:
    """Return the cells that are not as expected."""
    return sorted((cell, result) for cell, result in matrix.items() if result.reached != expected(cell))


def render(matrix: Matrix, expected: Expectation | None = None, title: str = "") -> Table:
    """Lay a matrix out: a row per source, a column per target; a source's column has its row's number.

    A cell shows a tick when all protocols reached it over all families, a cross when none did, else those
    that did (`tcp` over both families, `tcp4` over IPv4 only). With an expectation, a cell that differs from
    it is marked with an exclamation mark.
    """
    sources, targets = _names(cell.source for cell in matrix), _names(cell.target for cell in matrix)
    numbers = {name: str(number) for number, name in enumerate(sources, 1)}
    targets.sort(key=lambda name: name not in numbers)
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("from \\ to", style="bold", no_wrap=True)
    for target in targets:
        table.add_column(numbers.get(target, target), no_wrap=True)
    for source in sources:
        table.add_row(
            f"{numbers[source]} {source}",
            *(_cell_text(matrix, source, target, expected) for target in targets),
        )
    return table


def _names(names: Iterable[str]) -> list[str]:
    return sorted(set(names))


def _cell_text(matrix: Matrix, source: str, target: str, expected: Expectation | None) -> Text:
    cells = [cell for cell in matrix if (cell.source, cell.target) == (source, target)]
    if not cells:
        return Text("·", style="dim")
    reached = [cell for cell in cells if matrix[cell].reached]
    if len(reached) == len(cells):
        text = Text("✓", style="bold green")
    elif not reached:
        text = Text("✗", style="bold red")
    else:
        text = Text(summary(cells, reached), style="yellow")
    if expected is not None and any(expected(cell) != matrix[cell].reached for cell in cells):
        text.append(" !", style="bold reverse red")
    return text


def summary(cells: Sequence[Cell], reached: Sequence[Cell]) -> str:
    """Name what was reached: `tcp udp4` is TCP over all families asked, UDP over IPv4 only."""
    words = []
    for protocol in PROTOCOLS:
        asked = {cell.family for cell in cells if cell.protocol == protocol}
        got = {cell.family for cell in reached if cell.protocol == protocol}
        if got:
            words.append(protocol if got == asked else protocol + "".join(sorted(name[-1] for name in got)))
    return " ".join(words)


def describe(cell: Cell, result: Result, expected: bool) -> str:
    """Say in one line how a cell differs."""
    wanted = "reaches" if expected else "does not reach"
    seen = (
        f"it answered in {result.milliseconds} ms" if result.reached else f"the answer was {result.answer!r}"
    )
    return f"{cell.source} -> {cell.target} {cell.family} {cell.protocol}: expected that it {wanted}, {seen}"
