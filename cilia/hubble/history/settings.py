"""What an operator may set about history."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

EXTRA = ("pyarrow",)


class HistoryError(Exception):
    """History can't be kept as asked; the text says what to do."""


@dataclass(frozen=True, kw_only=True)
class HistorySettings:
    """Where sealed files live and how much they may take."""

    directory: Path
    """Made when missing, mode 0700; one agent each."""
    max_bytes: int = 1 << 30
    """Of all files together; the oldest go first."""
    max_age: float = 7 * 86_400.0
    """Seconds after the newest flow of a file."""
    interval: float = 60.0
    """Seconds a flow may wait before it is sealed: what a kill of the agent can cost."""
    block: int = 16_384
    """Rows sealed at once at most, where flows come faster than that."""
    merged: int = 131_072
    """Rows of a file at most: small ones are merged."""


def require_extra() -> None:
    """Raise HistoryError when the extra is not installed."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise HistoryError(
            f"history needs {', '.join(missing)}: install cilia with it (pip install 'cilia[history]'), "
            "or leave --hubble-history-dir out"
        )
