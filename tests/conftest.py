"""What holds for the whole run: the order of its files, and that it leaves the machine as it found it.

`make test` runs files side by side in several processes (pytest-xdist); a plain pytest runs them one after
the other. Whatever a test makes on the machine carries its process's number, so that runs and processes never
meet.

Leftovers that carry a number of the run's processes fail it. Of others the names tell only that they are
ours: where CI is set they fail the run too, on a developer's machine, where a lab may have come up
meanwhile, they are told. With several processes the one that hands out the tests looks, when all have ended.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

OURS = ("cilia", "lxc")
BEFORE = pytest.StashKey[frozenset[str]]()
MAKERS = pytest.StashKey[dict[int, str]]()
"""By process number: who runs tests in this run."""
PATIENCE = 30.0 if os.environ.get("CI") else 5.0
"""Seconds: the kernel takes namespaces and links away a moment after their last user."""
ORDER = ("system", "flows", "api", "bpf", "unit")
"""Files that take long and wait much come first, so that no process has one left when the others are done."""

OTHERS = re.compile(
    r"(?i:.*_proxy)|FORCE_COLOR|PY_COLORS|COLUMNS|LINES|KUBECONFIG|HUBBLE_.*"
    r"|CILIA_(?!TEST_|LONG|WIRE_FACTS|RANDOM_FLOWS).*"
)
"""Variables by which somebody tells programs of theirs what tests must find out by themselves."""

for name in [name for name in os.environ if OTHERS.fullmatch(name)]:
    del os.environ[name]
# Commands print times in the zone of whoever looks.
os.environ["TZ"] = "UTC"
time.tzset()

settings.register_profile(
    "patient",
    settings(),
    deadline=None,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.too_slow],
)
settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="session")
def loggers_that_forget() -> Iterator[None]:
    """No logger keeps how it was set up when it was first used: that ends with the test of a command."""
    configure = structlog.configure

    def without_memory(**settings: Any) -> None:
        configure(**{**settings, "cache_logger_on_first_use": False})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structlog, "configure", without_memory)
        yield


@pytest.fixture(autouse=True)
def own_logging(loggers_that_forget: None) -> Iterator[None]:
    """A command that a test runs in this process sets up logging for all that follow."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    """A command that a test runs in this process sets the umask for all that follow."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def look() -> frozenset[str]:
    """Everything on the machine that tests make or might: links, mounts, control groups, pins, state."""
    return frozenset((*links(), *mounts(), *directories()))


def links() -> Iterator[str]:
    yield from (f"interface {name}" for _, name in socket.if_nameindex())


def mounts() -> Iterator[str]:
    yield from (f"mount {line.split(' ')[1]}" for line in Path("/proc/self/mounts").read_text().splitlines())


def directories() -> Iterator[str]:
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/bpf", "/run", "/run/netns"):
        try:
            yield from [str(path) for path in Path(root).iterdir()]
        except OSError:
            continue


def has_our_name(thing: str) -> bool:
    """Whether it is called as the programs call what they make."""
    return any(part.startswith(OURS) for part in re.split("[/ ]", thing))


def maker(thing: str, makers: dict[int, str]) -> str:
    """Whose process number its name carries, as tests name what they make; empty: nobody's of this run."""
    numbers = {int(digits) for digits in re.findall("[0-9]+", thing)}
    found = (name for number, name in makers.items() if numbers & {number, number % 10**6, number % 10**5})
    return next(found, "")


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of several that another hands tests to."""
    return hasattr(config, "workerinput")


def rank(item: pytest.Item) -> int:
    """The place of an item's directory in `ORDER`."""
    parts = item.nodeid.split("/")
    return ORDER.index(parts[1]) if len(parts) > 1 and parts[1] in ORDER else len(ORDER)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=rank)


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[BEFORE] = look()
    session.config.stash[MAKERS] = {os.getpid(): "this process"}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodeready(node: Any) -> None:
    node.config.stash[MAKERS][node.gateway._rinfo().pid] = node.gateway.id


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if is_worker(session.config):
        return
    before, makers = session.config.stash[BEFORE], session.config.stash[MAKERS]
    deadline = time.monotonic() + PATIENCE
    while (left := left_over(before, makers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if not left:
        return
    print("\nleft over by this run, or made by somebody else meanwhile where no process is named: ", end="")
    print(", ".join(f"{thing} ({who})" if who else thing for thing, who in sorted(left.items())))
    if os.environ.get("CI") or any(left.values()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def left_over(before: frozenset[str], makers: dict[int, str]) -> dict[str, str]:
    """What came during the run and is of our making, each with the process that made it if that is known."""
    found = {thing: maker(thing, makers) for thing in look() - before}
    return {thing: who for thing, who in found.items() if who or has_our_name(thing)}
