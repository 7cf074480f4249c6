"""The lab's daemon: builds the lab, starts its programs, runs kubelets, scheduler and slice controller.

`python -m cilia.lab.daemon STATE` reads the plan that `up` has written there. Progress goes to the descriptor
named in CILIA_LAB_PROGRESS, one JSON object per line: `{"step": text, "seconds": n}` after each step, at last
`{"ready": true}` or `{"error": sentence}`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import structlog

from cilia.cluster.store import NODES, Store, StoreError
from cilia.kit import log as logging
from cilia.kit.clock import Clock, SystemClock
from cilia.kit.files import private_directory
from cilia.kit.tasks import TaskGroup
from cilia.lab import cgroups, cni, fabric, kernel, processes, records, relay, sandbox
from cilia.lab.control import serve
from cilia.lab.kubelet import Kubelet
from cilia.lab.plan import API_PORT, OUTSIDE_HOST, LabPlan, NodePlan
from cilia.lab.processes import ProcessError, Running
from cilia.lab.scheduler import Scheduler
from cilia.lab.slices import SliceController
from cilia.lab.source import open_store, write_credentials

log = structlog.get_logger(__name__)

READY_TIMEOUT = 60.0
"""Seconds until every agent must have written its CNI configuration."""
Report = Callable[[dict[str, Any]], None]


class LabError(Exception):
    """The lab can't be started; the message is for a person."""


FAILURES = (
    LabError,
    ProcessError,
    StoreError,
    OSError,
    cgroups.CgroupError,
    cni.CniError,
    fabric.FabricError,
    sandbox.SandboxError,
)
"""What ends the daemon with a sentence; anything else is a bug and shows its trace."""


class Daemon:
    """Everything of one lab."""

    def __init__(self, plan: LabPlan, report: Report, clock: Clock) -> None:
        self._plan = plan
        self._report = report
        self._clock = clock
        self._group = cgroups.find_mount() / plan.cgroup_name
        self._running: dict[str, Running] = {}
        self._kubelets: dict[str, Kubelet] = {}

    async def run(self) -> None:
        """Build, announce, and serve until ended."""
        async with AsyncExitStack() as stack:
            await self._step("namespaces and links", asyncio.to_thread(self._build))
            await self._step("programs", self._start_programs())
            store = await stack.enter_async_context(open_store(self._plan))
            tasks = await stack.enter_async_context(TaskGroup())
            await self._step("API server", self._wait_for_api(store))
            await self._step("controllers", self._start_controllers(store, tasks))
            await self._step("agents", self._wait_for_agents())
            if self._plan.relay:
                await self._step("relay", self._start_relay())
            tasks.spawn("control socket", serve(self._plan.control_socket, self._answer))
            self._report({"ready": True})
            await tasks.failed.wait()

    async def _step(self, name: str, work: Any) -> Any:
        started = time.monotonic()
        self._report({"begin": name})
        result = await work
        self._report({"step": name, "seconds": round(time.monotonic() - started, 3)})
        return result

    def _build(self) -> None:
        plan = self._plan
        for directory in (plan.log_dir, plan.pods_dir, plan.bpffs, f"{plan.state}/processes"):
            private_directory(Path(directory))
        kernel.mount("bpf", plan.bpffs, "bpf", data="mode=0700")
        fabric.build(plan)
        for node in plan.nodes:
            for directory in (node.directory, node.cni_bin, node.cni_conf):
                private_directory(Path(directory))
            cgroups.create(self._group / node.name)

    async def _start_programs(self) -> None:
        """Start the outside host, the API server, the operator and the agents."""
        plan = self._plan
        if plan.relay:
            relay.write_certificates(plan, self._clock.wall())
        await self._start_outside()
        if plan.source_dir:
            await asyncio.gather(*(self.start_agent(node) for node in plan.nodes))
            return
        local, inside = _local_listener(), fabric.listen(plan.fabric, plan.api_address, API_PORT)
        write_credentials(plan, int(local.getsockname()[1]))
        with local, inside:
            await self._start_api_server((local.fileno(), inside.fileno()))
        if not plan.agent_program:
            await self._start("operator", operator_command(plan), "control", netns=plan.fabric)
        await asyncio.gather(*(self.start_agent(node) for node in plan.nodes))

    async def _start_api_server(self, descriptors: Sequence[int]) -> None:
        command = [*processes.program("apiserver"), "--state-dir", f"{self._plan.state}/apiserver"]
        for descriptor in descriptors:
            command += ["--listen-fd", str(descriptor)]
        command += ["--tls-san", self._plan.api_address]
        await self._start("apiserver", command, "control", pass_fds=descriptors)

    async def _start_outside(self) -> None:
        """Give the world beyond the cluster a host that answers on port 8080 and can be probed from."""
        directory = Path(self._plan.pods_dir, "outside")
        directory.mkdir(mode=0o700)
        record = records.PodRecord(
            namespace="",
            name="outside",
            uid="",
            node="",
            sandbox="outside",
            netns=self._plan.outside,
            directory=str(directory),
            ips=OUTSIDE_HOST,
            ports=(("tcp", 8080), ("udp", 8080)),
        )
        work = sandbox.Workload(namespace="", name="outside", uid="", serve=record.ports)
        await sandbox.launch(record, work, self._group / "outside", sandboxed=False)

    async def _start(self, name: str, command: Sequence[str], group: str, **options: Any) -> None:
        self._running[name] = await processes.start(self._plan, name, command, self._group / group, **options)

    async def start_agent(self, node: NodePlan) -> None:
        """Start a node's agent; one that runs already is left alone."""
        name = f"agent/{node.name}"
        running = self._running.get(name)
        if running is None or running.ended:
            await self._start(name, agent_command(self._plan, node), f"{node.name}/agent", netns=node.netns)

    async def _wait_for_api(self, store: Store) -> None:
        """Wait until the API server answers; raises LabError with its last words."""
        while True:
            try:
                await store.list(NODES)
                return
            except StoreError as error:
                self._expect_alive("apiserver", str(error))
                await asyncio.sleep(0.02)

    def _expect_alive(self, name: str, reason: str = "") -> None:
        running = self._running.get(name)
        if running is not None and running.ended:
            words = processes.last_lines(running.record.log)
            raise LabError(f"{name} ended while starting{': ' + reason if reason else ''}\n{words}")

    async def _start_controllers(self, store: Store, tasks: TaskGroup) -> None:
        for node in self._plan.nodes:
            kubelet = Kubelet(store, self._plan, node, self._group / node.name, self._clock)
            self._kubelets[node.name] = kubelet
            if not self._plan.source_dir:
                await kubelet.register()
            tasks.spawn(f"kubelet {node.name}", kubelet.run())
        if not self._plan.source_dir:
            tasks.spawn("scheduler", Scheduler(store).run())
            tasks.spawn("endpoint slices", SliceController(store).run())

    async def _wait_for_agents(self) -> None:
        """Wait until every agent offers its CNI plugin; raises LabError with an agent's last words."""
        deadline = time.monotonic() + READY_TIMEOUT
        for node in self._plan.nodes:
            while not self._kubelets[node.name].network_ready.is_set():
                for name in self._running:
                    self._expect_alive(name)
                if time.monotonic() > deadline:
                    record = self._running[f"agent/{node.name}"].record
                    words = processes.last_lines(record.log)
                    raise LabError(f"the agent of {node.name} is not ready after 60 s\n{words}")
                await asyncio.sleep(0.02)

    async def _start_relay(self) -> None:
        """Start the relay and wait until it serves; raises LabError with its last words."""
        await self._start("relay", relay.command(self._plan), "control", netns=self._plan.fabric)
        while not Path(self._plan.relay_socket).exists():
            self._expect_alive("relay")
            await asyncio.sleep(0.02)

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a command asks: kill, start or wait for an agent; CNI CHECK of a pod."""
        match request:
            case {"kill_agent": str(name)}:
                running = self._running[f"agent/{self._plan.node(name).name}"]
                await running.kill()
                return {"pid": running.record.pid}
            case {"start_agent": str(name)}:
                await self.start_agent(self._plan.node(name))
                return {"pid": self._running[f"agent/{name}"].record.pid}
            case {"check": [str(namespace), str(pod)]}:
                record = records.find_pod(self._plan, namespace, pod)
                await self._kubelets[record.node].check(namespace, pod)
                return {}
        return {"error": "the lab does not know this request"}


def operator_command(plan: LabPlan) -> list[str]:
    """Return the command line of the operator."""
    command = [*processes.program("operator"), "--kubeconfig", f"{plan.state}/operator.kubeconfig"]
    command += ["--cluster-pool-ipv4-cidr", "10.244.0.0/16"]
    return [*command, "--cluster-pool-ipv6-cidr", "fd00:10:244::/104"]


def agent_command(plan: LabPlan, node: NodePlan) -> list[str]:
    """Return the command line of a node's agent."""
    directory = node.directory
    options = {
        "node-name": node.name,
        "state-dir": f"{directory}/state",
        "bpf-prefix": node.bpf_prefix,
        "api-socket": node.agent_socket,
        "cni-socket": f"{directory}/cni.sock",
        "hubble-socket": node.hubble_socket,
        "cni-bin-dir": node.cni_bin,
        "cni-conf-dir": node.cni_conf,
        "native-device": "eth0",
        "aggregation": plan.aggregation,
        "cgroup-root": str(cgroups.find_mount() / plan.cgroup_name / node.name),
    }
    if plan.source_dir:
        options["source-dir"] = plan.source_dir
        options["ipv4-pod-cidr"] = node.pod_ipv4_cidr
        options["ipv6-pod-cidr"] = node.pod_ipv6_cidr
    else:
        options["kubeconfig"] = f"{directory}/kubeconfig"
    command = [*(plan.agent_program or processes.program("agent.main"))]
    for name, value in options.items():
        command += [f"--{name}", value]
    command += relay.agent_flags(plan) if plan.relay else []
    return [*command, "--events" if plan.events else "--no-events", *plan.agent_flags]


def _local_listener() -> socket.socket:
    """Listen on this machine's loopback: on the usual port when it is free."""
    try:
        return socket.create_server(("127.0.0.1", API_PORT), backlog=512)
    except OSError:
        return socket.create_server(("127.0.0.1", 0), backlog=512)


def main() -> None:
    """Run the daemon of the lab whose state directory is the first argument."""
    logging.configure()
    plan = records.read(records.plan_path(Path(sys.argv[1])), LabPlan)
    if plan is None:
        raise SystemExit(f"{sys.argv[1]} holds no lab: start one with `cilia lab up`")
    descriptor = int(os.environ.pop("CILIA_LAB_PROGRESS", "-1"))

    def report(message: dict[str, Any]) -> None:
        log.info("progress", **message)
        if descriptor >= 0:
            try:
                os.write(descriptor, msgspec.json.encode(message) + b"\n")
            except BrokenPipeError:
                return

    try:
        asyncio.run(Daemon(plan, report, SystemClock()).run())
    except FAILURES as error:
        report({"error": str(error)})
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
