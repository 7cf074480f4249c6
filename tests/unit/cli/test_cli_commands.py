"""The commands of `cilia` against an agent that is a fixed answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from cilia.api.client import AgentError
from cilia.api.types import (
    AddressPair,
    Component,
    ControllerStatus,
    CookieView,
    EndpointIdentifiers,
    EndpointNetworking,
    EndpointPolicy,
    EndpointPolicyStatus,
    EndpointStatus,
    EndpointView,
    EntryView,
    Health,
    HubbleStatus,
    IdentityView,
    IpamStatus,
    IpEntry,
    IpMetadata,
    MapDump,
    MapEntry,
    MapPressure,
    MapView,
    NodeView,
    PolicyList,
    PolicyRevision,
    PolicyView,
    ProblemView,
    RealizedPolicy,
    RuleView,
    Setting,
    StatusResponse,
)
from cilia.cli import main, status
from cilia.cli.node import parse_metrics

RULE = RuleView(
    kind="CiliumNetworkPolicy",
    namespace="demo",
    name="allow-web",
    resource_version="17",
    path="spec.ingress[0]",
)
ENDPOINT = EndpointView(
    id=7,
    status=EndpointStatus(
        state="ready",
        identity=IdentityView(id=300, labels=("k8s:app=web",)),
        external_identifiers=EndpointIdentifiers(pod_name="demo/web-0"),
        networking=EndpointNetworking(addressing=(AddressPair(ipv4="10.0.0.7", ipv6="fd00::7"),)),
        policy=EndpointPolicyStatus(realized=RealizedPolicy(policy_enabled="both", policy_revision=4)),
    ),
)
STATUS = StatusResponse(
    agent=Component(state=Health.OK, msg="ready"),
    hubble=HubbleStatus(state=Health.OK, current_flows=10, max_flows=65536, seen_flows=12, lost_events=3),
    ipam=IpamStatus(ipv4_used=3, ipv4_total=254),
    controllers=(
        ControllerStatus(name="sync-nodes", success_count=9),
        ControllerStatus(name="gc", consecutive_failure_count=2, failure_count=2, last_failure_msg="No API."),
    ),
    endpoints={"ready": 2, "restoring": 1},
    maps=(MapPressure(name="conntrack", used=90, size=100), MapPressure(name="snat", used=1, size=100)),
    node="n1",
    version="0.1.0",
    uptime_seconds=3700,
)


class FakeClient:
    """Stands in for AgentClient; `answers` replaces an answer, an exception is raised."""

    answers: ClassVar[dict[str, Any]] = {}
    asked: ClassVar[list[tuple[Any, ...]]] = []
    path: object = None

    def __init__(self, path: object, timeout: float) -> None:
        FakeClient.path = path

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*arguments: Any, **named: Any) -> Any:
            FakeClient.asked.append((name, *arguments))
            answer = FakeClient.answers.get(name, ANSWERS.get(name))
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask


ANSWERS: dict[str, Any] = {
    "status": STATUS,
    "endpoints": [ENDPOINT],
    "endpoint": ENDPOINT,
    "endpoint_policy": EndpointPolicy(
        id=7,
        subject=1,
        revision=4,
        policy_enabled="both",
        entries=(
            EntryView(
                direction="ingress", peer=300, protocol="TCP", port="8080", verdict="allow", rules=(RULE,)
            ),
            EntryView(direction="egress", peer=0, verdict="deny", default=True, rules=(RULE,)),
        ),
    ),
    "identities": [IdentityView(id=1, labels=("reserved:host",)), IdentityView(id=1 << 24)],
    "identity": IdentityView(id=300, labels=("k8s:app=web",)),
    "addresses": [
        IpEntry(cidr="10.0.0.0/8", identity=2),
        IpEntry(
            cidr="10.0.1.3/32",
            identity=300,
            host_ip="172.18.0.3",
            metadata=IpMetadata(namespace="demo", name="web-1"),
        ),
        IpEntry(cidr="::/0", identity=10),
    ],
    "policies": PolicyList(
        revision=5,
        realized=4,
        policies=(
            PolicyView(
                kind="NetworkPolicy",
                namespace="demo",
                name="odd",
                state="invalid",
                problems=(ProblemView(path="spec.egress[0]", sentence="Not yet."),),
            ),
            PolicyView(kind="CiliumNetworkPolicy", namespace="demo", name="tried", state="valid", audit=True),
        ),
    ),
    "wait_policy": PolicyRevision(realized=5, reached=True),
    "cookie": CookieView(cookie=5, rules=(RULE,)),
    "maps": [MapView(name="ipcache", type="lpm_trie", max_entries=100)],
    "map": MapDump(
        name="ipcache",
        entries=(MapEntry(key={"prefix": "10.0.1.3/32", "at": {"family": 4}}, value=[1, 2]),),
        truncated=True,
    ),
    "nodes": [NodeView(name="n1", local=True, addresses=("172.18.0.2",), pod_cidrs=("10.0.0.0/24",))],
    "settings": [Setting(name="tunnel", value="vxlan", source="flag")],
    "metrics": '# HELP a b\na_total{x="1 2"} 3\nb 4.5 1700000000\nrubbish\n',
}


@pytest.fixture(autouse=True)
def agent(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    monkeypatch.setattr("cilia.cli.options.AgentClient", FakeClient)
    monkeypatch.delenv("CILIA_AGENT_SOCKET", raising=False)
    FakeClient.answers = {}
    FakeClient.asked = []
    return FakeClient


class Cilia:
    """Runs command lines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, line: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["cilia", *line.split()])
        code = main.run(main.build())
        printed = self._capsys.readouterr()
        return code, printed.out, printed.err


@pytest.fixture
def cilia(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cilia:
    return Cilia(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("endpoint list", ["demo/web-0", "ready", "300", "both", "10.0.0.7", "fd00::7"]),
        ("endpoint get 7", ["demo/web-0", "k8s:app=web", "policy revision"]),
        ("endpoint policy 7", ["allow", "CiliumNetworkPolicy demo/allow-web spec.ingress[0]", "isolated by"]),
        ("identity list", ["reserved:host", "reserved", "cidr, this node"]),
        ("identity get 300", ["k8s:app=web", "cluster"]),
        ("ip list", ["10.0.1.3/32", "172.18.0.3", "demo/web-1"]),
        ("policy get", ["Revision 5", "demo/odd", "invalid", "spec.egress[0]: Not yet.", "valid, audit"]),
        ("policy wait", ["Revision 5 is enforced."]),
        ("policy rule 5", ["allow-web", "resourceVersion 17"]),
        ("map list", ["ipcache", "lpm_trie"]),
        ("map get ipcache", ["prefix=10.0.1.3/32 at=(family=4)", "1,2"]),
        ("node list", ["n1 (this node)", "172.18.0.2"]),
        ("config", ["tunnel", "vxlan", "flag"]),
        ("metrics list", ["a_total", 'x="1 2"', "4.5"]),
        ("version", ["Client:", "Agent:  0.1.0"]),
    ],
)
def test_tables_show_what_the_agent_says(cilia: Cilia, line: str, words: list[str]) -> None:
    code, out, _ = cilia(line)
    assert code == 0
    for word in words:
        assert word in out


@pytest.mark.parametrize(
    "line",
    [
        "status",
        "endpoint list",
        "endpoint get 7",
        "endpoint policy 7",
        "identity list",
        "identity get 300",
        "ip list",
        "ip get 10.0.1.3",
        "policy get",
        "policy rule 5",
        "map list",
        "map get ipcache",
        "node list",
        "config",
        "metrics list",
        "version",
    ],
)
def test_json_is_json(cilia: Cilia, line: str) -> None:
    code, out, _ = cilia(line + " -o json")
    assert code == 0
    json.loads(out)


def test_status_shows_the_page_and_what_is_wrong(cilia: Cilia) -> None:
    code, out, _ = cilia("status")
    assert code == 0
    for word in (
        "up 1h1m",
        "10/65536 flows, 12 seen, 3 lost",
        "IPv4 3/254",
        "2/3 ready, 1 restoring",
        "1/2 healthy",
        "gc: 0 runs, 2 failures, last: No API.",
        "conntrack: 90 of 100 (90%)",
    ):
        assert word in out
    assert "snat" not in out
    assert "snat" in cilia("status --verbose")[1]


def test_status_of_an_unwell_node_is_an_exit_code(cilia: Cilia, agent: type[FakeClient]) -> None:
    agent.answers["status"] = StatusResponse(agent=Component(state=Health.FAILURE, msg="No bpffs."))
    code, out, _ = cilia("status --brief")
    assert (code, out) == (1, "Failure: No bpffs.\n")
    agent.answers = {}
    assert cilia("status --brief")[:2] == (0, "OK\n")


def test_waiting_for_a_node_gives_the_last_reason(
    cilia: Cilia, agent: type[FakeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "POLL_SECONDS", 0.0)
    agent.answers["status"] = AgentError("There is no agent; start it.")
    code, _, err = cilia("status --wait --wait-duration 0")
    assert code == 1
    assert "There is no agent; start it." in err
    agent.answers = {}
    assert cilia("status --wait --brief")[0] == 0


def test_the_longest_prefix_decides(cilia: Cilia) -> None:
    assert "172.18.0.3" in cilia("ip get 10.0.1.3")[1]
    assert "10.0.0.0/8" in cilia("ip get 10.0.1.4")[1]
    assert "::/0" in cilia("ip get 2001:db8::1")[1]
    code, _, err = cilia("ip get 192.0.2.1")
    assert (code, "cilia ip list" in err) == (1, True)
    assert cilia("ip get rubbish")[0] == 1


def test_a_pod_may_be_named_without_its_prefix(cilia: Cilia, agent: type[FakeClient]) -> None:
    cilia("endpoint get demo/web-0")
    cilia("endpoint get container-id:abc")
    assert agent.asked == [("endpoint", "pod-name:demo/web-0"), ("endpoint", "container-id:abc")]


def test_waiting_for_a_policy_that_does_not_come(cilia: Cilia, agent: type[FakeClient]) -> None:
    agent.answers["wait_policy"] = PolicyRevision(realized=4, reached=False)
    code, _, err = cilia("policy wait 9 --timeout 1")
    assert code == 1
    assert "revision 4 is enforced and 9 is not" in err


def test_errors_are_one_sentence_and_code_1(cilia: Cilia, agent: type[FakeClient]) -> None:
    agent.answers["endpoints"] = AgentError("There is no agent at /x; start cilia-agent.")
    code, out, err = cilia("endpoint list")
    assert (code, out) == (1, "")
    assert err == "cilia: There is no agent at /x; start cilia-agent.\n"


def test_a_bug_is_not_dressed_as_a_users_error(cilia: Cilia, agent: type[FakeClient]) -> None:
    agent.answers["endpoints"] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cilia("endpoint list")


def test_wrong_command_lines_are_code_2(cilia: Cilia) -> None:
    for line, word in (
        ("statsu", "status"),
        ("endpoint list -o xml", "json"),
        ("identity get x", "Invalid value"),
        ("metrics list -p ( ", "expression"),
    ):
        code, _, err = cilia(line)
        assert code == (1 if "metrics" in line else 2)
        assert word in err


def test_the_socket_comes_from_flag_then_environment(
    cilia: Cilia, agent: type[FakeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CILIA_AGENT_SOCKET", "/from/environment")
    cilia("endpoint list")
    assert str(agent.path) == "/from/environment"
    cilia("endpoint list --agent-socket /from/flag")
    assert str(agent.path) == "/from/flag"


def test_help_loads_no_command_and_lists_all(cilia: Cilia) -> None:
    probe = (
        "import sys\n"
        "from cilia.cli.main import build, run\n"
        "sys.argv = ['cilia', '--help']\n"
        "code = run(build())\n"
        "heavy = {'msgspec', 'rich', 'numpy', 'http.client', 'cilia.cli.status'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for name, entry in main.COMMANDS.items():
        assert name in done.stdout
        assert entry.help.endswith(".")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(cilia: Cilia, shell: str) -> None:
    code, out, _ = cilia(f"completion {shell}")
    assert code == 0
    assert "_CILIA_COMPLETE" in out


def test_metrics_lines() -> None:
    assert parse_metrics('a{b="c"} 1\nd 2 3\n# x\n\nq') == [("a", 'b="c"', "1"), ("d", "", "2")]


def test_durations() -> None:
    assert [status.duration(s) for s in (5, 69, 7500, 273600)] == ["5s", "1m9s", "2h5m", "3d4h"]
