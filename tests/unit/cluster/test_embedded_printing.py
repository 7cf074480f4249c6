"""JSONPath, ages and tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.cluster.embedded.builtins import KINDS
from cilia.cluster.embedded.jsonpath import compile_path, find
from cilia.cluster.embedded.printing import custom_columns, duration, table

NOW = datetime(2026, 1, 2, tzinfo=UTC)
NODE = {
    "metadata": {"name": "n1", "labels": {"io.kubernetes.pod.namespace": "shop"}},
    "spec": {"addresses": [{"type": "InternalIP", "ip": "10.0.0.1"}, {"type": "Router", "ip": "10.0.1.1"}]},
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".metadata.name", ["n1"]),
        ("{.metadata.name}", ["n1"]),
        (r".metadata.labels.io\.kubernetes\.pod\.namespace", ["shop"]),
        (".metadata.labels['io.kubernetes.pod.namespace']", ["shop"]),
        ('.spec.addresses[?(@.type=="Router")].ip', ["10.0.1.1"]),
        (".spec.addresses[?(@.type!='Router')].ip", ["10.0.0.1"]),
        (".spec.addresses[*].ip", ["10.0.0.1", "10.0.1.1"]),
        (".spec.addresses[0].ip", ["10.0.0.1"]),
        (".spec.addresses[-1].ip", ["10.0.1.1"]),
        (".spec.addresses[9].ip", []),
        (".nothing.here", []),
    ],
)
def test_paths(path: str, expected: list[Any]) -> None:
    assert find(compile_path(path), NODE) == expected


@pytest.mark.parametrize("path", ["metadata", ".a[", ".a[?(@.b~1)]", ".a[?(@.b==c d)]", ".a b"])
def test_malformed_paths_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="JSONPath"):
        compile_path(path)


@given(st.text(max_size=20))
def test_any_path_compiles_or_is_refused(path: str) -> None:
    try:
        find(compile_path(path), NODE)
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (185, "3m5s"),
        (600, "10m"),
        (3 * 3600, "3h"),
        (3 * 3600 + 60, "3h1m"),
        (9 * 3600, "9h"),
        (50 * 3600, "2d2h"),
        (9 * 86400, "9d"),
        (800 * 86400, "2y70d"),
        (-5, "<invalid>"),
    ],
)
def test_durations(seconds: int, text: str) -> None:
    assert duration(seconds) == text


def test_custom_columns() -> None:
    columns = custom_columns(
        [
            {"name": "IP", "type": "string", "jsonPath": '.spec.addresses[?(@.type=="InternalIP")].ip'},
            {"name": "Count", "type": "integer", "jsonPath": ".spec.count", "priority": 1},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ]
    )
    node = {**NODE, "metadata": {"name": "n1", "creationTimestamp": "2026-01-01T23:59:00Z"}}
    shown = table(columns, [node], NOW, "Metadata", {"resourceVersion": "7"})
    assert [column["name"] for column in shown["columnDefinitions"]] == ["Name", "IP", "Count", "Age"]
    assert [column["priority"] for column in shown["columnDefinitions"]] == [0, 0, 1, 0]
    assert shown["rows"][0]["cells"] == ["n1", "10.0.0.1", None, "60s"]
    assert shown["rows"][0]["object"]["kind"] == "PartialObjectMetadata"


def test_every_built_in_column_copes_with_an_empty_object() -> None:
    for kind in KINDS:
        for version in kind.versions:
            shown = table(version.columns, [{"metadata": {"name": "x"}}], NOW, "None", {})
            assert len(shown["rows"][0]["cells"]) == len(version.columns)


def test_pod_and_node_cells() -> None:
    pod = {
        "metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "a"}], "nodeName": "n1"},
        "status": {"phase": "Running", "podIP": "10.0.0.9", "containerStatuses": [{"ready": True}]},
    }
    by_name = {kind.kind: kind for kind in KINDS}
    row = table(by_name["Pod"].versions[0].columns, [pod], NOW, "None", {})["rows"][0]["cells"]
    assert row[:4] == ["p", "1/1", "Terminating", "0"]
    assert row[5:7] == ["10.0.0.9", "n1"]
    node = {
        "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    row = table(by_name["Node"].versions[0].columns, [node], NOW, "None", {})["rows"][0]["cells"]
    assert row[:3] == ["n", "Ready", "control-plane"]
