"""Garbage in: every answer is a Status of the 4xx kind or a real success, and the server lives on."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.api_client import Answer, Client

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
WORDS = """
apiVersion kind metadata spec status name namespace labels annotations ports finalizers ownerReferences
uid ingress egress podSelector from ipBlock cidr except containers names versions schema openAPIV3Schema
properties data endpoints deletionTimestamp resourceVersion addresses addressType group scope plural to
"""
FIELDS = st.sampled_from(WORDS.split())
JSON = st.recursive(
    LEAF,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(FIELDS | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=15,
)
COLLECTIONS = st.sampled_from(
    [
        "/api/v1/namespaces/default/pods",
        "/api/v1/namespaces/default/services",
        "/api/v1/namespaces/default/events",
        "/api/v1/namespaces/default/secrets",
        "/api/v1/nodes",
        "/apis/events.k8s.io/v1/namespaces/default/events",
        "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
        "/apis/coordination.k8s.io/v1/namespaces/default/leases",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
    ]
)
PATCHES = st.sampled_from(
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"]
)


def sane(answer: Answer) -> None:
    """No internal error, and a Status where it was refused."""
    assert answer.code < 500, answer.body
    if answer.code >= 400:
        assert answer.json["kind"] == "Status"
        assert "Traceback" not in answer.json["message"]


@FUZZ
@given(path=COLLECTIONS, body=JSON)
def test_objects(api: Client, path: str, body: Any) -> None:
    if isinstance(body, dict):
        body["metadata"] = (
            {"name": "fuzzed"} if not isinstance(body.get("metadata"), dict) else body["metadata"]
        )
    sane(api.post(path, body, dryRun="All"))


@FUZZ
@given(kind=PATCHES, patch=JSON)
def test_patches(api: Client, kind: str, patch: Any) -> None:
    path = "/api/v1/namespaces/kube-public/configmaps"
    api.post(path, {"metadata": {"name": "target", "labels": {"a": "b"}}, "data": {"x": "y"}})
    sane(api.call("PATCH", f"{path}/target", patch, kind=kind, query={"dryRun": "All"}))


@FUZZ
@given(spec=JSON, names=JSON, schema=JSON)
def test_definitions(api: Client, spec: Any, names: Any, schema: Any) -> None:
    body = {
        "metadata": {"name": "as.fuzz.example"},
        "spec": {
            "group": "fuzz.example",
            "scope": "Cluster",
            "names": {"plural": "as", "kind": "A", **(names if isinstance(names, dict) else {})},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    **(spec if isinstance(spec, dict) else {}),
                }
            ],
        },
    }
    sane(api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body, dryRun="All"))


@FUZZ
@given(body=st.binary(max_size=60), protobuf=st.booleans())
def test_bytes(api: Client, body: bytes, protobuf: bool) -> None:
    kind = "application/vnd.kubernetes.protobuf" if protobuf else "application/json"
    prefix = b"k8s\x00" if protobuf else b""
    sane(
        api.call(
            "POST", "/api/v1/namespaces/default/configmaps", prefix + body, kind=kind, query={"dryRun": "All"}
        )
    )


@FUZZ
@given(
    path=st.text(max_size=30),
    query=st.dictionaries(
        st.sampled_from(["limit", "continue", "labelSelector", "fieldSelector", "resourceVersion", "dryRun"])
        | st.sampled_from(["resourceVersionMatch", "includeObject", "timeoutSeconds", "fieldValidation"]),
        st.text(max_size=10),
        max_size=4,
    ),
)
def test_paths_and_queries(api: Client, path: str, query: dict[str, str]) -> None:
    sane(api.get("/" + quote(path), **query))
    answer = api.get("/api/v1/pods", **query)
    assert answer.code == 504 or answer.code < 500


@pytest.mark.parametrize(
    "accept", ["text/html", "application/yaml", "application/json;as=Nothing", ";;=,", "*/*"]
)
def test_accept_headers(api: Client, accept: str) -> None:
    sane(api.call("GET", "/api/v1/pods", accept=accept))


def test_deep_json(api: Client) -> None:
    for depth in (200, 5_000, 100_000):
        body = b'{"metadata":{"name":"a"},"data":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
        answer = api.call("POST", "/api/v1/namespaces/default/configmaps", body)
        assert answer.code == 400


def test_duplicate_and_huge_numbers(api: Client) -> None:
    for body in (
        b'{"metadata":{"name":"a","generation":1e999}}',
        b'{"metadata":{"name":"a","generation":' + b"9" * 400 + b"}}",
    ):
        sane(api.call("POST", "/api/v1/namespaces/default/configmaps", body, query={"dryRun": "All"}))
