"""`config.pbtxt` of each model, by Triton's own protobuf, from the inputs and outputs that its graph has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ...accel.onnx_prune import GraphValue
from ...errors import BundleError, require
from .settings import TritonSettings

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

__all__ = [
    "LABELS",
    "ROLE",
    "check_config",
    "decoder_config",
    "ensemble_config",
    "graph_config",
    "is_batched",
    "parse_config",
    "write_config",
]

LABELS = "labels.txt"
ROLE = "saccade_role"
_PURPOSE = "writing the configuration of Triton"
_TYPES = {
    "bool": "TYPE_BOOL", "uint8": "TYPE_UINT8", "int8": "TYPE_INT8", "int32": "TYPE_INT32", "int64": "TYPE_INT64",
    "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64",
}  # fmt: skip


def _schema() -> Any:
    return require("tritonclient.grpc.model_config_pb2", extra="deploy", purpose=_PURPOSE)


def is_batched(values: Sequence[GraphValue]) -> bool:
    """Every input and output has one part for each image, so that the server may cut and join requests."""
    return all(value.shape[:1] == ("batch",) for value in values)


def graph_config(
    name: str,
    role: str,
    inputs: Sequence[GraphValue],
    outputs: Sequence[GraphValue],
    settings: TritonSettings,
    warm_up: Mapping[str, NDArray[Any]],
    plans: Mapping[str, Sequence[str]],
) -> ModelConfig:
    """The configuration of a graph, or of its plans.

    Args:
        name: of the model.
        role: what it is for.
        inputs: of the graph.
        outputs: of the graph.
        settings: fitted to the bundle.
        warm_up: for each input its values, of one image where there are batches; they lie in the model's folder for
            warm-up, in files of the inputs' names. Empty for no warm-up.
        plans: file names of plans with the GPUs that each is for; empty for a graph.
    """
    config = _model(name, role, inputs, outputs, settings)
    if plans:
        config.platform, config.backend = "tensorrt_plan", "tensorrt"
        files = {gpu: file for file, gpus in plans.items() for gpu in gpus}
        config.default_model_filename = next(iter(plans))
        if len(plans) > 1:
            for gpu, file in files.items():
                config.cc_model_filenames[_capability(gpu)] = file
        if is_batched((*inputs, *outputs)):
            config.optimization.cuda.graphs = True
    else:
        config.platform, config.backend = "onnxruntime_onnx", "onnxruntime"
        config.default_model_filename = "model.onnx"
        if settings.target == "cpu":
            config.parameters["intra_op_thread_count"].string_value = "1"
            config.parameters["inter_op_thread_count"].string_value = "1"
        else:
            _accelerate(config, settings)
    group = config.instance_group.add()
    group.count = settings.instances or 1
    group.kind = group.KIND_CPU if settings.target == "cpu" else group.KIND_AUTO
    if plans:
        group.kind = group.KIND_GPU
    if settings.bounded or (settings.batching and config.max_batch_size):
        _queue(config, settings)
    if settings.response_cache:
        config.response_cache.enable = True
    if warm_up:
        largest = config.max_batch_size if settings.batching else 0
        for size in sorted({1, max(1, largest)}):
            _warm_up(config, size, warm_up)
    return config


def decoder_config(name: str, outputs: Sequence[GraphValue], settings: TritonSettings) -> ModelConfig:
    """The configuration of the model that decodes images, and fills in what a request leaves out.

    Args:
        name: of the model.
        outputs: the explainer's inputs.
        settings: fitted to the bundle.
    """
    optional = [value for value in outputs if value.name != "image"]
    encoded = GraphValue("encoded", "string", ("batch",))
    batched = is_batched(outputs)
    config = _model(name, "decoder", [], outputs, settings, batched=batched)
    _tensor(config.input.add(), encoded, batched)
    for value in optional:
        tensor = config.input.add()
        _tensor(tensor, value, batched)
        tensor.optional = True
    for tensor in (*config.input, *config.output):
        tensor.ClearField("reshape")  # what a model in Python is given and gives is as the client sees it
    config.backend = "python"
    group = config.instance_group.add()
    group.count, group.kind = settings.decoders or 1, group.KIND_CPU
    if settings.bounded:
        _queue(config, settings)
    return config


def ensemble_config(name: str, decoder: ModelConfig, explainer: ModelConfig) -> ModelConfig:
    """The configuration of the model that takes encoded images: decoder, then explainer.

    Its output `pixels` is the image as the explainer sees it.
    """
    config = _schema().ModelConfig(name=name, platform="ensemble", max_batch_size=explainer.max_batch_size)
    config.parameters[ROLE].string_value = "ensemble"
    config.version_policy.CopyFrom(explainer.version_policy)
    for tensor in decoder.input:
        config.input.add().CopyFrom(tensor)
        if tensor.name == "encoded":
            config.input[-1].name = "image"
    for tensor in explainer.output:
        config.output.add().CopyFrom(tensor)
        config.output[-1].ClearField("reshape")
    pixels = next(tensor for tensor in decoder.output if tensor.name == "image")
    config.output.add().CopyFrom(pixels)
    config.output[-1].name = "pixels"
    first, second = config.ensemble_scheduling.step.add(), config.ensemble_scheduling.step.add()
    first.model_name, second.model_name = decoder.name, explainer.name
    first.model_version = second.model_version = -1
    for tensor in decoder.input:
        first.input_map[tensor.name] = "image" if tensor.name == "encoded" else tensor.name
    for tensor in decoder.output:
        inside = "pixels" if tensor.name == "image" else f"decoded_{tensor.name}"
        first.output_map[tensor.name] = second.input_map[tensor.name] = inside
    for tensor in explainer.output:
        second.output_map[tensor.name] = tensor.name
    return config


def write_config(config: ModelConfig) -> bytes:
    """A configuration as text."""
    text_format = require("google.protobuf.text_format", extra="deploy", purpose=_PURPOSE)
    text: str = text_format.MessageToString(config)
    return text.encode()


def parse_config(text: bytes) -> ModelConfig:
    """A configuration from its text.

    Raises:
        ValueError: it is not one; the message says where.
    """
    text_format = require("google.protobuf.text_format", extra="deploy", purpose=_PURPOSE)
    try:
        return text_format.Parse(text, _schema().ModelConfig())
    except text_format.ParseError as error:
        raise ValueError(str(error)) from None


def check_config(config: ModelConfig, inputs: Sequence[GraphValue], outputs: Sequence[GraphValue]) -> None:
    """Hold a configuration, as it was read back, against a graph.

    Raises:
        BundleError: an input or output differs.
    """
    batch = [-1] if config.max_batch_size else []
    for tensors, values in ((config.input, inputs), (config.output, outputs)):
        written = {
            tensor.name: (
                tensor.data_type,
                [*batch, *(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)],
            )
            for tensor in tensors
        }
        held = {value.name: (_type_number(value.dtype), [_size(size) for size in value.shape]) for value in values}
        if written != held:
            raise BundleError(
                f"the configuration of '{config.name}' has {json.dumps(written)} and its graph {json.dumps(held)}"
            )


def _model(
    name: str,
    role: str,
    inputs: Sequence[GraphValue],
    outputs: Sequence[GraphValue],
    settings: TritonSettings,
    *,
    batched: bool | None = None,
) -> ModelConfig:
    batched = is_batched((*inputs, *outputs)) if batched is None else batched
    config = _schema().ModelConfig(name=name, max_batch_size=(settings.max_batch_size or 1) if batched else 0)
    config.parameters[ROLE].string_value = role
    config.version_policy.latest.num_versions = 1
    for value in inputs:
        _tensor(config.input.add(), value, batched)
    for value in outputs:
        tensor = config.output.add()
        _tensor(tensor, value, batched)
        if value.name == "probabilities":
            tensor.label_filename = LABELS
    return config


def _tensor(tensor: Any, value: GraphValue, batched: bool) -> None:
    tensor.name = value.name
    tensor.data_type = _type_number(value.dtype)
    sizes = [_size(size) for size in (value.shape[1:] if batched else value.shape)]
    tensor.dims.extend(sizes or [1])
    if not sizes:  # Triton has no tensors without a dimension of their own beside the batch's
        tensor.reshape.SetInParent()


def _size(size: int | str) -> int:
    return size if isinstance(size, int) else -1


def _type_number(dtype: str) -> int:
    number: int = _schema().DataType.Value("TYPE_STRING" if dtype == "string" else _TYPES[dtype])
    return number


def _queue(config: Any, settings: TritonSettings) -> None:
    """How requests wait. Nothing is set that was not asked for: a queue with a bound was seen to let requests wait half
    a second for an idle instance (Triton 2.51).
    """
    queue = config.dynamic_batching
    queue.SetInParent()
    if config.max_batch_size:
        queue.preferred_batch_size.extend(sorted(set(settings.preferred_batch_sizes)))
        queue.max_queue_delay_microseconds = settings.queue_delay
    if settings.bounded:
        policy = queue.default_queue_policy
        policy.max_queue_size = settings.queue_size or 0
        policy.default_timeout_microseconds = (settings.queue_timeout or 0) * 1000
        policy.timeout_action = policy.REJECT
        policy.allow_timeout_override = True


def _accelerate(config: Any, settings: TritonSettings) -> None:
    """What ONNX Runtime's providers for GPUs are told; single precision is single, so TF32 is off."""
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    if settings.accelerator:
        one = accelerators.add(name="tensorrt")
        one.parameters["precision_mode"] = settings.precision.upper()
        if settings.workspace is not None:
            one.parameters["max_workspace_size_bytes"] = str(int(settings.workspace * 2**30))
        if settings.engine_cache is not None:
            one.parameters["trt_engine_cache_enable"] = "true"
            one.parameters["trt_engine_cache_path"] = settings.engine_cache
    if settings.precision == "fp32":
        accelerators.add(name="cuda").parameters["use_tf32"] = "0"


def _warm_up(config: Any, size: int, values: Mapping[str, NDArray[Any]]) -> None:
    sample = config.model_warmup.add(name=f"golden sample, batch {size}", batch_size=size, count=1)
    for tensor in config.input:
        value = sample.inputs[tensor.name]
        value.data_type, value.input_data_file = tensor.data_type, tensor.name
        value.dims.extend(values[tensor.name].shape or (1,))


def _capability(gpu: str) -> str:
    """``sm89`` as Triton writes it, ``8.9``; the letter of ``sm90a`` is the compiler's, and no capability."""
    digits = gpu.removeprefix("sm").rstrip("abcdefghijklmnopqrstuvwxyz")
    return f"{digits[:-1]}.{digits[-1]}"
