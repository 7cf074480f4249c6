"""`cilia flows sql` and `cilia.flows`, over a running observer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import cilia
from cilia.cli.flow_filters import FlagError
from cilia.cli.flow_frames import make_request
from cilia.hubble.frames.frame import FrameError
from cilia.hubble.rpc.messages import RpcError
from cilia.hubble.store import Loss
from cilia.proto.flow import flow_pb2
from tests.support.hubble import DEFAULT_DENY, WALL, Beside, beside, flow

pytestmark = pytest.mark.timeout(90)
SINCE = "2026-11-01"
COUNT = "select verdict, count(*) as n from flows group by all order by n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    with beside(tmp_path_factory.mktemp("hubble") / "hubble.sock") as running:
        dropped = {"kind": 1, "verdict": 2, "reason": 133, "ingress_cookie": DEFAULT_DENY}
        running.append(*(flow(number, **(dropped if number % 5 == 0 else {})) for number in range(50)))
        gap = Loss(count=7, cpu=0, first=45_000_000, last=49_500_000)
        running.call(lambda: running.store.append([], [gap], offset=WALL))
        yield running


def sql(running: Beside, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "cilia.apps.ctl", "flows", "sql", "--since", SINCE, *arguments],
        env={**os.environ, "HUBBLE_SERVER": running.target, "TERM": "dumb"},
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_a_table_is_printed_and_how_complete_it_is(running: Beside) -> None:
    done = sql(running, COUNT)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert lines == [["verdict", "n"], ["DROPPED", "10"], ["FORWARDED", "40"]]
    assert done.stderr.decode().strip() == "50 flows, 7 lost"


def test_answers_for_programs(running: Beside, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in sql(running, "-o", "json", COUNT).stdout.splitlines()]
    assert rows == [{"verdict": "DROPPED", "n": 10}, {"verdict": "FORWARDED", "n": 40}]
    first = "select time, source_pod, uuid from flows limit 1"
    header, row = sql(running, "-o", "csv", first).stdout.decode().splitlines()
    assert header == '"time","source_pod","uuid"'
    assert row.startswith('"2026-11-') and '.000000000Z","client-5f",' in row
    (tmp_path / "out.parquet").write_bytes(sql(running, "-o", "parquet", "from flows").stdout)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 50


def test_filters_go_to_the_server(running: Beside) -> None:
    done = sql(running, "-o", "json", "--verdict", "DROPPED", "--pod", "demo/server", COUNT)
    assert json.loads(done.stdout) == {"verdict": "DROPPED", "n": 10}
    assert b"10 flows" in done.stderr
    assert b"0 flows" in sql(running, "-n", "elsewhere", COUNT).stderr
    assert b"(no rows)" in sql(running, "-n", "elsewhere", COUNT).stdout
    assert b"3 flows" in sql(running, "--last", "3", COUNT).stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["copy flows to '/tmp/x.csv'"], "only one SELECT"),
        (["select nothing from flows"], "nothing"),
        (["--limit", "5", COUNT], "more than 5 flows"),
        (["--verdict", "MAYBE", COUNT], "unknown verdict"),
        (["--until", "soon", COUNT], "not a time"),
        (["--server", "unix:///nowhere/hubble.sock", COUNT], "--server"),
    ],
)
def test_mistakes_are_one_sentence(running: Beside, arguments: list[str], sentence: str) -> None:
    done = sql(running, *arguments)
    assert done.returncode == 1
    assert sentence in done.stderr.decode()
    assert done.stderr.decode().startswith("cilia: ") and done.stderr.count(b"\n") == 1


def test_flows_of_python(running: Beside) -> None:
    frame = cilia.flows(running.target, since=SINCE, verdict="DROPPED", without={"to_pod": "demo/client"})
    assert len(frame) == 10
    assert frame.completeness.lost == 7
    assert set(frame.pandas()["policies"]) == {"demo/allow-web,demo/isolate"}
    assert len(cilia.flows(running.target, last=12)) == 12
    assert len(cilia.flows(running.target, first=12, type=["drop", "trace"])) == 12
    moment = datetime.fromtimestamp(WALL / 1e9 + 0.02, UTC)
    assert len(cilia.flows(running.target, since=moment, until=moment)) == 1
    with pytest.raises(FlagError, match="unknown filter 'pods'"):
        cilia.flows(running.target, pods="x")
    with pytest.raises(FrameError, match="narrow"):
        cilia.flows(running.target, since=SINCE, limit=10)
    with pytest.raises(RpcError):
        cilia.flows("/nowhere")


def test_requests_are_those_of_observe() -> None:
    request = make_request(
        since=None, until=None, last=None, first=5, filters={"from_pod": ["a/b", "c/d"], "reply": False},
        without={"type": "l7"},
    )  # fmt: skip
    assert request.first and request.number == 5
    assert list(request.whitelist) == [flow_pb2.FlowFilter(source_pod=["a/b", "c/d"], reply=[False])]
    assert request.blacklist[0].event_type[0].type == 129
    with pytest.raises(ValueError, match="exclude each other"):
        make_request(since=None, until=None, last=1, first=1, filters={}, without={})


def test_importing_cilia_imports_neither_arrow_nor_the_rest() -> None:
    code = "import cilia, sys; print([n for n in ('pyarrow', 'duckdb', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=True)
    assert done.stdout.decode().strip() == "[]"
