"""Runs bench/netbench.c between two network namespaces and compares paths, round by round.

Paths are measured interleaved (one round of each, again and again), so that a slow minute of the machine
hits all of them; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BINARY = HERE / "netbench"
PORT = 5000
"""The servers' ports: TCP echo, TCP sink, UDP echo, UDP sink from here on."""
SERVER_START = 0.3
"""Seconds the four server processes get to bind."""


def build() -> Path:
    """Compile netbench.c when it is missing or older than its source."""
    source = HERE / "netbench.c"
    if not BINARY.exists() or BINARY.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["gcc", "-O2", "-o", str(BINARY), str(source)], check=True)
    return BINARY


@dataclass(frozen=True)
class Test:
    """One thing measured: netbench's mode, which CPUs, and which field is the result."""

    name: str
    mode: str
    field: str
    client_cpu: int
    server_cpu: int
    lower_is_better: bool = False


ROUND_TRIPS = Test("TCP round trips, one CPU", "TCP_RR", "rate", 0, 0)
ROUND_TRIP = Test("TCP round trip (p50), one CPU", "TCP_RR", "p50_us", 0, 0, lower_is_better=True)
"""The same by its median: other processes that take the CPU now and then do not show in it."""
CONNECTIONS = Test("connections (p50), one CPU", "TCP_CRR", "p50_us", 0, 0, lower_is_better=True)
UDP_ROUND_TRIPS = Test("UDP round trips, one CPU", "UDP_RR", "rate", 0, 0)
UDP_PACKETS = Test("UDP packets per second, two CPUs", "UDP_PPS", "recv_pps", 0, 1)
STREAM = Test("one TCP stream, two CPUs", "TCP_STREAM", "gbps", 0, 1)


def as_it_is() -> None:
    """Nothing to change before a run."""


@dataclass(frozen=True)
class Way:
    """A way from a client to a server: namespaces by name, and the address that is asked for."""

    name: str
    client: str
    server: str
    address: str
    port: int = PORT
    """First of the ports that are asked for; the servers have theirs from `PORT` on."""
    cgroup: Path | None = None
    """Control group of the client; None: that of this process."""
    before: Callable[[], object] = as_it_is
    """What is changed before each run of this way."""


def inside(namespace: str) -> list[str]:
    """The words that run a command in a network namespace; empty for a pid's."""
    if namespace.startswith("pid:"):
        return ["nsenter", "-t", namespace[4:], "-n", "--"]
    return ["ip", "netns", "exec", namespace]


def of_group(cgroup: Path | None) -> list[str]:
    """The words that run a command in a control group."""
    if cgroup is None:
        return []
    return ["sh", "-c", f'echo $$ > {cgroup}/cgroup.procs && exec "$@"', "sh"]


@contextmanager
def server(path: Way, cpu: int) -> Iterator[None]:
    """netbench's servers in the path's server namespace."""
    process = subprocess.Popen(
        [*inside(path.server), "taskset", "-c", str(cpu), str(BINARY), "-s", "-B", str(cpu)],
        start_new_session=True,
    )
    try:
        time.sleep(SERVER_START)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measure(path: Way, test: Test, seconds: float) -> float:
    """One run. Raises RuntimeError with netbench's own words when it fails."""
    path.before()
    with server(path, test.server_cpu):
        words = [*of_group(path.cgroup), *inside(path.client), "nice", "-n", "-10", str(BINARY)]
        words += ["-c", path.address, "-p", str(path.port), "-m", test.mode]
        words += ["-t", str(seconds), "-A", str(test.client_cpu)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 30)
    if done.returncode:
        raise RuntimeError(f"{path.name}: {test.mode}: {done.stderr.strip() or done.stdout.strip()}")
    result: Mapping[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return float(result[test.field])


class Comparison:
    """Rounds of one test: what each path gave, round by round; the first path is the baseline."""

    def __init__(self, test: Test, names: Sequence[str]) -> None:
        self.test = test
        self.samples: dict[str, list[float]] = {name: [] for name in names}

    @property
    def baseline(self) -> str:
        """Name of the path all others are compared with."""
        return next(iter(self.samples))

    def median(self, name: str) -> float:
        """The path's median, in the test's own unit."""
        return statistics.median(self.samples[name])

    def ratios(self, name: str) -> list[float]:
        """Each round's ratio to the baseline of that round; above 1 is better than it."""
        pairs = zip(self.samples[self.baseline], self.samples[name], strict=True)
        return [b / v if self.test.lower_is_better else v / b for b, v in pairs]

    def ratio(self, name: str) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(self.ratios(name))

    def spread(self, name: str) -> float:
        """Half the distance between the quartiles of the rounds' ratios."""
        values = self.ratios(name)
        if len(values) < 2:
            return 0.0
        quartiles = statistics.quantiles(values, n=4)
        return (quartiles[2] - quartiles[0]) / 2


def compare(paths: Sequence[Way], into: Comparison, *, rounds: int, seconds: float) -> None:
    """Measure all paths interleaved, round by round, and add to a comparison."""
    for index in range(rounds):
        order = paths if index % 2 == 0 else list(reversed(paths))
        for path in order:
            into.samples[path.name].append(measure(path, into.test, seconds))


def row(group: str, found: Comparison, name: str, reach: float | None, note: str = "") -> dict[str, Any]:
    """One line of the table: a path of a comparison against its baseline. `note` is added to the test."""
    return {
        "group": group,
        "test": f"{found.test.name}{note}",
        "path": name,
        "against": found.baseline,
        "ratio": round(found.ratio(name), 3),
        "spread": round(found.spread(name), 3),
        "baseline": round(found.median(found.baseline), 2),
        "measured": round(found.median(name), 2),
        "reach": reach,
        "rounds": len(found.samples[name]),
        "load": round(os.getloadavg()[0], 1),
    }
