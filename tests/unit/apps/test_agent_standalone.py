"""Services by hand: how they are written, kept and followed."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from cilia.api.backend import Caller
from cilia.api.types import LocalBackend, LocalService
from cilia.apps.agent import standalone
from cilia.apps.agent.standalone import FileFollower, LocalServices, Refused
from cilia.model.service import Backend, Frontend, Protocol
from cilia.schema import Inputs, LocalServiceRow

ME = Caller(pid=1, uid=0)
WEB = Frontend("192.0.2.1", 80, Protocol.TCP)


def service(frontend: str = "192.0.2.1:80", **fields: object) -> LocalService:
    return msgspec.convert({"frontend": frontend, **fields}, LocalService)


def test_a_service_of_everything() -> None:
    written = service(
        "[2001:DB8::1]:53/udp",
        backends=[{"address": "[fd00::2]:5353", "weight": 3, "node": "n1"}, "[fd00::1]:5353"],
        name="dns",
        algorithm="maglev",
        mode="dsr",
        affinity=60,
        **{"source-ranges": ["10.0.0.1/8"], "local-only": True},
    )
    row = standalone.row(written)
    udp = Protocol.UDP
    assert row == LocalServiceRow(
        frontend=Frontend("2001:db8::1", 53, udp),
        backends=(Backend("fd00::1", 5353, udp), Backend("fd00::2", 5353, udp, weight=3, node="n1")),
        name="dns",
        algorithm="maglev",
        mode="dsr",
        affinity=60,
        source_ranges=("10.0.0.0/8",),
        local_only=True,
    )
    assert standalone.row(standalone.spec_of(row)) == row


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"frontend": "192.0.2.1"}, "frontend"),
        ({"frontend": "192.0.2.1:0"}, "frontend"),
        ({"frontend": "192.0.2.1:99999999999"}, "frontend"),
        ({"frontend": "192.0.2.1:80/icmp"}, "frontend"),
        ({"frontend": "2001:db8::1:80"}, "brackets"),
        ({"frontend": "127.0.0.1:80"}, "frontend"),
        ({"frontend": "web:80"}, "frontend"),
        ({"backends": ["10.0.0.1"]}, r"backends\[0\].address"),
        ({"backends": ["10.0.0.1:1", "[fd00::1]:1"]}, r"backends\[1\].address"),
        ({"backends": ["192.0.2.1:80"]}, "is the frontend itself"),
        ({"backends": [{"address": "10.0.0.1:1", "weight": -1}]}, "weight"),
        ({"algorithm": "best"}, "algorithm"),
        ({"mode": "nat"}, "mode"),
        ({"affinity": 90_000}, "affinity"),
        ({"source-ranges": ["moon"]}, "source-ranges"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_field(fields: dict[str, object], path: str) -> None:
    with pytest.raises(Refused, match=path):
        standalone.row(service(**fields))  # type: ignore[arg-type]


def test_services_outlive_the_agent(tmp_path: Path) -> None:
    inputs = Inputs()
    kept = LocalServices(inputs, tmp_path)
    kept.restore()
    assert inputs.local_services.synced
    kept.put(service(backends=["10.0.0.1:8080"]), ME)
    kept.put(service("192.0.2.2:80"), ME)
    assert kept.delete(Frontend("192.0.2.2", 80, Protocol.TCP), ME)
    assert not kept.delete(Frontend("192.0.2.2", 80, Protocol.TCP), ME)
    after = Inputs()
    LocalServices(after, tmp_path).restore()
    assert list(after.local_services) == list(inputs.local_services)
    assert [row.frontend for row in after.local_services] == [WEB]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": 1}', b"\xff\xfe", b'[{"frontend": 1}]'])
def test_garbage_on_disk_is_left_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "services.json").write_bytes(content)
    inputs = Inputs()
    LocalServices(inputs, tmp_path).restore()
    assert (len(inputs.local_services), inputs.local_services.synced) == (0, True)


def test_one_bad_service_on_disk_leaves_the_others(tmp_path: Path) -> None:
    specs = [service("nonsense"), service(), service("192.0.2.1:80/tcp", name="again")]
    (tmp_path / "services.json").write_bytes(msgspec.json.encode(specs))
    inputs = Inputs()
    LocalServices(inputs, tmp_path).restore()
    assert [(row.frontend, row.name) for row in inputs.local_services] == [(WEB, "")]


def test_nothing_changes_when_it_can_not_be_kept(tmp_path: Path) -> None:
    inputs = Inputs()
    kept = LocalServices(inputs, tmp_path / "file")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        kept.put(service(), ME)
    assert not len(inputs.local_services)


def write(path: Path, text: str, stamp: int) -> None:
    path.write_text(text)
    os.utime(path, ns=(stamp, stamp))


def test_a_file_is_followed(tmp_path: Path) -> None:
    inputs, path = Inputs(), tmp_path / "services.yaml"
    kept = LocalServices(inputs, tmp_path)
    kept.restore()
    kept.put(service("192.0.2.9:80"), ME)
    follower = FileFollower(path, kept.follow)
    follower.look()
    assert len(inputs.local_services) == 1
    write(path, "services:\n- {frontend: 192.0.2.1:80, backends: [10.0.0.1:80]}\n", 1)
    follower.look()
    assert {row.frontend.address for row in inputs.local_services} == {"192.0.2.1", "192.0.2.9"}
    with pytest.raises(Refused, match="services file"):
        kept.put(service(), ME)
    with pytest.raises(Refused, match="services file"):
        kept.delete(WEB, ME)
    for broken in ("services: [", "services: [{front: 1}]", "- 1", "\x00"):
        write(path, broken, 2 + len(broken))
        follower.look()
        assert WEB in inputs.local_services, broken
    path.unlink()
    follower.look()
    assert WEB in inputs.local_services
    write(path, "", 99)
    follower.look()
    assert [row.frontend.address for row in inputs.local_services] == ["192.0.2.9"]


def test_backends_may_be_written_short_or_long() -> None:
    assert service(backends=["10.0.0.1:80"]).backends == ("10.0.0.1:80",)
    assert service(backends=[{"address": "10.0.0.1:80"}]).backends == (LocalBackend(address="10.0.0.1:80"),)
