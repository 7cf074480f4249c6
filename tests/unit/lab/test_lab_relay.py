"""The lab's relay: who shows which certificate, and what the programs are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from cilia.kit import certificates
from cilia.lab import relay
from cilia.lab.commands import tell_access
from cilia.lab.daemon import agent_command
from cilia.lab.plan import LabPlan, make_plan
from tests.support.hubble_tls import signed_by

NOW = 1_790_000_000.0


def made(tmp_path: Path) -> LabPlan:
    plan = make_plan("trial", 2, root=tmp_path, relay=True)
    relay.write_certificates(plan, NOW)
    return plan


def test_everybody_has_a_certificate_of_one_authority_for_its_part(tmp_path: Path) -> None:
    folder = Path(made(tmp_path).certificates)
    authority = (folder / "server" / "ca.crt").read_bytes()
    usages = {}
    for place in folder.iterdir():
        certificate = (place / "tls.crt").read_bytes()
        assert signed_by(certificate, authority)
        usages[place.name] = certificates.read(certificate)[0].usages
    assert usages == {
        "server": ("server",),
        "relay-client": ("client",),
        "relay-server": ("server",),
        "ui-client": ("client",),
    }


def test_the_relay_stands_for_its_address_and_nodes_for_their_names(tmp_path: Path) -> None:
    plan = made(tmp_path)
    facts = {
        name: certificates.read(Path(plan.certificates, name, "tls.crt").read_bytes())[0]
        for name in ("server", "relay-server")
    }
    assert "172.18.0.1" in facts["relay-server"].names
    assert facts["server"].names == ("*.default.hubble-grpc.cilium.io",)


def test_keys_are_for_root_only(tmp_path: Path) -> None:
    folder = Path(made(tmp_path).certificates)
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*.*")} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o700}


def test_what_the_programs_are_told_is_there(tmp_path: Path) -> None:
    plan = made(tmp_path)
    told = [*relay.command(plan), *relay.agent_flags(plan)]
    paths = [word.partition("=")[2] for word in told if word.endswith((".crt", ".key"))]
    assert len(paths) == 9
    assert all(Path(path).is_file() for path in paths)


def test_agents_serve_by_tls_and_count_where_there_is_a_relay_and_only_there() -> None:
    with_relay = make_plan("trial", 1, relay=True, agent_flags=("hubble-metrics=tcp",))
    command = agent_command(with_relay, with_relay.nodes[0])
    metrics = [word.partition(":")[0] for word in command if "metrics" in word]
    assert metrics == ["--hubble-metrics=flow", "--hubble-metrics=tcp"]
    without = make_plan("trial", 1)
    assert not any("hubble-tls" in word for word in agent_command(without, without.nodes[0]))
    assert not make_plan("trial", 1, relay=True, source_dir="/yaml").relay


def test_users_are_told_of_the_relay(capsys: pytest.CaptureFixture[str]) -> None:
    tell_access(make_plan("trial", 2, relay=True))
    assert "export HUBBLE_SERVER=unix:///run/cilia-lab/trial/relay.sock\n" in capsys.readouterr().out
    tell_access(make_plan("trial", 2))
    assert "HUBBLE_SERVER" not in capsys.readouterr().out
