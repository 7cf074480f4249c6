"""A directory of files behaves as an API server does, and says what it can't use."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cilia.cluster import store
from cilia.cluster.directory import HISTORY, DirectoryStore
from cilia.cluster.manifests import Manifests, parse
from cilia.cluster.store import (
    CILIUM_IDENTITIES,
    CILIUM_NETWORK_POLICIES,
    CILIUM_NODES,
    EVENTS,
    NAMESPACES,
    NETWORK_POLICIES,
    PODS,
    Preconditions,
    Resource,
)
from cilia.model.policy import PolicyObject
from cilia.model.resources.base import AnyObject
from cilia.sources.policies import policies, same

POLL = 0.005
POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web, tier: "1"}}
spec: {nodeName: n1}
"""
Story = Callable[[DirectoryStore, Path], Awaitable[None]]


def run(tmp_path: Path, story: Story, **files: str) -> None:
    source = tmp_path / "source"
    source.mkdir(exist_ok=True)
    for name, text in files.items():
        (source / name.replace("_", ".")).write_text(text)

    async def main() -> None:
        async with DirectoryStore(source, tmp_path / "state", poll=POLL) as directory:
            await asyncio.wait_for(story(directory, source), 60)

    asyncio.run(main())


async def names(directory: DirectoryStore, resource: Resource, **options: str) -> list[str]:
    listing = await directory.list(resource, **options)
    return [store.decode(item, AnyObject).metadata.name for item in listing.items]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():  # noqa: ASYNC110 - what is waited for is the store's own polling
        await asyncio.sleep(POLL)


def body(resource: Resource, name: str, **fields: Any) -> bytes:
    return store.encode(resource, {"metadata": {"name": name}, **fields})


def test_files_hold_many_documents_lists_and_json(tmp_path: Path) -> None:
    async def story(directory: DirectoryStore, source: Path) -> None:
        assert await names(directory, PODS) == ["web"]
        assert sorted(await names(directory, NAMESPACES)) == ["a", "b", "c"]
        assert directory.problems == ()
        pod = json.loads(await directory.get(PODS, "web", namespace="default"))
        assert pod["metadata"]["resourceVersion"].isdecimal()
        assert pod["metadata"]["labels"]["tier"] == "1"

    run(
        tmp_path,
        story,
        one_yaml=POD + "---\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n",
        two_json='{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b", "namespace": "x"}}',
        three_yml="{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Namespace, "
        "metadata: {name: c}}]}",
        notes_txt="not: ours",
    )


def test_selectors(tmp_path: Path) -> None:
    pods = POD + "---" + POD.replace("web", "db").replace("n1", "n2")

    async def story(directory: DirectoryStore, source: Path) -> None:
        assert await names(directory, PODS, field_selector="spec.nodeName=n2") == ["db"]
        assert await names(directory, PODS, field_selector="spec.nodeName!=n2,metadata.name=web") == ["web"]
        assert await names(directory, PODS, label_selector="app in (web, x),tier") == ["web"]
        assert await names(directory, PODS, namespace="other") == []
        for wrong in ({"label_selector": "a b"}, {"field_selector": "x"}):
            with pytest.raises(store.Invalid):
                await names(directory, PODS, **wrong)

    run(tmp_path, story, pods_yaml=pods)


def test_what_can_not_be_used_is_reported_and_nothing_of_it_kept(tmp_path: Path) -> None:
    async def story(directory: DirectoryStore, source: Path) -> None:
        assert [problem.sentence for problem in directory.problems] == [
            "document 1 is ignored: kind Deployment of apiVersion apps/v1 is not known here",
            "document 2 is ignored: Pod has no metadata.name",
            "document 3 is ignored: it is not an object with apiVersion and kind",
            "document 5 is ignored: Expected `str`, got `int` - at `$.metadata.labels[...]`",
            "Pod default/web is defined twice; this one is ignored",
        ]
        assert await names(directory, PODS) == ["web"]
        (source / "a.yaml").write_text("{ broken")

        async def broken() -> bool:
            return any("none of its objects count" in problem.sentence for problem in directory.problems)

        await until(broken)
        assert await names(directory, PODS) == ["web"], "the second definition counts now"
        (source / "b.yaml").unlink()

        async def gone() -> bool:
            return await names(directory, PODS) == []

        await until(gone)

    run(
        tmp_path,
        story,
        a_yaml="apiVersion: apps/v1\nkind: Deployment\n---\napiVersion: v1\nkind: Pod\n---\n- 1\n---"
        + POD
        + "---"
        + POD.replace('"1"', "1"),
        b_yaml=POD,
    )


def test_a_watch_sees_files_come_change_and_go(tmp_path: Path) -> None:
    async def story(directory: DirectoryStore, source: Path) -> None:
        listing = await directory.list(PODS)
        seen = []
        async with aclosing(
            directory.watch(PODS, since=listing.resource_version, label_selector="app=web")
        ) as events:
            (source / "pod.yaml").write_text(POD)
            async for event in events:
                if event.type == "BOOKMARK":
                    continue
                seen.append(event.type)
                if seen == ["ADDED"]:
                    (source / "pod.yaml").write_text(POD.replace("n1", "n2"))
                elif seen == ["ADDED", "MODIFIED"]:
                    (source / "pod.yaml").write_text(POD.replace("app: web", "app: db"))
                else:
                    break
        assert seen == ["ADDED", "MODIFIED", "DELETED"]

    run(tmp_path, story)


GENERATED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, generation: 3, uid: u, resourceVersion: "9"}
spec: {podSelector: {matchLabels: {app: web}}}
"""


def test_a_generation_is_of_what_is_written_now(tmp_path: Path) -> None:
    """A copy of an object says of which generation it was: an edit of it must still be heard."""

    async def policy(directory: DirectoryStore) -> PolicyObject:
        raw = await directory.get(NETWORK_POLICIES, "p", namespace="default")
        row = policies(NETWORK_POLICIES).row(msgspec.Raw(raw))
        assert row is not None
        return row

    async def story(directory: DirectoryStore, source: Path) -> None:
        before = await policy(directory)
        status = b'{"status": {"conditions": []}}'
        await directory.patch(NETWORK_POLICIES, "p", status, namespace="default", subresource="status")
        noted = await policy(directory)
        assert noted.resource_version != before.resource_version
        assert same(before, noted)
        (source / "one.yaml").write_text(GENERATED.replace("web", "db"))
        await until(lambda: _is_other(directory, noted.resource_version))
        assert not same(before, await policy(directory))

    async def _is_other(directory: DirectoryStore, version: str) -> bool:
        return (await policy(directory)).resource_version != version

    run(tmp_path, story, one_yaml=GENERATED)


def test_own_objects_survive_a_restart(tmp_path: Path) -> None:
    versions: list[bytes] = []

    async def write(directory: DirectoryStore, source: Path) -> None:
        await directory.create(
            CILIUM_IDENTITIES, body(CILIUM_IDENTITIES, "256", **{"security-labels": {"a": "b"}})
        )
        with pytest.raises(store.AlreadyExists):
            await directory.create(CILIUM_IDENTITIES, body(CILIUM_IDENTITIES, "256"))
        versions.append(await directory.get(CILIUM_IDENTITIES, "256"))

    async def read(directory: DirectoryStore, source: Path) -> None:
        assert [await directory.get(CILIUM_IDENTITIES, "256")] == versions
        await directory.delete(CILIUM_IDENTITIES, "256")
        assert await names(directory, CILIUM_IDENTITIES) == []
        with pytest.raises(store.NotFound):
            await directory.delete(CILIUM_IDENTITIES, "256")

    run(tmp_path, write)
    run(tmp_path, read)
    run(tmp_path, lambda directory, _: until(lambda: _empty(directory)))


async def _empty(directory: DirectoryStore) -> bool:
    return await names(directory, CILIUM_IDENTITIES) == []


def test_an_outdated_write_conflicts(tmp_path: Path) -> None:
    async def story(directory: DirectoryStore, source: Path) -> None:
        first = json.loads(
            await directory.create(CILIUM_NODES, body(CILIUM_NODES, "n1", spec={"bootid": "1"}))
        )
        await directory.patch(CILIUM_NODES, "n1", b'{"spec": {"bootid": "2"}}')
        with pytest.raises(store.Conflict):
            await directory.replace(CILIUM_NODES, "n1", json.dumps(first).encode())
        version = first["metadata"]["resourceVersion"]
        with pytest.raises(store.Conflict):
            await directory.delete(CILIUM_NODES, "n1", preconditions=Preconditions(resource_version=version))
        assert json.loads(await directory.get(CILIUM_NODES, "n1"))["spec"] == {"bootid": "2"}

    run(tmp_path, story)


def test_a_status_is_kept_beside_the_users_file(tmp_path: Path) -> None:
    policy = "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: p}, "
    policy += "spec: {endpointSelector: {}}}"

    async def story(directory: DirectoryStore, source: Path) -> None:
        status = b'{"status": {"conditions": [{"type": "Valid", "status": "True"}]}}'
        await directory.patch(CILIUM_NETWORK_POLICIES, "p", status, namespace="default", subresource="status")
        stored = json.loads(await directory.get(CILIUM_NETWORK_POLICIES, "p", namespace="default"))
        assert stored["status"]["conditions"][0]["type"] == "Valid"
        assert stored["spec"] == {"endpointSelector": {}}
        assert stored["metadata"]["labels"] == {"directory:filename": "p.yaml"}
        assert (source / "p.yaml").read_text() == policy
        with pytest.raises(store.Forbidden, match="defined by a file"):
            await directory.delete(CILIUM_NETWORK_POLICIES, "p", namespace="default")
        with pytest.raises(store.Forbidden, match="add a file"):
            await directory.create(PODS, body(PODS, "x"), namespace="default")
        (source / "p.yaml").unlink()

        async def gone() -> bool:
            return await names(directory, CILIUM_NETWORK_POLICIES) == []

        await until(gone)

    run(tmp_path, story, p_yaml=policy)


def test_a_users_field_wins_over_our_own(tmp_path: Path) -> None:
    node = "{apiVersion: cilium.io/v2, kind: CiliumNode, metadata: {name: n1}, "
    node += "spec: {ipam: {podCIDRs: [10.9.0.0/24]}}}"

    async def story(directory: DirectoryStore, source: Path) -> None:
        change = b'{"spec": {"bootid": "b", "ipam": {"podCIDRs": ["10.0.0.0/24"]}}}'
        await directory.patch(CILIUM_NODES, "n1", change)
        spec = json.loads(await directory.get(CILIUM_NODES, "n1"))["spec"]
        assert spec == {"bootid": "b", "ipam": {"podCIDRs": ["10.9.0.0/24"]}}

    run(tmp_path, story, node_yaml=node)


def test_a_reader_too_far_behind_lists_again(tmp_path: Path) -> None:
    async def story(directory: DirectoryStore, source: Path) -> None:
        await directory.create(CILIUM_NODES, body(CILIUM_NODES, "n1"))
        since = (await directory.list(CILIUM_NODES)).resource_version
        directory._history.extend(directory._history[0] for _ in range(HISTORY))
        directory._sequence += HISTORY + 1
        for outdated in (since, "rubbish", "99999999"):
            with pytest.raises(store.Gone):
                await anext(directory.watch(CILIUM_NODES, since=outdated))

    run(tmp_path, story)


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates())
KEYS = st.sampled_from(["apiVersion", "kind", "metadata", "name", "namespace", "labels", "items", "spec"])
TREES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4))
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(kind=st.sampled_from(["Pod", "List", "CiliumNetworkPolicy"]), tree=TREES, text=st.text(max_size=30))
def test_any_file_is_objects_or_problems(tmp_path: Path, kind: str, tree: Any, text: str) -> None:
    version = "cilium.io/v2" if kind.startswith("Cilium") else "v1"
    head = {"apiVersion": version, "kind": kind}
    documents = [
        tree,
        {**head, "metadata": tree, "items": tree},
        {**head, "metadata": {"name": "a"}, "spec": tree},
    ]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all(documents))
    (tmp_path / "b.yaml").write_text(text)
    (tmp_path / "c.json").write_text(text)
    manifests = Manifests(tmp_path)
    manifests.scan(settled=False)
    found, _ = manifests.objects()
    for objects in found.values():
        for (_, name), fields in objects.items():
            assert fields["metadata"]["name"] == name


def test_a_file_that_is_being_replaced_is_not_missed(tmp_path: Path) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(POD)
    manifests = Manifests(tmp_path)

    def node() -> str | None:
        pods = manifests.objects()[0].get(PODS, {})
        return next((str(fields["spec"]["nodeName"]) for fields in pods.values()), None)

    assert manifests.scan(settled=False)
    file.unlink()
    assert not manifests.scan()
    file.write_text(POD[:40])
    assert not manifests.scan()
    file.write_text(POD.replace("n1", "n2"))
    assert not manifests.scan()
    assert node() == "n1"
    assert manifests.scan()
    assert node() == "n2"
    file.unlink()
    assert [manifests.scan(), manifests.scan()] == [False, True]
    assert node() is None


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    async def story(directory: DirectoryStore, source: Path) -> None:
        (problem,) = directory.problems
        assert "none of its objects count: line 6: spec is given twice" in problem.sentence
        assert await names(directory, PODS) == []

    run(tmp_path, story, pod_yaml=POD + "spec: {nodeName: n2}\n")


@pytest.mark.parametrize("name", ["../../etc/x", "", "A", "a/b", ".hidden"])
def test_names_that_are_no_names(tmp_path: Path, name: str) -> None:
    async def story(directory: DirectoryStore, source: Path) -> None:
        with pytest.raises(store.Invalid):
            await directory.create(CILIUM_NODES, body(CILIUM_NODES, name))

    run(tmp_path, story)


def test_events_are_logged_and_a_missing_directory_is_named(tmp_path: Path) -> None:
    async def story(directory: DirectoryStore, source: Path) -> None:
        await directory.create(EVENTS, body(EVENTS, "e", reason="R"), namespace="default")
        assert await names(directory, EVENTS) == []

    run(tmp_path, story)

    async def missing() -> None:
        with pytest.raises(store.Invalid, match="is not a directory"):
            await DirectoryStore(tmp_path / "none", tmp_path / "state").__aenter__()

    asyncio.run(missing())


def test_a_group_of_prefixes_may_be_written_in_either_version(tmp_path: Path) -> None:
    for number, version in enumerate(("v2alpha1", "v2")):
        (tmp_path / f"{version}.yaml").write_text(
            f"{{apiVersion: cilium.io/{version}, kind: CiliumCIDRGroup, metadata: {{name: g{number}}},"
            " spec: {externalCIDRs: [10.0.0.0/8]}}"
        )
    manifests = Manifests(tmp_path)
    manifests.scan(settled=False)
    found, problems = manifests.objects()
    assert not problems
    assert sorted(name for _, name in found[store.CILIUM_CIDR_GROUPS]) == ["g0", "g1"]


def multiplied(levels: int) -> str:
    """A pod whose annotation-like field stands for ten to the power of `levels` letters."""
    lines = ["a0: &a0 [" + ", ".join("x" * 10) + "]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return POD + "\n".join(lines) + "\n"


NEST = 40_000
TOO_DEEP = {
    "lists": "[" * NEST,
    "mappings": "{a: " * NEST,
    "items": "- " * NEST,
    "keys": "? " * NEST,
    "blocks": "\n".join(" " * level + "a:" for level in range(2000)),
}


@pytest.mark.parametrize("text", TOO_DEEP.values(), ids=TOO_DEEP.keys())
def test_what_is_nested_too_deep_is_a_problem_and_not_the_end(text: str) -> None:
    found, (problem,) = parse("a.yaml", text.encode())
    assert found == [] and "nested deeper than 200 levels" in problem.sentence


def test_aliases_that_multiply_are_a_problem() -> None:
    found, (problem,) = parse("a.yaml", multiplied(9).encode())
    assert found == [] and "write out what is meant" in problem.sentence
    assert [manifest.key for manifest in parse("a.yaml", multiplied(3).encode())[0]] == [("default", "web")]


@pytest.mark.parametrize("text", ["&a [*a]", "a: &a {b: [*a]}", "&a {b: *a}"])
def test_an_alias_of_what_it_is_in_is_a_problem(text: str) -> None:
    _, (problem,) = parse("a.yaml", text.encode())
    assert "an alias stands for what it is in" in problem.sentence
