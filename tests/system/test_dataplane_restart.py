"""What is in force outlives the agent: the next one adopts it without switching anything."""

from __future__ import annotations

from cilia.model.ids import SubjectId
from cilia.model.policy import EntryKey
from cilia.schema import Desired
from tests.support.dataplane import allow, clean, endpoint, kernel_state, loaded_small, needs_kernel, subject

pytestmark = needs_kernel

PEER_A, PEER_B = EntryKey(1, 256), EntryKey(1, 257)


def test_a_restarted_agent_adopts_what_is_in_force() -> None:
    rows = [subject(1, "r1", {PEER_A: allow()}), subject(2, "r1", {PEER_B: allow()})]
    try:
        with loaded_small() as first:
            desired = Desired()
            state = kernel_state(first, desired)
            desired.subjects.replace(rows)
            desired.endpoint_entries.put(endpoint(5, "10.0.0.5"))
            desired.endpoint_entries.put(endpoint(6, "10.0.0.6"))
            state.apply(1.0)
            before = [state.policies._word(SubjectId(number)) for number in (1, 2)]
            state.policies.delete([SubjectId(2)])
            state.pool.settle()
        with loaded_small() as second:
            assert "policies" in second.adopted and "conntrack" in second.adopted
            desired = Desired()
            state = kernel_state(second, desired)
            desired.subjects.replace(rows)
            desired.endpoint_entries.put(endpoint(5, "10.0.0.5"))
            state.apply(1.0)
            assert state.policies._word(SubjectId(1)) == before[0], "equal entries: nothing is switched"
            assert state.policies.revision(SubjectId(2)) > before[1][1], "revisions are never reused"
            for table in desired.tables():
                table.synced = True
            assert state.prune() == 1
            assert [row["key"] for row in state.dump("endpoints")] == ["10.0.0.5"]
    finally:
        clean()
