"""Who we are, now: tokens from text, files that rotate, and exec plugins, cached until they expire.

Source: Kubernetes reference, client authentication (v1): "client-go credential plugins".
"""

import asyncio
import base64
import os
from datetime import datetime
from pathlib import Path

import msgspec

from cilia.cluster.kube.kubeconfig import ConfigError, Endpoint, ExecSpec
from cilia.kit.clock import Clock

TOKEN_FILE_SECONDS = 60.0
"""How long a token read from a file is used: kubelets rotate tokens long before they expire."""

EXPIRY_MARGIN_SECONDS = 10.0
EXEC_TIMEOUT_SECONDS = 60.0


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """What a request shows: an Authorization header, a client certificate, or neither."""

    authorization: str | None = None
    client_certificate: bytes | None = None
    client_key: bytes | None = None


class _ExecStatus(msgspec.Struct, frozen=True, rename="camel"):
    expiration_timestamp: datetime | None = None
    token: str | None = None
    client_certificate_data: str | None = None
    client_key_data: str | None = None


class _ExecCredential(msgspec.Struct, frozen=True):
    status: _ExecStatus | None = None


class Credentials:
    """The current credential of an endpoint."""

    def __init__(self, endpoint: Endpoint, clock: Clock) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._lock = asyncio.Lock()
        self._cached: Credential | None = None
        self._until = 0.0

    def forget(self) -> None:
        """The server refused the credential: get a fresh one next time."""
        self._cached = None

    async def current(self) -> Credential:
        """Return the credential to use now; raises ConfigError."""
        async with self._lock:
            now = self._clock.wall()
            if self._cached is None or now >= self._until:
                self._cached, self._until = await self._fetch(now)
            return self._cached

    async def _fetch(self, now: float) -> tuple[Credential, float]:
        """Return a credential and the wall-clock second until which it may be used."""
        endpoint = self._endpoint
        if endpoint.token_file is not None:
            return self._with_certificate(
                f"Bearer {_token_of(endpoint.token_file)}"
            ), now + TOKEN_FILE_SECONDS
        if endpoint.token:
            return self._with_certificate(f"Bearer {endpoint.token}"), float("inf")
        if endpoint.username is not None:
            pair = base64.b64encode(f"{endpoint.username}:{endpoint.password or ''}".encode()).decode()
            return self._with_certificate(f"Basic {pair}"), float("inf")
        if endpoint.exec_spec is not None:
            return await self._run(endpoint.exec_spec)
        return self._with_certificate(None), float("inf")

    def _with_certificate(self, authorization: str | None) -> Credential:
        return Credential(
            authorization=authorization,
            client_certificate=self._endpoint.client_certificate,
            client_key=self._endpoint.client_key,
        )

    async def _run(self, spec: ExecSpec) -> tuple[Credential, float]:
        answer = await _exec(spec, _exec_info(spec, self._endpoint))
        if answer.token is None and answer.client_certificate_data is None:
            raise ConfigError(f"{spec.command} returned neither a token nor a client certificate")
        until = float("inf")
        if answer.expiration_timestamp is not None:
            until = answer.expiration_timestamp.timestamp() - EXPIRY_MARGIN_SECONDS
        return (
            Credential(
                authorization=f"Bearer {answer.token}" if answer.token else None,
                client_certificate=_encoded(answer.client_certificate_data),
                client_key=_encoded(answer.client_key_data),
            ),
            until,
        )


def _token_of(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token file {path} can't be read: {error}") from error
    if not token:
        raise ConfigError(f"token file {path} is empty")
    return token


def _encoded(text: str | None) -> bytes | None:
    return text.encode() if text is not None else None


def _exec_info(spec: ExecSpec, endpoint: Endpoint) -> str:
    """Return what a plugin finds in KUBERNETES_EXEC_INFO."""
    info: dict[str, object] = {"interactive": False}
    if spec.provide_cluster_info:
        cluster: dict[str, object] = {
            "server": endpoint.server,
            "insecure-skip-tls-verify": endpoint.insecure,
        }
        if endpoint.ca is not None:
            cluster["certificate-authority-data"] = base64.b64encode(endpoint.ca).decode()
        info["cluster"] = cluster
    body = {"apiVersion": spec.api_version, "kind": "ExecCredential", "spec": info}
    return msgspec.json.encode(body).decode()


async def _exec(spec: ExecSpec, info: str) -> _ExecStatus:
    try:
        process = await asyncio.create_subprocess_exec(
            spec.command,
            *spec.args,
            env={**os.environ, **spec.env, "KUBERNETES_EXEC_INFO": info},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        hint = f": {spec.install_hint}" if spec.install_hint else ""
        raise ConfigError(
            f"credential plugin {spec.command} can't be run ({error.strerror}){hint}"
        ) from error
    try:
        output, _ = await asyncio.wait_for(process.communicate(), EXEC_TIMEOUT_SECONDS)
    except TimeoutError as error:
        raise ConfigError(f"credential plugin {spec.command} did not answer in time") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise ConfigError(f"credential plugin {spec.command} failed with exit code {process.returncode}")
    try:
        answer = msgspec.json.decode(output, type=_ExecCredential)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"credential plugin {spec.command} printed no ExecCredential: {error}") from error
    return answer.status or _ExecStatus()
