"""The generated messages are current, and their names and numbers are Hubble's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from cilia.proto.peer import peer_pb2
from cilia.proto.relay import relay_pb2

ROOT = Path(__file__).resolve().parents[3]
FILES: dict[str, FileDescriptor] = {
    "flow/flow.proto": flow_pb2.DESCRIPTOR,
    "relay/relay.proto": relay_pb2.DESCRIPTOR,
    "observer/observer.proto": observer_pb2.DESCRIPTOR,
    "peer/peer.proto": peer_pb2.DESCRIPTOR,
}
SCALARS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_DOUBLE: "double",
}


def test_generated_files_are_current() -> None:
    pytest.importorskip("grpc_tools")
    check = [sys.executable, str(ROOT / "tools" / "protogen.py"), "--check"]
    assert subprocess.run(check, capture_output=True, text=True, check=False).stdout == ""


def type_name(field: FieldDescriptor) -> str:
    if field.message_type:
        name = field.message_type.full_name
    elif field.enum_type:
        name = field.enum_type.full_name
    else:
        name = SCALARS[field.type]
    return f"repeated {name}" if field.is_repeated else name


def fields_of(message: Descriptor) -> dict[str, tuple[int, str, str]]:
    return {
        field.name: (
            field.number,
            type_name(field),
            field.containing_oneof.name if field.containing_oneof else "",
        )
        for field in message.fields
    }


def named_types(file: FileDescriptor) -> dict[str, Descriptor | EnumDescriptor]:
    """All messages and enums, nested ones under their dotted name."""
    found: dict[str, Descriptor | EnumDescriptor] = {}

    def visit(prefix: str, message: Descriptor) -> None:
        found[prefix + message.name] = message
        for nested in message.nested_types:
            visit(f"{prefix}{message.name}.", nested)
        for enum in message.enum_types:
            found[f"{prefix}{message.name}.{enum.name}"] = enum

    for message in file.message_types_by_name.values():
        visit("", message)
    found.update(file.enum_types_by_name)
    return found


def compare(path: str, facts: dict[str, Any]) -> list[str]:
    """Differences between a file's descriptors and the facts."""
    file, problems = FILES[path], []
    present = named_types(file)
    if file.package != facts["package"] or present.keys() != facts["types"].keys():
        problems.append(f"{path}: {sorted(present.keys() ^ facts['types'].keys())}")
    for name, fact in facts["types"].items():
        here = present.get(name)
        if isinstance(here, EnumDescriptor):
            if {value.name: value.number for value in here.values} != fact["enum"]:
                problems.append(f"{path}: enum {name}")
        elif here is not None:
            want = {
                field: (spec["n"], spec["type"], spec.get("oneof", ""))
                for field, spec in fact["fields"].items()
            }
            if fields_of(here) != want:
                problems.append(f"{path}: message {name}")
    for name, methods in facts.get("services", {}).items():
        service = file.services_by_name[name]
        found = {
            method.name: {
                "request": method.input_type.full_name,
                "response": method.output_type.full_name,
                "server_streaming": method.server_streaming,
            }
            for method in service.methods
        }
        if found != methods:
            problems.append(f"{path}: service {name}")
    return problems


def test_names_and_numbers_are_those_of_the_facts() -> None:
    where = os.environ.get("CILIA_WIRE_FACTS")
    if not where:
        pytest.skip("CILIA_WIRE_FACTS does not name the directory with hubble_api.yaml")
    facts = yaml.safe_load((Path(where) / "hubble_api.yaml").read_text())
    assert facts.keys() == FILES.keys()
    assert [problem for path in FILES for problem in compare(path, facts[path])] == []
