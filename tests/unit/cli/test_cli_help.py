"""What people are told before they ask the agent: help, and tables that fit their terminal."""

from __future__ import annotations

import io
from typing import Any

import click
import pytest
from rich.console import Console

from cilia.cli import lazy, main, output


def commands(name: str) -> list[tuple[str, click.Command]]:
    found = lazy.load(name, main.COMMANDS[name])
    inner = getattr(found, "commands", None)
    return [(f"{name} {part}", each) for part, each in inner.items()] if inner else [(name, found)]


POLICY_COMMANDS = [
    pair for name in ("policy", "endpoint", "config", "service", "nat", "verify") for pair in commands(name)
]


def help_of(command: click.Command) -> str:
    return command.get_help(click.Context(command, info_name="x"))


@pytest.mark.parametrize(
    "command", [each for _, each in POLICY_COMMANDS], ids=[n for n, _ in POLICY_COMMANDS]
)
def test_every_argument_and_option_is_explained_once(command: click.Command) -> None:
    text = help_of(command)
    for parameter in command.params:
        assert getattr(parameter, "help", None), parameter.name
    assert text.count("rguments:") == any(isinstance(each, click.Argument) for each in command.params)


@pytest.mark.parametrize(("name", "command"), POLICY_COMMANDS, ids=[n for n, _ in POLICY_COMMANDS])
def test_commands_with_arguments_or_ways_to_ask_show_examples(name: str, command: click.Command) -> None:
    text = help_of(command)
    if name != "endpoint list":
        assert f"\n    cilia {name}" in text


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 60 columns."""
    written = io.StringIO()

    def console() -> Any:
        return Console(file=written, width=60, force_terminal=True, no_color=True, highlight=False)

    monkeypatch.setattr(output, "console", console)
    return written


COLUMNS = ("PEER", "LABELS", "PORT", "RULE")
LONG = ("NetworkPolicy shop/web spec.ingress[0].from[0]", "NetworkPolicy shop/web spec.ingress[1].from[0]")


def printed(terminal: io.StringIO) -> list[str]:
    text = click.unstyle(terminal.getvalue())
    return [line.rstrip() for line in text.splitlines()]


def test_a_table_that_does_not_fit_puts_what_is_long_below(terminal: io.StringIO) -> None:
    rows = [(300, ("k8s:a=b", "k8s:c=d"), "80", LONG), ("any", (), "any", ("default",))]
    output.print_table(COLUMNS, rows, below=("LABELS", "RULE"))
    assert printed(terminal) == [
        "PEER  PORT",
        "300   80",
        "    labels  k8s:a=b, k8s:c=d",
        f"    rule  {LONG[0]}",
        f"    rule  {LONG[1]}",
        "any   any",
        "    rule  default",
    ]


def test_a_table_that_fits_stays_a_table(terminal: io.StringIO) -> None:
    output.print_table(COLUMNS, [(300, (), "80", ("default",))], below=("LABELS", "RULE"))
    assert printed(terminal) == ["PEER   LABELS   PORT   RULE", "300    -        80     default"]
