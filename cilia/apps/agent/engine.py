"""Runs the brain and the hands: whenever a table changed, one step of the graph and its turns in the kernel.

Everything happens on the event loop's thread, so a step sees tables that stand still. Changes that arrive
together are one step. Before the inputs are complete the brain may compute, but the kernel keeps what a
predecessor left in it: half the facts must not become policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from cilia.control.graph import ControlGraph
from cilia.dataplane.order import TableError
from cilia.kit.clock import Clock
from cilia.model.ids import EndpointId

log = structlog.get_logger(__name__)


class Kernel(Protocol):
    """What the engine needs of the data plane."""

    def apply(self, now: float) -> None: ...

    def realised(self, endpoint: EndpointId) -> bool: ...

    def errors(self) -> list[TableError]: ...

    def next_retry(self) -> float | None: ...


class Engine:
    """Steps graph and kernel; also what CNI calls step by hand."""

    def __init__(self, graph: ControlGraph, kernel: Kernel, clock: Clock) -> None:
        self._graph = graph
        self._kernel = kernel
        self._clock = clock
        self._scheduled: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._said: set[str] = set()
        self.after: list[Callable[[], None]] = []
        """Called after every step: publishers look for work, waiters for their revision."""
        self.failure: asyncio.Future[None] | None = None
        """Set to the exception of a step that must not happen; whoever runs the agent awaits it."""

    def start(self) -> None:
        """Step on every change from now on."""
        self._loop = asyncio.get_running_loop()
        self.failure = self._loop.create_future()
        for table in self._graph.inputs.tables():
            table.listen(self.kick)

    def kick(self) -> None:
        """Have a step run soon; many kicks are one step."""
        if self._scheduled is None and self._loop is not None:
            self._scheduled = self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = None
        try:
            self.step()
        except Exception as error:
            log.exception("step failed")
            if self.failure is not None and not self.failure.done():
                self.failure.set_exception(error)

    def step(self) -> None:
        """One pass: brain, kernel, then those who wait for either."""
        now = self._clock.monotonic()
        for _ in self._graph.turns(now):
            if self._graph.complete:
                self._kernel.apply(now)
        if self._graph.complete:
            self._report(self._kernel.errors())
        self._set_timer(now)
        for callback in self.after:
            callback()

    def realised(self, identifier: EndpointId) -> str | None:
        """None when the kernel enforces the endpoint, else why not yet."""
        if self._kernel.realised(identifier):
            return None
        for error in self._kernel.errors():
            if error.table != "endpoint_entries" or error.key == str(identifier):
                return f"{error.table} {error.key}: {error.error}"
        endpoint = self._graph.desired.endpoints.get(identifier)
        return f"it is {endpoint.state}" if endpoint is not None else "it is unknown"

    def _set_timer(self, now: float) -> None:
        """Wake for the earliest retry or pending identity change."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        times = [
            due
            for due in (self._kernel.next_retry(), self._graph.endpoints.next_deadline())
            if due is not None
        ]
        if times and self._loop is not None:
            self._timer = self._loop.call_later(max(0.0, min(times) - now), self.kick)

    def _report(self, errors: list[TableError]) -> None:
        """Log each failing row once, and once more when it is well."""
        present = {f"{error.table} {error.key}: {error.error}" for error in errors}
        for line in sorted(present - self._said):
            log.error("not in the kernel", row=line)
        for line in sorted(self._said - present):
            log.info("in the kernel after all", row=line)
        self._said = present
