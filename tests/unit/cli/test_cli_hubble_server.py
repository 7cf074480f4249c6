"""The way to a server: TLS, tokens and passwords; and what shells offer after asking it."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from cilia.cli import completing_flows
from cilia.cli.errors import UserError
from cilia.cli.hubble_server import META, ServerSettings, authorization
from cilia.cli.observe import observe
from cilia.cli.observers import list_app, watch_app
from cilia.hubble.client import unreachable
from cilia.hubble.rpc.calls import Call
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.hubble.rpc.server import Server
from cilia.kit.tls import ServerTls
from cilia.proto.observer import observer_pb2
from tests.support.hubble import Beside, beside, flow
from tests.support.hubble_tls import SERVER_NAME, Authority

pytestmark = pytest.mark.timeout(60)


class Door:
    """An observer behind TLS, and files for its clients."""

    def __init__(self, running: Beside, directory: Path) -> None:
        authority = Authority()
        self.server = Server({**running.observer.methods(), "/observer.Observer/GetNodes": self.nodes})
        tls = ServerTls(authority.write(directory / "server", authority.server()))
        self.port: int = running.run(self.server.listen_tcp("127.0.0.1", 0, tls))
        self.client = authority.write(directory / "client", authority.client())
        self.seen = ""

    async def nodes(self, _data: bytes, call: Call) -> None:
        self.seen = call.headers.get("authorization", "")
        if not self.seen:
            raise RpcError(Code.UNAUTHENTICATED, "this relay wants to know who you are")
        await call.send([observer_pb2.GetNodesResponse().SerializeToString()])

    def flags(self) -> dict[str, str]:
        return {
            "--server": f"127.0.0.1:{self.port}",
            "--tls-ca-cert-files": str(self.client.bundles[0]),
            "--tls-client-cert-file": str(self.client.certificate),
            "--tls-client-key-file": str(self.client.key),
            "--tls-server-name": SERVER_NAME,
        }


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    with beside(tmp_path_factory.mktemp("door") / "hubble.sock") as running:
        running.append(flow(1), flow(2))
        yield running


@pytest.fixture(scope="module")
def door(running: Beside, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    door = Door(running, tmp_path_factory.mktemp("files"))
    yield door
    running.run(door.server.close())


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUBBLE_SERVER", raising=False)


TLS_FLAGS = ["--tls-ca-cert-files", "--tls-client-cert-file", "--tls-client-key-file", "--tls-server-name"]


def words(flags: dict[str, str]) -> list[str]:
    return [part for pair in flags.items() for part in pair]


def test_by_flags(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    observe(words(door.flags()), standalone_mode=False)
    assert capsys.readouterr().err == "2 flows, complete\n"


def test_by_the_environment(
    door: Door, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in door.flags().items():
        monkeypatch.setenv(f"HUBBLE_{name.strip('-').replace('-', '_').upper()}", value)
    observe(["--last", "1"], standalone_mode=False)
    assert capsys.readouterr().err == "1 flow, complete\n"


def test_an_insecure_client_asks_no_names(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    flags = door.flags()
    del flags["--tls-ca-cert-files"], flags["--tls-server-name"]
    observe([*words(flags), "--tls-allow-insecure"], standalone_mode=False)
    assert capsys.readouterr().err == "2 flows, complete\n"


@pytest.mark.parametrize(
    ("without", "words_of_error"),
    [
        (["--tls-server-name"], "certificate is refused.*mismatch"),
        (["--tls-ca-cert-files"], r"certificate is refused.*authority\. The flags are --tls-ca"),
        (["--tls-client-cert-file", "--tls-client-key-file"], "refused this side.*certificate required"),
        (["--tls-client-key-file"], "needs its key"),
        (TLS_FLAGS, "If it speaks TLS, add --tls"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(door: Door, without: list[str], words_of_error: str) -> None:
    flags = {name: value for name, value in door.flags().items() if name not in without}
    with pytest.raises(UserError, match=words_of_error):
        observe(words(flags), standalone_mode=False)


def test_what_only_a_node_knows(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CILIA_HUBBLE_SOCKET", raising=False)
    with pytest.raises(
        UserError, match=r"no method .*may be a relay.* --server unix:///run/cilia/hubble\.sock"
    ):
        watch_app(["peers", *words(door.flags())], standalone_mode=False)


def test_a_token_is_sent(door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--token-file"):
        list_app(["nodes", *words(door.flags())], standalone_mode=False)
    token = tmp_path / "token"
    token.write_text("abc.def\n")
    list_app(["nodes", *words(door.flags()), "--token-file", str(token)], standalone_mode=False)
    assert door.seen == "Bearer abc.def"
    assert "no nodes" in capsys.readouterr().out
    name = ["--basic-auth-username", "me", "--basic-auth-password", "p:w"]
    list_app(["nodes", *words(door.flags()), *name], standalone_mode=False)
    assert base64.b64decode(door.seen.removeprefix("Basic ")) == b"me:p:w"


@pytest.mark.parametrize("content", ["", "two words", "\n"])
def test_a_file_without_a_token(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(UserError, match="no token"):
        authorization(ServerSettings(token_file=str(file)))


def context_for(server: str) -> typer.Context:
    ctx = typer.Context(click.Command("observe"))
    ctx.meta[META] = {"server": server}
    return ctx


def test_shells_offer_what_the_server_knows(running: Beside) -> None:
    ctx = context_for(running.target)
    assert completing_flows.namespaces(ctx, "") == ["demo"]
    assert completing_flows.pods(ctx, "demo/c") == ["demo/client-5f"]
    assert completing_flows.nodes(ctx, "") == ["default/worker-1"]


def test_shells_offer_nothing_without_a_server(tmp_path: Path) -> None:
    assert completing_flows.pods(context_for(f"unix:{tmp_path}/none.sock"), "") == []
    assert completing_flows.pods(context_for("127.0.0.1:1"), "") == []


@pytest.mark.parametrize(
    ("complete", "typed", "offered"),
    [
        (completing_flows.verdicts, "dr", ["DROPPED"]),
        (completing_flows.verdicts, "DROPPED,FOR", ["DROPPED,FORWARDED"]),
        (completing_flows.identities, "kube", ["kube-apiserver"]),
        (completing_flows.types, "trace:to-o", ["trace:to-overlay"]),
        (completing_flows.fields, "source.pod", ["source.pod_name"]),
        (completing_flows.fields, "verdict,l4.TC", ["verdict,l4.TCP"]),
        (completing_flows.fields, "nothing.", []),
        (completing_flows.drop_reasons, "no_mapp", ["NO_MAPPING_FOR_NAT_MASQUERADE"]),
    ],
)
def test_fixed_words(complete: object, typed: str, offered: list[str]) -> None:
    assert callable(complete)
    assert complete(typed) == offered


@pytest.mark.parametrize(
    ("server", "sentence"),
    [
        ("", "is no address of a server: write unix:///path or host:port"),
        ("localhost:abc", "is no address of a server"),
        ("localhost:99999", "is no address of a server"),
        ("http://localhost:4245", "is no address of a server"),
        ("unix:///nowhere/hubble.sock", r"no socket unix:///nowhere/hubble\.sock: is the agent running"),
        ("nowhere.invalid:4245", "no address is known for the host"),
        ("127.0.0.1:1", r"nobody answers at 127\.0\.0\.1:1.*Name another server with --server"),
    ],
)
def test_where_nobody_can_be_asked(server: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as told:
        observe(["--server", server], standalone_mode=False)
    assert "Errno" not in str(told.value)


def test_a_socket_of_others() -> None:
    assert "try as root" in unreachable("/run/hubble.sock", PermissionError(13, "Permission denied"), 5.0)
    assert "within 5 s" in unreachable("relay:4245", TimeoutError("timed out"), 5.0)


def test_tls_to_a_server_of_plain_text() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"tls://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=r"did not answer within 0\.3 s.* leave out tls://"):
            observe(["--server", target, "--timeout", "300ms"], standalone_mode=False)
