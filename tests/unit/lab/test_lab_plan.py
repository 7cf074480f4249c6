"""Names and addresses of a lab, before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from cilia.lab import plan
from cilia.lab.daemon import agent_command


def test_nodes_have_their_own_names_addresses_and_prefixes() -> None:
    made = plan.make_plan("trial", 3)
    assert [node.name for node in made.nodes] == ["node-1", "node-2", "node-3"]
    for part in ("ipv4", "ipv6", "directory", "bpf_prefix", "netns", "pod_ipv4_cidr", "pod_ipv6_cidr"):
        assert len({getattr(node, part) for node in made.nodes}) == 3, part


def test_everything_lives_below_the_state_directory() -> None:
    made = plan.make_plan("trial", 1, root=Path("/somewhere"))
    node = made.nodes[0]
    for path in (made.fabric, made.outside, made.bpffs, made.kubeconfig, node.directory, node.netns):
        assert path.startswith("/somewhere/trial/")


@pytest.mark.parametrize("name", ["", "a-b", "UP", "../etc", "a/b", "x" * 13, "a b"])
def test_names_that_could_mean_another_lab_or_path_are_refused(name: str) -> None:
    with pytest.raises(plan.PlanError, match="small letters or digits"):
        plan.make_plan(name)


@pytest.mark.parametrize("count", [0, -1, plan.MAX_NODES + 1])
def test_too_few_or_too_many_nodes_are_refused(count: int) -> None:
    with pytest.raises(plan.PlanError, match="1 to 16 nodes"):
        plan.make_plan("trial", count)


def test_a_source_directory_serves_one_node() -> None:
    assert plan.make_plan("trial", 1, source_dir="/yaml").source_dir == "/yaml"
    with pytest.raises(plan.PlanError, match="one node"):
        plan.make_plan("trial", 2, source_dir="/yaml")


def test_more_flags_reach_every_agent_with_or_without_their_dashes() -> None:
    made = plan.make_plan("trial", 1, agent_flags=("host-firewall", "--enforcement=always"))
    assert agent_command(made, made.nodes[0])[-2:] == ["--host-firewall", "--enforcement=always"]


def test_unknown_node_is_answered_with_the_known_ones() -> None:
    with pytest.raises(plan.PlanError, match="it has node-1, node-2"):
        plan.make_plan("trial", 2).node("node-3")


def test_pods_are_named_with_or_without_namespace() -> None:
    assert plan.parse_pod("shop/web") == ("shop", "web")
    assert plan.parse_pod("web") == ("default", "web")
    for bad in ("shop/", "/web", "a/b/c"):
        with pytest.raises(plan.PlanError, match="NAMESPACE/POD"):
            plan.parse_pod(bad)
