"""Viewers with tokens, a small HTTP server that speaks the two reviews, and what each viewer gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from google.protobuf import field_mask_pb2

from cilia.cluster.kube.client import KubeStore
from cilia.cluster.kube.kubeconfig import Endpoint
from cilia.cluster.store import Listing, Resource
from cilia.hubble.rpc.messages import RpcError
from cilia.kit.clock import ManualClock
from cilia.proto.flow import flow_pb2
from cilia.proto.observer import observer_pb2
from cilia.relay.access import Access, AccessSettings
from cilia.relay.view import OTHER, View
from tests.support.grpc_client import get_flows, unary
from tests.support.relay import (
    Cluster,
    Node,
    Response,
    channel_to,
    cluster,
    response,
)
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)

USERS = {"t-admin": "admin", "t-shop": "ann", "t-none": "bob"}


class Reviewer:
    """TokenReview, SubjectAccessReview and the namespaces, as an API server answers them."""

    def __init__(self) -> None:
        self.rights: dict[str, set[str]] = {"admin": {""}, "ann": {"shop"}, "bob": set()}
        self.asked: list[dict[str, Any]] = []
        self.away = False
        self.port = 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/apis/authentication.k8s.io/v1/tokenreviews", self.token)
        app.router.add_post("/apis/authorization.k8s.io/v1/subjectaccessreviews", self.access)
        app.router.add_get("/api/v1/namespaces", self.namespaces)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        assert self._runner
        await self._runner.cleanup()

    async def token(self, request: web.Request) -> web.Response:
        review = await request.json()
        if self.away:
            return web.json_response({"kind": "Status", "code": 503}, status=503)
        self.asked.append(review)
        name = USERS.get(review["spec"]["token"])
        status: dict[str, Any] = {"authenticated": name is not None}
        if name:
            status["user"] = {"username": name, "groups": ["viewers"]}
        return web.json_response({**review, "status": status}, status=201)

    async def access(self, request: web.Request) -> web.Response:
        review = await request.json()
        attributes = review["spec"]["resourceAttributes"]
        assert (attributes["group"], attributes["resource"], attributes["verb"]) == (
            "hubble.cilia.io", "flows", "get",
        )  # fmt: skip
        assert review["spec"]["groups"] == ["viewers"]
        allowed = attributes["namespace"] in self.rights[review["spec"]["user"]]
        return web.json_response({**review, "status": {"allowed": allowed}}, status=201)

    async def namespaces(self, _request: web.Request) -> web.Response:
        items = [{"metadata": {"name": name}} for name in ("bank", "shop")]
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": items})


def between(node: str, moment: int, source: str, destination: str) -> bytes:
    """A flow between pods of two namespaces; an empty one is the world."""
    made = Response.FromString(response(node, moment))
    for name, namespace in (("source", source), ("destination", destination)):
        side = getattr(made.flow, name)
        if namespace:
            side.namespace, side.pod_name, side.identity = namespace, f"{namespace}-0", 4711
            side.labels.append(f"k8s:io.kubernetes.pod.namespace={namespace}")
            side.workloads.add(name=namespace, kind="Deployment")
        else:
            side.identity = 2
            side.labels.append("reserved:world")
    made.flow.IP.source, made.flow.IP.destination = "10.0.0.1", "10.0.0.2"
    made.flow.source_names.append(f"{source}.example")
    made.flow.egress_allowed_by.add(name="out", namespace=source)
    made.flow.ingress_allowed_by.add(name="in", namespace=destination)
    return made.SerializeToString()


class Stage:
    """A reviewer, a node with flows, and a relay that asks the one before it asks the other."""

    def __init__(self, running: Cluster, access: AccessSettings) -> None:
        self.cluster = running
        self.reviewer = Reviewer()
        running.run(self.reviewer.start())
        self.node = Node(
            "node-0",
            [
                between("node-0", 1, "shop", "shop"),
                between("node-0", 2, "shop", "bank"),
                between("node-0", 3, "bank", "bank"),
                between("node-0", 4, "", "shop"),
                between("node-0", 5, "bank", ""),
            ],
        )
        store = KubeStore(Endpoint(server=f"http://127.0.0.1:{self.reviewer.port}", token="relay"))
        self.target = running.relay(
            [running.start(self.node)],
            reviews=store,
            access=access,
        )
        until(lambda: self.flows("t-admin"), "the relay to have the node")
        self.reviewer.asked.clear()

    def flows(self, token: str | None, **fields: Any) -> list[Response]:
        metadata = [("authorization", f"Bearer {token}")] if token else None
        with channel_to(self.target) as channel:
            return [each for each in get_flows(channel, metadata=metadata, **fields) if each.HasField("flow")]

    def refusal(self, token: str | None) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.flows(token)
        return caught.value.code(), caught.value.details()


@contextmanager
def staged(directory: Path, remember: float) -> Iterator[Stage]:
    """`remember`: seconds, as of AccessSettings."""
    with cluster(directory) as running:
        access = AccessSettings(remember=remember, remember_refusal=0.1, mask_addresses=True)
        stage = Stage(running, access)
        try:
            yield stage
        finally:
            running.stop_relays()
            running.run(stage.reviewer.stop())


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """An answer holds longer than any test takes."""
    with staged(tmp_path, 3600) as stage:
        yield stage


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[Stage]:
    """An answer holds for a moment."""
    with staged(tmp_path, 0.5) as stage:
        yield stage


def uuids(responses: list[Response]) -> list[str]:
    return [each.flow.uuid.removeprefix("node-0-") for each in responses]


def test_who_may_see_all_namespaces_sees_everything(stage: Stage) -> None:
    flows = stage.flows("t-admin")
    assert uuids(flows) == ["1", "2", "3", "4", "5"]
    assert flows[1].flow.destination.pod_name == "bank-0"
    assert not stage.node.requests[-1].whitelist


def test_who_may_see_one_namespace_sees_its_flows_with_strangers_masked(stage: Stage) -> None:
    flows = stage.flows("t-shop")
    assert uuids(flows) == ["1", "2", "4"]
    own, across, world = (each.flow for each in flows)
    assert (own.source.pod_name, own.destination.pod_name) == ("shop-0", "shop-0")
    assert across.source.pod_name == "shop-0"
    assert across.destination == flow_pb2.Endpoint(labels=[OTHER])
    assert (across.IP.source, across.IP.destination) == ("10.0.0.1", "")
    assert across.egress_allowed_by and not across.ingress_allowed_by
    assert list(world.source.labels) == ["reserved:world"]
    assert b"bank" not in b"".join(each.SerializeToString() for each in flows)


def test_the_nodes_are_asked_for_nothing_else(stage: Stage) -> None:
    wanted = flow_pb2.FlowFilter(source_label=["app=web"], verdict=[flow_pb2.FORWARDED])
    stage.flows("t-shop", whitelist=[wanted])
    source, destination = stage.node.requests[-1].whitelist
    scope = "k8s:io.kubernetes.pod.namespace in (shop)"
    assert list(source.source_label) == [f"app=web,{scope}"]
    assert not source.destination_label
    assert list(destination.source_label) == ["app=web"]
    assert list(destination.destination_label) == [scope]
    assert list(source.verdict) == list(destination.verdict) == [1]


def test_a_field_mask_is_applied_after_the_check(stage: Stage) -> None:
    mask = field_mask_pb2.FieldMask(paths=["uuid", "destination"])
    flows = stage.flows("t-shop", field_mask=mask)
    assert uuids(flows) == ["1", "2", "4"]
    assert not flows[0].flow.source.pod_name
    assert flows[1].flow.destination.labels == [OTHER]


def test_who_may_see_nothing_is_told_what_to_ask_for(stage: Stage) -> None:
    code, words = stage.refusal("t-none")
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert words.startswith("bob may not `get` the resource `flows` of group hubble.cilia.io")


@pytest.mark.parametrize("token", [None, "t-forged"])
def test_without_a_valid_token_nobody_comes_in(stage: Stage, token: str | None) -> None:
    assert stage.refusal(token)[0] is grpc.StatusCode.UNAUTHENTICATED


def test_when_the_api_server_is_away_nobody_comes_in(stage: Stage) -> None:
    assert uuids(stage.flows("t-shop")) == ["1", "2", "4"]
    stage.reviewer.away = True
    assert uuids(stage.flows("t-shop")) == ["1", "2", "4"], "an answer holds for a while"
    code, words = stage.refusal("t-none")
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "can't be asked" in words


def test_an_answer_holds_no_longer_than_it_may(forgetful: Stage) -> None:
    assert uuids(forgetful.flows("t-shop")) == ["1", "2", "4"]
    forgetful.reviewer.away = True
    forgetful.cluster.run(asyncio.sleep(0.6))
    code, words = forgetful.refusal("t-shop")
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "can't be asked" in words


def test_answers_are_remembered_and_the_token_is_not(stage: Stage) -> None:
    for _ in range(3):
        stage.flows("t-shop")
    assert len(stage.reviewer.asked) == 1


def test_a_follower_whose_right_is_withdrawn_is_sent_away(forgetful: Stage) -> None:
    with channel_to(forgetful.target) as channel:
        call = get_flows(channel, metadata=[("authorization", "Bearer t-shop")], follow=True)
        assert next(call).HasField("node_status")
        forgetful.reviewer.rights["ann"] = set()
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_namespaces_are_those_one_may_see(stage: Stage) -> None:
    with channel_to(stage.target) as channel:
        answer = unary(
            channel,
            "GetNamespaces",
            observer_pb2.GetNamespacesRequest(),
            observer_pb2.GetNamespacesResponse,
            metadata=[("authorization", "Bearer t-shop")],
        )
    assert [each.namespace for each in answer.namespaces] == ["shop"]


def test_a_side_nobody_knows_is_foreign() -> None:
    view = View(["shop"], None, mask_addresses=False)
    made = Response.FromString(between("node-0", 1, "shop", ""))
    made.flow.destination.labels[:] = ["k8s:app=secret"]
    seen = view.see(made.SerializeToString())
    assert seen is not None
    assert Response.FromString(seen).flow.destination.labels == [OTHER]


@pytest.mark.parametrize(("audiences", "admitted"), [([], False), (["vault"], False), (["hubble"], True)])
def test_a_token_that_was_made_for_others_is_refused(audiences: list[str], admitted: bool) -> None:
    class Server:
        async def create(self, resource: Resource, body: bytes, *, namespace: str | None = None) -> bytes:
            if resource.plural == "tokenreviews":
                assert json.loads(body)["spec"]["audiences"] == ["hubble"]
                user = {"username": "ann"}
                status = {"authenticated": True, "user": user, "audiences": audiences}
                return json.dumps({"status": status}).encode()
            return b'{"status": {"allowed": true}}'

        async def list(self, resource: Resource) -> Listing:
            raise AssertionError("who may see everything needs no list")

    access = Access(Server(), AccessSettings(audience="hubble"), ManualClock())
    asking = access.viewer({"authorization": "Bearer t"})
    if admitted:
        assert asyncio.run(asking).user == "ann"
        return
    with pytest.raises(RpcError, match="made for somebody else"):
        asyncio.run(asking)
