"""One GetFlows call: from what the store (and the past) has to what a client reads.

    past, if asked and kept ──► history ──► what comes        each: select rows, convert, send, in chunks
                                    gaps on the way ──► one note per source, at most one a second

Going forward the answer is a cursor: it goes on at the client's pace and counts what went by. Going back from
the newest flow it looks only as far as it must.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing, suppress
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from google.protobuf import timestamp_pb2

from cilia.hubble import encode
from cilia.hubble.columns import Mask, Times
from cilia.hubble.convert import Converter
from cilia.hubble.cursor import Arrived, Cursor
from cilia.hubble.cuts import Cuts
from cilia.hubble.filters import FlowMatcher, wants_important_only
from cilia.hubble.past import Meanings, Past, Question, TooManyReaders
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.hubble.rpc.rounds import Gate
from cilia.hubble.rpc.server import BlockSink
from cilia.hubble.store import FlowStore, LossRow, LossSource, Rows, fold
from cilia.hubble.turns import Turn, TurnOver
from cilia.hubble.verdicts import shown
from cilia.proto.observer import observer_pb2

CHUNK = 512
"""Rows converted at most before other tasks of the agent get their turn: some 3 ms."""

LARGE_BLOCK = 512 << 10
"""Bytes of a block that is followed by a smaller one: whoever does not read has one in memory. Flows are as
large as their pods have labels."""

FIRST_CHUNK, SMALLEST_CHUNK = 2, 1
"""To begin with: where every peer is new, a row takes ten times as long; with a field mask and a thousand
labels, milliseconds."""

PACE, ENOUGH = 0.1, 8 * CHUNK
"""Seconds between two looks for one who follows, and rows that are not waited with: a look costs some
milliseconds of CPU, whatever it finds. What comes alone after a pause is sent at once."""

SCAN = 32 * CHUNK
"""Rows filtered, to begin with, before other tasks get their turn: a millisecond or two."""

SMALLEST_SCAN, LARGEST_SCAN = 16, 1 << 17

SLOW_SCAN, LARGEST_SLOW_SCAN = CHUNK // 8, 1 << 13
"""The same where an expression may have to be evaluated for each row; fewer than what it remembers."""
FEW_VALUES = 16
"""In filters; for as many more, fewer rows to begin with."""

QUICK, SLOW = 0.001, 0.004
"""Seconds of work of a scan that is followed by a larger or a smaller one."""


class Untold:
    """Gaps a client has not been told of yet: one per source, however many there were."""

    def __init__(self, interval: float) -> None:
        """`interval`: seconds between two notes about one source."""
        self._interval = interval
        self._gaps: dict[LossSource, LossRow] = {}
        self._told: dict[LossSource, float] = {}

    def add(self, gap: LossRow) -> None:
        """One more."""
        older = self._gaps.get(gap.source)
        self._gaps[gap.source] = gap if older is None else fold(older, gap)

    def due(self, now: float) -> list[LossRow]:
        """What may be told now, in seconds of a monotonic clock."""
        sources = [source for source in self._gaps if now >= self._next(source)]
        self._told |= dict.fromkeys(sources, now)
        return [self._gaps.pop(source) for source in sources]

    def all(self) -> list[LossRow]:
        """Everything, however soon after the last note."""
        gaps, self._gaps = list(self._gaps.values()), {}
        return gaps

    def left(self, now: float) -> float | None:
        """Seconds until something is due; None: nothing is untold."""
        return max(0.0, min(map(self._next, self._gaps)) - now) if self._gaps else None

    def _next(self, source: LossSource) -> float:
        return self._told.get(source, -self._interval) + self._interval


class Tools(NamedTuple):
    """What all answers of an observer share."""

    store: FlowStore
    past: Past | None
    interval: float
    """Seconds between two notes about lost events to one client."""
    gate: Gate
    """To be passed before each scan and each chunk."""


class Clocks(Protocol):
    """What an answer needs to know of time."""

    def now(self) -> int:
        """Nanoseconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    def spent(self) -> float:
        """Seconds this thread has worked. What others took of the processor meanwhile says nothing of how
        much to do at a time; to do less because of it would make all of it slower yet."""
        ...


class Maker(Protocol):
    """Compiles the request for rows that point into some meanings."""

    def matcher(self, meanings: Meanings) -> FlowMatcher: ...

    def converter(self, meanings: Meanings) -> Converter: ...

    @property
    def cuts(self) -> Cuts | None: ...

    @property
    def turn(self) -> Turn:
        """Of the matcher for the store: its masks end by TurnOver when they take long."""
        ...


class Answer:
    """What one client gets."""

    def __init__(
        self,
        tools: Tools,
        clocks: Clocks,
        maker: Maker,
        request: observer_pb2.GetFlowsRequest,
        sink: BlockSink,
    ) -> None:
        """Raises RpcError for a request that can't be answered."""
        self._store = tools.store
        self._past = tools.past
        self._gate = tools.gate
        self._clocks = clocks
        self._maker = maker
        self._request = request
        self._sink = sink
        self._matcher = maker.matcher(tools.store)
        self._converter = maker.converter(tools.store)
        self._cuts = maker.cuts
        self._since = nanoseconds(request.since) if request.HasField("since") else None
        self._until = nanoseconds(request.until) if request.HasField("until") else None
        self._narrow = wants_important_only(request.whitelist)
        self._shown = shown(request.whitelist)
        slow = self._matcher.slow
        self._scan = (
            SLOW_SCAN if slow else max(SMALLEST_SCAN, SCAN // (1 + self._matcher.values // FEW_VALUES))
        )
        self._largest = LARGEST_SLOW_SCAN if slow else LARGEST_SCAN
        self._chunk = FIRST_CHUNK
        self._untold = Untold(tools.interval)
        self._left: int | None = request.number or None
        """Flows still wanted; None: all."""
        self._cursor = Cursor(tools.store)
        """Where history ends and following begins."""
        self._begin = tools.store.oldest
        """What was overwritten from here on was overwritten under our eyes."""

    async def send(self) -> None:
        """Send everything."""
        try:
            await self._send_all()
        except TooManyReaders as error:
            raise RpcError(Code.RESOURCE_EXHAUSTED, str(error)) from None

    async def _send_all(self) -> None:
        request = self._request
        if not request.follow or request.number or self._since is not None:
            if request.number and (request.follow or not (request.first or self._since is not None)):
                await self._newest()
            else:
                await self._forward()
            await self._tell(self._untold.all())
        if request.follow:
            self._left = None
            await self._follow()

    # -- history ------------------------------------------------------------------------------------------

    async def _newest(self) -> None:
        """The newest `number` flows, oldest of them first."""
        end, seam = self._cursor.position, self._seam()
        found: list[Times] = []
        wanted, position = self._request.number, end
        while wanted and position > seam:
            start = max(self._begin, position - self._scan) if position > self._begin else seam
            numbers = await self._select(start, position)
            if self._past:
                # What was overwritten while we waited is the past's to answer.
                seam = max(seam, self._seam())
                numbers = numbers[np.searchsorted(numbers, seam) :]
            found.append(numbers[-wanted:])
            wanted -= len(found[-1])
            gone = self._lost(max(start, self._begin, seam), position)
            if gone:
                self._untold.add(self._overwritten(gone, start, position))
            position = start
            await asyncio.sleep(0)
        if wanted and self._past:
            await self._send_past(self._past, self._question(before=seam, limit=wanted, newest=True))
        numbers = np.concatenate([np.zeros(0, np.int64), *reversed(found)])
        first = seam if wanted else int(numbers[0])
        gone = self._lost(first, self._begin)
        if gone:
            self._untold.add(self._overwritten(gone, first, self._begin))
        await self._send(numbers, self._history_gaps(first, end))

    async def _forward(self) -> None:
        """Flows from the oldest on that is asked for, at the client's pace."""
        seam = self._seam()
        if self._past:
            self._spend(await self._send_past(self._past, self._question(before=seam, limit=self._left)))
        start = seam
        if self._since is not None and not self._past:
            start = min(self._store.number_at(self._since), self._cursor.position)
        end = self._cursor.position
        gaps = self._history_gaps(start, end)
        cursor = Cursor(self._store, start)
        while cursor.position < end and self._left != 0:
            await self._catch_up(cursor, end)
            if cursor.position == end:
                break
            arrived = cursor.step(min(self._scan, end - cursor.position))
            here = [gap for gap in gaps if arrived.first <= gap.position <= arrived.end]
            gaps = [gap for gap in gaps if gap.position > arrived.end]
            await self._pass_on(arrived._replace(end=min(arrived.end, end)), here)
        if self._left != 0:
            await self._tell(gaps)

    def _seam(self) -> int:
        """The first row that the store answers; what is before is the past's."""
        if self._past:
            return min(self._past.reach, self._store.oldest)
        return self._store.first

    def _question(self, **changes: Any) -> Question:
        """What the client asks, of the past."""
        return Question(match=self._matched, since=self._since, until=self._until, **changes)

    def _spend(self, sent: int) -> None:
        """So many flows less are wanted."""
        self._left = None if self._left is None else self._left - sent

    async def _send_past(self, past: Past, question: Question) -> int:
        """Send what the past answers; how many flows that were. Raises TooManyReaders."""
        sent, meanings, converter = 0, None, self._converter
        async with aclosing(cast(Any, past.read(question))) as parts:
            async for part in parts:
                if part.meanings is not meanings:
                    meanings, converter = part.meanings, self._maker.converter(part.meanings)
                # Of rows that were here when the call began, the store tells what the kernel lost.
                known = question.first is not None
                gaps = [g for g in part.gaps if not known or g.source is LossSource.HUBBLE_RING_BUFFER]
                await self._send_part(part.rows, gaps, converter)
                sent += len(part.rows.wall)
        return sent

    async def _catch_up(self, cursor: Cursor, end: int) -> None:
        """Send from the past what newer rows have overwritten before the client took it."""
        while self._past and self._left != 0 and cursor.position < (seam := min(self._seam(), end)):
            reached = await self._bridge(self._past, cursor.position, seam)
            if reached < seam:
                return
            cursor.position = reached

    async def _bridge(self, past: Past, first: int, seam: int) -> int:
        """Send rows of [first, seam) from the past; up to where that was possible."""
        question = self._question(first=first, before=seam, limit=self._left)
        try:
            self._spend(await self._send_past(past, question))
        except TooManyReaders:
            return first
        return seam

    async def _recover(self, past: Past, numbers: Times) -> None:
        """Send rows that were found and overwritten since; ascending."""
        first, last = int(numbers[0]), int(numbers[-1])
        question = Question(
            match=lambda _meanings: lambda rows: np.isin(rows.numbers, numbers), first=first, before=last + 1
        )
        sent = 0
        with suppress(TooManyReaders):
            sent = await self._send_past(past, question)
        if sent < len(numbers):
            self._untold.add(self._overwritten(len(numbers) - sent, first, last))

    def _matched(self, meanings: Meanings) -> Any:
        return self._maker.matcher(meanings).mask

    async def _send_part(self, rows: Rows, gaps: Iterable[LossRow], converter: Converter) -> None:
        for gap in gaps:
            self._untold.add(gap)
        start = 0
        while start < len(rows.wall):
            chunk = rows.where(slice(start, start + self._chunk))
            start += len(chunk.wall)
            await self._gate.turn()
            await self._sink.send_block(self._converted(converter, chunk))
            await asyncio.sleep(0)

    def _history_gaps(self, first: int, last: int) -> list[LossRow]:
        """What the kernel could not hand over among rows that were here when the call began: one note."""
        gaps = [g for g in self._store.losses if g.serial < self._cursor.gap and first <= g.position <= last]
        folded = Untold(0.0)
        for gap in filter(self._in_time, gaps):
            folded.add(gap)
        return folded.all()

    # -- what comes ---------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Send what comes until the client goes away or `until` has passed."""
        due = self._clocks.monotonic()
        with self._cursor as cursor:
            while True:
                waiting = self._untold.left(self._clocks.monotonic())
                arrived = await cursor.wait(least(self._seconds_left(), waiting))
                if arrived:
                    await self._gather(cursor, due)
                began = self._clocks.monotonic()
                seconds = self._seconds_left()
                if not arrived and seconds is not None and seconds <= 0:
                    return
                if arrived:
                    await self._catch_up(cursor, self._store.head)
                    step = cursor.step(self._scan)
                    for gap in step.gaps:
                        self._untold.add(gap)
                    await self._pass_on(step, [])
                    if cursor.waiting:
                        due = began + PACE
                await self._tell(self._untold.due(self._clocks.monotonic()))

    async def _gather(self, cursor: Cursor, due: float) -> None:
        """Wait for more rows until the next look is due, but not beyond `until`."""
        pause = due - self._clocks.monotonic()
        await cursor.gather(least(self._seconds_left(), pause) or 0.0, ENOUGH)

    def _seconds_left(self) -> float | None:
        """Until `until`; None: for ever."""
        return None if self._until is None else (self._until - self._clocks.now()) / 1e9

    # -- sending ------------------------------------------------------------------------------------------

    async def _pass_on(self, arrived: Arrived, gaps: list[LossRow]) -> None:
        """Send what matches of a step of a cursor."""
        first = arrived.first
        numbers = await self._select(first, arrived.end)
        if self._past and self._left != 0 and first < (seam := min(self._seam(), arrived.end)):
            # As when history waits: overwritten meanwhile.
            first = await self._bridge(self._past, first, seam)
            numbers = numbers[np.searchsorted(numbers, first) :]
        gone = self._lost(first, arrived.end)
        if gone:
            self._untold.add(self._overwritten(gone, first, self._store.oldest))
        if self._left is not None:
            numbers = numbers[: self._left]
            self._left -= len(numbers)
        await self._send(numbers, gaps)
        await asyncio.sleep(0)

    async def _select(self, first: int, last: int) -> Times:
        """Numbers of the rows of [first, last) that answer the request."""
        longest = 0.0
        while True:
            await self._gate.turn()
            start = self._clocks.spent()
            self._maker.turn.begin()
            try:
                masks = [rows.numbers[self._mask(rows)] for rows in self._store.spans(first, last)]
            except TurnOver:
                # It ends with the filter at hand, so by how much it was late tells what one filter takes.
                longest = max(longest, self._clocks.spent() - start - SLOW)
                continue
            self._adapt(longest or self._clocks.spent() - start)
            return np.concatenate([np.zeros(0, np.int64), *masks])

    def _adapt(self, seconds: float) -> None:
        """Look at more rows at a time, or at less, so that others wait for a few milliseconds only."""
        if seconds > SLOW:
            self._scan = max(SMALLEST_SCAN, self._scan // 2)
        elif seconds < QUICK:
            self._scan = min(self._largest, self._scan * 2)

    def _mask(self, rows: Rows) -> Mask:
        if self._since is None and self._until is None:
            return self._matcher.mask(rows)
        mask = np.ones(len(rows.wall), np.bool_)
        if self._since is not None:
            mask &= rows.wall >= self._since
        if self._until is not None:
            mask &= rows.wall <= self._until
        return mask & self._matcher.mask(rows) if mask.any() else mask

    def _lost(self, first: int, last: int) -> int:
        """How many rows of [first, last) that may have matched are gone."""
        return self._store.missing(first, last, important_only=self._narrow)

    def _overwritten(self, count: int, first: int, last: int) -> LossRow:
        """A gap of rows that newer ones have overwritten, between two numbers."""
        self._store.metrics.lost[LossSource.HUBBLE_RING_BUFFER] += self._store.missing(
            max(first, self._begin), last
        )
        now = self._clocks.now()
        return LossRow(
            serial=0,
            position=last,
            source=LossSource.HUBBLE_RING_BUFFER,
            count=count,
            cpu=None,
            first=max(self._store.time_of(first) or now, self._since or 0),
            last=self._store.time_of(last) or now,
        )

    async def _send(self, numbers: Times, gaps: list[LossRow]) -> None:
        """Send rows chunk by chunk, with the gaps at their places."""
        start = 0
        for gap in gaps:
            end = int(np.searchsorted(numbers, gap.position))
            await self._send_rows(numbers[start:end])
            await self._tell([gap])
            start = end
        await self._send_rows(numbers[start:])

    async def _send_rows(self, numbers: Times) -> None:
        while len(numbers):
            await self._gate.turn()
            # From here to the conversion nothing may be awaited: what is looked at is in the ring until then.
            gone = int(np.searchsorted(numbers, self._seam())) if self._past else 0
            if self._past and gone:
                await self._recover(self._past, numbers[:gone])
                numbers = numbers[gone:]
                continue
            chunk, numbers = numbers[: self._chunk], numbers[self._chunk :]
            here = chunk[self._store.present(chunk)]
            if len(here) < len(chunk):
                end = int(chunk[-1]) + 1
                self._untold.add(self._overwritten(len(chunk) - len(here), int(chunk[0]), end))
            await self._sink.send_block(self._converted(self._converter, self._store.take(here)))
            await asyncio.sleep(0)

    def _converted(self, converter: Converter, rows: Rows) -> bytes:
        """A block of messages; the next is smaller where these were large, or had much in them that was never
        seen."""
        start = self._clocks.spent()
        block = converter.block(self._shown(rows), self._cuts)
        seconds = self._clocks.spent() - start
        if seconds > SLOW:
            self._chunk = max(SMALLEST_CHUNK, min(self._chunk // 2, int(len(rows.wall) * SLOW / seconds)))
        elif len(block) > LARGE_BLOCK:
            self._chunk = max(SMALLEST_CHUNK, self._chunk // 2)
        elif seconds < QUICK * 2 and len(block) < LARGE_BLOCK // 2:
            self._chunk = min(CHUNK, self._chunk * 2)
        return block

    async def _tell(self, gaps: list[LossRow]) -> None:
        notes = [self._converter.lost(gap) for gap in gaps if self._in_time(gap)]
        if notes:
            await self._sink.send(notes)

    def _in_time(self, gap: LossRow) -> bool:
        return (self._since is None or gap.last >= self._since) and (
            self._until is None or gap.first <= self._until
        )


def least(first: float | None, second: float | None) -> float | None:
    """The smaller of two time-outs; None is for ever."""
    return min((each for each in (first, second) if each is not None), default=None)


def nanoseconds(moment: timestamp_pb2.Timestamp) -> int:
    """Since the Unix epoch."""
    return moment.seconds * encode.NANOSECONDS + moment.nanos
