"""Puts the CNI plugin in place or takes it away, by hand or from an install container.

The agent does the same at its start; this is for nodes where it may not write to the runtime's
directories, and for the last step of an uninstall.

    python -m cilia.apps.cni install   --bin-dir /opt/cni/bin --socket /run/cilia/cni.sock
    python -m cilia.apps.cni uninstall --bin-dir /opt/cni/bin --conf-dir /etc/cni/net.d
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cilia.plugins.cni import conflist
from cilia.plugins.cni.install import PLUGIN, InstallError, install_plugin, remove_plugin


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="cilia-cni-setup", description=(__doc__ or "").splitlines()[0])
    commands = root.add_subparsers(dest="command", required=True)
    install = commands.add_parser("install", help="write the plugin's executable")
    install.add_argument("--socket", type=Path, default=Path("/run/cilia/cni.sock"))
    install.add_argument("--queue-dir", type=Path, default=Path("/run/cilia/deleteQueue"))
    install.add_argument("--python", default="", help="interpreter of the plugin; this one by default")
    uninstall = commands.add_parser("uninstall", help="remove the plugin and its configuration list")
    uninstall.add_argument("--conf-dir", type=Path, default=Path("/etc/cni/net.d"))
    for command in (install, uninstall):
        command.add_argument("--bin-dir", type=Path, default=Path("/opt/cni/bin"))
        command.add_argument("--name", default=PLUGIN, help="the executable's file name")
    return root


def run(arguments: Sequence[str]) -> int:
    """Do what the command line says; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "install":
            path = install_plugin(
                options.bin_dir, options.socket, options.queue_dir, name=options.name, python=options.python
            )
            print(f"Installed {path}")
        else:
            conflist.withdraw_conflist(conflist.ConflistSettings(directory=options.conf_dir))
            remove_plugin(options.bin_dir, name=options.name)
            print(f"Removed {options.bin_dir / options.name}")
    except (InstallError, OSError) as error:
        print(f"cilia-cni-setup: {error}", file=sys.stderr)
        return 1
    return 0


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
