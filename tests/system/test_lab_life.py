"""The life of a lab: pods, commands, faults, and nothing left afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cilia.lab import cgroups, control, kernel, probe, records, starting, teardown
from cilia.lab.plan import STATE_ROOT, LabPlan, make_plan
from cilia.lab.records import PodRecord
from tests.support.kubectl import kubectl
from tests.support.waiting import until

NAME = f"tl{os.getpid() % 1000000}"
PODS = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop, labels: {app: web}}
spec: {nodeSelector: {kubernetes.io/hostname: node-1}, containers: [{name: c, image: cilia.io/lab/server}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop, labels: {app: web}}
spec: {nodeSelector: {kubernetes.io/hostname: node-2}, containers: [{name: c, image: cilia.io/lab/server}]}
---
apiVersion: v1
kind: Pod
metadata: {name: worker, namespace: shop}
spec:
  nodeName: node-1
  containers:
    - {name: c, command: [sh, -c, "echo I am $WHO; exec sleep 1000"], env: [{name: WHO, value: here}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"""

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]


def lab(*arguments: str, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cilia.lab", *arguments],
        check=False,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def running(plan: LabPlan) -> dict[str, PodRecord]:
    return {pod.name: pod for pod in records.pods(plan) if pod.namespace and records.alive(pod)}


def left_over() -> list[str]:
    """Everything a lab of this name could leave."""
    state = STATE_ROOT / NAME
    group = cgroups.find_mount() / f"cilia-lab-{NAME}"
    found = [str(path) for path in (state, group) if path.exists()]
    return found + kernel.mounts_below(str(state))


@pytest.fixture(scope="module")
def plan() -> Iterator[LabPlan]:
    teardown.take_down(NAME)
    made = make_plan(NAME, 2)
    try:
        starting.start(made, lambda _: None)
        kubectl(made, "apply", "-f", "-", stdin=PODS)
        kubectl(made, "wait", "pod", "--all", "-n", "shop", "--for=condition=Ready", "--timeout=90s")
        yield made
    finally:
        teardown.take_down(NAME)
    assert left_over() == []


def test_all_reach_all_on_one_node_and_across_nodes(plan: LabPlan) -> None:
    pods = [running(plan)[name] for name in ("near", "far")]
    matrix = probe.measure(pods, pods)
    assert len(matrix) == 2 * 2 * 3
    assert probe.differences(matrix, lambda _: True) == []


def test_a_closed_port_is_not_mistaken_for_silence(plan: LabPlan) -> None:
    pods = running(plan)
    question = {"protocol": "tcp", "address": pods["far"].ips[0], "port": 9, "timeout": 2}
    answer = control.ask(pods["near"].control_socket, {"probe": [question]})
    assert answer["results"][0]["answer"] == "refused"


def test_a_stream_counts_and_compares_every_byte(plan: LabPlan) -> None:
    pods = running(plan)
    with control.Channel(pods["near"].control_socket) as channel:
        channel.ask({"stream": {"address": pods["far"].ips[1], "port": 8080, "bytes_per_second": 1 << 20}})
        until(lambda: channel.ask({"progress": True})["received"] > 100_000, "100 kB")
        result = channel.ask({"finish": True})
    assert result["intact"]
    assert result["sent"] == result["received"] > 100_000


@pytest.mark.parametrize("request_line", [b"nonsense\n", b'{"probe": 7}\n', b'{"probe": [{}]}\n', b"[]\n"])
def test_a_prober_answers_nonsense_and_lives_on(plan: LabPlan, request_line: bytes) -> None:
    pod = running(plan)["near"]
    with control.Channel(pod.control_socket) as channel:
        channel._socket.sendall(request_line)
        assert b"error" in channel._lines.readline()
        assert channel.ask({"probe": []}) == {"results": []}


def test_a_pod_has_its_own_world_and_a_containers_capabilities(plan: LabPlan) -> None:
    script = "hostname; ls /run /sys/fs/bpf; echo $$; grep CapEff /proc/self/status; ls /sys/class/net"
    words = lab("exec", "--name", NAME, "shop/near", "--", "sh", "-c", script).split()
    assert words[0] == "near"
    assert words[1:3] == ["/run:", "/sys/fs/bpf:"]
    assert int(words[3]) < 1000
    assert words[5] == "00000000a80425fb"
    assert sorted(words[6:]) == ["eth0", "lo"]


def test_a_command_runs_with_its_environment_and_its_log_can_be_read(plan: LabPlan) -> None:
    until(lambda: "I am here" in lab("logs", "--name", NAME, "shop/worker"), "the worker's line")


def test_endpoint_slices_follow_the_pods(plan: LabPlan) -> None:
    addresses = {pod.ips[0] for name, pod in running(plan).items() if name != "worker"}
    path = "-o=jsonpath={.endpoints[*].addresses[0]}"
    until(
        lambda: (
            set(kubectl(plan, "get", "endpointslice", "web-ipv4", "-n", "shop", path).split()) == addresses
        ),
        "both pods in the slice",
    )


def test_status_and_check_tell_what_is(plan: LabPlan) -> None:
    view = msgspec.json.decode(lab("status", "--name", NAME, "-o", "json"))
    assert [node["network"] for node in view["nodes"]] == ["ready", "ready"]
    assert {pod["state"] for pod in view["pods"]} == {"running"}
    assert "attached" in lab("check", "--name", NAME, "shop/near")


def test_up_again_says_it_is_up_and_other_settings_are_refused(plan: LabPlan) -> None:
    assert starting.start(plan, lambda _: None) is None
    with pytest.raises(starting.StartError, match="already up with 2 nodes"):
        starting.start(make_plan(NAME, 3), lambda _: None)


def test_a_killed_pod_is_made_again(plan: LabPlan) -> None:
    before = running(plan)["far"]
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: running(plan).get("far", before).sandbox != before.sandbox, "a new sandbox")
    until(lambda: not Path(before.netns).exists(), "the old namespace to go")


def test_a_deleted_pod_goes_with_its_sandbox(plan: LabPlan) -> None:
    pod = running(plan)["worker"]
    kubectl(plan, "delete", "pod", "-n", "shop", "worker", "--timeout=90s")
    assert not records.alive(pod)
    assert not Path(pod.netns).exists()
    assert not Path(pod.directory).exists()


def test_a_refused_attachment_is_told_and_tried_again(plan: LabPlan) -> None:
    """While the agent is away the plugin refuses; the pod comes up once it is back."""
    control.ask(plan.control_socket, {"kill_agent": "node-1"})
    spec = '{"nodeName": "node-1", "containers": [{"name": "c"}]}'
    body = f'{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "late"}}, "spec": {spec}}}'
    kubectl(plan, "apply", "-f", "-", stdin=body)
    until(lambda: "FailedCreatePodSandBox" in kubectl(plan, "get", "events"), "an event with the reason")
    assert "agent" in kubectl(plan, "get", "events").lower()
    control.ask(plan.control_socket, {"start_agent": "node-1"})
    kubectl(plan, "wait", "pod", "late", "--for=condition=Ready", "--timeout=90s")


def test_an_agent_can_be_killed_and_started(plan: LabPlan) -> None:
    first = control.ask(plan.control_socket, {"kill_agent": "node-2"})["pid"]
    assert not Path(f"/proc/{first}").exists()
    assert control.ask(plan.control_socket, {"start_agent": "node-2"})["pid"] != first
    with pytest.raises(control.ControlError, match="no node"):
        control.ask(plan.control_socket, {"kill_agent": "node-9"})


def test_down_takes_everything_even_without_the_daemon(plan: LabPlan) -> None:
    """Last: the lab is gone afterwards."""
    pods = running(plan)
    daemon = records.find_process(plan, "daemon")
    assert daemon is not None
    os.kill(daemon.pid, signal.SIGKILL)
    until(lambda: not records.alive(daemon), "the daemon's end")
    with pytest.raises(starting.StartError, match="remains of a lab"):
        starting.start(plan, lambda _: None)
    assert "is gone" in lab("down", "--name", NAME)
    assert left_over() == []
    assert not any(records.alive(pod) for pod in pods.values())
    assert "no lab" in lab("down", "--name", NAME)
