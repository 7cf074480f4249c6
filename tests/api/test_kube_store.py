"""The Kubernetes client and the reflectors against a real API server over TLS, also one that goes away."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest

from cilia.cluster import store
from cilia.cluster.embedded.auth import Role
from cilia.cluster.kube.client import KubeStore
from cilia.cluster.store import LEASES, NAMESPACES, PODS, Preconditions, Resource
from cilia.kit.tasks import TaskGroup
from cilia.model.resources.base import AnyObject
from cilia.schema import Inputs
from cilia.sources.namespaces import namespaces
from cilia.sources.reflector import Reflector
from tests.support.api_client import Client, Server, serving
from tests.support.machine import free_port
from tests.support.waiting import until_async


def run(kubeconfig: Path, story: Callable[[KubeStore], Awaitable[None]]) -> None:
    async def main() -> None:
        async with KubeStore.discover(kubeconfig, os.environ) as kube, asyncio.timeout(60):
            await story(kube)

    asyncio.run(main())


def body(resource: Resource, name: str, **fields: Any) -> bytes:
    return store.encode(resource, {"metadata": {"name": name}, **fields})


def test_the_verbs_and_their_errors(api: Client, namespace: str) -> None:
    async def story(kube: KubeStore) -> None:
        lease = body(LEASES, "l", spec={"holderIdentity": "a"})
        created = json.loads(await kube.create(LEASES, lease, namespace=namespace))
        with pytest.raises(store.AlreadyExists):
            await kube.create(LEASES, lease, namespace=namespace)
        await kube.patch(LEASES, "l", b'{"spec": {"holderIdentity": "b"}}', namespace=namespace)
        with pytest.raises(store.Conflict):
            await kube.replace(LEASES, "l", json.dumps(created).encode(), namespace=namespace)
        outdated = Preconditions(resource_version=created["metadata"]["resourceVersion"])
        with pytest.raises(store.Conflict):
            await kube.delete(LEASES, "l", namespace=namespace, preconditions=outdated)
        held = json.loads(await kube.get(LEASES, "l", namespace=namespace))
        assert held["spec"]["holderIdentity"] == "b"
        with pytest.raises(store.Invalid):
            await kube.create(LEASES, b"{", namespace=namespace)
        await kube.delete(
            LEASES, "l", namespace=namespace, preconditions=Preconditions(uid=held["metadata"]["uid"])
        )
        with pytest.raises(store.NotFound):
            await kube.get(LEASES, "l", namespace=namespace)

    run(api.kubeconfig, story)


def test_a_watch_goes_on_from_a_list(api: Client, namespace: str) -> None:
    async def story(kube: KubeStore) -> None:
        listing = await kube.list(LEASES, namespace=namespace, field_selector="metadata.name=seen")
        seen = []
        async with aclosing(
            kube.watch(
                LEASES,
                since=listing.resource_version,
                namespace=namespace,
                field_selector="metadata.name=seen",
            )
        ) as events:
            await kube.create(LEASES, body(LEASES, "unseen"), namespace=namespace)
            await kube.create(LEASES, body(LEASES, "seen"), namespace=namespace)
            await kube.delete(LEASES, "seen", namespace=namespace)
            async for event in events:
                if event.type != "BOOKMARK":
                    seen.append((event.type, store.decode(event.object, AnyObject).metadata.name))
                if len(seen) == 2:
                    break
        assert seen == [("ADDED", "seen"), ("DELETED", "seen")]

    run(api.kubeconfig, story)


def test_strangers_are_refused(embedded: Server, tmp_path: Path) -> None:
    kubeconfig = embedded.client("reader", "viewer").kubeconfig
    stranger = tmp_path / "stranger"
    text = kubeconfig.read_text()
    token = next(line.split()[-1] for line in text.splitlines() if "token:" in line)
    stranger.write_text(text.replace(token, "nonsense"))

    async def reads(kube: KubeStore) -> None:
        await kube.list(NAMESPACES)
        with pytest.raises(store.Forbidden):
            await kube.delete(NAMESPACES, "default")

    async def nothing(kube: KubeStore) -> None:
        with pytest.raises(store.Forbidden):
            await kube.list(NAMESPACES)

    run(kubeconfig, reads)
    run(stranger, nothing)


def test_history_that_is_gone(tmp_path: Path) -> None:
    """The embedded server forgets what is older than `--keep-history` when it starts again."""
    since = []

    async def write(kube: KubeStore) -> None:
        since.append((await kube.list(NAMESPACES)).resource_version)
        for index in range(40):
            await kube.create(NAMESPACES, body(NAMESPACES, f"n{index}"))

    async def watch(kube: KubeStore) -> None:
        with pytest.raises(store.Gone):
            async for _ in kube.watch(NAMESPACES, since=since[0]):
                pass

    for story in (write, watch):
        with serving(tmp_path / "state", "--keep-history", 16) as server:
            run(server.client().kubeconfig, story)


def test_a_table_outlives_the_server_and_catches_up(tmp_path: Path) -> None:
    state, address = tmp_path / "state", f"127.0.0.1:{free_port()}"

    async def story(kube: KubeStore, servers: ExitStack) -> None:
        inputs = Inputs()
        reflector = Reflector(kube, inputs.namespaces, namespaces())
        async with TaskGroup() as tasks:
            tasks.spawn("run", reflector.run())
            await reflector.synced.wait()
            await kube.create(NAMESPACES, body(NAMESPACES, "before"))
            await until_async(lambda: "before" in inputs.namespaces)
            await asyncio.to_thread(servers.close)
            await until_async(lambda: "can't be reached" in reflector.error)
            assert "before" in inputs.namespaces
            await asyncio.to_thread(servers.enter_context, serving(state, address=address))
            await kube.create(NAMESPACES, body(NAMESPACES, "after"))
            await until_async(lambda: "after" in inputs.namespaces and reflector.error == "")

    with ExitStack() as servers:
        server = servers.enter_context(serving(state, address=address))
        role: Role = "admin"
        kubeconfig = server.client("admin", role).kubeconfig
        run(kubeconfig, lambda kube: story(kube, servers))


def test_pods_of_a_node_are_selected_by_the_server(api: Client, namespace: str) -> None:
    async def story(kube: KubeStore) -> None:
        for name, node in (("here", "node-a"), ("there", "node-b")):
            spec = {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}
            await kube.create(PODS, body(PODS, name, spec=spec), namespace=namespace)
        listing = await kube.list(PODS, namespace=namespace, field_selector="spec.nodeName=node-a")
        assert [store.decode(item, AnyObject).metadata.name for item in listing.items] == ["here"]

    run(api.kubeconfig, story)
