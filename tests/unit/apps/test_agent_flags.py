"""The agent's command line: what it understands stays understood, and becomes settings."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from cilia.apps.agent import main
from cilia.apps.agent.settings import AgentSettings
from cilia.apps.agent.settings.agent import PARTS

KNOWN = Path(__file__).with_name("agent_flags.txt").read_text().splitlines()
"""Each flag with its variable. People have them in their files: lines are added here, and stay."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[AgentSettings]:
    """What an agent would have been started with."""
    found: list[AgentSettings] = []

    def start(settings: AgentSettings) -> int:
        found.append(settings)
        return 0

    for name in [name for name in os.environ if name.startswith("CILIA_") or name == "KUBECONFIG"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(main, "start", start)
    return found


def run(*words: str, **variables: str) -> tuple[int, str]:
    """Exit code and all that was said."""
    done = CliRunner().invoke(main.app, words, env=variables)
    return done.exit_code, done.output


def test_every_flag_and_variable_there_ever_was_is_understood() -> None:
    now = {
        f"{flag} {option.envvar or '-'}"
        for option in typer.main.get_command(main.app).params
        for flag in (*option.opts, *option.secondary_opts)
    }
    assert set(KNOWN) - now == set(), "somebody's file has these"
    assert now - set(KNOWN) == set(), "add these lines to agent_flags.txt"


def test_without_flags_all_is_as_the_fields_say(started: list[AgentSettings]) -> None:
    assert run() == (0, "")
    assert started == [AgentSettings().completed()]
    assert started[0].node_name == os.uname().nodename


def test_each_setting_belongs_to_one_part_and_says_what_it_means() -> None:
    fields = [field.name for _, part in PARTS for field in dataclasses.fields(part)]
    assert len(fields) == len(set(fields))
    assert {*fields, "sources"} == {field.name for field in dataclasses.fields(AgentSettings)}
    silent = [option.name for option in typer.main.get_command(main.app).params if not option.help]
    assert silent == []


def test_flags_go_over_variables_and_each_value_knows_its_source(started: list[AgentSettings]) -> None:
    run("--report-interval", "9s", CILIA_REPORT_INTERVAL="7", CILIA_HUBBLE_METRICS_EXPIRY="2m")
    (settings,) = started
    assert (settings.report_interval, settings.hubble_metrics_expiry) == (9, 120.0)
    assert settings.sources == {"report_interval": "flag", "hubble_metrics_expiry": "environment"}


def test_sockets_are_beside_the_state_unless_somebody_says_where(started: list[AgentSettings]) -> None:
    run("--state-dir", "/s", "--hubble-socket-path", "/run/hubble.sock", "--hubble-history-dir", "flows")
    (settings,) = started
    assert (settings.api_socket, settings.cni_socket) == (Path("/s/agent.sock"), Path("/s/cni.sock"))
    assert (settings.hubble_socket, settings.hubble_history_dir) == (
        Path("/run/hubble.sock"),
        Path("/s/flows"),
    )


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--tunnel disabled", "is_tunneled", False),
        ("--monitor-aggregation maximum", "aggregation", "medium"),
        ("--monitor-aggregation-interval 30s", "report_interval", 30),
        ("--monitor-aggregation-interval 100ms", "report_interval", 1),
        ("--monitor-aggregation-flags SYN,psh", "report_tcp_flags", 0x0A),
        ("--no-bpf-events-trace-enabled", "bpf_events_trace_enabled", False),
        ("--hubble-event-buffer-capacity 1024", "hubble_capacity", 1024),
        ("--hubble-event-buffer-capacity 4095", "hubble_capacity", 4096),
        ("--hubble-lost-event-send-interval 500ms", "hubble_lost_event_send_interval", 0.5),
        ("--hubble-history-max-bytes 2Mi", "hubble_history_max_bytes", 2 << 20),
        ("--hubble-history-max-age 7D", "hubble_history_max_age", 604_800.0),
        ("--node-port-range 30000-30009", "node_ports", (30000, 30009)),
        ("--no-enable-host-firewall", "host_firewall", False),
        ("--hubble-monitor-events drop", "bpf_events_drop_enabled", True),
        ("--hubble-monitor-events drop", "bpf_events_trace_enabled", False),
        ("--hubble-monitor-events drop", "bpf_events_policy_verdict_enabled", False),
        ("--hubble-monitor-events drop", "tells_of_agent", False),
        ("--hubble-monitor-events drop", "silence", "forwarded packets and policy verdicts not reported"),
        ("--hubble-monitor-events Trace,agent --trace-sock", "trace_sock", False),
        ("--hubble-monitor-events trace,agent", "tells_of_agent", True),
        ("--hubble-monitor-events l7,trace-sock", "trace_sock", True),
        ("--hubble-monitor-events= --no-bpf-events-trace-enabled", "bpf_events_trace_enabled", False),
        ("--hubble-monitor-events=", "silence", ""),
        ("--enable-hubble=false", "events", False),
        ("--enable-hubble=false --hubble-metrics drop", "hubble_metrics", ""),
        ("--no-enable-hubble --hubble-history-dir flows", "hubble_history_dir", None),
        ("--enable-hubble=true", "events", True),
        ("--hubble-event-queue-size=4096", "hubble_event_queue_size", 4096),
        (
            "--hubble-network-policy-correlation-enabled=false",
            "hubble_network_policy_correlation_enabled",
            False,
        ),
    ],
)
def test_what_is_written_has_its_meaning(
    started: list[AgentSettings], words: str, field: str, value: object
) -> None:
    assert run(*words.split()) == (0, "")
    assert getattr(started[0], field) == value


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--tunnel geneve", "must be vxlan or disabled"),
        ("--policy-cidr-match-mode pods", "must be empty or nodes"),
        ("--aggregation some", "must be none, low or medium"),
        ("--monitor-aggregation-interval never", "no length of time"),
        ("--monitor-aggregation-flags syn,nope", "of fin, syn, rst, psh, ack, urg, ece, cwr"),
        ("--bpf-events-default-rate-limit 10", "set both or none"),
        ("--hubble-capacity 1000", "power of two"),
        ("--hubble-capacity -4", "power of two"),
        ("--hubble-monitor-events drop,http", "of drop, debug, capture, trace"),
        ("--hubble-lost-event-send-interval 0", "must be a duration"),
        ("--hubble-history-max-bytes 0", "must be a number of bytes"),
        ("--hubble-history-max-age forever", "no length of time"),
        ("--node-port-range 9,3", "FIRST,LAST"),
        ("--nodeport-addresses 10.0.0.0/33", "write prefixes with commas"),
        ("--ipv6-service-loopback-address ::ffff:10.0.0.1", "must be an IPv6 address"),
        ("--log-level loud", "must be debug, info, warning or error"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(
    started: list[AgentSettings], words: str, sentence: str
) -> None:
    code, said = run(*words.split())
    assert (code, started) == (2, [])
    assert sentence in said.strip().splitlines()[-1]


def test_what_only_watched_events_decide_comes_from_there(started: list[AgentSettings]) -> None:
    run("--no-bpf-events-trace-enabled", CILIA_HUBBLE_MONITOR_EVENTS="trace drop")
    (settings,) = started
    assert settings.bpf_events_trace_enabled
    assert settings.sources["bpf_events_trace_enabled"] == "environment"
    assert settings.sources["trace_sock"] == "environment"


def test_help_has_a_heading_for_each_part() -> None:
    lines = run("--help")[1].splitlines()
    assert [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")] == [
        "Options",
        *(heading for heading, _ in PARTS),
    ]


def test_silence_is_told() -> None:
    quiet = AgentSettings(bpf_events_drop_enabled=False, bpf_events_trace_enabled=False)
    assert quiet.silence == "drops and forwarded packets not reported"
    limited = AgentSettings(bpf_events_default_rate_limit=10, bpf_events_default_burst_limit=20)
    assert limited.silence == "at most 10 events/s of a kind"
    assert (AgentSettings().silence, AgentSettings(events=False).silence) == ("", "")
