"""One GetFlows call: asked of every peer, merged, cut to what was asked for.

Each peer has a task that reads its answer into a lane, one window ahead at most; one task merges and sends.
A client that does not read stops the merge, full lanes stop the readers, unread windows stop the peers.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from typing import TypeAlias

import msgspec
from google.protobuf import timestamp_pb2

from cilia.hubble.rpc.channel import SMALLEST_WINDOW, Call, Channel
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.hubble.rpc.server import Sink
from cilia.kit.clock import Clock
from cilia.kit.tasks import TaskGroup
from cilia.proto.observer import observer_pb2
from cilia.proto.relay import relay_pb2
from cilia.relay.merge import Item, Lane, Merge, MergeSettings
from cilia.relay.numbers import Numbers
from cilia.relay.pool import Link, Pool, reasons
from cilia.relay.scan import ScanError, Scanner, check, is_flow
from cilia.relay.view import View

GET_FLOWS = "/observer.Observer/GetFlows"

RENEW_SECONDS = 2.0
"""Between attempts to ask a connected peer whose answer has ended while a client follows."""
VIEW = 256
"""Flows masked before others get their turn: some 5 ms."""
READERS = 32
"""Readers begun before others get their turn: some 2 ms. Each waits for its own to ask its peer."""
TELL_AFTER = 0.25
"""Seconds until a client is told who answers, when no node has said anything by then: until it is known
whether nodes take the request at all."""
TELL_AFTER_REFUSAL = 5.0
"""The same, when some have refused it: seconds until also the last of many has been asked."""
SEND = 512
"""Messages handed to the client's stream at a time."""
CALLERS_FAULTS = (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.RESOURCE_EXHAUSTED)
"""What a peer says when the request is to blame: it is not asked again, unless it was only busy."""


State: TypeAlias = relay_pb2.NodeState.ValueType
Problem: TypeAlias = tuple[State, str]
"""What became of a peer, and why."""


class AnswerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one answer."""

    merge: MergeSettings = MergeSettings()
    memory: int = 16 << 20
    """Bytes an answer holds of all peers together, each at least a window of 16 KiB."""
    largest_window: int = 1 << 20
    """Bytes held of one peer, however few there are."""
    silence: float = 30.0
    """Seconds a peer may be silent in the middle of a history; then the answer goes on without it."""
    tail: int = 20_000
    """The most flows `number` is kept to when it counts from the end; for more, each node gives its own."""
    tail_memory: int = 64 << 20
    """Bytes these may take; then the call fails. Nodes' usual flows take a third of that."""
    gather: float = 1.0
    """Seconds that errors with the same words wait for each other, so that a client hears of them once."""

    def window(self, peers: int) -> int:
        """Bytes to hold of each of so many peers."""
        return max(SMALLEST_WINDOW, min(self.largest_window, self.memory // max(1, peers)))


class Answer:
    """A running GetFlows call of a client."""

    def __init__(
        self,
        pool: Pool,
        request: observer_pb2.GetFlowsRequest,
        settings: AnswerSettings,
        node_name: str,
        clock: Clock,
        numbers: Numbers,
        view: View | None = None,
    ) -> None:
        """`view`: what the viewer may see; None: everything."""
        self._numbers = numbers
        self._view = view
        if view:
            view.narrow(request)
        self._pool = pool
        self._request = request
        self._settings = settings
        self._node_name = node_name
        self._clock = clock
        self._merge = Merge(settings.merge, follow=request.follow)
        self._cut = cut_for(request, settings)
        self._tasks = TaskGroup()
        self._bell = asyncio.Event()
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[str, int] = {}
        """Peers asked so far, with the time of the newest message each has sent."""
        self._full: dict[str, tuple[Lane, asyncio.Event]] = {}
        """Peers whose lane is full, and what tells their reader that it is no longer."""
        self._renewed = 0.0
        self._changed = False
        """Peers came or went since the last renewal."""
        self._notes: list[bytes] = []
        """Node states to tell."""
        self._errors = Errors(settings.gather)
        self._window = SMALLEST_WINDOW
        self._began = clock.monotonic()
        self._began_at = int(clock.wall() * 1e9)
        self._accepted = False
        """Whether a node has begun to answer."""
        self._refusals: dict[str, RpcError] = {}
        """Peers that would not answer such a request."""

    async def send(self, sink: Sink) -> None:
        """Send everything until the peers have answered or, following, until the client goes away."""
        if self._request.follow:
            self._pool.listeners.add(self._note_change)
        try:
            await self._begin()
            await self._send_merged(sink)
        finally:
            self._pool.listeners.discard(self._note_change)
            await self._tasks.close()
        if self._refused:
            raise next(iter(self._refusals.values()))
        rest = self._cut.rest()
        for start in range(0, len(rest), SEND):
            await self._pass(sink, rest[start : start + SEND])
        notes = self._take_notes(final=True)
        if notes:
            await sink.send(notes)

    # -- peers --------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        links = self._pool.links()
        self._window = self._settings.window(len(links))
        connected = [link for link in links if link.channel]
        away = [link for link in links if not link.channel]
        self._note(relay_pb2.NODE_CONNECTED, [link.name for link in connected])
        self._accepted = not connected
        await self._ask_all(connected)
        self._note(relay_pb2.NODE_UNAVAILABLE, [link.name for link in away], reasons(away))

    def _note_change(self) -> None:
        """Peers have come or gone, perhaps many at once: the sender looks when it is its turn."""
        self._changed = True
        self._bell.set()

    async def _renew(self) -> None:
        """Ask peers that have come or come back; tell of those that went."""
        self._changed, self._renewed = False, self._clock.monotonic()
        fresh = self._missing()
        self._note(relay_pb2.NODE_CONNECTED, [link.name for link in fresh])
        await self._ask_all(fresh)
        gone = [name for name in self._asked if self._pool.get(name) is None]
        for name in gone:
            del self._asked[name]
            self._refusals.pop(name, None)
        self._note(relay_pb2.NODE_GONE, gone)
        self._bell.set()

    async def _ask_all(self, links: list[Link]) -> None:
        """Begin to read these peers, and let others have their turn between some of them."""
        for number, link in enumerate(links, 1):
            self._ask(link)
            if number % READERS == 0:
                await asyncio.sleep(0)

    def _ask(self, link: Link) -> None:
        channel = link.channel
        if channel is None:
            return
        self._refusals.pop(link.name, None)
        lane = self._merge.open(link.name, self._clock.monotonic())
        self._merge.hold(lane)
        reader = self._tasks.spawn(f"flows of {link.name}", self._read(link, channel, lane))
        self._readers[link.name] = reader

    def _request_for(self, name: str) -> bytes:
        """The client's request; of a peer that was asked before, what came since."""
        first = name not in self._asked
        newest = self._asked.setdefault(name, 0)
        of_the_past = self._request.number or self._request.HasField("since")
        if first or (not newest and of_the_past):
            return self._request.SerializeToString()
        again = observer_pb2.GetFlowsRequest()
        again.CopyFrom(self._request)
        again.number = 0
        since = newest + 1 if newest else self._began_at
        again.since.CopyFrom(timestamp_pb2.Timestamp(seconds=since // 10**9, nanos=since % 10**9))
        return again.SerializeToString()

    async def _read(self, link: Link, channel: Channel, lane: Lane) -> None:
        """Read one peer's answer to its end, whatever that is."""
        name = link.name
        call: Call | None = None
        try:
            async with self._pool.turns.turn():
                call = channel.call(GET_FLOWS, self._request_for(name), window=self._window)
                self._merge.ask(lane, self._clock.monotonic())
                await self._arrival(call)
            await self._read_call(call, name, lane)
        except RpcError as error:
            if error.code in CALLERS_FAULTS:
                self._refusals[name] = error
            self._fail(link, channel, error.sentence)
        except ScanError as error:
            sentence = f"the node sends garbage: {error}"
            channel.close(sentence)
            self._fail(link, channel, sentence)
        finally:
            if call:
                call.cancel()
            self._merge.end(lane)
            self._readers.pop(name, None)
            self._bell.set()

    def _fail(self, link: Link, channel: Channel, sentence: str) -> None:
        """Have the client told why a peer's answer is not whole; a follower is told otherwise of who goes."""
        if link.gone and self._request.follow:
            return
        state = relay_pb2.NODE_UNAVAILABLE if channel.closed.is_set() else relay_pb2.NODE_ERROR
        if link.gone:
            state = relay_pb2.NODE_GONE
        self._errors.add(link.name, state, sentence, self._clock.monotonic())

    async def _read_call(self, call: Call, name: str, lane: Lane) -> None:
        """Read to the end, and no further than a window ahead of what went out."""
        scanner = Scanner()
        while await self._read_batch(call, scanner, name, lane):
            while lane.size >= self._window:
                self._merge.hold(lane)
                room = asyncio.Event()
                self._full[name] = lane, room
                await room.wait()
                # Room comes to all lanes at once: they ask for more in turns.
                async with self._pool.turns.turn():
                    self._merge.ask(lane, self._clock.monotonic())
                    if not await self._read_batch(call, scanner, name, lane):
                        return
                    await self._arrival(call)

    async def _read_batch(self, call: Call, scanner: Scanner, name: str, lane: Lane) -> bool:
        """Put what has come into the lane; False at the end."""
        await self._arrival(call)
        batch = await call.read()
        self._accepted = True
        if not batch:
            return False
        times = scanner.times(batch)
        if not self._view:
            check(batch)
        if name in self._asked:
            self._asked[name] = max(self._asked[name], *times)
        if self._view:
            times, batch = await self._seen(self._view, times, batch)
        self._merge.put(lane, times, batch, self._clock.monotonic())
        self._bell.set()
        return True

    async def _arrival(self, call: Call) -> None:
        """Until something has come. Raises RpcError when a history stops."""
        silence = None if self._request.follow else self._settings.silence
        try:
            async with asyncio.timeout(silence):
                await call.arrival()
        except TimeoutError:
            sentence = f"the node was silent for {silence:g} s in the middle of its answer"
            raise RpcError(Code.DEADLINE_EXCEEDED, sentence) from None

    async def _seen(self, view: View, times: list[int], batch: list[bytes]) -> tuple[list[int], list[bytes]]:
        """What of a batch the viewer gets."""
        kept: list[Item] = []
        for start in range(0, len(batch), VIEW):
            for index in range(start, min(start + VIEW, len(batch))):
                message = view.see(batch[index])
                if message is not None:
                    kept.append((times[index], message))
            await asyncio.sleep(0)
        return [time for time, _ in kept], [message for _, message in kept]

    # -- the client ---------------------------------------------------------------------------------------

    async def _send_merged(self, sink: Sink) -> None:
        """Send what the merge gives until there is no more to come, or enough went out."""
        while True:
            self._bell.clear()
            if self._changed or self._has_missing():
                await self._renew()
            now = self._clock.monotonic()
            notes = self._take_notes() if now >= self._tell_from else []
            if notes:
                await sink.send(notes)
            taken = self._merge.take(now)
            self._make_room()
            for start in range(0, len(taken), SEND):
                messages = self._cut.apply(taken[start : start + SEND])
                if messages:
                    await self._pass(sink, messages)
                # A client that always has room must not keep the peers' readers from their turn.
                await asyncio.sleep(0)
            if self._cut.enough or self._finished():
                return
            if not taken:
                await self._wait(now)

    async def _pass(self, sink: Sink, messages: list[bytes]) -> None:
        """Send what nodes said, and count it."""
        await sink.send(messages)
        self._numbers.count(messages)

    @property
    def _tell_from(self) -> float:
        """When the client may be told of nodes: a request that all refuse ends without."""
        if self._accepted:
            return 0.0
        return self._began + (TELL_AFTER_REFUSAL if self._refusals else TELL_AFTER)

    def _make_room(self) -> None:
        for name, (lane, room) in list(self._full.items()):
            if lane.size < self._window:
                del self._full[name]
                room.set()

    def _finished(self) -> bool:
        """Whether nothing more can come."""
        if self._readers or len(self._merge):
            return False
        return not self._request.follow or self._seconds_left() <= 0 or self._refused

    @property
    def _refused(self) -> bool:
        """Whether every peer says that the request is to blame."""
        return bool(self._refusals) and self._refusals.keys() == self._asked.keys()

    def _seconds_left(self) -> float:
        """Until `until`."""
        until = self._request.until
        if not self._request.HasField("until"):
            return math.inf
        return until.seconds + until.nanos / 1e9 - self._clock.wall()

    async def _wait(self, now: float) -> None:
        """Until something comes, or time alone lets something go."""
        notes_due = self._tell_from if self._notes else self._errors.wake_at()
        if notes_due is not None:
            notes_due = max(notes_due, self._tell_from)
        moments = [self._merge.wake_at(now), notes_due, now + self._seconds_left()]
        if self._request.follow and self._missing():
            moments.append(self._renewed + RENEW_SECONDS)
        seconds = min(moment for moment in moments if moment is not None) - now
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else max(0.0, seconds)):
                await self._bell.wait()
        except TimeoutError:
            pass

    def _has_missing(self) -> bool:
        """Whether a follower has connected peers to ask again; looked at now and then."""
        if not self._request.follow or self._clock.monotonic() < self._renewed + RENEW_SECONDS:
            return False
        if self._missing():
            return True
        self._renewed = self._clock.monotonic()
        return False

    def _missing(self) -> list[Link]:
        """Connected peers that are not being read, and may answer."""
        known = self._readers.keys() | {
            name for name, error in self._refusals.items() if self._is_final(error)
        }
        return [link for link in self._pool.links() if link.channel and link.name not in known]

    def _is_final(self, refusal: RpcError) -> bool:
        """Whether a peer will say so again. What others answer is not too large: that one was busy."""
        return refusal.code is not Code.RESOURCE_EXHAUSTED or not self._accepted

    # -- node states --------------------------------------------------------------------------------------

    def _take_notes(self, *, final: bool = False) -> list[bytes]:
        for state, sentence, names in self._errors.take(self._clock.monotonic(), everything=final):
            self._note(state, names, sentence)
        notes, self._notes = self._notes, []
        return notes

    def _note(self, state: State, names: list[str], message: str = "") -> None:
        if names:
            response = observer_pb2.GetFlowsResponse(node_name=self._node_name)
            response.time.FromNanoseconds(int(self._clock.wall() * 1e9))
            status = response.node_status
            status.state_change, status.message = state, message
            status.node_names.extend(sorted(names))
            self._notes.append(response.SerializeToString())


class Errors:
    """What went wrong with peers; those with the same words are told together."""

    def __init__(self, gather: float) -> None:
        self._gather = gather
        self._pending: dict[Problem, list[str]] = {}
        self._since: dict[Problem, float] = {}

    def add(self, name: str, state: State, sentence: str, now: float) -> None:
        """Something went wrong with a peer."""
        self._pending.setdefault((state, sentence), []).append(name)
        self._since.setdefault((state, sentence), now)

    def wake_at(self) -> float | None:
        """When the first are due."""
        return min(self._since.values()) + self._gather if self._since else None

    def take(self, now: float, *, everything: bool) -> Iterator[tuple[State, str, list[str]]]:
        """States and sentences that are due, with the peers they are about."""
        for problem, since in list(self._since.items()):
            if everything or now >= since + self._gather:
                del self._since[problem]
                yield *problem, self._pending.pop(problem)


class Cut:
    """Lets everything pass: each node has counted for itself, or nobody counts."""

    enough = False

    def apply(self, items: list[Item]) -> list[bytes]:
        """What of these messages goes out now."""
        return [message for _, message in items]

    def rest(self) -> list[bytes]:
        """What goes out at the end."""
        return []


class First(Cut):
    """The first `number` flows, and what comes between them."""

    def __init__(self, number: int) -> None:
        self._left = number

    def apply(self, items: list[Item]) -> list[bytes]:
        kept = []
        for _, message in items:
            if self.enough:
                break
            kept.append(message)
            if is_flow(message):
                self._left -= 1
                self.enough = self._left <= 0
        return kept


class Last(Cut):
    """The last `number` flows, and what comes between them; known at the end only."""

    def __init__(self, number: int, memory: int) -> None:
        """`memory`: bytes held at most."""
        self._number = number
        self._memory = memory
        self._flows = 0
        self._held = 0
        self._kept: deque[bytes] = deque()

    def apply(self, items: list[Item]) -> list[bytes]:
        for _, message in items:
            self._kept.append(message)
            self._flows += is_flow(message)
            self._held += len(message)
            while self._flows > self._number:
                oldest = self._kept.popleft()
                self._flows -= is_flow(oldest)
                self._held -= len(oldest)
            if self._held > self._memory:
                sentence = (
                    f"the last {self._number:,} flows take more than {self._memory:,} bytes: ask for fewer"
                )
                raise RpcError(Code.RESOURCE_EXHAUSTED, sentence)
        return []

    def rest(self) -> list[bytes]:
        return list(self._kept)


def cut_for(request: observer_pb2.GetFlowsRequest, settings: AnswerSettings) -> Cut:
    """How `number` is kept to. Following, each node counts for itself, as with Hubble's own relay."""
    if not request.number or request.follow:
        return Cut()
    if request.first or request.HasField("since"):
        return First(request.number)
    return Last(request.number, settings.tail_memory) if request.number <= settings.tail else Cut()
