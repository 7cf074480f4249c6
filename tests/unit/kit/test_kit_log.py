"""Log lines: what others wrote can't make a terminal obey."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import structlog

from cilia.kit import log


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_a_terminal_obeys_is_spelt_out(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", style)  # type: ignore[arg-type]
    logger = structlog.get_logger()
    logger.warning("heard\x1b[2J", name="evil\x1b]0;t\x07\x9b31m", path="a b\x1b[1mc\nnext")
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        logger.exception("failed")
    told = capsys.readouterr().err
    assert "heard" in told and "evil" in told and "ValueError" in told
    assert not set("\x1b\x07\x9b") & set(told)


LIBRARIES = """
import asyncio, logging, sys
from cilia.kit import log

log.configure("info", sys.argv[1])
logging.getLogger("asyncio").info("not worth a line")
logging.getLogger("some.library").warning("half %s", "full")


async def fail():
    loop = asyncio.get_running_loop()
    faults = {"Fatal error on SSL protocol": OSError("gone"), "A task ended": ValueError("odd")}
    for message, error in faults.items():
        loop.call_exception_handler({"message": message, "exception": error})


asyncio.run(fail())
"""


def lines(style: str) -> list[str]:
    """What a process logs of its libraries."""
    done = subprocess.run(
        [sys.executable, "-c", LIBRARIES, style], check=True, capture_output=True, text=True
    )
    return done.stderr.splitlines()


def test_libraries_lines_are_like_ours() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIBRARIES, "json"], check=True, capture_output=True, text=True
    )
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["level"], line["event"]) for line in told] == [
        ("warning", "half full"),
        ("warning", "A connection broke: gone"),
        ("error", "A task ended"),
    ]
    assert "ValueError: odd" in told[2]["exception"]
    assert all("timestamp" in line for line in told)


def test_a_connection_that_breaks_is_one_line_of_text() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIBRARIES, "text"], check=True, capture_output=True, text=True
    )
    (line,) = (line for line in done.stderr.splitlines() if "gone" in line)
    assert "warning" in line and "A connection broke: gone" in line
    assert done.stderr.count("Traceback") <= 1
