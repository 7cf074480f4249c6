"""CiliumIdentity, version v2: the labels behind a numeric identity. The object's name is the number in
decimal.

Source: the CRD schema of cilium.io/v2.
"""

from cilia.model.resources.base import Dashed, ObjectMeta

HEARTBEAT_ANNOTATION = "io.cilium.heartbeat"


class CiliumIdentity(Dashed, frozen=True, kw_only=True):
    """Labels by key with source prefix (`k8s:app`); metadata labels repeat them without the prefix."""

    metadata: ObjectMeta
    security_labels: dict[str, str]
