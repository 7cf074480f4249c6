"""What docs/services.md shows, done: its manifests on a lab, its trial of a machine without Kubernetes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cilia.api.client import AgentClient
from cilia.lab import starting, teardown
from cilia.lab.plan import LabPlan, make_plan
from tests.support.kubectl import kubectl
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "services.md").read_text()
EXAMPLES = REPOSITORY / "examples" / "services"
NAME = f"tsd{os.getpid() % 1000000}"
PATIENCE = 120.0
ASK = """
import sys, urllib.request
for url in sys.argv[1:]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            print(answer.read().decode().strip())
    except OSError as error:
        print(error)
"""
ASKING = (sys.executable, "-ISc", ASK)
OUTSIDE = ("203.0.113.2", "2001:db8:203::2")


def told(command: list[str]) -> list[str]:
    """The lines of a command that must succeed."""
    done = subprocess.run(command, check=False, text=True, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


class Lab:
    """The lab of the page."""

    def __init__(self, plan: LabPlan) -> None:
        self.plan = plan

    def kubectl(self, *arguments: str) -> None:
        kubectl(self.plan, *arguments)

    def ask(self, where: list[str], *urls: str) -> list[str]:
        """What someone is answered: `exec POD`, `node-exec NODE` or `outside-exec`."""
        lab = [sys.executable, "-m", "cilia.lab", *where, "--name", NAME, "--"]
        return told([*lab, *ASKING, *urls])

    def are_served(self) -> bool:
        """Whether both agents have both backends of all Services."""
        for node in self.plan.nodes:
            found = AgentClient(node.agent_socket).services().services
            mine = [view for view in found if view.spec.flags.namespace == "shop"]
            names = {view.spec.flags.name for view in mine}
            if len(names) < 4 or any(len(view.spec.backend_addresses) < 2 for view in mine):
                return False
            if any(view.status.state != "realized" for view in mine):
                return False
        return True


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    plan = make_plan(NAME, 2, agent_flags=("enable-local-redirect-policy",))
    try:
        starting.start(plan, lambda _: None)
        made = Lab(plan)
        made.kubectl("apply", "-f", str(EXAMPLES))
        made.kubectl("wait", "-n", "shop", "pod", "--all", "--for=condition=Ready", "--timeout=90s")
        until(made.are_served, "the agents to serve the examples")
        yield made
    finally:
        teardown.take_down(NAME)


def backends(lines: list[str]) -> set[str]:
    return {line.split(" ")[0] for line in lines}


def clients(lines: list[str]) -> set[str]:
    return {line.rpartition(" ")[2] for line in lines}


def test_inside_by_the_cluster_addresses(lab: Lab) -> None:
    urls = ["http://10.96.0.80", "http://[fd00:10:96::50]"] * 12
    for where in (["exec", "shop/client"], ["node-exec", "node-1"]):
        assert backends(lab.ask(where, *urls)) == {"web-1", "web-2"}


def test_outside_by_the_port_of_any_node(lab: Lab) -> None:
    """A backend of the asked node sees the client, one of another the node."""
    answers = lab.ask(["outside-exec"], *["http://172.18.0.11:30080", "http://[fd00:172:18::11]:30080"] * 12)
    assert backends(answers) == {"web-1", "web-2"}
    for answer in answers:
        assert (answer.rpartition(" ")[2] in OUTSIDE) == answer.startswith("web-1")


def test_outside_by_backends_of_the_asked_node_only(lab: Lab) -> None:
    for node in lab.plan.nodes:
        urls = [f"http://{node.ipv4}:30081", f"http://[{node.ipv6}]:30081"] * 3
        answers = lab.ask(["outside-exec"], *urls)
        assert backends(answers) == {f"web-{node.index + 1}"}
        assert clients(answers) == set(OUTSIDE)


def test_outside_with_answers_from_the_backend_itself(lab: Lab) -> None:
    """Whoever is asked, the backend sees the client, which stays with it."""
    for place in ("172.18.0.11", "172.18.0.12", "[fd00:172:18::11]", "[fd00:172:18::12]"):
        answers = lab.ask(["outside-exec"], *[f"http://{place}:30082"] * 6)
        assert len(backends(answers)) == 1
        assert clients(answers) <= set(OUTSIDE)


def test_policies_judge_backends(lab: Lab) -> None:
    lab.kubectl("apply", "-f", str(EXAMPLES / "policy"))
    agents = [AgentClient(node.agent_socket) for node in lab.plan.nodes]
    urls = [f"http://172.18.0.11:{port}" for port in (30080, 30081, 30082)]

    def enforced() -> bool:
        answers = [agent.policies() for agent in agents]
        return all(one.policies and one.realized >= one.revision for one in answers)

    until(enforced, "the policy to be enforced")
    assert all("timed out" in answer for answer in lab.ask(["outside-exec"], *urls))
    assert backends(lab.ask(["exec", "shop/client"], *["http://10.96.0.80"] * 16)) == {"web-1", "web-2"}


def test_redirected_to_the_own_node(lab: Lab) -> None:
    manifests = str(EXAMPLES / "redirect")
    urls = ["http://10.96.0.80"] * 16
    lab.kubectl("apply", "-f", manifests)
    try:
        until(lambda: backends(lab.ask(["exec", "shop/client"], *urls)) == {"web-1"}, "the redirect")
        command = [sys.executable, "-m", "cilia.apps.ctl", "lrp", "list"]
        listed = told([*command, "--agent-socket", lab.plan.nodes[0].agent_socket])
        assert listed[1].split()[:2] == ["shop/web", "10.96.0.80:80/TCP"], listed
    finally:
        lab.kubectl("delete", "-f", manifests)


# --- a machine without Kubernetes ---------------------------------------------------------------------

PREFIX = f"t{os.getpid() % 100000}-"
NAMES = ("lan", "balancer", "one", "two", "client")


def trial() -> str:
    """The commands of the page, with names of this test."""
    begin = PAGE.index("ip netns add lan")
    commands = PAGE[begin : PAGE.index("```", begin)]
    return re.sub(rf"\b({'|'.join(NAMES)})\b", rf"{PREFIX}\1", commands)


@pytest.fixture
def balancer() -> Iterator[AgentClient]:
    """The trial's machines and agent; what they are made of is taken away again."""
    state = Path("/tmp") / f"{PREFIX}balancer"
    state.mkdir(mode=0o700)
    programs = Path(sys.executable).parent
    path = f"{programs}:{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CILIA_")}
    with (state / "trial.log").open("wb") as log:
        group = subprocess.Popen(
            ["bash", "-ec", f"{trial()}\nwait"],
            cwd=REPOSITORY,
            env={**environment, "PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    client = AgentClient(str(state / "agent.sock"))
    try:
        until(lambda: client.status().ready, "the trial's agent")
        yield client
    except AssertionError:
        print((state / "trial.log").read_text())
        raise
    finally:
        os.killpg(group.pid, signal.SIGTERM)
        group.wait(PATIENCE)
        clean(state, path)


def clean(state: Path, path: str) -> None:
    """As the page says."""
    pins = f"/sys/fs/bpf/{PREFIX}balancer"
    cleanup = ["cilia-agent", "--cleanup", "--state-dir", str(state), "--bpf-prefix", pins]
    environment = {**os.environ, "PATH": path}
    subprocess.run(
        ["nsenter", f"--net=/run/netns/{PREFIX}balancer", *cleanup], check=False, env=environment, timeout=60
    )
    for name in NAMES:
        subprocess.run(["ip", "netns", "delete", f"{PREFIX}{name}"], check=False, timeout=60)
    subprocess.run(["rm", "-r", str(state)], check=False, timeout=60)


def test_a_balancer_without_kubernetes(balancer: AgentClient) -> None:
    client = ["ip", "netns", "exec", f"{PREFIX}client"]

    def answers(*urls: str) -> list[str]:
        return told([*client, *ASKING, *urls])

    def both() -> bool:
        return backends(answers(*["http://192.0.2.10"] * 12)) == {f"{PREFIX}one", f"{PREFIX}two"}

    until(both, "both backends")
    assert clients(answers("http://192.0.2.10")) == {"192.0.2.1"}
    assert answers("http://[2001:db8::10]") == [f"{PREFIX}one sees 2001:db8::1"]
    assert {view.spec.flags.type for view in balancer.services().services} == {"Standalone"}
