"""How the demo speaks: numbered steps with their times, one line for each thing that was checked."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
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
        self._recording = record
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
        self.console.print(Text.assemble(("   ✓ ", "green"), text), soft_wrap=not self._recording)

    @contextmanager
    def waiting(self, what: str) -> Iterator[Callable[[str], None]]:
        """Show that something goes on, on a terminal; yields how to say what. A recording stays still."""
        if self._recording or not self.console.is_terminal:
            yield lambda _: None
            return
        with self.console.status(what) as line:
            yield line.update

    def note(self, text: str) -> None:
        """Say something without judging it."""
        self.console.print(Text(f"     {text}", style="dim"), soft_wrap=not self._recording)

    def show(self, thing: RenderableType) -> None:
        """Print a table."""
        self.console.print(thing)

    def line(self, ansi: str) -> None:
        """Print a line of another program with its colours."""
        self.console.print(Text("   ") + Text.from_ansi(ansi), soft_wrap=not self._recording)

    def end(self, failure: Unexpected | None) -> None:
        """Say how it went."""
        seconds = time.monotonic() - self._started
        if failure is None:
            self.console.print(Text(f"everything as expected, {seconds:.1f} s", style="bold green"))
            return
        self.console.print(Text("not as expected", style="bold red"))
        self.console.print(Text(f"   expected: {failure.expected}"), soft_wrap=not self._recording)
        self.console.print(Text(f"   seen:     {failure.seen}"), soft_wrap=not self._recording)

    def save(self, path: Path) -> None:
        """Write what was printed: a picture for `.svg`, else text."""
        if path.suffix == ".svg":
            # A picture that loads no fonts from elsewhere: the reader's monospaced font will do.
            template = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
            self.console.save_svg(str(path), title="make demo", code_format=template)
        else:
            path.write_text(self.console.export_text())
