"""Structural schemas: pruning, defaulting, validation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.cluster.embedded.schema import apply_defaults, check_structure, prune, validate

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 4, "pattern": "^[a-z]+$"},
        "size": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
        "mode": {"type": "string", "enum": ["on", "off"]},
        "port": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "cidrs": {"type": "array", "maxItems": 2, "items": {"type": "string", "format": "cidr"}},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "nested": {"type": "object", "properties": {"deep": {"type": "boolean", "default": True}}},
        "maybe": {"type": "string", "nullable": True},
    },
}


@pytest.mark.parametrize(
    "value",
    [
        {"name": "a"},
        {"name": "ab", "size": 9, "mode": "on", "port": 80},
        {"name": "a", "port": "http", "cidrs": ["10.0.0.0/8", "fd00::1/64"]},
        {"name": "a", "labels": {"x": "y"}, "open": {"anything": [1]}, "maybe": None},
    ],
)
def test_valid_values(value: Any) -> None:
    assert validate(SCHEMA, value) == []


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "abcde"}, "name"),
        ({"name": "A"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"name": 1}, "name"),
        ({"name": None}, "name"),
        ({"name": "a", "size": 0}, "size"),
        ({"name": "a", "size": 10}, "size"),
        ({"name": "a", "size": True}, "size"),
        ({"name": "a", "size": 1.5}, "size"),
        ({"name": "a", "mode": "up"}, "mode"),
        ({"name": "a", "port": True}, "port"),
        ({"name": "a", "cidrs": ["10.0.0.1"]}, "cidrs[0]"),
        ({"name": "a", "cidrs": ["::/0"] * 3}, "cidrs"),
        ({"name": "a", "labels": {"x": 1}}, "labels.x"),
        ({"name": "a", "nested": []}, "nested"),
    ],
)
def test_each_fault_names_its_field(value: Any, path: str) -> None:
    assert next(fault.path for fault in validate(SCHEMA, value)) == path


def test_logic() -> None:
    either = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
        "not": {"required": ["c"]},
    }
    assert validate(either, {"a": "x"}) == []
    assert validate(either, {})
    assert validate(either, {"a": "x", "b": "y"})
    assert validate(either, {"a": "x", "c": 1})
    anything = {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}
    assert validate(anything, {"a": 1, "b": 1}) == []
    assert validate(anything, {})


def test_pruning_reports_what_it_removes() -> None:
    value = {
        "kind": "X",
        "metadata": {"anything": 1},
        "name": "a",
        "oops": 1,
        "nested": {"deep": True, "shallow": 1},
        "open": {"kept": {"all": 1}},
        "labels": {"kept": "x"},
    }
    assert prune(SCHEMA, value) == ["oops", "nested.shallow"]
    assert value["open"] == {"kept": {"all": 1}}
    assert value["metadata"] == {"anything": 1}
    assert "oops" not in value


def test_defaults_fill_in_absent_fields_only() -> None:
    value: dict[str, Any] = {"name": "a", "nested": {}, "size": None}
    apply_defaults(SCHEMA, value)
    assert value == {"name": "a", "size": 3, "nested": {"deep": True}}


def test_structure_is_checked() -> None:
    assert check_structure(SCHEMA, "s") == []
    faults = check_structure({"type": "object", "properties": {"a": {}, "b": {"type": "int"}}}, "s")
    assert [fault.path for fault in faults] == ["s.properties[a].type", "s.properties[b].type"]
    assert check_structure({"type": "string", "pattern": "("}, "s")[0].path == "s.pattern"


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*SCHEMA["properties"], "x"]), inner, max_size=4)
        ),
        max_leaves=10,
    )
)
def test_any_json_is_judged(value: Any) -> None:
    validate(SCHEMA, value)
    apply_defaults(SCHEMA, value)
    prune(SCHEMA, value)
