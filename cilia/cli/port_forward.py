"""`-P`: the relay of a cluster through `kubectl port-forward`, for as long as a command runs.

    cilia ─► 127.0.0.1:4245 ─► kubectl ─► API server ─► kubelet ─► hubble-relay

kubectl knows all the ways to log in to a cluster, and whoever may use -P has it.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from cilia.cli.errors import UserError

SERVICE = "service/hubble-relay"
FORWARDING = re.compile(r"Forwarding from (127\.0\.0\.1:\d+) ")
MORE_TIME = 10.0
"""Seconds that kubectl may take beside the time to connect: it may have to log in."""


@contextmanager
def forwarded(*, namespace: str, context: str, kubeconfig: str, port: int, timeout: float) -> Iterator[str]:
    """An address of this machine behind which the relay is. Raises UserError."""
    chosen = [("--namespace", namespace), ("--context", context), ("--kubeconfig", kubeconfig)]
    kubectl = ["kubectl", *(f"{flag}={value}" for flag, value in chosen if value)]
    patience = timeout + MORE_TIME
    remote = ask([*kubectl, "get", SERVICE, "--output=jsonpath={.spec.ports[0].port}"], patience)
    command = [*kubectl, "port-forward", "--address=127.0.0.1", SERVICE, f"{port or ''}:{remote}"]
    # A session of its own: Ctrl-C ends the command, which then ends kubectl.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield address(process, patience)
    finally:
        process.kill()
        process.communicate()


def ask(command: Sequence[str], patience: float) -> str:
    """What kubectl answers. Raises UserError."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=patience, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise UserError("-P needs kubectl, which is not in $PATH: install it, or name a --server") from None
    except subprocess.TimeoutExpired:
        raise late(patience) from None
    if done.returncode:
        raise refused(done.stderr)
    return done.stdout.decode(errors="replace").strip()


def address(process: subprocess.Popen[bytes], patience: float) -> str:
    """Where kubectl listens, once it says so. Raises UserError."""
    assert process.stdout and process.stderr
    said = b""
    ends = time.monotonic() + patience
    while True:
        found = FORWARDING.search(said.decode(errors="replace"))
        if found:
            return found[1]
        more = some(process.stdout, ends - time.monotonic())
        if more is None:
            raise late(patience)
        if not more:
            raise refused(process.stderr.read())
        said += more


def some(stream: IO[bytes], patience: float) -> bytes | None:
    """What comes next; None if nothing comes in time, nothing at the end."""
    ready, _, _ = select.select([stream], [], [], max(0.0, patience))
    return os.read(stream.fileno(), 4096) if ready else None


def late(patience: float) -> UserError:
    """When nothing is heard of the cluster."""
    return UserError(f"kubectl did not reach the cluster in {patience:g} s: try `kubectl get nodes`")


def refused(said: bytes) -> UserError:
    """In kubectl's own words."""
    lines = said.decode(errors="replace").strip().splitlines() or ["no reason is given"]
    return UserError(
        f"kubectl can't forward to hubble-relay ({lines[-1]}): "
        "look at --kube-namespace, --kube-context and --kubeconfig"
    )
