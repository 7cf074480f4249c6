"""Unix sockets that only the node's own root may speak to."""

from __future__ import annotations

import os
import socket
import stat
import struct
from pathlib import Path

UCRED = struct.Struct("3i")
"""struct ucred of unix(7): process, user, group."""
PATH_LIMIT = 107
BACKLOG = 512


class SocketError(Exception):
    """A socket can't be made; the text says why and what to do."""


def bind_private(path: Path) -> socket.socket:
    """A listening stream socket at `path`, mode 0600, in a directory nobody else can write to.

    A missing directory is made with mode 0700. A socket left behind by a dead process is replaced; one
    that answers belongs to somebody and is not. Raises `SocketError`.
    """
    clear(path)
    try:
        return _bind(path)
    except OSError as error:
        raise _not_made(path, error) from error


def clear(path: Path) -> None:
    """Make sure that a socket can be bound at `path`: the directory private, nobody there, no remains.

    Raises `SocketError`.
    """
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise SocketError(f"The socket's path {path} has more than {PATH_LIMIT} bytes; choose a shorter one.")
    try:
        _check_directory(path.parent)
        _remove_stale(path)
    except OSError as error:
        raise _not_made(path, error) from error


def _not_made(path: Path, error: OSError) -> SocketError:
    return SocketError(
        f"The socket {path} can't be made ({error.strerror or error}); give a directory you may write to."
    )


def _check_directory(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if directory.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SocketError(
            f"The directory {directory} is writable by others; put the socket into one with mode 0700."
        )


def _remove_stale(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_socket():
        raise SocketError(f"{path} exists and is not a socket; move it away or choose another path.")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(1.0)
        probe.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        path.unlink(missing_ok=True)
        return
    except OSError:
        pass
    finally:
        probe.close()
    raise SocketError(f"Another process answers on {path}; stop the other agent or choose another path.")


def _bind(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The umask closes the moment between bind and chmod.
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def peer(connection: socket.socket) -> tuple[int, int]:
    """(process id, user id) of whoever connected at the other end (SO_PEERCRED)."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    process, user, _ = UCRED.unpack(data)
    return int(process), int(user)


def peer_of_descriptor(descriptor: int) -> tuple[int, int]:
    """The same for a connection that an event loop owns."""
    connection = socket.socket(fileno=os.dup(descriptor))
    try:
        return peer(connection)
    finally:
        connection.close()


def trusted_users() -> frozenset[int]:
    """Who may speak to the agent: root, and whoever runs it."""
    return frozenset({0, os.getuid()})
