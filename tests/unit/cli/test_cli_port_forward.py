"""-P: the relay behind kubectl, which is a script here that says what kubectl says."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cilia.cli.errors import UserError
from cilia.cli.port_forward import forwarded

SCRIPT = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
*jsonpath*) {get} ;;
*) echo $$ > {log}.pid; {forward} ;;
esac
"""


class Kubectl:
    """A script in $PATH."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = directory / "log"
        self._script = directory / "kubectl"
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def says(self, *, get: str = "printf 443", forward: str) -> None:
        self._script.write_text(SCRIPT.format(log=self.log, get=get, forward=forward))
        self._script.chmod(0o755)

    def is_running(self) -> bool:
        """Whether it got as far as to forward, and has not ended."""
        number = Path(f"{self.log}.pid")
        return number.exists() and Path("/proc", number.read_text().strip() or "none").exists()


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubectl:
    return Kubectl(tmp_path, monkeypatch)


def address(port: int = 0, timeout: float = 60.0, namespace: str = "kube-system", context: str = "") -> str:
    with forwarded(
        namespace=namespace, context=context, kubeconfig="", port=port, timeout=timeout
    ) as address:
        return address


LISTENS = 'echo "Forwarding from 127.0.0.1:43210 -> 4245"; exec sleep 60'


def test_kubectl_runs_as_long_as_the_command(kubectl: Kubectl) -> None:
    kubectl.says(forward=LISTENS)
    with forwarded(namespace="hubble", context="prod", kubeconfig="", port=4245, timeout=60.0) as address:
        assert address == "127.0.0.1:43210" and kubectl.is_running()
    assert not kubectl.is_running()
    assert kubectl.log.read_text().splitlines()[1] == (
        "--namespace=hubble --context=prod port-forward --address=127.0.0.1 service/hubble-relay 4245:443"
    )


def test_a_free_port(kubectl: Kubectl) -> None:
    kubectl.says(forward=LISTENS)
    assert address(port=0) == "127.0.0.1:43210"
    assert kubectl.log.read_text().endswith(" service/hubble-relay :443\n")


def test_a_cluster_without_a_relay(kubectl: Kubectl) -> None:
    kubectl.says(get="echo 'services not found' >&2; exit 1", forward="exit 0")
    with pytest.raises(UserError, match=r"\(services not found\): look at --kube-namespace"):
        address()


def test_a_port_that_is_taken(kubectl: Kubectl) -> None:
    kubectl.says(forward="echo 'unable to listen on port 4245' >&2; exit 1")
    with pytest.raises(UserError, match="unable to listen on port 4245"):
        address()
    assert not kubectl.is_running()


def test_kubectl_that_hangs(kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilia.cli.port_forward.MORE_TIME", 0.0)
    kubectl.says(forward="exec sleep 60")
    before = time.monotonic()
    with pytest.raises(UserError, match=r"did not reach the cluster in 2 s"):
        address(timeout=2.0)
    assert time.monotonic() - before < 50 and not kubectl.is_running()


def test_without_kubectl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="-P needs kubectl"):
        address()
