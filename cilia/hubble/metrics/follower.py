"""Follows the file of the dynamic configuration. While it can't be used, what it said last stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import structlog

from cilia.hubble.metrics.options import MetricConfig, MetricsError, parse_yaml
from cilia.kit.files import read_regular

log = structlog.get_logger(__name__)

FILE_LIMIT = 1 << 20


class ConfigFollower:
    """Looks at a file when told; a ConfigMap's file changes with the directory it links to."""

    def __init__(self, path: Path, take: Callable[[tuple[MetricConfig, ...]], None]) -> None:
        """`take` raises MetricsError for what can't be counted."""
        self._path = path
        self._take = take
        self._content: bytes | None = None
        """What was read last of all that was used or refused."""
        self._seen: bytes | None = None
        """What was there at the last look."""
        self.changing = False
        """What is there is new: it counts when it is the same at the next look. Half a file would end metrics
        that the other half names."""
        self._verdict = ""
        """Why what was read last is not in force."""
        self.problem = ""
        """Why the file is not in force; empty: it is."""

    def look(self) -> None:
        """Read the file, and use it if it is another than before."""
        try:
            content = read_regular(self._path, FILE_LIMIT)
        except OSError as error:
            self._refuse(f"can't be read ({error.strerror}): make it, or give it to the agent")
            return
        if content == self._content:
            self.changing, self.problem = False, self._verdict
            return
        settled, self._seen = content == self._seen, content
        self.changing = self._content is not None and not settled
        if self.changing:
            return
        self._content = content
        if len(content) > FILE_LIMIT:
            self._verdict = self._refuse(f"has more than {FILE_LIMIT >> 20} MiB: list fewer metrics")
            return
        try:
            configs = parse_yaml(content)
            self._take(configs)
        except MetricsError as error:
            self._verdict = self._refuse(f"is not used: {error}")
            return
        self.problem = self._verdict = ""
        log.info("metrics configured", file=str(self._path), metrics=[c.options.name for c in configs])

    def _refuse(self, problem: str) -> str:
        if problem != self.problem:
            log.warning("the metrics' configuration stays as it was", file=str(self._path), problem=problem)
        self.problem = problem
        return problem
