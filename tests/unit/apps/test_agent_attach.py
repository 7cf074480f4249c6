"""CNI calls against fake links and a fake kernel: what is answered, what is kept, what is undone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cilia.apps.agent.attach import Attacher, Gateways, PodInterface
from cilia.apps.agent.identities import IdentityAllocator
from cilia.apps.agent.node import PodAddresses
from cilia.apps.agent.publish import EndpointPublisher
from cilia.apps.agent.state import EndpointFiles
from cilia.cluster import store as cluster
from cilia.control.graph import ControlGraph, GraphConfig
from cilia.kit.clock import ManualClock
from cilia.model.ids import EndpointId
from cilia.schema import Desired, Inputs, PodRow
from cilia.wire import cni
from tests.support.memory_store import MemoryStore

NETWORK = cni.Network(name="cilia", version="1.0.0")


class FakeLinks:
    """Interfaces as names in a dictionary."""

    mtu = 1450

    def __init__(self) -> None:
        self.made: dict[str, int] = {}
        self.fault: OSError | None = None

    def create(
        self, identifier: EndpointId, netns: str, interface: str, ipv4: str, ipv6: str, mtu: int
    ) -> PodInterface:
        if self.fault is not None:
            raise self.fault
        name = f"lxc{identifier}"
        self.made[name] = 100 + identifier
        return PodInterface(name, 100 + identifier, "02:00:00:00:00:01", "02:00:00:00:00:02")

    def remove(self, host_interface: str) -> None:
        self.made.pop(host_interface, None)

    def exists(self, host_interface: str, ifindex: int) -> bool:
        return self.made.get(host_interface) == ifindex


class World:
    """An attacher with everything around it, and the kernel's word in `refusal`."""

    def __init__(self, state_dir: Path) -> None:
        self.inputs, self.desired = Inputs(), Desired()
        self.graph = ControlGraph(self.inputs, self.desired, GraphConfig(node="one"))
        self.store = MemoryStore()
        self.links = FakeLinks()
        self.files = EndpointFiles(state_dir)
        self.addresses = PodAddresses(["10.0.1.0/29", "fd00::/125"], ManualClock())
        self.refusal: str | None = None
        self.publisher = EndpointPublisher(self.store, self.desired, lambda: "172.18.0.2")
        self.attacher = Attacher(
            inputs=self.inputs,
            graph=self.graph,
            store=self.store,
            files=self.files,
            addresses=self.addresses,
            links=self.links,
            enforcer=self,
            identities=IdentityAllocator(self.store, self.inputs),
            publisher=self.publisher,
            gateways=Gateways("10.0.1.1", "fd00::1"),
            put_pod=self._put_pod,
        )
        self.attacher.ready = True
        self.inputs.pods.put(pod_row("web"))

    def step(self) -> None:
        self.graph.step(0.0)

    def realised(self, identifier: EndpointId) -> str | None:
        return self.refusal

    def _put_pod(self, raw: bytes) -> PodRow:
        raise AssertionError("the pod is known")


def pod_row(name: str) -> PodRow:
    return PodRow(namespace="demo", name=name, uid=f"uid-{name}", labels={"app": name})


def add(container: str = "c1", pod: str = "web", netns: str = "/run/netns/x") -> cni.Add:
    return cni.Add(
        network=NETWORK,
        container_id=container,
        interface="eth0",
        netns=netns,
        pod=cni.Pod(namespace="demo", name=pod),
    )


def delete(container: str = "c1") -> cni.Delete:
    return cni.Delete(network=NETWORK, container_id=container, interface="eth0")


def story(tmp_path: Path, play: Callable[[World], Awaitable[None]]) -> None:
    """Run one story in a fresh world."""

    async def run() -> None:
        await play(World(tmp_path / "state"))

    asyncio.run(run())


async def refused(call: Awaitable[Any]) -> cni.CniError:
    with pytest.raises(cni.CniError) as caught:
        await call
    return caught.value


def test_an_add_is_answered_saved_and_published(tmp_path: Path) -> None:
    async def play(world: World) -> None:
        result = await world.attacher.add(add())
        assert [address.address for address in result.ips] == ["10.0.1.2/32", "fd00::2/128"]
        assert [interface.name for interface in result.interfaces] == ["lxc1", "eth0"]
        (saved,) = world.files.load()
        assert saved.attachment.pod_uid == "uid-web"
        assert saved.identity and "k8s:app=web" in saved.labels
        published = world.store.fields(cluster.CILIUM_ENDPOINTS, "web", "demo")
        assert published["status"]["networking"]["node"] == "172.18.0.2"
        assert world.store.names(cluster.CILIUM_IDENTITIES) == [str(saved.identity)]

    story(tmp_path, play)


def test_a_repeated_add_answers_as_the_first_did(tmp_path: Path) -> None:
    async def play(world: World) -> None:
        first = await world.attacher.add(add())
        assert await world.attacher.add(add()) == first
        assert len(world.links.made) == 1
        again = await world.attacher.add(add(netns="/run/netns/y"))
        assert again != first
        assert len(world.links.made) == 1
        assert len(world.files.load()) == 1

    story(tmp_path, play)


def test_del_gives_everything_back_and_repeats(tmp_path: Path) -> None:
    async def play(world: World) -> None:
        await world.attacher.add(add())
        await world.attacher.delete(delete())
        await world.attacher.delete(delete())
        assert not world.links.made
        assert not world.files.load()
        assert world.addresses.usage(4)[0] == 0
        for identifier in world.publisher.dirty():
            await world.publisher.publish(identifier)
        assert world.store.names(cluster.CILIUM_ENDPOINTS) == []

    story(tmp_path, play)


def test_a_refusal_of_the_kernel_leaves_nothing_half_made(tmp_path: Path) -> None:
    async def play(world: World) -> None:
        world.refusal = "subjects 1: the map is full"
        error = await refused(world.attacher.add(add()))
        assert error.code == cni.Code.TRY_AGAIN_LATER
        assert "the map is full" in error.message
        assert not world.links.made
        assert not world.files.load()
        assert world.addresses.usage(4)[0] == 0
        assert len(world.inputs.attachments) == 0

    story(tmp_path, play)


def test_a_namespace_that_is_not_there_has_its_own_code(tmp_path: Path) -> None:
    async def play(world: World) -> None:
        world.links.fault = FileNotFoundError(2, "there is no network namespace", "/run/netns/x")
        error = await refused(world.attacher.add(add()))
        assert error.code == cni.Code.INVALID_NETNS
        world.links.fault = OSError(28, "No space left on device")
        error = await refused(world.attacher.add(add()))
        assert error.code == cni.Code.IO_FAILURE
        assert world.addresses.usage(4)[0] == 0

    story(tmp_path, play)


def test_addresses_run_out_with_a_sentence(tmp_path: Path) -> None:
    async def play(world: World) -> None:
        for number in range(5):
            await world.attacher.add(add(container=f"c{number}"))
        error = await refused(world.attacher.add(add(container="c9")))
        assert error.code == cni.Code.NO_ADDRESS
        assert "in use" in error.message

    story(tmp_path, play)


def test_a_pod_nobody_knows_is_asked_for_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilia.apps.agent.attach.POD_WAIT", 0.0)

    async def play(world: World) -> None:
        error = await refused(world.attacher.add(add(pod="ghost")))
        assert error.code == cni.Code.TRY_AGAIN_LATER
        assert "no pod demo/ghost" in error.message
        assert not world.links.made

    story(tmp_path, play)


def test_check_compares_with_what_add_said(tmp_path: Path) -> None:
    async def play(world: World) -> None:
        result = await world.attacher.add(add())

        def check(previous: cni.Result) -> cni.Check:
            return cni.Check(
                network=NETWORK, container_id="c1", interface="eth0", netns="/run/netns/x", previous=previous
            )

        await world.attacher.serve(check(result))
        other = cni.Result(ips=(cni.Address(address="10.0.1.9/32"),))
        assert (await refused(world.attacher.serve(check(other)))).code == cni.Code.NOT_AS_EXPECTED
        world.links.made.clear()
        assert (await refused(world.attacher.serve(check(result)))).code == cni.Code.NOT_AS_EXPECTED

    story(tmp_path, play)


def test_garbage_collection_keeps_what_is_valid(tmp_path: Path) -> None:
    async def play(world: World) -> None:
        await world.attacher.add(add(container="c1"))
        await world.attacher.add(add(container="c2"))
        await world.attacher.serve(cni.CollectGarbage(network=NETWORK, valid=frozenset({("c2", "eth0")})))
        assert [row.container_id for row in world.inputs.attachments] == ["c2"]

    story(tmp_path, play)


def test_before_the_agent_is_ready_the_runtime_is_told_to_wait(tmp_path: Path) -> None:
    async def play(world: World) -> None:
        world.attacher.ready = False
        assert (await refused(world.attacher.add(add()))).code == cni.Code.TRY_AGAIN_LATER
        status = cni.Status(network=NETWORK)
        assert (await refused(world.attacher.serve(status))).code == cni.Code.NOT_AVAILABLE

    story(tmp_path, play)


def test_an_endpoint_number_rests_before_it_is_used_again(tmp_path: Path) -> None:
    async def play(world: World) -> None:
        await world.attacher.add(add(container="c1"))
        await world.attacher.delete(delete("c1"))
        await world.attacher.add(add(container="c2"))
        assert [row.id for row in world.inputs.attachments] == [2]

    story(tmp_path, play)
