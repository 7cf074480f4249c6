"""What the embedded server promises beyond the Kubernetes API: identity, roles, durability, refusals."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api_client import Client, Server, command, serving

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
IDENTITIES = "/apis/cilium.io/v2/ciliumidentities"
ENDPOINTS = "/apis/cilium.io/v2/namespaces/default/ciliumendpoints"
NODES = "/apis/cilium.io/v2/ciliumnodes"
POLICIES = "/apis/cilium.io/v2/namespaces/default/ciliumnetworkpolicies"


def definition(plural: str, kind: str, *, namespaced: bool) -> dict[str, Any]:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v2",
        "served": True,
        "storage": True,
        "subresources": {"status": {}} if kind == "CiliumNetworkPolicy" else {},
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.cilium.io"},
        "spec": {
            "group": "cilium.io",
            "scope": "Namespaced" if namespaced else "Cluster",
            "names": {"plural": plural, "kind": kind},
            "versions": [version],
        },
    }


def pod(name: str, node: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "x"}]},
    }


def custom(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": {"name": name}, **more}


@pytest.fixture(scope="module")
def cilium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Client]]:
    """A server of its own with Cilium's kinds, so that roles meet the names they are about."""
    with serving(tmp_path_factory.mktemp("roles") / "state") as server:
        admin = server.client()
        for plural, kind, namespaced in (
            ("ciliumidentities", "CiliumIdentity", False),
            ("ciliumnodes", "CiliumNode", False),
            ("ciliumendpoints", "CiliumEndpoint", True),
            ("ciliumnetworkpolicies", "CiliumNetworkPolicy", True),
        ):
            assert admin.post(CRDS, definition(plural, kind, namespaced=namespaced)).code == 201
        for name, node in (("mine", "n1"), ("theirs", "n2")):
            assert admin.post("/api/v1/namespaces/default/pods", pod(name, node)).code == 201
        yield server, admin


class TestIdentity:
    @pytest.mark.parametrize(
        "header", ["", "Bearer", "Bearer wrong", "Basic YWRtaW46YWRtaW4=", "Bearer \x7f"]
    )
    def test_nobody_is_anonymous(self, embedded: Server, header: str) -> None:
        client = embedded.client("someone", "viewer")
        for path in ("/api", "/healthz", "/version", "/api/v1/secrets", "/openapi/v3"):
            answer = client.call("GET", path, headers={"Authorization": header})
            assert (answer.code, answer.json["reason"]) == (401, "Unauthorized")

    def test_a_new_token_replaces_the_old(self, embedded: Server) -> None:
        old = embedded.client("rolling", "viewer")
        assert old.get("/version").code == 200
        new = embedded.client("rolling", "viewer")
        assert (old.get("/version").code, new.get("/version").code) == (401, 200)

    def test_secrets_on_disk_are_private(self, embedded: Server) -> None:
        embedded.client("private", "viewer")
        assert stat.S_IMODE(embedded.state.stat().st_mode) == 0o700
        for path in embedded.state.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path

    def test_tokens_are_not_stored(self, embedded: Server) -> None:
        client = embedded.client("hashed", "viewer")
        token = client._token
        assert token not in (embedded.state / "tokens.json").read_text()

    def test_plain_http_is_refused(self, embedded: Server) -> None:
        host, port = embedded.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=30) as plain:
            plain.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" not in plain.recv(100)


class TestRoles:
    def test_an_agent_writes_only_what_is_its_nodes(self, cilium: tuple[Server, Client]) -> None:
        server, admin = cilium
        agent = server.client("agent-n1", "agent", "n1")
        node = custom("CiliumNode", "n1", spec={"addresses": [{"type": "InternalIP", "ip": "10.1.1.1"}]})
        assert agent.post(NODES, node).code == 201
        assert agent.merge(NODES + "/n1", {"spec": {"x": 1}}).code == 200
        refused = agent.post(NODES, custom("CiliumNode", "n2"))
        assert refused.code == 403
        assert refused.json["message"] == (
            'ciliumnodes.cilium.io is forbidden: User "agent-n1" cannot create resource "ciliumnodes" in API '
            'group "cilium.io" at the cluster scope: '
            "this agent may write only the CiliumNode of its own node n1"
        )
        assert agent.post(ENDPOINTS, custom("CiliumEndpoint", "mine")).code == 201
        assert agent.post(ENDPOINTS, custom("CiliumEndpoint", "theirs")).code == 403
        assert admin.post(ENDPOINTS, custom("CiliumEndpoint", "theirs")).code == 201
        assert agent.merge(ENDPOINTS + "/theirs", {"status": {"state": "ready"}}).code == 403
        assert agent.delete(ENDPOINTS + "/theirs").code == 403
        assert agent.delete(ENDPOINTS + "/mine").code == 200
        assert agent.post(IDENTITIES, custom("CiliumIdentity", "300")).code == 201
        assert agent.delete(IDENTITIES + "/300").code == 403

    def test_an_agent_may_clean_up_after_a_pod_that_went(self, cilium: tuple[Server, Client]) -> None:
        server, admin = cilium
        agent = server.client("agent-n3", "agent", "n3")
        agent.post(
            NODES, custom("CiliumNode", "n3", spec={"addresses": [{"type": "InternalIP", "ip": "10.1.1.3"}]})
        )
        for name, address in (("gone", "10.1.1.3"), ("other", "10.1.1.9")):
            endpoint = custom("CiliumEndpoint", name, status={"networking": {"node": address}})
            assert admin.post(ENDPOINTS, endpoint).code == 201
        assert agent.delete(ENDPOINTS + "/gone").code == 200
        assert agent.delete(ENDPOINTS + "/other").code == 403

    def test_an_agent_never_writes_policy_nor_reads_secrets(self, cilium: tuple[Server, Client]) -> None:
        server, admin = cilium
        agent = server.client("agent-n4", "agent", "n4")
        policy = custom("CiliumNetworkPolicy", "p", spec={"endpointSelector": {}})
        assert agent.post(POLICIES, policy).code == 403
        assert admin.post(POLICIES, policy).code == 201
        assert agent.merge(POLICIES + "/p", {"spec": {}}).code == 403
        assert agent.merge(POLICIES + "/p/status", {"status": {"ok": True}}).code == 200
        assert agent.get(POLICIES).code == 200
        for path in ("/api/v1/secrets", "/api/v1/namespaces/default/secrets/x", "/api/v1/configmaps"):
            assert agent.get(path).code == 403
        assert agent.post("/api/v1/namespaces/default/pods", pod("x", "n4")).code == 403
        assert agent.delete(POLICIES).code == 403

    def test_an_agent_keeps_its_own_lease(self, cilium: tuple[Server, Client]) -> None:
        agent = cilium[0].client("agent-n5", "agent", "n5")
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "n5"},
            "spec": {},
        }
        assert agent.post(path, lease).code == 201
        assert agent.post(path, {**lease, "metadata": {"name": "n1"}}).code == 403

    def test_what_the_others_may(self, cilium: tuple[Server, Client]) -> None:
        server, admin = cilium
        lab, operator, viewer = (server.client(r, r) for r in ("lab", "operator", "viewer"))
        pods = "/api/v1/namespaces/default/pods"
        assert lab.merge(pods + "/mine/status", {"status": {"phase": "Running"}}).code == 200
        assert operator.merge(pods + "/mine/status", {"status": {"phase": "Failed"}}).code == 403
        assert operator.get(CRDS).code == 200
        assert lab.post(POLICIES, custom("CiliumNetworkPolicy", "q")).code == 403
        assert viewer.get(pods).code == 200
        assert viewer.get("/api/v1/secrets").code == 403
        assert viewer.delete(pods + "/mine").code == 403
        assert admin.get("/api/v1/secrets").code == 200

    def test_asking_what_one_may(self, cilium: tuple[Server, Client]) -> None:
        agent = cilium[0].client("agent-n6", "agent", "n6")
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"

        def may(verb: str, resource: str) -> bool:
            body = {"spec": {"resourceAttributes": {"verb": verb, "resource": resource}}}
            return bool(agent.post(path, body).json["status"]["allowed"])

        assert may("list", "pods")
        assert not may("list", "secrets")
        who = agent.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", {}).json
        assert who["status"]["userInfo"]["username"] == "agent-n6"


class TestDurability:
    def test_sigkill_loses_no_acknowledged_write(self, tmp_path: Path) -> None:
        acknowledged: dict[str, str] = {}
        path = "/api/v1/namespaces/default/configmaps"
        with serving(tmp_path / "state") as server:
            client = server.client()
            stop = threading.Event()

            def write(worker: int) -> None:
                count = 0
                while not stop.is_set():
                    name = f"w{worker}-{count}"
                    try:
                        answer = client.post(path, {"metadata": {"name": name}, "data": {"n": str(count)}})
                        if answer.code == 201:
                            acknowledged[name] = answer.json["metadata"]["resourceVersion"]
                    except OSError:
                        return
                    count += 1

            workers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
            for worker in workers:
                worker.start()
            while len(acknowledged) < 60:
                assert any(worker.is_alive() for worker in workers)
                stop.wait(0.02)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            stop.set()
            for worker in workers:
                worker.join()
        with serving(tmp_path / "state") as server:
            items = server.client().get(path).json["items"]
            kept = {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in items}
        assert acknowledged.items() <= kept.items()

    def test_a_restart_keeps_kinds_objects_and_history(self, tmp_path: Path) -> None:
        path = "/api/v1/namespaces/default/configmaps"
        with serving(tmp_path / "state") as server:
            client = server.client()
            client.post(CRDS, definition("ciliumnodes", "CiliumNode", namespaced=False))
            client.post(NODES, custom("CiliumNode", "n1"))
            first = client.post(path, {"metadata": {"name": "a"}}).json["metadata"]["resourceVersion"]
            client.merge(path + "/a", {"data": {"x": "1"}})
            client.delete(path + "/a")
        with serving(tmp_path / "state") as server:
            client = server.client()
            with client.watch(path, resourceVersion=first) as events:
                assert [event["type"] for event in events.take(2)] == ["MODIFIED", "DELETED"]
            later = client.post(path, {"metadata": {"name": "b"}}).json["metadata"]["resourceVersion"]
            assert int(later) > int(first) + 2
            assert client.get(NODES + "/n1").code == 200
            client.delete(CRDS + "/ciliumnodes.cilium.io")
            client.until_gone(CRDS + "/ciliumnodes.cilium.io")
            assert client.get(NODES).code == 404

    @pytest.mark.root
    def test_a_full_disk_is_said_and_leaves_nothing_half_made(self, tmp_path: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root: mounts a small tmpfs")
        small = tmp_path / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "cilia-test", small], check=True)
        try:
            reserve = small / "reserve"
            reserve.write_bytes(b"x" * 300_000)
            with serving(small / "state") as server:
                client = server.client()
                path = "/api/v1/namespaces/default/configmaps"
                codes = []
                for number in range(40):
                    body = {"metadata": {"name": f"m{number}"}, "data": {"x": "y" * 100_000}}
                    answer = client.post(path, body)
                    codes.append(answer.code)
                    if answer.code != 201:
                        break
                assert answer.code == 507
                assert "disk of the API server is full" in answer.json["message"]
                made = len(codes) - 1
                assert len(client.get(path).json["items"]) == made
                assert client.get(f"{path}/m{made}").code == 404
            reserve.unlink()
            with serving(small / "state") as server:
                assert len(server.client().get(path).json["items"]) == made
        finally:
            subprocess.run(["umount", small], check=True)


def test_a_server_that_cannot_start_says_why_in_one_line(embedded: Server, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        command("--state-dir", tmp_path / "state", "--listen", embedded.address),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"cilia-apiserver: can't listen on {embedded.address}: ")
    assert done.stderr.count("\n") == 1


def test_inherited_sockets(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = listening.fileno()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        reader, writer = os.pipe()
        process = subprocess.Popen(
            command("--state-dir", tmp_path / "state", "--listen-fd", number, "--ready-fd", writer),
            pass_fds=[number, writer],
            env=environment,
        )
        os.close(writer)
        try:
            with os.fdopen(reader) as ready:
                assert ready.readline() == "ready on {}:{}\n".format(*listening.getsockname())
            server = Server(tmp_path / "state", process, "{}:{}".format(*listening.getsockname()))
            assert server.client().get("/healthz").body == b"ok"
        finally:
            process.terminate()
            assert process.wait(60) == 0
