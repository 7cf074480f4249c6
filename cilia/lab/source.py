"""The lab's way to the cluster's objects: the embedded API server, or a directory of YAML."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cilia.cluster.directory import DirectoryStore
from cilia.cluster.embedded.credentials import issue_token, make_authority, write_kubeconfig
from cilia.cluster.kube.client import KubeStore
from cilia.cluster.kube.kubeconfig import load
from cilia.cluster.store import Store
from cilia.lab.plan import API_PORT, LabPlan


def write_credentials(plan: LabPlan, port: int) -> None:
    """Issue a token for everybody and write their kubeconfig files, all 0600.

    Nodes and operator reach the server at the fabric's router, this machine at its loopback on `port`.
    """
    directory = Path(plan.state, "apiserver")
    authority = make_authority(directory, [plan.api_address])
    here, inside = f"https://127.0.0.1:{port}", f"https://{plan.api_address}:{API_PORT}"

    def token(user: str, role: str, server: str, path: str, node: str = "") -> None:
        secret = issue_token(directory, user, role, node)  # type: ignore[arg-type]
        write_kubeconfig(Path(path), server, authority.ca, secret, user)

    token("admin", "admin", here, plan.kubeconfig)
    token("lab", "lab", here, f"{plan.state}/lab.kubeconfig")
    token("cilia-operator", "operator", inside, f"{plan.state}/operator.kubeconfig")
    for node in plan.nodes:
        token(f"cilia-agent:{node.name}", "agent", inside, f"{node.directory}/kubeconfig", node.name)


@asynccontextmanager
async def open_store(plan: LabPlan) -> AsyncIterator[Store]:
    """Open the cluster as the lab's controllers see it."""
    if plan.source_dir:
        async with DirectoryStore(Path(plan.source_dir), Path(plan.state, "source")) as directory:
            yield directory
        return
    async with KubeStore(load([Path(plan.state, "lab.kubeconfig")]), user_agent="cilia-lab") as server:
        yield server
