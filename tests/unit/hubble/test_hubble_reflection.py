"""What probes and grpcurl ask: health, and the description of the services."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from cilia.hubble.health import Health
from cilia.hubble.rpc.reflection import METHODS, Reflection
from cilia.hubble.rpc.server import Server
from cilia.proto.health import health_pb2
from cilia.proto.health.health_pb2 import HealthCheckRequest, HealthCheckResponse
from cilia.proto.observer import observer_pb2
from cilia.proto.peer import peer_pb2
from cilia.proto.reflection.reflection_pb2 import (
    ExtensionRequest,
    ServerReflectionRequest,
    ServerReflectionResponse,
)
from tests.support.grpc_client import served_over_tcp
from tests.support.hubble import Beside
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(60)

FILES = [observer_pb2.DESCRIPTOR, peer_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR]


class Served:
    """A server with health and reflection, and a channel to it."""

    def __init__(self, beside: Beside, health: Health, server: Server, channel: grpc.Channel) -> None:
        self.beside = beside
        self.health = health
        self.server = server
        self.channel = channel


@pytest.fixture
def served(running: Beside) -> Iterator[Served]:
    health = Health(["observer.Observer"])
    methods = {**running.observer.methods(), **health.methods(), **Reflection(FILES).methods()}
    with served_over_tcp(running, methods) as (server, channel):
        yield Served(running, health, server, channel)


def ask(served: Served, *requests: ServerReflectionRequest, method: str = METHODS[0]) -> list[Any]:
    call = served.channel.stream_stream(
        method, ServerReflectionRequest.SerializeToString, ServerReflectionResponse.FromString
    )
    return list(call(iter(requests), timeout=20))


@pytest.mark.parametrize("method", METHODS)
def test_services_are_listed(served: Served, method: str) -> None:
    (answer,) = ask(served, ServerReflectionRequest(host="h", list_services="*"), method=method)
    assert [service.name for service in answer.list_services_response.service] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "observer.Observer",
        "peer.Peer",
    ]
    assert answer.valid_host == "h"
    assert answer.original_request.list_services == "*"


def test_a_client_that_knows_nothing_learns_to_call(served: Served) -> None:
    """As grpcurl does: describe a symbol, build classes from the answer, call with them."""
    (answer,) = ask(served, ServerReflectionRequest(file_containing_symbol="observer.Observer.ServerStatus"))
    pool = descriptor_pool.DescriptorPool()
    files = {}
    for data in answer.file_descriptor_response.file_descriptor_proto:
        file = descriptor_pb2.FileDescriptorProto.FromString(data)
        files[file.name] = file

    def add(name: str) -> None:
        for needed in files[name].dependency:
            add(needed)
        pool.Add(files[name])

    add("observer/observer.proto")
    method = pool.FindServiceByName("observer.Observer").methods_by_name["ServerStatus"]
    request = message_factory.GetMessageClass(method.input_type)
    response = message_factory.GetMessageClass(method.output_type)
    call = served.channel.unary_unary(
        "/observer.Observer/ServerStatus", request.SerializeToString, response.FromString
    )
    assert call(request(), timeout=20).max_flows == 1024


def test_a_conversation_goes_on_after_a_wrong_question(served: Served) -> None:
    kinds = [
        answer.WhichOneof("message_response")
        for answer in ask(
            served,
            ServerReflectionRequest(file_containing_symbol="no.Such.Thing"),
            ServerReflectionRequest(file_by_filename="no/such.proto"),
            ServerReflectionRequest(),
            ServerReflectionRequest(
                file_containing_extension=ExtensionRequest(containing_type="flow.Flow", extension_number=1)
            ),
            ServerReflectionRequest(all_extension_numbers_of_type="flow.Flow"),
            ServerReflectionRequest(file_by_filename="peer/peer.proto"),
            ServerReflectionRequest(file_containing_symbol="flow.Verdict"),
        )
    ]
    assert kinds == ["error_response"] * 4 + [
        "all_extension_numbers_response",
        "file_descriptor_response",
        "file_descriptor_response",
    ]


def test_garbage_ends_the_conversation(served: Served) -> None:
    call = served.channel.stream_stream(METHODS[0])
    with pytest.raises(grpc.RpcError) as error:
        list(call(iter([b"\xff\xff"]), timeout=20))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_more_questions_than_answers_are_read_end_the_conversation(served: Served) -> None:
    call = served.channel.stream_stream(METHODS[0], ServerReflectionRequest.SerializeToString)
    question = ServerReflectionRequest(file_containing_symbol="observer.Observer")
    answers = call((question for _ in range(5000)), timeout=20)
    until(lambda: served.beside.call(lambda: served.server.calls) == 1, "the call")
    until(lambda: served.beside.call(lambda: served.server.calls) == 0, "its end")
    with pytest.raises(grpc.RpcError) as error:
        list(answers)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def health(served: Served, kind: str, service: str) -> Any:
    arity = served.channel.unary_unary if kind == "Check" else served.channel.unary_stream
    call = arity(
        f"/grpc.health.v1.Health/{kind}", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
    )
    return call(HealthCheckRequest(service=service), timeout=20)


def test_health_is_checked(served: Served) -> None:
    assert health(served, "Check", "").status == HealthCheckResponse.SERVING
    assert health(served, "Check", "observer.Observer").status == HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as error:
        health(served, "Check", "no.Such")
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    served.beside.call(lambda: served.health.set(False))
    assert health(served, "Check", "").status == HealthCheckResponse.NOT_SERVING
    assert health(served, "Check", "observer.Observer").status == HealthCheckResponse.SERVING


def test_health_is_watched(served: Served) -> None:
    whole, coming = health(served, "Watch", ""), health(served, "Watch", "late.Service")
    assert next(whole).status == HealthCheckResponse.SERVING
    assert next(coming).status == HealthCheckResponse.SERVICE_UNKNOWN
    served.beside.call(lambda: served.health.set(False))
    served.beside.call(lambda: served.health.set(True, "late.Service"))
    assert next(whole).status == HealthCheckResponse.NOT_SERVING
    assert next(coming).status == HealthCheckResponse.SERVING
    whole.cancel()
    coming.cancel()
