"""Settings that change while the agent runs: what is understood, what is kept, what is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cilia.api.backend import ApiError, Caller
from cilia.api.types import OptionChange
from cilia.apps.agent.live import ENDPOINT_OPTIONS, NODE_OPTIONS, LiveSettings, read_change, who
from cilia.apps.agent.settings import AgentSettings
from cilia.apps.agent.state import EndpointFiles, NodeFile, SavedEndpoint
from cilia.apps.agent.switches import EndpointSwitches
from cilia.cli.completing import SWITCHES
from cilia.cli.config import config as show_config
from cilia.model.endpoint import HOST_ENDPOINT, Attachment, Endpoint
from cilia.model.ids import EndpointId
from cilia.schema import EndpointOptions, Inputs

ME = Caller(pid=os.getpid(), uid=os.getuid())
ATTACHMENT = Attachment(
    id=EndpointId(7),
    container_id="c",
    interface="eth0",
    netns="/n",
    host_interface="lxc7",
    ifindex=4,
    mac="02:00:00:00:00:01",
    host_mac="02:00:00:00:00:02",
)
HOST = Attachment(
    id=HOST_ENDPOINT,
    container_id="",
    interface="",
    netns="",
    host_interface="",
    ifindex=0,
    mac="",
    host_mac="",
)


def settings(directory: Path, **changes: object) -> AgentSettings:
    return AgentSettings(node_name="n1", state_dir=directory, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "field", "meaning"),
    [
        ("PolicyEnforcement", "always", "enforcement", "always"),
        ("policyenforcement", "NEVER", "enforcement", "never"),
        ("enable-policy", "default", "enforcement", "default"),
        ("--policy-enforcement-mode", "default", "enforcement", "default"),
        ("PolicyAuditMode", "Enabled", "policy_audit_mode", True),
        ("policy-audit-mode", "false", "policy_audit_mode", False),
        ("PolicyDenyResponse", "icmp", "policy_deny_response", "icmp"),
        ("DropNotification", "disabled", "bpf_events_drop_enabled", False),
        ("bpf-events-trace-enabled", "false", "bpf_events_trace_enabled", False),
        ("PolicyVerdictNotification", "Enabled", "bpf_events_policy_verdict_enabled", True),
        ("TraceSockNotification", "on", "trace_sock", True),
        ("MonitorAggregationLevel", "Maximum", "aggregation", "medium"),
        ("monitor-aggregation", "1", "aggregation", "low"),
        ("MonitorAggregationInterval", "30s", "report_interval", 30),
        ("report-interval", "7", "report_interval", 7),
        ("monitor-aggregation-flags", "SYN", "monitor_aggregation_flags", "syn"),
        ("EventsRateLimit", "100", "bpf_events_default_rate_limit", 100),
        ("bpf-events-default-burst-limit", "0", "bpf_events_default_burst_limit", 0),
    ],
)
def test_options_go_by_ciliums_names_and_by_ours(name: str, value: str, field: str, meaning: object) -> None:
    assert read_change(OptionChange(options={name: value}), NODE_OPTIONS) == {field: meaning}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (OptionChange(), "name an option"),
        (OptionChange(options={"PolicyTracing": "Enabled"}), "PolicyEnforcement, PolicyAuditMode"),
        (OptionChange(options={"PolicyEnforcement": "sometimes"}), "default, always, never"),
        (OptionChange(options={"MonitorAggregationInterval": "0"}), "MonitorAggregationInterval: must be"),
        (OptionChange(options={"MonitorAggregationFlags": "syn,x"}), "fin, syn, rst"),
        (OptionChange(options={"EventsRateLimit": "-1"}), "EventsRateLimit: must be a number of events"),
        (OptionChange(options={"EventsBurstLimit": "1000001"}), "up to 1000000"),
        (OptionChange(options={"PolicyAuditMode": "on", "policy-audit-mode": "off"}), "twice"),
        (OptionChange(options={"PolicyAuditMode": "on"}, reset=("policy-audit-mode",)), "twice"),
    ],
)
def test_what_is_not_understood_is_refused_with_what_is(change: OptionChange, words: str) -> None:
    with pytest.raises(ApiError, match=words) as refusal:
        read_change(change, NODE_OPTIONS)
    assert refusal.value.status == 400


def test_a_change_stands_over_flags_and_restarts_until_reset(tmp_path: Path) -> None:
    started = settings(tmp_path, enforcement="never", sources={"enforcement": "flag"})
    live = LiveSettings(started)
    assert (live.settings.enforcement, live.source("enforcement")) == ("never", "flag")
    live.change({"enforcement": "always", "policy_audit_mode": True}, ME)
    again = LiveSettings(started)
    assert (again.settings.enforcement, again.settings.policy_audit_mode) == ("always", True)
    assert again.source("enforcement") == "live"
    again.change({"enforcement": None}, ME)
    assert again.settings.enforcement == "never"
    again.change({"policy_audit_mode": None}, ME)
    assert not (tmp_path / "live.json").exists()


def test_a_limit_of_events_and_its_burst_go_together(tmp_path: Path) -> None:
    rate, burst = "bpf_events_default_rate_limit", "bpf_events_default_burst_limit"
    live = LiveSettings(settings(tmp_path))
    with pytest.raises(ApiError, match="go together"):
        live.change({rate: 100}, ME)
    assert dict(live.changed) == {}
    live.change({rate: 100, burst: 200}, ME)
    assert "at most 100 events/s" in LiveSettings(settings(tmp_path)).settings.silence
    with pytest.raises(ApiError, match="go together"):
        live.change({burst: None}, ME)
    live.change({rate: None, burst: None}, ME)
    assert live.settings.silence == ""


def test_a_limit_that_no_longer_fits_holds_no_other_change_up(tmp_path: Path) -> None:
    rate, burst = "bpf_events_default_rate_limit", "bpf_events_default_burst_limit"
    LiveSettings(settings(tmp_path, **{rate: 5, burst: 5})).change({rate: 7}, ME)
    restarted = LiveSettings(settings(tmp_path))
    restarted.change({"policy_audit_mode": True}, ME)
    assert restarted.settings.policy_audit_mode


def test_only_the_owner_reads_what_was_changed(tmp_path: Path) -> None:
    LiveSettings(settings(tmp_path)).change({"policy_audit_mode": True}, ME)
    assert (tmp_path / "live.json").stat().st_mode & 0o777 == 0o600


GARBAGE = [b"", b"[]", b"not json", b'{"enforcement": 3}', b'{"x": "\xff"}', b'{"x\xff": 1}', b"\0" * 4096]
GARBAGE += [b'{"enforcement":' * 100_000, b'{"zzz":' + b"[" * 100_000]


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_a_broken_file_changes_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "live.json").write_bytes(content)
    assert LiveSettings(settings(tmp_path)).settings == settings(tmp_path)


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_no_file_of_the_state_directory_keeps_an_agent_from_starting(tmp_path: Path, content: bytes) -> None:
    files = EndpointFiles(tmp_path)
    (tmp_path / "host.json").write_bytes(content)
    (tmp_path / "node.json").write_bytes(content)
    (tmp_path / "endpoints" / "7.json").write_bytes(content)
    assert (files.host_audit(), files.load()) == (None, [])
    assert (tmp_path / "endpoints" / "7.broken").exists()
    assert NodeFile(tmp_path).load() == []


def test_what_the_file_says_beside_the_understood_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "live.json").write_text(
        '{"enforcement": "sometimes", "tunnel": "no", "policy_audit_mode": true}'
    )
    assert dict(LiveSettings(settings(tmp_path)).changed) == {"policy_audit_mode": True}


def test_numbers_and_lists_of_a_file_are_checked_like_words(tmp_path: Path) -> None:
    (tmp_path / "live.json").write_text(
        '{"report_interval": 9, "monitor_aggregation_flags": "psh", "bpf_events_drop_enabled": 0,'
        ' "aggregation": "some"}'
    )
    assert dict(LiveSettings(settings(tmp_path)).changed) == {
        "report_interval": 9,
        "monitor_aggregation_flags": "psh",
    }
    (tmp_path / "live.json").write_text('{"report_interval": -9, "monitor_aggregation_flags": "nope"}')
    assert dict(LiveSettings(settings(tmp_path)).changed) == {}


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    live = LiveSettings(settings(tmp_path))
    monkeypatch.setattr("cilia.apps.agent.live.write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        live.change({"enforcement": "always"}, ME)
    assert live.settings.enforcement == "default"


def test_a_caller_is_named_as_far_as_known() -> None:
    named = who(ME)
    assert (named["pid"], named["uid"]) == (os.getpid(), os.getuid())
    assert named["command"]
    assert who(Caller(pid=1 << 30, uid=5)) == {"pid": 1 << 30, "uid": 5}


def test_an_endpoints_switch_is_in_the_table_and_in_its_file(tmp_path: Path) -> None:
    inputs, files = Inputs(), EndpointFiles(tmp_path)
    files.save(SavedEndpoint(attachment=ATTACHMENT, identity=300))
    inputs.attachments.put(ATTACHMENT)
    switches = EndpointSwitches(inputs, files)
    switches.forget_gone()
    endpoint = Endpoint(attachment=ATTACHMENT)
    switches.change(
        endpoint, read_change(OptionChange(options={"PolicyAuditMode": "on"}), ENDPOINT_OPTIONS), ME
    )
    assert inputs.endpoint_options.get(EndpointId(7)) == EndpointOptions(endpoint=EndpointId(7), audit=True)
    assert EndpointFiles(tmp_path).load() == [SavedEndpoint(attachment=ATTACHMENT, identity=300, audit=True)]
    assert switches.settings(endpoint, settings(tmp_path))[0].source == "live"
    inputs.attachments.delete(EndpointId(7))
    switches.forget_gone()
    assert len(inputs.endpoint_options) == 0


def test_a_host_is_opened_though_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is locked out can't make room from afar."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    inputs, files = Inputs(), EndpointFiles(tmp_path)
    monkeypatch.setattr("cilia.apps.agent.state.write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        EndpointSwitches(inputs, files).open_host(ME)
    opened = inputs.endpoint_options.get(HOST_ENDPOINT)
    assert opened is not None and opened.audit is True


def test_the_host_has_a_switch_too(tmp_path: Path) -> None:
    inputs, files = Inputs(), EndpointFiles(tmp_path)
    assert files.host_audit() is None
    switches = EndpointSwitches(inputs, files)
    switches.change(Endpoint(attachment=HOST), {"audit": True}, ME)
    assert EndpointFiles(tmp_path).host_audit() is True
    switches.change(Endpoint(attachment=HOST), {"audit": None}, ME)
    assert EndpointFiles(tmp_path).host_audit() is None
    assert len(inputs.endpoint_options) == 0


def test_audit_is_told_with_whose_word_it_is(tmp_path: Path) -> None:
    switches = EndpointSwitches(Inputs(), EndpointFiles(tmp_path))

    def told(audit: bool, node: bool) -> tuple[object, str]:
        row = switches.settings(
            Endpoint(attachment=ATTACHMENT, audit=audit), settings(tmp_path, policy_audit_mode=node)
        )[0]
        return row.value, row.source

    assert told(False, False) == (False, "default")
    assert told(True, False) == (True, "annotation")
    assert told(False, True) == (True, "node")


def test_help_completion_and_page_name_every_option() -> None:
    names = {option.name for option in NODE_OPTIONS}
    assert set(SWITCHES) == names
    page = Path(__file__).parents[3] / "docs" / "api.md"
    for text in (show_config.__doc__ or "", page.read_text()):
        assert {name for name in names if name not in text} == set()
