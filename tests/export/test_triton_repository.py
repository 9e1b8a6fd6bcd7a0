"""The files of a model repository, and what is refused before one is written."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from plan_files import add_plans, rewrite_manifest
from tritonclient.grpc import model_config_pb2

from saccade.accel.bundle import Bundle, open_bundle
from saccade.accel.manifest import Manifest
from saccade.errors import BundleError, EngineError, OutputError, SaccadeError, UsageError
from saccade.export.triton_server import repository
from saccade.export.triton_server.model_config import check_config
from saccade.export.triton_server.models import ModelFiles, models_of
from saccade.export.triton_server.repository import deploy
from saccade.export.triton_server.settings import TritonSettings, fitted

Command = Callable[..., tuple[int, str, str]]
DTYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32"}
MODELS = ["bundle", "bundle_classifier", "bundle_decode", "bundle_from_bytes"]


def read(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_configurations_have_what_onnx_runtime_finds_in_the_graphs(tiny_bundle: Path, tmp_path: Path) -> None:
    deploy([open_bundle(tiny_bundle)], tmp_path / "models", TritonSettings())
    assert sorted(path.name for path in (tmp_path / "models").iterdir() if path.is_dir()) == MODELS
    for name in ("bundle", "bundle_classifier"):
        config = read(tmp_path / "models" / name)
        session = ort.InferenceSession(tmp_path / "models" / name / "1" / "model.onnx")
        for tensors, values in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            for found, value in zip(tensors, values, strict=True):
                assert found.name == value.name
                assert model_config_pb2.DataType.Name(found.data_type) == DTYPES[value.type]
                inside = list(found.reshape.shape) if found.HasField("reshape") else list(found.dims)
                assert ["batch", *inside] == value.shape
        assert config.max_batch_size == 8
        warm = config.model_warmup[0].inputs["image"]
        content = (tmp_path / "models" / name / "warmup" / warm.input_data_file).read_bytes()
        assert content == open_bundle(tiny_bundle).golden.images[0].tobytes()


def test_a_configuration_that_does_not_fit_its_graph_is_found(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    model = models_of(bundle, "bundle", fitted(TritonSettings(), bundle))[0]
    assert model.values is not None
    check_config(model.config, *model.values)
    for damage in (
        lambda config: config.output[2].dims.__setitem__(1, 31),
        lambda config: config.input[1].ClearField("reshape"),
        lambda config: setattr(config.input[0], "data_type", model_config_pb2.TYPE_FP32),
        lambda config: setattr(config.output[0], "name", "probability"),
        lambda config: setattr(config, "max_batch_size", 0),
    ):
        other = model_config_pb2.ModelConfig()
        other.CopyFrom(model.config)
        damage(other)
        with pytest.raises(SaccadeError, match="the configuration of 'bundle' has"):
            check_config(other, *model.values)


def test_a_processor_has_an_instance_per_core_and_no_batcher(tiny_bundle: Path, tmp_path: Path) -> None:
    deploy([open_bundle(tiny_bundle)], tmp_path / "models", TritonSettings())
    config = read(tmp_path / "models" / "bundle")
    assert [(group.kind, group.count) for group in config.instance_group] == [
        (model_config_pb2.ModelInstanceGroup.KIND_CPU, len(os.sched_getaffinity(0)))
    ]
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert not config.HasField("dynamic_batching")
    assert not config.HasField("optimization")
    assert not config.response_cache.enable


def test_a_queue_has_the_bounds_that_are_asked_for(tiny_bundle: Path, tmp_path: Path) -> None:
    deploy([open_bundle(tiny_bundle)], tmp_path / "models", TritonSettings(queue_size=9, queue_timeout=700))
    for name in ("bundle", "bundle_classifier", "bundle_decode"):
        policy = read(tmp_path / "models" / name).dynamic_batching.default_queue_policy
        assert (policy.max_queue_size, policy.default_timeout_microseconds) == (9, 700_000)
        assert policy.timeout_action == policy.REJECT
    deploy([open_bundle(tiny_bundle)], tmp_path / "open", TritonSettings(target="gpu"))
    config = read(tmp_path / "open" / "bundle")
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.HasField("default_queue_policy")


def test_a_gpu_has_batches_and_tensorrt_where_asked(tiny_bundle: Path, tmp_path: Path) -> None:
    settings = TritonSettings(
        target="gpu", preferred_batch_sizes=(16, 4), queue_delay=300, accelerator=True, workspace=2.5,
        engine_cache="/cache", response_cache=True, instances=2,
    )  # fmt: skip
    deploy([open_bundle(tiny_bundle)], tmp_path / "models", settings, storage_uri="s3://bucket/models")
    config = read(tmp_path / "models" / "bundle")
    assert config.max_batch_size == 32
    assert [(group.kind, group.count) for group in config.instance_group] == [
        (model_config_pb2.ModelInstanceGroup.KIND_AUTO, 2)
    ]
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 300
    assert config.response_cache.enable
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert {one.name: dict(one.parameters) for one in accelerators} == {
        "tensorrt": {
            "precision_mode": "FP32", "max_workspace_size_bytes": str(5 * 2**29), "trt_engine_cache_enable": "true",
            "trt_engine_cache_path": "/cache",
        },
        "cuda": {"use_tf32": "0"},
    }  # fmt: skip
    assert sorted(warm.batch_size for warm in config.model_warmup) == [1, 32]
    decoder = read(tmp_path / "models" / "bundle_decode")
    assert decoder.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    manifest = (tmp_path / "models" / "inference_service.yaml").read_text()
    assert 'storageUri: "s3://bucket/models"' in manifest
    assert 'nvidia.com/gpu: "1"' in manifest
    readme = (tmp_path / "models" / "README.md").read_text()
    assert "--gpus all -e NVIDIA_TF32_OVERRIDE=0" in readme
    assert "--cache-config=local" in readme


def test_plans_are_served_as_they_are(tiny_bundle: Path, tmp_path: Path) -> None:
    add_plans(tiny_bundle, gpus=("sm89", "sm120"))
    settings = TritonSettings(target="gpu", format="tensorrt", images=False)
    written = deploy([open_bundle(tiny_bundle)], tmp_path / "models", settings)
    assert [model.name for model in written] == ["bundle", "bundle_classifier"]
    for name, answer in (("bundle", "mask"), ("bundle_classifier", "probabilities")):
        config = read(tmp_path / "models" / name)
        assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 16)
        assert dict(config.cc_model_filenames) == {"8.9": "model.sm89.plan", "12.0": "model.sm120.plan"}
        for gpu in ("sm89", "sm120"):
            assert (tmp_path / "models" / name / "1" / f"model.{gpu}.plan").read_text() == f"{gpu} {answer}"
    readme = (tmp_path / "models" / "README.md").read_text()
    assert "TensorRT 10.13.3, which built the plans" in readme
    assert "client.py" not in readme
    assert not (tmp_path / "models" / "client.py").exists()


def test_one_plan_is_the_model(tiny_bundle: Path, tmp_path: Path) -> None:
    add_plans(tiny_bundle, gpus=("sm90",))
    deploy([open_bundle(tiny_bundle)], tmp_path / "models", TritonSettings(target="gpu", format="tensorrt"))
    config = read(tmp_path / "models" / "bundle")
    assert (config.default_model_filename, dict(config.cc_model_filenames)) == ("model.plan", {})
    assert (tmp_path / "models" / "bundle" / "1" / "model.plan").is_file()


def test_plans_for_an_architecture_with_a_letter_have_its_capability(tiny_bundle: Path, tmp_path: Path) -> None:
    add_plans(tiny_bundle, gpus=("sm90a", "sm120"))
    deploy([open_bundle(tiny_bundle)], tmp_path / "models", TritonSettings(target="gpu", format="tensorrt"))
    config = read(tmp_path / "models" / "bundle")
    assert dict(config.cc_model_filenames) == {"9.0": "model.sm90a.plan", "12.0": "model.sm120.plan"}


@pytest.mark.parametrize("gpu", ["../../../../escaped", "sm89/../../../../escaped", "89", "sm", "sm89\n", "SM89"])
def test_a_manifest_names_gpus_and_no_places(tiny_bundle: Path, gpu: str) -> None:
    add_plans(tiny_bundle, gpus=("sm120", "sm89"))
    plans = json.loads((tiny_bundle / "manifest.json").read_text())["plans"]
    rewrite_manifest(tiny_bundle, plans={name: plan | {"gpus": [gpu]} for name, plan in plans.items()})
    with pytest.raises(BundleError, match=r"is damaged at 'plans\..*\.gpus\.0'"):
        open_bundle(tiny_bundle)


def test_nothing_is_written_outside_of_a_model_s_folder_nor_read_outside_of_the_bundle(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def escaping(*given: Any) -> list[ModelFiles]:
        first, *others = models_of(*given)
        return [replace(first, of_version={**first.of_version, "../../../../escaped": b"content"}), *others]

    with monkeypatch.context() as patched:
        patched.setattr(repository, "models_of", escaping)
        with pytest.raises(OutputError, match=r"escaped', which lies outside"):
            deploy([open_bundle(tiny_bundle)], tmp_path / "models", TritonSettings())
    (tmp_path / "own.txt").write_text("not the bundle's")
    add_plans(tiny_bundle, gpus=("sm89",))
    plans = json.loads((tiny_bundle / "manifest.json").read_text())["plans"]
    plans["../own.txt"] = plans.pop("explainer.mask.fp32.sm89.tensorrt.plan")
    rewrite_manifest(tiny_bundle, plans=plans)
    with pytest.raises(BundleError, match=r"does not list \.\./own\.txt"):
        open_bundle(tiny_bundle)
    manifest = Manifest.model_validate_json((tiny_bundle / "manifest.json").read_bytes())
    with pytest.raises(OutputError, match=r"own.txt', which lies outside"):
        deploy([Bundle(tiny_bundle, manifest)], tmp_path / "models", TritonSettings(target="gpu", format="tensorrt"))
    assert [path.name for path in tmp_path.rglob("*") if "escaped" in path.name] == []
    assert [*(tmp_path / "models").iterdir()] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "tpu"}, "no target 'tpu'; there are: cpu, gpu"),
        ({"format": "torch"}, "no format 'torch'"),
        ({"format": "tensorrt"}, "add --target gpu"),
        ({"accelerator": True}, "add --target gpu"),
        ({"target": "gpu", "format": "tensorrt", "accelerator": True}, "leave out --accelerator"),
        ({"target": "gpu", "workspace": 1.0}, "add --accelerator"),
        ({"target": "gpu", "accelerator": True, "precision": "int8"}, "fp32 or fp16, not int8"),
        ({"preferred_batch_sizes": (0, 4)}, "positive, not 0"),
        ({"queue_size": 0}, "queue_size is at least 1, not 0"),
        ({"version": 0}, "version is at least 1, not 0"),
        ({"name": "../elsewhere"}, "no name for a model"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TritonSettings(**settings)


def test_settings_that_a_bundle_does_not_go_with_are_refused(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    with pytest.raises(UsageError, match="a preferred batch of 16 is larger than the largest batch, 8"):
        fitted(TritonSettings(preferred_batch_sizes=(4, 16)), bundle)
    with pytest.raises(EngineError, match="holds no fp16 graph, but fp32; export it again with --precision fp16"):
        fitted(TritonSettings(precision="fp16"), bundle)
    with pytest.raises(EngineError, match=r"holds no fp32 TensorRT plan; build one .*--format tensorrt"):
        fitted(TritonSettings(target="gpu", format="tensorrt"), bundle)
    add_plans(tiny_bundle, gpus=("sm89",), flavour="tensorrt_rtx")
    with pytest.raises(EngineError, match=r"holds none of them .*, only of tensorrt_rtx"):
        fitted(TritonSettings(target="gpu", format="tensorrt"), open_bundle(tiny_bundle))
    add_plans(tiny_bundle, gpus=("sm89",))
    with pytest.raises(UsageError, match="--max-batch-size 64 is too large: the bundle's plans take up to 16 images"):
        fitted(TritonSettings(target="gpu", format="tensorrt", max_batch_size=64), open_bundle(tiny_bundle))
    add_plans(tiny_bundle, gpus=("sm89",), batches=(2, 4, 16))
    with pytest.raises(UsageError, match="takes at least 2 images, and requests have one"):
        fitted(TritonSettings(target="gpu", format="tensorrt"), open_bundle(tiny_bundle))
    rewrite_manifest(tiny_bundle, splits=True, batch=4)
    assert fitted(TritonSettings(target="gpu"), open_bundle(tiny_bundle)).max_batch_size == 4
    with pytest.raises(UsageError, match="memory budget"):
        fitted(TritonSettings(max_batch_size=8), open_bundle(tiny_bundle))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_there_is_replaced_only_when_asked(
    saccade_command: Command, tiny_bundle: Path, tiny_own_bundle_kept: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    code, out, err = saccade_command("deploy", "triton", tiny_bundle, "--repository", models, "--json")
    assert code == 0, err
    assert [model["name"] for model in json.loads(out)["models"]] == MODELS
    before = content(models)

    code, _, err = saccade_command("deploy", "triton", tiny_bundle, "--repository", models)
    assert code == 1
    assert "is there already; put a version beside it with --version 2, replace it with --force" in err
    other = ("deploy", "triton", tiny_own_bundle_kept, "--repository", models, "--name", "bundle")
    code, _, err = saccade_command(*other, "--version", 1)
    assert code == 1
    assert "has a version 1 already" in err
    code, _, err = saccade_command(*other, "--version", 2, "--queue-size", 7)
    assert code == 1
    assert "would have another dynamic_batching" in err
    assert content(models) == before

    code, out, err = saccade_command(*other, "--version", 2)
    assert code == 0, err
    after = content(models)
    assert {name: after[name] for name in before} == before
    assert "bundle/2/model.onnx" in after
    assert after["bundle/2/model.onnx"] != after["bundle/1/model.onnx"]

    code, out, err = saccade_command(*other, "--force")
    assert code == 0, err
    assert "bundle_from_bytes" in out
    assert content(models)["bundle/1/model.onnx"] == after["bundle/2/model.onnx"]
    assert not any("/2/" in name for name in content(models))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_write_that_fails_leaves_the_repository_as_it_was(
    saccade_command: Command, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    arguments = ("deploy", "triton", tiny_bundle, "--repository", models)
    assert saccade_command(*arguments)[0] == 0
    before = content(models)
    move, moves = os.replace, 0

    def full(source: Any, target: Any) -> None:
        nonlocal moves
        moves += Path(source).parent.name == "new"
        if moves == 3:
            moves += 1
            raise OSError(28, "No space left on device")
        move(source, target)

    monkeypatch.setattr(os, "replace", full)
    code, _, err = saccade_command(*arguments, "--force", "--queue-size", 5)
    assert code == 1
    assert "No space left on device; choose another --repository" in err
    assert content(models) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    code, _, err = saccade_command("deploy", "triton", tiny_bundle, "--repository", tiny_bundle / "manifest.json")
    assert code == 1
    assert "cannot write the model repository" in err


def test_control_c_during_a_replacement_leaves_the_repository_as_it_was(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, bundle = tmp_path / "models", open_bundle(tiny_bundle)
    deploy([bundle], models, TritonSettings())
    before, move = content(models), os.replace
    for when in range(1, 9):  # after each move: four old models out, four new ones in
        moves = 0

        def interrupted(source: Any, target: Any, last: int = when) -> None:
            nonlocal moves
            moves += 1
            move(source, target)
            if moves == last:
                raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            deploy([bundle], models, TritonSettings(queue_size=5), force=True)
        assert content(models) == before
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("second", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
def test_models_that_cannot_be_put_back_are_kept_and_their_place_is_told(
    saccade_command: Command, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: BaseException
) -> None:
    models = tmp_path / "models"
    arguments = ("deploy", "triton", tiny_bundle, "--repository", models)
    assert saccade_command(*arguments)[0] == 0
    before, move = content(models), os.replace

    def failing(source: Any, target: Any) -> None:
        if Path(source).parent.name == "new" and Path(source).name == MODELS[1]:
            raise OSError(28, "No space left on device")
        if Path(source).parent.name == "old" and Path(source).name == MODELS[0]:
            raise second
        move(source, target)

    monkeypatch.setattr(os, "replace", failing)
    code, _, err = saccade_command(*arguments, "--force", "--queue-size", 5)
    assert code == 1
    (kept,) = tmp_path.glob(".models.*/old")
    assert f"what was there lies in '{kept}', move it back" in err
    monkeypatch.undo()
    (kept / MODELS[0]).replace(models / MODELS[0])
    assert content(models) == before


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("models", "models"),
        ("Modelle für Ärzte", "modelle-f-r-rzte"),
        ("模型", "saccade"),
        ("2024_models", "saccade-2024-models"),
        ("m" * 100, "m" * 40),
    ],
)
def test_kserve_s_name_is_one_that_kubernetes_takes(tiny_bundle: Path, tmp_path: Path, folder: str, name: str) -> None:
    deploy([open_bundle(tiny_bundle)], tmp_path / folder, TritonSettings(images=False))
    manifest = (tmp_path / folder / "inference_service.yaml").read_text(encoding="utf-8")
    assert f'\n  name: "{name}"\n' in manifest
    assert re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", name)


def test_bundles_of_one_name_are_not_mixed_up(saccade_command: Command, tiny_bundle: Path, tmp_path: Path) -> None:
    code, _, err = saccade_command("deploy", "triton", tiny_bundle, tiny_bundle, "--repository", tmp_path / "models")
    assert code == 1
    assert "two bundles would become the model 'bundle'" in err
    code, _, err = saccade_command(
        "deploy", "triton", tiny_bundle, tiny_bundle, "--name", "x", "--repository", tmp_path / "models"
    )
    assert code == 1
    assert "--name is one bundle's" in err
    assert not (tmp_path / "models").exists()


def test_what_runs_inside_the_server_needs_an_old_python_numpy_and_pillow_only(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    deploy([open_bundle(tiny_bundle)], tmp_path / "models", TritonSettings())
    folder = tmp_path / "models" / "bundle_decode" / "1"
    imported = set()
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 10))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy", "PIL"}


def test_deploying_loads_no_pytorch(tiny_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv[1:] = ['deploy', 'triton', sys.argv[1], '--repository', sys.argv[2]];"
        "from saccade.cli.main import saccade; saccade.main(standalone_mode=False);"
        "print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tiny_bundle), str(tmp_path / "models")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_class_names_are_one_line_each(tiny_bundle: Path, tmp_path: Path) -> None:
    rewrite_manifest(tiny_bundle, class_names=["ant\nhill", "bee", "  cat ", "dog", "ému"])
    deploy([open_bundle(tiny_bundle)], tmp_path / "models", TritonSettings())
    labels = (tmp_path / "models" / "bundle" / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert labels == ["ant hill", "bee", "cat", "dog", "ému"]
    warm = np.frombuffer((tmp_path / "models" / "bundle" / "warmup" / "target").read_bytes(), np.int64)
    assert warm.tolist() == [-1]
