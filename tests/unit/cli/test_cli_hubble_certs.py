"""`cilia hubble certs`: sets of certificates that work with each other, renewed without a gap."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from cilia.cli import certificate_set
from cilia.cli.certs import certs
from cilia.cli.options import UserError
from cilia.kit import certificates
from cilia.kit.clock import SystemClock
from cilia.kit.tls import ClientTls, ServerTls, TlsFiles, server_name
from tests.support.hubble_tls import handshake, signed_by

FOLDERS = ["server", "relay-client", "relay-server", "ui-client"]
NOW = SystemClock().wall()


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(certs, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def files(directory: Path, folder: str) -> TlsFiles:
    return TlsFiles(*(directory / folder / name for name in ("tls.crt", "tls.key", "ca.crt")))


def shake(directory: Path, server: str, client: str, name: str) -> None:
    handshake(
        ServerTls(files(directory, server)).context(), ClientTls(files(directory, client)).context(), name
    )


@pytest.fixture
def made(tmp_path: Path) -> Path:
    assert run("make", str(tmp_path / "certs"), "--cluster", "prod.eu").exit_code == 0
    return tmp_path / "certs"


def test_a_set_works_together(made: Path) -> None:
    shake(made, "server", "relay-client", server_name("node.1", "prod.eu"))
    shake(made, "relay-server", "ui-client", "ui.hubble-relay.cilium.io")


def test_keys_are_private(made: Path) -> None:
    for folder in [*FOLDERS, "ca"]:
        assert (made / folder).stat().st_mode & 0o777 == 0o700
    for key in made.rglob("*.key"):
        assert key.stat().st_mode & 0o777 == 0o600
    assert not (made / "server" / "ca.key").exists()


def test_a_set_is_not_overwritten(made: Path) -> None:
    with pytest.raises(UserError, match="renew"):
        run("make", str(made))


def test_secrets_are_what_charts_mount() -> None:
    result = run("make", "-o", "yaml", "--namespace", "cilia")
    secrets: dict[str, Any] = {one["metadata"]["name"]: one for one in yaml.safe_load_all(result.stdout)}
    assert list(secrets) == [
        "cilium-ca",
        "hubble-server-certs",
        "hubble-relay-client-certs",
        "hubble-relay-server-certs",
        "hubble-ui-client-certs",
    ]
    server = secrets["hubble-server-certs"]
    assert (server["type"], server["metadata"]["namespace"]) == ("kubernetes.io/tls", "cilia")
    data = {name: base64.b64decode(value) for name, value in server["data"].items()}
    assert set(data) == {"ca.crt", "tls.crt", "tls.key"}
    assert signed_by(data["tls.crt"], data["ca.crt"])
    assert set(secrets["cilium-ca"]["data"]) == {"ca.crt", "ca.key"}


def test_an_authority_that_there_is(made: Path, tmp_path: Path) -> None:
    authority = ("--ca-cert", str(made / "ca" / "ca.crt"), "--ca-key", str(made / "ca" / "ca.key"))
    run("make", str(tmp_path / "more"), "--cluster", "b", *authority)
    handshake(
        ServerTls(files(tmp_path / "more", "server")).context(),
        ClientTls(files(made, "relay-client")).context(),
        server_name("a", "b"),
    )
    with pytest.raises(UserError, match="belong together"):
        run("make", str(tmp_path / "other"), "--ca-cert", "x")
    with pytest.raises(UserError, match="can't be read"):
        run("make", str(tmp_path / "other"), "--ca-cert", "/no", "--ca-key", "/no")
    leaf = ("--ca-cert", str(made / "server" / "tls.crt"), "--ca-key", str(made / "server" / "tls.key"))
    with pytest.raises(UserError, match="no authority"):
        run("make", str(tmp_path / "other"), *leaf)


def contents(made: Path) -> dict[str, bytes]:
    return {folder: (made / folder / "tls.crt").read_bytes() for folder in FOLDERS}


def test_only_what_ends_soon_is_renewed(made: Path) -> None:
    before = contents(made)
    assert "longer than 30 days" in run("renew", str(made)).stdout
    assert contents(made) == before
    run("renew", str(made), "--all", "--days", "20")
    assert "server, relay-client" in run("renew", str(made)).stdout
    shake(made, "server", "relay-client", server_name("a", "prod.eu"))
    (made / "server" / "tls.crt").write_text("garbage")
    assert run("renew", str(made), "--cluster", "prod.eu").stdout == "Renewed: server.\n"


def test_a_new_authority_leaves_no_gap(made: Path, tmp_path: Path) -> None:
    """Who still shows the old certificate and who shows the new one understand each other."""
    old = tmp_path / "old"
    for folder in FOLDERS:
        (old / folder).mkdir(parents=True)
        for name in ("tls.crt", "tls.key"):
            (old / folder / name).write_bytes((made / folder / name).read_bytes())
    run("renew", str(made), "--ca")
    for folder in FOLDERS:
        (old / folder / "ca.crt").write_bytes((made / folder / "ca.crt").read_bytes())
    name = server_name("a", "prod.eu")
    for server, client in ((old, made), (made, old), (made, made)):
        handshake(
            ServerTls(files(server, "server")).context(),
            ClientTls(files(client, "relay-client")).context(),
            name,
        )
    assert len(certificates.read((made / "server" / "ca.crt").read_bytes())) == 2
    # Once it has ended, the old one is no longer carried along.
    later = NOW + 1096 * certificates.DAY
    with pytest.raises(certificates.CertificateError, match="make a new one"):
        certificate_set.renew(made, "prod.eu", now=later, days=1, within=30, authority_days=None)
    certificate_set.renew(made, "prod.eu", now=later, days=1, within=30, authority_days=10)
    assert len(certificates.read((made / "server" / "ca.crt").read_bytes())) == 1


def test_what_there_is_is_shown(made: Path) -> None:
    result = run("show", str(made))
    assert result.exit_code == 0
    assert "*.prod-eu.hubble-grpc.cilium.io" in result.stdout
    assert "364" in result.stdout or "365" in result.stdout
    rows = json.loads(run("show", str(made / "server"), "-o", "json").stdout)
    assert [row["usages"] for row in rows] == [[], ["server"]]
    assert rows[0]["authority"]


def test_what_has_ended_or_is_none_fails(tmp_path: Path) -> None:
    authority = certificates.make_authority("Old", now=NOW - 20 * 86400, days=10)
    (tmp_path / "old.crt").write_bytes(authority.certificate)
    result = run("show", str(tmp_path / "old.crt"))
    assert result.exit_code == 1
    assert "ended 10 days ago" in result.stdout
    (tmp_path / "bad.crt").write_text("none")
    result = run("show", str(tmp_path / "bad.crt"), str(tmp_path / "missing.crt"))
    assert result.exit_code == 1
    assert "No such file" in result.stdout


def test_where_to_must_be_said() -> None:
    with pytest.raises(UserError, match="name a directory"):
        run("make")
    with pytest.raises(UserError, match="one of the two"):
        run("make", "/nowhere", "-o", "yaml")
    with pytest.raises(UserError, match="cilia hubble certs make"):
        run("renew", "/nowhere")
