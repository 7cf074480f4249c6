"""Starting the embedded API server as a process, and speaking plain HTTP to any API server.

The client is deliberately simple (``http.client``, one connection per call): the conformance tests must not
depend on the project's own Kubernetes client.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import select
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import yaml

from cilia.cluster.embedded.auth import Role
from cilia.cluster.embedded.credentials import issue_token, make_authority, write_kubeconfig

START_SECONDS = 90.0


class Answer:
    """An HTTP answer, read whole."""

    def __init__(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.code = code
        self.body = body
        self.headers = headers

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One user of one server."""

    def __init__(self, kubeconfig: Path) -> None:
        content = yaml.safe_load(kubeconfig.read_text())
        name = content["current-context"]
        context = next(c["context"] for c in content["contexts"] if c["name"] == name)
        cluster = next(c["cluster"] for c in content["clusters"] if c["name"] == context["cluster"])
        user = next(u["user"] for u in content["users"] if u["name"] == context["user"])
        self.kubeconfig = kubeconfig
        self.server = str(cluster["server"])
        self._token = user.get("token", "")
        self._tls = _context(cluster, user)

    def connect(self) -> http.client.HTTPSConnection:
        where = urlsplit(self.server)
        return http.client.HTTPSConnection(
            where.hostname or "", where.port or 443, context=self._tls, timeout=60
        )

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        kind: str = "application/json",
        accept: str = "application/json",
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request; ``body`` is JSON or bytes."""
        connection = self.connect()
        sent = {"Accept": accept, "Authorization": f"Bearer {self._token}", **(headers or {})}
        if body is not None:
            sent["Content-Type"] = kind
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, _with_query(path, query), body, {k: v for k, v in sent.items() if v})
            response = connection.getresponse()
            return Answer(response.status, response.read(), dict(response.getheaders()))
        finally:
            connection.close()

    def get(self, path: str, **query: Any) -> Answer:
        return self.call("GET", path, query=query)

    def post(self, path: str, body: Any, **query: Any) -> Answer:
        return self.call("POST", path, body, query=query)

    def put(self, path: str, body: Any, **query: Any) -> Answer:
        return self.call("PUT", path, body, query=query)

    def merge(self, path: str, body: Any, **query: Any) -> Answer:
        return self.call("PATCH", path, body, kind="application/merge-patch+json", query=query)

    def delete(self, path: str, body: Any = None, **query: Any) -> Answer:
        return self.call("DELETE", path, body, query=query)

    def watch(self, path: str, *, accept: str = "application/json", **query: Any) -> Watch:
        return Watch(self, _with_query(path, {"watch": "true", **query}), accept, self._token)

    def until_gone(self, path: str, seconds: float = 60.0) -> None:
        """Wait until a path answers 404."""
        end = time.monotonic() + seconds
        while self.get(path).code != 404:
            assert time.monotonic() < end, f"{path} is still there after {seconds} s"
            time.sleep(0.02)


class Watch:
    """An open watch; iterate for events, or take the next one."""

    def __init__(self, client: Client, path: str, accept: str, token: str) -> None:
        self._connection = client.connect()
        self._connection.request("GET", path, headers={"Accept": accept, "Authorization": f"Bearer {token}"})
        self._response = self._connection.getresponse()
        self.code = self._response.status

    def next(self) -> Any:
        line = self._response.readline()
        return json.loads(line) if line else None

    def take(self, count: int) -> list[Any]:
        return [self.next() for _ in range(count)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.next, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()


def _with_query(path: str, query: dict[str, Any] | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _context(cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
    data = cluster.get("certificate-authority-data")
    context = ssl.create_default_context(
        cafile=cluster.get("certificate-authority"), cadata=base64.b64decode(data).decode() if data else None
    )
    if "client-certificate-data" in user:
        with tempfile.TemporaryDirectory() as scratch:
            pair = []
            for name in ("client-certificate-data", "client-key-data"):
                path = Path(scratch) / name
                path.touch(mode=0o600)
                path.write_bytes(base64.b64decode(user[name]))
                pair.append(str(path))
            context.load_cert_chain(*pair)
    elif "client-certificate" in user:
        context.load_cert_chain(user["client-certificate"], user["client-key"])
    return context


class Server:
    """An embedded API server in its own process."""

    def __init__(self, state: Path, process: subprocess.Popen[bytes], address: str) -> None:
        self.state = state
        self.process = process
        self.address = address
        self.url = f"https://{address}"

    def client(self, user: str = "admin", role: Role = "admin", node: str = "") -> Client:
        """A client with a new token of its own."""
        ca = make_authority(self.state).ca
        token = issue_token(self.state, user, role, node)
        return Client(write_kubeconfig(self.state / f"{user}.kubeconfig", self.url, ca, token, user))


def command(*arguments: object) -> list[str]:
    """The command line of ``cilia-apiserver``."""
    return [sys.executable, "-m", "cilia.apps.apiserver", *map(str, arguments)]


@contextmanager
def serving(state: Path, *arguments: object, address: str = "127.0.0.1:0") -> Iterator[Server]:
    """Run a server over a state directory until the block ends."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        command("--state-dir", state, "--listen", address, *arguments),
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], START_SECONDS)[0]:
            raise AssertionError("the API server did not become ready")
        line = process.stdout.readline().decode()
        assert line.startswith("ready on "), f"the API server did not start (exit code {process.wait(5)})"
        yield Server(state, process, line.removeprefix("ready on ").strip())
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
