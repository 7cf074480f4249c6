"""`cilia-operator` as a process against the embedded API server."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.api_client import Client, Server, serving
from tests.support.waiting import until

NODES = "/apis/cilium.io/v2/ciliumnodes"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/cilium-operator-resource-lock"
QUICK = (
    "--leader-election-lease-duration=3",
    "--leader-election-renew-deadline=2",
    "--leader-election-retry-period=0.2",
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "state") as running:
        yield running


def launch(*arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "cilia.apps.operator", "--health-listen=", "--metrics-listen="]
    return subprocess.Popen(
        [*command, *map(str, arguments)], stderr=subprocess.PIPE, text=True, env=environment
    )


@contextmanager
def operator(kubeconfig: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = launch("--kubeconfig", kubeconfig, *QUICK, *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def holder(admin: Client) -> str:
    answer = admin.get(LEASE)
    return str(answer.json["spec"].get("holderIdentity", "")) if answer.code == 200 else ""


def pod_cidrs(admin: Client, name: str) -> list[str]:
    found: list[str] = admin.get(f"{NODES}/{name}").json["spec"].get("ipam", {}).get("podCIDRs", [])
    return found


def test_definitions_prefixes_and_a_change_of_leader(server: Server) -> None:
    admin = server.client()
    kubeconfig = server.client("cilia-operator", "operator").kubeconfig
    pools = ("--cluster-pool-ipv4-cidr=10.244.0.0/23", "--cluster-pool-ipv6-cidr=fd00:10:244::/104")
    with operator(kubeconfig, *pools) as first:
        until(lambda: admin.get(NODES).code == 200, "the API server")
        assert admin.post(NODES, {"metadata": {"name": "n1"}, "spec": {}}).code == 201
        until(lambda: pod_cidrs(admin, "n1") == ["10.244.0.0/24", "fd00:10:244::/120"], "the first prefixes")
        leader = holder(admin)
        with operator(kubeconfig, *pools):
            first.send_signal(signal.SIGTERM)
            assert first.wait(60) == 0
            assert first.stderr is not None
            assert "Traceback" not in first.stderr.read()
            until(lambda: holder(admin) not in ("", leader), "another leader")
            admin.post(NODES, {"metadata": {"name": "n2"}, "spec": {}})
            until(
                lambda: pod_cidrs(admin, "n2") == ["10.244.1.0/24", "fd00:10:244::100/120"],
                "the second prefixes",
            )
            admin.post(NODES, {"metadata": {"name": "n3"}, "spec": {}})
            until(lambda: "status" in admin.get(f"{NODES}/n3").json, "a status")
            status = admin.get(f"{NODES}/n3").json["status"]["ipam"]["operator-status"]
            assert "no IPv4 prefix is left in 10.244.0.0/23" in status["error"]


def test_another_takes_over_when_the_leader_is_killed(server: Server) -> None:
    admin = server.client()
    kubeconfig = server.client("cilia-operator", "operator").kubeconfig
    with operator(kubeconfig) as first:
        until(lambda: holder(admin), "a leader")
        leader = holder(admin)
        first.kill()
        with operator(kubeconfig):
            until(lambda: holder(admin) not in ("", leader), "another leader")
