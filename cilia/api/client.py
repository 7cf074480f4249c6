"""A small blocking client of the agent's REST API, for commands that live a moment.

Built on http.client, because importing anything bigger takes longer than the request.
"""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode

import msgspec

from cilia.api.types import (
    CheckRequest,
    CookieView,
    EndpointPolicy,
    EndpointView,
    Fault,
    IdentityView,
    IpEntry,
    LocalService,
    MapDump,
    MapView,
    MetricForecast,
    NatUse,
    NodeView,
    OptionChange,
    PolicyList,
    PolicyRevision,
    PolicyUsage,
    SelectorView,
    ServiceList,
    Setting,
    StatusResponse,
    VerifyReport,
)
from cilia.model.explain import CheckReport, Explanation

SOCKET_VARIABLE = "CILIA_AGENT_SOCKET"
DEFAULT_SOCKET = "/run/cilia/agent.sock"
EXPLAIN_SECONDS = 30.0
CHECK_SECONDS = 120.0
"""What these may take beyond the usual."""

T = TypeVar("T")


class AgentError(Exception):
    """The agent can't be asked or refuses; the text is one sentence with what to do next.

    `status` is the HTTP status, 0 when there was no answer.
    """

    def __init__(self, sentence: str, status: int = 0) -> None:
        super().__init__(sentence)
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path
        self._timeout = timeout

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise


class AgentClient:
    """Asks the agent behind `path` (default: $CILIA_AGENT_SOCKET, then /run/cilia/agent.sock)."""

    def __init__(self, path: Path | str | None = None, timeout: float = 30.0) -> None:
        self.path = str(path or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET)
        self.timeout = timeout

    def status(self) -> StatusResponse:
        return self._get("/v1/healthz", StatusResponse)

    def endpoints(self) -> list[EndpointView]:
        return self._get("/v1/endpoint", list[EndpointView])

    def endpoint(self, reference: str) -> EndpointView:
        """`reference`: a number, container-id:ID or pod-name:NAMESPACE/NAME."""
        return self._get(f"/v1/endpoint/{quote(reference)}", EndpointView)

    def endpoint_policy(self, reference: str) -> EndpointPolicy:
        return self._get(f"/v1/endpoint/{quote(reference)}/policy", EndpointPolicy)

    def identities(self) -> list[IdentityView]:
        return self._get("/v1/identity", list[IdentityView])

    def identity(self, number: int) -> IdentityView:
        return self._get(f"/v1/identity/{number}", IdentityView)

    def addresses(self) -> list[IpEntry]:
        return self._get("/v1/ip", list[IpEntry])

    def policies(self) -> PolicyList:
        return self._get("/v1/policy", PolicyList)

    def wait_policy(self, revision: int, timeout: float) -> PolicyRevision:
        """Wait until all endpoints enforce `revision`, at most `timeout` seconds (up to 300)."""
        query = urlencode({"revision": revision, "timeout": timeout})
        return self._get(f"/v1/policy/wait?{query}", PolicyRevision, extra=timeout)

    def policy_usage(self) -> PolicyUsage:
        return self._get("/v1/policy/usage", PolicyUsage)

    def selectors(self) -> list[SelectorView]:
        return self._get("/v1/policy/selectors", list[SelectorView])

    def explain(self, source: str, destination: str, port: str) -> Explanation:
        """Why packets from one end to the other pass or not; ends as `cilia policy explain` takes them."""
        query = urlencode({"from": source, "to": destination, "port": port})
        return self._get(f"/v1/policy/explain?{query}", Explanation, extra=EXPLAIN_SECONDS)

    def explain_flow(self, uuid: str) -> Explanation:
        """The same for a flow of this node's Hubble."""
        query = urlencode({"flow": uuid})
        return self._get(f"/v1/policy/explain?{query}", Explanation, extra=EXPLAIN_SECONDS)

    def check(self, request: CheckRequest) -> CheckReport:
        """What proposed policies would change."""
        return self._send("POST", "/v1/policy/check", request, CheckReport, extra=CHECK_SECONDS)

    def cookie(self, number: int) -> CookieView:
        return self._get(f"/v1/cookie/{number}", CookieView)

    def metrics_forecast(self, metrics: str) -> list[MetricForecast]:
        """How many series metrics would have; `metrics` as --hubble-metrics has them."""
        query = urlencode({"metrics": metrics})
        return self._get(f"/v1/hubble/metrics/forecast?{query}", list[MetricForecast])

    def maps(self) -> list[MapView]:
        return self._get("/v1/map", list[MapView])

    def map(self, name: str, limit: int = 10_000, *, raw: bool = False) -> MapDump:
        """Elements of a map; `raw`: numbers as the programs have them, where there are names."""
        query = urlencode({"limit": limit, **({"raw": "true"} if raw else {})})
        return self._get(f"/v1/map/{quote(name, safe='')}?{query}", MapDump)

    def nodes(self) -> list[NodeView]:
        return self._get("/v1/node", list[NodeView])

    def settings(self) -> list[Setting]:
        return self._get("/v1/config", list[Setting])

    def change_settings(self, change: OptionChange) -> list[Setting]:
        """Change settings of the running agent; returns all, once the kernel enforces the new ones."""
        return self._send("PATCH", "/v1/config", change, list[Setting])

    def endpoint_settings(self, reference: str) -> list[Setting]:
        return self._get(f"/v1/endpoint/{quote(reference)}/config", list[Setting])

    def change_endpoint(self, reference: str, change: OptionChange) -> list[Setting]:
        """The same for what can be changed of one endpoint."""
        return self._send("PATCH", f"/v1/endpoint/{quote(reference)}/config", change, list[Setting])

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Compare what is intended with what the kernel has, and put it right if asked to."""
        path = "/v1/verify?repair=true" if repair else "/v1/verify"
        return self._decoded(self._request(path, 60.0, "POST"), VerifyReport)

    def services(self) -> ServiceList:
        """All frontends, and all objects that are wrong in part."""
        return self._get("/v1/service", ServiceList)

    def service(self, reference: str) -> ServiceList:
        """`reference`: NAMESPACE/NAME, or ADDRESS:PORT[/PROTOCOL]."""
        return self._get(f"/v1/service/{quote(reference)}", ServiceList)

    def nat(self) -> NatUse:
        """Ports in use for translated sources."""
        return self._get("/v1/nat", NatUse)

    def local_services(self) -> list[LocalService]:
        """Services by hand."""
        return self._get("/v1/local-service", list[LocalService])

    def put_local_service(self, service: LocalService) -> LocalService:
        """Write or replace a service by hand; returns it in its one spelling."""
        return self._send("PUT", "/v1/local-service", service, LocalService)

    def delete_local_service(self, frontend: str) -> list[LocalService]:
        """Remove one; returns those that are left."""
        body = self._request(f"/v1/local-service/{quote(frontend)}", 0.0, "DELETE")
        return self._decoded(body, list[LocalService])

    def metrics(self) -> str:
        """Prometheus text."""
        return self._request("/metrics", 0.0).decode()

    def _get(self, path: str, kind: type[T], extra: float = 0.0) -> T:
        return self._decoded(self._request(path, extra), kind)

    def _send(self, method: str, path: str, content: object, kind: type[T], extra: float = 0.0) -> T:
        """Ask for a change, with a JSON body."""
        return self._decoded(self._request(path, extra, method, msgspec.json.encode(content)), kind)

    def _decoded(self, body: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise AgentError(
                f"The agent's answer makes no sense ({error}); use the CLI of the agent's own version."
            ) from error

    def _request(self, path: str, extra: float, method: str = "GET", content: bytes | None = None) -> bytes:
        connection = _UnixConnection(self.path, self.timeout + extra)
        try:
            connection.request(method, path, content, {"Connection": "close"})
            response = connection.getresponse()
            body = response.read()
        except TimeoutError as error:
            raise AgentError(f"The agent at {self.path} doesn't answer; look at its log.") from error
        except OSError as error:
            raise AgentError(self._unreachable(error)) from error
        except http.client.HTTPException as error:
            raise AgentError(
                f"What answers at {self.path} doesn't speak HTTP; point ${SOCKET_VARIABLE} at agent.sock."
            ) from error
        finally:
            connection.close()
        if response.status != 200:
            raise AgentError(_sentence(body, response.status), response.status)
        return body

    def _unreachable(self, error: OSError) -> str:
        if isinstance(error, FileNotFoundError):
            return (
                f"There is no agent at {self.path}; start cilia-agent, "
                f"or name its socket with --agent-socket or ${SOCKET_VARIABLE}."
            )
        if isinstance(error, PermissionError):
            return f"You may not use {self.path}; try again as root."
        if isinstance(error, ConnectionRefusedError):
            return f"The agent of {self.path} is not running; start cilia-agent."
        return f"The agent at {self.path} can't be asked ({error.strerror or error}); look at its log."


def _sentence(body: bytes, status: int) -> str:
    try:
        return msgspec.json.decode(body, type=Fault).error
    except (msgspec.MsgspecError, UnicodeError):
        return f"The agent answered with HTTP status {status}; look at its log."
