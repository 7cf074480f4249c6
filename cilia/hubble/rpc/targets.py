"""Where a server is, as people write it: `unix:///path`, `host`, `host:port`, `[v6]:port`."""

from __future__ import annotations

DEFAULT_PORT = 4244
"""Of a node's Hubble server."""


def socket_path(target: str) -> str | None:
    """The path of `unix:///path`, `unix:path` or `/path`; None for what is no unix socket."""
    if target.startswith(("unix:", "/")):
        return target.removeprefix("unix:").replace("///", "/", 1)
    return None


def is_local(target: str) -> bool:
    """Whether it is a unix socket."""
    return socket_path(target) is not None


def host_and_port(address: str) -> tuple[str, int]:
    """Host and port; without a port the default one, also of a bare IPv6 address. Raises ValueError."""
    host, separator, port = address.rpartition(":")
    if not separator or "]" in port or (":" in host and not host.startswith("[")):
        host, port = address, str(DEFAULT_PORT)
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{port!r} is not a port")
    return host.strip("[]"), int(port)
