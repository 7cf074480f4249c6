"""Log lines: what others wrote can't make a terminal obey."""

from __future__ import annotations

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
