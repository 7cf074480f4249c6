"""`cilia lab ...`: the commands of the lab."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from cilia.lab import cgroups, cni, control, probe, records, teardown
from cilia.lab.plan import DEFAULT_NAME, STATE_ROOT, LabPlan, PlanError, make_plan, parse_pod
from cilia.lab.podinit import CONTAINER_CAPABILITIES
from cilia.lab.starting import StartError, bring_up

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A whole cluster on this machine: nodes as network namespaces, pods as processes.",
)
console = Console()
errors = Console(stderr=True)

Name = Annotated[str, typer.Option("--name", help="The lab's name, when there is more than one.")]
Json = Annotated[str, typer.Option("--output", "-o", help="table or json")]


def fail(error: Exception | str) -> NoReturn:
    """Say what is wrong in one sentence and end with status 1."""
    errors.print(f"cilia lab: {error}", style="red", markup=False, highlight=False)
    raise typer.Exit(1)


def need_root() -> None:
    """End with a sentence unless we are root."""
    if os.geteuid() != 0:
        fail("the lab makes namespaces and loads eBPF: run it as root")


def lab(name: str) -> LabPlan:
    """Return the running lab, or end with a sentence."""
    try:
        return records.find_lab(name)
    except PlanError as error:
        fail(error)


@app.command()
def up(
    nodes: Annotated[int, typer.Option("--nodes", "-n", help="How many nodes.")] = 2,
    name: Name = DEFAULT_NAME,
    source_dir: Annotated[
        Path | None, typer.Option(help="A directory of YAML instead of an API server (one node).")
    ] = None,
    aggregation: Annotated[str, typer.Option(help="Flow reports: medium, low or none.")] = "medium",
    events: Annotated[bool, typer.Option(help="Report flows at all.")] = True,
    relay: Annotated[bool, typer.Option(help="A relay that answers for all nodes.")] = True,
    agent_flag: Annotated[
        list[str] | None,
        typer.Option(metavar="FLAG[=VALUE]", help="One more flag of the agents, such as host-firewall."),
    ] = None,
) -> None:
    """Start a lab; it runs in the background until `cilia lab down`."""
    need_root()
    try:
        plan = make_plan(
            name,
            1 if source_dir else nodes,
            source_dir=str(source_dir.resolve()) if source_dir else "",
            aggregation=aggregation,
            events=events,
            agent_flags=tuple(agent_flag or ()),
            relay=relay,
        )
        seconds = bring_up(plan, console)
    except (PlanError, StartError) as error:
        fail(error)
    if seconds is None:
        console.print(f"lab {name} is already up")
    else:
        console.print(f"lab {name} is up: {len(plan.nodes)} nodes in {seconds:.1f} s")
    tell_access(plan)


def tell_access(plan: LabPlan) -> None:
    """Print how to use the lab."""
    if not plan.source_dir:
        console.print(f"export KUBECONFIG={plan.kubeconfig}", soft_wrap=True, highlight=False)
    for variable, path in (
        ("CILIA_AGENT_SOCKET", plan.nodes[0].agent_socket),
        ("CILIA_HUBBLE_SOCKET", plan.nodes[0].hubble_socket),
    ):
        console.print(f"export {variable}={path}", soft_wrap=True, highlight=False)
    if plan.relay:
        console.print(f"export HUBBLE_SERVER=unix://{plan.relay_socket}", soft_wrap=True, highlight=False)


@app.command()
def down(
    name: Name = DEFAULT_NAME,
    every: Annotated[bool, typer.Option("--all", help="Take every lab down.")] = False,
) -> None:
    """End a lab and everything it made, whole or half-made."""
    need_root()
    names = [state.name for state in records.list_labs()] if every else [name]
    started = time.monotonic()
    try:
        gone = [item for item in names if teardown.take_down(item)]
    except (teardown.TeardownError, PlanError) as error:
        fail(error)
    if not gone:
        console.print("no lab is up" if every else f"no lab {name} is up")
    for item in gone:
        console.print(f"lab {item} is gone ({time.monotonic() - started:.1f} s)")


@app.command()
def status(name: Name = DEFAULT_NAME, output: Json = "table") -> None:
    """Show nodes, programs and pods."""
    plan = lab(name)
    view = describe(plan)
    if output == "json":
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(view)).decode() + "\n")
        return
    nodes = Table("NODE", "ADDRESSES", "AGENT", "NETWORK", pad_edge=False, box=None)
    for node in view["nodes"]:
        nodes.add_row(node["name"], ", ".join(node["addresses"]), node["agent"], node["network"])
    programs = Table("PROGRAM", "PID", "STATE", "LOG", pad_edge=False, box=None)
    for program in view["programs"]:
        programs.add_row(program["name"], str(program["pid"]), program["state"], program["log"])
    pods = Table("POD", "NODE", "PID", "STATE", "ADDRESSES", pad_edge=False, box=None)
    for pod in view["pods"]:
        pods.add_row(pod["name"], pod["node"], str(pod["pid"]), pod["state"], ", ".join(pod["addresses"]))
    for table in (nodes, programs, pods):
        console.print(table)
        console.print()
    tell_access(plan)


def describe(plan: LabPlan) -> dict[str, Any]:
    """Return the lab as it is."""
    programs = {record.name: record for record in records.processes(plan)}
    return {
        "name": plan.name,
        "kubeconfig": "" if plan.source_dir else plan.kubeconfig,
        "nodes": [
            {
                "name": node.name,
                "addresses": [node.ipv4, node.ipv6],
                "agent": _state(programs.get(f"agent/{node.name}")),
                "network": "ready" if _has_network(plan, node.name) else "not ready",
                "agentSocket": node.agent_socket,
                "hubbleSocket": node.hubble_socket,
                "netns": node.netns,
            }
            for node in plan.nodes
        ],
        "programs": [
            {"name": name, "pid": record.pid, "state": _state(record), "log": record.log}
            for name, record in programs.items()
        ],
        "pods": [
            {
                "name": probe.label(pod),
                "node": pod.node,
                "pid": pod.pid,
                "state": _state(pod),
                "addresses": list(pod.ips),
            }
            for pod in records.pods(plan)
        ],
    }


def _state(record: records.ProcessRecord | records.PodRecord | None) -> str:
    if record is None or record.pid == 0:
        return "not started"
    return "running" if records.alive(record) else "ended"


def _has_network(plan: LabPlan, node: str) -> bool:
    try:
        return cni.find_config(plan.node(node)) is not None
    except cni.CniError:
        return False


@app.command("exec", context_settings={"ignore_unknown_options": True})
def exec_(
    pod: Annotated[str, typer.Argument(help="NAMESPACE/POD")],
    command: Annotated[list[str], typer.Argument(help="What to run, after --")],
    name: Name = DEFAULT_NAME,
) -> None:
    """Run a command inside a pod, with a container's capabilities."""
    need_root()
    plan = lab(name)
    try:
        record = records.find_pod(plan, *parse_pod(pod))
    except PlanError as error:
        fail(error)
    group = cgroups.find_mount() / plan.cgroup_name / record.node / "pods" / record.sandbox[:12]
    cgroups.join(group, os.getpid())
    bounding = ",".join(
        ["-all", *(f"+{CONTAINER_CAPABILITIES[number]}" for number in CONTAINER_CAPABILITIES)]
    )
    spaces = ("--net", "--mount", "--pid", "--ipc", "--uts")
    argv = ["nsenter", "--target", str(record.pid), *spaces, "--wd=/", "--"]
    os.execvp("nsenter", [*argv, "setpriv", f"--bounding-set={bounding}", "--", *command])


@app.command("node-exec", context_settings={"ignore_unknown_options": True})
def node_exec(
    node: Annotated[str, typer.Argument(help="The node's name.")],
    command: Annotated[list[str], typer.Argument(help="What to run, after --")],
    name: Name = DEFAULT_NAME,
) -> None:
    """Run a command in a node's network, with its agent's sockets in the environment."""
    need_root()
    plan = lab(name)
    try:
        target = plan.node(node)
    except PlanError as error:
        fail(error)
    # What the user has set asks the relay; here the node is meant.
    os.environ.pop("HUBBLE_SERVER", None)
    os.environ |= {
        "CILIA_AGENT_SOCKET": target.agent_socket,
        "CILIA_HUBBLE_SOCKET": target.hubble_socket,
        "KUBECONFIG": plan.kubeconfig,
    }
    group = cgroups.create(cgroups.find_mount() / plan.cgroup_name / target.name / "host")
    cgroups.join(group, os.getpid())
    os.execvp("nsenter", ["nsenter", f"--net={target.netns}", "--", *command])


@app.command("outside-exec", context_settings={"ignore_unknown_options": True})
def outside_exec(
    command: Annotated[list[str], typer.Argument(help="What to run, after --")],
    name: Name = DEFAULT_NAME,
) -> None:
    """Run a command on the host outside the cluster."""
    need_root()
    os.execvp("nsenter", ["nsenter", f"--net={lab(name).outside}", "--", *command])


@app.command()
def logs(
    program: Annotated[
        str, typer.Argument(help="agent/NODE, relay, operator, apiserver, lab, or NAMESPACE/POD")
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    name: Name = DEFAULT_NAME,
) -> None:
    """Show what a program or a pod has printed."""
    plan = lab(name)
    path = Path(plan.log_dir, program.replace("/", "-") + ".log")
    if not path.exists():
        try:
            path = Path(records.find_pod(plan, *parse_pod(program)).log)
        except PlanError:
            known = ", ".join(sorted(entry.stem for entry in Path(plan.log_dir).glob("*.log")))
            fail(f"there is no log of {program!r}; there are {known} and those of pods (NAMESPACE/POD)")
    argv = ["tail", "-n", "+1", *(["-F"] if follow else []), str(path)]
    raise typer.Exit(subprocess.run(argv, check=False).returncode)


@app.command("probe")
def probe_(
    name: Name = DEFAULT_NAME,
    outside: Annotated[bool, typer.Option(help="Include the host outside the cluster as a target.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds without an answer that mean no.")] = probe.TIMEOUT,
    output: Json = "table",
) -> None:
    """Measure which pod reaches which, over both families, with TCP, UDP and ICMP."""
    plan = lab(name)
    pods = [pod for pod in records.pods(plan) if records.alive(pod)]
    sources = [pod for pod in pods if pod.namespace]
    targets = pods if outside else sources
    try:
        matrix = probe.measure(sources, targets, timeout=timeout)
    except control.ControlError as error:
        fail(error)
    if output == "json":
        rows = [msgspec.to_builtins(cell) | msgspec.to_builtins(matrix[cell]) for cell in sorted(matrix)]
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(rows)).decode() + "\n")
        return
    console.print(probe.render(matrix) if matrix else "no two pods run: create some with kubectl")


@app.command()
def agent(
    action: Annotated[str, typer.Argument(help="kill (SIGKILL) or start")],
    node: Annotated[str, typer.Argument(help="The node's name.")],
    name: Name = DEFAULT_NAME,
) -> None:
    """Kill a node's agent, as a fault would, or start it again."""
    if action not in ("kill", "start"):
        fail(f"an agent can be asked to kill or start, not {action!r}")
    plan = lab(name)
    try:
        answer = control.ask(plan.control_socket, {f"{action}_agent": node})
    except control.ControlError as error:
        fail(error)
    console.print(f"agent of {node}: {'killed' if action == 'kill' else 'started'}, process {answer['pid']}")


@app.command()
def check(
    pod: Annotated[str, typer.Argument(help="NAMESPACE/POD")],
    name: Name = DEFAULT_NAME,
) -> None:
    """Ask the CNI plugin whether a pod is still attached as it was (CHECK)."""
    plan = lab(name)
    try:
        control.ask(plan.control_socket, {"check": list(parse_pod(pod))})
    except (control.ControlError, PlanError) as error:
        fail(error)
    console.print(f"{pod} is attached as it was")


def main() -> None:
    """Run the lab's commands."""
    if not STATE_ROOT.parent.is_dir():
        fail(f"{STATE_ROOT.parent} is missing: mount a tmpfs there")
    app(prog_name="cilia lab")
