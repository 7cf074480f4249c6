"""The executable `cilia`: every command of its root can be loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cilia.apps import ctl
from cilia.cli import lazy, main

COMMANDS = main.COMMANDS | ctl.OTHER_ROOMS


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_where_the_root_says(name: str) -> None:
    command = lazy.load(name, COMMANDS[name])
    assert command.name == name
    assert command.help


def test_completion_offers_commands_and_their_subcommands() -> None:
    assert complete("cilia sta", 1) == ["status"]
    assert complete("cilia endpoint po", 2) == ["policy"]
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
