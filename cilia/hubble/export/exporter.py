"""One exporter: a cursor, filters, lines, a file.

    wait ─► step: a few hundred rows ─► lines ─► batch ─► file (thread) ─► position moves on
     ▲                                    (or groups)         │
     └─────────────── a quarter of a second ◄─────────────────┘

The position moves on when a batch is written, not before: an exporter that fails or is replaced goes on from
there, and nothing is lost while the ring still has it.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from time import thread_time

import msgspec
import structlog

from cilia.hubble.convert import Converter, NodeFacts
from cilia.hubble.cursor import Arrived, Cursor
from cilia.hubble.encode import NANOSECONDS
from cilia.hubble.export import field_trees
from cilia.hubble.export.files import Output, output
from cilia.hubble.export.groups import MOST_GROUPS, Groups
from cilia.hubble.export.lines import LineMaker
from cilia.hubble.export.settings import ExportError, ExportSettings, filter_message
from cilia.hubble.filter_values import FilterError, UnsupportedFilter
from cilia.hubble.filters import FlowMatcher
from cilia.hubble.predicates import Context
from cilia.hubble.store import FlowStore, LossRow, LossSource, Rows, fold
from cilia.hubble.verdicts import shown
from cilia.kit import threads
from cilia.kit.backoff import Backoff
from cilia.kit.clock import Clock

log = structlog.get_logger(__name__)

PACE = 0.25
"""Seconds between two batches while few flows come: how late a line is at most."""
ENOUGH = 4096
"""Rows that are not waited with."""
BATCH = 1 << 20
"""Bytes handed to a thread at once."""
LEAST_STEP, MOST_STEP = 128, 1024
"""Rows turned into lines before others have their turn."""
SHORT_STEP, LONG_STEP = 0.002, 0.006
"""Seconds of this thread's work: steps that took less are made larger, those that took more smaller. (By the
clock, steps would shrink, and cost more, because others have the processor.)"""
PATIENCE = 30.0
"""Seconds a write may take before it is called stuck."""
FAREWELL = 2.0
"""Seconds for what is left when the exporter ends."""


class State(enum.Enum):
    """What an exporter does."""

    ACTIVE = "active"
    FAILING = "failing"
    """The file can't be written; it is tried again."""
    STUCK = "stuck"
    """A write does not come back."""
    ENDED = "ended"
    """Its time is over."""


class ExportStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one exporter since it was added; they survive changes of its settings."""

    name: str
    path: str
    state: str
    problem: str = ""
    """Why it is not active; one sentence."""
    lines: int = 0
    bytes: int = 0
    lost: int = 0
    """Events that were gone before they could be looked at, or that the kernel could not hand over."""
    failures: int = 0
    """Writes that failed and were tried again."""
    restarts: int = 0
    """Times the exporter stopped by itself and was started again."""
    waiting: int = 0
    """Flows in the ring that it has not looked at."""
    last_write: float = 0.0
    """Seconds since the epoch; 0: never."""


class Counts:
    """What a status counts; kept when an exporter is replaced."""

    def __init__(self) -> None:
        self.lines = 0
        self.bytes = 0
        self.lost = 0
        self.failures = 0
        self.restarts = 0
        self.last_write = 0.0


class Place:
    """Where an exporter goes on: all before it is written."""

    def __init__(self, store: FlowStore) -> None:
        self.position = store.head
        self.gap = store.gaps
        self.wall = 0
        """When the last row before it was seen, in nanoseconds since the epoch; 0: there was none."""


class Batch:
    """What is read and not written yet."""

    def __init__(self) -> None:
        self.lines = 0
        self.size = 0
        self.blocks: list[bytes] = []
        """Whole lines, some in each."""
        self.losses: dict[LossSource, LossRow] = {}
        """One line for each at most, however often something is lost."""

    def put(self, block: bytes, lines: int) -> None:
        """Add so many lines."""
        if not lines:
            return
        self.blocks.append(block)
        self.lines += lines
        self.size += len(block)

    def lose(self, gap: LossRow) -> None:
        """Add a gap to what is known of its source."""
        before = self.losses.get(gap.source)
        self.losses[gap.source] = fold(before, gap) if before is not None else gap


class Exporter:
    """Writes flows from its place on; `run` may be called again when it has failed."""

    def __init__(
        self,
        settings: ExportSettings,
        store: FlowStore,
        node: NodeFacts,
        converter: Converter,
        clock: Clock,
        *,
        place: Place | None = None,
        counts: Counts | None = None,
    ) -> None:
        """`place`, `counts`: of the exporter this one replaces. Raises ExportError."""
        settings.check()
        self.settings = settings
        self.counts = counts or Counts()
        self.place = place or Place(store)
        self.state = State.ACTIVE
        self.problem = ""
        self._store = store
        self._clock = clock
        self._matcher = matcher(settings, Context(store, node))
        self._shown = shown([filter_message(each) for each in settings.include])
        wanted, grouped = field_trees.parse(settings.mask), field_trees.parse(settings.aggregate)
        self._maker = LineMaker(store, node, converter, field_trees.both(wanted, grouped))
        self._groups = Groups(self._maker) if grouped else None
        self._due = clock.monotonic() + settings.interval
        self._output: Output = output(settings, clock.wall)
        self._writing: asyncio.Future[None] | None = None
        self._tidying: asyncio.Future[None] | None = None
        self._step = LEAST_STEP
        self._cursor = Cursor(store)
        self._wall = self.place.wall
        """When the last row that was read was seen."""
        self._batch = Batch()

    # -- life ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write flows until the end that the settings say. Cancel it to stop; then call `finish`."""
        self._rewind()
        with self._cursor as cursor:
            while not self._over():
                if await cursor.wait(self._pause()):
                    await cursor.gather(PACE, ENOUGH)
                await self._catch_up()
        await self.finish()
        self.state = State.ENDED

    async def finish(self) -> None:
        """Write what has come, as far as that takes no longer than a moment; let go of the file."""
        try:
            async with asyncio.timeout(FAREWELL):
                await self._written()
                await self._catch_up(last=True)
        except TimeoutError:
            log.warning("flows not exported at the end", exporter=self.settings.name, path=self.settings.path)
        if self._tidying is not None:
            await asyncio.wait({self._tidying}, timeout=FAREWELL)
        if self._writing is None:
            self._output.close()

    def status(self) -> ExportStatus:
        """Counters now."""
        counts = self.counts
        return ExportStatus(
            name=self.settings.name,
            path=self.settings.path,
            state=self.state.value,
            problem=self.problem,
            lines=counts.lines,
            bytes=counts.bytes,
            lost=counts.lost,
            failures=counts.failures,
            restarts=counts.restarts,
            waiting=0 if self.state is State.ENDED else self._store.head - self.place.position,
            last_write=counts.last_write,
        )

    def _rewind(self) -> None:
        """Forget what was read and not written."""
        self._cursor.position, self._cursor.gap = self.place.position, self.place.gap
        self._batch = Batch()
        if self._groups is not None:
            self._groups.clear()

    def _over(self) -> bool:
        return self.settings.end is not None and self._clock.wall() >= self.settings.end

    def _pause(self) -> float | None:
        """Seconds to wait for flows; None: for ever."""
        times = []
        if self.settings.end is not None:
            times.append(self.settings.end - self._clock.wall())
        if self._groups is not None and (len(self._groups) or self._batch.losses):
            times.append(self._due - self._clock.monotonic())
        return max(0.0, min(times)) if times else None

    # -- reading ------------------------------------------------------------------------------------------

    async def _catch_up(self, *, last: bool = False) -> None:
        """Read all that is there; write it, or count it until it is time to tell of groups."""
        cursor = self._cursor
        while not cursor.waiting:
            started = thread_time()
            self._take(cursor.step(self._step))
            self._adapt(thread_time() - started)
            if self._full():
                await self._flush()
            await asyncio.sleep(0)
        if self._groups is None or last or self._clock.monotonic() >= self._due:
            await self._flush()

    def _full(self) -> bool:
        return self._batch.size >= BATCH or (self._groups is not None and len(self._groups) >= MOST_GROUPS)

    def _adapt(self, seconds: float) -> None:
        """Steps that others hardly notice, and no smaller."""
        if seconds > LONG_STEP:
            self._step = max(LEAST_STEP, self._step // 2)
        elif seconds < SHORT_STEP:
            self._step = min(MOST_STEP, self._step * 2)

    def _take(self, arrived: Arrived) -> None:
        spans = self._store.spans(arrived.first, arrived.end)
        for gap in arrived.gaps:
            self._batch.lose(gap)
        if arrived.overwritten:
            self._batch.lose(self._overwritten(arrived, spans))
        for rows in spans:
            self._wall = int(rows.wall[-1])
            mask = self._matcher.mask(rows)
            if self.settings.end is not None:
                mask &= rows.wall < int(self.settings.end * NANOSECONDS)
            if mask.all():
                self._add(rows)
            elif mask.any():
                self._add(rows.where(mask))

    def _add(self, rows: Rows) -> None:
        rows = self._shown(rows)
        if self._groups is None:
            self._batch.put(self._maker.block(rows), len(rows.wall))
        else:
            self._groups.add(rows)

    def _overwritten(self, arrived: Arrived, spans: Sequence[Rows]) -> LossRow:
        """Rows that went by while the file could not be written, or too fast."""
        until = int(spans[-1].wall[-1]) if spans else int(self._clock.wall() * NANOSECONDS)
        return LossRow(
            serial=0,
            position=arrived.first,
            source=LossSource.HUBBLE_RING_BUFFER,
            count=arrived.overwritten,
            cpu=None,
            first=self._wall or self._store.time_of(arrived.first) or until,
            last=until,
        )

    # -- writing ------------------------------------------------------------------------------------------

    async def _flush(self) -> None:
        """Write all that was read, however long it takes; only then the place moves on."""
        if self._groups is not None:
            told: list[bytes] = []
            for lines in self._groups.lines():
                told += lines
                await asyncio.sleep(0)
            # Who is cancelled above has changed nothing.
            self._groups.clear()
            self._batch.put(b"".join(told), len(told))
            self._due = self._clock.monotonic() + self.settings.interval
        batch = self._batch
        batch.put(b"".join(map(self._maker.lost, batch.losses.values())), len(batch.losses))
        for gap in batch.losses.values():
            self.counts.lost += gap.count
            if gap.source is LossSource.HUBBLE_RING_BUFFER:
                self._store.metrics.lost[gap.source] += gap.count
        batch.losses.clear()
        if batch.lines:
            await self._write(b"".join(batch.blocks))
        else:
            self._move_on()

    def _move_on(self) -> None:
        """Note that all before the cursor is done."""
        self.counts.lines += self._batch.lines
        self.counts.bytes += self._batch.size
        self.place.position, self.place.gap = self._cursor.position, self._cursor.gap
        self.place.wall = self._wall
        self._batch = Batch()

    async def _write(self, data: bytes) -> None:
        backoff = Backoff(limit=5.0)
        while True:
            self._writing = threads.start(f"export {self.settings.name}", self._output.write, data)
            if await self._written():
                break
            await asyncio.sleep(backoff.next())
        if self._output.untidy and (self._tidying is None or self._tidying.done()):
            self._tidying = threads.start(f"tidy {self.settings.name}", self._output.tidy)
            self._tidying.add_done_callback(self._tidied)

    async def _written(self) -> bool:
        """Wait for the write that runs, if one does: two threads must not write at once. Whether it went
        well. Who is cancelled here calls this again before anything else."""
        writing = self._writing
        if writing is None:
            return True
        done, _ = await asyncio.wait({writing}, timeout=PATIENCE)
        if not done:
            self._note_stuck()
            await asyncio.wait({writing})
        self._writing = None
        error = writing.exception()
        if isinstance(error, OSError):
            self._note_failure(error)
            return False
        if error is not None:
            raise error
        if self.state is not State.ACTIVE:
            log.info("flows are exported again", exporter=self.settings.name, path=self.settings.path)
        self.state, self.problem = State.ACTIVE, ""
        self.counts.last_write = self._clock.wall()
        self._move_on()
        return True

    def _note_stuck(self) -> None:
        self.state = State.STUCK
        self.problem = f"a write to {self.settings.path} has not returned for {PATIENCE:.0f} s"
        log.error(
            "exporter is stuck: does its disk answer?", exporter=self.settings.name, problem=self.problem
        )

    def _note_failure(self, error: OSError) -> None:
        self.counts.failures += 1
        problem = f"{self.settings.path} can't be written ({error.strerror or error})"
        if problem != self.problem:
            log.error(
                "flows wait to be exported: make room, or give the agent another file",
                exporter=self.settings.name,
                problem=problem,
            )
        self.state, self.problem = State.FAILING, problem

    def _tidied(self, done: asyncio.Future[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            log.error(
                "files set aside can't be tidied up: make room, or remove some",
                exporter=self.settings.name,
                path=self.settings.path,
                error=str(error),
            )


def matcher(settings: ExportSettings, context: Context) -> FlowMatcher:
    """The filters of an exporter. Raises ExportError."""
    try:
        return FlowMatcher(
            context,
            [filter_message(each) for each in settings.include],
            [filter_message(each) for each in settings.exclude],
        )
    except (FilterError, UnsupportedFilter) as error:
        raise ExportError(f"exporter {settings.name!r}: {error}") from None
