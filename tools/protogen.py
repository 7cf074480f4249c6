"""Generate `cilia/proto` from `proto/`: Python modules and their type stubs.

`python tools/protogen.py` writes; `python tools/protogen.py --check` answers 1 when a file differs. Needs
grpcio-tools and mypy-protobuf (the `dev` extra); a node needs neither, because the result is committed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "proto"
TARGET = ROOT / "cilia" / "proto"
PACKAGES = ("flow", "relay", "observer", "peer", "health", "reflection")

CHARTER = '''"""The messages of Hubble's API, generated from `proto/` by `tools/protogen.py`; never edited.

Belongs here: generated modules and stubs only. Imports nothing else of Cilia.
"""
'''

SIBLING_IMPORT = re.compile(rf"^from ({'|'.join(PACKAGES)}) import ", re.MULTILINE)


def compile_protos(scratch: Path) -> None:
    """Run protoc over every file of `proto/` into `scratch`. Raises CalledProcessError with its message."""
    files = sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.proto"))
    plugin = Path(sysconfig.get_path("scripts")) / "protoc-gen-mypy"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{SOURCE}", f"--python_out={scratch}"]
    command += [f"--plugin=protoc-gen-mypy={plugin}", f"--mypy_out=quiet:{scratch}", *files]
    subprocess.run(command, check=True)


def into_package(text: str) -> str:
    """Point the imports among generated files at `cilia.proto`, where they live."""
    return SIBLING_IMPORT.sub(r"from cilia.proto.\1 import ", text)


def generate() -> dict[str, str]:
    """All files of `cilia/proto`: relative path to text."""
    files = {"__init__.py": CHARTER, "py.typed": ""}
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        compile_protos(scratch)
        for path in sorted(scratch.rglob("*.py*")):
            relative = path.relative_to(scratch)
            files[f"{relative.parent}/__init__.py"] = f'"""Generated from `proto/{relative.parent}`."""\n'
            files[str(relative)] = into_package(path.read_text())
    return files


def differences(files: dict[str, str]) -> list[str]:
    """Paths whose committed text is not what would be generated, or that should not be there."""
    present = {
        str(path.relative_to(TARGET))
        for path in TARGET.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    changed = [
        name for name, text in files.items() if name not in present or (TARGET / name).read_text() != text
    ]
    return sorted(changed + list(present - files.keys()))


def main() -> int:
    """Write the files, or only compare them."""
    files = generate()
    stale = differences(files)
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"cilia/proto/{name} is stale: run python tools/protogen.py")
        return 1 if stale else 0
    for name in stale:
        path = TARGET / name
        if name not in files:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
