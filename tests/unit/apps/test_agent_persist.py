"""Work that the store refuses: the rest goes on, nothing is forgotten, and the log is not flooded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from cilia.apps.agent.persist import each, persist
from cilia.cluster.store import Invalid, StoreError, Unavailable
from cilia.kit.tasks import TaskGroup


def work(failures: dict[str, StoreError], done: list[str]) -> Callable[[str], Awaitable[None]]:
    """Work that fails for some items."""

    async def one(item: str) -> None:
        if item in failures:
            raise failures[item]
        done.append(item)

    return one


def test_one_refusal_does_not_hold_up_the_others() -> None:
    done: list[str] = []
    again: list[str] = []
    with pytest.raises(Invalid, match="b is absurd"):
        asyncio.run(each("abc", work({"b": Invalid("b is absurd")}, done), again.append))
    assert (done, again) == (["a", "c"], ["b"])


def test_all_that_is_left_is_kept_when_the_store_is_away() -> None:
    done: list[str] = []
    again: list[str] = []
    with pytest.raises(Unavailable):
        asyncio.run(each("abcd", work({"b": Unavailable("away")}, done), again.append))
    assert (done, again) == (["a"], ["b", "c", "d"])


def test_work_is_tried_again_until_the_store_takes_it() -> None:
    answers: list[StoreError | None] = [Unavailable("away"), Unavailable("away"), Invalid("absurd"), None]
    calls = 0

    async def main() -> None:
        finished, wake = asyncio.Event(), asyncio.Event()

        async def attempt() -> None:
            nonlocal calls
            answer = answers[calls]
            calls += 1
            if answer is not None:
                raise answer
            finished.set()

        wake.set()
        async with TaskGroup() as tasks:
            tasks.spawn("work", persist("things", wake, attempt))
            async with asyncio.timeout(60):
                await finished.wait()

    with capture_logs() as said:
        asyncio.run(main())
    assert calls == len(answers)
    assert [line["error"] for line in said] == ["away", "absurd"]


def test_new_work_does_not_wait_for_a_refused_one() -> None:
    """A refusal is due again after its pause; what comes meanwhile is done at once."""
    calls: list[str] = []

    async def main() -> None:
        wake, came = asyncio.Event(), asyncio.Event()

        async def attempt() -> None:
            calls.append("now")
            came.set()
            raise Invalid("absurd")

        async with TaskGroup() as tasks:
            tasks.spawn("work", persist("things", wake, attempt))
            for _ in range(20):
                came.clear()
                wake.set()
                async with asyncio.timeout(5):
                    await came.wait()

    with capture_logs():
        asyncio.run(main())
    assert len(calls) >= 20
