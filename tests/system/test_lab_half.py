"""Labs that did not come up, or were interrupted on the way: `down` and a failed `up` leave nothing."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cilia.lab import cgroups, kernel, records, starting, teardown
from cilia.lab.plan import STATE_ROOT, LabPlan, PlanError, make_plan

NAME = f"th{os.getpid() % 1000000}"

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]


@pytest.fixture
def clean() -> Iterator[None]:
    teardown.take_down(NAME)
    yield
    teardown.take_down(NAME)


def plan(*program: str) -> LabPlan:
    return make_plan(NAME, 2, agent_program=program)


def left_over() -> list[str]:
    state = STATE_ROOT / NAME
    group = cgroups.find_mount() / f"cilia-lab-{NAME}"
    found = [str(path) for path in (state, group) if path.exists()]
    return found + kernel.mounts_below(str(state))


@pytest.mark.usefixtures("clean")
def test_an_agent_that_dies_while_starting_fails_up_with_its_last_words() -> None:
    program = (sys.executable, "-c", "raise SystemExit('the agent had enough')")
    with pytest.raises(starting.StartError, match="the agent had enough"):
        starting.start(plan(*program), lambda _: None)
    assert left_over() == []


@pytest.mark.usefixtures("clean")
def test_a_program_that_is_not_there_fails_up_with_a_sentence() -> None:
    with pytest.raises(starting.StartError, match="agent/node-1 ended while starting"):
        starting.start(plan("/no/such/agent"), lambda _: None)
    assert left_over() == []


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("moment", ["namespaces and links", "programs", "API server", "agents"])
def test_a_daemon_killed_at_any_moment_leaves_nothing(moment: str) -> None:
    made = plan()

    def kill(message: dict[str, Any]) -> None:
        daemon = records.find_process(made, "daemon")
        if message.get("begin") == moment and daemon is not None:
            os.kill(daemon.pid, 9)

    with pytest.raises(starting.StartError, match="died while starting"):
        starting.start(made, kill)
    assert left_over() == []


@pytest.mark.usefixtures("clean")
def test_up_interrupted_by_the_user_leaves_nothing() -> None:
    def interrupt(message: dict[str, Any]) -> None:
        if "begin" in message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        starting.start(plan(), interrupt)
    assert left_over() == []


@pytest.mark.usefixtures("clean")
def test_down_clears_any_part_of_a_lab() -> None:
    made = plan()
    state = Path(made.state)
    state.mkdir(parents=True)
    assert teardown.take_down(NAME)
    Path(made.netns_dir).mkdir(parents=True)
    kernel.create_network(made.fabric)
    cgroups.create(cgroups.find_mount() / made.cgroup_name / "node-1" / "agent")
    assert teardown.take_down(NAME)
    assert left_over() == []
    assert not teardown.take_down(NAME)


@pytest.mark.usefixtures("clean")
def test_two_ups_at_once_make_one_lab() -> None:
    made = plan()
    outcomes: list[object] = []

    def start() -> None:
        try:
            outcomes.append(starting.start(made, lambda _: None))
        except starting.StartError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcome, float) for outcome in outcomes) == 1, outcomes
    assert records.find_lab(NAME) == made


def test_a_name_that_is_a_path_is_refused() -> None:
    with pytest.raises(PlanError):
        teardown.take_down("../../etc")
