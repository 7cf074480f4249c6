"""Command lines of relay, operator and API server: what they understand stays understood."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from cilia.apps import apiserver, operator
from cilia.apps.relay import command as relay
from cilia.apps.relay import settings as relay_settings

KNOWN = Path(__file__).with_name("program_flags.txt").read_text().splitlines()
"""Each program, flag and variable. People have them in their files: lines are added here, and stay."""
PROGRAMS = {
    "hubble-relay": (relay.app, relay_settings.PARTS, relay_settings.Settings),
    "cilia-operator": (operator.app, operator.PARTS, operator.Settings),
    "cilia-apiserver": (apiserver.app, apiserver.PARTS, apiserver.Settings),
}


def options(app: typer.Typer) -> list[typer.core.TyperOption]:
    """Of the command that serves."""
    command = typer.main.get_command(app)
    serving = getattr(command, "commands", {}).get("serve", command)
    return [each for each in serving.params if each.name != "help"]


def test_every_flag_and_variable_there_ever_was_is_understood() -> None:
    now = {
        f"{program} {flag} {option.envvar}"
        for program, (app, _, _) in PROGRAMS.items()
        for option in options(app)
        for flag in (*option.opts, *option.secondary_opts)
    }
    assert set(KNOWN) - now == set(), "somebody's file has these"
    assert now - set(KNOWN) == set(), "add these lines to program_flags.txt"


@pytest.mark.parametrize("program", PROGRAMS)
def test_settings_have_all_parts_and_each_field_says_what_it_means(program: str) -> None:
    app, parts, settings = PROGRAMS[program]
    fields = [field.name for _, part in parts for field in dataclasses.fields(part)]
    assert sorted(fields) == sorted(field.name for field in dataclasses.fields(settings))
    assert [option.name for option in options(app) if not option.help] == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_has_a_heading_for_each_part(program: str) -> None:
    app, parts, _ = PROGRAMS[program]
    words = ["serve", "--help"] if program == "hubble-relay" else ["--help"]
    lines = CliRunner().invoke(app, words).output.splitlines()
    headings = [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings[: len(parts)] == [heading for heading, _ in parts]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--tls-cert x", "--tls-cert and --tls-key go together"),
        ("--service-node-port-range 9-3", "is no range of ports"),
        ("--service-cluster-ip-range x", "are no cluster IP ranges"),
        ("--listen here", "is not HOST:PORT"),
        ("--listen-fd 99", "is not an open socket"),
    ],
)
def test_an_api_server_refuses_in_one_sentence(words: str, sentence: str) -> None:
    done = CliRunner().invoke(apiserver.app, words.split())
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    assert sentence in done.stderr


def test_a_relay_takes_lengths_of_time_from_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[relay_settings.Settings] = []

    def start(settings: relay_settings.Settings) -> int:
        started.append(settings)
        return 0

    monkeypatch.setattr(relay, "start", start)
    variables = {"CILIA_RELAY_DIAL_TIMEOUT": "500ms", "CILIA_RELAY_TLS_RELAY_CLIENT_CA_FILES": "/a:/b"}
    assert CliRunner().invoke(relay.app, ["serve", "--retry-timeout", "2m"], env=variables).exit_code == 0
    (settings,) = started
    assert (settings.dial_timeout, settings.retry_timeout) == (0.5, 120.0)
    assert settings.tls_relay_client_ca_files == [Path("/a"), Path("/b")]
