"""Puts the plugin where the runtime looks for it.

The runtime gives a plugin no place for our settings, so the paths are written into the executable. It
carries its code compiled, which saves 2.5 ms of each call, and its source beside it for the day on which the
interpreter has been replaced by one with other bytecode.
"""

from __future__ import annotations

import ast
import importlib.util
import marshal
import sys
from pathlib import Path

from cilia.kit.files import private_directory, write_atomic
from cilia.wire import cni

PLUGIN = "cilia-cni"
SOURCE = Path(__file__).with_name("cilia_cni.py")
SCRIPT = """#!{interpreter} -IS
import _frozen_importlib_external, marshal
CODE = {code!r}
SOURCE = {source!r}
exec(marshal.loads(CODE) if _frozen_importlib_external.MAGIC_NUMBER == {magic!r} else SOURCE)
"""
"""`_frozen_importlib_external` and `marshal` are in every interpreter when it starts."""
SOCKET_PATH_LIMIT = 107
"""Bytes of sun_path (unix(7)), without the closing NUL."""


class InstallError(Exception):
    """The plugin can't be installed; the text says why and what to do."""


def install_plugin(
    bin_dir: Path, socket_path: Path, queue_dir: Path, *, name: str = PLUGIN, python: str = ""
) -> Path:
    """Write the executable `bin_dir/name`, in one step, and make the queue's directory.

    `socket_path` is the agent's CNI socket, `queue_dir` where deferred DELs wait, `python` the interpreter
    (by default the one that runs this). Returns the path. Raises `InstallError`.
    """
    interpreter = python or sys.executable
    if len(str(socket_path).encode()) > SOCKET_PATH_LIMIT:
        raise InstallError(
            f"The socket's path {socket_path} has more than {SOCKET_PATH_LIMIT} bytes; choose a shorter one."
        )
    if any(character.isspace() for character in interpreter) or len(interpreter.encode()) > 240:
        raise InstallError(
            f"The interpreter's path {interpreter!r} can't stand in a #! line; use one without spaces."
        )
    target = bin_dir / name
    try:
        private_directory(queue_dir)
        write_atomic(
            target, render_plugin(socket_path, queue_dir, interpreter).encode(), mode=0o755, durable=False
        )
        target.chmod(0o755)
    except OSError as error:
        raise InstallError(
            f"The CNI plugin can't be installed as {target} ({error.strerror}); make the directory writable."
        ) from error
    return target


def remove_plugin(bin_dir: Path, *, name: str = PLUGIN) -> None:
    """Take the executable away; an absent one is no error."""
    (bin_dir / name).unlink(missing_ok=True)


def render_plugin(socket_path: Path, queue_dir: Path, interpreter: str) -> str:
    """The executable's text."""
    source = _source(socket_path, queue_dir)
    code = marshal.dumps(compile(source, PLUGIN, "exec", dont_inherit=True, optimize=2))
    return SCRIPT.format(interpreter=interpreter, magic=importlib.util.MAGIC_NUMBER, code=code, source=source)


def _source(socket_path: Path, queue_dir: Path) -> str:
    """The plugin's source with its settings; what only people need (docstring, annotations) is left out."""
    values: dict[str, bytes | str] = {
        "SOCKET_PATH": bytes(socket_path),
        "QUEUE_PATH": bytes(queue_dir),
        "VERSIONS": cni.encode_versions(),
        "NEWEST": cni.NEWEST,
    }
    tree = ast.parse(SOURCE.read_text())
    tree.body = tree.body[1:]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in node.args.args:
                argument.annotation = None
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            constant = values.pop(node.targets[0].id, None)
            if constant is not None:
                node.value = ast.Constant(constant)
    assert not values, f"cilia_cni.py has no constant {', '.join(values)}"
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"
