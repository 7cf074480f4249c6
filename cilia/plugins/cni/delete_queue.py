"""The agent's side of the queue of deferred DELs.

While the agent is away the plugin leaves each DEL as a file (a frame of `cilia.wire.cni`) and tells the
runtime that it is done. The agent must serve its CNI socket *before* it calls `replay`: the plugin asks
once more under the queue's lock, so a DEL is either served or in the directory when `replay` gets the
lock.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from cilia.kit.files import private_directory
from cilia.wire import cni

log = structlog.get_logger(__name__)

LOCK = ".lock"
SCRATCH = ".new"
REJECTED_SUFFIX = ".rejected"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the queue's lock (POSIX record lock, as the plugin takes it); blocks while a plugin has it."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.lockf(descriptor, os.F_LOCK, 0)
        yield
    finally:
        os.close(descriptor)


def waiting(directory: Path) -> list[Path]:
    """The deferred DELs, oldest first."""
    files = [
        path
        for path in directory.iterdir()
        if not path.name.startswith(".") and path.suffix != REJECTED_SUFFIX and path.is_file()
    ]
    return sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name))


async def replay(directory: Path, serve: Callable[[bytes, bytes], Awaitable[cni.Answer]]) -> int:
    """Serve every deferred DEL; returns how many were served.

    `serve` takes an environment block and standard input, as `cilia.api.cni_server.CniServer.serve`
    does. A DEL that failed in a way worth a retry keeps its file for the next start; one that can never
    succeed is renamed to *.rejected and logged, so that it neither blocks the queue nor vanishes.
    """
    private_directory(directory)
    served = 0
    # A plugin that waits for the lock tries the socket under it: waiting for it here would block this
    # loop, which has to answer that plugin.
    frames = await asyncio.to_thread(_take, directory)
    for path, frame in frames:
        try:
            environment, stdin = cni.parse_frame(frame)
        except cni.FrameError as error:
            _reject(path, str(error))
            continue
        answer = await serve(environment, stdin)
        if answer.exit_code == 0:
            path.unlink(missing_ok=True)
            served += 1
        elif _permanent(answer):
            _reject(path, answer.output.decode(errors="replace"))
        else:
            log.warning("deferred DEL failed and stays queued", file=path.name, answer=answer.output.decode())
    return served


def _take(directory: Path) -> list[tuple[Path, bytes]]:
    with locked(directory):
        (directory / SCRATCH).unlink(missing_ok=True)
        return [(path, path.read_bytes()) for path in waiting(directory)]


def _permanent(answer: cni.Answer) -> bool:
    code = cni.parse_error_code(answer.output)
    return code in (
        cni.Code.INCOMPATIBLE_VERSION,
        cni.Code.INVALID_ENVIRONMENT,
        cni.Code.DECODING_FAILURE,
        cni.Code.INVALID_CONFIG,
    )


def _reject(path: Path, reason: str) -> None:
    log.error("deferred DEL can't be served, set aside", file=path.name, reason=reason)
    path.replace(path.with_name(path.name + REJECTED_SUFFIX))
