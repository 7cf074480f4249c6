"""`cilia record`: a file that reads back as what the server said."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from cilia.cli.errors import UserError
from cilia.cli.live import LiveLine, Rate
from cilia.cli.observe import observe
from cilia.cli.record import record
from cilia.hubble.store import Loss
from tests.support.hubble import WALL, Beside, beside, flow
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    with beside(tmp_path_factory.mktemp("record") / "hubble.sock") as running:
        running.append(
            *(flow(number) for number in range(30)), flow(31, kind=1, verdict=2, reason=133, state=0)
        )
        running.call(lambda: running.store.append([], [Loss(count=5, cpu=1)], offset=WALL))
        yield running


def run(running: Beside, *arguments: str) -> None:
    record([*arguments, "--server", running.target], prog_name="cilia record", standalone_mode=False)


def test_a_recording_reads_back(running: Beside, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "flows.json"
    run(running, str(file), "--all")
    told = capsys.readouterr().err
    assert told.startswith(f"{file}: 31 flows, at least 86.1 % complete")
    assert file.stat().st_mode & 0o777 == 0o600
    observe(["--input-file", str(file)], standalone_mode=False)
    from_file = capsys.readouterr()
    observe(["--server", running.target, "--all"], standalone_mode=False)
    assert capsys.readouterr() == from_file
    observe(["--input-file", str(file), "--verdict", "DROPPED"], standalone_mode=False)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_filters_and_limit(running: Beside, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drops, few = tmp_path / "drops", tmp_path / "few"
    run(running, str(drops), "--all", "--verdict", "DROPPED")
    run(running, str(few), "--follow", "--last", "30", "--limit", "7", "--not", "--verdict", "DROPPED")
    assert capsys.readouterr().err.count(" 7 flows") == 1
    assert drops.read_text().count("DROPPED") == drops.read_text().count('"flow"') == 1
    assert few.read_text().count('"flow":{') == 7


def test_what_is_there_is_not_overwritten(running: Beside, tmp_path: Path) -> None:
    file = tmp_path / "flows.json"
    run(running, str(file), "--last", "2")
    before = file.read_text()
    with pytest.raises(UserError, match="there already"):
        run(running, str(file), "--last", "2")
    assert file.read_text() == before
    run(running, str(file), "--last", "2", "--append")
    assert file.read_text() == before * 2


def test_a_place_that_cannot_be_written(running: Beside, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be written"):
        run(running, str(tmp_path / "nowhere" / "flows.json"))
    with pytest.raises(UserError, match="No space left"):
        run(running, "/dev/full", "--append", "--all")


def test_rates_are_those_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate(0.0, 0) == 0.0
    assert rate(1.0, 100) == 100.0
    assert rate(2.0, 300) == 150.0
    for second in range(3, 20):
        last = rate(float(second), 300)
    assert last == 0.0


def test_the_live_line_steps_aside_for_what_is_printed() -> None:
    terminal = io.StringIO()
    with LiveLine(lambda: 3, lambda: "3 flows, complete", on=True, out=terminal) as line:
        until(lambda: "flows/s" in terminal.getvalue(), "the line")
        line.print(lambda: print("a flow", file=terminal))
    told = terminal.getvalue()
    assert "0.0 flows/s; 3 flows, complete" in told
    assert "\r\x1b[2Ka flow\n" in told
    assert told.endswith(("\r\x1b[2K", "a flow\n"))


def test_without_a_terminal_there_is_no_line() -> None:
    out = io.StringIO()
    with LiveLine(lambda: 3, lambda: "", on=False, out=out) as line:
        line.print(lambda: print("a flow", file=out))
    assert out.getvalue() == "a flow\n"
