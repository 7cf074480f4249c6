"""Lasting values of the flags about the server: the file, the environment, and what is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from cilia.cli import hubble_file
from cilia.cli.errors import UserError
from cilia.cli.hubble_config import app
from cilia.cli.hubble_server import DEFAULTS


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HUBBLE_SERVER", "CILIA_HUBBLE_SOCKET", "HUBBLE_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "deep" / "config.yaml"
    monkeypatch.setenv("HUBBLE_CONFIG", str(path))
    return path


def config(*words: str) -> None:
    app(list(words), standalone_mode=False)


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    config(*words)
    return capsys.readouterr().out


def test_what_is_set_is_read_back(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key, typed, shown in (
        ("server", "tls://relay.example.com:443", "tls://relay.example.com:443\n"),
        ("timeout", "1m30s", "90s\n"),
        ("tls", "true", "true\n"),
        ("tls-ca-cert-files", "a.crt, b.crt", "a.crt\nb.crt\n"),
        ("port-forward-port", "0", "0\n"),
    ):
        config("set", key, typed)
        assert told(capsys, "get", key) == shown
    assert file.stat().st_mode & 0o777 == 0o600
    config("set", "timeout")
    assert told(capsys, "get", "timeout") == "5s\n"
    config("reset")
    assert told(capsys, "get", "server") == "unix:///run/cilia/hubble.sock\n"


def test_the_nearest_counts(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config("set", "timeout", "7s")
    assert f"timeout                7s                              {file}" in told(
        capsys, "view", "-o", "table"
    )
    monkeypatch.setenv("HUBBLE_TIMEOUT", "8s")
    assert "8s                              $HUBBLE_TIMEOUT" in told(capsys, "view", "-o", "table")
    assert told(capsys, "get", "timeout", "--timeout", "9s") == "9s\n"


def test_a_password_is_not_shown_with_all_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    config("set", "basic-auth-password", "open sesame")
    for form in ("yaml", "json", "table"):
        assert "sesame" not in told(capsys, "view", "-o", form)
    assert told(capsys, "get", "basic-auth-password") == "open sesame\n"


def test_certificates_of_the_file_are_not_for_a_socket(capsys: pytest.CaptureFixture[str]) -> None:
    config("set", "tls", "true")
    config("set", "request-timeout", "3s")
    assert told(capsys, "get", "tls", "--server", "unix:///run/other.sock") == "false\n"
    assert told(capsys, "get", "request-timeout", "--server", "unix:///run/other.sock") == "3s\n"
    assert told(capsys, "get", "tls", "--server", "other:4245") == "true\n"
    rows = told(capsys, "view", "-o", "table", "--server", "unix:///run/other.sock").splitlines()
    assert next(row.split() for row in rows if row.startswith("tls ")) == ["tls", "false", "default"]


def test_who_names_a_server_is_not_forwarded_to_another(capsys: pytest.CaptureFixture[str]) -> None:
    config("set", "port-forward", "true")
    assert told(capsys, "get", "port-forward") == "true\n"
    assert told(capsys, "get", "port-forward", "--server", "other:4245") == "false\n"
    assert told(capsys, "get", "port-forward", "--server", "other:4245", "-P") == "true\n"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("servers", "x", "no setting 'servers': use one of server, timeout"),
        ("timeout", "soon", "timeout: 'soon' is no duration"),
        ("tls", "maybe", "tls: 'maybe' is neither true nor false"),
        ("port-forward-port", "65536", "'65536' is no port"),
        ("port-forward-port", "²", "is no port"),
    ],
)
def test_what_can_not_be_set(file: Path, key: str, value: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        config("set", key, value)
    assert not file.exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"server: [", "is not YAML"),
        (b"- server", "has no settings such as"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"[" * 5000, "nested deeper than 200"),
        (b"sever: x", "'sever', which is no setting: `cilia hubble config reset sever`"),
        (b"timeout: never", "timeout: 'never' is no duration"),
        (b"server: [a, b]", "is not one word"),
        (b"#" * (1 << 20) + b"\n#", "too long"),
    ],
)
def test_a_file_that_is_wrong(file: Path, content: bytes, sentence: str) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        config("view")


def test_what_is_wrong_can_be_reset(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.parent.mkdir()
    file.write_text("sever: x\ntimeout: 3s\ndebug: true\n")
    config("reset", "sever")
    assert told(capsys, "get", "timeout") == "3s\n"


def test_hubble_finds_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUBBLE_CONFIG")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hubble_file.place() == tmp_path / ".config/hubble/config.yaml"
    old = tmp_path / ".hubble/config.yaml"
    old.parent.mkdir()
    old.write_text("server: old:4245\ntls-ca-cert-files:\n- a\n")
    assert hubble_file.place() == old
    assert hubble_file.values(old, DEFAULTS) == {"server": "old:4245", "tls_ca_cert_files": ("a",)}


def test_a_flag_names_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("server: other:1\n")
    assert told(capsys, "get", "server", "--config", str(other)) == "other:1\n"


def test_a_directory_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HUBBLE_CONFIG", str(tmp_path / "file" / "config.yaml"))
    with pytest.raises((UserError, typer.Exit), match="can't"):
        config("set", "timeout", "3s")


def test_without_libyaml(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delattr("yaml.CSafeLoader", raising=False)
    config("set", "timeout", "7s")
    assert told(capsys, "get", "timeout") == "7s\n"
