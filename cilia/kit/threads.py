"""Work beside the event loop that nobody has to wait for.

`asyncio.to_thread` keeps a process that was told to stop until the function has returned. A daemon thread
goes with the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


def start(name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Run a function in a thread of its own; the future has what it returns or raises.

    Cancelling the future lets the thread go on, for nobody: shield it to know when the work is done.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(finish: Callable[[], None]) -> None:
        if not future.done():
            finish()

    def work() -> None:
        finish: Callable[[], None]
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            failure = error
            finish = lambda: future.set_exception(failure)  # noqa: E731
        else:
            finish = lambda: future.set_result(result)  # noqa: E731
        # The loop may be gone.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, finish)

    threading.Thread(target=work, name=name, daemon=True).start()
    return future
