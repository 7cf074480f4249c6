"""The executable `cilia`: every command of its root can be loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest

from cilia.apps import ctl
from cilia.cli import hubble, lazy, main

COMMANDS = main.COMMANDS | ctl.OTHER_ROOMS


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_where_the_root_says(name: str) -> None:
    command = lazy.load(name, COMMANDS[name])
    assert command.name == name
    assert command.help


@pytest.mark.parametrize("name", hubble.COMMANDS)
def test_commands_of_hubble_are_there_and_explain_their_flags(name: str) -> None:
    command = lazy.load(name, hubble.COMMANDS[name])
    inner = [each for each in getattr(command, "commands", {}).values() if not each.hidden]
    for each in (command, *inner):
        assert each.help
        text = each.get_help(click.Context(each, info_name="x"))
        for parameter in each.params:
            assert getattr(parameter, "help", None), parameter.name
            hidden = getattr(parameter, "hidden", False)  # an old spelling, still taken
            assert (parameter.opts[0] in text) is not hidden or parameter.param_type_name == "argument"


def test_completion_offers_commands_and_their_subcommands() -> None:
    assert complete("cilia sta", 1) == ["status"]
    assert complete("cilia endpoint po", 2) == ["policy"]
    assert complete("cilia hubble observe --verdict DR", 4) == ["DROPPED"]
    assert complete("cilia observe deb", 2) == ["debug-events"]
    assert complete("cilia config PolicyDeny", 2) == [
        "PolicyDenyResponse",
        "PolicyDenyResponse=none",
        "PolicyDenyResponse=icmp",
    ]


def complete(words: str, index: int) -> list[str]:
    environment = os.environ | {
        "_CILIA_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(index),
    }
    done = subprocess.run(
        [sys.executable, "-m", "cilia.apps.ctl"], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()
