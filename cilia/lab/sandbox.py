"""A pod's sandbox: its namespaces, its attachment by CNI and its first process.

The order is a runtime's: record, network namespace, CNI ADD, process. The removal is the reverse and works
from any point in between.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import msgspec

from cilia.lab import cgroups, cni, kernel, records
from cilia.lab.plan import LabPlan, NodePlan
from cilia.lab.records import PodRecord

INIT_PROGRAM = Path(__file__).with_name("podinit.py")
START_TIMEOUT = 15.0
"""Seconds until the pod's first process must have reported."""


class SandboxError(Exception):
    """The sandbox can't be made or removed; the message is one sentence."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What runs in a pod: the built-in echo server on some ports, or a command."""

    namespace: str
    name: str
    uid: str
    serve: tuple[tuple[str, int], ...] = ()
    command: tuple[str, ...] = ()
    environment: dict[str, str] = {}


def prepare(plan: LabPlan, node: NodePlan, workload: Workload) -> PodRecord:
    """Choose the sandbox's names and write them down, before anything is made."""
    sandbox = os.urandom(32).hex()
    short = sandbox[:12]
    directory = Path(plan.pods_dir, short)
    directory.mkdir(parents=True, mode=0o700)
    pod = PodRecord(
        namespace=workload.namespace,
        name=workload.name,
        uid=workload.uid,
        node=node.name,
        sandbox=sandbox,
        netns=f"{plan.netns_dir}/pod-{short}",
        directory=str(directory),
        ports=workload.serve,
    )
    records.write(directory / "pod.json", pod)
    return pod


async def start(pod: PodRecord, node: NodePlan, workload: Workload, group: Path) -> PodRecord:
    """Make the sandbox and start its process; on failure nothing is left. Raises CniError, SandboxError."""
    try:
        kernel.create_network(pod.netns)
        ips = await cni.add(node, pod)
        pod = await launch(msgspec.structs.replace(pod, ips=ips), workload, group)
    except (OSError, SandboxError, cni.CniError, asyncio.CancelledError) as error:
        await _undo(pod, node, group)
        if isinstance(error, OSError):
            raise SandboxError(f"the sandbox of {pod.namespace}/{pod.name} can't be made: {error}") from error
        raise
    return pod


async def launch(pod: PodRecord, workload: Workload, group: Path, *, sandboxed: bool = True) -> PodRecord:
    """Start the first process inside the pod's namespaces and write down its id; raises SandboxError."""
    config = {
        "netns": pod.netns,
        "cgroup": str(cgroups.create(group)),
        "hostname": pod.name[:63],
        "serve": workload.serve,
        "command": workload.command,
        "environment": {"PATH": os.environ.get("PATH", os.defpath), **workload.environment},
        "sandbox": sandboxed,
    }
    control = _control_listener(pod)
    reading, writing = os.pipe()
    output = os.open(pod.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-IS",
            str(INIT_PROGRAM),
            msgspec.json.encode(config).decode(),
            str(control.fileno()),
            str(writing),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(control.fileno(), writing),
            start_new_session=True,
            env={},
        )
    finally:
        control.close()
        os.close(writing)
        os.close(output)
    line = await _first_line(reading)
    await process.wait()
    if not line.strip().isdigit():
        reason = line.decode().strip() or "its first process ended at once"
        raise SandboxError(f"pod {pod.namespace}/{pod.name} did not start: {reason} (see {pod.log})")
    pid = int(line)
    pod = msgspec.structs.replace(pod, pid=pid, started=records.start_time(pid))
    records.write(Path(pod.directory, "pod.json"), pod)
    return pod


def _control_listener(pod: PodRecord) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(pod.control_socket)
    Path(pod.control_socket).chmod(0o600)
    listener.listen(64)
    return listener


async def _first_line(descriptor: int) -> bytes:
    """Read the report of the starting process; empty when it says nothing in time."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
    )
    try:
        async with asyncio.timeout(START_TIMEOUT):
            return await reader.readline()
    except TimeoutError:
        return b""
    finally:
        transport.close()


async def stop(pod: PodRecord, node: NodePlan, group: Path) -> None:
    """End a pod: its processes, its attachment, its namespace, its files. Raises CniError, SandboxError.

    After an error it can be called again.
    """
    kill(pod)
    try:
        await cni.delete(node, pod)
        await asyncio.to_thread(cgroups.remove, group)
        kernel.delete_network(pod.netns)
    except (OSError, cgroups.CgroupError) as error:
        raise SandboxError(f"the sandbox of {pod.namespace}/{pod.name} can't be removed: {error}") from error
    shutil.rmtree(pod.directory, ignore_errors=True)


def ask_to_end(pod: PodRecord) -> None:
    """SIGTERM to a pod's first process."""
    if records.alive(pod):
        os.kill(pod.pid, signal.SIGTERM)


def kill(pod: PodRecord) -> None:
    """End a pod's first process, and with it all of its pid namespace."""
    if records.alive(pod):
        os.kill(pod.pid, signal.SIGKILL)


async def _undo(pod: PodRecord, node: NodePlan, group: Path) -> None:
    try:
        await stop(pod, node, group)
    except (cni.CniError, SandboxError):
        # The reason of the failure matters more than that of the clean-up, which `down` completes.
        shutil.rmtree(pod.directory, ignore_errors=True)
