"""The cells of docs/flows-as-data-frames.md, run one after the other."""

from __future__ import annotations

import contextlib
import io
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cilia.hubble.directory import MemoryDirectory, Pod, Workload
from cilia.hubble.history import codec
from cilia.hubble.history.shelf import Title
from cilia.model.ids import Cookie
from cilia.model.policy import CookieRow
from tests.support.hubble import NODE, beside, events, flow, rule

pytestmark = pytest.mark.timeout(60)
PAGE = Path(__file__).resolve().parents[3] / "docs" / "flows-as-data-frames.md"
CELL = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
CLIENT, WEB, DB = "10.0.1.5", "10.0.1.6", "10.0.1.7"
ISOLATED = 21


def shop() -> MemoryDirectory:
    known = MemoryDirectory()
    client = (Workload("Deployment", "client"),)
    known.pods = {
        CLIENT: Pod(id=101, identity=4321, namespace="shop", name="client-5f", workloads=client),
        WEB: Pod(id=102, identity=1234, namespace="shop", name="web-0"),
        DB: Pod(id=103, identity=1235, namespace="shop", name="db-0"),
    }
    isolating = rule("CiliumNetworkPolicy", "shop", "db-clients", "spec")
    known.cookies = {ISOLATED: CookieRow(Cookie(ISOLATED), (isolating,), default=True)}
    return known


def visit(number: int) -> dict[str, Any]:
    if number % 5:
        return flow(number, destination=WEB)
    return flow(
        number, destination=DB, destination_port=5432, destination_identity=1235, destination_endpoint=103,
        kind=1, verdict=2, reason=133, ingress_cookie=ISOLATED,
    )  # fmt: skip


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server with sixty flows of a small shop, and the same in a sealed file."""
    with beside(tmp_path / "hubble.sock", directory=shop()) as running:
        now = time.time_ns()
        rows = [visit(number) for number in range(60)]
        running.call(lambda: running.store.append([events(*rows)], offset=now - 10**9))
        block = running.call(lambda: codec.detach(running.store.spans(0, 60), running.store, []))
        title = Title(serial=0, boot=running.store.boot, first=0, end=60, rows=60, since=now, until=now)
        codec.write(tmp_path / title.name(), block, NODE.name)
        monkeypatch.setenv("HUBBLE_SERVER", running.target)
        yield tmp_path


def test_the_cells_print_what_the_page_shows(history: Path) -> None:
    cells = CELL.findall(PAGE.read_text())
    assert len(cells) == PAGE.read_text().count("```python") == 7
    names: dict[str, Any] = {"history": history}
    for code, expected in cells:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert printed.getvalue().rstrip() == expected.rstrip(), code
