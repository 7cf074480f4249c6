"""Denials as policy verdicts, for those who ask for verdicts only.

    kernel: one drop ─┬─► answers with drops in them: the drop
                      └─► answers of policy verdicts only: the same row, as a verdict

Cilium tells of a denial twice, as a verdict and as a drop. Here it is one record and one row, so that a flood
is not doubled, and who asks for verdicts finds it in the form that verdicts have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cilia.hubble.columns import KIND_DROP, KIND_VERDICT, equal
from cilia.hubble.meaning import EVENT_TYPES
from cilia.hubble.ring import Rows
from cilia.model.drop_reasons import BY_POLICY
from cilia.proto.flow import flow_pb2

DROP, VERDICT = EVENT_TYPES[KIND_DROP], EVENT_TYPES[KIND_VERDICT]


def shown(whitelist: Sequence[flow_pb2.FlowFilter]) -> Callable[[Rows], Rows]:
    """How rows look to who has asked for these: denials as verdicts, where verdicts are asked for and drops
    nowhere."""
    kinds = [{each.type for each in message.event_type} for message in whitelist]
    alone = any(VERDICT in each for each in kinds) and all(each and DROP not in each for each in kinds)
    return as_verdicts if alone else lambda rows: rows


def as_verdicts(rows: Rows) -> Rows:
    """The same rows, denials among them as policy verdicts."""
    denied = equal(rows.events, "kind", KIND_DROP) & np.isin(rows.events["reason"], BY_POLICY)
    if not denied.any():
        return rows
    events = rows.events.copy()
    events["kind"][denied] = KIND_VERDICT
    return rows._replace(events=events)
