"""What a viewer of some namespaces gets of a flow: nothing, or the flow with its foreign side masked.

A side is foreign when it belongs to a namespace the viewer may not see, or to nobody knows whom. What has no
namespace by nature (the world, nodes, the host) is nobody's and stays.

The same question is pushed to the nodes as a filter, so that what may not be seen does not leave them; the
answer is checked here all the same, for a node may be older or know labels otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf import field_mask_pb2
from google.protobuf.message import DecodeError

from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from cilia.relay.scan import ScanError

NAMESPACE_LABEL = "k8s:io.kubernetes.pod.namespace"
OTHER = "cilia:other-tenant"
"""The only label a masked side has."""
OF_NOBODY = ("reserved:", "cidr:", "fqdn:", "cidrgroup:")
CLUSTER_WIDE = 256
"""Numbers of identities below are reserved: they say nothing of a tenant."""

SIDES: dict[str, Sequence[str]] = {
    "source": ("source_names", "source_service", "egress_allowed_by", "egress_denied_by"),
    "destination": ("destination_names", "destination_service", "ingress_allowed_by", "ingress_denied_by"),
}
"""Which other fields of a flow speak of a side."""


class View:
    """The eyes of one viewer."""

    def __init__(
        self, namespaces: Iterable[str], mask: field_mask_pb2.FieldMask | None, *, mask_addresses: bool
    ) -> None:
        """`mask`: the fields the client wants; None: all. `mask_addresses`: hide those of foreign sides."""
        self._namespaces = frozenset(namespaces)
        self._mask = mask
        self._mask_addresses = mask_addresses

    def narrow(self, request: observer_pb2.GetFlowsRequest) -> None:
        """Have the nodes look for nothing else: (the request's filters) and (one side may be seen)."""
        selector = f"{NAMESPACE_LABEL} in ({','.join(sorted(self._namespaces))})"
        wanted = list(request.whitelist) or [flow_pb2.FlowFilter()]
        del request.whitelist[:]
        for each in wanted:
            for field in ("source_label", "destination_label"):
                narrowed = request.whitelist.add()
                narrowed.CopyFrom(each)
                labels = getattr(narrowed, field)
                both = [f"{label},{selector}" for label in labels] or [selector]
                del labels[:]
                labels.extend(both)
        # What is masked is decided by fields the client may not want.
        request.ClearField("field_mask")

    def see(self, message: bytes) -> bytes | None:
        """What the viewer gets of a response; None: nothing. Raises ScanError."""
        try:
            response = observer_pb2.GetFlowsResponse.FromString(message)
        except DecodeError:
            raise ScanError("a response is no message") from None
        if response.WhichOneof("response_types") != "flow":
            return message
        flow = response.flow
        foreign = [side for side in SIDES if self._is_foreign(getattr(flow, side))]
        if not any(getattr(flow, side).namespace in self._namespaces for side in SIDES):
            return None
        for side in foreign:
            self._hide(flow, side)
        for service in ("source_service", "destination_service"):
            namespace = getattr(flow, service).namespace
            if namespace and namespace not in self._namespaces:
                flow.ClearField(service)
        if self._mask:
            wanted = flow_pb2.Flow()
            self._mask.MergeMessage(flow, wanted)
            flow.CopyFrom(wanted)
        return response.SerializeToString()

    def _is_foreign(self, side: flow_pb2.Endpoint) -> bool:
        if side.namespace:
            return side.namespace not in self._namespaces
        of_nobody = all(label.startswith(OF_NOBODY) for label in side.labels)
        return bool(side.pod_name or side.workloads) or not of_nobody

    def _hide(self, flow: flow_pb2.Flow, side: str) -> None:
        """Take out what tells who is on a side."""
        endpoint = getattr(flow, side)
        identity = endpoint.identity
        endpoint.Clear()
        endpoint.identity = identity if identity < CLUSTER_WIDE else 0
        endpoint.labels.append(OTHER)
        for field in (*SIDES[side], "policy_log", "extensions"):
            flow.ClearField(field)  # type: ignore[arg-type]
        if flow.HasField("ethernet"):
            setattr(flow.ethernet, side, "")
        if self._mask_addresses:
            setattr(flow.IP, side, "")
            flow.IP.source_xlated = ""
            for field in ("tunnel", "Summary"):
                flow.ClearField(field)  # type: ignore[arg-type]
