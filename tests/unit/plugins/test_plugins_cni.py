"""The plugin as a process against the agent's CNI server, and against nobody."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.api import sockets
from cilia.api.backend import CniRequest
from cilia.api.cni_server import CniServer
from cilia.plugins.cni import delete_queue
from cilia.plugins.cni.install import InstallError, install_plugin, remove_plugin
from cilia.wire import cni

RESULT = cni.Result(
    interfaces=(
        cni.Interface(name="lxc1", mac="02:00:00:00:00:01"),
        cni.Interface(name="eth0", mac="02:00:00:00:00:02", sandbox="/run/netns/a", mtu=1450),
    ),
    ips=(
        cni.Address(address="10.0.0.7/32", gateway="10.0.0.1", interface=1),
        cni.Address(address="fd00::7/128", gateway="fd00::1", interface=1),
    ),
    routes=(cni.Route(dst="0.0.0.0/0", gw="10.0.0.1", mtu=1450),),
)
CONFIG = b'{"cniVersion":"1.1.0","name":"cilia","type":"cilia-cni"}'


class FakeBackend:
    """Remembers calls; answers ADD with RESULT."""

    def __init__(self) -> None:
        self.requests: list[CniRequest] = []
        self.failure: Exception | None = None
        self.gate: asyncio.Event | None = None

    async def cni(self, request: CniRequest) -> cni.Result | None:
        self.requests.append(request)
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return RESULT if isinstance(request, cni.Add) else None


class Node:
    """A directory with an installed plugin, and the agent's server when it is up."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "run" / "cni.sock"
        self.queue = directory / "run" / "deleteQueue"
        (directory / "run").mkdir(mode=0o700)
        self.plugin = install_plugin(directory / "bin", self.socket, self.queue)
        self.backend = FakeBackend()

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[CniServer]:
        server = CniServer(self.backend, self.socket)
        await server.start()
        try:
            yield server
        finally:
            await server.stop()

    def call(self, command: str, stdin: bytes = CONFIG, **variables: str) -> tuple[int, bytes]:
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": "/run/netns/a",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=demo;K8S_POD_NAME=web-0;K8S_POD_UID=u-1",
            "HOME": "/nowhere",
        } | variables
        done = subprocess.run(
            [self.plugin], input=stdin, env=environment, capture_output=True, timeout=30, check=False
        )
        assert done.stderr == b""
        return done.returncode, done.stdout

    async def acall(self, command: str, stdin: bytes = CONFIG, **variables: str) -> tuple[int, bytes]:
        return await asyncio.to_thread(self.call, command, stdin, **variables)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    yield Node(tmp_path)


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


def code(output: bytes) -> int:
    return cni.parse_error_code(output)


def test_add_travels_to_the_backend_and_its_result_back(node: Node) -> None:
    async def story() -> None:
        async with node.agent():
            exit_code, output = await node.acall("ADD")
        assert exit_code == 0
        document = msgspec.json.decode(output)
        assert document["cniVersion"] == "1.1.0"
        assert document["interfaces"][1]["mtu"] == 1450
        assert document["ips"][0] == {"address": "10.0.0.7/32", "gateway": "10.0.0.1", "interface": 1}
        (request,) = node.backend.requests
        assert isinstance(request, cni.Add)
        assert request.pod == cni.Pod(namespace="demo", name="web-0", uid="u-1")
        assert (request.container_id, request.interface, request.netns) == ("c1", "eth0", "/run/netns/a")

    run(story)


def test_only_cni_variables_are_forwarded(node: Node) -> None:
    seen: list[bytes] = []

    async def story() -> None:
        async with node.agent() as server:
            serve = server.serve

            async def spy(environment: bytes, stdin: bytes) -> cni.Answer:
                seen.append(environment)
                return await serve(environment, stdin)

            server.serve = spy  # type: ignore[method-assign]
            await node.acall("ADD")

    run(story)
    assert b"HOME" not in seen[0]
    assert b"CNI_COMMAND=ADD" in seen[0]


def test_check_status_gc_and_delete_print_nothing(node: Node) -> None:
    async def story() -> None:
        previous = cni.encode_result(RESULT, "1.1.0")
        check = CONFIG[:-1] + b',"prevResult":' + previous + b"}"
        garbage = CONFIG[:-1] + b',"cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]}'
        async with node.agent():
            assert await node.acall("CHECK", check) == (0, b"")
            assert await node.acall("STATUS") == (0, b"")
            assert await node.acall("GC", garbage) == (0, b"")
            assert await node.acall("DEL") == (0, b"")
        check_request, status, gc, delete = node.backend.requests
        assert isinstance(check_request, cni.Check)
        assert check_request.previous == RESULT
        assert isinstance(status, cni.Status)
        assert isinstance(gc, cni.CollectGarbage)
        assert gc.valid == {("c1", "eth0")}
        assert isinstance(delete, cni.Delete)

    run(story)


def test_failures_come_back_as_error_objects_in_the_callers_version(node: Node) -> None:
    async def story() -> None:
        async with node.agent():
            node.backend.failure = cni.CniError(cni.Code.NO_ADDRESS, "The pool is empty; add a CIDR.")
            exit_code, output = await node.acall("ADD", CONFIG.replace(b"1.1.0", b"0.4.0"))
            assert exit_code == 1
            assert msgspec.json.decode(output) == {
                "cniVersion": "0.4.0",
                "code": 101,
                "msg": "The pool is empty; add a CIDR.",
            }
            node.backend.failure = RuntimeError("boom")
            exit_code, output = await node.acall("ADD")
            assert (exit_code, code(output)) == (1, cni.Code.INTERNAL)
            assert b"boom" not in output
            exit_code, output = await node.acall("ADD", b"{")
            assert (exit_code, code(output)) == (1, cni.Code.DECODING_FAILURE)
            exit_code, output = await node.acall("FLY")
            assert (exit_code, code(output)) == (1, cni.Code.INVALID_ENVIRONMENT)

    run(story)


def test_version_needs_no_agent(node: Node) -> None:
    exit_code, output = node.call("VERSION", b'{"cniVersion":"1.0.0"}')
    assert exit_code == 0
    assert msgspec.json.decode(output)["supportedVersions"] == list(cni.SUPPORTED_VERSIONS)


def test_without_an_agent_the_runtime_is_told_to_come_back(node: Node) -> None:
    for command, expected in (("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)):
        exit_code, output = node.call(command)
        assert (exit_code, code(output)) == (1, expected)
        assert b"cilia-agent" in output


def test_a_dead_agents_socket_counts_as_no_agent(node: Node) -> None:
    async def story() -> None:
        async with node.agent() as server:
            node.socket.rename(node.socket.with_name("kept"))
        node.socket.with_name("kept").rename(node.socket)
        assert not server._calls

    run(story)
    exit_code, output = node.call("ADD")
    assert (exit_code, code(output)) == (1, 11)


def test_closed_standard_streams_are_no_traceback(node: Node) -> None:
    for redirect in ("<&-", ">&-", "<&- >&-"):
        done = subprocess.run(
            ["/bin/sh", "-c", f"exec {node.plugin} {redirect}"],
            env={"CNI_COMMAND": "ADD"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (1, b"")
        assert code(done.stdout) == (5 if redirect == "<&-" else 0)


def test_oversized_input_is_refused(node: Node) -> None:
    exit_code, output = node.call("ADD", b" " * (cni.INPUT_LIMIT + 70000))
    assert (exit_code, code(output)) == (1, 5)


def test_a_deferred_delete_is_replayed_once(node: Node) -> None:
    assert node.call("DEL") == (0, b"")
    assert node.call("DEL") == (0, b"")
    assert node.call("DEL", CNI_CONTAINERID="c2") == (0, b"")
    assert len(delete_queue.waiting(node.queue)) == 2

    async def story() -> None:
        async with node.agent() as server:
            assert await delete_queue.replay(node.queue, server.serve) == 2
            assert await delete_queue.replay(node.queue, server.serve) == 0

    run(story)
    assert [r.container_id for r in node.backend.requests if isinstance(r, cni.Delete)] == ["c1", "c2"]
    assert delete_queue.waiting(node.queue) == []


def test_a_deferred_delete_that_fails_waits_and_a_broken_one_is_set_aside(node: Node) -> None:
    node.call("DEL")
    node.call("DEL", b"not json", CNI_CONTAINERID="c2")
    (node.queue / "rubbish").write_bytes(b"rubbish")

    async def story() -> None:
        async with node.agent() as server:
            node.backend.failure = cni.CniError(cni.Code.TRY_AGAIN_LATER, "Not yet; try again.")
            assert await delete_queue.replay(node.queue, server.serve) == 0
            assert len(delete_queue.waiting(node.queue)) == 1
            node.backend.failure = None
            assert await delete_queue.replay(node.queue, server.serve) == 1

    run(story)
    assert sorted(p.name for p in node.queue.iterdir() if p.suffix == ".rejected") == [
        b"c2".hex() + "-" + b"eth0".hex() + ".rejected",
        "rubbish.rejected",
    ]


def test_the_queue_is_bounded_but_repeats_are_taken(node: Node) -> None:
    node.call("DEL")
    for number in range(1024):
        (node.queue / f"x{number}").touch()
    exit_code, output = node.call("DEL", CNI_CONTAINERID="c2")
    assert (exit_code, code(output)) == (1, 11)
    assert node.call("DEL") == (0, b"")


def test_a_delete_that_cannot_be_queued_is_not_called_done(node: Node) -> None:
    for path in node.queue.iterdir():
        path.unlink()
    node.queue.rmdir()
    node.queue.touch()
    exit_code, output = node.call("DEL")
    assert (exit_code, code(output)) == (1, 11)
    exit_code, output = node.call("DEL", CNI_CONTAINERID="")
    assert (exit_code, code(output)) == (1, 4)


def test_a_delete_that_waits_for_the_lock_reaches_the_agent_that_came_up(node: Node) -> None:
    """The plugin found no agent, and one started before the plugin had the queue's lock."""
    answers: list[tuple[int, bytes]] = []

    async def story() -> None:
        with delete_queue.locked(node.queue):
            caller = threading.Thread(target=lambda: answers.append(node.call("DEL")))
            caller.start()
            await asyncio.to_thread(_wait_for_lock_waiter)
            server = CniServer(node.backend, node.socket)
            await server.start()
        await asyncio.to_thread(caller.join)
        await server.stop()

    run(story)
    assert answers == [(0, b"")]
    assert delete_queue.waiting(node.queue) == []
    assert len(node.backend.requests) == 1


def _wait_for_lock_waiter() -> None:
    """Until /proc/locks shows a process that waits for a record lock this process holds."""
    holder = f" {os.getpid()} "
    for _ in range(500):
        lines = Path("/proc/locks").read_text().splitlines()
        held = {line.split(":")[0] for line in lines if "->" not in line and holder in line}
        if any("->" in line and line.split(":")[0] in held for line in lines):
            return
        threading.Event().wait(0.01)
    raise AssertionError("no plugin waits for the lock")


def test_an_agent_that_dies_during_a_call_counts_as_away(node: Node) -> None:
    with sockets.bind_private(node.socket) as listener:
        listener.setblocking(True)

        def die_twice() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                connection.recv(10)
                connection.close()

        agent = threading.Thread(target=die_twice)
        agent.start()
        exit_code, output = node.call("ADD")
        assert (exit_code, code(output)) == (1, 11)
        assert node.call("DEL") == (0, b"")
        agent.join()
    assert len(delete_queue.waiting(node.queue)) == 1


def test_an_agent_that_is_not_ready_leaves_deletions_to_the_queue(node: Node) -> None:
    async def story() -> None:
        async with node.agent() as server:
            node.backend.failure = cni.CniError(cni.Code.NOT_AVAILABLE, "Not ready; try again.")
            assert (await node.acall("DEL")) == (0, b"")
            exit_code, output = await node.acall("STATUS")
            assert (exit_code, code(output)) == (1, 50)
            assert await delete_queue.replay(node.queue, server.serve) == 0
            node.backend.failure = None
            assert await delete_queue.replay(node.queue, server.serve) == 1

    run(story)


def test_strangers_are_turned_away(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "trusted_users", lambda: frozenset({4_000_000}))

    async def story() -> None:
        async with node.agent():
            exit_code, output = await node.acall("ADD")
        assert exit_code == 1
        assert b"Only root" in output
        assert node.backend.requests == []

    run(story)


def test_fifty_pods_at_once(node: Node) -> None:
    async def story() -> None:
        async with node.agent():
            calls = [node.acall("ADD", CNI_CONTAINERID=f"c{number}") for number in range(50)]
            answers = await asyncio.gather(*calls)
        assert {exit_code for exit_code, _ in answers} == {0}
        assert len(node.backend.requests) == 50

    run(story)


def test_calls_for_one_container_are_served_in_turn(node: Node) -> None:
    async def story() -> None:
        node.backend.gate = asyncio.Event()
        async with node.agent() as server:
            environment = b"CNI_COMMAND=ADD\0CNI_CONTAINERID=c1\0CNI_NETNS=/a\0CNI_IFNAME=eth0"
            first = asyncio.ensure_future(server.serve(environment, CONFIG))
            second = asyncio.ensure_future(server.serve(environment.replace(b"ADD", b"DEL"), CONFIG))
            other = asyncio.ensure_future(server.serve(environment.replace(b"=c1", b"=c2"), CONFIG))
            for _ in range(5):
                await asyncio.sleep(0)
            assert [type(r) for r in node.backend.requests] == [cni.Add, cni.Add]
            node.backend.gate.set()
            await asyncio.gather(first, second, other)
            assert isinstance(node.backend.requests[-1], cni.Delete)
            assert server._locks == {}

    run(story)


def test_garbage_on_the_socket_ends_that_connection_only(node: Node) -> None:
    async def story() -> None:
        async with node.agent():
            for garbage in (
                b"",
                b"GET / HTTP/1.1\r\n\r\n" * 3,
                cni.MAGIC + b"\xff" * 8,
                cni.MAGIC + b"\0" * 7,
            ):
                reader, writer = await asyncio.open_unix_connection(node.socket)
                writer.write(garbage)
                writer.write_eof()
                answer = await reader.read()
                assert answer == b"" or answer[0] == 1
                writer.close()
            assert (await node.acall("STATUS")) == (0, b"")

    run(story)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=80), st.sampled_from([b"ADD", b"DEL", b"GC", b"STATUS"]))
def test_any_bytes_get_an_answer(environment: bytes, stdin: bytes, command: bytes) -> None:
    server = CniServer(FakeBackend(), Path("/nowhere"))
    for block in (environment, b"CNI_COMMAND=" + command + b"\0" + environment):
        answer = asyncio.run(server.serve(block, stdin))
        assert answer.exit_code == 1
        assert cni.parse_error_code(answer.output) in (1, 4, 6, 7)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_frame_or_not(data: bytes) -> None:
    for frame in (data, cni.MAGIC + data):
        try:
            environment, stdin = cni.parse_frame(frame)
        except cni.FrameError:
            continue
        assert len(environment) + len(stdin) + cni.HEADER_SIZE == len(frame)


def test_an_unsuitable_place_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="107 bytes"):
        install_plugin(tmp_path / "bin", Path("/" + "x" * 120), tmp_path / "queue")
    with pytest.raises(InstallError, match="#! line"):
        install_plugin(tmp_path / "bin", Path("/s"), tmp_path / "queue", python="/a b/python")
    (tmp_path / "file").touch()
    with pytest.raises(InstallError, match="writable"):
        install_plugin(tmp_path / "file", Path("/s"), tmp_path / "queue")


def test_an_interpreter_with_other_bytecode_runs_the_source(node: Node) -> None:
    text = node.plugin.read_text()
    other = text.replace(repr(importlib.util.MAGIC_NUMBER), "b'other'").replace("CODE = b'", "CODE = b'junk")
    assert other != text
    node.plugin.write_text(other)
    status, output = node.call("VERSION")
    assert (status, output) == (0, cni.encode_versions())


def test_remove_is_repeatable(node: Node) -> None:
    remove_plugin(node.plugin.parent)
    remove_plugin(node.plugin.parent)
    assert not node.plugin.exists()
