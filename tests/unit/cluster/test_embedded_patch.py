"""JSON patch, merge patch and strategic merge patch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.cluster.embedded.errors import ApiError
from cilia.cluster.embedded.patch import json_patch, merge_patch, same
from cilia.cluster.embedded.strategic import strategic_merge

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


# RFC 7386, appendix A.
@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "foo"}, None, None),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_follows_the_rfc(target: Any, patch: Any, expected: Any) -> None:
    assert merge_patch(target, patch) == expected


# RFC 6902, appendix A.
@pytest.mark.parametrize(
    ("target", "operation", "expected"),
    [
        ({"foo": "bar"}, {"op": "add", "path": "/baz", "value": "qux"}, {"foo": "bar", "baz": "qux"}),
        ({"foo": ["a", "b"]}, {"op": "add", "path": "/foo/1", "value": "x"}, {"foo": ["a", "x", "b"]}),
        ({"foo": ["a"]}, {"op": "add", "path": "/foo/-", "value": ["x"]}, {"foo": ["a", ["x"]]}),
        ({"a": 1, "b": 2}, {"op": "remove", "path": "/a"}, {"b": 2}),
        ({"foo": [1, 2, 3]}, {"op": "remove", "path": "/foo/1"}, {"foo": [1, 3]}),
        ({"a": 1}, {"op": "replace", "path": "/a", "value": 2}, {"a": 2}),
        ({"a": {"x": 1}, "b": {}}, {"op": "move", "from": "/a/x", "path": "/b/y"}, {"a": {}, "b": {"y": 1}}),
        ({"a": [1, 2]}, {"op": "copy", "from": "/a/0", "path": "/a/-"}, {"a": [1, 2, 1]}),
        ({"a": {"~": 1, "/": 2}}, {"op": "test", "path": "/a/~0", "value": 1}, {"a": {"~": 1, "/": 2}}),
        ({"a": {"/": 2}}, {"op": "remove", "path": "/a/~1"}, {"a": {}}),
        ({"": 1}, {"op": "replace", "path": "/", "value": 2}, {"": 2}),
        ({"a": 1}, {"op": "replace", "path": "", "value": {"b": 1}}, {"b": 1}),
    ],
)
def test_json_patch_follows_the_rfc(target: Any, operation: Any, expected: Any) -> None:
    before = copy.deepcopy(target)
    assert json_patch(target, [operation]) == expected
    assert target == before


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "add", "path": "/a/b/c", "value": 1},
        {"op": "remove", "path": "/nothing"},
        {"op": "replace", "path": "/nothing", "value": 1},
        {"op": "test", "path": "/a", "value": True},
        {"op": "add", "path": "/l/3", "value": 1},
        {"op": "add", "path": "/l/01", "value": 1},
        {"op": "add", "path": "/l/-1", "value": 1},
        {"op": "remove", "path": "/l/-"},
        {"op": "move", "from": "/o", "path": "/o/x"},
        {"op": "burn", "path": "/a"},
        {"op": "add", "path": "a", "value": 1},
        {"op": "add", "path": "/a"},
        {"path": "/a"},
        7,
    ],
)
def test_impossible_json_patches_are_refused(operation: Any) -> None:
    with pytest.raises(ApiError):
        json_patch({"a": 1, "l": [0, 1], "o": {}}, [operation])


@given(JSON, JSON)
def test_patching_never_fails_otherwise(target: Any, patch: Any) -> None:
    before = copy.deepcopy(target)
    merge_patch(target, patch)
    for apply in (json_patch, lambda t, p: strategic_merge("Pod", t, p)):
        try:
            apply(target, patch)
        except ApiError as error:
            assert error.code in (400, 422)
    assert same(target, before)


@given(JSON, JSON)
def test_a_test_operation_passes_exactly_for_equal_values(left: Any, right: Any) -> None:
    operation = [{"op": "test", "path": "/a", "value": right}]
    if same(left, right):
        assert json_patch({"a": left}, operation) == {"a": left}
    else:
        with pytest.raises(ApiError):
            json_patch({"a": left}, operation)


POD = {
    "spec": {
        "containers": [
            {
                "name": "a",
                "image": "x",
                "env": [{"name": "E", "value": "1"}],
                "ports": [{"containerPort": 80}],
            },
            {"name": "b", "image": "y"},
        ],
        "tolerations": [{"key": "k"}],
    }
}


def test_strategic_merge_joins_lists_by_their_key() -> None:
    patch = {"spec": {"containers": [{"name": "a", "env": [{"name": "F", "value": "2"}]}]}}
    merged = strategic_merge("Pod", POD, patch)
    assert [c["name"] for c in merged["spec"]["containers"]] == ["a", "b"]
    assert [e["name"] for e in merged["spec"]["containers"][0]["env"]] == ["E", "F"]
    assert merged["spec"]["containers"][0]["image"] == "x"


def test_strategic_merge_replaces_lists_without_a_key() -> None:
    merged = strategic_merge("Pod", POD, {"spec": {"tolerations": [{"key": "z"}]}})
    assert merged["spec"]["tolerations"] == [{"key": "z"}]


def test_strategic_merge_deletes_items_and_orders_them() -> None:
    patch = {
        "spec": {
            "$setElementOrder/containers": [{"name": "c"}, {"name": "b"}],
            "containers": [{"name": "c", "image": "z"}, {"name": "a", "$patch": "delete"}],
        }
    }
    merged = strategic_merge("Pod", POD, patch)
    assert [c["name"] for c in merged["spec"]["containers"]] == ["c", "b"]


def test_strategic_merge_replaces_and_retains_on_request() -> None:
    volume = {"volumes": [{"name": "v", "emptyDir": {}}]}
    patch = {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}
    assert strategic_merge("Pod", volume, patch) == {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}
    assert strategic_merge("Pod", {"a": {"b": 1}}, {"a": {"$patch": "replace", "c": 2}}) == {"a": {"c": 2}}


def test_strategic_merge_knows_sets_and_primitive_deletions() -> None:
    meta = {"metadata": {"finalizers": ["a", "b"]}}
    assert strategic_merge("Pod", meta, {"metadata": {"finalizers": ["c"]}})["metadata"]["finalizers"] == [
        "a",
        "b",
        "c",
    ]
    patch = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}
    assert strategic_merge("Pod", meta, patch)["metadata"]["finalizers"] == ["b"]


def test_ports_merge_by_what_the_kind_says() -> None:
    service = {"spec": {"ports": [{"port": 80, "name": "x"}]}}
    patch = {"spec": {"ports": [{"port": 81}]}}
    assert len(strategic_merge("Service", service, patch)["spec"]["ports"]) == 2
    assert len(strategic_merge("NetworkPolicy", service, patch)["spec"]["ports"]) == 1
