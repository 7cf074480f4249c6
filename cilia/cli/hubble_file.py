"""The file with lasting values of the flags about the server, as `hubble config` keeps it.

    server: tls://relay.example.com:443
    tls-ca-cert-files: [/etc/hubble/ca.crt]
    timeout: 10s

It counts less than the environment, which counts less than what is typed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cilia.cli.errors import UserError
from cilia.kit.documents import DocumentError, cut, read_yaml
from cilia.kit.durations import parse_duration

VARIABLE = "HUBBLE_CONFIG"
UNUSED = ("config", "debug")
"""Keys that `hubble` writes and that say nothing here."""
LONGEST = 1 << 20
"""Bytes of a file: more than settings need."""


def place() -> Path:
    """Where the file is, or would be: $HUBBLE_CONFIG, else where `hubble` looks."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    usual = Path(base).expanduser() / "hubble" / "config.yaml"
    old = Path("~/.hubble/config.yaml").expanduser()
    return old if old.exists() and not usual.exists() else usual


def read(path: Path) -> dict[str, Any]:
    """What the file says, as it says it; nothing if it is not there. Raises UserError."""
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"can't read the settings in {path}: {error.strerror}") from None
    if len(content) > LONGEST:
        raise UserError(f"{path} is too long for settings: name another file by ${VARIABLE}")
    return parsed(path, content)


def parsed(path: Path, content: bytes) -> dict[str, Any]:
    """Keys and values. Raises UserError."""
    try:
        found = read_yaml(content)
    except DocumentError as error:
        raise UserError(f"{path} can't be used ({error}): mend or remove it") from None
    if found is not None and not isinstance(found, dict):
        raise UserError(f"{path} has no settings such as `timeout: 5s`: mend or remove it")
    return {str(key): value for key, value in (found or {}).items() if key not in UNUSED}


def values(path: Path, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says in place of `defaults`, by the names these have. Raises UserError."""
    found = {}
    for key, value in read(path).items():
        name = key.replace("-", "_")
        if name not in defaults:
            raise UserError(f"{path} has {key!r}, which is no setting: `cilia hubble config reset {key}`")
        try:
            found[name] = typed(value, defaults[name])
        except ValueError as error:
            raise UserError(f"{path}: {key}: {error}") from None
    return found


def typed(value: Any, default: Any) -> Any:
    """A value of the type its default has. Raises ValueError with a sentence."""
    if isinstance(default, bool):
        return truth(value)
    if isinstance(default, tuple):
        words = value if isinstance(value, list) else str(value).strip("[]").split(",")
        return tuple(str(word).strip() for word in words if str(word).strip())
    if isinstance(default, float):
        return seconds(value)
    if isinstance(default, int):
        return port(value)
    if isinstance(value, dict | list):
        raise ValueError(f"{cut(repr(value))} is not one word")
    return "" if value is None else str(value)


def truth(value: Any) -> bool:
    """Of `true`, `false`, or their text."""
    words = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in words:
        raise ValueError(f"{cut(repr(value))} is neither true nor false")
    return words[str(value).lower()]


def seconds(value: Any) -> float:
    """Of `5s`, `1m30s`, or a number of seconds."""
    text = str(value)
    try:
        found = parse_duration(text)
    except ValueError:
        found = 0.0
    if not found:
        raise ValueError(f"{cut(text)!r} is no duration: write 5s, 500ms or 1m30s")
    return found


def port(value: Any) -> int:
    """A number of a port; 0: any that is free."""
    text = str(value)
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError(f"{cut(text)!r} is no port: write a number up to 65535")
    return int(text)


def plain(value: Any) -> Any:
    """A value as the file has it."""
    if isinstance(value, tuple):
        return list(value)
    return f"{value:g}s" if isinstance(value, float) else value


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file; only its owner may read it, for it may have a password. Raises UserError."""
    import yaml

    from cilia.kit.files import write_atomic

    text = yaml.safe_dump(dict(content), sort_keys=True) if content else ""
    try:
        # Through a link, which people use to keep their settings elsewhere.
        write_atomic(path.resolve(), text.encode())
    except OSError as error:
        raise UserError(f"can't write the settings into {path}: {error.strerror}") from None
