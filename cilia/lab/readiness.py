"""Ask a pod whether it is ready, as a kubelet does: a command inside it, or a port that accepts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

from cilia.lab import kernel
from cilia.lab.objects import Probe
from cilia.lab.records import PodRecord, alive

PortOf = Callable[[int | str], int]


async def follow(probe: Probe, pod: PodRecord, node_netns: str, port_of: PortOf) -> AsyncIterator[bool]:
    """Yield the readiness whenever it changes, as long as the pod runs; it begins unready.

    `node_netns`: where a kubelet's connections come from. `port_of`: the number of a port or a port's name.
    """
    ready, streak = False, 0
    await asyncio.sleep(probe.initial_delay_seconds)
    while alive(pod):
        answer = await _ask(probe, pod, node_netns, port_of)
        streak = 0 if answer == ready else streak + 1
        if streak >= (probe.success_threshold if answer else probe.failure_threshold):
            ready, streak = answer, 0
            yield ready
        await asyncio.sleep(probe.period_seconds)


async def _ask(probe: Probe, pod: PodRecord, node_netns: str, port_of: PortOf) -> bool:
    """One question; without an action the answer is yes."""
    try:
        async with asyncio.timeout(probe.timeout_seconds):
            if probe.exec is not None:
                return await _succeeds(probe.exec.command, pod)
            if probe.tcp_socket is not None:
                return await _accepts(pod, port_of(probe.tcp_socket.port), node_netns)
    except (OSError, TimeoutError):
        return False
    return True


async def _succeeds(command: tuple[str, ...], pod: PodRecord) -> bool:
    spaces = ("--net", "--mount", "--pid", "--ipc", "--uts")
    process = await asyncio.create_subprocess_exec(
        "nsenter",
        f"--target={pod.pid}",
        *spaces,
        "--wd=/",
        "--",
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        return await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()


async def _accepts(pod: PodRecord, port: int, node_netns: str) -> bool:
    if not pod.ips or not port:
        return False
    with kernel.inside_network(node_netns):
        # A socket belongs to the namespace in which it was made.
        family = socket.AF_INET6 if ":" in pod.ips[0] else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(connection, (pod.ips[0], port))
        return True
    finally:
        connection.close()
