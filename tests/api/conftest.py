"""One API server for the conformance tests: embedded, or any other through ``CILIA_TEST_KUBECONFIG``."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_client import Client, Server, serving

OTHER = os.environ.get("CILIA_TEST_KUBECONFIG", "")


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running embedded server, for what only it promises."""
    with serving(tmp_path_factory.mktemp("apiserver") / "state") as server:
        yield server


@pytest.fixture(scope="session")
def api(request: pytest.FixtureRequest) -> Client:
    """An administrator of the server under test."""
    if OTHER:
        return Client(Path(OTHER))
    server: Server = request.getfixturevalue("embedded")
    return server.client()


@pytest.fixture
def namespace(api: Client) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    assert api.post("/api/v1/namespaces", {"metadata": {"name": name}}).code == 201
    yield name
    for pod in api.get(f"/api/v1/namespaces/{name}/pods").json.get("items", []):
        api.delete(f"/api/v1/namespaces/{name}/pods/{pod['metadata']['name']}", gracePeriodSeconds=0)
    api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="session")
def widgets(api: Client) -> Iterator[str]:
    """The collection path (below a namespace) of a custom resource with a schema and a status."""
    group = "test.cilia.example"
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"widgets.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wg"], "categories": ["toys"]},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
                        {
                            "name": "Ready",
                            "type": "string",
                            "jsonPath": '.status.conditions[?(@.type=="Ready")].status',
                        },
                    ],
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {
                                "spec": {
                                    "type": "object",
                                    "required": ["size"],
                                    "properties": {
                                        "size": {"type": "integer", "minimum": 1, "maximum": 9},
                                        "colour": {"type": "string", "default": "red", "pattern": "^[a-z]+$"},
                                        "cidr": {"type": "string", "format": "cidr"},
                                    },
                                },
                                "status": {
                                    "type": "object",
                                    "x-kubernetes-preserve-unknown-fields": True,
                                },
                            },
                        }
                    },
                }
            ],
        },
    }
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    assert api.post(path, definition).code == 201
    with api.watch(path, fieldSelector=f"metadata.name=widgets.{group}") as events:
        for event in events:
            conditions = event["object"].get("status", {}).get("conditions", [])
            if any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
                break
    yield f"/apis/{group}/v1/namespaces/{{}}/widgets"
    api.delete(f"{path}/widgets.{group}")
    api.until_gone(f"{path}/widgets.{group}")
