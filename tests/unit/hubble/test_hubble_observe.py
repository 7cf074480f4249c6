"""What `cilia observe` asks for, and how it prints the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from cilia.cli import flows
from cilia.cli.moments import parse_moment
from cilia.cli.observe import observe
from cilia.cli.options import UserError
from cilia.hubble.store import Loss
from cilia.proto.observer import observer_pb2
from tests.support.hubble import ALLOW_WEB, DEFAULT_DENY, WALL, Beside, beside, flow

SOCKET_AFTER = {"type": 7, "match_sub_type": True, "sub_type": 2}

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    with beside(tmp_path_factory.mktemp("observe") / "hubble.sock") as running:
        running.append(
            flow(1),
            flow(2, kind=3, ingress_match=2, ingress_cookie=ALLOW_WEB),
            flow(3, kind=1, verdict=2, reason=133, state=0, ingress_cookie=DEFAULT_DENY, point=0),
            flow(4, flags=1, state=3, tcp_flags=18),
            flow(5, destination="192.0.2.80", destination_identity=2, destination_endpoint=0, protocol=17),
        )
        yield running


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUBBLE_SERVER", raising=False)
    monkeypatch.delenv("CILIA_HUBBLE_SOCKET", raising=False)


def run(running: Beside | None, *arguments: str) -> None:
    server = ["--server", f"unix://{running.path}"] if running else []
    with pytest.raises(SystemExit) as end:
        observe([*server, *arguments], prog_name="cilia observe")
    assert end.value.code == 0


def raw_filters(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, list[dict[str, Any]]]:
    run(None, *arguments, "--print-raw-filters")
    found: dict[str, list[dict[str, Any]]] = {}
    title = ""
    for line in capsys.readouterr().out.splitlines():
        if line.endswith(":"):
            title = line.rstrip(":")
            found[title] = []
        else:
            found[title].append(json.loads(line.strip()[3:-1]))
    return found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--verdict", "dropped"], {"allowlist": [{"verdict": ["DROPPED"]}]}),
        (
            ["--service", "demo/web", "--type", "trace-sock:post-xlate-fwd"],
            {
                "allowlist": [
                    {"source_service": ["demo/web"], "event_type": [SOCKET_AFTER]},
                    {"destination_service": ["demo/web"], "event_type": [SOCKET_AFTER]},
                ]
            },
        ),
        (
            ["--pod", "demo/web", "--port", "80"],
            {
                "allowlist": [
                    {"source_pod": ["demo/web"], "source_port": ["80"]},
                    {"destination_pod": ["demo/web"], "destination_port": ["80"]},
                ]
            },
        ),
        (
            ["--from-pod", "demo/a", "--to-pod", "demo/b", "--to-pod", "demo/c"],
            {"allowlist": [{"source_pod": ["demo/a"], "destination_pod": ["demo/b", "demo/c"]}]},
        ),
        (
            ["--not", "--protocol", "icmp", "--protocol", "tcp"],
            {"allowlist": [{"protocol": ["tcp"]}], "denylist": [{"protocol": ["icmp"]}]},
        ),
        (
            ["-n", "demo", "--pod", "web"],
            {"allowlist": [{"source_pod": ["demo/web"]}, {"destination_pod": ["demo/web"]}]},
        ),
        (["--from-namespace", "demo"], {"allowlist": [{"source_pod": ["demo/"]}]}),
        (["--to-identity", "world,4321"], {"allowlist": [{"destination_identity": [2, 4321]}]}),
        (
            ["-t", "trace:to-endpoint", "-t", "drop"],
            {
                "allowlist": [
                    {"event_type": [{"type": 4, "match_sub_type": True}, {"type": 1}]}
                ]
            },
        ),
        (["-6", "--traffic-direction", "egress"],
         {"allowlist": [{"traffic_direction": ["EGRESS"], "ip_version": ["IPv6"]}]}),
        (["--drop-reason-desc", "policy-denied"], {"allowlist": [{"drop_reason_desc": ["POLICY_DENIED"]}]}),
        (["--tcp-flags", "syn,ack"], {"allowlist": [{"tcp_flags": [{"SYN": True, "ACK": True}]}]}),
        (["--label", "app in (a,b)"],
         {"allowlist": [{"source_label": ["app in (a,b)"]}, {"destination_label": ["app in (a,b)"]}]}),
        (["--from-workload", "Deployment/web"],
         {"allowlist": [{"source_workload": [{"name": "web", "kind": "Deployment"}]}]}),
        (["--no-reply"], {"allowlist": [{"reply": [False]}]}),
        ([], {}),
    ],
)  # fmt: skip
def test_flags_become_filters(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: dict[str, Any]
) -> None:
    assert raw_filters(capsys, *arguments) == expected


def test_compact_lines(running: Beside, capsys: pytest.CaptureFixture[str]) -> None:
    run(running, "--time-format", "RFC3339Micro")
    out, err = capsys.readouterr()
    lines = [line.split(": ", 1)[1] for line in out.splitlines()]
    client, server = "demo/client-5f:1000{} (ID:4321)", "demo/server-0:8080 (ID:1234)"
    assert lines == [
        f"{client.format(1)} -> {server} to-endpoint FORWARDED (TCP Flags: SYN)",
        f"{client.format(2)} -> {server} policy-verdict:L3-L4 INGRESS ALLOWED (TCP Flags: SYN)"
        " by CiliumNetworkPolicy demo/allow-web spec.ingress[0]",
        f"{client.format(3)} <> {server} Policy denied DROPPED (TCP Flags: SYN)"
        " by default deny of CiliumNetworkPolicy demo/allow-web spec, NetworkPolicy demo/isolate spec",
        f"{server} <- {client.format(4)} to-endpoint FORWARDED (TCP Flags: SYN, ACK)",
        f"{client.format(5)} -> www.example.com:8080 (world) to-endpoint FORWARDED (UDP)",
    ]
    assert err == "5 flows, complete\n"


def test_services_stand_before_who_answers_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"original_destination": "10.96.0.7", "original_destination_port": 80, "service": 9}
    with beside(tmp_path / "hubble.sock") as running:
        running.append(
            flow(1, **asked),
            flow(2, service=9, flags=1, state=3, tcp_flags=18),
            flow(
                3,
                kind=4,
                point=1,
                verdict=2,
                reason=158,
                state=0,
                service=9,
                destination="10.96.0.7",
                destination_endpoint=0,
            ),
        )
        run(running)
        first, second, third = capsys.readouterr().out.splitlines()
        assert "-> demo/web (demo/server-0:8080) (ID:1234) to-endpoint FORWARDED" in first
        assert first.endswith("(TCP Flags: SYN, via 10.96.0.7:80)")
        assert "demo/web (demo/client-5f:10002)" in second and "<-" in second
        assert "demo/web (10.96.0.7:8080)" in third and "Service backend not found DROPPED" in third
        run(running, "--to-service", "demo/web", "--numeric")
        assert "demo/web" not in capsys.readouterr().out


def test_colours_only_when_asked(running: Beside, capsys: pytest.CaptureFixture[str]) -> None:
    run(running, "--color", "always", "--verdict", "DROPPED")
    assert "\x1b[31mDROPPED\x1b[0m" in capsys.readouterr().out
    run(running, "--verdict", "DROPPED", "--no-print-policy-names", "--numeric")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "10.0.1.5:10003 (ID:4321)" in out
    assert "CiliumNetworkPolicy" not in out


def test_json_is_that_of_the_messages_and_reads_back(
    running: Beside, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(running, "-o", "json", "--last", "2")
    out, err = capsys.readouterr()
    assert err == ""
    first = json.loads(out.splitlines()[0])
    assert first.keys() == {"flow", "node_name", "time"}
    assert first["flow"]["IP"] == {"source": "10.0.1.5", "destination": "10.0.1.6", "ipVersion": "IPv4"}
    assert first["flow"]["is_reply"] is True
    json_format.ParseDict(first, observer_pb2.GetFlowsResponse())
    saved = tmp_path / "flows.json"
    saved.write_text(out)
    run(None, "--input-file", str(saved), "--last", "1")
    assert "www.example.com" in capsys.readouterr().out


def test_table_and_dict(running: Beside, capsys: pytest.CaptureFixture[str]) -> None:
    run(running, "-o", "table", "--first", "2")
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["TIMESTAMP", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY", "RULE"]
    assert first.index("demo/server-0") == second.index("demo/server-0") == header.index("DESTINATION")
    run(running, "-o", "dict", "--first", "1")
    assert "    VERDICT: FORWARDED\n" in capsys.readouterr().out


def test_a_gap_is_told_where_it_was_and_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with beside(tmp_path / "hubble.sock") as running:
        running.append(flow(1))
        running.call(lambda: running.store.append([], [Loss(count=5, cpu=1)], offset=WALL))
        run(running)
    err = capsys.readouterr().err
    assert "EVENTS LOST: PERF_EVENT_RING_BUFFER CPU(1) 5" in err
    last = err.splitlines()[-1]
    assert last.startswith("1 flow, at least 16.6 % complete: missing <= 5 from Nov ")
    assert last.endswith(" (5 on cpu 1)")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--verdict", "maybe"], "verdict"),
        (["--not"], "--not"),
        (["--since", "5x"], "5x"),
        (["--first", "1", "--last", "1"], "exclude"),
        (["--first", "1", "-f"], "exclude"),
        (["--type", "dump"], "dump"),
        (["--type", "trace:nowhere"], "observation point"),
        (["--identity", "me"], "identity"),
        (["--tcp-flags", "NONE"], "NONE"),
        (["--server", "unix:///nonexistent/hubble.sock"], "agent running"),
        (["--input-file", "/nonexistent"], "/nonexistent"),
        (["--input-file", "-", "--ip", "a.b"], "neither an IP"),
    ],
)
def test_mistakes_are_answered_with_one_sentence(arguments: list[str], word: str) -> None:
    with pytest.raises(UserError, match=word):
        observe(arguments, prog_name="cilia observe", standalone_mode=False)


def test_a_filter_the_server_refuses_is_told(running: Beside) -> None:
    with pytest.raises(UserError, match="regular expression"):
        observe(["--server", f"unix://{running.path}", "--http-path", "/(x"], standalone_mode=False)


NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("5m", NOW - timedelta(minutes=5)),
        ("1h30m", NOW - timedelta(minutes=90)),
        ("1.5s", NOW - timedelta(seconds=1.5)),
        ("5 minutes ago", NOW - timedelta(minutes=5)),
        ("an hour ago", NOW - timedelta(hours=1)),
        ("now", NOW),
        ("yesterday", datetime(2026, 11, 22, tzinfo=UTC)),
        ("9:05", datetime(2026, 11, 23, 9, 5, tzinfo=UTC)),
        ("2026-11-20", datetime(2026, 11, 20, tzinfo=UTC)),
        ("2026-11-20T10:00:00Z", datetime(2026, 11, 20, 10, tzinfo=UTC)),
        ("2026-11-20T10:00:00.5+01:00", datetime(2026, 11, 20, 9, 0, 0, 500_000, tzinfo=UTC)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    assert parse_moment(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "5x", "tomorrow-ish", "25:00", "5m later"])
def test_moments_nobody_understands(text: str) -> None:
    with pytest.raises(ValueError, match="not a time"):
        parse_moment(text, NOW)


@pytest.mark.parametrize("text", ["999999999d", "99999999999999 weeks ago"])
def test_moments_before_all_calendars(text: str) -> None:
    with pytest.raises(ValueError, match="before all calendars"):
        parse_moment(text, NOW)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (flows.TimeFormat.STAMP, "Nov  3 04:05:06.123"),
        (flows.TimeFormat.RFC3339, "2026-11-03T04:05:06Z"),
        (flows.TimeFormat.NANO, "2026-11-03T04:05:06.123456789Z"),
        (flows.TimeFormat.RFC1123, "Tue, 03 Nov 2026 04:05:06 +0000"),
    ],
)
def test_times(form: flows.TimeFormat, text: str) -> None:
    response = observer_pb2.GetFlowsResponse()
    response.time.FromJsonString("2026-11-03T04:05:06.123456789Z")
    assert flows.moment(response.time, flows.Style(time_format=form)) == text
