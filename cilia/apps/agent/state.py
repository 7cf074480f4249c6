"""The endpoints of this node on disk: what a restarted agent adopts before it hears anybody.

The files outlive the agent, not the machine: interfaces and maps don't survive a power cut either, and what
has no interface is forgotten. So they are written whole, but nobody waits for the disk.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from cilia.kit.files import private_directory, remove_scratch, write_atomic
from cilia.model.endpoint import HOST_ENDPOINT, Attachment
from cilia.model.ids import EndpointId

log = structlog.get_logger(__name__)

UNREADABLE = (OSError, msgspec.MsgspecError, UnicodeError, RecursionError)
"""What reading a file that holds anything may raise."""


class SavedEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One file: the attachment, and whom the endpoint spoke for."""

    attachment: Attachment
    identity: int = 0
    labels: tuple[str, ...] = ()
    audit: bool | None = None
    """The live switch, if somebody has set it."""


class HostSwitches(msgspec.Struct, frozen=True):
    """What is kept of the host."""

    audit: bool | None = None


class NodeFile:
    """The pod prefixes this node uses, so that a restart does not wait for the API server to name them."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "node.json"

    def load(self) -> list[str]:
        """The prefixes, or nothing on a first start."""
        remove_scratch(self._path.parent)
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[str])
        except FileNotFoundError:
            return []
        except UNREADABLE as error:
            log.error("the file of pod prefixes is not usable", file=self._path.name, error=str(error))
            return []

    def save(self, prefixes: list[str]) -> None:
        """Write them durably, unless they stand there: a restart must not need room. Raises OSError."""
        content = msgspec.json.encode(prefixes)
        if not (self._path.is_file() and self._path.read_bytes() == content):
            write_atomic(self._path, content)


class EndpointFiles:
    """One JSON file per endpoint under `<state>/endpoints`."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "endpoints"
        self._host = state_dir / "host.json"
        private_directory(self._directory)

    def load(self) -> list[SavedEndpoint]:
        """All endpoints; a file that can't be read is set aside and said."""
        remove_scratch(self._directory)
        saved = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                saved.append(msgspec.json.decode(path.read_bytes(), type=SavedEndpoint))
            except UNREADABLE as error:
                log.error("endpoint file set aside", file=path.name, error=str(error))
                path.rename(path.with_suffix(".broken"))
        return saved

    def save(self, endpoint: SavedEndpoint) -> None:
        """Write one endpoint. Raises OSError (disk full)."""
        write_atomic(self._path(endpoint.attachment.id), msgspec.json.encode(endpoint), durable=False)

    def host_audit(self) -> bool | None:
        """The live switch of the host, which is an endpoint without an attachment."""
        try:
            return msgspec.json.decode(self._host.read_bytes(), type=HostSwitches).audit
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            log.error("the file of the host's switches is not usable", file=self._host.name, error=str(error))
            return None

    def save_audit(self, identifier: EndpointId, audit: bool | None) -> None:
        """Write an endpoint's live switch, or that there is none. Raises OSError."""
        if identifier == HOST_ENDPOINT:
            write_atomic(self._host, msgspec.json.encode(HostSwitches(audit)))
            return
        saved = msgspec.json.decode(self._path(identifier).read_bytes(), type=SavedEndpoint)
        content = msgspec.json.encode(msgspec.structs.replace(saved, audit=audit))
        write_atomic(self._path(identifier), content)

    def remove(self, identifier: EndpointId) -> None:
        """Forget one endpoint; forgetting the unknown is no error."""
        self._path(identifier).unlink(missing_ok=True)

    def _path(self, identifier: EndpointId) -> Path:
        return self._directory / f"{identifier}.json"
