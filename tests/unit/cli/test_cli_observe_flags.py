"""The flags of `hubble observe`: what they ask for, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cilia.cli import observe as module
from cilia.cli.errors import UserError
from cilia.cli.observe import observe
from cilia.proto.observer import observer_pb2

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HUBBLE_SERVER", "CILIA_HUBBLE_SOCKET", "HUBBLE_ALLOWLIST", "HUBBLE_DENYLIST"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str) -> None:
    observe(list(arguments), prog_name="cilia observe", standalone_mode=False)


def raw(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[Any], list[Any]]:
    """Allowlist and denylist."""
    run(*arguments, "--print-raw-filters")
    lists: dict[str, list[Any]] = {"allowlist:": [], "denylist:": []}
    title = ""
    for line in capsys.readouterr().out.splitlines():
        if line in lists:
            title = line
        else:
            lists[title].append(json.loads(line.strip()[3:-1].replace("''", "'")))
    return lists["allowlist:"], lists["denylist:"]


EITHER = [{"source_pod": ["a/x", "b/x"]}, {"destination_pod": ["a/x", "b/x"]}]


@pytest.mark.parametrize(
    ("arguments", "allow"),
    [
        ("-n a -n b --pod x", EITHER),
        ("-n a,b --pod x", EITHER),
        ("-n a --service web", [{"source_service": ["a/web"]}, {"destination_service": ["a/web"]}]),
        ("--to-namespace a --to-service web --to-pod x",
         [{"destination_pod": ["a/x"], "destination_service": ["a/web"]}]),
        ("--from-namespace a --to-namespace b", [{"source_pod": ["a/"], "destination_pod": ["b/"]}]),
        ("-n a --from-ip 10.0.0.1",
         [{"source_ip": ["10.0.0.1"], "source_pod": ["a/"]},
          {"source_ip": ["10.0.0.1"], "destination_pod": ["a/"]}]),
        ("-A --pod x", [{"source_pod": ["/x"]}, {"destination_pod": ["/x"]}]),
        ("-A --verdict DROPPED", [{"verdict": ["DROPPED"]}]),
        ("--to-all-namespaces --to-pod x", [{"destination_pod": ["/x"]}]),
        ("--snat-ip 192.0.2.0/24", [{"source_ip_xlated": ["192.0.2.0/24"]}]),
        ("--ip-version v6 --ip-version none", [{"ip_version": ["IPv6", "IP_NOT_USED"]}]),
        ("--http-header a:b:c", [{"http_header": [{"key": "a", "value": "b:c"}]}]),
        ("--trace-id abc --ip-trace-id 7", [{"trace_id": ["abc"], "ip_trace_id": ["7"]}]),
        ("--cel-expression true --cel-expression false",
         [{"experimental": {"cel_expression": ["true", "false"]}}]),
        ("--encrypted --reply", [{"encrypted": [True], "reply": [True]}]),
        ("-t capture -t l7", [{"event_type": [{"type": 3}, {"type": 129}]}]),
        ("flows --verdict AUDIT", [{"verdict": ["AUDIT"]}]),
    ],
)  # fmt: skip
def test_flags_become_filters(
    capsys: pytest.CaptureFixture[str], arguments: str, allow: list[dict[str, Any]]
) -> None:
    assert raw(capsys, *arguments.split()) == (allow, [])


def test_namespaces_that_must_not_match(capsys: pytest.CaptureFixture[str]) -> None:
    expected = [{"source_pod": ["a/"]}, {"destination_pod": ["a/"]}]
    assert raw(capsys, "--not", "-n", "a") == ([], expected)
    assert raw(capsys, "--pod", "b/x", "--not", "-n", "a")[1] == expected


def test_filters_in_json_stand_beside_flags(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = '{"verdict":["DROPPED"]} {"source_pod":["a/it\'s"]}'
    allow, deny = raw(capsys, "--port", "80", "--allowlist", two, "--denylist", '{"uuid":["x"]}')
    assert allow[2:] == [{"verdict": ["DROPPED"]}, {"source_pod": ["a/it's"]}]
    assert deny == [{"uuid": ["x"]}]
    monkeypatch.setenv("HUBBLE_DENYLIST", '{"uuid":["y"]}')
    assert raw(capsys) == ([], [{"uuid": ["y"]}])


def test_what_is_printed_can_be_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    allow, _ = raw(capsys, "-n", "a", "--tcp-flags", "SYN", "-t", "trace:to-host", "--workload", "Job/x")
    texts = [part for each in allow for part in ("--allowlist", json.dumps(each))]
    assert raw(capsys, *texts)[0] == allow


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--pod a --from-pod b", "--pod and --from-pod exclude each other"),
        ("--to-port 1 --port 2", "--port and --to-port exclude"),
        ("-n a --pod b/x", "'b/x' is not in a"),
        ("--not --not --pod a", "twice"),
        ("--pod a --not", "--not stands before"),
        ("--http-header novalue", "name:value"),
        ("--ip-trace-id 0", "greater than 0"),
        ("--ip-version 5", "v4, v6 or none"),
        ("--allowlist {", "filters as JSON"),
        ("--allowlist []", "filters as JSON"),
        ('--denylist {"verdict":["MAYBE"]}', "filters as JSON"),
        ("--follow -o table", "a table ends"),
        ("--field-mask uuid", "-o json"),
        ("--all --last 3", "exclude each other"),
        ("--server example.com:1 --basic-auth-username a --basic-auth-password b", "plain text"),
        ("--tls", "takes no TLS"),
        ("--server tls://127.0.0.1:1 --tls-ca-cert-files /nonexistent", "/nonexistent can't be read"),
        ("--server tls://127.0.0.1:1 --tls-client-key-file /nonexistent", "needs its"),
        ("--server 127.0.0.1:1", "nobody answers at"),
        ("--identity 4294967296", "is no identity: numbers end at 4294967295"),
        (f"--identity {'9' * 5000}", r"999\.\.\.' is no identity"),
        ("--identity ²", "unknown identity"),
        ("--type 2147483648", "is no type"),
        ("--type 4:99999999999", "is no sub-type"),
        ("--interface 99999999999", "is no interface"),
        ("--verdict 99999999999", "is no verdict"),
        ("--ip-trace-id 18446744073709551616", "is no IP trace ID"),
        ("--token-file /nonexistent", "/nonexistent can't be read"),
        ("--basic-auth-username a", "belong together"),
    ],
)
def test_mistakes_are_one_sentence(arguments: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(*arguments.split())


@pytest.mark.parametrize(
    ("typed", "same"),
    [
        ("--not=true --pod=a --ipv4=true", "--not --pod a --ipv4"),
        ("--not=false --pod=a --ipv4=false --reply=false", "--pod a --no-reply"),
        ("--reply=TRUE", "--reply"),
    ],
)
def test_switches_take_a_word(typed: str, same: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("--print-raw-filters", *same.split())
    wanted = capsys.readouterr().out
    run("--print-raw-filters", *typed.split())
    assert capsys.readouterr().out == wanted != ""


@pytest.mark.parametrize("number", ["-1", "many", str(2**63), "9" * 30])
def test_a_number_of_flows_that_is_none(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        observe(["--last", number], prog_name="cilia observe")
    assert end.value.code == 2 and "--last" in capsys.readouterr().err


def test_an_unknown_duration_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        observe(["--timeout", "soon"], prog_name="cilia observe")
    assert end.value.code == 2
    assert "no duration" in capsys.readouterr().err


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[observer_pb2.GetFlowsRequest]]:
    """Requests in place of a server."""
    requests: list[observer_pb2.GetFlowsRequest] = []

    class Asked:
        def __enter__(self) -> Asked:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def get_flows(self, request: observer_pb2.GetFlowsRequest) -> list[observer_pb2.GetFlowsResponse]:
            requests.append(request)
            return []

    monkeypatch.setattr(module, "connected", lambda _ctx: Asked())
    yield requests


@pytest.mark.parametrize(
    ("arguments", "number", "first"),
    [
        ("", 20, False),
        ("--last 5", 5, False),
        ("--first 5", 5, True),
        ("--all", 2**63 - 1, False),
        ("--follow", 0, False),
        ("--since 5m", 0, False),
        ("--since 5m --last 3", 3, False),
    ],
)
def test_how_many(
    asked: list[observer_pb2.GetFlowsRequest], arguments: str, number: int, first: bool
) -> None:
    run(*arguments.split())
    assert (asked[0].number, asked[0].first) == (number, first)


def test_masks(asked: list[observer_pb2.GetFlowsRequest]) -> None:
    run("--json", "--field-mask", "source.pod_name,verdict", "--field-mask", "uuid")
    run("--experimental-use-default-field-masks")
    run("-o", "json", "--use-default-field-masks")
    assert list(asked[0].field_mask.paths) == ["source.pod_name", "verdict", "uuid"]
    assert asked[1].field_mask.IsValidForDescriptor(observer_pb2.GetFlowsResponse().flow.DESCRIPTOR)
    assert "verdict" in asked[1].field_mask.paths
    assert not asked[2].field_mask.paths


def test_a_recording_is_read_like_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"flow": {"verdict": verdict, "uuid": str(number), "IP": {"source": f"10.0.0.{number}"}},
         "node_name": "n", "time": f"2026-11-23T10:00:0{number}Z"}
        for number, verdict in enumerate(["FORWARDED", "DROPPED", "FORWARDED", "DROPPED"])
    ]  # fmt: skip
    lost = {"lost_events": {"source": "HUBBLE_RING_BUFFER", "num_events_lost": "4"}}
    bare = {"verdict": "DROPPED", "uuid": "bare", "time": "2026-11-23T10:00:09Z", "an_unknown_field": 1}
    file = tmp_path / "flows.json"
    file.write_text("\n".join(map(json.dumps, [*lines, lost, bare])) + "\n\n")

    def uuids(*arguments: str) -> list[str]:
        run("--input-file", str(file), "-j", *arguments)
        found = map(json.loads, capsys.readouterr().out.splitlines())
        return [each["flow"]["uuid"] for each in found if "flow" in each]

    assert uuids() == ["0", "1", "2", "3", "bare"]
    assert uuids("--verdict", "DROPPED") == ["1", "3", "bare"]
    assert uuids("--not", "--verdict", "DROPPED", "--last", "1") == ["2"]
    assert uuids("--verdict", "DROPPED", "--first", "1") == ["1"]
    assert uuids("--since", "2026-11-23T10:00:02Z", "--until", "2026-11-23T10:00:03Z") == ["2", "3"]
    assert uuids("--from-ip", "10.0.0.2/31") == ["2", "3"]
    run("--input-file", str(file))
    assert capsys.readouterr().err.splitlines()[-1].startswith("5 flows, at least 55.5 % complete")
    run("--input-file", str(file), "--silent-errors")
    assert capsys.readouterr().err == ""
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="no text"):
        run("--input-file", str(file))
    file.write_text('{"flow": {}}\n{"flow": 7}\n')
    with pytest.raises(UserError, match=r"^line 2 of .* is not a flow, as -o json prints them") as told:
        run("--input-file", str(file))
    assert len(str(told.value)) < 500


def test_importing_the_command_loads_neither_numpy_nor_rich_nor_tls() -> None:
    heavy = ["numpy", "rich", "structlog", "cryptography", "http.client", "cel", "h2"]
    code = f"import sys, cilia.cli.observe; print([n for n in {heavy!r} if n in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
