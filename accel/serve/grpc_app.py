"""The Open Inference Protocol over gRPC."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from ... import __version__
from ...errors import SaccadeError
from .dispatcher import Finished
from .errors import BadRequest, RequestError
from .model import VERSION, ServedModel
from .request import MOST_ID, InferenceRequest, OutputRequest, checked_shape
from .service import EXTENSIONS, Service, classification
from .tensors import DATATYPES, MOST_ELEMENTS, Tensor, datatype_of, from_json, from_wire, to_wire
from .work import Work

__all__ = ["make_grpc_server"]

_LOG = logging.getLogger("saccade.serve")
_MOST_STREAMS = 100  # of one connection, and beside what waits
_LARGE = 64 * 1024  # bytes of a request whose reading would hold up others
_OPEN = ("ServerLive", "ServerReady")  # answered without a key
_CONTENTS = {  # of a datatype, the field that holds its values where they are not raw
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
Context = Any  # grpc.aio.ServicerContext, of which there are no types


def make_grpc_server(service: Service) -> grpc.aio.Server:
    """A gRPC server of a service's models, not listening yet."""
    limits = service.config.limits
    server = grpc.aio.server(
        interceptors=[_Guard(service)],
        options=[
            ("grpc.max_receive_message_length", limits.body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", _MOST_STREAMS),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=service.config.queue + service.workers + _MOST_STREAMS,
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(service), server)
    return server


class _Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Lets in who shows the key."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None or details.method.rsplit("/", 1)[1] in _OPEN or self._allowed(details.invocation_metadata):
            return handler

        async def refuse(request: Any, context: Context) -> None:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "this server wants an API key: metadata 'authorization: Bearer KEY'"
            )

        async def refuse_stream(requests: Any, context: Context) -> AsyncIterator[Any]:
            await refuse(requests, context)
            yield

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(
            refuse_stream if handler.request_streaming else refuse,
            request_deserializer=None,  # what is refused need not be understood
            response_serializer=handler.response_serializer,
        )

    def _allowed(self, metadata: Any) -> bool:
        shown = {key: value for key, value in metadata or () if isinstance(value, str)}
        bearer = shown.get("authorization", "")
        return self.service.allowed(bearer[7:] if bearer[:7].lower() == "bearer " else shown.get("x-api-key"))


class _Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The methods of the protocol."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def ServerLive(self, request: Any, context: Context) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Context) -> Any:
        return service_pb2.ServerReadyResponse(ready=self.service.ready)

    async def ModelReady(self, request: Any, context: Context) -> Any:
        try:
            self.service.models.get(request.name, request.version)
        except RequestError as error:
            if error.http == 404:
                await _abort(context, error)
            return service_pb2.ModelReadyResponse(ready=False)
        return service_pb2.ModelReadyResponse(ready=not self.service.draining)

    async def ServerMetadata(self, request: Any, context: Context) -> Any:
        return service_pb2.ServerMetadataResponse(name="saccade", version=__version__, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: Any, context: Context) -> Any:
        model = await self._model(request, context)
        return json_format.ParseDict(model.metadata(), service_pb2.ModelMetadataResponse())

    async def ModelConfig(self, request: Any, context: Context) -> Any:
        model = await self._model(request, context)
        config = json_format.ParseDict(self.service.model_config(model), model_config_pb2.ModelConfig())
        return service_pb2.ModelConfigResponse(config=config)

    async def ModelStatistics(self, request: Any, context: Context) -> Any:
        models = [await self._model(request, context)] if request.name else list(self.service.models)
        found = {"model_stats": [self.service.statistics(model) for model in models]}
        return json_format.ParseDict(found, service_pb2.ModelStatisticsResponse())

    async def RepositoryIndex(self, request: Any, context: Context) -> Any:
        states = self.service.models.states()
        return service_pb2.RepositoryIndexResponse(
            models=[
                service_pb2.RepositoryIndexResponse.ModelIndex(
                    name=state.name, version=VERSION, state=state.state, reason=state.reason
                )
                for state in states
                if state.state == "READY" or not request.ready
            ]
        )

    async def RepositoryModelLoad(self, request: Any, context: Context) -> Any:
        try:
            await self.service.load(request.model_name)
        except Exception as error:
            await _abort(context, error)
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Context) -> Any:
        try:
            self.service.unload(request.model_name)
        except Exception as error:
            await _abort(context, error)
        return service_pb2.RepositoryModelUnloadResponse()

    async def ModelInfer(self, request: Any, context: Context) -> Any:
        try:
            return await self._infer(request, context)
        except Exception as error:
            await _abort(context, error)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        """Requests of one stream, answered in order; one that fails does not end it."""
        following, stopping = aiter(requests), asyncio.ensure_future(self.service.drains.wait())
        try:
            while True:
                coming = asyncio.ensure_future(anext(following))
                await asyncio.wait((coming, stopping), return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    return  # the server stops, and nothing is asked
                try:
                    request = coming.result()
                except StopAsyncIteration:
                    return
                yield await self._streamed(request, context)
        finally:
            stopping.cancel()

    async def _streamed(self, request: Any, context: Context) -> Any:
        try:
            answer = await self._infer(request, context)
        except Exception as error:
            empty = service_pb2.ModelInferResponse(id=request.id)
            return service_pb2.ModelStreamInferResponse(error_message=_told(error)[1], infer_response=empty)
        return service_pb2.ModelStreamInferResponse(infer_response=answer)

    async def _infer(self, request: Any, context: Context) -> Any:
        began, size = time.perf_counter(), request.ByteSize()

        async def read() -> InferenceRequest:
            return await asyncio.to_thread(_from_proto, request) if size > _LARGE else _from_proto(request)

        with self.service.bodies.holding(size):
            answer = await self.service.infer(
                request.model_name, request.model_version, "grpc", began, read, remaining=context.time_remaining()
            )
            return _to_proto(*answer)

    async def _model(self, request: Any, context: Context) -> ServedModel:
        try:
            return self.service.models.get(request.name, request.version)
        except RequestError as error:
            await _abort(context, error)
            raise


async def _abort(context: Context, error: Exception) -> None:
    await context.abort(*_told(error))


def _told(error: Exception) -> tuple[Any, str]:
    """Status and message for the client; of a bug no more than that it is one."""
    if isinstance(error, RequestError):
        return grpc.StatusCode[error.grpc], str(error)
    if isinstance(error, SaccadeError):
        _LOG.error("a request failed: %s", error)
        return grpc.StatusCode.INTERNAL, str(error)
    if isinstance(error, grpc.aio.AbortError):
        raise error
    _LOG.error("a request failed: %s", error, exc_info=error)
    return grpc.StatusCode.INTERNAL, "the server failed on this request; its log says how"


def _from_proto(request: Any) -> InferenceRequest:
    """A request of the protocol's messages in the server's terms."""
    for tensor in (*request.inputs, *request.outputs):
        if "shared_memory_region" in tensor.parameters:
            raise BadRequest(f"'{tensor.name}' is in shared memory, which this server has not; send the tensor itself")
    if len(request.id) > MOST_ID:
        raise BadRequest(f"the request's 'id' is a string of at most {MOST_ID} characters")
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(f"the request has {len(request.inputs)} inputs and raw contents of {len(raw)}")
    inputs: dict[str, Tensor] = {}
    for index, tensor in enumerate(request.inputs):
        if tensor.name in inputs:
            raise BadRequest(f"input '{tensor.name}' is there twice")
        if tensor.datatype not in DATATYPES:
            raise BadRequest(f"input '{tensor.name}' has no datatype that is known: {', '.join(DATATYPES)}")
        shape = checked_shape(list(tensor.shape), tensor.name)
        if raw:
            inputs[tensor.name] = from_wire(memoryview(raw[index]), tensor.datatype, shape, tensor.name)
        else:
            inputs[tensor.name] = _contents(tensor, shape)
    return InferenceRequest(
        id=request.id,
        inputs=inputs,
        outputs=tuple(_output(output) for output in request.outputs),
        parameters=_parameters(request.parameters),
        binary=True,
    )


def _contents(tensor: Any, shape: tuple[int, ...]) -> Tensor:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise BadRequest(f"input '{tensor.name}' is {tensor.datatype}, which is sent as raw contents only")
    values = getattr(tensor.contents, field)
    if tensor.datatype != "BYTES":
        return from_json(list(values), tensor.datatype, shape, tensor.name)
    if len(values) != math.prod(shape) or len(values) > MOST_ELEMENTS:
        raise BadRequest(
            f"input '{tensor.name}' has {len(values)} values, and the shape {list(shape)} takes {math.prod(shape)}"
        )
    found = np.empty(len(values), dtype=np.object_)
    found[:] = list(values)
    return found.reshape(shape)


def _output(output: Any) -> OutputRequest:
    classes = _parameters(output.parameters).get("classification", 0)
    if not isinstance(classes, int) or classes < 0:
        raise BadRequest(f"'classification' of output '{output.name}' is a number of classes")
    return OutputRequest(name=output.name, binary=True, classification=classes)


def _parameters(found: Any) -> dict[str, Any]:
    values = {}
    for name, parameter in found.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise BadRequest(f"the parameter '{name}' has no value")
        values[name] = getattr(parameter, kind)
    return values


def _to_proto(model: ServedModel, work: Work, finished: Finished) -> Any:
    response = service_pb2.ModelInferResponse(model_name=model.name, model_version=VERSION, id=work.id)
    response.parameters["queue_ms"].double_param = round(finished.queue_seconds * 1e3, 3)
    response.parameters["compute_ms"].double_param = round(finished.compute_seconds * 1e3, 3)
    for output in work.outputs:
        tensor = finished.outputs[output.name]
        if output.classification:
            tensor = classification(tensor, output.classification, model.manifest.class_names)
        described = response.outputs.add()
        described.name, described.datatype = output.name, datatype_of(tensor)
        described.shape.extend(tensor.shape)
        response.raw_output_contents.append(bytes(to_wire(tensor)))
    return response
