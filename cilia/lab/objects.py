"""The Kubernetes objects the lab's controllers read, with the fields only they need.

Source: Kubernetes API reference, core/v1 and discovery.k8s.io/v1.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cilia.kit.clock import Clock
from cilia.lab.plan import DEFAULT_IMAGE, NodePlan
from cilia.lab.records import PodRecord
from cilia.lab.sandbox import Workload
from cilia.model.resources.base import Object, ObjectMeta
from cilia.model.resources.core import ContainerPort, PodStatus

SERVER_PORT = 8080


class EnvVar(Object, frozen=True, kw_only=True):
    """A variable of a container."""

    name: str
    value: str = ""


class SleepAction(Object, frozen=True, kw_only=True):
    """Wait."""

    seconds: int = 0


class Hook(Object, frozen=True, kw_only=True):
    """What happens at a turn of a container's life; the lab can wait."""

    sleep: SleepAction | None = None


class Lifecycle(Object, frozen=True, kw_only=True):
    """Hooks of a container."""

    pre_stop: Hook | None = None


class ExecAction(Object, frozen=True, kw_only=True):
    """A command inside the container that succeeds, or not."""

    command: tuple[str, ...] = ()


class SocketAction(Object, frozen=True, kw_only=True):
    """A TCP port that accepts connections, or not: a number, or a container port's name."""

    port: int | str


class Probe(Object, frozen=True, kw_only=True):
    """How the kubelet asks a container whether it is ready."""

    exec: ExecAction | None = None
    tcp_socket: SocketAction | None = None
    initial_delay_seconds: float = 0
    period_seconds: float = 10
    timeout_seconds: float = 1
    failure_threshold: int = 3
    success_threshold: int = 1


class LabContainer(Object, frozen=True, kw_only=True):
    """A container: a command, or the built-in server on its ports."""

    name: str = ""
    image: str = ""
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    env: tuple[EnvVar, ...] | None = None
    ports: tuple[ContainerPort, ...] | None = None
    lifecycle: Lifecycle | None = None
    readiness_probe: Probe | None = None


class LabPodSpec(Object, frozen=True, kw_only=True):
    """What the scheduler and the kubelet need."""

    node_name: str = ""
    node_selector: dict[str, str] | None = None
    host_network: bool = False
    containers: tuple[LabContainer, ...] = ()


class LabPod(Object, frozen=True, kw_only=True):
    """core/v1 Pod."""

    metadata: ObjectMeta = ObjectMeta()
    spec: LabPodSpec = LabPodSpec()
    status: PodStatus = PodStatus()

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.metadata.namespace, self.metadata.name

    @property
    def ready(self) -> bool:
        """Its condition Ready."""
        conditions = self.status.conditions or ()
        return any(item.type == "Ready" and item.status == "True" for item in conditions)

    @property
    def terminating(self) -> bool:
        """Whether it is being deleted."""
        return self.metadata.deletion_timestamp is not None

    @property
    def probe(self) -> Probe | None:
        """How its readiness is asked for; None: it is ready when it runs."""
        found = (container.readiness_probe for container in self.spec.containers)
        return next(filter(None, found), None)

    @property
    def pause(self) -> int:
        """Seconds it goes on before it is told to end."""
        hooks = (item.lifecycle.pre_stop for item in self.spec.containers if item.lifecycle)
        return max((hook.sleep.seconds for hook in hooks if hook and hook.sleep), default=0)

    def port(self, wanted: int | str) -> int:
        """A container port by number or name; 0 for a name that is none."""
        if isinstance(wanted, int):
            return wanted
        ports = (port for container in self.spec.containers for port in container.ports or ())
        return next((port.container_port for port in ports if port.name == wanted), 0)


class ServicePort(Object, frozen=True, kw_only=True):
    """A port of a service; the target is a number or a container port's name."""

    port: int
    name: str = ""
    protocol: str = "TCP"
    target_port: int | str | None = None


class ServiceSpec(Object, frozen=True, kw_only=True):
    """What the endpoint-slice controller needs."""

    type: str = "ClusterIP"
    selector: dict[str, str] | None = None
    ports: tuple[ServicePort, ...] | None = None
    ip_families: tuple[str, ...] | None = None
    publish_not_ready_addresses: bool = False
    traffic_distribution: str | None = None


class Service(Object, frozen=True, kw_only=True):
    """core/v1 Service."""

    metadata: ObjectMeta = ObjectMeta()
    spec: ServiceSpec = ServiceSpec()


def timestamp(clock: Clock) -> str:
    """RFC 3339, seconds, UTC."""
    return datetime.fromtimestamp(clock.wall(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def workload(pod: LabPod) -> Workload:
    """Return what to run: the first container's command, else the echo server on its ports.

    The image `cilia.io/lab/server` (and any other without a command) serves TCP, UDP and SCTP on its
    container ports, by default TCP and UDP on 8080; `cilia.io/lab/client` serves nothing.
    """
    container = pod.spec.containers[0] if pod.spec.containers else LabContainer()
    command = (*(container.command or ()), *(container.args or ())) if container.command else ()
    serve: tuple[tuple[str, int], ...] = ()
    if not command and container.image.partition(":")[0] != "cilia.io/lab/client":
        ports = [(port.protocol.lower(), port.container_port) for port in container.ports or ()]
        serve = tuple(port for port in ports if port[0] in ("tcp", "udp", "sctp"))
        serve = serve or (("tcp", SERVER_PORT), ("udp", SERVER_PORT))
    return Workload(
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        uid=pod.metadata.uid,
        serve=serve,
        command=command,
        environment={variable.name: variable.value for variable in container.env or ()},
    )


def node_object(node: NodePlan, clock: Clock, *, ready: bool) -> dict[str, Any]:
    """Return the Node a kubelet registers."""
    now = timestamp(clock)
    status = "True" if ready else "False"
    reason = ("KubeletReady", "the agent is ready") if ready else ("KubeletNotReady", "the agent starts")
    return {
        "metadata": {
            "name": node.name,
            "labels": {
                "kubernetes.io/hostname": node.name,
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": f"zone-{node.index % 2 + 1}",
            },
        },
        "spec": {},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": node.ipv4},
                {"type": "InternalIP", "address": node.ipv6},
                {"type": "Hostname", "address": node.name},
            ],
            "conditions": [
                {
                    "type": "Ready",
                    "status": status,
                    "reason": reason[0],
                    "message": reason[1],
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                }
            ],
            "capacity": {"cpu": "1", "memory": "1Gi", "pods": "110"},
            "allocatable": {"cpu": "1", "memory": "1Gi", "pods": "110"},
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": "",
                "containerRuntimeVersion": "cilia-lab://1",
                "kernelVersion": "",
                "kubeProxyVersion": "",
                "kubeletVersion": "v1.33.0",
                "machineID": "",
                "operatingSystem": "linux",
                "osImage": "Cilia lab",
                "systemUUID": "",
            },
        },
    }


def running_status(
    pod: LabPod, record: PodRecord, node: NodePlan, clock: Clock, *, ready: bool = True
) -> dict[str, Any]:
    """Return the status of a pod whose sandbox runs."""
    now = timestamp(clock)
    conditions = dict.fromkeys(("PodReadyToStartContainers", "Initialized", "PodScheduled"), "True")
    conditions |= dict.fromkeys(("Ready", "ContainersReady"), "True" if ready else "False")
    return {
        "phase": "Running",
        "hostIP": node.ipv4,
        "hostIPs": [{"ip": node.ipv4}, {"ip": node.ipv6}],
        "podIP": record.ips[0] if record.ips else "",
        "podIPs": [{"ip": address} for address in record.ips],
        "startTime": now,
        "conditions": [_condition(kind, status, now) for kind, status in conditions.items()],
        "containerStatuses": [_container_status(item, record, now, ready) for item in pod.spec.containers],
    }


def readiness_status(pod: LabPod, clock: Clock, *, ready: bool) -> dict[str, Any]:
    """Return what of a running pod's status changes with its readiness."""
    now, status = timestamp(clock), "True" if ready else "False"
    kinds = ("Ready", "ContainersReady")
    others = [item for item in pod.status.conditions or () if item.type not in kinds]
    conditions = [_condition(item.type, item.status, item.last_transition_time or now) for item in others]
    return {"conditions": [*conditions, *(_condition(kind, status, now) for kind in kinds)]}


def _condition(kind: str, status: str, now: str) -> dict[str, Any]:
    return {"type": kind, "status": status, "lastTransitionTime": now}


def _container_status(container: LabContainer, record: PodRecord, now: str, ready: bool) -> dict[str, Any]:
    return {
        "name": container.name,
        "image": container.image or DEFAULT_IMAGE,
        "imageID": container.image or DEFAULT_IMAGE,
        "containerID": f"cilia-lab://{record.sandbox}",
        "ready": ready,
        "started": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": now}},
    }


def stopped_status(phase: str, reason: str, message: str, clock: Clock) -> dict[str, Any]:
    """Return the status of a pod that does not run: Pending (not yet), Succeeded or Failed."""
    now = timestamp(clock)
    return {
        "phase": phase,
        "reason": reason,
        "message": message,
        "conditions": [_condition("Ready", "False", now) | {"reason": reason, "message": message}],
    }


def event_object(pod: LabPod, node: str, reason: str, message: str, clock: Clock) -> dict[str, Any]:
    """Return the Event that `kubectl describe pod` shows for a failure."""
    now = timestamp(clock)
    return {
        "metadata": {"generateName": f"{pod.metadata.name}.", "namespace": pod.metadata.namespace},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": pod.metadata.namespace,
            "name": pod.metadata.name,
            "uid": pod.metadata.uid,
        },
        "reason": reason,
        "message": message[:1024],
        "type": "Warning",
        "source": {"component": "kubelet", "host": node},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
