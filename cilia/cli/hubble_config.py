"""`cilia hubble config ...`: lasting values of the flags about the server."""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cilia.cli import hubble_file
from cilia.cli.errors import UserError
from cilia.cli.hubble_server import DEFAULTS, META, ServerCommand, lasting, settings, variable
from cilia.cli.options import group
from cilia.cli.output import Format, print_data, print_table, printable

app = group("Keep values of the flags about the server in a file.")
SECRET = "basic-auth-password"
HIDDEN = "REDACTED"
KEYS = [name.replace("_", "-") for name in DEFAULTS]


def offered(incomplete: str) -> list[str]:
    """Keys a shell offers."""
    return [key for key in KEYS if key.startswith(incomplete)]


class Viewing(enum.StrEnum):
    """How settings are shown."""

    YAML = "yaml"
    JSON = "json"
    TABLE = "table"


Key = Annotated[str, typer.Argument(help="Name of a flag, such as tls-server-name.", autocompletion=offered)]
Any_ = Annotated[
    str | None, typer.Argument(metavar="[KEY]", help="Nothing: all of them.", autocompletion=offered)
]
Shown = Annotated[Viewing, typer.Option("--output", "-o", help="table: with where each comes from.")]


@app.callback()
def config() -> None:
    """Keep values of the flags about the server in a file: $HUBBLE_CONFIG, or ~/.config/hubble/config.yaml.

    What is typed counts more than a variable such as $HUBBLE_SERVER, and that more than the file.
    """


@app.command("view", cls=ServerCommand)
def view(ctx: typer.Context, output: Shown = Viewing.YAML) -> None:
    """Show what is in force: flags, environment, file and defaults together; no password.

    \b
    Examples:
      cilia hubble config view
      cilia hubble config view -o table
    """
    show(ctx, output)


@app.command("get", cls=ServerCommand)
def get(ctx: typer.Context, key: Any_ = None, output: Shown = Viewing.YAML) -> None:
    """Show one value that is in force, or all.

    \b
    Examples:
      cilia hubble config get server
    """
    if key is None:
        show(ctx, output)
        return
    value = hubble_file.plain(getattr(settings(ctx), known(key)))
    if output is Viewing.JSON:
        print_data(value, Format.JSON)
    else:
        for each in value if isinstance(value, list) else [value]:
            print(printable(word(each)))


@app.command("set")
def set_value(
    key: Key,
    value: Annotated[str | None, typer.Argument(help="Nothing: its default.", show_default=False)] = None,
) -> None:
    """Write one value into the file.

    \b
    Examples:
      cilia hubble config set server tls://relay.example.com:443
      cilia hubble config set tls-ca-cert-files /etc/hubble/ca.crt,/etc/hubble/old-ca.crt
      cilia hubble config set timeout 10s
    """
    name = known(key)
    path = hubble_file.place()
    content = hubble_file.read(path)
    content.pop(key, None)
    if value:
        try:
            content[key] = hubble_file.plain(hubble_file.typed(value, DEFAULTS[name]))
        except ValueError as error:
            raise UserError(f"{key}: {error}") from None
    keep(path, content)


@app.command("reset")
def reset(key: Any_ = None) -> None:
    """Take one value out of the file, or all.

    \b
    Examples:
      cilia hubble config reset server
    """
    path = hubble_file.place()
    content = hubble_file.read(path) if key is not None else {}
    if key is not None and key not in content:
        known(key)
    content.pop(key or "", None)
    keep(path, content)


def keep(path: Path, content: dict[str, Any]) -> None:
    """Write the file, if there is anything to write, and say where it is."""
    if content or path.exists():
        hubble_file.write(path, content)
    print(printable(f"{path}: {len(content)} set" if content else f"{path}: nothing set"), file=sys.stderr)


def known(key: str) -> str:
    """The field of a key. Raises UserError."""
    if key not in KEYS:
        raise UserError(f"there is no setting {key!r}: use one of {', '.join(KEYS)}")
    return key.replace("-", "_")


def show(ctx: typer.Context, output: Viewing) -> None:
    """All settings in force."""
    told = list(rows(ctx))
    if output is Viewing.TABLE:
        print_table(("KEY", "VALUE", "FROM"), [(key, word(value), by) for key, value, by in told])
    else:
        plain = {key: value for key, value, _ in told}
        print_data(plain, Format.JSON if output is Viewing.JSON else Format.YAML)


def word(value: Any) -> str:
    """A value for people."""
    if isinstance(value, list):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def rows(ctx: typer.Context) -> Iterator[tuple[str, Any, str]]:
    """Key, value and where it comes from."""
    chosen = settings(ctx)
    path, in_file = hubble_file.place(), lasting(ctx)
    for key in KEYS:
        name = key.replace("-", "_")
        value = hubble_file.plain(getattr(chosen, name))
        if key == SECRET and value:
            value = HIDDEN
        yield key, value, source(ctx, name, key, path if name in in_file else None)


def source(ctx: typer.Context, name: str, key: str, path: Path | None) -> str:
    """Where a value comes from."""
    if name in ctx.meta.get(META, {}):
        names = ["CILIA_HUBBLE_SOCKET"] if name == "server" else []
        by = [each for each in (variable(key), *names) if os.environ.get(each)]
        typed = ctx.get_parameter_source(name)
        return f"${by[0]}" if by and typed is not None and typed.name == "ENVIRONMENT" else f"--{key}"
    return str(path) if path else "default"
