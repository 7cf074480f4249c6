"""The eleven steps. Every step ends in a check; what is not as expected raises Unexpected."""

from __future__ import annotations

import importlib.util
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from cilia.api.client import AgentClient, AgentError
from cilia.api.types import EndpointView
from cilia.lab import control, probe, records, starting, teardown
from cilia.lab.demo import expectations, traces
from cilia.lab.demo.stage import Stage, Unexpected
from cilia.lab.plan import LabPlan, NodePlan, make_plan
from cilia.lab.records import PodRecord

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "demo"
POLICY_FILES = ("1-networkpolicy.yaml", "2-ciliumnetworkpolicy.yaml", "3-ciliumclusterwidenetworkpolicy.yaml")
SERVICES_FILE = "4-services.yaml"
PROPOSAL = EXAMPLES.parent / "tour" / "visitors.yaml"
PROGRAM = (sys.executable, "-P", "-c", "from cilia.apps.ctl import main; main()")
PATIENCE = 20.0
"""Seconds a thing may take to come true before it counts as not coming."""
STREAM_RATE = 4 << 20
"""Bytes per second of the stream that must survive the agent's death."""
FLOW_LINES = 24
CONNECTIONS = 32
"""So many to one Service that all go to the same of two backends once in two thousand million times."""


def make_demo_plan(name: str) -> LabPlan:
    """The demo's lab: two nodes and a relay, with history where what it takes is installed."""
    flags = ("hubble-history-dir=history", "hubble-history-interval=1s") if has_history() else ()
    return make_plan(name, 2, relay=True, agent_flags=flags)


def has_history() -> bool:
    """Whether flows can be kept on disk and asked in SQL."""
    return all(importlib.util.find_spec(module) for module in ("duckdb", "pyarrow"))


class Story:
    """The demo on one lab."""

    def __init__(self, plan: LabPlan, stage: Stage) -> None:
        self._plan = plan
        self._stage = stage
        self._before = traces.look(plan)
        self._killed = datetime.now(UTC)

    def tell(self) -> None:
        """Run all steps; the lab is taken away whatever happens. Raises Unexpected."""
        try:
            self._start_lab()
            self._start_workloads()
            self._first_matrix()
            self._apply_policies()
            self._second_matrix()
            self._show_flows()
            self._ask_why()
            self._ask_services()
            self._kill_agent()
            self._see_everything()
        except BaseException:
            teardown.take_down(self._plan.name, Path(self._plan.state).parent)
            raise
        self._tear_down()

    # -- 1 and 2: lab and workloads --------------------------------------------------------------------------

    def _start_lab(self) -> None:
        stage, count = self._stage, len(self._plan.nodes)
        with stage.step(f"a lab of {count} nodes: API server, operator, one agent a node, dual stack"):
            with stage.waiting("starting") as say:

                def show(message: dict[str, Any]) -> None:
                    if "begin" in message:
                        say(f"starting: {message['begin']}")
                    else:
                        stage.note(f"{message['step']}: {message['seconds']:.2f} s")

                try:
                    starting.start(self._plan, show)
                except starting.StartError as error:
                    raise Unexpected("a lab that is ready", str(error)) from error
            nodes = self._kubectl("get", "nodes", "-o", "name").split()
            wanted = [f"node/{node.name}" for node in self._plan.nodes]
            self._expect(sorted(nodes) == wanted, f"nodes {wanted} in `kubectl get nodes`", str(nodes))
            for node in self._plan.nodes:
                stage.done(f"{node.name} is ready at {node.ipv4} and {node.ipv6}")

    def _start_workloads(self) -> None:
        with self._stage.step("three workloads in two namespaces, pods on both nodes, attached by CNI"):
            self._kubectl("apply", "-f", str(EXAMPLES / "0-workloads.yaml"))
            ready = ("wait", "pod", "--all", "-A", "--for=condition=Ready", f"--timeout={PATIENCE:.0f}s")
            self._kubectl(*ready)
            pods = {probe.label(pod): pod for pod in self._pods()}
            self._expect(set(pods) == set(expectations.PODS), f"pods {expectations.PODS}", str(sorted(pods)))
            for name, pod in pods.items():
                self._expect(len(pod.ips) == 2, f"an IPv4 and an IPv6 address for {name}", str(pod.ips))
            for node in self._plan.nodes:
                here = [f"{name} {pod.ips[0]}" for name, pod in pods.items() if pod.node == node.name]
                self._stage.done(f"{node.name}: {', '.join(here)}")

    # -- 3, 4 and 5: matrices and policies -------------------------------------------------------------------

    def _first_matrix(self) -> None:
        with self._stage.step("who reaches whom, by TCP, UDP, ICMP over IPv4 and IPv6: all reach all"):
            self._check_matrix(expectations.everything)

    def _apply_policies(self) -> None:
        with self._stage.step("a NetworkPolicy, a CiliumNetworkPolicy, a CiliumClusterwideNetworkPolicy"):
            for name in POLICY_FILES:
                words = self._kubectl("apply", "-f", str(EXAMPLES / name)).strip()
                self._stage.done(f"kubectl apply: {words}")
            started = time.monotonic()
            for node in self._plan.nodes:
                self._await_policies(node)
            self._stage.done(f"both agents enforce them {(time.monotonic() - started) * 1000:.0f} ms later")

    def _second_matrix(self) -> None:
        with self._stage.step("the matrix again: what the policies say, on one node and across nodes"):
            self._check_matrix(expectations.policies)

    def _check_matrix(self, expected: probe.Expectation, *, show: bool = True) -> None:
        pods = self._pods()
        matrix = probe.measure(pods, [*pods, self._outside()])
        if show:
            self._stage.show(probe.render(matrix, expected))
        wrong = probe.differences(matrix, expected)
        if wrong:
            cell, result = wrong[0]
            more = f" (and {len(wrong) - 1} more of {len(matrix)})" if len(wrong) > 1 else ""
            seen = f"{result.answer} after {result.milliseconds} ms{more}"
            wish = "reaches" if expected(cell) else "does not reach"
            route = f"{cell.source} {wish} {cell.target} by {cell.protocol} over {cell.family}"
            raise Unexpected(route, seen)
        reached = sum(result.reached for result in matrix.values())
        if show:
            self._stage.done(f"{len(matrix)} questions: {reached} reached, {len(matrix) - reached} kept out")

    def _await_policies(self, node: NodePlan) -> None:
        client = AgentClient(node.agent_socket)
        wanted = set(expectations.POLICIES.items())

        def enforced() -> bool:
            answer = client.policies()
            valid = {(item.kind, item.name) for item in answer.policies if item.state == "valid"}
            return wanted <= valid and answer.realized >= answer.revision

        self._until(enforced, f"the agent of {node.name} to enforce all three policies")

    # -- 6: flows --------------------------------------------------------------------------------------------

    def _show_flows(self) -> None:
        with self._stage.step("the flows, live, with the rule that decided"), self._observers() as lines:
            for cell in expectations.SAMPLES:
                self._ask_again(cell)
            shown = self._print_flows(lines)
            self._expect(shown > 0, "flows from `cilia observe --follow`", "none within 5 s")
            self._check_flows()

    @contextmanager
    def _observers(self) -> Iterator[queue.Queue[str]]:
        """Follow the flows of all nodes while the block runs; yields their lines.

        The newest stored flow comes first and says that the observer is there; it is not shown.
        """
        processes: list[subprocess.Popen[str]] = []
        lines: queue.Queue[str] = queue.Queue()
        try:
            for node in self._plan.nodes:
                command = self._observe(node, "--last", "1", "--follow", "--color", "always")
                processes.append(
                    subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                )
                threading.Thread(target=_pump, args=(processes[-1], lines), daemon=True).start()
            for node in self._plan.nodes:
                try:
                    lines.get(timeout=PATIENCE)
                except queue.Empty:
                    raise Unexpected(f"`cilia observe` to answer on {node.name}", "no flow") from None
            yield lines
        finally:
            for process in processes:
                process.terminate()
                process.wait()

    def _ask_again(self, cell: probe.Cell) -> None:
        """Ask one question of the matrix once more, without repeating a datagram."""
        pods = {probe.label(pod): pod for pod in [*self._pods(), self._outside()]}
        address = next(ip for ip in pods[cell.target].ips if (":" in ip) == (cell.family == "IPv6"))
        question = {"protocol": cell.protocol, "address": address, "port": 8080, "timeout": 0.12}
        control.ask(pods[cell.source].control_socket, {"probe": [question]})

    def _print_flows(self, lines: queue.Queue[str]) -> int:
        shown, deadline = 0, time.monotonic() + 5
        while shown < FLOW_LINES and time.monotonic() < deadline:
            try:
                self._stage.line(lines.get(timeout=0.4))
            except queue.Empty:
                if shown:
                    break
                continue
            shown += 1
        return shown

    def _check_flows(self) -> None:
        """The stored flows must name each policy as the one that decided."""
        text = "".join(
            self._run(self._observe(node, "--last", "2000", "-o", "json")) for node in self._plan.nodes
        )
        for kind, name in expectations.POLICIES.items():
            named = [line for line in text.splitlines() if name in line]
            self._expect(bool(named), f"flows decided by {kind} {name}", "no flow names it")
            dropped = sum('"DROPPED"' in line for line in named)
            self._stage.done(f"{kind} {name} decided {len(named)} flows, {dropped} of them dropped")

    def _observe(self, node: NodePlan, *arguments: str) -> list[str]:
        return [*PROGRAM, "observe", "--server", f"unix://{node.hubble_socket}", *arguments]

    # -- 7: reasons ------------------------------------------------------------------------------------------

    def _ask_why(self) -> None:
        """Explain a flow that was dropped, then check a policy that nobody has applied."""
        node = self._plan.nodes[0]
        agent = ("--agent-socket", node.agent_socket)
        with self._stage.step("why was one dropped, and what would another policy change?"):
            dropped = ("--verdict", "DROPPED", "--protocol", "tcp", "--last", "1", "-o", "json")
            flow = self._run(self._observe(node, "--to-pod", "shop/frontend-1", *dropped))
            uuid = msgspec.json.decode(flow)["flow"]["uuid"]
            told = self._run([*PROGRAM, "policy", "explain", uuid, *agent])
            self._tell(
                "policy explain FLOW-UUID", told, ("DENY ", "Denied by", "because it wants", "Add this rule")
            )
            told = self._run([*PROGRAM, "policy", "check", str(PROPOSAL), *agent])
            self._tell("policy check visitors.yaml", told, ("would add", "allow → audit", "Newly denied: 0"))

    def _tell(self, command: str, answer: str, beginnings: tuple[str, ...]) -> None:
        """Show the first line of an answer that begins in each of these ways; all must be there."""
        lines = [line.strip() for line in answer.splitlines()]
        self._stage.done(f"cilia {command}")
        for words in beginnings:
            found = next((line for line in lines if line.startswith(words)), "")
            self._expect(bool(found), f"a line `{words} ...` of `cilia {command}`", answer)
            self._stage.note(found)

    # -- 8: services -----------------------------------------------------------------------------------------

    def _ask_services(self) -> None:
        with self._stage.step("one address for many pods: a ClusterIP and a NodePort, over both families"):
            words = self._kubectl("apply", "-f", str(EXAMPLES / SERVICES_FILE))
            for line in words.splitlines():
                self._stage.done(f"kubectl apply: {line}")
            started = time.monotonic()
            for node in self._plan.nodes:
                self._await_services(node)
            self._stage.done(f"both agents serve them {(time.monotonic() - started) * 1000:.0f} ms later")
            self._check_services()
            self._show_spread()

    def _await_services(self, node: NodePlan) -> None:
        client = AgentClient(node.agent_socket)

        def served() -> bool:
            found = client.services().services
            names = {view.spec.flags.name for view in found if len(view.spec.backend_addresses) > 1}
            return set(expectations.SERVICES) <= names and all(
                view.status.state == "realized" for view in found if view.spec.flags.name in names
            )

        self._until(served, f"the agent of {node.name} to serve {', '.join(expectations.SERVICES)}")

    def _check_services(self, *, show: bool = True) -> None:
        """Who reaches which Service is who reaches its pods; raises Unexpected."""
        pods = {probe.label(pod): pod for pod in [*self._pods(), self._outside()]}
        for (source, service), reached in expectations.SERVICE_ANSWERS.items():
            places = self._places(source, service)
            cells = [(place, protocol) for place in places for protocol in ("tcp", "udp")]
            questions = [
                {"protocol": protocol, "address": address, "port": port, "timeout": probe.TIMEOUT}
                for (address, port), protocol in cells
            ]
            answers = control.ask(pods[source].control_socket, {"probe": questions})["results"]
            for ((address, port), protocol), answer in zip(cells, answers, strict=True):
                seen = str(answer["answer"])
                wish = "reaches" if protocol in reached else "does not reach"
                self._expect(
                    (seen == "ok") == (protocol in reached),
                    f"{source} {wish} Service {service} at {address} port {port} by {protocol}",
                    seen,
                )
            if show:
                got = f"reaches it by {' and '.join(sorted(reached))}" if reached else "is kept out"
                where = ", ".join(dict.fromkeys(address for address, _ in places))
                self._stage.done(f"{source} asks {service} at {where}: {got}")

    def _places(self, source: str, service: str) -> list[tuple[str, int]]:
        """Where a Service is found: inside its cluster addresses, outside its port at all nodes."""
        if source == expectations.OUTSIDE:
            nodes = (address for node in self._plan.nodes for address in (node.ipv4, node.ipv6))
            return [(address, expectations.NODE_PORT) for address in nodes]
        namespace = expectations.SERVICES[service]
        found = self._kubectl("get", "service", service, "-n", namespace, "-o", "json")
        return [(address, 80) for address in msgspec.json.decode(found)["spec"]["clusterIPs"]]

    def _show_spread(self) -> None:
        """Many connections are shared by the backends, and flows tell the Service and who served it."""
        source, service = "shop/frontend-1", "backend"
        address, port = self._places(source, service)[0]
        pods = {probe.label(pod): pod for pod in self._pods()}
        question = {"protocol": "tcp", "address": address, "port": port, "timeout": probe.TIMEOUT}
        asked = {"probe": [question] * CONNECTIONS}
        answers = control.ask(pods[source].control_socket, asked)["results"]
        lost = [answer for answer in answers if answer["answer"] != "ok"]
        self._expect(not lost, f"{CONNECTIONS} connections to {address}", f"{len(lost)} failed: {lost[:1]}")
        self._until(lambda: len(self._served(source, service)) > 1, f"flows to both pods of {service}")
        served = sorted(self._served(source, service).items())
        shares = ", ".join(f"{pod} {count}" for pod, count in served)
        self._stage.done(f"{CONNECTIONS} connections more, told by their flows: {shares}")
        node = self._plan.nodes[0]
        arguments = (
            "--from-pod",
            source,
            "--to-service",
            f"shop/{service}",
            "--last",
            "2",
            "--color",
            "always",
        )
        for line in self._run(self._observe(node, *arguments)).splitlines():
            self._stage.line(line)

    def _served(self, source: str, service: str) -> dict[str, int]:
        """How many flows of a pod to a Service went to each backend, as its node has seen them begin."""
        node = self._plan.nodes[0]
        arguments = ("--from-pod", source, "--to-service", f"shop/{service}", "--protocol", "tcp")
        told = self._run(self._observe(node, *arguments, "--last", "2000", "-o", "json"))
        flows = [msgspec.json.decode(line)["flow"] for line in told.splitlines()]
        opened = [flow for flow in flows if flow["l4"].get("TCP", {}).get("flags") == {"SYN": True}]
        return dict(Counter(flow["destination"].get("pod_name", "?") for flow in opened))

    # -- 9: the agent dies -----------------------------------------------------------------------------------

    def _kill_agent(self) -> None:
        node = self._plan.nodes[0]
        pods = {probe.label(pod): pod for pod in self._pods()}
        source, target = pods["shop/frontend-1"], pods["shop/backend-2"]
        with self._stage.step(f"the agent of {node.name} is killed while a TCP stream runs through it"):
            before = self._endpoints(node)
            with control.Channel(source.control_socket) as stream:
                request = {"address": target.ips[0], "port": 8080, "bytes_per_second": STREAM_RATE}
                stream.ask({"stream": request})
                self._until(lambda: stream.ask({"progress": True})["received"] > 0, "the stream to flow")
                answer = control.ask(self._plan.control_socket, {"kill_agent": node.name})
                self._killed = datetime.now(UTC)
                self._stage.done(f"process {answer['pid']} got SIGKILL")
                self._check_matrix(expectations.policies, show=False)
                self._check_services(show=False)
                self._stage.done("while it is away: the whole matrix and the services answer as before")
                self._restart(node, before)
                self._check_matrix(expectations.policies, show=False)
                result = stream.ask({"finish": True})
            self._check_stream(result)

    def _restart(self, node: NodePlan, before: list[EndpointView]) -> None:
        started = time.monotonic()
        control.ask(self._plan.control_socket, {"start_agent": node.name})
        client = AgentClient(node.agent_socket)
        self._until(lambda: client.status().ready, f"the agent of {node.name} to be ready again")
        seconds = time.monotonic() - started
        after = self._endpoints(node)
        self._expect(
            _essence(before) == _essence(after), f"endpoints {_essence(before)}", str(_essence(after))
        )
        self._stage.done(f"started again and ready after {seconds:.1f} s, {len(after)} endpoints adopted")

    def _check_stream(self, result: dict[str, Any]) -> None:
        sent, received = int(result["sent"]), int(result["received"])
        self._expect(
            bool(result["intact"]) and sent == received,
            f"all {sent} bytes of the stream back unchanged",
            f"{received} bytes; {result['failure'] or 'other checksums'}",
        )
        pause = result["longest_pause_ms"]
        mebibytes = sent / (1 << 20)
        self._stage.done(f"{mebibytes:.1f} MiB came back, no byte lost, longest pause {pause:.0f} ms")

    def _endpoints(self, node: NodePlan) -> list[EndpointView]:
        try:
            views = AgentClient(node.agent_socket).endpoints()
        except AgentError as error:
            raise Unexpected(f"the endpoints of {node.name}", str(error)) from error
        return [view for view in views if view.status.external_identifiers.pod_name]

    # -- 10: everything at once ------------------------------------------------------------------------------

    def _see_everything(self) -> None:
        """All nodes as one stream, and as one table that reaches back beyond the agent's death."""
        with self._stage.step("the whole cluster at once: a relay over both nodes, by mutual TLS"):
            seen: Counter[str] = Counter()

            def both() -> bool:
                nonlocal seen
                seen = self._latest()
                return set(seen) == self._names()

            self._until(both, "flows of both nodes by the relay")
            shares = " and ".join(f"{count} of {node}" for node, count in sorted(seen.items()))
            self._stage.done(f"cilia observe --last 40, by time: {shares}")
            shown = self._relayed("--last", "6", "--print-node-name", "--color", "always")
            for line in self._run(shown).splitlines():
                self._stage.line(line)
            if has_history():
                self._ask_history()
            else:
                self._stage.note("with the extra `history` flows are kept on disk and answer to SQL")

    def _names(self) -> set[str]:
        return {f"default/{node.name}" for node in self._plan.nodes}

    def _relayed(self, *arguments: str) -> list[str]:
        return [*PROGRAM, "observe", "--server", f"unix://{self._plan.relay_socket}", *arguments]

    def _latest(self) -> Counter[str]:
        """How many of the newest flows each node told; they must come by time."""
        for cell in expectations.SAMPLES[:2]:
            self._ask_again(cell)
        lines = self._run(self._relayed("--last", "40", "-o", "json")).splitlines()
        told = [msgspec.json.decode(line) for line in lines]
        flows = [each for each in told if "flow" in each]
        times = [each["time"] for each in flows]
        self._expect(times == sorted(times), "flows by time", str(times))
        return Counter(each["node_name"] for each in flows)

    def _ask_history(self) -> None:
        """One table of both nodes; what the first saw before its agent died is in it, from its disk."""
        killed = self._killed.strftime("%Y-%m-%d %H:%M:%S.%fZ")
        query = (
            "select node, verdict, count(*) as flows, "
            f"count(*) filter (where time < '{killed}') as before "
            "from flows group by all order by all"
        )
        command = [
            *PROGRAM,
            "flows",
            "sql",
            "--server",
            f"unix://{self._plan.relay_socket}",
            "-o",
            "json",
            query,
        ]
        rows = [msgspec.json.decode(line) for line in self._run(command).splitlines()]
        self._stage.done('cilia flows sql "select node, verdict, count(*), ... from flows group by all"')
        for row in rows:
            told = f"{row['node']} {row['verdict']} {row['flows']}"
            self._stage.note(f"{told}, {row['before']} of them before the agent was killed")
        kept = {row["node"] for row in rows if row["before"]}
        self._expect(kept == self._names(), "flows of both nodes from before the kill", str(rows))

    # -- 11: the end ----------------------------------------------------------------------------------------

    def _tear_down(self) -> None:
        with self._stage.step("everything is torn down"):
            try:
                teardown.take_down(self._plan.name, Path(self._plan.state).parent)
            except teardown.TeardownError as error:
                raise Unexpected("nothing left of the lab", str(error)) from error
            left = traces.left_over(self._before, traces.look(self._plan))
            self._expect(not left, "the machine as it was", f"left over: {', '.join(left)}")
            self._stage.done("no namespace, link, mount, control group or file of the lab is left")

    # -- helpers ---------------------------------------------------------------------------------------------

    def _pods(self) -> list[PodRecord]:
        return [pod for pod in records.pods(self._plan) if pod.namespace and records.alive(pod)]

    def _outside(self) -> PodRecord:
        return records.find_pod(self._plan, "", expectations.OUTSIDE)

    def _kubectl(self, *arguments: str) -> str:
        beside = Path(sys.executable).with_name("kubectl")
        program = str(beside) if beside.exists() else shutil.which("kubectl")
        if program is None:
            raise Unexpected("kubectl in the virtual environment or on PATH", "none: run `make install`")
        return self._run([program, *arguments])

    def _run(self, command: list[str]) -> str:
        """Run a program of the user's and return what it prints; raises Unexpected when it fails."""
        environment = {**os.environ, "KUBECONFIG": self._plan.kubeconfig}
        try:
            done = subprocess.run(
                command,
                check=False,
                text=True,
                capture_output=True,
                env=environment,
                timeout=PATIENCE + 10,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise Unexpected(f"`{' '.join(command)}` to end", "it did not") from error
        if done.returncode != 0:
            words = (done.stderr or done.stdout).strip()
            raise Unexpected(f"`{' '.join(command[-6:])}` to succeed", words or f"status {done.returncode}")
        return done.stdout

    def _expect(self, holds: bool, expected: str, seen: str) -> None:
        if not holds:
            raise Unexpected(expected, seen)

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for a thing to come true; an agent that does not answer yet counts as not yet."""
        deadline = time.monotonic() + PATIENCE
        reason = "it did not"
        while time.monotonic() < deadline:
            try:
                if holds():
                    return
            except AgentError as error:
                reason = str(error)
            time.sleep(0.01)
        raise Unexpected(f"{what} within {PATIENCE:.0f} s", reason)


def _pump(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    for line in process.stdout or ():
        if line.strip():
            lines.put(line.rstrip("\n"))


def _essence(endpoints: list[EndpointView]) -> list[tuple[int, int, bytes]]:
    """What a restart must not change: number, identity and networking of each endpoint."""
    return sorted(
        (view.id, view.status.identity.id, msgspec.json.encode(view.status.networking.addressing))
        for view in endpoints
    )
