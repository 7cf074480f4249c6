"""What programs of a lab have logged."""

from __future__ import annotations

from pathlib import Path


def assert_no_crash(directory: Path) -> None:
    """No program whose log is in a directory may have had an exception that nobody caught."""
    for log in sorted(directory.glob("*.log")):
        text = log.read_text(errors="replace")
        assert "Traceback" not in text, text
