"""grpc.reflection: what tools like grpcurl ask before they can call anything.

Source: the server reflection page of the gRPC repository (doc/server-reflection.md). Version 1 and the older
v1alpha have the same messages, so one handler answers both; only version 1 is listed.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError

from cilia.hubble.rpc.calls import Call, Conversation, Methods
from cilia.hubble.rpc.messages import Code, RpcError
from cilia.proto.reflection import reflection_pb2
from cilia.proto.reflection.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

METHODS = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")
)


class Reflection:
    """Describes the services of some files, and itself."""

    def __init__(self, files: Iterable[FileDescriptor]) -> None:
        """`files`: those that declare the services which are served."""
        serving = [*files, reflection_pb2.DESCRIPTOR]
        self._services = sorted(
            service.full_name for file in serving for service in file.services_by_name.values()
        )
        self._files: dict[str, FileDescriptor] = {}
        for file in serving:
            self._add(file)

    def methods(self) -> Methods:
        """By path, for `rpc.server.Server`."""
        return dict.fromkeys(METHODS, Conversation(self.talk))

    async def talk(self, call: Call) -> None:
        """Answer questions until the client has no more."""
        while (data := await call.receive()) is not None:
            try:
                request = ServerReflectionRequest.FromString(data)
            except DecodeError:
                raise RpcError(Code.INVALID_ARGUMENT, "this is no question about services") from None
            response = self.answer(request)
            response.valid_host = request.host
            response.original_request.CopyFrom(request)
            await call.send([response.SerializeToString()])

    def answer(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        """Of one question."""
        kind = request.WhichOneof("message_request")
        response = ServerReflectionResponse()
        if kind == "list_services":
            for name in self._services:
                response.list_services_response.service.add(name=name)
        elif kind == "file_by_filename":
            self._describe(response, self._files.get(request.file_by_filename), request.file_by_filename)
        elif kind == "file_containing_symbol":
            symbol = request.file_containing_symbol
            self._describe(response, self._file_of(symbol), symbol)
        elif kind == "all_extension_numbers_of_type" and self._file_of(request.all_extension_numbers_of_type):
            # proto3 has no extensions.
            numbers = response.all_extension_numbers_response
            numbers.base_type_name = request.all_extension_numbers_of_type
        else:
            _refuse(response, "nothing here has extensions" if kind else "the question is empty")
        return response

    def _describe(self, response: ServerReflectionResponse, file: FileDescriptor | None, name: str) -> None:
        """The file, and all it imports."""
        if file is None:
            _refuse(response, f"nothing here is called {name[:200]!r}: list the services first")
            return
        found = {file.name: file}
        waiting = [file]
        while waiting:
            for other in waiting.pop().dependencies:
                if other.name not in found:
                    found[other.name] = other
                    waiting.append(other)
        parts = [one.serialized_pb for one in found.values()]
        response.file_descriptor_response.file_descriptor_proto.extend(parts)

    def _file_of(self, symbol: str) -> FileDescriptor | None:
        """The file that declares a service, a method, a message or one of its parts."""
        for file in self._files.values():
            if not symbol.startswith(f"{file.package}."):
                continue
            first, _, rest = symbol.removeprefix(f"{file.package}.").partition(".")
            service = file.services_by_name.get(first)
            if service is not None and (not rest or rest in service.methods_by_name):
                return file
            if first in file.message_types_by_name or (first in file.enum_types_by_name and not rest):
                return file
        return None

    def _add(self, file: FileDescriptor) -> None:
        if file.name not in self._files:
            self._files[file.name] = file
            for other in file.dependencies:
                self._add(other)


def _refuse(response: ServerReflectionResponse, sentence: str) -> None:
    response.error_response.error_code = int(Code.NOT_FOUND)
    response.error_response.error_message = sentence
