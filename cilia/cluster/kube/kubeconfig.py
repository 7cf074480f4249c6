"""Where the API server is and how to prove who we are: kubeconfig files and the in-cluster account.

Source: Kubernetes reference, kubeconfig (v1) and "Accessing the API from within a Pod".
"""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class ConfigError(Exception):
    """The configuration can't be used; the message says what to change."""


class ExecSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A program that prints credentials (client.authentication.k8s.io)."""

    command: str
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    api_version: str = "client.authentication.k8s.io/v1"
    install_hint: str = ""
    provide_cluster_info: bool = False


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A server and the credentials for it. PEM material is bytes; `None` where absent."""

    server: str
    ca: bytes | None = None
    insecure: bool = False
    server_name: str | None = None
    proxy: str | None = None
    client_certificate: bytes | None = None
    client_key: bytes | None = None
    token: str | None = None
    token_file: Path | None = None
    username: str | None = None
    password: str | None = None
    exec_spec: ExecSpec | None = None
    namespace: str = "default"


def discover(explicit: Path | None, environ: Mapping[str, str], *, context: str | None = None) -> Endpoint:
    """Find the server by the file given, else $KUBECONFIG, the pod's account, ~/.kube/config."""
    if explicit is not None:
        return load([explicit], context=context)
    if environ.get("KUBECONFIG"):
        return load([Path(part) for part in environ["KUBECONFIG"].split(":") if part], context=context)
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return in_cluster(environ)
    home = Path(environ.get("HOME", "/root")) / ".kube" / "config"
    if home.exists():
        return load([home], context=context)
    raise ConfigError("no API server is configured: give --kubeconfig FILE or set KUBECONFIG")


def in_cluster(environ: Mapping[str, str], account: Path = SERVICE_ACCOUNT) -> Endpoint:
    """Return the endpoint of the cluster this pod runs in."""
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    if ":" in host:
        host = f"[{host}]"
    token = account / "token"
    if not token.exists():
        raise ConfigError(f"{token} is missing: mount a service account token into the pod")
    namespace = account / "namespace"
    return Endpoint(
        server=f"https://{host}:{port}",
        ca=_read(account / "ca.crt"),
        token_file=token,
        namespace=namespace.read_text().strip() if namespace.exists() else "default",
    )


def load(paths: list[Path], *, context: str | None = None) -> Endpoint:
    """Read kubeconfig files (the first to name something wins) and resolve a context of theirs."""
    present = [path for path in paths if path.exists()]
    if not present:
        raise ConfigError(f"kubeconfig {paths[0]} does not exist")
    merged = _Merged()
    for path in present:
        merged.add(path)
    return merged.resolve(context)


class _Merged:
    """The named entries of several files, each with the directory its relative paths start from."""

    def __init__(self) -> None:
        self.current = ""
        self.first = Path()
        self.named: dict[str, dict[str, tuple[dict[str, Any], Path]]] = {
            "clusters": {},
            "users": {},
            "contexts": {},
        }

    def add(self, path: Path) -> None:
        try:
            document = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"kubeconfig {path} can't be read: {error}") from error
        if not isinstance(document, dict):
            raise ConfigError(f"kubeconfig {path} is not a YAML mapping")
        if self.first == Path():
            self.first = path
        self.current = self.current or str(document.get("current-context") or "")
        for section, entries in self.named.items():
            for entry in _list(document, section, f"kubeconfig {path}"):
                if not isinstance(entry, dict) or "name" not in entry:
                    raise ConfigError(f"kubeconfig {path}: an entry of {section} has no name")
                body = _mapping(entry, section[:-1], f"kubeconfig {path}: {section}")
                entries.setdefault(str(entry["name"]), (body, path.parent))

    def _entry(self, section: str, name: str) -> tuple[dict[str, Any], Path]:
        try:
            return self.named[section][name]
        except KeyError:
            raise ConfigError(f"kubeconfig {self.first} has no entry {name!r} in {section}") from None

    def resolve(self, context: str | None) -> Endpoint:
        name = context or self.current
        if not name:
            raise ConfigError(f"kubeconfig {self.first} has no current-context: choose one by name")
        chosen, _ = self._entry("contexts", name)
        cluster, cluster_base = self._entry("clusters", str(chosen.get("cluster", "")))
        user: dict[str, Any] = {}
        user_base = Path()
        if chosen.get("user"):
            user, user_base = self._entry("users", str(chosen["user"]))
        if not cluster.get("server"):
            raise ConfigError(f"kubeconfig {self.first}: cluster {chosen.get('cluster')!r} has no server")
        if "auth-provider" in user:
            raise ConfigError("auth-provider was removed from Kubernetes: use an exec credential plugin")
        token_file = _text(user, "tokenFile")
        return Endpoint(
            server=str(cluster["server"]).rstrip("/"),
            ca=_material(cluster, "certificate-authority", cluster_base),
            insecure=bool(cluster.get("insecure-skip-tls-verify", False)),
            server_name=_text(cluster, "tls-server-name"),
            proxy=_text(cluster, "proxy-url"),
            client_certificate=_material(user, "client-certificate", user_base),
            client_key=_material(user, "client-key", user_base),
            token=_text(user, "token"),
            token_file=user_base / token_file if token_file else None,
            username=_text(user, "username"),
            password=_text(user, "password"),
            exec_spec=_exec(user, user_base),
            namespace=str(chosen.get("namespace") or "default"),
        )


def _exec(user: dict[str, Any], base: Path) -> ExecSpec | None:
    if user.get("exec") is None:
        return None
    spec = _mapping(user, "exec", "kubeconfig: users")
    command = _text(spec, "command")
    if not command:
        raise ConfigError("kubeconfig: users.exec has no command")
    pairs = _list(spec, "env", "kubeconfig: users.exec")
    if not all(isinstance(pair, dict) and {"name", "value"} <= pair.keys() for pair in pairs):
        raise ConfigError("kubeconfig: each entry of users.exec.env needs a name and a value")
    if "/" in command:
        # A command with a slash is relative to the file that names it, others are searched in PATH.
        command = str(base / command)
    return ExecSpec(
        command=command,
        args=tuple(map(str, _list(spec, "args", "kubeconfig: users.exec"))),
        env={str(pair["name"]): str(pair["value"]) for pair in pairs},
        api_version=_text(spec, "apiVersion") or "client.authentication.k8s.io/v1",
        install_hint=_text(spec, "installHint") or "",
        provide_cluster_info=bool(spec.get("provideClusterInfo", False)),
    )


def _material(entry: dict[str, Any], key: str, base: Path) -> bytes | None:
    """Return PEM bytes from `key`-data (base64) or from the file `key` names."""
    inline = _text(entry, f"{key}-data")
    if inline:
        try:
            return base64.b64decode(inline, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ConfigError(f"kubeconfig: {key}-data is not base64") from error
    path = _text(entry, key)
    return _read(base / path) if path else None


def _text(entry: dict[str, Any], key: str) -> str | None:
    """Return a text; numbers and the like, which YAML makes of some tokens, are text here."""
    value = entry.get(key)
    if isinstance(value, dict | list):
        raise ConfigError(f"kubeconfig: {key} is not text")
    return None if value is None else str(value)


def _list(entry: dict[str, Any], key: str, where: str) -> list[Any]:
    value = entry.get(key) or []
    if not isinstance(value, list):
        raise ConfigError(f"{where}: {key} is not a list")
    return value


def _mapping(entry: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = entry.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {key} is not a mapping")
    return value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
