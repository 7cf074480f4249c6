"""Services written by hand on this node: frontends and backends as they stand."""

from __future__ import annotations

from collections.abc import Set

from cilia.control.services import written
from cilia.control.services.drafts import Draft
from cilia.control.services.settings import ServiceSettings
from cilia.control.services.standing import Standing, is_ipv6
from cilia.model.service import Algorithm, Backend, ForwardingMode, FrontendKind, ServiceEntry
from cilia.schema import LocalServiceRow


def draft(row: LocalServiceRow, here: Set[str], standing: Standing, settings: ServiceSettings) -> Draft:
    """All that it asks for. `here`: addresses of this node and its pods."""
    problems: list[str] = []
    algorithm = written.choice(Algorithm, row.algorithm, "algorithm", problems)
    mode = written.choice(ForwardingMode, row.mode, "mode", problems)
    ranges = tuple(text for text in row.source_ranges if _admits(row, text, problems))
    backends = tuple(sorted({one for one in row.backends if _fits(row, one, problems)}))
    if row.local_only:
        backends = tuple(one for one in backends if one.address in here or one.node == standing.name)
    candidates = tuple(one for one in backends if one.weight)
    shut = bool(row.source_ranges) and not ranges
    entry = ServiceEntry(
        frontend=row.frontend,
        kind=FrontendKind.STANDALONE,
        name=row.name or str(row.frontend),
        internal=candidates,
        external=() if shut else candidates,
        draining=tuple(one for one in backends if not one.weight),
        outside=not shut,
        keeps_client=row.local_only,
        algorithm=algorithm or settings.algorithm,
        mode=mode or settings.mode.forwarding(row.frontend.protocol),
        affinity=row.affinity,
        source_ranges=ranges,
        reject=settings.reject,
    )
    return Draft((entry,), tuple(problems))


def _fits(row: LocalServiceRow, backend: Backend, problems: list[str]) -> bool:
    if is_ipv6(backend.address) != is_ipv6(row.frontend.address):
        problems.append(f"backends: {backend} is not of the frontend's family; it is left out")
        return False
    if backend.protocol is not row.frontend.protocol:
        problems.append(f"backends: {backend} has another protocol than the frontend; it is left out")
        return False
    if (backend.address, backend.port) == (row.frontend.address, row.frontend.port):
        problems.append(f"backends: {backend} is the frontend itself; it is left out")
        return False
    return True


def _admits(row: LocalServiceRow, text: str, problems: list[str]) -> bool:
    if not written.is_prefix(text):
        problems.append(f"source_ranges: {text!r} is no prefix; it lets nobody in")
        return False
    if is_ipv6(text) != is_ipv6(row.frontend.address):
        problems.append(f"source_ranges: {text} is not of the frontend's family; it lets nobody in")
        return False
    return True
