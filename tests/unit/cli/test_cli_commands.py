"""The commands of `cilia` against an agent that is a fixed answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar, cast

import msgspec
import pytest
import yaml

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
    ExporterStatus,
    Health,
    HistoryStatus,
    HubbleStatus,
    IdentityView,
    IpamStatus,
    IpEntry,
    IpMetadata,
    KernelService,
    LocalBackend,
    LocalService,
    MapDifference,
    MapDump,
    MapEntry,
    MapPressure,
    MapView,
    NatUse,
    NodeView,
    OwnerUseView,
    PolicyList,
    PolicyRevision,
    PolicyView,
    PortUseView,
    ProblemView,
    RealizedPolicy,
    RuleView,
    ServiceAddress,
    ServiceBackend,
    ServiceFlags,
    ServiceList,
    ServiceProblem,
    ServiceRealization,
    ServiceSpec,
    ServiceView,
    Setting,
    StatusResponse,
    VerifyReport,
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
SERVICES = ServiceList(
    services=(
        ServiceView(
            spec=ServiceSpec(
                id=4,
                frontend_address=ServiceAddress(ip="10.96.0.7", port=80, protocol="TCP", scope="external"),
                backend_addresses=(
                    ServiceBackend(
                        ip="10.0.0.7", port=8080, protocol="TCP", state="active", pod="demo/web-0"
                    ),
                    ServiceBackend(
                        ip="10.0.1.3",
                        port=8080,
                        protocol="TCP",
                        state="terminating",
                        only="internal",
                        weight=2,
                    ),
                ),
                flags=ServiceFlags(type="ClusterIP", namespace="demo", name="web", affinity=60),
            ),
            status=ServiceRealization(
                state="realized",
                kernel=KernelService(
                    internal=("10.0.0.7:8080/TCP",),
                    differences=(MapDifference(map="services", key="10.96.0.7:80/TCP", intended="all"),),
                ),
            ),
        ),
        ServiceView(
            spec=ServiceSpec(
                frontend_address=ServiceAddress(ip="fd00::99", port=53, protocol="UDP", scope="internal"),
                flags=ServiceFlags(type="NodePort", namespace="kube-system", name="dns"),
            ),
            status=ServiceRealization(state="pending", why_none="none of its 2 endpoints is ready"),
        ),
    ),
    problems=(
        ServiceProblem(kind="Service", namespace="demo", name="odd", problems=("spec.externalIPs[0]: No.",)),
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
    "services": SERVICES,
    "service": SERVICES,
    "local_services": [LocalService(frontend="192.0.2.10:80/TCP", backends=("10.0.0.5:8080",), affinity=60)],
    "nat": NatUse(
        limit=16384,
        total=3,
        entries=6,
        size=100,
        age=4.0,
        peers=(
            PortUseView(
                protocol="TCP",
                peer="192.0.2.9",
                port=443,
                address="172.18.0.2",
                used=900,
                share=0.9,
                seconds=61,
            ),
            PortUseView(protocol="ICMP", peer="2001:db8::9", address="fd00::2", used=1, share=0.001),
        ),
        owners=(OwnerUseView(endpoint=7, pod="demo/web-0", used=2), OwnerUseView(used=1)),
    ),
    "verify": VerifyReport(),
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
        (
            "service list",
            [
                "10.96.0.7:80/TCP",
                "demo/web",
                "10.0.0.7:8080 (active),10.0.1.3:8080 (terminating, internal clients only, weight 2)",
                "[fd00::99]:53/UDP",
                "none of its 2 endpoints is ready",
                "Service demo/odd",
                "spec.externalIPs[0]: No.",
            ],
        ),
        (
            "service get demo/web",
            [
                "10.0.0.7:8080 (active) demo/web-0",
                "60 seconds",
                "missing in place of all",
                "does not have it",
            ],
        ),
        (
            "nat top",
            ["192.0.2.9:443", "90.0%", "1m1s at this pace", "2001:db8::9", "not growing", "demo/web"],
        ),
        ("verify", ["The kernel is as intended."]),
        ("map list", ["ipcache", "lpm_trie"]),
        ("bpf lb list", ["prefix=10.0.1.3/32", "1,2"]),
        ("bpf ct list global", ["prefix=10.0.1.3/32"]),
        ("bpf nat list", ["prefix=10.0.1.3/32"]),
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
        "service list",
        "service get demo/web",
        "nat top",
        "verify",
        "map list",
        "map get ipcache",
        "node list",
        "config",
        "metrics list",
        "version",
    ],
)
def test_json_and_yaml_say_the_same(cilia: Cilia, line: str) -> None:
    code, out, _ = cilia(line + " -o json")
    assert code == 0
    assert yaml.safe_load(cilia(line + " -o yaml")[1]) == json.loads(out)


def test_services_are_chosen(cilia: Cilia) -> None:
    for flags, found in (
        ("-n demo", ["web"]),
        ("--type nodeport", ["dns"]),
        ("--without-backends", ["dns"]),
        ("-n nobody", []),
    ):
        told = json.loads(cilia(f"service list {flags} -o json")[1])["services"]
        assert [view["spec"]["flags"]["name"] for view in told] == found
    assert cilia("service list -n nobody")[1] == "There are no services here.\n"


def written(agent: type[FakeClient]) -> LocalService:
    (name, service) = agent.asked[-1]
    assert name == "put_local_service"
    return cast(LocalService, service)


def test_a_service_by_hand_is_written_whole(cilia: Cilia, agent: type[FakeClient]) -> None:
    agent.answers["put_local_service"] = LocalService(frontend="192.0.2.11:53/UDP", backends=("a", "b"))
    code, out, _ = cilia(
        "service update --frontend 192.0.2.11:53/UDP --backends 10.0.0.5:53,10.0.0.6:53 "
        "--backend-weights 3,0 --name dns --algorithm maglev --mode dsr "
        "--affinity 2m --source-range 10.0.0.0/8 --local-only"
    )
    assert (code, out) == (0, "192.0.2.11:53/UDP is written, with 2 backends.\n")
    assert written(agent) == LocalService(
        frontend="192.0.2.11:53/UDP",
        backends=(
            LocalBackend(address="10.0.0.5:53", weight=3),
            LocalBackend(address="10.0.0.6:53", weight=0),
        ),
        name="dns",
        algorithm="maglev",
        mode="dsr",
        affinity=120,
        source_ranges=("10.0.0.0/8",),
        local_only=True,
    )


def test_what_is_not_told_of_a_service_stays(cilia: Cilia, agent: type[FakeClient]) -> None:
    agent.answers["put_local_service"] = LocalService(frontend="x")
    assert cilia("service update --frontend 192.0.2.10:80/tcp --algorithm maglev")[0] == 0
    assert written(agent) == LocalService(
        frontend="192.0.2.10:80/TCP", backends=("10.0.0.5:8080",), algorithm="maglev", affinity=60
    )
    cilia("service update --frontend 192.0.2.10:80 --backend-weights 0 --affinity 0")
    assert written(agent).backends == (LocalBackend(address="10.0.0.5:8080", weight=0),)
    assert written(agent).affinity == 0


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ("--frontend 192.0.2.99:80", "--backend"),
        ("--frontend 192.0.2.10:80 --affinity soon", "60s"),
        ("--frontend 192.0.2.10:80 --affinity 500ms", "60s"),
        ("--frontend 192.0.2.10:80 --backend-weights 1,2", "1 numbers"),
    ],
)
def test_a_service_that_makes_no_sense_is_refused(cilia: Cilia, flags: str, word: str) -> None:
    code, _, err = cilia(f"service update {flags}")
    assert code == 1
    assert word in err


def test_a_service_by_hand_is_removed_by_any_spelling(cilia: Cilia, agent: type[FakeClient]) -> None:
    agent.answers["delete_local_service"] = []
    code, out, _ = cilia("service delete 192.0.2.10:80")
    assert (code, out) == (0, "192.0.2.10:80/TCP is removed.\n")
    assert agent.asked[-1] == ("delete_local_service", "192.0.2.10:80/TCP")


def test_differences_are_an_exit_code_until_they_are_put_right(cilia: Cilia, agent: type[FakeClient]) -> None:
    one = MapDifference(map="backends", key="17", intended="10.0.0.7:8080/TCP", actual="")
    agent.answers["verify"] = VerifyReport(differences=(one,), count=1, by_map={"backends": 1})
    code, out, _ = cilia("verify")
    assert code == 1
    assert "10.0.0.7:8080/TCP" in out and "1 differences (1 in backends). cilia verify --repair" in out
    assert cilia("verify -o json")[0] == 1
    agent.answers["verify"] = VerifyReport(differences=(one,), count=1, by_map={"backends": 1}, repaired=1)
    code, out, _ = cilia("verify --repair")
    assert (code, "1 put right." in out) == (0, True)


def test_names_of_maps_that_users_of_others_type(cilia: Cilia, agent: type[FakeClient]) -> None:
    for line, name in (
        ("bpf lb list", "services"),
        ("bpf lb list --backends", "backends"),
        ("bpf lb list --revnat", "frontends"),
        ("bpf lb list --source-ranges", "source_ranges"),
        ("bpf ct list global", "conntrack"),
        ("bpf nat list", "snat"),
    ):
        assert cilia(line)[0] == 0
        assert agent.asked[-1][:2] == ("map", name)


def test_only_services_with_a_table_are_shown_as_tables(cilia: Cilia, agent: type[FakeClient]) -> None:
    values = [{"flags": ["MAGLEV"], "id": 7}, {"flags": ["REJECT"], "id": 8}, {"flags": ["MAGLEV"], "id": 9}]
    agent.answers["map"] = MapDump(
        name="services", entries=tuple(MapEntry(key=f"at {value['id']}", value=value) for value in values)
    )
    told = cilia("bpf lb maglev list")[1]
    assert "at 7" in told and "at 9" in told and "at 8" not in told
    told = cilia("bpf lb maglev get 9")[1]
    assert "at 9" in told and "at 7" not in told
    assert "no such table" in cilia("bpf lb maglev get 8")[1]


def test_nothing_counted_yet(cilia: Cilia, agent: type[FakeClient]) -> None:
    agent.answers["nat"] = NatUse()
    assert cilia("nat top")[1].startswith("Ports are not counted yet")


def test_status_tells_of_ports_and_differences_when_something_is_wrong(
    cilia: Cilia, agent: type[FakeClient]
) -> None:
    assert "NAT" not in cilia("status")[1]
    agent.answers["status"] = StatusResponse(
        agent=Component(state=Health.OK),
        services=Component(state=Health.WARNING, msg="1 are not in the kernel"),
        nat=Component(state=Health.WARNING, msg="ports run out"),
        service_count=2,
    )
    out = cilia("status")[1]
    assert "ports run out" in out and "2 frontends, 1 are not in the kernel" in out


def test_status_tells_of_exporters_that_fail_and_of_all_when_asked(
    cilia: Cilia, agent: type[FakeClient]
) -> None:
    exporters = (
        ExporterStatus(name="static", path="/var/log/events.log", state="active", lines=12),
        ExporterStatus(name="drops", path="/full/drops.log", state="failing", problem="No room.", waiting=7),
    )
    hubble = HubbleStatus(state=Health.WARNING, exporters=exporters)
    agent.answers["status"] = StatusResponse(agent=Component(state=Health.OK), hubble=hubble)
    out = cilia("status")[1]
    assert "drops (/full/drops.log): failing, 0 lines, 0 events lost, 7 waiting: No room." in out
    assert "static" not in out
    assert "static (/var/log/events.log): active, 12 lines" in cilia("status --verbose")[1]


def test_status_tells_of_history_that_fails_and_always_when_asked(
    cilia: Cilia, agent: type[FakeClient]
) -> None:
    history = HistoryStatus(files=3, bytes=5 << 20, flows=1000, lost_flows=7)
    shown = "1000 flows in 3 files (5 MiB), 7 lost"

    def answer(history: HistoryStatus) -> StatusResponse:
        hubble = HubbleStatus(state=Health.WARNING, history=history)
        return StatusResponse(agent=Component(state=Health.OK), hubble=hubble)

    agent.answers["status"] = answer(history)
    assert shown not in cilia("status")[1] and shown in cilia("status --verbose")[1]
    agent.answers["status"] = answer(msgspec.structs.replace(history, problem="No room."))
    assert f"{shown}: No room." in cilia("status")[1]


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
