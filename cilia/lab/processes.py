"""The programs of the lab: start one in its namespace and group, end it, look at it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cilia.lab import cgroups, records
from cilia.lab.plan import LabPlan
from cilia.lab.records import ProcessRecord


class ProcessError(Exception):
    """A program did not start; the message is one sentence with where to look."""


class Running:
    """A child of the daemon."""

    def __init__(self, record: ProcessRecord, process: asyncio.subprocess.Process) -> None:
        self.record = record
        self.process = process

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self.process.returncode is not None

    async def kill(self) -> None:
        """SIGKILL it and wait for its end."""
        if not self.ended:
            self.process.kill()
        await self.process.wait()


async def start(
    plan: LabPlan,
    name: str,
    command: Sequence[str],
    group: Path,
    *,
    netns: str = "",
    pass_fds: Sequence[int] = (),
) -> Running:
    """Start a program in the background and write it down; raises ProcessError."""
    log = Path(plan.log_dir, name.replace("/", "-") + ".log")
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    prefix = ["nsenter", f"--net={netns}", "--"] if netns else []
    try:
        process = await asyncio.create_subprocess_exec(
            *prefix,
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            start_new_session=True,
            cwd="/",
            env=_clean_environment(),
        )
    except OSError as error:
        raise ProcessError(f"{name} can't be started: {error}") from error
    finally:
        os.close(output)
    cgroups.join(cgroups.create(group), process.pid)
    record = ProcessRecord(name=name, pid=process.pid, started=records.start_time(process.pid), log=str(log))
    records.write(records.process_path(plan, name), record)
    return Running(record, process)


def program(module: str) -> tuple[str, ...]:
    """Return how to run one of Cilia's own programs with this very interpreter."""
    return sys.executable, "-P", "-c", f"from cilia.apps.{module} import main; main()"


def _clean_environment() -> dict[str, str]:
    """What a user has set for other clusters must not reach the lab's programs."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("KUBECONFIG", "HUBBLE_SERVER") and not name.startswith("CILIA_")
    }


def last_lines(log: str, count: int = 12) -> str:
    """Return the end of a log, for an error message."""
    try:
        return "\n".join(Path(log).read_text(errors="replace").splitlines()[-count:])
    except FileNotFoundError:
        return ""


def end(pid: int, started: int, timeout: float = 5.0) -> None:
    """End a process that may be anybody's child, if it still is the one that was written down."""
    if records.start_time(pid) != started or started == 0:
        return
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + timeout
    while records.start_time(pid) == started and time.monotonic() < deadline:
        time.sleep(0.005)
