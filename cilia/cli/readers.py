"""Ends what waits, once nobody reads what it prints: `cilia observe --follow | head -1`.

Without this a command learns of it by its next line, which may never come.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def noticed() -> Iterator[None]:
    """Interrupts what is inside, as Ctrl-C does, when the reader of a pipe that is standard output goes."""
    ended = threading.Event()
    output = pipe()
    if output is not None:
        threading.Thread(target=_wait, args=(output, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def pipe() -> int | None:
    """The number of standard output, if it is a pipe."""
    try:
        number = sys.stdout.fileno()
        return number if stat.S_ISFIFO(os.fstat(number).st_mode) else None
    except (OSError, ValueError):
        return None


def _wait(output: int, ended: threading.Event) -> None:
    """For errors only, which a pipe has when its other end is closed (poll(2), POLLERR)."""
    reader = select.poll()
    reader.register(output, 0)
    reader.poll()
    if not ended.is_set():
        # A shell's command in the background is deaf to Ctrl-C.
        deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        # To that thread, so that what it waits in returns.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM if deaf else signal.SIGINT)
