"""Build hook of the wheel: compiles the eBPF object, so that a node needs no compiler.

hatchling calls it for wheels and for editable installs. An object that is already there and newer than
its sources is left alone by make.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileObject(BuildHookInterface[Any]):
    """Runs `make -C bpf` and adds the object to the package."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile. Raises CalledProcessError with the compiler's words on standard error."""
        subprocess.run(["make", "--silent", "-C", str(Path(self.root) / "bpf")], check=True)
        build_data["artifacts"].append("cilia/abi/cilia.bpf.o")
