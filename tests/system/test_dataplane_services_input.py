"""Whatever stands in Services, slices, pods and redirects: the kernel has what control makes of it, and
nothing raises on the way."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cilia.cluster.store import Invalid
from cilia.control.services.node import ServicesNode
from cilia.control.services.settings import ServiceSettings
from cilia.model.node import Node
from cilia.schema import Desired, Inputs
from cilia.sources import pods, redirects
from cilia.sources import services as sources
from tests.support.dataplane import needs_kernel
from tests.support.service_rows import Clock, service_maps, target

pytestmark = needs_kernel

OWN = Node(name="here", addresses=("172.18.0.2", "fd00:18::2"))
ADDRESSES = (
    *("10.96.0.1", "10.96.0.2", "fd96::1", "FD96:0::1", "10.0.1.5", "fd00::5", "172.18.0.2", "fd00:18::2"),
    *("::ffff:10.96.0.1", "::ffff:0:0", "::1.2.3.4", "64:ff9b::1.2.3.4", "::", "0.0.0.0", "127.0.0.1", "::1"),
    *("224.0.0.1", "255.255.255.255", "169.254.169.254", "fe80::1", "fe80::1%eth0", "ff02::1", "0.1.2.3"),
    *("None", "", "10.96.0.1/32", "010.1.1.1", "1.2.3", "１.2.3.4", "10.96.0.1\n", "a" * 300),
)
RANGES = (
    *("10.0.0.0/8", "::/0", "0.0.0.0/0", "10.0.0.0/255.0.0.0", "fe80::1%eth0/64", "::ffff:0:0/96"),
    *("moon", "", "10.0.0.1/33", "10.0.0.1", " 10.0.0.0/8 "),
)
PORTS = (0, 1, 53, 80, 443, 8080, 30080, 30081, 65535, 65536, -1, 2**31 - 1)
PROTOCOLS = ("TCP", "UDP", "SCTP", "tcp", "ICMP", "", "x" * 99)
NAMES = ("http", "dns", "", "é", "x" * 300)
WEIGHTS = ("0", "1", "100", "-1", "65536", "1.5", "9" * 500)


class Writer:
    """Objects at random."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def some(self, values: tuple[Any, ...], most: int = 3) -> list[Any]:
        return [self.rng.choice(values) for _ in range(self.rng.randrange(most + 1))]

    def port(self, **names: tuple[Any, ...]) -> dict[str, Any]:
        rng = self.rng
        made = {"name": rng.choice(NAMES), "protocol": rng.choice(PROTOCOLS), "port": rng.choice(PORTS)}
        return made | {name: rng.choice(values) for name, values in names.items()}

    def service(self) -> dict[str, Any]:
        rng = self.rng
        spec = {
            "type": rng.choice(("ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer", "strange")),
            "clusterIPs": self.some(ADDRESSES),
            "externalIPs": self.some(ADDRESSES),
            "ports": [self.port(nodePort=PORTS) for _ in range(rng.choice((0, 1, 2, 30)))],
            "externalTrafficPolicy": rng.choice(("Local", "Cluster", "strange")),
            "internalTrafficPolicy": rng.choice(("Local", "Cluster")),
            "sessionAffinity": rng.choice(("ClientIP", "None")),
            "loadBalancerSourceRanges": self.some(RANGES),
            "healthCheckNodePort": rng.choice(PORTS),
            "trafficDistribution": rng.choice(("", "PreferClose", "strange")),
        }
        balancers = [{"ip": address} for address in self.some(ADDRESSES)]
        return {"spec": spec, "status": {"loadBalancer": {"ingress": balancers}}}

    def slice(self) -> dict[str, Any]:
        rng = self.rng
        made = {
            "addressType": rng.choice(("IPv4", "IPv6", "FQDN")),
            "endpoints": [
                {"addresses": self.some(ADDRESSES), "nodeName": rng.choice(("here", "there", ""))}
                for _ in range(rng.randrange(6))
            ],
            "ports": [self.port() for _ in range(rng.randrange(4))],
        }
        labels = {"kubernetes.io/service-name": f"web-{rng.randrange(4)}"}
        return made | {
            "metadata": {"labels": labels, "annotations": {"service.cilium.io/weight": rng.choice(WEIGHTS)}}
        }

    def pod(self) -> dict[str, Any]:
        ports = [
            self.port(hostPort=PORTS, hostIP=ADDRESSES, containerPort=PORTS)
            for _ in range(self.rng.randrange(4))
        ]
        status = {"phase": "Running", "podIPs": [{"ip": address} for address in self.some(ADDRESSES)]}
        return {
            "metadata": {"uid": "u", "labels": {"app": "dns"}},
            "spec": {"nodeName": "here", "containers": [{"name": "c", "ports": ports}]},
            "status": status,
        }

    def redirect(self) -> dict[str, Any]:
        ports = [{"port": str(self.rng.choice(PORTS)), "protocol": "TCP", "name": "http"}]
        frontend: dict[str, Any] = {"addressMatcher": {"ip": self.rng.choice(ADDRESSES), "toPorts": ports}}
        if self.rng.random() < 0.5:
            frontend = {
                "serviceMatcher": {"serviceName": f"web-{self.rng.randrange(4)}", "namespace": "shop"}
            }
        backend = {"localEndpointSelector": {"matchLabels": {"app": "dns"}}, "toPorts": ports}
        return {"spec": {"redirectFrontend": frontend, "redirectBackend": backend}}


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_written(seed: int) -> None:
    writer, inputs, desired = Writer(seed), Inputs(), Desired()
    settings = ServiceSettings(local_redirects=True, source_ranges_everywhere=bool(seed % 2))
    node = ServicesNode(inputs, desired, node="here", settings=settings, own=OWN)
    kinds: list[tuple[Callable[[], dict[str, Any]], Callable[[msgspec.Raw], Any], Any]] = [
        (writer.service, sources.service, inputs.services),
        (writer.slice, sources.endpoint_slice, inputs.endpoint_slices),
        (writer.pod, pods.row, inputs.pods),
        (writer.redirect, redirects.row, inputs.redirects),
    ]
    with service_maps() as maps:
        kernel = target(maps, clock := Clock())
        for _ in range(60):
            write, read, table = writer.rng.choice(kinds)
            written = write()
            name = {"namespace": "shop", "name": f"web-{writer.rng.randrange(4)}"}
            written["metadata"] = written.get("metadata", {}) | name
            try:
                row = read(msgspec.Raw(msgspec.json.encode(written)))
            except Invalid:
                continue
            if row is not None:
                table.put(row)
            node.step()
            rows = {row.frontend: row for row in desired.service_entries}
            kernel.delete(sorted(kernel.ours() - rows.keys()))
            assert kernel.update(list(rows.values())) == {}
            clock.now += 1
            assert kernel.ours() == rows.keys() and not kernel.differences(sorted(rows))
