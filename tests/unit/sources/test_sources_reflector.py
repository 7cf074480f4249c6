"""A table follows its collection through changes, gaps and absences of the store."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from cilia.cluster import store as cluster
from cilia.cluster.store import CILIUM_NETWORK_POLICIES, NAMESPACES, NETWORK_POLICIES
from cilia.kit.tasks import TaskGroup
from cilia.schema import Inputs
from cilia.schema.rows import NamespaceRow
from cilia.sources.cluster import Sources
from cilia.sources.namespaces import namespaces
from cilia.sources.policies import policies
from cilia.sources.reflector import Reflector
from tests.support.memory_store import MemoryStore
from tests.support.waiting import until_async

Story = Callable[[MemoryStore, Inputs], Awaitable[None]]


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}}


def policy(name: str, generation: int, **parts: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "n", "generation": generation}
    return {"metadata": metadata, "spec": {"endpointSelector": {}}, **parts}


def run(story: Story) -> None:
    async def main() -> None:
        memory, inputs = MemoryStore(), Inputs()
        async with TaskGroup() as tasks:
            tasks.spawn("namespaces", Reflector(memory, inputs.namespaces, namespaces()).run())
            await story(memory, inputs)

    asyncio.run(main())


def test_rows_follow_the_objects() -> None:
    async def story(memory: MemoryStore, inputs: Inputs) -> None:
        await memory.put(NAMESPACES, namespace("a", team="x"))
        await until_async(lambda: "a" in inputs.namespaces)
        await memory.put(NAMESPACES, namespace("a", team="y"))
        await until_async(lambda: inputs.namespaces.get("a") == NamespaceRow(name="a", labels={"team": "y"}))
        await memory.delete(NAMESPACES, "a")
        await until_async(lambda: "a" not in inputs.namespaces)
        assert memory.lists == 1

    run(story)


def test_a_watch_that_ends_goes_on_where_it_was() -> None:
    async def story(memory: MemoryStore, inputs: Inputs) -> None:
        await memory.put(NAMESPACES, namespace("a"))
        await until_async(lambda: "a" in inputs.namespaces)
        await memory.interrupt()
        await memory.put(NAMESPACES, namespace("b"))
        await until_async(lambda: "b" in inputs.namespaces)
        assert memory.lists == 1

    run(story)


def test_after_a_gap_the_whole_list_counts_and_only_differences_are_announced() -> None:
    async def story(memory: MemoryStore, inputs: Inputs) -> None:
        for name in ("stays", "goes"):
            await memory.put(NAMESPACES, namespace(name))
        await until_async(lambda: len(inputs.namespaces) == 2)
        cursor = inputs.namespaces.cursor()
        cursor.take()
        memory.down = cluster.Unavailable("away")
        await memory.interrupt()
        memory.down = None
        await memory.delete(NAMESPACES, "goes")
        await memory.put(NAMESPACES, namespace("comes"))
        await memory.compact()
        await until_async(lambda: "comes" in inputs.namespaces)
        put, deleted = cursor.take()
        assert [row.name for row in put] == ["comes"]
        assert deleted == ["goes"]

    run(story)


def test_while_the_store_is_away_the_rows_stay_and_the_reason_is_known() -> None:
    async def main() -> None:
        memory, inputs = MemoryStore(), Inputs()
        await memory.put(NAMESPACES, namespace("a"))
        reflector = Reflector(memory, inputs.namespaces, namespaces())
        async with TaskGroup() as tasks:
            tasks.spawn("run", reflector.run())
            await until_async(lambda: "a" in inputs.namespaces)
            memory.down = cluster.Unavailable("away")
            await memory.interrupt()
            await until_async(lambda: reflector.error == "away")
            assert "a" in inputs.namespaces
            memory.down = None
            await memory.put(NAMESPACES, namespace("b"))
            await until_async(lambda: "b" in inputs.namespaces)
            assert reflector.error == ""

    asyncio.run(main())


def test_an_object_nobody_understands_has_no_row_and_stops_nothing() -> None:
    async def story(memory: MemoryStore, inputs: Inputs) -> None:
        await memory.put(NAMESPACES, {"metadata": {"name": "bad", "labels": {"x": 1}}})
        await memory.put(NAMESPACES, namespace("a"))
        await until_async(lambda: "a" in inputs.namespaces)
        await memory.put(NAMESPACES, {"metadata": {"name": "worse", "labels": 7}})
        await memory.put(NAMESPACES, namespace("b"))
        await until_async(lambda: "b" in inputs.namespaces)
        assert list(inputs.namespaces.keys()) == ["a", "b"]

    run(story)


def test_an_object_we_trip_over_has_no_row_and_stops_nothing() -> None:
    plain = namespaces()

    def tripping(raw: msgspec.Raw) -> NamespaceRow | None:
        if b"odd" in bytes(raw):
            raise ZeroDivisionError("odd")
        return plain.row(raw)

    async def main() -> None:
        memory, inputs = MemoryStore(), Inputs()
        translation = msgspec.structs.replace(plain, row=tripping)
        await memory.put(NAMESPACES, namespace("odd-one"))
        async with TaskGroup() as tasks:
            tasks.spawn("namespaces", Reflector(memory, inputs.namespaces, translation).run())
            await memory.put(NAMESPACES, namespace("a"))
            await until_async(lambda: "a" in inputs.namespaces)
            await memory.put(NAMESPACES, namespace("odd-too"))
            await memory.put(NAMESPACES, namespace("b"))
            await until_async(lambda: "b" in inputs.namespaces)
            await memory.put(NAMESPACES, namespace("a", now="odd"))
            await until_async(lambda: list(inputs.namespaces.keys()) == ["b"])

    asyncio.run(main())


def test_a_kind_nobody_needs_to_have_is_complete_without_objects() -> None:
    async def main() -> None:
        memory, inputs = MemoryStore(), Inputs()
        memory.down = cluster.NotFound("no such kind")
        needed = Reflector(memory, inputs.policies, policies(CILIUM_NETWORK_POLICIES))
        other = Reflector(memory, inputs.policies, policies(cluster.CLUSTER_NETWORK_POLICIES))
        async with TaskGroup() as tasks:
            tasks.spawn("needed", needed.run())
            tasks.spawn("other", other.run())
            await until_async(other.synced.is_set)
            await until_async(lambda: needed.error == "no such kind")
            assert other.error == ""
            assert not needed.synced.is_set()
            memory.down = None
            spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}
            await memory.put(cluster.CLUSTER_NETWORK_POLICIES, {"metadata": {"name": "a"}, "spec": spec})
            await until_async(lambda: len(inputs.policies) == 1)

    asyncio.run(main())


def test_kinds_that_share_a_table_do_not_delete_each_others_rows() -> None:
    async def main() -> None:
        memory, inputs = MemoryStore(), Inputs()
        await memory.put(CILIUM_NETWORK_POLICIES, policy("p", 1))
        await memory.put(NETWORK_POLICIES, {"metadata": {"name": "p", "namespace": "n"}, "spec": {}})
        async with TaskGroup() as tasks:
            for resource in (CILIUM_NETWORK_POLICIES, NETWORK_POLICIES):
                tasks.spawn(resource.plural, Reflector(memory, inputs.policies, policies(resource)).run())
            await until_async(lambda: len(inputs.policies) == 2)
            await memory.compact()
            await until_async(lambda: memory.lists == 4)
            assert len(inputs.policies) == 2

    asyncio.run(main())


def test_a_status_write_is_no_new_policy() -> None:
    async def main() -> None:
        memory, inputs = MemoryStore(), Inputs()
        await memory.put(CILIUM_NETWORK_POLICIES, policy("p", 1))
        async with TaskGroup() as tasks:
            tasks.spawn("run", Reflector(memory, inputs.policies, policies(CILIUM_NETWORK_POLICIES)).run())
            await until_async(lambda: len(inputs.policies) == 1)
            revision = inputs.policies.revision
            condition = {"type": "Valid", "status": "True"}
            await memory.put(CILIUM_NETWORK_POLICIES, policy("p", 1, status={"conditions": [condition]}))
            await memory.put(CILIUM_NETWORK_POLICIES, policy("q", 1))
            await until_async(lambda: len(inputs.policies) == 2)
            assert inputs.policies.revision == revision + 1
            await memory.put(CILIUM_NETWORK_POLICIES, policy("p", 2))
            await until_async(lambda: inputs.policies.revision == revision + 2)

    asyncio.run(main())


def test_tables_are_synced_when_all_their_kinds_are() -> None:
    async def main() -> None:
        memory, inputs = MemoryStore(), Inputs()
        memory.down = cluster.Forbidden("no")
        sources = Sources(memory, inputs, node="n1", own_addresses=frozenset())
        async with TaskGroup() as tasks:
            sources.start(tasks)
            await until_async(lambda: len(sources.errors()) == len(sources.reflectors) == 13)
            assert not any(table.synced for table in (inputs.pods, inputs.nodes, inputs.policies))
            memory.down = None
            async with asyncio.timeout(30):
                await sources.wait_synced()
            assert {table.name for table in inputs.tables() if not table.synced} == {
                "attachments",
                "endpoint_options",
                "local_services",
            }

    asyncio.run(main())
