"""How a history stands, for /metrics and status pages."""

from __future__ import annotations

import msgspec


class HistoryNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """Counted, never guessed."""

    files: int = 0
    bytes: int = 0
    rows: int = 0
    oldest: int | None = None
    """Nanoseconds since the epoch of the earliest row; None: there is none."""
    lost: int = 0
    """Rows that were overwritten before they could be sealed."""
    failures: int = 0
    """Attempts to seal that failed; each is made again."""
    problem: str = ""
    """Why the last attempt failed, in one sentence; empty: it went well."""

    @property
    def failing(self) -> bool:
        """The last attempt to seal failed."""
        return bool(self.problem)
