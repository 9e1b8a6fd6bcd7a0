import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from saccade.accel.bundle import open_bundle
from saccade.accel.engines import open_engine
from saccade.accel.image import resize_image
from saccade.accel.verify import batch_bar
from saccade.contracts import Explanation, ImageSpec
from saccade.errors import OutputError, ParityError, UsageError
from saccade.evaluate.scene_material import load_photograph
from saccade.evaluate.scenes_models import IMAGE_SPEC, ScenesViT
from saccade.export.in_torch import gradients_in_torch, trained_in_torch
from saccade.export.parity import (
    error_of_float32,
    failures,
    measure_parity,
    probability_error_of_float32,
    require_parity,
)
from saccade.export.resize_graph import prepend_resize
from saccade.export.write_bundle import export_gradient, export_trained
from saccade.methods.checkpoint import CheckpointRecord
from saccade.methods.explainee import Explainee, fingerprint
from saccade.methods.fold import folded
from saccade.methods.gradient.config import GradientConfig
from saccade.methods.gradient.explainer import GradientExplainer
from saccade.methods.ltx.config import LTXConfig
from saccade.methods.ltx.model import LTXExplainer, build_ltx


@pytest.fixture
def explainer(tiny_explainee: Explainee) -> LTXExplainer:
    torch.manual_seed(3)
    return build_ltx(tiny_explainee, LTXConfig(form="own", evidence=False))


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    noise = rng.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    noise[::2] //= 5
    return noise


def record_of(explainer: LTXExplainer) -> CheckpointRecord:
    return CheckpointRecord.of(explainer, LTXConfig(form="own", evidence=False), "noise", 0)


@pytest.mark.parametrize("batch", [1, 2, 7, 16])
def test_the_graph_answers_like_plain_torch(
    tiny_explainee: Explainee, explainer: LTXExplainer, images: np.ndarray, tmp_path: Path, batch: int
) -> None:
    export_trained(explainer, record_of(explainer), images, tmp_path / "bundle")
    session = ort.InferenceSession(tmp_path / "bundle" / "explainer.onnx")
    given = np.where(np.arange(batch) % 2 == 0, -1, 3)
    probabilities, target, mask = session.run(None, {"image": images[:batch], "target": given})
    with torch.no_grad():
        pixels = torch.from_numpy(images[:batch].astype(np.float32) / 255).permute(0, 3, 1, 2)
        mean, std = (
            torch.tensor(v)[None, :, None, None]
            for v in (tiny_explainee.image_spec.mean, tiny_explainee.image_spec.std)
        )
        x = (pixels - mean) / std
        expected = tiny_explainee.model(x).softmax(1).numpy()
        own = explainer.network
        maps = own.backbone.late(own.backbone.early(x))
        small = own.read(maps).sigmoid()
        expected_mask = torch.nn.functional.interpolate(small, (32, 32), mode="bilinear", align_corners=False).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(mask, expected_mask, atol=1e-4)
    np.testing.assert_array_equal(target, np.where(given < 0, expected.argmax(1), given))


def test_the_manifest_describes_the_graph(explainer: LTXExplainer, images: np.ndarray, tmp_path: Path) -> None:
    bundle = export_trained(explainer, record_of(explainer), images, tmp_path / "bundle")
    model = onnx.load(bundle.graph)
    assert open_bundle(bundle.path).manifest == bundle.manifest
    assert {value.name for value in model.graph.input} == {"image", "target"}
    assert [value.name for value in model.graph.output] == ["probabilities", "target_class", "mask"]
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == bundle.manifest.opset
    assert {node.domain for node in model.graph.node} == {""}
    shape = [dim.dim_value or dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 32, 32, 3]
    assert bundle.manifest.parity.images == 16
    assert bundle.manifest.parity.mask_max_abs <= 1e-4
    assert not list(tmp_path.glob(".*")), "the temporary folder was left behind"


def test_tensorrt_is_not_asked_to_move_axes_of_uint8(tiny_bundle_kept: Path) -> None:
    graph = onnx.load(tiny_bundle_kept / "explainer.onnx").graph
    assert [node.op_type for node in graph.node if "image" in node.input] == ["Cast"]


def test_a_frozen_map_is_refused(
    explainer: LTXExplainer, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defect of exported gradient explanations: right logits, and a map that is a constant of the export."""
    frozen = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        LTXExplainer, "forward", lambda self, x: (self.classifier(x), frozen.expand(x.shape[0], -1, -1, -1))
    )
    with pytest.raises(ParityError, match="hardly depends on the image"):
        export_trained(explainer, record_of(explainer), images, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_mask_that_depends_on_batch_mates_is_refused(
    explainer: LTXExplainer, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def over_the_batch(self: LTXExplainer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, _, selection, _ = self.predict(x)
        mask = self.upsample(selection)
        low, high = mask.amin((0, 1, 2, 3), keepdim=True), mask.amax((0, 1, 2, 3), keepdim=True)
        return logits, (mask - low) / (high - low + 1e-6)

    monkeypatch.setattr(LTXExplainer, "forward", over_the_batch)
    with pytest.raises(ParityError, match="depends on its batch"):
        export_trained(explainer, record_of(explainer), images, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: Explanation(e.probabilities, e.target, e.mask + np.float32(2e-4)), "masks differ"),
        (lambda e: Explanation(e.probabilities + np.float32(2e-5), e.target, e.mask), "probabilities differ"),
        (lambda e: Explanation(e.probabilities, (e.target + 1) % 5, e.mask), "another class"),
        (
            lambda e: Explanation(
                e.probabilities, e.target, np.where(np.arange(16)[:, None, None, None] == 9, np.nan, e.mask)
            ),
            "masks differ",
        ),
    ],
    ids=["mask", "probabilities", "target", "nan in one image"],
)
def test_the_gate_sees_each_difference(
    explainer: LTXExplainer,
    images: np.ndarray,
    tmp_path: Path,
    change: Callable[[Explanation], Explanation],
    words: str,
) -> None:
    bundle = export_trained(explainer, record_of(explainer), images, tmp_path / "bundle")
    original = trained_in_torch(explainer, record_of(explainer)).run(images)
    report = measure_parity(open_engine(bundle), images, original, class_specific=False)
    assert failures(report) == []
    doctored = measure_parity(open_engine(bundle), images, change(original), class_specific=False)
    with pytest.raises(ParityError, match=words):
        require_parity(doctored)


def test_pytorch_s_own_error_is_that_of_the_masks_that_the_graph_is_held_against(
    tiny_explainee: Explainee, images: np.ndarray
) -> None:
    explainer = GradientExplainer(tiny_explainee, GradientConfig(method="ig", steps=3))
    target = np.arange(4) % 5
    original = gradients_in_torch(explainer).run(images[:4], target)
    small = error_of_float32(explainer, images[:4], target, original.mask)
    assert 0 < small < 1e-3
    flipped = original.mask.copy()  # as where the batch rounds to the other side of a kink
    flipped[2, 0, 5, 7] += 0.02
    assert error_of_float32(explainer, images[:4], target, flipped) == pytest.approx(0.02, abs=small)


# fails: the gate explains in PyTorch where gradients are off, and the target's logit then has none
def test_grad_cam_of_tokens_passes_the_gate(rng: np.random.Generator, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ScenesViT(width=32, depth=2, heads=2).eval()
    names = tuple(map(str, range(10)))
    vit = Explainee(model, IMAGE_SPEC, names, "python:tiny:vit", "random", fingerprint(model))
    pixels = rng.integers(0, 256, (16, *IMAGE_SPEC.size, 3), dtype=np.uint8)
    bundle = export_gradient(vit, GradientConfig(method="gradcam"), pixels, tmp_path / "bundle")
    assert bundle.manifest.parameters["layers"] == ["blocks.1.norm1"]
    expected = gradients_in_torch(GradientExplainer(vit, GradientConfig(method="gradcam"))).run(pixels)
    found = open_engine(bundle).run(pixels)
    np.testing.assert_allclose(found.mask, expected.mask, atol=1e-3)
    assert float(found.mask.max()) > 0.9


# fails: graph and original share the copy of the classifier that a gradient method runs, and agree
def test_a_copy_of_the_classifier_that_predicts_otherwise_does_not_pass_the_gate(
    tiny_explainee: Explainee, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(*given: Any) -> torch.nn.Module:
        model = folded(*given)
        with torch.no_grad():
            [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1].bias[0] += 1
        return model

    monkeypatch.setattr("saccade.methods.gradient.explainer.folded", off)
    with pytest.raises(ParityError, match="probabilities differ by up to"):
        export_gradient(tiny_explainee, GradientConfig(method="gradcam"), images, tmp_path / "bundle")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("method", ["gradcam", "layercam", "dix2", "iia2", "ig"])
def test_a_method_on_a_gpu_says_what_it_says_on_a_processor(
    tiny_explainee: Explainee, images: np.ndarray, method: str
) -> None:
    config = GradientConfig(method=method, steps=3)
    expected = gradients_in_torch(GradientExplainer(tiny_explainee, config)).run(images, 2)
    moved = replace(tiny_explainee, model=copy.deepcopy(tiny_explainee.model).cuda())
    found = gradients_in_torch(GradientExplainer(moved, config)).run(images, 2)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)
    np.testing.assert_allclose(found.mask, expected.mask, atol=1e-2)


def test_probabilities_are_held_against_what_float32_can_tell(
    explainer: LTXExplainer, images: np.ndarray, tmp_path: Path
) -> None:
    bundle = export_trained(explainer, record_of(explainer), images, tmp_path / "bundle")
    original = trained_in_torch(explainer, record_of(explainer)).run(images)
    explainee = explainer.explainee
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    model = copy.deepcopy(explainee.model).double()
    with torch.no_grad():
        exact = model(explainee.normalise(pixels)).softmax(1).numpy()
    small = probability_error_of_float32(explainee, images, original.probabilities)
    assert small >= 0.999 * np.abs(original.probabilities - exact).max()
    assert 0 < small < 1e-5
    shifted = replace(original, probabilities=original.probabilities + np.float32(4e-5))
    assert probability_error_of_float32(explainee, images, shifted.probabilities) == pytest.approx(4e-5, abs=2 * small)
    asked: list[int] = []

    def own_error(share: float) -> Callable[[np.ndarray, np.ndarray], float]:
        return lambda some, probabilities: asked.append(len(some)) or share  # type: ignore[func-returns-value]

    for share, passes in ((2e-5, True), (1e-5, False)):
        report = measure_parity(
            open_engine(bundle), images, shifted, class_specific=False, own_probability_error=own_error(share)
        )
        assert report.probabilities_bar == pytest.approx(3 * share)
        assert (failures(report) == []) == passes
    assert asked == [4, 4]
    report = measure_parity(
        open_engine(bundle), images, original, class_specific=False, own_probability_error=own_error(1.0)
    )
    assert report.probabilities_bar == 1e-5  # nobody asks where it is kept


def test_steep_masks_may_depend_on_the_batch_as_their_rounding_does_but_not_beyond_the_mask_s_bar(
    explainer: LTXExplainer, images: np.ndarray, tmp_path: Path
) -> None:
    bundle = export_trained(explainer, record_of(explainer), images, tmp_path / "bundle")
    original = trained_in_torch(explainer, record_of(explainer)).run(images)
    for rounding, expected in ((1.0, 1e-5), (6.0, 6e-5), (1000.0, 1e-4)):
        report = measure_parity(open_engine(bundle), images, original, class_specific=False, rounding=rounding)
        assert batch_bar(report) == pytest.approx(expected)


def test_the_gate_needs_sixteen_images(explainer: LTXExplainer, images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 16 images and got 15"):
        export_trained(explainer, record_of(explainer), images[:15], tmp_path / "bundle")


def test_an_existing_bundle_is_replaced_only_when_asked(
    explainer: LTXExplainer, images: np.ndarray, tmp_path: Path
) -> None:
    first = export_trained(explainer, record_of(explainer), images, tmp_path / "bundle")
    with pytest.raises(OutputError, match="--overwrite"):
        export_trained(explainer, record_of(explainer), images, tmp_path / "bundle")
    second = export_trained(explainer, record_of(explainer), images, tmp_path / "bundle", overwrite=True)
    assert open_bundle(tmp_path / "bundle").manifest == second.manifest
    assert first.path == second.path


def test_a_full_disk_leaves_nothing(
    explainer: LTXExplainer, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OutputError, match="No space left"):
        export_trained(explainer, record_of(explainer), images, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_export_leaves_the_model_as_found(tiny_explainee: Explainee, images: np.ndarray, tmp_path: Path) -> None:
    explainer = build_ltx(tiny_explainee, LTXConfig(form="own", evidence=False))
    explainer.network.requires_grad_(True)
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in explainer.named_parameters()}
    hooks = [len(module._forward_hooks) for module in explainer.modules()]
    export_trained(explainer, record_of(explainer), images, tmp_path / "bundle")
    for name, parameter in explainer.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])
        assert parameter.grad is None
    assert [len(module._forward_hooks) for module in explainer.modules()] == hooks


def identity_graph(spec: ImageSpec) -> onnx.ModelProto:
    shape = ["batch", *spec.size, 3]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["seen"])],
        "identity",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("seen", TensorProto.UINT8, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("rule", ["squash", "crop"])
@pytest.mark.parametrize("size", [(96, 96), (224, 224), (101, 60)])
def test_the_resize_inside_equals_pillow_to_one_grey_level(
    interpolation: str, rule: str, size: tuple[int, int]
) -> None:
    spec = ImageSpec(size=size, resize=rule, interpolation=interpolation)  # type: ignore[arg-type]
    model = prepend_resize(identity_graph(spec), spec)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    for name in ("skimage:coffee.png", "sklearn:china.jpg"):
        photograph = load_photograph(name)
        for image in (photograph, photograph[:50, :70], photograph[:333, :97], photograph[:1, :1]):
            (seen,) = session.run(None, {"image": image[None]})
            assert np.abs(seen[0].astype(int) - resize_image(image, spec)).max() <= 1


def test_an_any_size_bundle_answers_like_the_plain_one(
    tiny_explainee: Explainee, explainer: LTXExplainer, images: np.ndarray, tmp_path: Path
) -> None:
    plain = export_trained(explainer, record_of(explainer), images, tmp_path / "plain")
    flexible = export_trained(explainer, record_of(explainer), images, tmp_path / "flexible", any_size=True)
    photographs = [load_photograph("skimage:coffee.png")[:200, :300], load_photograph("sklearn:china.jpg")[:64, :50]]
    import saccade

    paths = []
    for index, photograph in enumerate(photographs):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(photograph).save(paths[-1])
    one, other = saccade.open(plain.path).explain(paths), saccade.open(flexible.path).explain(paths)
    for a, b in zip(one, other, strict=True):
        assert np.abs(a.mask - b.mask).max() < 0.02  # one grey level of the input
        assert np.abs(a.probabilities - b.probabilities).max() < 0.02
    assert json.loads((flexible.path / "manifest.json").read_text())["any_size"] is True
