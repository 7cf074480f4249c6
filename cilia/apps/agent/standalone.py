"""Services written by hand on this node: kept on disk, put and taken away by the API, or followed in a file.

    cilia service update ──► API ──┐
                                   ├──► local_services
    --services-file (YAML) ────────┘

What the API wrote is in the state directory, whole or not at all, and comes back after a restart. A frontend
that stands in the file belongs to the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import structlog

from cilia.api.backend import Caller
from cilia.api.types import LocalBackend, LocalService
from cilia.apps.agent.live import who
from cilia.apps.agent.state import UNREADABLE
from cilia.cluster.store import Invalid
from cilia.kit.documents import read_yaml
from cilia.kit.files import Stamp, stamp, write_atomic
from cilia.model.service import Algorithm, Backend, ForwardingMode, Frontend, Protocol
from cilia.schema import Inputs, LocalServiceRow
from cilia.sources import checks

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
"""Between two looks at the file's size and time."""
FILE_LIMIT = 64 << 20
VALUES_LIMIT = 10_000_000
WEIGHT_LIMIT = 65_535
AFFINITY_LIMIT = 86_400


class Refused(ValueError):
    """A service that can't be served; the message is one sentence with the field at fault."""


class ServicesFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The YAML of --services-file."""

    services: tuple[LocalService, ...] = ()


def parse_frontend(text: str) -> Frontend:
    """ADDRESS:PORT/PROTOCOL. Raises Refused."""
    where, _, protocol = text.partition("/")
    try:
        known = Protocol[(protocol or "TCP").upper()]
    except KeyError:
        raise Refused(f"frontend: {protocol[:20]!r} is no protocol; write TCP, UDP or SCTP") from None
    address, port = _socket("frontend", where)
    return Frontend(address, port, known)


def row(spec: LocalService) -> LocalServiceRow:
    """Return the row of a service. Raises Refused."""
    frontend = parse_frontend(spec.frontend)
    _one_of("algorithm", spec.algorithm, Algorithm)
    _one_of("mode", spec.mode, ForwardingMode)
    if not 0 <= spec.affinity <= AFFINITY_LIMIT:
        raise Refused(f"affinity: {spec.affinity} is not between 0 and {AFFINITY_LIMIT}")
    return LocalServiceRow(
        frontend=frontend,
        backends=tuple(sorted({_backend(at, item, frontend) for at, item in enumerate(spec.backends)})),
        name=spec.name[:253],
        algorithm=spec.algorithm,
        mode=spec.mode,
        affinity=spec.affinity,
        source_ranges=tuple(sorted({_prefix(text) for text in spec.source_ranges})),
        local_only=spec.local_only,
    )


def spec_of(row: LocalServiceRow) -> LocalService:
    """The other way round."""
    return LocalService(
        frontend=str(row.frontend),
        backends=tuple(
            LocalBackend(address=str(one).rpartition("/")[0], weight=one.weight, node=one.node)
            for one in row.backends
        ),
        name=row.name,
        algorithm=row.algorithm,
        mode=row.mode,
        affinity=row.affinity,
        source_ranges=row.source_ranges,
        local_only=row.local_only,
    )


def _backend(at: int, item: LocalBackend | str, frontend: Frontend) -> Backend:
    spec = LocalBackend(address=item) if isinstance(item, str) else item
    path = f"backends[{at}]"
    address, port = _socket(f"{path}.address", spec.address)
    if (":" in address) != (":" in frontend.address):
        raise Refused(f"{path}.address: {address} is not of the frontend's family")
    if (address, port) == (frontend.address, frontend.port):
        raise Refused(f"{path}.address: {spec.address} is the frontend itself")
    if not 0 <= spec.weight <= WEIGHT_LIMIT:
        raise Refused(f"{path}.weight: {spec.weight} is not between 0 and {WEIGHT_LIMIT}")
    return Backend(address, port, frontend.protocol, weight=spec.weight, node=spec.node)


def _socket(path: str, text: str) -> tuple[str, int]:
    """ADDRESS:PORT, its address in its one spelling. Raises Refused."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise Refused(f"{path}: {text[:80]!r} is not ADDRESS:PORT")
    if ":" in host and not bracketed:
        raise Refused(f"{path}: write an IPv6 address in brackets, as in [2001:db8::1]:80")
    try:
        return checks.address(host[1:-1] if bracketed else host), int(port)
    except Invalid as error:
        raise Refused(f"{path}: {error}") from None


def _one_of(path: str, text: str, words: type[Algorithm] | type[ForwardingMode]) -> None:
    known = [word.value for word in words]
    if text and text not in known:
        raise Refused(f"{path}: {text[:40]!r} is none of {', '.join(known)}")


def _prefix(text: str) -> str:
    try:
        return checks.block(text)
    except Invalid:
        raise Refused(f"source-ranges: {text[:60]!r} is no address prefix") from None


class LocalServices:
    """The writer of `local_services`."""

    def __init__(self, inputs: Inputs, state_dir: Path) -> None:
        self._table = inputs.local_services
        self._path = state_dir / "services.json"
        self._own: dict[Frontend, LocalServiceRow] = {}
        self._of_file: dict[Frontend, LocalServiceRow] = {}

    def restore(self) -> None:
        """Take up what was written before a restart; what makes no sense is left out and told."""
        self._own = {found.frontend: found for found in self._load()}
        self._publish()
        self._table.synced = True

    def all(self) -> tuple[LocalService, ...]:
        """Those of the file, too."""
        return tuple(spec_of(found) for found in self._table)

    def put(self, spec: LocalService, caller: Caller) -> LocalService:
        """Write or replace one. Raises Refused, and OSError when it can't be kept; nothing changed then."""
        wanted = row(spec)
        self._refuse_of_file(wanted.frontend)
        self._save({**self._own, wanted.frontend: wanted})
        log.info("service by hand written", frontend=str(wanted.frontend), **who(caller))
        return spec_of(wanted)

    def delete(self, frontend: Frontend, caller: Caller) -> bool:
        """Remove one; whether it was there. Raises Refused, and OSError when that can't be kept."""
        self._refuse_of_file(frontend)
        if frontend not in self._own:
            return False
        self._save({key: found for key, found in self._own.items() if key != frontend})
        log.info("service by hand removed", frontend=str(frontend), **who(caller))
        return True

    def follow(self, rows: Iterable[LocalServiceRow]) -> None:
        """Take up what the file says now."""
        self._of_file = {found.frontend: found for found in rows}
        self._publish()

    def _refuse_of_file(self, frontend: Frontend) -> None:
        if frontend in self._of_file:
            raise Refused(f"frontend: {frontend} stands in the services file; change it there")

    def _save(self, wanted: dict[Frontend, LocalServiceRow]) -> None:
        write_atomic(self._path, msgspec.json.encode([spec_of(found) for found in wanted.values()]))
        self._own = wanted
        self._publish()

    def _publish(self) -> None:
        self._table.replace((self._own | self._of_file).values())

    def _load(self) -> list[LocalServiceRow]:
        try:
            specs = msgspec.json.decode(self._path.read_bytes(), type=list[LocalService])
        except FileNotFoundError:
            return []
        except UNREADABLE as error:
            log.error("the file of services by hand is not usable", file=self._path.name, error=str(error))
            return []
        return _usable(specs, self._path.name)


def _usable(specs: Iterable[LocalService], name: str) -> list[LocalServiceRow]:
    found: dict[Frontend, LocalServiceRow] = {}
    for spec in specs:
        try:
            wanted = row(spec)
        except Refused as error:
            log.error("a service is left out", file=name, frontend=spec.frontend[:80], error=str(error))
            continue
        if wanted.frontend in found:
            log.error("a frontend stands twice; the first counts", file=name, frontend=str(wanted.frontend))
            continue
        found[wanted.frontend] = wanted
    return list(found.values())


class FileFollower:
    """Follows --services-file. While it can't be read, what it said last stands."""

    def __init__(self, path: Path, take: Callable[[Iterable[LocalServiceRow]], None]) -> None:
        self._path = path
        self._take = take
        self._seen: Stamp | None = None
        self._problem = ""

    def look(self) -> None:
        """Read the file if it changed."""
        seen = stamp(self._path)
        if seen is not None and seen == self._seen:
            return
        self._seen = seen
        try:
            rows = self._read()
        except FileNotFoundError:
            self._say(f"there is no file {self._path}")
            return
        except (OSError, ValueError, RecursionError) as error:
            self._say(str(error))
            return
        self._problem = ""
        self._take(rows)
        log.info("services file read", file=str(self._path), services=len(rows))

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self.look()

    def _read(self) -> list[LocalServiceRow]:
        """Raises ValueError for what is no list of services."""
        content = self._path.read_bytes()
        if len(content) > FILE_LIMIT:
            raise ValueError(f"it has more than {FILE_LIMIT >> 20} MiB")
        fields = read_yaml(content, VALUES_LIMIT)
        specs = msgspec.convert(fields if fields is not None else {}, ServicesFile).services
        return _usable(specs, self._path.name)

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            log.error("the services file is not usable", file=str(self._path), error=problem)
        self._problem = problem
