"""An agent that can't run says why in one sentence, and leaves nothing half-made."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from cilia.lab import kernel
from tests.support.agent_node import PINS, AgentNode, agent_node

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")]

NETWORK_BITS = ("cilia_host", "cilia_net", "cilia_vxlan")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentNode]:
    """One node for all tests here: none of them leaves an agent or anything of it behind."""
    with agent_node("faults-start", tmp_path_factory.mktemp("start")) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_half_made(node: AgentNode) -> Iterator[None]:
    yield
    assert made_links(node) == []
    assert not node.prefix.exists() or not list(node.prefix.glob("v*/links/*"))
    assert not (node.conf / "05-cilia.conflist").exists()


def made_links(node: AgentNode) -> list[str]:
    with kernel.inside_network(node.netns):
        return [name for _, name in socket.if_nameindex() if name in NETWORK_BITS]


def test_not_root(node: AgentNode) -> None:
    # The one capability left lets nobody read the program where only root may (a checkout below /root).
    read = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    sentence = node.refused("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *read)
    assert sentence == "the process lacks CAP_NET_ADMIN and CAP_SYS_ADMIN: run it as root"


@pytest.mark.parametrize("name", ["net_admin", "sys_admin"])
def test_a_missing_capability(node: AgentNode, name: str) -> None:
    sentence = node.refused("setpriv", f"--bounding-set=-{name}")
    assert sentence == f"the process lacks CAP_{name.upper()}: run it as root"


def test_an_old_kernel(node: AgentNode) -> None:
    sentence = node.refused("setarch", "--uname-2.6")
    assert "the kernel is 2.6." in sentence
    assert "or newer is needed, boot a newer kernel" in sentence


def test_a_prefix_that_is_on_no_bpffs(node: AgentNode) -> None:
    sentence = node.refused(bpf_prefix=str(node.directory / "pins"))
    assert "is not on a BPF file system: choose a prefix under /sys/fs/bpf" in sentence
    assert not (node.directory / "pins").exists()


def test_no_bpffs_and_none_can_be_mounted(node: AgentNode) -> None:
    script = f'umount -l {PINS} && mount -t tmpfs none /sys/fs && exec "$@"'
    sentence = node.refused("unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh")
    assert "no BPF file system at /sys/fs/bpf" in sentence
    assert "run mount -t bpf bpf /sys/fs/bpf" in sentence


def test_the_tunnel_port_in_use(node: AgentNode) -> None:
    with kernel.inside_network(node.netns):
        holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        holder.bind(("0.0.0.0", 8472))
    with holder:
        sentence = node.refused()
    assert "UDP port 8472 is in use: free it or choose another tunnel port" in sentence


def test_a_listening_port_in_use(node: AgentNode) -> None:
    with kernel.inside_network(node.netns):
        holder = socket.create_server(("127.0.0.1", 9911))
    with holder:
        sentence = node.refused(metrics_listen="127.0.0.1:9911")
    assert "can't listen on 127.0.0.1:9911" in sentence
    assert "stop what uses the port or choose another" in sentence


def test_a_device_that_is_not_there(node: AgentNode) -> None:
    assert node.refused(native_device="eth7") == "there is no device eth7: choose another --native-device"


def test_a_pod_prefix_that_is_none(node: AgentNode) -> None:
    sentence = node.refused(ipv4_pod_cidr="10.77.0.0/240")
    assert sentence.startswith("the pod prefix '10.77.0.0/240' can't be used")


def test_a_state_directory_that_is_a_file(node: AgentNode) -> None:
    path = node.directory / "taken"
    path.write_text("")
    sentence = node.refused(state_dir=str(path / "state"))
    assert sentence.startswith(f"{path}/state can't be used (Not a directory): make room")


def test_a_source_directory_that_is_not_there(node: AgentNode) -> None:
    sentence = node.refused(source_dir=str(node.directory / "nowhere"))
    assert str(node.directory / "nowhere") in sentence


def test_a_kubeconfig_that_is_not_there(node: AgentNode) -> None:
    sentence = node.refused(source_dir="", kubeconfig=str(node.directory / "nowhere"))
    assert str(node.directory / "nowhere") in sentence


def test_a_taken_socket(node: AgentNode) -> None:
    node.state.mkdir(exist_ok=True)
    path = node.state / "agent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:
        holder.bind(str(path))
        holder.listen()
        sentence = node.refused()
    assert sentence.startswith(f"Another process answers on {path}")
    path.unlink()
