"""How the demo speaks: numbered steps with their times, one line for each thing that was checked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text


class Unexpected(Exception):
    """A step did not come out as it must: what was expected, and what was seen."""

    def __init__(self, expected: str, seen: str) -> None:
        super().__init__(f"expected {expected}; seen: {seen}")
        self.expected = expected
        self.seen = seen


class Stage:
    """Prints the demo, and keeps what it printed when asked to record."""

    def __init__(self, *, record: bool = False, width: int | None = None) -> None:
        self.console = Console(
            record=record, width=width, highlight=False, force_terminal=True if record else None
        )
        self._number = 0
        self._started = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a step and, when it went well, say how long it took."""
        self._number += 1
        started = time.monotonic()
        self.console.print(Text.assemble((f"{self._number}. ", "bold cyan"), (title, "bold")))
        yield
        self.console.print(Text(f"   {time.monotonic() - started:.1f} s", style="dim"))

    def done(self, text: str) -> None:
        """Say something that was checked and holds."""
        self.console.print(Text.assemble(("   ✓ ", "green"), text), soft_wrap=True)

    def note(self, text: str) -> None:
        """Say something without judging it."""
        self.console.print(Text(f"     {text}", style="dim"), soft_wrap=True)

    def show(self, thing: RenderableType) -> None:
        """Print a table."""
        self.console.print(thing)

    def line(self, ansi: str) -> None:
        """Print a line of another program with its colours."""
        self.console.print(Text("   ") + Text.from_ansi(ansi), soft_wrap=True)

    def end(self, failure: Unexpected | None) -> None:
        """Say how it went."""
        seconds = time.monotonic() - self._started
        if failure is None:
            self.console.print(Text(f"everything as expected, {seconds:.1f} s", style="bold green"))
            return
        self.console.print(Text("not as expected", style="bold red"))
        self.console.print(Text(f"   expected: {failure.expected}"), soft_wrap=True)
        self.console.print(Text(f"   seen:     {failure.seen}"), soft_wrap=True)

    def save(self, path: Path) -> None:
        """Write what was printed: a picture for `.svg`, else text."""
        if path.suffix == ".svg":
            self.console.save_svg(str(path), title="make demo")
        else:
            path.write_text(self.console.export_text())
