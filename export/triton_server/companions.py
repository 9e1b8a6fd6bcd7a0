"""What lies beside the models in a repository, for people: a README, a client, and a manifest for KServe."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

from ...accel.bundle import Bundle, write_whole
from . import client
from .model_config import ROLE, parse_config
from .settings import TritonSettings

__all__ = ["write_companions"]

_IMAGE = "nvcr.io/nvidia/tritonserver:25.10-py3"
_LONGEST_NAME = 40  # of 63 characters; KServe appends to it
_STORAGE = "REPLACE-ME: where this folder lies, such as s3://bucket/models or pvc://volume/models"
_MEANING = {
    "explainer": "prediction and mask, from pixels",
    "parts": "several masks without a common pixel",
    "classifier": "the prediction alone, at the classifier's cost",
    "decoder": "decodes images; part of the next one",
    "ensemble": "prediction and mask, from encoded images (JPEG, PNG, WebP, GIF, BMP)",
}


def write_companions(
    repository: Path, bundle: Bundle, explainer: str, settings: TritonSettings, storage_uri: str | None
) -> None:
    """Write README, client and manifest; those that are there are written again, for all models of the repository.

    Args:
        repository: with its models in place.
        bundle: one of its bundles, for examples.
        explainer: the bundle's model.
        settings: with which it was deployed.
        storage_uri: where KServe will find it; None leaves a placeholder.

    Raises:
        OSError: they cannot be written.
    """
    models = _models(repository)
    ensembles = [name for name, config in models.items() if config.parameters[ROLE].string_value == "ensemble"]
    write_whole(repository / "inference_service.yaml", _manifest(repository, settings, storage_uri).encode())
    if ensembles:
        write_whole(repository / "client.py", inspect.getsource(client).encode())
    write_whole(repository / "README.md", _readme(models, ensembles, bundle, explainer, settings).encode())


def _models(repository: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(repository.glob("*/config.pbtxt")):
        try:
            config = parse_config(path.read_bytes())
        except ValueError:  # another's model; the server will say what is wrong with it
            continue
        if ROLE in config.parameters:
            found[config.name] = config
    return found


def _manifest(repository: Path, settings: TritonSettings, storage_uri: str | None) -> str:
    name = re.sub("[^a-z0-9]+", "-", repository.resolve().name.lower()).strip("-")
    if not name[:1].isalpha():  # as Kubernetes wants it
        name = f"saccade-{name}".rstrip("-")
    name = name[:_LONGEST_NAME].rstrip("-")
    gpu = settings.target == "gpu"
    lines = [
        "# The decoder of images needs Pillow in the server's image; 'image' names one that has it (README.md).",
        "apiVersion: serving.kserve.io/v1beta1",
        "kind: InferenceService",
        "metadata:",
        f"  name: {json.dumps(name)}",
        "spec:",
        "  predictor:",
        "    model:",
        "      modelFormat:",
        f"        name: {settings.format}",
        "      runtime: kserve-tritonserver",
        "      protocolVersion: v2",
        f"      storageUri: {json.dumps(storage_uri or _STORAGE)}",
        *(['      image: "REPLACE-ME: the image of README.md"'] if settings.images else []),
        *(["      env:", "        - name: NVIDIA_TF32_OVERRIDE", '          value: "0"'] if _single(settings) else []),
        *(["      resources:", "        limits:", '          nvidia.com/gpu: "1"'] if gpu else []),
    ]
    return "\n".join(lines[0 if settings.images else 1 :]) + "\n"


def _single(settings: TritonSettings) -> bool:
    """Computes in single precision on a GPU, where TF32 would round it."""
    return settings.target == "gpu" and settings.precision == "fp32"


def _readme(
    models: dict[str, Any], ensembles: list[str], bundle: Bundle, explainer: str, settings: TritonSettings
) -> str:
    gpu = "--gpus all " if settings.target == "gpu" else ""
    gpu += "-e NVIDIA_TF32_OVERRIDE=0 " if _single(settings) else ""
    image = "saccade-triton" if ensembles else _IMAGE
    plans = bundle.manifest.plans if settings.format == "tensorrt" else {}
    versions = sorted({plan.version for plan in plans.values()})
    runtime = (
        f"TensorRT {' or '.join(versions)}, which built the plans"
        if plans
        else f"an ONNX Runtime that knows opset {bundle.manifest.opset}"
    )
    rows = [
        f"| `{name}` | {_MEANING[config.parameters[ROLE].string_value]} | {_tensors(config.input, config)} | "
        f"{_tensors(config.output, config)} |"
        for name, config in models.items()
    ]
    parts = [
        "# Model repository for NVIDIA Triton Inference Server\n",
        "Written by `saccade deploy triton`, which writes this file again.\n",
        "\n".join(["| model | gives | inputs | outputs |", "|---|---|---|---|", *rows]) + "\n",
        "`target` is the class to explain, −1 the predicted one. Masks are float32 in [0, 1]; 1 keeps the pixel.",
        "Labels of the classes: ask for `probabilities` with Triton's classification extension.\n",
        f"## Start\n\nThe server's release must have {runtime}.\n",
    ]
    if ensembles:
        parts.append(
            "The decoder needs Pillow, which Triton's image lacks:\n\n```console\n"
            f"printf 'FROM {_IMAGE}\\nRUN pip install pillow\\n' | docker build -t {image} -\n```\n"
        )
    ports = [f"-p 127.0.0.1:{port}:{port}" for port in (8000, 8001, 8002)]
    compiled = f"-v saccade-engines:{settings.engine_cache} " if settings.engine_cache else ""
    cache = " --cache-config=local,size=1073741824" if settings.response_cache else ""
    parts.append(
        f"```console\ndocker run --rm {gpu}--shm-size=1g {' '.join(ports)} \\\n"
        f'  -v "$PWD":/models:ro {compiled}{image} tritonserver --model-repository=/models{cache}\n```\n'
    )
    if settings.accelerator:
        parts.append("The first start takes minutes: TensorRT compiles the graphs while they warm up.\n")
    parts.append("## Ask\n")
    if ensembles:
        own = f"{explainer}_from_bytes"
        one = own if own in ensembles else ensembles[0]
        parts.append(
            "```console\npip install 'tritonclient[http]' numpy pillow\n"
            f"python client.py photo.jpg --model {one} --out explained\n```\n\n"
            f"Without a client, the two most probable classes:\n\n```console\n{_curl(one, models[one])}\n```\n"
        )
    parts.append(
        "Does the server explain what the original explains? It is held against the bundle's golden samples:\n\n"
        f"```console\nsaccade verify BUNDLE --server http://localhost:8000 --model {explainer}\n```\n"
    )
    return "\n".join(parts)


def _tensors(tensors: Any, config: Any) -> str:
    batch = ["N"] if config.max_batch_size else []
    return ", ".join(
        f"`{tensor.name}` ({', '.join([*batch, *('…' if size < 0 else str(size) for size in tensor.dims)])})"
        + (" optional" if getattr(tensor, "optional", False) else "")
        for tensor in tensors
    )


def _curl(name: str, config: Any) -> str:
    """A request with the image as it is on disk behind a small header, as the protocol's binary extension has it."""
    request = {
        "inputs": [
            {
                "name": "image",
                "shape": [1, 1] if config.max_batch_size else [1],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": "SIZE"},
            }
        ],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 2}}],
    }
    header = json.dumps(request).replace('"SIZE"', "%d")
    lines = [
        "image=photo.jpg; size=$(wc -c < $image)",
        f"header=$(printf '{header}' $((size + 4)))",
        """(printf %s "$header"; python3 -c "import sys; sys.stdout.buffer.write(($size).to_bytes(4, 'little'))"; """
        "cat $image) |",
        f"  curl -s http://localhost:8000/v2/models/{name}/infer --data-binary @- \\",
        '    -H "Inference-Header-Content-Length: ${#header}" -H "Content-Type: application/octet-stream"',
    ]
    return "\n".join(lines)
