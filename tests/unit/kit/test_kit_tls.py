"""Certificates that are made, read and replaced while a server runs."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cilia.kit import certificates
from cilia.kit.certificates import CertificateError, Issued
from cilia.kit.clock import ManualClock, SystemClock
from cilia.kit.tls import ClientTls, Reloading, ServerTls, TlsError, TlsFiles, refusal, server_name
from tests.support.hubble_tls import handshake, signed_by

NOW = SystemClock().wall()
NAME = server_name("node.one", "default")
CA = certificates.make_authority("Test CA", now=NOW, days=100)
OTHER_CA = certificates.make_authority("Other CA", now=NOW, days=100)


def write(directory: Path, issued: Issued, authority: Issued = CA) -> TlsFiles:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tls.crt").write_bytes(issued.certificate)
    (directory / "tls.key").write_bytes(issued.key)
    (directory / "ca.crt").write_bytes(authority.certificate)
    return TlsFiles(directory / "tls.crt", directory / "tls.key", directory / "ca.crt")


def server_certificate(authority: Issued = CA, *, now: float = NOW, days: float = 10) -> Issued:
    return certificates.issue(authority, NAME, now=now, days=days, client=False)


def client_certificate(authority: Issued = CA, *, now: float = NOW, days: float = 10) -> Issued:
    return certificates.issue(authority, "relay", now=now, days=days, server=False)


def clients_context(tmp_path: Path, issued: Issued | None = None, authority: Issued = CA) -> ssl.SSLContext:
    return ClientTls(write(tmp_path / "client", issued or client_certificate(), authority), NAME).context()


def test_both_sides_know_each_other(tmp_path: Path) -> None:
    server = ServerTls(write(tmp_path / "server", server_certificate()))
    end = handshake(server.context(), clients_context(tmp_path), NAME)
    assert end.version() == "TLSv1.3"
    subject = (end.getpeercert() or {})["subject"]
    assert subject == ((("commonName", "relay"),),)


def test_names_of_servers() -> None:
    assert server_name("ip-10-0-0-1.eu.example", "prod.eu") == (
        "ip-10-0-0-1-eu-example.prod-eu.hubble-grpc.cilium.io"
    )


def test_a_wildcard_covers_a_cluster(tmp_path: Path) -> None:
    issued = certificates.issue(CA, "*.default.hubble-grpc.cilium.io", now=NOW, days=1, client=False)
    server = ServerTls(write(tmp_path / "server", issued))
    handshake(server.context(), clients_context(tmp_path), NAME)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server.context(), clients_context(tmp_path), server_name("a", "other"))


@pytest.mark.parametrize(
    ("issued", "word"),
    [
        (client_certificate(OTHER_CA), "refused"),
        (client_certificate(now=NOW - 20 * 86400), "expired"),
        (certificates.issue(CA, NAME, now=NOW, days=1, client=False), "purpose"),
    ],
)
def test_a_wrong_client_is_refused_with_a_reason(tmp_path: Path, issued: Issued, word: str) -> None:
    server = ServerTls(write(tmp_path / "server", server_certificate()))
    with pytest.raises(ssl.SSLError) as error:
        handshake(server.context(), clients_context(tmp_path, issued), NAME)
    assert word in refusal(error.value)


def test_no_certificate_no_answer(tmp_path: Path) -> None:
    files = write(tmp_path / "server", server_certificate())
    client = ClientTls(TlsFiles(None, None, files.authorities), NAME)
    with pytest.raises(ssl.SSLError) as error:
        handshake(ServerTls(files).context(), client.context(), NAME)
    assert "shows no certificate" in refusal(error.value)


def test_older_tls_is_refused(tmp_path: Path) -> None:
    server = ServerTls(write(tmp_path / "server", server_certificate()))
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError) as error:
        handshake(server.context(), old, NAME)
    assert "TLS 1.3" in refusal(error.value)


def follow(files: TlsFiles) -> tuple[ServerTls, ManualClock]:
    clock = ManualClock(wall=NOW)
    return ServerTls(files, clock=clock), clock


def later(tls: Reloading, clock: ManualClock) -> ssl.SSLContext:
    clock.advance(2)
    return tls.context()


def test_replaced_files_count_from_the_next_connection_on(tmp_path: Path) -> None:
    tls, clock = follow(write(tmp_path / "server", server_certificate()))
    old = tls.context()
    assert later(tls, clock) is old
    write(tmp_path / "server", server_certificate(OTHER_CA, days=50), OTHER_CA)
    assert tls.context() is old
    new = later(tls, clock)
    assert new is not old
    assert tls.facts is not None and tls.facts.issuer == "Other CA"
    handshake(new, clients_context(tmp_path, client_certificate(OTHER_CA), OTHER_CA), NAME)
    # The authority that was taken away is no longer good.
    with pytest.raises(ssl.SSLError):
        handshake(new, clients_context(tmp_path, client_certificate(CA), OTHER_CA), NAME)


def test_a_swapped_link_as_kubernetes_does_it(tmp_path: Path) -> None:
    write(tmp_path / "mount" / "..1", server_certificate())
    mount = tmp_path / "mount"
    (mount / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (mount / name).symlink_to(Path("..data") / name)
    tls, clock = follow(TlsFiles(mount / "tls.crt", mount / "tls.key", mount / "ca.crt"))
    old = tls.context()
    write(mount / "..2", server_certificate(days=50))
    (mount / "..data_tmp").symlink_to("..2")
    (mount / "..data_tmp").rename(mount / "..data")
    assert later(tls, clock) is not old
    assert 49 < (tls.seconds_left() or 0) / 86400 < 50.1


def test_a_broken_replacement_is_said_once_and_changes_nothing(tmp_path: Path) -> None:
    files = write(tmp_path / "server", server_certificate())
    tls, clock = follow(files)
    old = tls.context()
    (tmp_path / "server" / "tls.key").write_bytes(server_certificate().key)
    with capture_logs() as logs:
        assert later(tls, clock) is old
        assert later(tls, clock) is old
    (line,) = logs
    assert "is not the key of" in line["error"]
    assert tls.problem == line["error"]
    (tmp_path / "server" / "tls.crt").unlink()
    with capture_logs() as logs:
        assert later(tls, clock) is old
    assert "can't be read" in logs[0]["error"]
    write(tmp_path / "server", server_certificate())
    assert later(tls, clock) is not old
    assert tls.problem == ""


def test_a_certificate_near_its_end_is_named(tmp_path: Path) -> None:
    clock = ManualClock(wall=NOW)
    with capture_logs() as logs:
        tls = ServerTls(write(tmp_path, server_certificate(days=3)), clock=clock)
    assert NAME in logs[0]["certificate"] and "2 days left" in logs[0]["certificate"]
    clock.advance(5 * 86400)
    assert "expired 2 days ago" in tls.sentence()
    assert (tls.seconds_left() or 0) < 0


@pytest.mark.parametrize("broken", ["tls.crt", "tls.key", "ca.crt"])
def test_files_that_are_none_are_named(tmp_path: Path, broken: str) -> None:
    files = write(tmp_path, server_certificate())
    (tmp_path / broken).write_text("none")
    with pytest.raises(TlsError, match=broken):
        ServerTls(files)
    (tmp_path / broken).unlink()
    with pytest.raises(TlsError, match="can't be read"):
        ServerTls(files)


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    files = write(tmp_path, server_certificate())
    with pytest.raises(TlsError, match="all three"):
        ServerTls(TlsFiles(files.certificate, files.key))
    with pytest.raises(TlsError, match="both files"):
        ClientTls(TlsFiles(files.certificate, None))


def test_what_a_certificate_says() -> None:
    issued = certificates.issue(
        CA, "a.example", now=NOW, days=500, names=["10.0.0.1", "fd00::1", "b.example"]
    )
    (facts,) = certificates.read(issued.certificate)
    assert (facts.subject, facts.issuer) == ("a.example", "Test CA")
    assert facts.names == ("a.example", "b.example", "10.0.0.1", "fd00::1")
    assert facts.usages == ("server", "client")
    assert not facts.authority
    # Not longer than its authority.
    assert 99 < facts.days_left(NOW) <= 100
    assert certificates.read(CA.certificate)[0].authority
    assert signed_by(issued.certificate, CA.certificate)
    assert not signed_by(issued.certificate, OTHER_CA.certificate)


def test_authorities_that_are_none_sign_nothing() -> None:
    leaf = server_certificate()
    old = certificates.make_authority("Old CA", now=NOW - 20 * 86400, days=10)
    for authority, word in (
        (leaf, "no authority"),
        (Issued(certificate=CA.certificate, key=OTHER_CA.key), "not the"),
        (Issued(certificate=b"none", key=CA.key), "no certificate"),
        (old, "make a new one"),
    ):
        with pytest.raises(CertificateError, match=word):
            certificates.issue(authority, "x", now=NOW, days=1)
    with pytest.raises(CertificateError, match="no certificate"):
        certificates.read(b"")


def test_nobody_returns_with_a_ticket(tmp_path: Path) -> None:
    server = ServerTls(write(tmp_path / "server", server_certificate())).context()
    client = clients_context(tmp_path)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server, server_hostname=NAME)
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (theirs, ours, theirs, ours):
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    ours.write(b"x")
    assert theirs.read(1) == b"x"
    session = theirs.session
    assert session is None or not session.has_ticket
