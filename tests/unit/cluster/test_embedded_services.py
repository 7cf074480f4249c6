"""What a Service is given, and what it may ask for: stories of one Service after the other."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from cilia.cluster.embedded import rules, services
from cilia.cluster.embedded.services import SERVICES, Allocator, RangeError, parse_ranges
from cilia.cluster.embedded.storage import Key

Value = dict[str, Any]


class World:
    """An allocator and the Services it serves, without a store."""

    def __init__(self, networks: str = services.DEFAULT_NETWORKS, ports: str = "30000-32767") -> None:
        self.objects: dict[str, Value] = {}
        self.allocator = Allocator(self, parse_ranges(networks, ports), random.Random(7).randrange)  # type: ignore[arg-type]

    def when_failed(self, callback: Any) -> None:
        """The engine's part: nothing fails here."""

    def put(self, name: str, spec: Value, *, status: Value | None = None) -> Value:
        """Write a Service and return its spec; raises AssertionError with the faults."""
        value, faults = self.judge(name, spec, status)
        assert not faults, [str(fault) for fault in faults]
        self.objects[name] = value
        self.allocator.note(Key(SERVICES, "d", name), value)
        found: Value = value["spec"]
        return found

    def refused(self, name: str, spec: Value) -> str:
        _, faults = self.judge(name, spec, None)
        assert faults
        return "; ".join(map(str, faults))

    def remove(self, name: str) -> None:
        del self.objects[name]
        self.allocator.note(Key(SERVICES, "d", name), None)

    def judge(self, name: str, spec: Value, status: Value | None) -> tuple[Value, list[Any]]:
        value: Value = {"metadata": {"namespace": "d", "name": name}, "spec": copy.deepcopy(spec)}
        if status is not None:
            value["status"] = status
        old = self.objects.get(name)
        services.carry_over(value, old)
        rules.complete_service(value)
        faults = rules.check_service(value, old)
        return value, faults or self.allocator.assign(Key(SERVICES, "d", name), value, old)


PORT = {"port": 80}


def ports(*numbers: int, **more: Any) -> list[Value]:
    return [{"name": f"p{at}", "port": number, **more} for at, number in enumerate(numbers)]


def test_a_cluster_ip_is_given_kept_and_given_back() -> None:
    world = World("10.96.0.0/29")
    spec = world.put("a", {"ports": [PORT]})
    assert (spec["type"], spec["clusterIPs"], spec["ipFamilies"]) == (
        "ClusterIP",
        [spec["clusterIP"]],
        ["IPv4"],
    )
    assert (spec["ipFamilyPolicy"], spec["internalTrafficPolicy"]) == ("SingleStack", "Cluster")
    again = world.put("a", {"ports": [{"port": 81}]})
    assert again["clusterIPs"] == spec["clusterIPs"]
    others = {world.put(f"s{at}", {"ports": [PORT]})["clusterIP"] for at in range(5)}
    assert len(others | {spec["clusterIP"]}) == 6
    assert "range 10.96.0.0/29 is full" in world.refused("z", {"ports": [PORT]})
    world.remove("a")
    assert world.put("z", {"ports": [PORT]})["clusterIP"] == spec["clusterIP"]


def test_a_cluster_ip_of_ones_own_choice() -> None:
    world = World()
    assert world.put("a", {"clusterIP": "10.96.0.10", "ports": [PORT]})["clusterIPs"] == ["10.96.0.10"]
    assert "d/a has it already" in world.refused("b", {"clusterIP": "10.96.0.10", "ports": [PORT]})
    assert "valid range" in world.refused("b", {"clusterIP": "192.0.2.1", "ports": [PORT]})
    assert "valid IP" in world.refused("b", {"clusterIP": "moon", "ports": [PORT]})
    assert "may not change" in world.refused("a", {"clusterIP": "10.96.0.11", "ports": [PORT]})
    assert "first of clusterIPs" in world.refused(
        "b", {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.2"], "ports": [PORT]}
    )
    spec = world.put("six", {"clusterIPs": ["FD00:10:96:0::5"], "ports": [PORT]})
    assert (spec["ipFamilies"], spec["clusterIP"]) == (["IPv6"], "FD00:10:96:0::5")
    assert "d/six" in world.refused("b", {"clusterIP": "fd00:10:96::5", "ports": [PORT]})


def test_families() -> None:
    world = World()
    both = world.put("both", {"ipFamilyPolicy": "RequireDualStack", "ports": [PORT]})
    assert both["ipFamilies"] == ["IPv4", "IPv6"]
    assert [":" in text for text in both["clusterIPs"]] == [False, True]
    six = world.put("six", {"ipFamilies": ["IPv6"], "ipFamilyPolicy": "PreferDualStack", "ports": [PORT]})
    assert six["ipFamilies"] == ["IPv6", "IPv4"]
    assert ":" in six["clusterIP"]
    assert world.put("two", {"ipFamilies": ["IPv4", "IPv6"], "ports": [PORT]})["ipFamilyPolicy"] == (
        "RequireDualStack"
    )
    assert "is not of the family IPv6" in world.refused(
        "bad", {"ipFamilies": ["IPv6"], "clusterIP": "10.96.0.9", "ports": [PORT]}
    )
    assert "spec.ipFamilies[0]" in world.refused("both", {"ipFamilies": ["IPv6", "IPv4"], "ports": [PORT]})
    single = World("10.96.0.0/16")
    assert single.put("p", {"ipFamilyPolicy": "PreferDualStack", "ports": [PORT]})["ipFamilies"] == ["IPv4"]
    assert "one family only" in single.refused("r", {"ipFamilyPolicy": "RequireDualStack", "ports": [PORT]})
    assert "not configured" in single.refused("s", {"ipFamilies": ["IPv6"], "ports": [PORT]})


def test_one_family_becomes_two_and_one_again() -> None:
    world = World()
    before = world.put("a", {"ports": [PORT]})
    both = world.put("a", {**before, "ipFamilyPolicy": "PreferDualStack"})
    assert both["clusterIPs"][0] == before["clusterIP"]
    assert len(both["clusterIPs"]) == 2
    one = world.put("a", {**both, "ipFamilyPolicy": "SingleStack"})
    assert (one["clusterIPs"], one["ipFamilies"]) == (before["clusterIPs"], ["IPv4"])
    assert world.put("b", {"clusterIP": both["clusterIPs"][1], "ports": [PORT]})


def test_headless_services() -> None:
    world = World()
    assert world.put("a", {"clusterIP": "None", "selector": {"a": "b"}})["ipFamilies"] == ["IPv4"]
    assert world.put("b", {"clusterIP": "None"})["ipFamilies"] == ["IPv4", "IPv6"]
    assert "may not be 'None'" in world.refused(
        "c", {"clusterIP": "None", "type": "NodePort", "ports": [PORT]}
    )
    single = World("10.96.0.0/16")
    assert single.put("b", {"clusterIP": "None"})["ipFamilies"] == ["IPv4", "IPv6"]


def test_node_ports() -> None:
    world = World(ports="30000-30002")
    first = world.put("a", {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]})
    assert (first["ports"][0]["nodePort"], first["externalTrafficPolicy"]) == (30001, "Cluster")
    assert "already allocated, to d/a" in world.refused(
        "b", {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]}
    )
    assert "30000-30002" in world.refused(
        "b", {"type": "NodePort", "ports": [{"port": 80, "nodePort": 40000}]}
    )
    kept = world.put("a", {"type": "NodePort", "ports": [{"name": "x", "port": 80}]})
    assert kept["ports"][0]["nodePort"] == 30001
    pair = [{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}]
    dns = world.put("dns", {"type": "NodePort", "ports": pair})
    assert dns["ports"][0]["nodePort"] == dns["ports"][1]["nodePort"]
    world.put("c", {"type": "NodePort", "ports": [PORT]})
    assert "all node ports are in use" in world.refused("e", {"type": "NodePort", "ports": [PORT]})
    assert "may not be used when `type` is 'ClusterIP'" in world.refused(
        "e", {"ports": [{"port": 80, "nodePort": 30000}]}
    )
    back = world.put("a", {**kept, "type": "ClusterIP"})
    assert "nodePort" not in back["ports"][0]
    assert "externalTrafficPolicy" not in back
    assert world.put("e", {"type": "NodePort", "ports": [PORT]})["ports"][0]["nodePort"] == 30001


def test_the_health_port_of_a_load_balancer() -> None:
    world = World()
    local = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [PORT]}
    spec = world.put("a", local)
    assert 30000 <= spec["healthCheckNodePort"] <= 32767
    assert spec["healthCheckNodePort"] != spec["ports"][0]["nodePort"]
    assert spec["allocateLoadBalancerNodePorts"] is True
    assert world.put("a", local)["healthCheckNodePort"] == spec["healthCheckNodePort"]
    assert "already allocated" in world.refused(
        "b", {**local, "healthCheckNodePort": spec["healthCheckNodePort"]}
    )
    changed = world.put("a", {**spec, "externalTrafficPolicy": "Cluster"})
    assert "healthCheckNodePort" not in changed
    assert "may only be set when" in world.refused(
        "c", {"type": "NodePort", "healthCheckNodePort": 32000, "ports": [PORT]}
    )
    none = world.put("n", {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False, "ports": [PORT]})
    assert "nodePort" not in none["ports"][0]


def test_a_service_that_becomes_an_alias_gives_everything_back() -> None:
    world = World()
    spec = world.put("a", {"type": "NodePort", "ports": [PORT]})
    alias = world.put("a", {**spec, "type": "ExternalName", "externalName": "db.example"})
    assert "clusterIP" not in alias
    assert "nodePort" not in alias["ports"][0]
    assert world.put("b", {"clusterIP": spec["clusterIP"], "ports": [PORT]})
    assert world.put("a", {"ports": [PORT]})["clusterIP"] != spec["clusterIP"]
    assert "spec.externalName" in world.refused("c", {"type": "ExternalName"})


def test_a_balancer_that_is_none_any_more_loses_its_addresses() -> None:
    world = World()
    world.put("a", {"type": "LoadBalancer", "ports": [PORT]})
    ingress = {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}
    world.put("a", world.objects["a"]["spec"], status=ingress)
    assert world.objects["a"]["status"]["loadBalancer"]["ingress"] == [{"ip": "203.0.113.1", "ipMode": "VIP"}]
    value, faults = world.judge("a", {**world.objects["a"]["spec"], "type": "NodePort"}, ingress)
    assert (faults, value["status"]) == ([], {"loadBalancer": {}})


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"ports": []}, "spec.ports"),
        ({"ports": [PORT, PORT]}, "spec.ports[1]"),
        ({"ports": [*ports(80, 81)[:1], {"name": "p0", "port": 82}]}, "spec.ports[1].name"),
        ({"ports": [{"port": 80, "targetPort": 0}]}, "spec.ports[0].targetPort"),
        ({"ports": [PORT], "externalIPs": ["127.0.0.1"]}, "spec.externalIPs[0]"),
        ({"ports": [PORT], "externalIPs": ["x"]}, "spec.externalIPs[0]"),
        ({"ports": [PORT], "externalTrafficPolicy": "Local"}, "spec.externalTrafficPolicy"),
        ({"ports": [PORT], "loadBalancerSourceRanges": ["10.0.0.0/8"]}, "spec.loadBalancerSourceRanges[0]"),
        (
            {"type": "LoadBalancer", "ports": [PORT], "loadBalancerSourceRanges": ["moon"]},
            "spec.loadBalancerSourceRanges[0]",
        ),
        (
            {
                "ports": [PORT],
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}},
            },
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
        ({"clusterIPs": ["None", "10.96.0.1"], "ports": [PORT]}, "'None' stands alone"),
        (
            {"type": "NodePort", "ports": [{"name": "a", "port": 1, "nodePort": 30001},
                                           {"name": "b", "port": 2, "nodePort": 30001}]},
            "spec.ports[1].nodePort",
        ),
    ],
)  # fmt: skip
def test_services_that_make_no_sense(spec: Value, path: str) -> None:
    assert path in World().refused("a", spec)


def test_defaults_of_affinity() -> None:
    spec = World().put("a", {"ports": [PORT], "sessionAffinity": "ClientIP"})
    assert spec["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}


@pytest.mark.parametrize(
    ("networks", "numbers"),
    [
        ("moon", "1-2"),
        ("10.0.0.0/16,10.1.0.0/16", "1-2"),
        ("10.0.0.0/31", "1-2"),
        ("10.0.0.0/16", "2-1"),
        ("10.0.0.0/16", "0-1"),
        ("10.0.0.0/16", "x"),
        ("10.0.0.0/16", "1-99999"),
    ],
)
def test_ranges_that_cannot_be_given_out(networks: str, numbers: str) -> None:
    with pytest.raises(RangeError):
        parse_ranges(networks, numbers)


def test_nothing_is_given_twice_however_it_comes() -> None:
    """Random Services come, change and go; what they have never overlaps."""
    dice = random.Random(11)
    world = World("10.96.0.0/26,fd00::/122", "30000-30060")
    for _ in range(600):
        name = f"s{dice.randrange(30)}"
        if name in world.objects and dice.random() < 0.3:
            world.remove(name)
            continue
        spec: Value = {"type": dice.choice(["ClusterIP", "NodePort", "LoadBalancer"]), "ports": ports(80, 81)}
        spec["ipFamilyPolicy"] = dice.choice(["SingleStack", "PreferDualStack"])
        if spec["type"] == "LoadBalancer":
            spec["externalTrafficPolicy"] = dice.choice(["Local", "Cluster"])
        value, faults = world.judge(name, spec, None)
        if not faults:
            world.objects[name] = value
            world.allocator.note(Key(SERVICES, "d", name), value)
        held = [services.held_by(value) for value in world.objects.values()]
        addresses = [text for one in held for text in one.addresses]
        numbers = [number for one in held for number in one.ports]
        assert len(addresses) == len(set(addresses))
        assert len(numbers) == len(set(numbers))
