"""Services over the wire: what each is given stays its own, whoever asks at once, and across a restart."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.api_client import Client, serving

SERVICES = "/api/v1/namespaces/default/services"
FLAGS = ("--service-cluster-ip-range", "10.96.0.0/24,fd00::/120", "--service-node-port-range", "30000-30063")


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(tmp_path_factory.mktemp("services") / "state", *FLAGS) as server:
        yield server.client()


def test_many_at_once_get_addresses_and_ports_of_their_own(admin: Client) -> None:
    wanted = [service(f"s{at}", type="NodePort", ipFamilyPolicy="PreferDualStack") for at in range(60)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda body: admin.post(SERVICES, body), wanted))
    assert {answer.code for answer in answers} == {201}
    specs = [answer.json["spec"] for answer in answers]
    addresses = [address for spec in specs for address in spec["clusterIPs"]]
    ports = [spec["ports"][0]["nodePort"] for spec in specs]
    assert (len(set(addresses)), len(set(ports))) == (120, 60)
    for at in range(60):
        assert admin.delete(f"{SERVICES}/s{at}").code == 200


def test_of_many_that_want_one_port_one_gets_it(admin: Client) -> None:
    body = {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30007}]}
    wanted = [service(f"w{at}", **body) for at in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: admin.post(SERVICES, body), wanted))
    assert sorted(answer.code for answer in answers) == [201, *[422] * 7]
    refused = next(answer for answer in answers if answer.code == 422)
    assert "provided port is already allocated" in refused.json["message"]
    assert refused.json["details"]["causes"][0]["field"] == "spec.ports[0].nodePort"
    for at in range(8):
        admin.delete(f"{SERVICES}/w{at}")


def test_a_trial_run_takes_nothing(admin: Client) -> None:
    body = service("trial", clusterIP="10.96.0.77")
    assert admin.post(SERVICES, body, dryRun="All").code == 201
    assert admin.post(SERVICES, service("real", clusterIP="10.96.0.77")).code == 201
    assert admin.delete(f"{SERVICES}/real").code == 200


def test_a_status_leaves_what_was_given_alone(admin: Client) -> None:
    before = admin.post(SERVICES, service("lb", type="LoadBalancer")).json["spec"]
    status = {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}}
    after = admin.merge(f"{SERVICES}/lb/status", status).json
    assert after["spec"] == before
    assert after["status"]["loadBalancer"]["ingress"] == [{"ip": "203.0.113.9", "ipMode": "VIP"}]
    bad = admin.merge(f"{SERVICES}/lb/status", {"status": {"loadBalancer": {"ingress": [{"ip": "moon"}]}}})
    assert bad.code == 422
    assert admin.delete(f"{SERVICES}/lb").code == 200


def test_what_was_given_stays_given_across_a_restart(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with serving(state, *FLAGS) as server:
        spec = server.client().post(SERVICES, service("a", type="NodePort")).json["spec"]
    with serving(state, *FLAGS) as server:
        client = server.client()
        clash = client.post(SERVICES, service("b", clusterIP=spec["clusterIP"]))
        assert "default/a has it already" in clash.json["message"]
        port = {"port": 80, "nodePort": spec["ports"][0]["nodePort"]}
        assert client.post(SERVICES, service("c", type="NodePort", ports=[port])).code == 422
        assert client.delete(f"{SERVICES}/a").code == 200
        assert client.post(SERVICES, service("b", clusterIP=spec["clusterIP"])).code == 201
