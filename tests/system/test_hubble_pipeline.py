"""A packet through the real programs becomes a line of `observe` that names its rule."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP

from cilia.cli.observe import observe
from cilia.dataplane.ringbuf import Ring
from cilia.hubble.directory import MemoryDirectory, Pod
from cilia.model.ids import Cookie
from cilia.model.policy import CookieRow, RuleRef
from tests.support.datapath_world import ALLOW_ALL, DENY_ALL, World, load_world
from tests.support.hubble import WALL, Beside, beside

pytestmark = pytest.mark.root

DENIED_BY = RuleRef("NetworkPolicy", "demo", "isolate", "9", "spec")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("needs root: loads eBPF programs")
    with load_world("hubble-pipeline") as world:
        world.furnish()
        yield world


def people() -> MemoryDirectory:
    known = MemoryDirectory()
    known.pods = {
        "10.0.0.11": Pod(id=101, identity=1001, namespace="demo", name="client"),
        "10.0.0.12": Pod(id=102, identity=1002, namespace="demo", name="server"),
    }
    known.cookies = {3: CookieRow(Cookie(3), (DENIED_BY,), default=True)}
    return known


def drain(world: World, running: Beside) -> None:
    """Both rings of the world into the store."""
    rings = [Ring(world.dataplane.maps[name], world.layout) for name in ("events_priority", "events")]
    batches = [ring.read() for ring in rings]
    for ring in rings:
        ring.close()
    first = min(int(batch["time"].min()) for batch in batches if len(batch))
    running.call(lambda: running.store.append(batches, offset=WALL - first))


def test_from_packet_to_line(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    syn = IP(src="10.0.0.11", dst="10.0.0.12") / TCP(sport=40000, dport=80, flags="S")
    world.from_pod(world.pod_a, syn)
    world.forget_flows()
    world.set_policy(2, DENY_ALL)
    world.from_pod(world.pod_a, syn)
    with beside(tmp_path / "hubble.sock", directory=people()) as running:
        drain(world, running)
        server = f"unix://{running.path}"
        with pytest.raises(SystemExit):
            observe(["--server", server, "--port", "80"], prog_name="observe")
        lines = [line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines()]
        with pytest.raises(SystemExit):
            observe(["--server", server, "--type", "policy-verdict"], prog_name="observe")
        judged = [line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines()]
        with pytest.raises(SystemExit):
            observe(["--server", server, "--verdict", "DROPPED", "-o", "json"], prog_name="observe")
    client, backend = "demo/client:40000 (ID:1001)", "demo/server:80 (ID:1002)"
    assert lines == [
        f"{client} -> {backend} policy-verdict:all EGRESS ALLOWED (TCP Flags: SYN)",
        f"{client} -> {backend} policy-verdict:all INGRESS ALLOWED (TCP Flags: SYN)",
        f"{client} -> {backend} to-endpoint FORWARDED (TCP Flags: SYN)",
        f"{client} -> {backend} Policy denied DROPPED (TCP Flags: SYN)"
        " by default deny of NetworkPolicy demo/isolate spec",
    ]
    assert judged == [
        *lines[:2],
        f"{client} -> {backend} policy-verdict:all INGRESS DENIED (TCP Flags: SYN)"
        " by default deny of NetworkPolicy demo/isolate spec",
    ], "a denial is a verdict, too"
    assert '"file":{"name":"conntrack"' in capsys.readouterr().out
    assert np.diff(running.store.spans(0, 4)[0].wall).min() > 0


def test_a_drop_outlives_a_flood_of_real_traces(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    syn = IP(src="10.0.0.11", dst="10.0.0.12") / TCP(sport=40001, dport=80, flags="S")
    with beside(tmp_path / "hubble.sock", directory=people(), capacity=64) as running:
        world.forget_flows()
        world.set_policy(2, DENY_ALL)
        world.from_pod(world.pod_a, syn)
        drain(world, running)
        world.set_policy(2, ALLOW_ALL)
        world.settings["aggregation"][0] = world.layout.value("AGGREGATION_NONE")
        datagram = IP(src="10.0.0.11", dst="10.0.0.12") / UDP(sport=40002, dport=80)
        for _ in range(200):
            world.from_pod(world.pod_a, datagram)
        drain(world, running)
        assert running.store.oldest > 64
        with pytest.raises(SystemExit):
            observe(["--server", f"unix://{running.path}", "--verdict", "DROPPED"], prog_name="observe")
        out, err = capsys.readouterr()
        assert "demo/client:40001 (ID:1001) -> demo/server:80 (ID:1002) Policy denied DROPPED" in out
        assert err == "1 flow, complete\n"
