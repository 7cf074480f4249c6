"""Start a lab in the background and show how it gets on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from cilia.kit.files import private_directory
from cilia.lab import cgroups, kernel, records, teardown
from cilia.lab.plan import LabPlan

Progress = Callable[[dict[str, Any]], None]


class StartError(Exception):
    """The lab did not start; the message says why and what to do."""


def bring_up(plan: LabPlan, console: Console) -> float | None:
    """Start a lab and wait until it is ready; the seconds it took, None if it was up already.

    On failure what was made is taken away again. Raises StartError.
    """
    with console.status("lab: starting") as line:

        def show(message: dict[str, Any]) -> None:
            if "begin" in message:
                line.update(f"lab: {message['begin']}")

        return start(plan, show)


def start(plan: LabPlan, progress: Progress) -> float | None:
    """As `bring_up`, telling each progress message to `progress`."""
    started = time.monotonic()
    state = Path(plan.state)
    if state.exists():
        _judge_existing(plan, state)
        return None
    private_directory(state.parent)
    try:
        state.mkdir(mode=0o700)
    except FileExistsError:
        raise StartError(f"somebody else is starting lab {plan.name!r} right now: wait for it") from None
    try:
        # A file system of the lab's own: on many machines nothing below /run may be executed, and the CNI
        # plugin lives here.
        kernel.mount("cilia-lab", plan.state, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0700")
        _run(plan, state, progress)
    except OSError as error:
        teardown.take_down(plan.name, state.parent)
        raise StartError(f"the lab can't be started: {error}") from error
    except BaseException:
        teardown.take_down(plan.name, state.parent)
        raise
    return time.monotonic() - started


def _judge_existing(plan: LabPlan, state: Path) -> None:
    """Return when the lab there is alive; raises StartError for remains."""
    daemon = records.find_process(plan, "daemon")
    if daemon is None or not records.alive(daemon):
        raise StartError(f"{state} holds the remains of a lab: run `cilia lab down --name {plan.name}` first")
    before = records.read(records.plan_path(state), LabPlan)
    if before is not None and before != plan:
        raise StartError(
            f"lab {plan.name!r} is already up with {len(before.nodes)} nodes and other settings: "
            f"run `cilia lab down --name {plan.name}` first, or choose another --name"
        )


def _run(plan: LabPlan, state: Path, progress: Progress) -> None:
    records.write(records.plan_path(state), plan)
    for directory in ("processes", "log"):
        private_directory(state / directory)
    reading, writing = os.pipe()
    try:
        _spawn_daemon(plan, writing)
    finally:
        os.close(writing)
    with os.fdopen(reading, "rb") as lines:
        _wait(plan, lines, progress)


def _spawn_daemon(plan: LabPlan, progress: int) -> None:
    try:
        group = cgroups.create(cgroups.find_mount() / plan.cgroup_name / "daemon")
    except (cgroups.CgroupError, OSError) as error:
        raise StartError(str(error)) from error
    log = Path(plan.log_dir, "lab.log")
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cilia.lab.daemon", plan.state],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(progress,),
            start_new_session=True,
            cwd="/",
            env={**os.environ, "CILIA_LAB_PROGRESS": str(progress)},
        )
    cgroups.join(group, process.pid)
    record = records.ProcessRecord(
        name="daemon", pid=process.pid, started=records.start_time(process.pid), log=str(log)
    )
    records.write(records.process_path(plan, "daemon"), record)


def _wait(plan: LabPlan, lines: Iterator[bytes], progress: Progress) -> None:
    """Follow the daemon's progress until it is ready; raises StartError."""
    for line in lines:
        message = msgspec.json.decode(line, type=dict[str, Any])
        if "ready" in message:
            return
        if "error" in message:
            raise StartError(str(message["error"]))
        progress(message)
    words = Path(plan.log_dir, "lab.log").read_text(errors="replace").splitlines()[-8:]
    raise StartError("the lab's daemon died while starting:\n" + "\n".join(words))
