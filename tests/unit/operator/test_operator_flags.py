"""Flags, health and numbers: what is asked for is served, mistakes are a sentence."""

import asyncio
import socket

import aiohttp
import pytest
from typer.testing import CliRunner

from cilia.apps.operator import app, node_pools
from cilia.control.ipam import PoolError
from cilia.operator.listen import ListenError, serving
from cilia.operator.metrics import Metrics


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def fetch(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


def test_health_and_metrics_on_one_address() -> None:
    async def story() -> None:
        problem = ""
        metrics = Metrics()
        metrics.nodes(total=3, in_deficit=1)
        metrics.identity_run(True, 0.1)
        metrics.endpoint_collected(True)
        address = free_address()
        async with serving(address, address, why_unhealthy=lambda: problem, metrics=metrics):
            assert await fetch(f"http://{address}/healthz") == (200, "ok")
            problem = "away"
            assert await fetch(f"http://{address}/healthz") == (503, "away")
            _, text = await fetch(f"http://{address}/metrics")
            assert 'cilium_operator_ipam_nodes{category="in-deficit"} 1.0' in text
            assert 'cilium_operator_identity_gc_runs{outcome="success"} 1.0' in text

    asyncio.run(story())


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:http", "127.0.0.1:99999"])
def test_addresses_that_are_none(address: str) -> None:
    async def story() -> None:
        with pytest.raises(ListenError, match=address):
            async with serving(address, "", why_unhealthy=str, metrics=Metrics()):
                pass

    asyncio.run(story())


def test_an_address_in_use() -> None:
    async def story() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(ListenError, match="can't be listened on"):
                async with serving("", address, why_unhealthy=str, metrics=Metrics()):
                    pass

    asyncio.run(story())


def test_cluster_pools_from_flags() -> None:
    assert node_pools(["10.0.0.0/8"], 24, ["fd00::/104"], 120).families == (4, 6)
    assert node_pools([], 24, ["fd00::/104"], 120).families == (6,)
    with pytest.raises(PoolError, match="'x' is not a prefix"):
        node_pools(["x"], 24, [], 120)
    with pytest.raises(PoolError, match="use --cluster-pool-ipv6-cidr"):
        node_pools(["fd00::/104"], 24, [], 120)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--kubeconfig", "/no/such/file"], "kubeconfig /no/such/file does not exist"),
        (["--cluster-pool-ipv4-cidr", "10.0.0.1/8"], "'10.0.0.1/8' is not a prefix"),
        (["--cluster-pool-ipv4-mask-size", "4"], "choose a mask size from 8 to 32"),
        (["--leader-election-lease-duration", "1"], "lease duration > renew deadline"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("cilia-operator: ")
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
