"""Labels as identities carry them: `source:key=value`, sorted.

Sources users know: `k8s` (pod, namespace and service account), `reserved`, `cidr`, `any` (selectors
only). Source: the label syntax of Kubernetes and of the cilium.io resources.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

NAMESPACE = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
SERVICE_ACCOUNT = "io.cilium.k8s.policy.serviceaccount"
CLUSTER = "io.cilium.k8s.policy.cluster"

_GIVEN = frozenset({NAMESPACE, SERVICE_ACCOUNT, CLUSTER})
"""Keys that say where a pod stands: its own labels can't."""


class Label(msgspec.Struct, frozen=True, order=True):
    """One label."""

    source: str
    key: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.key}={self.value}" if self.value else f"{self.source}:{self.key}"

    @classmethod
    def parse(cls, text: str) -> Label:
        """Read `[source:]key[=value]`; without a source it is `any`."""
        name, _, value = text.partition("=")
        source, colon, key = name.partition(":")
        return cls(source, key, value) if colon else cls("any", source, value)


class Labels(msgspec.Struct, frozen=True):
    """A sorted set of labels; equal sets are equal values."""

    items: tuple[Label, ...] = ()

    @classmethod
    def of(cls, labels: Iterable[Label]) -> Labels:
        """Sort and remove duplicates."""
        return cls(tuple(sorted(set(labels))))

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Labels:
        """Read a list of `source:key=value` strings."""
        return cls.of(Label.parse(text) for text in texts)

    @classmethod
    def kubernetes(
        cls,
        namespace: str,
        pod: Mapping[str, str],
        namespace_labels: Mapping[str, str] | None = None,
        service_account: str = "default",
        cluster: str = "default",
    ) -> Labels:
        """The identity labels of a pod: its own, its namespace's, its service account's, its cluster's.

        Of its own those are left out that would pass for the others: whoever may label a pod must not choose
        the namespace that policies take it for.
        """
        labels = [
            Label("k8s", key, value)
            for key, value in pod.items()
            if key not in _GIVEN and not key.startswith(NAMESPACE_LABELS)
        ]
        labels.append(Label("k8s", NAMESPACE, namespace))
        labels.append(Label("k8s", SERVICE_ACCOUNT, service_account or "default"))
        labels.append(Label("k8s", CLUSTER, cluster))
        for key, value in (namespace_labels or {}).items():
            labels.append(Label("k8s", NAMESPACE_LABELS + key, value))
        return cls.of(labels)

    @classmethod
    def reserved(cls, name: str) -> Labels:
        """The labels of a reserved identity."""
        return cls((Label("reserved", name),))

    def strings(self) -> list[str]:
        """`source:key=value` strings, sorted, as users see them."""
        return [str(label) for label in self.items]

    def security_labels(self) -> dict[str, str]:
        """As a CiliumIdentity's `security-labels`: `source:key` to value."""
        return {f"{label.source}:{label.key}": label.value for label in self.items}

    @classmethod
    def from_security_labels(cls, mapping: Mapping[str, str]) -> Labels:
        """The reverse of `security_labels`."""
        labels = []
        for name, value in mapping.items():
            source, _, key = name.partition(":")
            labels.append(Label(source, key, value))
        return cls.of(labels)

    def get(self, key: str, source: str = "k8s") -> str | None:
        """The value of `source:key`, or None."""
        for label in self.items:
            if label.key == key and label.source == source:
                return label.value
        return None

    def has(self, source: str, key: str) -> bool:
        """Whether `source:key` is there."""
        return self.get(key, source) is not None

    @property
    def is_host(self) -> bool:
        """Whether they are those of a node's own host endpoint."""
        return self.has("reserved", "host")

    @property
    def namespace(self) -> str:
        """The pod's namespace, or an empty string."""
        return self.get(NAMESPACE) or ""
