"""The `cilia` command: the CLI's own commands and those of other rooms, under one root."""

from __future__ import annotations

import sys

from cilia.cli.lazy import LazyCommand
from cilia.cli.main import build, run

OTHER_ROOMS = {
    "lab": LazyCommand("cilia.lab.commands", "app", "Run a whole cluster on this machine."),
    "demo": LazyCommand("cilia.lab.demo.commands", "demo", "Show the main job on a lab, every step checked."),
}


def main() -> None:
    """Entry point of the `cilia` executable."""
    sys.exit(run(build(OTHER_ROOMS)))


if __name__ == "__main__":
    main()
