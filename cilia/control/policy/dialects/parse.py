"""From a policy object to rules, whatever its kind, and the memory of objects already read.

What an object says that this version can't enforce closes: its rule allows nothing or denies everybody, the
rest is in force, and its state says which part it is and what to write instead (`reading.py`).
"""

from __future__ import annotations

from cilia.control.policy.dialects import administrator, cilium, kubernetes
from cilia.control.policy.dialects.reading import Reader
from cilia.control.policy.rules import Parsed
from cilia.model.policy import PolicyObject
from cilia.model.resources.cilium_policy import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from cilia.model.resources.cluster_network_policy import ClusterNetworkPolicy
from cilia.model.resources.network_policy import NetworkPolicy


def parse(policy: PolicyObject, cluster: str = "default", *, host_firewall: bool = False) -> Parsed:
    """Read one object. `cluster` is the name whose pods entity `cluster`, and selectors of peers that name no
    cluster, mean; policies for nodes are refused without `host_firewall`."""
    reader = Reader(policy, cluster, host_firewall=host_firewall)
    body = policy.body
    if policy.problem is not None:
        reader.refuse_whole(policy.problem.path, policy.problem.sentence)
    elif isinstance(body, NetworkPolicy):
        kubernetes.read(reader, body)
    elif isinstance(body, CiliumNetworkPolicy | CiliumClusterwideNetworkPolicy):
        cilium.read(reader, body)
    elif isinstance(body, ClusterNetworkPolicy):
        administrator.read(reader, body)
    else:
        reader.refuse_whole("", f"A {policy.kind} can't be enforced here: apply one of the supported kinds.")
    return reader.result()


class RuleBook:
    """Remembers what was read, so that two readers of one table read each object once."""

    def __init__(self, cluster: str = "default", *, host_firewall: bool = False) -> None:
        self._cluster = cluster
        self._host_firewall = host_firewall
        self._read: dict[tuple[str, str, str], tuple[PolicyObject, Parsed]] = {}

    def parsed(self, policy: PolicyObject) -> Parsed:
        """The rules of `policy`."""
        known = self._read.get(policy.key)
        if known is not None and known[0] is policy:
            return known[1]
        parsed = parse(policy, self._cluster, host_firewall=self._host_firewall)
        self._read[policy.key] = (policy, parsed)
        return parsed

    def forget(self, key: tuple[str, str, str]) -> None:
        """Drop an object that is gone; forgetting the unknown is no error."""
        self._read.pop(key, None)
