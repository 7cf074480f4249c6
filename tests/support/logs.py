"""What programs of a lab have logged."""

from __future__ import annotations

import re
from pathlib import Path

_GIVEN_UP = re.compile(
    r"Fatal error on SSL protocol\nprotocol: .*\ntransport: .*\nTraceback \(most recent call last\):\n"
    r"(?:  .*\n)*RuntimeError: unable to perform operation on <TCPTransport closed=True .*;"
    r" the handler is closed\n"
)
"""What uvloop says by itself of a TLS connection that was given up because no answer came, when one comes
after all: a busy machine is enough for that."""


def assert_no_crash(directory: Path) -> None:
    """No program whose log is in a directory may have had an exception that nobody caught."""
    for log in sorted(directory.glob("*.log")):
        text = _GIVEN_UP.sub("", log.read_text(errors="replace"))
        assert "Traceback" not in text, text
