"""A set of certificates outlives whoever is killed while writing it, and odd settings and files."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cilia.cli.certs import certs
from cilia.cli.options import UserError
from cilia.kit import files
from cilia.kit.tls import ClientTls, ServerTls, TlsFiles, server_name
from tests.support.hubble_tls import handshake

STEPS = 14
"""Files of a set."""


class Killed(BaseException):
    """What ends a process without anything tidying up."""


def run(*arguments: str) -> str:
    result = CliRunner().invoke(certs, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies where the file of this number is written and not renamed yet."""
    written = 0
    really = Path.replace

    def replace(self: Path, target: Path) -> Path:
        nonlocal written
        if written == step:
            raise Killed
        written += 1
        return really(self, target)

    monkeypatch.setattr(Path, "replace", replace)


def shake(directory: Path, server: str, client: str, name: str) -> None:
    ends = [
        TlsFiles(*(directory / end / file for file in ("tls.crt", "tls.key", "ca.crt")))
        for end in (server, client)
    ]
    handshake(ServerTls(ends[0]).context(), ClientTls(ends[1]).context(), name)


def works(directory: Path) -> None:
    shake(directory, "server", "relay-client", server_name("node-1", "default"))
    shake(directory, "relay-server", "ui-client", "ui.hubble-relay.cilium.io")
    assert not list(directory.rglob(".*")), "nothing is left beside the files, keys least of all"


@pytest.mark.parametrize("step", range(STEPS))
def test_who_is_killed_while_making_a_set_can_be_followed(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill_at(step, patched)
        run("make", str(tmp_path))
    try:
        run("make", str(tmp_path))
    except UserError as error:
        assert "renew" in str(error)
        run("renew", str(tmp_path))
    works(tmp_path)


@pytest.mark.parametrize("how", [["--all"], ["--ca"]])
@pytest.mark.parametrize("step", range(STEPS + 4))
def test_who_is_killed_while_renewing_can_be_followed(
    tmp_path: Path, step: int, how: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("make", str(tmp_path))
    with monkeypatch.context() as patched:
        kill_at(step, patched)
        try:
            run("renew", str(tmp_path), *how)
        except Killed:
            pass
    run("renew", str(tmp_path))
    works(tmp_path)
    run("renew", str(tmp_path), "--ca")
    works(tmp_path)


def test_two_do_not_change_a_set_at_once(tmp_path: Path) -> None:
    run("make", str(tmp_path))
    other = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="try again"):
            run("renew", str(tmp_path), "--all")
    finally:
        os.close(other)
    run("renew", str(tmp_path), "--all")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.rstrip(b"\n"),
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"# ours\n" + text + b"# end\n",
        lambda text: b"",
    ],
)
def test_a_bundle_that_was_edited_stays_one(tmp_path: Path, change: object) -> None:
    run("make", str(tmp_path))
    bundle = tmp_path / "server" / "ca.crt"
    assert callable(change)
    bundle.write_bytes(change(bundle.read_bytes()))
    run("renew", str(tmp_path), "--ca")
    works(tmp_path)
    assert (tmp_path / "server" / "ca.crt").read_bytes().count(b"\n-----END CERTIFICATE-----\n") == 2


def test_a_lost_key_of_an_authority_is_said(tmp_path: Path) -> None:
    run("make", str(tmp_path / "a"))
    run("make", str(tmp_path / "b"))
    (tmp_path / "b" / "ca" / "ca.key").rename(tmp_path / "a" / "ca" / "ca.key")
    with pytest.raises(UserError, match=r"ca\.key is not the key of .*ca\.crt: bring back"):
        run("renew", str(tmp_path / "a"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ca-days", "nan"],
        ["--ca-days", "1e9"],
        ["--ca-days", "1e300"],
        ["--cluster", "größer"],
    ],
)
def test_settings_that_make_no_certificate_are_said(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r": (give fewer days|use letters)"):
        run("make", str(tmp_path / "certs"), *arguments)


def test_scratch_is_named_for_remove_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill_at(0, patched)
        files.write_atomic(tmp_path / "key", b"secret")
    assert list(tmp_path.iterdir())
    files.remove_scratch(tmp_path)
    assert not list(tmp_path.iterdir())
