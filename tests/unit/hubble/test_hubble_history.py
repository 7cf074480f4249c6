"""Flows in sealed files: written, found again, merged, given up, and told of when lost."""

from __future__ import annotations

import asyncio
import base64
import errno
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars
import pyarrow.parquet as pq
import pytest

from cilia.hubble.columns import address_words
from cilia.hubble.convert import Converter
from cilia.hubble.directory import Pod
from cilia.hubble.filters import FlowMatcher
from cilia.hubble.history import archive, codec, friendly, recorder
from cilia.hubble.history.keeper import History
from cilia.hubble.history.settings import HistoryError, HistorySettings
from cilia.hubble.history.shelf import Shelf, Title
from cilia.hubble.past import Part, Question, TooManyReaders
from cilia.hubble.predicates import Context
from cilia.hubble.store import FlowStore, Loss, LossRow, LossSource, Rows
from cilia.kit.clock import ManualClock
from cilia.kit.tasks import TaskGroup
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from tests.support.hubble import (
    ALLOW_WEB,
    DEFAULT_DENY,
    DTYPE,
    NODE,
    WALL,
    directory,
    events,
    flow,
    store,
)
from tests.support.waiting import until_async

pytestmark = pytest.mark.timeout(60)


def settings(path: Path, **changes: Any) -> HistorySettings:
    return HistorySettings(**{"directory": path, "block": 16, "interval": 60.0, "merged": 64, **changes})


def all_rows(_meanings: Any) -> Callable[[Rows], Any]:
    return lambda rows: np.ones(len(rows.wall), np.bool_)


def question(**changes: Any) -> Question:
    return Question(**{"match": all_rows, "before": 1 << 60, **changes})


async def read(history: History, **changes: Any) -> list[Part]:
    return [part async for part in history.read(question(**changes))]


def numbers(parts: list[Part]) -> list[int]:
    return [number for part in parts for number in part.rows.numbers.tolist()]


def fill(flows: FlowStore, first: int, count: int) -> None:
    flows.append([events(*(flow(number) for number in range(first, first + count)))], offset=WALL)


def run(
    path: Path, story: Callable[[FlowStore, History], Awaitable[None]], capacity: int = 64, **changes: Any
) -> FlowStore:
    """A history beside a store, closed when the story is told."""

    async def told() -> FlowStore:
        flows = store(capacity)
        async with TaskGroup() as tasks:
            clock = ManualClock(wall=WALL / 1e9 + 1)
            history = History(flows, NODE.name, settings(path, **changes), clock)
            await history.open()
            history.start(tasks)
            await story(flows, history)
            await history.close()
        return flows

    return asyncio.run(told())


async def sealed(history: History, reach: int) -> None:
    await until_async(lambda: history.reach >= reach)


# -- one file -----------------------------------------------------------------------------------------------


def test_rows_read_back_to_the_same_messages(tmp_path: Path) -> None:
    flows = store(64)
    flows.append(
        [
            events(
                flow(0, kind=1, verdict=2, reason=133, ingress_cookie=DEFAULT_DENY, file=6, line=77),
                flow(1, kind=3, egress_cookie=ALLOW_WEB, destination="10.0.2.7", destination_identity=5000),
                flow(2, original_source="10.0.1.5", source="192.0.2.1", original_source_port=999, ifindex=7),
                flow(3, source="fd00::1:5", destination="fd00::1:6", flags=2, source_mac="02:00:00:00:00:01"),
                flow(4, kind=4, verdict=7, point=2, socket_cookie=1 << 60, cgroup=12, service=9),
            )
        ],
        offset=WALL,
    )
    block = codec.detach(flows.spans(0, 5), flows, [])
    path = tmp_path / "one.parquet"
    size = codec.write(path, block, NODE.name)
    assert size == path.stat().st_size
    file = codec.SealedFile(path, DTYPE)
    again = file.block()
    file.close()
    (rows,) = flows.spans(0, 5)
    assert Converter(again.known, NODE).responses(again.rows) == Converter(flows, NODE).responses(rows)
    assert again.rows.events.tobytes() == rows.events.tobytes()


LEAN = """
import sys
from pathlib import Path
from cilia.hubble.frames.decode import Decoder
from cilia.hubble.columns import address_words
from cilia.hubble.convert import Converter
from cilia.hubble.history import codec
from tests.support.hubble import DTYPE, NODE, WALL, events, flow, store

flows = store(64)
flows.append([events(flow(1), flow(2))], offset=WALL)
path = Path(sys.argv[1]) / "flows.parquet"
codec.write(path, codec.detach(flows.spans(0, 2), flows, []), "node")
assert len(codec.SealedFile(path, DTYPE).read(0).wall) == 2
assert "pyarrow.compute" not in sys.modules, "an import while flows are sealed holds the event loop"
decoder = Decoder()
decoder.add(Converter(flows, NODE).responses(flows.spans(0, 2)[0]))
assert len(decoder.table()) == 2
assert "pandas" not in sys.modules
"""
"""What an agent with history does, and a client that wants columns."""


def test_nobody_pays_for_pandas_who_does_not_use_it(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LEAN, str(tmp_path)], check=True)


def test_addresses_are_those_of_rows_also_where_a_party_has_several() -> None:
    texts = ["10.0.1.5", "10.0.2.7", "fd00::1", "10.0.1.5", "fd00::2", ""]
    rows = events(*(flow(each, source=text or "::") for each, text in enumerate(texts)))
    words = address_words(rows, "source")
    wanted = [text or None for text in texts]
    for refs in ([0, 1, 2, 0, 3, 4], [0, 0, 0, 0, 0, 0], [7, 1, 1, 7, 2, 2]):
        found = friendly.addresses(words, np.array(refs, np.uint32))
        assert found.to_pylist() == wanted


@pytest.mark.parametrize("end", [3, 5_000])
def test_pairs_are_told_apart(end: int) -> None:
    first, second = np.array([-1, 0, 2, -1, 2, 0]), np.array([-1, 2, 0, -1, 0, 1])
    used, inverse = friendly.pairs(first, second, end)
    assert len(used) == len(set(used)) == 4
    assert [used[place] for place in inverse] == list(zip(first.tolist(), second.tolist(), strict=True))


def test_filters_on_names_work_on_a_file(tmp_path: Path) -> None:
    flows = store(64)
    flows.append(
        [events(flow(0), flow(1, destination="10.0.2.7", destination_identity=5000), flow(2))], offset=WALL
    )
    codec.write(tmp_path / "one.parquet", codec.detach(flows.spans(0, 3), flows, []), NODE.name)
    block = codec.SealedFile(tmp_path / "one.parquet", DTYPE).block()
    wanted = [flow_pb2.FlowFilter(destination_pod=["other/db"])]
    assert FlowMatcher(Context(block.known, NODE), wanted).mask(block.rows).tolist() == [False, True, False]
    first = observer_pb2.GetFlowsResponse.FromString(Converter(flows, NODE).responses(block.rows)[0])
    by_uuid = FlowMatcher(Context(block.known, NODE), [flow_pb2.FlowFilter(uuid=[first.flow.uuid])])
    assert by_uuid.mask(block.rows).tolist() == [True, False, False]


def test_a_file_is_read_by_any_tool_and_says_who_talked_to_whom(tmp_path: Path) -> None:
    flows = store(64)
    flows.append([events(flow(0, verdict=2, kind=1, reason=133, ingress_cookie=DEFAULT_DENY))], offset=WALL)
    codec.write(tmp_path / "one.parquet", codec.detach(flows.spans(0, 1), flows, []), NODE.name)
    (row,) = pq.read_table(tmp_path / "one.parquet").to_pylist()
    assert row["source_pod"] == "client-5f"
    assert row["source_workload"] == "Deployment/client"
    assert row["destination_labels"] == "k8s:app=server,k8s:io.kubernetes.pod.namespace=demo,k8s:tier=web"
    assert (row["verdict"], row["drop_reason"], row["type"]) == ("DROPPED", "POLICY_DENIED", "drop")
    assert row["policies"] == "demo/allow-web,demo/isolate"
    assert row["ingress_denied_by"] == "demo/allow-web spec,demo/isolate spec"
    assert (row["source_ip"], row["source_port"], row["tcp_flags"]) == ("10.0.1.5", 10_000, "SYN")
    assert row["icmp_type"] is None
    assert flows.row_of(row["uuid"]) == 0
    assert polars.read_parquet(tmp_path / "one.parquet").to_dicts() == [row]


def test_footers_of_before_are_read(tmp_path: Path) -> None:
    flows = store(64)
    fill(flows, 0, 3)
    block = codec.detach(flows.spans(0, 3), flows, [])
    footer = codec.Footer(format=codec.FORMAT, node=NODE.name, known=block.known, gaps=())
    assert codec.unpacked(base64.b64decode(codec.packed(footer))) == footer
    assert codec.unpacked(codec.packed(footer)) == footer
    with pytest.raises(codec.Damaged):
        codec.unpacked(b"no footer of ours")


def test_a_file_of_another_layout_lacks_what_it_never_had(tmp_path: Path) -> None:
    flows = store(64)
    fill(flows, 0, 3)
    codec.write(tmp_path / "one.parquet", codec.detach(flows.spans(0, 3), flows, []), NODE.name)
    newer = np.dtype([(name, DTYPE[name]) for name in DTYPE.names or ()] + [("mark", "<u4")])
    rows = codec.SealedFile(tmp_path / "one.parquet", newer).read(0)
    assert rows.events["mark"].tolist() == [0, 0, 0]
    assert rows.events["source_port"].tolist() == [10_000, 10_001, 10_002]


@pytest.mark.parametrize("what", ["cut", "empty", "page", "other"])
def test_a_damaged_file_says_so(tmp_path: Path, what: str) -> None:
    flows = store(64)
    fill(flows, 0, 50)
    path = tmp_path / "one.parquet"
    codec.write(path, codec.detach(flows.spans(0, 50), flows, []), NODE.name)
    data = bytearray(path.read_bytes())
    if what == "page":
        data[4:-3000] = bytes(len(data) - 3004)
    whole = {"cut": bytes(data[:-100]), "empty": b"", "page": bytes(data)}
    if what == "other":
        pq.write_table(pq.read_table(path).select(["time"]).replace_schema_metadata(None), path)
    else:
        path.write_bytes(whole[what])
    with pytest.raises(codec.Damaged):
        codec.SealedFile(path, DTYPE).block()


# -- names and budgets --------------------------------------------------------------------------------------


def title(serial: int, **changes: Any) -> Title:
    return Title(
        **{
            "serial": serial, "boot": 7, "first": 10 * serial, "end": 10 * serial + 10, "rows": 10,
            "since": WALL + serial, "until": WALL + serial, **changes,
        }
    )  # fmt: skip


def test_names_tell_everything() -> None:
    one = title(42, boot=0x8F1C20D477AA4A5E, since=-1)
    assert Title.parse(one.name()) == one
    assert Title.parse("flows.parquet") is None
    assert sorted([title(10).name(), title(9).name()]) == [title(9).name(), title(10).name()]


def test_a_killed_writer_leaves_nothing_half(tmp_path: Path) -> None:
    (tmp_path / f".{title(1).name()}.99.tmp").write_bytes(b"PAR1")
    for each in (title(1), title(2), title(3, first=0, end=30)):
        (tmp_path / each.name()).write_bytes(b"x")
    shelf = Shelf(tmp_path)
    shelf.open()
    assert shelf.titles == [title(3, first=0, end=30)]
    assert [path.name for path in tmp_path.iterdir()] == [title(3, first=0, end=30).name()]


def test_the_oldest_files_go_first(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for serial in range(5):
        shelf.add(title(serial), 100)
    assert shelf.surplus(250, 0) == [title(0), title(1), title(2)]
    assert shelf.surplus(10_000, WALL + 2) == [title(0), title(1)]
    assert shelf.surplus(1, 1 << 62) == [title(n) for n in range(4)]


def test_small_files_are_merged_like_numbers_are_added(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.add(title(0, rows=100), 1)
    shelf.add(title(1, rows=10), 1)
    assert shelf.small(1000, 50) == []
    shelf.add(title(2, rows=8), 1)
    assert shelf.small(1000, 50) == [title(1, rows=10), title(2, rows=8)]
    assert shelf.small(15, 50) == []
    assert shelf.small(1000, 5) == []
    shelf.add(title(3, rows=8, boot=8), 1)
    assert shelf.small(1000, 50) == []


# -- writing and reading ------------------------------------------------------------------------------------


def test_every_row_is_in_one_file_and_in_order(tmp_path: Path) -> None:
    async def story(flows: FlowStore, history: History) -> None:
        for start in range(0, 200, 10):
            fill(flows, start, 10)
            await sealed(history, (start + 10) // 16 * 16)
        assert numbers(await read(history, before=history.reach)) == list(range(history.reach))
        assert numbers(await read(history, before=50)) == list(range(50))
        assert numbers(await read(history, before=90, first=50)) == list(range(50, 90))
        since, until = WALL + 20_000_000, WALL + 40_000_000
        assert numbers(await read(history, since=since, until=until)) == list(range(20, 41))
        assert history.numbers().lost == 0

    run(tmp_path, story)
    again = store()

    async def later() -> None:
        async with TaskGroup() as tasks:
            history = History(again, NODE.name, settings(tmp_path), ManualClock(wall=WALL / 1e9 + 2))
            await history.open()
            history.start(tasks)
            assert numbers(await read(history)) == list(range(200))
            assert history.numbers().rows == 200
            await history.close()

    asyncio.run(later())


def test_the_newest_come_in_order_however_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(flows: FlowStore, history: History) -> None:
        for start in range(0, 160, 16):
            fill(flows, start, 16)
            await sealed(history, start + 16)
        for held in (1 << 20, 30, 0):
            monkeypatch.setattr(archive, "HELD", held)
            for limit in (1, 16, 37, 160, 1000):
                parts = await read(history, before=150, limit=limit, newest=True)
                assert numbers(parts) == list(range(max(0, 150 - limit), 150))
        assert numbers(await read(history, limit=20)) == list(range(20))

    run(tmp_path, story)


def test_few_flows_are_sealed_in_time_and_their_files_merged(tmp_path: Path) -> None:
    async def story(flows: FlowStore, history: History) -> None:
        for number in range(40):
            fill(flows, number, 1)
            await sealed(history, number + 1)
        assert history.numbers().files < 12
        assert numbers(await read(history)) == list(range(40))

    run(tmp_path, story, interval=0.005)


def test_an_answer_goes_on_while_its_files_are_merged(tmp_path: Path) -> None:
    async def story(flows: FlowStore, history: History) -> None:
        for number in range(5):
            fill(flows, number, 1)
            await sealed(history, number + 1)
        parts = history.read(question())
        seen = [await anext(parts)]
        for number in range(5, 20):
            fill(flows, number, 1)
            await sealed(history, number + 1)
        seen += [part async for part in parts]
        assert numbers(seen) == list(range(5))

    run(tmp_path, story, interval=0.005)


def test_a_budget_holds_and_the_newest_stay(tmp_path: Path) -> None:
    async def story(flows: FlowStore, history: History) -> None:
        for start in range(0, 320, 16):
            fill(flows, start, 16)
            await sealed(history, start + 16)
        await until_async(lambda: history.numbers().bytes <= 200_000)
        kept = numbers(await read(history))
        assert kept == list(range(kept[0], 320)) and 0 < kept[0] < 304

    run(tmp_path, story, max_bytes=200_000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 200_000


def test_what_is_too_old_goes(tmp_path: Path) -> None:
    async def story(flows: FlowStore, history: History) -> None:
        fill(flows, 0, 16)
        await sealed(history, 16)
        rows = [flow(number, time=90_000_000_000 + number) for number in range(16)]
        flows.append([events(*rows)], offset=WALL)
        await sealed(history, 32)
        await until_async(lambda: history.numbers().files == 1)
        assert numbers(await read(history)) == list(range(16, 32))

    run(tmp_path, story, max_age=-60.0)


def test_a_clock_that_jumps_back_keeps_the_order_of_rows(tmp_path: Path) -> None:
    async def story(flows: FlowStore, history: History) -> None:
        fill(flows, 0, 16)
        await sealed(history, 16)
        flows.append([events(*(flow(number) for number in range(16, 32)))], offset=WALL - 10**12)
        await sealed(history, 32)
        assert numbers(await read(history)) == list(range(32))
        assert numbers(await read(history, until=WALL - 1)) == list(range(16, 32))
        assert numbers(await read(history, since=WALL)) == list(range(16))

    run(tmp_path, story)


def test_what_the_ring_overwrote_is_counted_and_told_in_its_place(tmp_path: Path) -> None:
    async def story(flows: FlowStore, history: History) -> None:
        fill(flows, 0, 16)
        await sealed(history, 16)
        fill(flows, 16, 100)
        await sealed(history, 116)
        assert history.numbers().lost == 36
        parts = await read(history)
        assert numbers(parts) == [*range(16), *range(52, 116)]
        (gap,) = (gap for part in parts for gap in part.gaps)
        assert (gap.source, gap.count) == (LossSource.HUBBLE_RING_BUFFER, 36)
        assert gap.position <= 52

    run(tmp_path, story)


def test_gaps_of_the_kernel_are_kept_with_the_rows_around_them(tmp_path: Path) -> None:
    async def story(flows: FlowStore, history: History) -> None:
        fill(flows, 0, 8)
        flows.append([], [Loss(count=5, cpu=1, first=7_500_000, last=7_900_000)], offset=WALL)
        fill(flows, 8, 8)
        await sealed(history, 16)
        (part,) = await read(history)
        assert [(gap.count, gap.cpu, gap.position) for gap in part.gaps] == [(5, 1, 8)]
        assert not [gap for part in await read(history, since=WALL + 9_000_000) for gap in part.gaps]

    run(tmp_path, story)


def test_a_full_disk_loses_only_what_the_ring_could_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = codec.write, [True]

    def write(*arguments: Any) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(codec, "write", write)

    async def story(flows: FlowStore, history: History) -> None:
        fill(flows, 0, 40)
        await until_async(lambda: history.numbers().failing)
        fill(flows, 40, 40)
        assert history.reach == 0
        full[0] = False
        await sealed(history, 80)
        numbered = history.numbers()
        assert not numbered.failing and numbered.lost == 16
        assert numbers(await read(history)) == list(range(16, 80))

    run(tmp_path, story)
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_file_is_left_out_and_said_once(tmp_path: Path) -> None:
    async def story(flows: FlowStore, history: History) -> None:
        for start in range(0, 48, 16):
            fill(flows, start, 16)
            await sealed(history, start + 16)
        files = sorted(tmp_path.glob("flows-*"))
        files[1].write_bytes(files[1].read_bytes()[:500])
        for _ in range(2):
            parts = await read(history)
            assert numbers(parts) == [*range(16), *range(32, 48)]
            (gap,) = (gap for part in parts for gap in part.gaps)
            assert gap.count == 16
            assert (gap.first, gap.last) == (WALL + 16_000_000, WALL + 31_000_000)
        files[0].unlink()
        assert numbers(await read(history)) == list(range(32, 48))

    run(tmp_path, story)


def test_too_many_readers_are_refused(tmp_path: Path) -> None:
    async def story(flows: FlowStore, history: History) -> None:
        fill(flows, 0, 32)
        await sealed(history, 32)
        readers = [history.read(question()) for _ in range(archive.MAX_READERS)]
        for reader in readers:
            await anext(reader)
        with pytest.raises(TooManyReaders, match="ask again"):
            await anext(history.read(question()))
        for reader in readers:
            await reader.aclose()  # type: ignore[attr-defined]
        assert numbers(await read(history)) == list(range(32))

    run(tmp_path, story)


def test_a_directory_that_can_not_be_used_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def story(_flows: FlowStore, _history: History) -> None:
        raise AssertionError("it must not start")

    with pytest.raises(HistoryError, match="choose another"):
        run(tmp_path / "file", story)


def test_a_directory_of_others_does_not_become_private(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir(mode=0o755)
    (tmp_path / "log" / "syslog").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "log")

    async def story(_flows: FlowStore, _history: History) -> None:
        raise AssertionError("it must not start")

    for name in ("log", "link"):
        with pytest.raises(HistoryError, match="files of others"):
            run(tmp_path / name, story)
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o755


def test_a_row_keeps_the_names_of_its_time(tmp_path: Path) -> None:
    async def story(_flows: FlowStore, _history: History) -> None:
        known = directory()
        flows = store(64, known)
        fill(flows, 0, 1)
        known.pods["10.0.1.5"] = Pod(id=101, identity=4321, namespace="demo", name="another")
        known.touch()
        fill(flows, 1, 1)
        block = codec.detach(flows.spans(0, 2), flows, [])
        names = [block.known.parties.values[ref].pod for ref in block.rows.source.tolist()]
        assert names == ["client-5f", "another"]
        both = codec.joined([codec.detach(flows.spans(n, n + 1), flows, []) for n in range(2)])
        assert [both.known.parties.values[ref].pod for ref in both.rows.source.tolist()] == names

    run(tmp_path, story)


def test_gaps_of_a_file_are_bounded() -> None:
    gap = LossRow(serial=0, position=0, source=LossSource(1), count=1, cpu=0, first=0, last=0)
    gaps = [msgspec.structs.replace(gap, position=number) for number in range(1000)]
    folded = recorder.folded(gaps)
    assert len(folded) == recorder.KEPT_GAPS
    assert sum(gap.count for gap in folded) == 1000
