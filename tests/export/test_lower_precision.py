"""Graphs in half precision: what they compute, what they may lose, and which layers stay in single."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from saccade.accel.compare import cosine
from saccade.accel.manifest import GRAPH_FILE, Manifest, ParityReport
from saccade.accel.precision import BARS, losses, measure_precision, share_of_bars
from saccade.contracts import Explanation, ImageSpec
from saccade.errors import ParityError
from saccade.export.half import layer_of, rounded, to_half
from saccade.export.lower_precision import write_lower
from saccade.export.quantise import Quantiser
from saccade.export.to_onnx import export_onnx

TYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
SIZE = (8, 8)


def two_layers(rng: np.random.Generator) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """softmax(relu(x·A + b)·C)."""
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((6, 5), (5,), (5, 4))]
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["xa"], name="first"),
        helper.make_node("Add", ["xa", "b"], ["h"], name="bias"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "C"], ["z"], name="second"),
        helper.make_node("Softmax", ["z"], ["y"], name="softmax", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(value, name) for value, name in zip(weights, ("A", "b", "C"), strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), weights


def run(model: onnx.ModelProto, x: np.ndarray, exact: bool = False) -> np.ndarray:
    """exact: weights of 8 bits do not overflow on a processor without VNNI."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("keep", [(), ("first", "bias")])
def test_every_result_is_rounded_but_where_single_precision_stays(
    rng: np.random.Generator, precision: str, keep: tuple[str, ...]
) -> None:
    model, (first, bias, last) = two_layers(rng)
    x = rng.standard_normal((7, 6)).astype(np.float32)

    def small(values: np.ndarray) -> np.ndarray:
        return values.astype(TYPES[precision]).astype(np.float32)

    if keep:
        hidden = small(x @ first + bias)
    else:
        hidden = small(small(small(x) @ small(first)) + small(bias))
    logits = small(np.maximum(hidden, 0) @ small(last))
    shares = np.exp(logits - logits.max(1, keepdims=True))
    half = to_half(model, precision, keep)
    onnx.checker.check_model(half, full_check=True)
    found = run(rounded(half), x)
    np.testing.assert_allclose(found, shares / shares.sum(1, keepdims=True), rtol=1e-6)
    assert np.abs(found - run(model, x)).max() > 1e-5
    stored = {one.name: one.data_type for one in half.graph.initializer}
    assert stored["C"] == {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    assert len(half.SerializeToString()) < len(model.SerializeToString()) + 600  # two bytes a weight, and casts


@pytest.mark.parametrize(("kinds", "bits"), [("throughout", 7), ("throughout", 8), ("products", 7), ("products", 8)])
def test_int8_is_within_half_a_step_of_every_weight_and_value(
    rng: np.random.Generator, kinds: str, bits: Literal[7, 8]
) -> None:
    model, (first, bias, last) = two_layers(rng)
    x = rng.uniform(-1, 1, (64, 6)).astype(np.float32)
    quantiser = Quantiser(model, ({"x": x[row : row + 1]} for row in range(64)))
    quantised = quantiser.to_int8(kinds, weight_bits=bits)
    types = {one.name: one.data_type for one in quantised.graph.initializer}
    assert [types[name] for name in types if name.endswith("_quantized")].count(TensorProto.INT8) == 2
    whole = [numpy_helper.to_array(one) for one in quantised.graph.initializer if one.data_type == TensorProto.INT8]
    highest = max(np.abs(one.astype(int)).max(initial=0) for one in whole)
    assert highest == {7: 64, 8: 127}[bits]
    assert (2 * 255 * highest < 2**15) == (bits == 7)  # else it overflows where two products are added in 16 bits

    def step(values: np.ndarray, axis: int | None = None) -> np.ndarray:
        return np.asarray(np.abs(values).max(axis) / highest if axis is not None else np.ptp([*values.flat, 0.0]) / 255)

    hidden = np.maximum(x @ first + bias, 0)
    error = np.abs(x) @ np.tile(step(first, 0), (6, 1)) / 2 + step(x) / 2 * np.abs(first).sum(0) + step(x)
    if kinds == "throughout":
        error = error + step(x @ first)  # the sum with the bias is of whole steps as well
    largest = error @ np.abs(last) + hidden @ np.tile(step(last, 0), (5, 1)) / 2 + step(hidden) * np.abs(last).sum(0)
    found, expected = np.log(run(quantised, x, exact=bits == 8)), np.log(run(model, x))
    both = largest + largest.max(1, keepdims=True)  # of a logit, and of what the softmax divides by
    assert (np.abs(found - expected) <= both).all()
    assert np.abs(found - expected).max() > 1e-4
    kept = quantiser.to_int8(kinds, [node.name for node in quantiser.model.graph.node])
    np.testing.assert_allclose(run(kept, x), run(model, x), rtol=1e-6)


def test_a_weight_that_is_also_used_transposed_has_scales_along_both_axes(rng: np.random.Generator) -> None:
    """As of a layer and its gradient; ONNX Runtime's quantiser fails on a bias that does not fit the one axis."""
    weight, first, back = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 5), (5,), (6,)))
    weight *= np.float32(2) ** np.arange(5)  # columns of very different size
    nodes = [
        helper.make_node("Gemm", ["x", "W", "b"], ["h"], name="there"),
        helper.make_node("Gemm", ["h", "W", "c"], ["y"], name="back", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(value, name) for value, name in ((weight, "W"), (first, "b"), (back, "c"))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    x = rng.uniform(-1, 1, (64, 6)).astype(np.float32)
    quantised = Quantiser(model, ({"x": x[row : row + 1]} for row in range(64))).to_int8()
    exact = (x @ weight + first) @ weight.T + back
    assert np.abs(run(quantised, x) - exact).max() < 0.03 * np.abs(exact).max()


class Network(nn.Module):
    """A mask through two layers, of which the first gives large numbers and the second takes them back."""

    def __init__(self, large: float, depth: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.large, self.back = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1)
        self.rest = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in range(depth))
        self.head = nn.Linear(3, 5)
        with torch.no_grad():
            self.large.weight.mul_(large)
            self.back.weight.div_(large)
            for layer in self.rest:
                layer.weight.fill_(1.1)  # type: ignore[operator]

    def forward(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels = (image.float() / 255).permute(0, 3, 1, 2)
        mask = self.back(self.large(pixels))
        for layer in self.rest:
            mask = layer(mask)
        logits = self.head(pixels.mean((2, 3)))
        return logits.softmax(1), torch.where(target < 0, logits.argmax(1), target), mask.sigmoid()


def bundle(folder: Path, network: Network, images: np.ndarray) -> tuple[Manifest, np.ndarray, Explanation]:
    target = np.full(len(images), -1)
    with torch.no_grad():
        answers = [value.numpy() for value in network(torch.from_numpy(images), torch.from_numpy(target))]
    example = {"image": (torch.from_numpy(images[:2]), {0: "batch"}), "target": (torch.tensor([0, -1]), {0: "batch"})}
    names = ("probabilities", "target_class", "mask")
    export_onnx(network, ImageSpec(size=SIZE), folder / GRAPH_FILE, example=example, outputs=names)
    manifest = Manifest(
        name="network",
        method="none",
        parameters={},
        class_specific=False,
        image=ImageSpec(size=SIZE),
        mask_size=SIZE,
        class_names=tuple("abcde"),
        explainee={},
        opset=22,
        versions={},
        created="",
        files={},
        parity=ParityReport(
            images=16, batches=(1,), mask_max_abs=0, mask_mean_abs=0, mask_cosine=1, mask_spearman=1, mask_top10_iou=1,
            probabilities_max_abs=0, targets_equal=True, batch_max_abs=0, deterministic=True, input_dependence=1,
        ),
    )  # fmt: skip
    return manifest, target, Explanation(probabilities=answers[0], target=answers[1], mask=answers[2])


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (16, *SIZE, 3), dtype=np.uint8)


def test_layers_whose_numbers_are_too_large_for_fp16_stay_in_single_precision(
    images: np.ndarray, tmp_path: Path
) -> None:
    network = Network(1e6).eval()
    manifest, target, original = bundle(tmp_path, network, images)
    report = write_lower(tmp_path, manifest, "fp16", images, target, original)
    assert {"large", "back"} <= set(report.kept)
    assert len(report.kept) < 12
    assert losses(report, "fp16") == []
    stored = {one.name: one.data_type for one in onnx.load(tmp_path / "explainer.fp16.onnx").graph.initializer}
    assert stored["large.weight"] == TensorProto.FLOAT
    assert stored["head.weight"] == TensorProto.FLOAT16
    report = write_lower(tmp_path, manifest, "bf16", images, target, original)  # has the range of single precision
    assert "large" not in report.kept


def test_int8_says_what_it_does_to_insertion_and_deletion(images: np.ndarray, tmp_path: Path) -> None:
    network = Network(1.0).eval()
    manifest, target, original = bundle(tmp_path, network, images)
    report = write_lower(tmp_path, manifest, "int8", images, target, original, calibration=images[:5])
    assert report.mask_cosine >= BARS["int8"].cosine
    assert report.faithfulness_change is not None
    assert 0 <= report.faithfulness_change <= 0.01
    worse = report.model_copy(update={"faithfulness_change": 0.02})
    assert losses(worse, "int8") == ["insertion or deletion differs by 0.0200 (allowed 0.01)"]


def test_what_cannot_be_saved_is_refused_with_the_layer_and_the_number(images: np.ndarray, tmp_path: Path) -> None:
    network = Network(1.0, depth=40).eval()
    with torch.no_grad():
        for layer in network.rest:  # every second one is far too large for fp16
            layer.weight.mul_(1e6)  # type: ignore[operator]
            layer.weight.requires_grad_(False)
        for layer in list(network.rest)[1::2]:
            layer.weight.div_(1e12)  # type: ignore[operator]
    manifest, target, original = bundle(tmp_path, network, images)
    with pytest.raises(ParityError, match=r"fp16 does not pass the gate.*cosine with PyTorch's is .* '\S+'; leave"):
        write_lower(tmp_path, manifest, "fp16", images, target, original)
    assert not (tmp_path / "explainer.fp16.onnx").exists()


def test_a_refusal_needs_no_layer_to_name(images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saccade.export.lower_precision.computes", lambda node: False)  # as where only values move
    monkeypatch.setattr("saccade.export.lower_precision._MOST", 0.0)
    manifest, target, original = bundle(tmp_path, Network(1e6).eval(), images)
    with pytest.raises(ParityError, match="with 0 layers in single precision; leave out --precision fp16"):
        write_lower(tmp_path, manifest, "fp16", images, target, original)


def test_a_report_is_of_the_worst_image(rng: np.random.Generator) -> None:
    masks = rng.random((3, 1, 20, 20), dtype=np.float32)
    chances = np.float32([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]])
    original = Explanation(probabilities=chances, target=chances.argmax(1), mask=masks)
    changed, moved = masks.copy(), chances.copy()
    changed[1] = masks[1, :, ::-1]
    moved[2] = [0.45, 0.55]
    report = measure_precision(Explanation(probabilities=moved, target=moved.argmax(1), mask=changed), original, ("a",))
    assert report.mask_cosine == pytest.approx(float(cosine(changed, masks)[1]))
    assert report.probabilities_max_abs == pytest.approx(0.45)
    assert report.classes_equal == pytest.approx(2 / 3)
    assert report.kept == ("a",)
    found = " ".join(losses(report, "fp16"))
    assert "cosine" in found
    assert "overlap" in found
    assert "probabilities differ by up to 0.450" in found
    assert "the same class is predicted for 67% of the images (at least 90% is asked)" in found
    assert share_of_bars(report, "fp16") >= 0.45 / BARS["fp16"].probabilities
    assert share_of_bars(measure_precision(original, original), "fp16") == 0
    changed[0] = np.nan
    broken = measure_precision(Explanation(probabilities=chances, target=original.target, mask=changed), original)
    assert broken.mask_cosine == -1


def test_a_node_says_its_layer() -> None:
    node = helper.make_node("Conv", ["x"], ["y"], name="node_conv")
    assert layer_of(node) == "node_conv"
    scopes = "['', 'explainer', 'explainer.classifier', 'explainer.classifier.stem.0', 'conv2d']"
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    assert layer_of(node) == "explainer.classifier.stem.0"
