"""Loading, adopting and refusing: what a start of the agent may meet."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cilia import abi
from cilia.dataplane import bpf, loader, requirements
from cilia.dataplane.bpf import Attach, BpfError
from tests.support.dataplane import PREFIX, SMALL, clean, loaded_small, needs_kernel

pytestmark = needs_kernel
LOOPBACK = 1
PINS = PREFIX / f"v{abi.LAYOUT}"

AGENT = """
import sys, time
from pathlib import Path
from cilia.dataplane import bpf, loader
import numpy as np
small = dict.fromkeys(sys.argv[2:], False)
dataplane = loader.load(Path(sys.argv[1]), small, sizes={"conntrack": 4096})
dataplane.attach("from_host", "from_host", 1, bpf.Attach.TCX_INGRESS)
flows = dataplane.maps["conntrack"]
keys = flows.keys(10)
keys["low_port"] = np.arange(10)
flows.put(keys, flows.values(10))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    try:
        yield
    finally:
        clean()
        assert not PREFIX.exists()


def test_everything_is_pinned_below_a_private_prefix() -> None:
    with loaded_small() as dataplane:
        assert set(dataplane.maps) == {*abi.layout().maps, loader.REVISION_MAP}
        assert {"from_container", "from_overlay", "judge_policies"} <= set(dataplane.programs)
        assert stat.S_IMODE(PREFIX.stat().st_mode) == 0o700
        pinned = {path.name for path in (PINS / "maps").iterdir()}
        assert pinned == set(dataplane.maps)
        assert dataplane.maps["conntrack"].info.max_entries == 4096
        assert not dataplane.adopted


def test_two_agents_on_one_node_are_told_apart() -> None:
    with loaded_small(), pytest.raises(BpfError, match=f"another agent holds {PREFIX}: stop it first"):
        loader.load(PREFIX)
    with loaded_small():
        with pytest.raises(BpfError, match="another agent holds"):
            loader.remove(PREFIX)
        assert (PINS / "maps" / "conntrack").exists()


def test_a_killed_agent_leaves_all_to_the_next() -> None:
    command = [sys.executable, "-c", AGENT, str(PREFIX), *SMALL]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    with loaded_small(ct_lifetime_any=30) as dataplane:
        assert dataplane.adopted == set(abi.layout().maps)
        assert len(dataplane.maps["conntrack"].dump()[0]) == 10
        assert dataplane.attached() == ["from_host"]
        link = bpf.get(PINS / "links" / "from_host")
        assert link is not None
        before = bpf.link_target(link)
        dataplane.attach("from_host", "from_host", LOOPBACK, Attach.TCX_INGRESS)
        after = bpf.link_target(link)
        os.close(link)
        assert after[1] == before[1] == LOOPBACK and after[0] != before[0], "exchanged in place"
        assert after[0] == bpf.object_id(dataplane.programs["from_host"])


def test_unchanged_programs_are_adopted_too() -> None:
    with loaded_small() as dataplane:
        first = {name: bpf.object_id(fd) for name, fd in dataplane.programs.items()}
    with loaded_small() as dataplane:
        assert {name: bpf.object_id(fd) for name, fd in dataplane.programs.items()} == first
    with loaded_small(events_enabled=True) as dataplane:
        assert not set(first.values()) & {bpf.object_id(fd) for fd in dataplane.programs.values()}
        assert dataplane.adopted
    assert len(list((PINS / "programs").iterdir())) == 1


def test_a_lost_pin_is_made_again() -> None:
    with loaded_small():
        pass
    (PINS / "maps" / "fragments").unlink()
    with loaded_small() as dataplane:
        assert "fragments" not in dataplane.adopted and "conntrack" in dataplane.adopted


def test_programs_of_which_one_is_missing_are_loaded_anew() -> None:
    with loaded_small() as dataplane:
        names = set(dataplane.programs)
    pins = next((PINS / "programs").iterdir())
    (pins / "from_host").unlink()
    with loaded_small() as dataplane:
        assert set(dataplane.programs) == names
        assert dataplane.adopted == set(dataplane.layout.maps)
    assert {path.name for path in next((PINS / "programs").iterdir()).iterdir()} == names


def test_constants_reach_the_programs() -> None:
    packet = bytes(12) + b"\x88\xb5" + bytes(50)
    with loaded_small(record_decisions=True) as dataplane:
        bpf.test_run(dataplane.programs["from_container"], packet)
        decisions = dataplane.maps["decision"].lookup(np.uint32(0))
        assert decisions is not None and (decisions["action"] == abi.layout().value("DECISION_DROP")).any()
    with pytest.raises(BpfError, match="has no load-time constant no_such_constant"):
        loader.load(PREFIX, {"no_such_constant": 1})


OTHERS = {
    "of other keys": ("endpoints", bpf.MapType.HASH, 4, 4, 1, "has keys of 4 bytes"),
    "of another type": ("services", bpf.MapType.LRU_HASH, 0, 0, 0, "is of another type"),
    "with other flags": ("slots", bpf.MapType.ARRAY, 0, 0, 0, "made with other flags"),
}


@pytest.mark.parametrize(("name", "kind", "key", "value", "flags", "words"), OTHERS.values(), ids=OTHERS)
def test_a_map_of_another_kind_is_refused(
    name: str, kind: bpf.MapType, key: int, value: int, flags: int, words: str
) -> None:
    """Zero: as ours."""
    with loaded_small():
        pass
    path, spec, layout = PINS / "maps" / name, abi.layout().maps[name], abi.layout()
    path.unlink()
    keys = np.dtype(f"V{key or layout.dtype(spec.key).itemsize}")
    values = np.dtype(f"V{value or layout.dtype(spec.value).itemsize}")
    other = bpf.create_map(kind, keys, values, 8, flags=flags and spec.flags, name=name)
    bpf.pin(other.fd, path)
    other.close()
    for changed in (SMALL, {**SMALL, "ct_lifetime_any": 31}):
        with pytest.raises(BpfError, match=f"{words}.* remove the pins"):
            loader.load(PREFIX, changed)


def test_a_broken_program_shows_the_verifiers_words(tmp_path: Path) -> None:
    source, made = tmp_path / "bad.c", tmp_path / "bad.o"
    source.write_text(
        "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n"
        'SEC("tc") int bad(struct __sk_buff *skb) { return *(int *)(long)skb->len; }\n'
        'char LICENSE[] SEC("license") = "GPL";\n'
    )
    machine = f"/usr/include/{os.uname().machine}-linux-gnu"
    try:
        subprocess.run(
            ["clang", "-target", "bpf", "-idirafter", machine, "-g", "-O2", "-c", source, "-o", made],
            check=True,
        )
    except FileNotFoundError:
        pytest.skip("needs clang")
    with pytest.raises(BpfError) as caught:
        loader.load(PREFIX, object_path=made)
    assert "bad.o: the kernel would not load it" in str(caught.value) and "R1" in str(caught.value)


def test_a_prefix_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BpfError, match="is not on a BPF file system: choose a prefix under /sys/fs/bpf"):
        loader.load(tmp_path / "cilia")


def test_a_missing_bpffs_is_mounted_or_named(tmp_path: Path) -> None:
    """In a mount namespace of its own, where the usual place holds none."""
    script = (
        "from pathlib import Path; from cilia.dataplane import requirements as r\n"
        f"root = Path({str(tmp_path)!r})\n"
        "r.ensure_bpffs(root / 'x', root); assert r.is_bpffs(root)"
    )
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not requirements.is_bpffs(tmp_path)
    with pytest.raises(BpfError, match="run mount -t bpf bpf"):
        requirements.ensure_bpffs(tmp_path / "none" / "x", tmp_path / "none")


def test_a_process_without_capabilities_is_told_so() -> None:
    script = (
        f"from cilia.dataplane import loader as l; from pathlib import Path; l.load(Path({str(PREFIX)!r}))"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the process lacks CAP_NET_ADMIN and CAP_SYS_ADMIN: run it as root" in done.stderr


def test_removal_is_idempotent_and_complete() -> None:
    with loaded_small() as dataplane:
        dataplane.attach("from_host", "from_host", LOOPBACK, Attach.TCX_INGRESS)
        dataplane.detach("to_host")
        assert dataplane.attached() == ["from_host"]
    loader.remove(PREFIX)
    loader.remove(PREFIX)
    assert not PREFIX.exists()
