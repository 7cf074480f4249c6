"""The Container Network Interface: a runtime's call in, a typed request out, and the answer back.

Source: the CNI specification (github.com/containernetworking/cni, SPEC.md), versions 0.3.1, 0.4.0, 1.0.0
and 1.1.0. A call is environment variables (`CNI_*`) and a JSON document on standard input; an answer is
an exit code and a JSON document on standard output.

Whatever is wrong with a call becomes a `CniError` with one of the specification's codes: 4 for the
environment, 6 for what isn't JSON, 7 for JSON that doesn't fit, 1 for a version we don't speak. DEL is
read leniently where leniency can't hurt (a broken prevResult is as good as none): a runtime that can't
delete keeps a pod forever.

Between plugin and agent a call travels as one frame, which is also what a deferred DEL is on disk:

    "CILIACNI1"  u32 length of environment  u32 length of standard input  environment  standard input

with big-endian lengths and the environment as KEY=VALUE joined by NUL. The agent answers with one byte,
the exit code, and standard output until the end of the stream.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import msgspec

SUPPORTED_VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = SUPPORTED_VERSIONS[-1]

MAGIC = b"CILIACNI1"
HEADER_SIZE = len(MAGIC) + 8
ENVIRONMENT_LIMIT = 64 * 1024
INPUT_LIMIT = 1024 * 1024

CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*", re.ASCII)
INTERFACE = re.compile(r"[^\s/:\0]{1,15}")
KUBERNETES_NAME = re.compile(r"[a-z0-9]([a-z0-9.\-]{0,251}[a-z0-9])?", re.ASCII)
CONTAINER_ID_LIMIT = 128
PATH_LIMIT = 4095
MTU_MINIMUM = 1280


class Code(enum.IntEnum):
    """Why a call failed: the specification's well-known codes, and ours from 100 on."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    INVALID_NETNS = 8
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    INTERNAL = 100
    NO_ADDRESS = 101
    NOT_AS_EXPECTED = 102
    """CHECK found the container's network changed or gone."""


class CniError(Exception):
    """A call that can't be served, with what the runtime is told."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class FrameError(ValueError):
    """Bytes that are not a frame of ours."""


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """Whose sandbox it is, from CNI_ARGS; all empty when no Kubernetes runtime calls."""

    namespace: str = ""
    name: str = ""
    uid: str = ""
    infra_container_id: str = ""


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """The network configuration, as far as Cilia reads it."""

    name: str
    version: str
    """CNI version of the configuration; answers are written in it."""
    type: str = ""
    log_level: str = ""
    """`log-level` of our conflist: "debug" makes the agent log the whole call."""
    mtu: int = 0
    """`mtu` of our conflist: overrides what the agent derives; 0 leaves it to the agent."""
    runtime_config: dict[str, Any] = {}
    """Capabilities the runtime fills in (portMappings, bandwidth, mac, ips)."""


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """An interface of a result; `sandbox` is the namespace's path, empty for the host's side."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """An address of a result in CIDR form; `interface` indexes the result's interfaces."""

    address: str
    gateway: str = ""
    interface: int | None = None


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A route of a result: destination prefix, next hop."""

    dst: str
    gw: str = ""
    mtu: int = 0


class Dns(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Resolver settings of a result."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What ADD made, and what CHECK and DEL get back as prevResult."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()


class Add(msgspec.Struct, frozen=True, kw_only=True):
    """Attach a container."""

    network: Network
    container_id: str
    interface: str
    netns: str
    pod: Pod = Pod()
    arguments: dict[str, str] = {}
    """All of CNI_ARGS."""


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    """Detach a container; `netns` is empty when the runtime has lost it. Must be idempotent."""

    network: Network
    container_id: str
    interface: str
    netns: str = ""
    pod: Pod = Pod()
    arguments: dict[str, str] = {}
    previous: Result | None = None


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Compare what is there with what ADD returned."""

    network: Network
    container_id: str
    interface: str
    netns: str
    pod: Pod = Pod()
    arguments: dict[str, str] = {}
    previous: Result


class CollectGarbage(msgspec.Struct, frozen=True, kw_only=True):
    """Detach everything of this network but `valid`: pairs of container id and interface."""

    network: Network
    valid: frozenset[tuple[str, str]]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Ask whether an ADD could be served now."""

    network: Network


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """Ask which versions we speak."""

    version: str = ""


Request: TypeAlias = Add | Delete | Check | CollectGarbage | Status | Version
"""What a runtime can ask."""


class Answer(msgspec.Struct, frozen=True):
    """What the plugin does: its exit code and its standard output."""

    exit_code: int
    output: bytes = b""
    deferred: bool = False
    """Not to be sent: without an answer the plugin keeps the call (a DEL) on disk."""


# --- the call -----------------------------------------------------------------------------------------


class _ValidAttachment(msgspec.Struct):
    container_id: str = msgspec.field(name="containerID")
    interface: str = msgspec.field(name="ifname")


class _Configuration(msgspec.Struct):
    version: str = msgspec.field(name="cniVersion", default="")
    name: str = ""
    type: str = ""
    log_level: str = msgspec.field(name="log-level", default="")
    mtu: int = 0
    runtime_config: dict[str, Any] | None = msgspec.field(name="runtimeConfig", default=None)
    previous: msgspec.Raw = msgspec.field(name="prevResult", default=msgspec.Raw())
    valid: list[_ValidAttachment] | None = msgspec.field(name="cni.dev/valid-attachments", default=None)


class _VersionQuery(msgspec.Struct):
    version: str = msgspec.field(name="cniVersion", default="")


class _Error(msgspec.Struct):
    code: int = 0


class _RawInterface(msgspec.Struct):
    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0


class _RawAddress(msgspec.Struct):
    address: str
    gateway: str | None = None
    interface: int | None = None


class _RawRoute(msgspec.Struct):
    dst: str
    gw: str | None = None
    mtu: int = 0


class _RawResult(msgspec.Struct):
    interfaces: list[_RawInterface] | None = None
    ips: list[_RawAddress] | None = None
    routes: list[_RawRoute] | None = None
    dns: Dns | None = None


def parse_request(environment: Mapping[str, str], stdin: bytes) -> Request:
    """Read one call. Raises `CniError` with code 1, 4, 6 or 7 and a sentence."""
    command = environment.get("CNI_COMMAND", "")
    if command == "VERSION":
        return Version(version=_decode(stdin, _VersionQuery).version if stdin.strip() else "")
    if command not in ("ADD", "DEL", "CHECK", "GC", "STATUS"):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_COMMAND is {_quote(command)}; it must be ADD, DEL, CHECK, GC, STATUS or VERSION.",
        )
    configuration = _decode(stdin, _Configuration)
    network = _network(configuration)
    _check_command_known(command, network.version)
    if command == "STATUS":
        return Status(network=network)
    if command == "GC":
        return _collect_garbage(network, configuration)
    return _attachment(command, environment, network, configuration)


def _attachment(
    command: str, environment: Mapping[str, str], network: Network, configuration: _Configuration
) -> Add | Delete | Check:
    container_id = _container_id(environment)
    interface = _interface(environment)
    netns = _netns(environment, required=command != "DEL")
    arguments = parse_arguments(environment.get("CNI_ARGS", ""))
    pod = _pod(arguments)
    if command == "ADD":
        if _given(configuration.previous):
            raise CniError(
                Code.INVALID_CONFIG,
                "Cilia can't follow another plugin; put it first in the plugins of the conflist.",
            )
        return Add(
            network=network,
            container_id=container_id,
            interface=interface,
            netns=netns,
            pod=pod,
            arguments=arguments,
        )
    if command == "DEL":
        return Delete(
            network=network,
            container_id=container_id,
            interface=interface,
            netns=netns,
            pod=pod,
            arguments=arguments,
            previous=_previous_if_readable(configuration.previous),
        )
    if not _given(configuration.previous):
        raise CniError(
            Code.INVALID_CONFIG, "CHECK needs prevResult: the runtime must pass the result of its ADD."
        )
    return Check(
        network=network,
        container_id=container_id,
        interface=interface,
        netns=netns,
        pod=pod,
        arguments=arguments,
        previous=parse_result(bytes(configuration.previous)),
    )


def _collect_garbage(network: Network, configuration: _Configuration) -> CollectGarbage:
    if configuration.valid is None:
        raise CniError(
            Code.INVALID_CONFIG,
            "GC needs cni.dev/valid-attachments: without the list everything would be detached.",
        )
    return CollectGarbage(
        network=network,
        valid=frozenset((entry.container_id, entry.interface) for entry in configuration.valid),
    )


def _network(configuration: _Configuration) -> Network:
    version = configuration.version
    if version not in SUPPORTED_VERSIONS:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"cniVersion is {_quote(version)}; set it to one of {', '.join(SUPPORTED_VERSIONS)}.",
        )
    if not CONTAINER_ID.fullmatch(configuration.name):
        raise CniError(
            Code.INVALID_CONFIG,
            f"The network's name is {_quote(configuration.name)}; it must start with a letter or digit "
            "and go on with letters, digits, underscores, dots and hyphens.",
        )
    if configuration.mtu != 0 and not MTU_MINIMUM <= configuration.mtu <= 65535:
        raise CniError(
            Code.INVALID_CONFIG,
            f"mtu is {configuration.mtu}; it must be between {MTU_MINIMUM} and 65535, or left out.",
        )
    return Network(
        name=configuration.name,
        version=version,
        type=configuration.type,
        log_level=configuration.log_level,
        mtu=configuration.mtu,
        runtime_config=configuration.runtime_config or {},
    )


def _check_command_known(command: str, version: str) -> None:
    needed = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}.get(command)
    if needed is not None and SUPPORTED_VERSIONS.index(version) < SUPPORTED_VERSIONS.index(needed):
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"{command} came with cniVersion {version}, but exists only from {needed} on.",
        )


def _container_id(environment: Mapping[str, str]) -> str:
    value = environment.get("CNI_CONTAINERID", "")
    if len(value) > CONTAINER_ID_LIMIT or not CONTAINER_ID.fullmatch(value):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_CONTAINERID is {_quote(value)}; it must start with a letter or digit, go on with letters, "
            f"digits, underscores, dots and hyphens, and have at most {CONTAINER_ID_LIMIT} characters.",
        )
    return value


def _interface(environment: Mapping[str, str]) -> str:
    value = environment.get("CNI_IFNAME", "")
    if value in (".", "..") or not INTERFACE.fullmatch(value) or len(value.encode(errors="replace")) > 15:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_IFNAME is {_quote(value)}; it must be an interface name of 1 to 15 bytes "
            "without slash, colon or white space.",
        )
    return value


def _netns(environment: Mapping[str, str], *, required: bool) -> str:
    value = environment.get("CNI_NETNS", "")
    if not value and not required:
        return ""
    if not value.startswith("/") or "\0" in value or len(value) > PATH_LIMIT:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_NETNS is {_quote(value)}; it must be the absolute path of a network namespace.",
        )
    return value


def parse_arguments(text: str) -> dict[str, str]:
    """CNI_ARGS, `KEY=VALUE` joined by semicolons. Keys we don't know are kept and not refused."""
    arguments = {}
    for part in text.split(";"):
        if not part:
            continue
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                f"CNI_ARGS has {_quote(part)}; it must be KEY=VALUE pairs joined by semicolons.",
            )
        arguments[key] = value
    return arguments


def _pod(arguments: Mapping[str, str]) -> Pod:
    namespace = arguments.get("K8S_POD_NAMESPACE", "")
    name = arguments.get("K8S_POD_NAME", "")
    if not namespace and not name:
        return Pod()
    for key, value in (("K8S_POD_NAMESPACE", namespace), ("K8S_POD_NAME", name)):
        if not KUBERNETES_NAME.fullmatch(value):
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                f"CNI_ARGS has {key}={_quote(value)}; it must be a Kubernetes object name.",
            )
    return Pod(
        namespace=namespace,
        name=name,
        uid=arguments.get("K8S_POD_UID", ""),
        infra_container_id=arguments.get("K8S_POD_INFRA_CONTAINER_ID", ""),
    )


# --- results ------------------------------------------------------------------------------------------


def parse_result(document: bytes) -> Result:
    """Read a result of any version we speak. Raises `CniError` with code 6 or 7."""
    raw = _decode(document, _RawResult)
    interfaces = tuple(
        Interface(name=i.name, mac=i.mac, sandbox=i.sandbox, mtu=i.mtu) for i in raw.interfaces or ()
    )
    ips = tuple(_address(a, len(interfaces)) for a in raw.ips or ())
    routes = tuple(
        Route(dst=_prefix(r.dst, "a route's dst"), gw=_gateway(r.gw), mtu=r.mtu) for r in raw.routes or ()
    )
    return Result(interfaces=interfaces, ips=ips, routes=routes, dns=raw.dns or Dns())


def _address(raw: _RawAddress, interfaces: int) -> Address:
    if raw.interface is not None and not 0 <= raw.interface < interfaces:
        raise CniError(
            Code.INVALID_CONFIG,
            f"prevResult has an address on interface {raw.interface}, but lists {interfaces} interfaces.",
        )
    return Address(
        address=_prefix(raw.address, "an address"), gateway=_gateway(raw.gateway), interface=raw.interface
    )


def _prefix(text: str, what: str) -> str:
    try:
        return str(ipaddress.ip_interface(text))
    except ValueError:
        raise CniError(
            Code.INVALID_CONFIG, f"prevResult has {_quote(text)} as {what}; it must be in CIDR form."
        ) from None


def _gateway(text: str | None) -> str:
    if not text:
        return ""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise CniError(
            Code.INVALID_CONFIG, f"prevResult has {_quote(text)} as a gateway; it must be an address."
        ) from None


def _given(document: msgspec.Raw) -> bool:
    return bytes(document) not in (b"", b"null")


def _previous_if_readable(document: msgspec.Raw) -> Result | None:
    if not _given(document):
        return None
    try:
        return parse_result(bytes(document))
    except CniError:
        return None


def encode_result(result: Result, version: str) -> bytes:
    """The JSON of a result in the configuration's version."""
    old = version.startswith("0.")
    with_mtu = version not in ("0.3.1", "0.4.0", "1.0.0")
    document: dict[str, Any] = {"cniVersion": version}
    document["interfaces"] = [
        _present(name=i.name, mac=i.mac, sandbox=i.sandbox, mtu=i.mtu if with_mtu else 0)
        for i in result.interfaces
    ]
    document["ips"] = [_encode_address(a, with_family=old) for a in result.ips]
    if result.routes:
        document["routes"] = [
            _present(dst=r.dst, gw=r.gw, mtu=r.mtu if with_mtu else 0) for r in result.routes
        ]
    document["dns"] = result.dns
    return msgspec.json.encode(document)


def _encode_address(address: Address, *, with_family: bool) -> dict[str, Any]:
    fields = _present(address=address.address, gateway=address.gateway)
    if address.interface is not None:
        fields["interface"] = address.interface
    if with_family:
        fields["version"] = str(ipaddress.ip_interface(address.address).version)
    return fields


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def encode_error(error: CniError, version: str = NEWEST) -> bytes:
    """The JSON of an error object."""
    document: dict[str, Any] = {"cniVersion": version, "code": int(error.code), "msg": error.message}
    if error.details:
        document["details"] = error.details
    return msgspec.json.encode(document)


def parse_error_code(document: bytes) -> int:
    """The code of an error object; 0 where there is none."""
    try:
        return msgspec.json.decode(document, type=_Error).code
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return 0


def encode_versions(version: str = "") -> bytes:
    """The JSON that answers VERSION, in the asker's version where we speak it."""
    return msgspec.json.encode(
        {
            "cniVersion": version if version in SUPPORTED_VERSIONS else NEWEST,
            "supportedVersions": SUPPORTED_VERSIONS,
        }
    )


def version_of(stdin: bytes) -> str:
    """The version to answer a call in, however broken the rest of it is."""
    try:
        version = msgspec.json.decode(stdin, type=_VersionQuery).version
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return NEWEST
    return version if version in SUPPORTED_VERSIONS else NEWEST


# --- frames -------------------------------------------------------------------------------------------


def encode_frame(environment: Mapping[str, str], stdin: bytes) -> bytes:
    """One call as it travels and as it waits on disk."""
    block = b"\0".join(f"{key}={value}".encode() for key, value in environment.items())
    return MAGIC + len(block).to_bytes(4, "big") + len(stdin).to_bytes(4, "big") + block + stdin


def parse_header(header: bytes) -> tuple[int, int]:
    """Lengths of environment and standard input from the first `HEADER_SIZE` bytes of a frame."""
    if len(header) != HEADER_SIZE or not header.startswith(MAGIC):
        raise FrameError("The bytes don't start with a CNI frame's header.")
    environment = int.from_bytes(header[len(MAGIC) : len(MAGIC) + 4], "big")
    stdin = int.from_bytes(header[len(MAGIC) + 4 :], "big")
    if environment > ENVIRONMENT_LIMIT or stdin > INPUT_LIMIT:
        raise FrameError(
            f"The frame announces {environment} + {stdin} bytes; "
            f"{ENVIRONMENT_LIMIT} + {INPUT_LIMIT} are the most."
        )
    return environment, stdin


def parse_environment(block: bytes) -> dict[str, str]:
    """The environment of a frame. Raises `CniError` with code 4."""
    environment = {}
    for entry in block.split(b"\0"):
        if not entry:
            continue
        key, _, value = entry.partition(b"=")
        try:
            environment[key.decode("ascii")] = value.decode()
        except UnicodeDecodeError:
            raise CniError(
                Code.INVALID_ENVIRONMENT, f"{_quote(repr(key)[2:-1])} is not valid UTF-8."
            ) from None
    return environment


def parse_frame(frame: bytes) -> tuple[bytes, bytes]:
    """Environment block and standard input of a whole frame. Raises `FrameError`."""
    environment, stdin = parse_header(frame[:HEADER_SIZE])
    body = frame[HEADER_SIZE:]
    if len(body) != environment + stdin:
        raise FrameError(f"The frame announces {environment + stdin} bytes and has {len(body)}.")
    return body[:environment], body[environment:]


# --- help ---------------------------------------------------------------------------------------------

T = TypeVar("T")


def _decode(document: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(document, type=kind)
    except msgspec.ValidationError as error:
        raise CniError(Code.INVALID_CONFIG, f"The network configuration doesn't fit: {error}.") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise CniError(
            Code.DECODING_FAILURE, f"The network configuration isn't valid JSON: {error}."
        ) from None
    except RecursionError:
        raise CniError(Code.DECODING_FAILURE, "The network configuration is nested too deeply.") from None


def _quote(text: str) -> str:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return '"' + "".join(c if c.isprintable() else "?" for c in shown) + '"' if text else "empty"
