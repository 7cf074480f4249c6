"""The layouts read from the compiled object against the headers they come from."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cilia import abi
from cilia.abi import btf, elf
from cilia.abi.layout import read

HEADERS = sorted((Path(__file__).parents[3] / "bpf" / "abi").glob("*.h"))
DECLARATION = re.compile(r"^(struct|enum) (\w+) \{", re.MULTILINE)
MAP_VALUES = ("endpoint", "iface", "ipcache_entry", "policy_active", "ct_entry", "nat_entry", "node_settings")

pytestmark = pytest.mark.skipif(not abi.object_path().exists(), reason="needs the eBPF object: run make bpf")


def declared(kind: str) -> list[str]:
    """Names that the headers declare."""
    return [
        name for header in HEADERS for what, name in DECLARATION.findall(header.read_text()) if what == kind
    ]


@pytest.mark.parametrize("name", declared("struct"))
def test_every_struct_of_the_headers_has_a_dtype(name: str) -> None:
    assert abi.layout().dtype(name).itemsize > 0


@pytest.mark.parametrize("name", declared("enum"))
def test_every_enum_of_the_headers_is_there(name: str) -> None:
    assert len(abi.layout().enum(name)) > 0


def test_network_order_survives() -> None:
    event = abi.layout().dtype("event")
    assert event["source"]["lo"].str == ">u8" and event["source_port"].str == ">u2"
    assert event["source_identity"].str == "<u4" and event["source_mac"] == np.dtype(("u1", (6,)))


@pytest.mark.parametrize("name", MAP_VALUES)
def test_values_are_whole_words(name: str) -> None:
    """Mapped arrays and records copied by words need sizes that are multiples of 8."""
    assert abi.layout().dtype(name).itemsize % 8 == 0


def test_the_active_word_is_one_store() -> None:
    dtype = abi.layout().dtype("policy_active")
    assert dtype.itemsize == 8 and dtype.names == ("slot", "revision")


def test_keys_have_no_holes_that_a_compiler_chose() -> None:
    """Keys are compared as bytes, so every byte must belong to a field."""
    for name in {spec.key for spec in abi.layout().maps.values()} & set(declared("struct")):
        dtype = abi.layout().dtype(name)
        assert sum(dtype[field].itemsize for field in dtype.names or ()) == dtype.itemsize, name


def test_drop_reasons_lose_their_prefix() -> None:
    reasons = abi.layout().enum("drop_reason")
    assert reasons(133).name == "POLICY_DENIED" and reasons(0).name == "FORWARDED"
    assert abi.layout().value("DROP_POLICY_DENIED") == 133


def test_constants_and_maps_are_named() -> None:
    layout = abi.layout()
    assert layout.constants["events_enabled"] == np.bool_
    conntrack = layout.maps["conntrack"]
    assert (conntrack.key, conntrack.value, conntrack.type) == ("ct_key", "ct_entry", 1)
    assert layout.maps["ifaces"].key == "u32" and layout.maps["events"].key == ""


def test_unknown_names_are_key_errors() -> None:
    for ask in (abi.layout().dtype, abi.layout().enum, abi.layout().value):
        with pytest.raises(KeyError):
            ask("nothing_of_that_name")


def test_a_missing_object_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(abi.ObjectMissing, match=r"is missing: run make bpf$"):
        read(tmp_path / "cilia.bpf.o")


@pytest.mark.parametrize("size", [0, 3, 64, 1000, 200_000])
def test_a_cut_off_object_is_refused_in_a_sentence(tmp_path: Path, size: int) -> None:
    path = tmp_path / "half.o"
    path.write_bytes(abi.object_path().read_bytes()[:size])
    with pytest.raises(abi.ObjectMissing, match="not a usable eBPF object"):
        read(path)


def test_a_missing_section_is_named() -> None:
    with pytest.raises(elf.ElfError, match=r"no section \.nothing"):
        elf.section(abi.object_path().read_bytes(), ".nothing")


def test_damaged_types_are_refused() -> None:
    good = elf.section(abi.object_path().read_bytes(), ".BTF")
    with pytest.raises(btf.BtfError, match="not BTF"):
        btf.parse(b"\0" * 64)
    with pytest.raises(btf.BtfError):
        btf.parse(good[: len(good) // 2])


KINDS = """
typedef unsigned short __be16; typedef __be16 port_type;
enum colour { RED = 1, BLUE = 2 };
struct inner { unsigned char bytes[6]; __be16 port; };
struct outer {
	const volatile struct inner pair[2]; port_type port; enum colour colour; _Bool on; signed char s;
};
struct outer outer; enum colour colour;
"""


def test_kinds_of_fields_become_kinds_of_dtypes(tmp_path: Path) -> None:
    source, made = tmp_path / "kinds.c", tmp_path / "kinds.o"
    source.write_text(KINDS)
    try:
        subprocess.run(["clang", "-target", "bpf", "-g", "-O2", "-c", source, "-o", made], check=True)
    except FileNotFoundError:
        pytest.skip("needs clang")
    layout = read(made)
    outer = layout.dtype("outer")
    assert outer["pair"].shape == (2,) and outer["pair"].base["port"].str == ">u2"
    assert outer["port"].str == ">u2" and outer["colour"].str == "<u4"
    assert outer["on"] == np.bool_ and outer["s"].str == "|i1"
    assert layout.value("BLUE") == 2
