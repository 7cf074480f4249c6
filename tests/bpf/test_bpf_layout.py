"""The object says everything about itself, and its source keeps its own rules."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cilia import abi

SOURCE = Path(__file__).parents[2] / "bpf"
TYPE = re.compile(r"^(struct|enum) (\w+) \{", re.MULTILINE)
FLOOR = re.compile(r"Floor (\d+)")
INCLUDE = re.compile(r'#include "(\w+\.h)"')
CONSTANT = re.compile(r"^const volatile \w+ (\w+) =", re.MULTILINE)


def headers(folder: str) -> list[Path]:
    return sorted((SOURCE / folder).glob("*.h"))


def test_every_type_of_the_layouts_is_in_the_object() -> None:
    layout = abi.layout()
    for header in headers("abi"):
        for kind, name in TYPE.findall(header.read_text()):
            if kind == "enum":
                assert name in layout.enums, f"{header.name}: anchor.h lacks enum {name}"
            else:
                assert name in layout.structs(), f"{header.name}: anchor.h lacks struct {name}"


def test_keys_have_no_holes() -> None:
    """Maps compare every byte of a key: each must have a name."""
    layout = abi.layout()
    for name in ("address", *(name for name in layout.structs() if name.endswith("_key"))):
        dtype = layout.dtype(name)
        fields = sum(field[0].itemsize for field in (dtype.fields or {}).values())
        assert fields == dtype.itemsize, f"struct {name} has a hole"


def test_every_constant_has_its_comment() -> None:
    declared = set()
    for header in headers("config"):
        lines = header.read_text().splitlines()
        for number, line in enumerate(lines):
            for name in CONSTANT.findall(line):
                declared.add(name)
                assert lines[number - 1].startswith("/*"), f"{name} has no comment"
    assert declared == set(abi.layout().constants)


def test_headers_include_downwards_only() -> None:
    floors = {path.name: int(FLOOR.findall(path.read_text())[0]) for path in headers("lib")}
    for path in headers("lib"):
        for included in INCLUDE.findall(path.read_text()):
            assert floors[included] < floors[path.name], f"{path.name} includes {included}"


def test_drop_reasons_are_those_of_hubble() -> None:
    reasons = abi.layout().enum("drop_reason")
    assert (reasons["POLICY_DENIED"], reasons["POLICY_DENY"], reasons["TTL_EXCEEDED"]) == (133, 181, 196)


@pytest.mark.parametrize("target", ["check-headers", "check-format"])
def test_source_checks(target: str) -> None:
    if not (shutil.which("clang") and shutil.which("clang-format")):
        pytest.skip("needs clang and clang-format")
    done = subprocess.run(["make", "-s", "-C", SOURCE, target], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
