"""Which columns of fragments flows are made of, and what a field mask leaves of them."""

from __future__ import annotations

from cilia.hubble.masks import FlowMask, Wanted

CUT_FRAGMENTS, CUT_BYTES = 1 << 12, 1 << 20
"""Of each client that asks with a field mask."""

FIELDS_OF = {
    name: frozenset(fields.split())
    for name, fields in {
        "sources": "source source_names",
        "destinations": "destination destination_names",
        "services": "source_service destination_service",
        "pairs": """IP ethernet tunnel interface egress_allowed_by ingress_allowed_by egress_denied_by
            ingress_denied_by policy_log""",
        "meanings": """node_name node_labels emitter verdict auth_type Type reply event_type traffic_direction
            proxy_port Summary drop_reason drop_reason_desc file trace_observation_point trace_reason
            policy_match_type is_reply""",
        "sockets": "sock_xlate_point socket_cookie cgroup_id",
        "transports": "l4",
        "times": "time",
        "uuids": "uuid",
    }.items()
}
"""The fields of a flow that a column of fragments may hold."""


class Cuts:
    """A field mask at work: what it leaves of each distinct fragment."""

    def __init__(self, mask: FlowMask) -> None:
        self._wants = {name: mask.wants(fields) for name, fields in FIELDS_OF.items()}
        self._mask = mask
        self._left: dict[bytes, bytes] = {}
        self._bytes = 0

    def wanted(self, name: str) -> bool:
        """Whether a column is needed at all."""
        return self._wants[name] is not Wanted.NOTHING

    def apply(self, name: str, fragments: list[bytes]) -> list[bytes]:
        """What is left of a column."""
        if self._wants[name] is Wanted.WHOLE:
            return fragments
        left = self._left
        if len(left) > CUT_FRAGMENTS or self._bytes > CUT_BYTES:
            left.clear()
            self._bytes = 0
        for fragment in set(fragments).difference(left):
            cut = left[fragment] = self._mask.cut(fragment)
            self._bytes += len(fragment) + len(cut)
        return list(map(left.__getitem__, fragments))
