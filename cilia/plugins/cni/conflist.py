"""The configuration list that makes a runtime call the plugin.

Its presence tells the kubelet that the node's network is ready, so the agent writes it only when ADD can
be served, and takes it away on request. Runtimes take the alphabetically first file of the directory;
in exclusive mode all others are set aside, as Cilium does, under a name runtimes ignore.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from cilia.kit.files import write_atomic
from cilia.plugins.cni.install import PLUGIN

FILE_NAME = "05-cilia.conflist"
BACKUP_SUFFIX = ".cilia_bak"
RUNTIME_SUFFIXES = (".conf", ".conflist", ".json")
"""What libcni reads in a configuration directory."""


class ConflistError(Exception):
    """The configuration can't be written or is not usable; the text says what to do."""


class ConflistSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent is told about the conflist."""

    directory: Path = Path("/etc/cni/net.d")
    file_name: str = FILE_NAME
    network: str = "cilia"
    plugin: str = PLUGIN
    """Name of the executable in the runtime's plugin directory."""
    versions: tuple[str, ...] = ("1.0.0", "1.1.0")
    """The first is the version runtimes of CNI 1.0 use; newer ones pick the highest of all."""
    exclusive: bool = True
    """Set other configurations aside, so that no pod gets another plugin's network."""
    custom: Path | None = None
    """A configuration list of the user's, copied instead of ours."""
    mtu: int = 0
    log_level: str = ""


def render_conflist(settings: ConflistSettings) -> bytes:
    """The file's content. Raises `ConflistError` where the user's own list is unusable."""
    if settings.custom is not None:
        return _custom(settings.custom)
    plugin: dict[str, Any] = {"type": settings.plugin}
    if settings.mtu:
        plugin["mtu"] = settings.mtu
    if settings.log_level:
        plugin["log-level"] = settings.log_level
    document = {
        "cniVersion": settings.versions[0],
        "cniVersions": settings.versions,
        "name": settings.network,
        "plugins": [plugin],
    }
    return msgspec.json.format(msgspec.json.encode(document)) + b"\n"


def _custom(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        document = msgspec.json.decode(content, type=dict[str, Any])
    except OSError as error:
        raise ConflistError(
            f"The CNI configuration {path} can't be read ({error.strerror}); mount it or unset it."
        ) from error
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ConflistError(
            f"The CNI configuration {path} isn't a JSON object ({error}); mend it."
        ) from error
    if not isinstance(document.get("plugins"), list) or not document.get("name"):
        raise ConflistError(f"The CNI configuration {path} has no name or no plugins; make it a conflist.")
    return content


def write_conflist(settings: ConflistSettings) -> Path:
    """Write the file in one step and, in exclusive mode, set the others aside; returns its path."""
    target = settings.directory / settings.file_name
    content = render_conflist(settings)
    try:
        if not (target.is_file() and target.read_bytes() == content):
            write_atomic(target, content, mode=0o644)
        if settings.exclusive:
            set_others_aside(settings)
    except OSError as error:
        raise ConflistError(
            f"The CNI configuration {target} can't be written ({error.strerror}); make it writable."
        ) from error
    return target


def set_others_aside(settings: ConflistSettings) -> list[Path]:
    """Rename every other configuration in the directory; returns their new names.

    Call it again when the directory changes: other installers write whenever they like.
    """
    moved = []
    for path in sorted(settings.directory.iterdir()):
        if path.name == settings.file_name or path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix in RUNTIME_SUFFIXES:
            aside = path.with_name(path.name + BACKUP_SUFFIX)
            path.replace(aside)
            moved.append(aside)
    return moved


def withdraw_conflist(settings: ConflistSettings, *, restore: bool = True) -> None:
    """Take the file away and, with `restore`, give the others their names back. Repeatable."""
    (settings.directory / settings.file_name).unlink(missing_ok=True)
    if not (restore and settings.directory.is_dir()):
        return
    for path in sorted(settings.directory.glob("*" + BACKUP_SUFFIX)):
        original = path.with_name(path.name.removesuffix(BACKUP_SUFFIX))
        if not original.exists():
            path.replace(original)
