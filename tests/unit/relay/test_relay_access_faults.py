"""An API server that hangs, dies or answers nonsense while many viewers come."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable

import msgspec
import pytest

from cilia.cluster.store import Listing, Resource, StoreError
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.kit.clock import ManualClock
from cilia.relay.access import ASKED, REMEMBERED, Access, AccessSettings, Viewer

ADMIN = b'{"status": {"allowed": true}}'


def user(name: str) -> bytes:
    """The review of a good token."""
    return json.dumps({"status": {"authenticated": True, "user": {"username": name}}}).encode()


class Api:
    """Knows tokens that begin with `good`, and lets their users see everything."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """Tokens, in the order in which they were asked about."""
        self.hang = asyncio.Event()
        """Unset: no answer comes."""
        self.hang.set()
        self.error: StoreError | None = None
        self.review: Callable[[str], bytes] = lambda token: user(token) if token.startswith("good") else b"{}"
        self.access = ADMIN
        self.namespaces: tuple[bytes, ...] = ()

    async def create(self, resource: Resource, body: bytes, *, namespace: str | None = None) -> bytes:
        if resource.plural != "tokenreviews":
            return self.access
        token = json.loads(body)["spec"]["token"]
        self.asked.append(token)
        await self.hang.wait()
        if self.error:
            raise self.error
        return self.review(token)

    async def list(self, resource: Resource) -> Listing:
        return Listing([msgspec.Raw(item) for item in self.namespaces], "1")


def headers(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def ask(access: Access, token: str) -> Viewer | Code:
    """Who it is, or why not."""
    try:
        return await access.viewer(headers(token))
    except RpcError as error:
        return error.code


def test_all_who_wait_with_a_token_share_one_answer_also_of_a_server_that_hangs() -> None:
    async def story() -> None:
        api = Api()
        access = Access(api, AccessSettings(patience=0.2), ManualClock())
        api.hang.clear()
        answers = await asyncio.gather(*[ask(access, "good") for _ in range(1000)])
        assert set(answers) == {Code.UNAVAILABLE}, "one patience for all, not one after the other"
        assert api.asked == ["good"]
        api.hang.set()
        assert await ask(access, "good") == Viewer("good", None), "a failure is not remembered"
        await access.close()

    asyncio.run(story())


def test_who_goes_away_takes_the_answer_from_nobody() -> None:
    async def story() -> None:
        api = Api()
        access = Access(api, AccessSettings(), ManualClock())
        api.hang.clear()
        goes, stays = (asyncio.ensure_future(ask(access, "good")) for _ in range(2))
        await asyncio.sleep(0.01)
        goes.cancel()
        await asyncio.sleep(0.01)
        api.hang.set()
        assert await stays == Viewer("good", None)
        assert api.asked == ["good"]
        await access.close()

    asyncio.run(story())


def test_many_tokens_at_a_time_are_refused_beyond_a_bound_and_known_viewers_go_on() -> None:
    async def story() -> None:
        api = Api()
        access = Access(api, AccessSettings(patience=0.2), ManualClock())
        assert await ask(access, "good") == Viewer("good", None)
        api.hang.clear()
        strangers = [asyncio.ensure_future(ask(access, f"bad-{number}")) for number in range(1000)]
        await asyncio.sleep(0.01)
        assert await ask(access, "good") == Viewer("good", None)
        answers = await asyncio.gather(*strangers)
        assert answers.count(Code.UNAVAILABLE) == ASKED
        assert answers.count(Code.RESOURCE_EXHAUSTED) == 1000 - ASKED
        assert len(api.asked) == 1 + ASKED
        await access.close()

    asyncio.run(story())


def test_strangers_do_not_keep_a_viewer_from_being_asked_about_again() -> None:
    async def story() -> None:
        api, clock = Api(), ManualClock()
        access = Access(api, AccessSettings(), clock)
        await ask(access, "good")
        clock.advance(61)
        api.hang.clear()
        waiting = [asyncio.ensure_future(ask(access, f"bad-{number}")) for number in range(ASKED)]
        await asyncio.sleep(0.01)
        waiting.append(asyncio.ensure_future(ask(access, "good")))
        assert await ask(access, "new") is Code.RESOURCE_EXHAUSTED
        api.hang.set()
        assert (await asyncio.gather(*waiting))[-1] == Viewer("good", None)
        await access.close()

    asyncio.run(story())


def test_bad_tokens_do_not_push_out_good_ones() -> None:
    async def story() -> None:
        api = Api()
        access = Access(api, AccessSettings(), ManualClock())
        await ask(access, "good")
        for number in range(REMEMBERED + 1):
            assert await ask(access, f"bad-{number}") is Code.UNAUTHENTICATED
        assert await ask(access, "bad-1") is Code.UNAUTHENTICATED
        assert await ask(access, "good") == Viewer("good", None)
        assert len(api.asked) == REMEMBERED + 2, "nobody who is remembered is asked about again"
        await access.close()

    asyncio.run(story())


def test_a_viewer_whose_token_ends_is_refused_then_and_taken_back_later() -> None:
    async def story() -> None:
        api, clock = Api(), ManualClock()
        access = Access(api, AccessSettings(), clock)
        await ask(access, "good")
        api.review = lambda _token: b'{"status": {"authenticated": false, "error": "expired"}}'
        assert await ask(access, "good") == Viewer("good", None), "an answer holds for a minute"
        clock.advance(61)
        assert await ask(access, "good") is Code.UNAUTHENTICATED
        api.review = user
        assert await ask(access, "good") is Code.UNAUTHENTICATED, "a refusal holds for ten seconds"
        clock.advance(11)
        assert await ask(access, "good") == Viewer("good", None)
        await access.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("review", "access", "namespaces", "code"),
    [
        (b"", ADMIN, (), Code.UNAVAILABLE),
        (b"<html>", ADMIN, (), Code.UNAVAILABLE),
        (b"\xff\xfe", ADMIN, (), Code.UNAVAILABLE),
        (b"[]", ADMIN, (), Code.UNAVAILABLE),
        (b"null", ADMIN, (), Code.UNAVAILABLE),
        (b'{"kind": ' + b"[" * 100_000, ADMIN, (), Code.UNAVAILABLE),
        (b'{"status": "Failure"}', ADMIN, (), Code.UNAVAILABLE),
        (b'{"status": {"authenticated": "yes"}}', ADMIN, (), Code.UNAVAILABLE),
        (b'{"status": {"authenticated": true, "user": {"username": 7}}}', ADMIN, (), Code.UNAVAILABLE),
        (b"{}", ADMIN, (), Code.UNAUTHENTICATED),
        (b'{"status": {"authenticated": true}}', ADMIN, (), Code.UNAUTHENTICATED),
        (b'{"status": {"user": {"username": "ann"}}}', ADMIN, (), Code.UNAUTHENTICATED),
        (user("ann"), b"", (), Code.UNAVAILABLE),
        (user("ann"), b'{"status": {"allowed": 1}}', (), Code.UNAVAILABLE),
        (user("ann"), b"{}", (), Code.PERMISSION_DENIED),
        (user("ann"), b'{"status": {"allowed": true, "denied": true}}', (), Code.PERMISSION_DENIED),
        (user("ann"), b"{}", (b'{"metadata": {"name": "shop"}}',), Code.PERMISSION_DENIED),
        (user("ann"), b"{}", (b'{"metadata": 7}',), Code.UNAVAILABLE),
        (user("ann"), b"{}", (b"\xff",), Code.UNAVAILABLE),
        (user("ann"), b"{}", (b'{"spec": ' + b"[" * 100_000,), Code.UNAVAILABLE),
    ],
    ids=itertools.count(),
)
def test_an_api_server_that_answers_wrongly_lets_nobody_in(
    review: bytes, access: bytes, namespaces: tuple[bytes, ...], code: Code
) -> None:
    async def story() -> None:
        api = Api()
        api.review, api.access, api.namespaces = (lambda _token: review), access, namespaces
        asked = Access(api, AccessSettings(), ManualClock())
        assert await ask(asked, "good") is code
        await asked.close()

    asyncio.run(story())


def test_an_api_server_that_dies_lets_nobody_in() -> None:
    async def story() -> None:
        api = Api()
        api.error = StoreError("the API server can't be reached")
        access = Access(api, AccessSettings(), ManualClock())
        assert await ask(access, "good") is Code.UNAVAILABLE
        await access.close()

    asyncio.run(story())


def test_after_a_review_that_fails_no_other_of_the_same_viewer_goes_on() -> None:
    class Failing(Api):
        """Answers every review of a namespace but the first with a failure."""

        reviews = 0

        async def create(self, resource: Resource, body: bytes, *, namespace: str | None = None) -> bytes:
            if resource.plural == "tokenreviews":
                return user("ann")
            self.reviews += 1
            await asyncio.sleep(0)
            if self.reviews > 1:
                raise StoreError("the API server can't be reached")
            return b"{}"

    async def story() -> None:
        api = Failing()
        api.namespaces = tuple(b'{"metadata": {"name": "n%d"}}' % number for number in range(500))
        access = Access(api, AccessSettings(), ManualClock())
        assert await ask(access, "good") is Code.UNAVAILABLE
        until_then = api.reviews
        for _ in range(100):
            await asyncio.sleep(0)
        assert api.reviews == until_then < 100
        await access.close()

    asyncio.run(story())
