"""LTX on transformers, backbones of another architecture, and explainers for any class."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_weights import randomise
from torch import Tensor, nn
from zoo import build

import saccade
from saccade.accel.onnx_engine import OnnxEngine
from saccade.accel.verify import verify_engine
from saccade.contracts import ImageSpec
from saccade.errors import ModelError, UsageError
from saccade.evaluate.scenes_models import IMAGE_SPEC, ScenesViT
from saccade.export.write_bundle import export_trained
from saccade.methods.checkpoint import CheckpointRecord
from saccade.methods.explainee import Explainee, fingerprint, load_explainee
from saccade.methods.ltx.backbone import OwnBackbone
from saccade.methods.ltx.config import LTXConfig
from saccade.methods.ltx.decoder import ClassReadout
from saccade.methods.ltx.model import LTXExplainer, build_ltx
from saccade.methods.representation import class_weights
from saccade.methods.spatial import SpatialLayers, spatial_layers
from saccade.methods.training.targets import generator_of, mix_with_targets


@pytest.fixture(scope="module")
def vit() -> Explainee:
    model = randomise(ScenesViT(width=16, depth=3, heads=2)).requires_grad_(False)
    return Explainee(model, IMAGE_SPEC, tuple("abcdefghij"), "python:a:b", "random", fingerprint(model))


@pytest.fixture
def images(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.normal(0, 1, (4, 3, 96, 96)).astype(np.float32))


def built(explainee: Explainee, **settings: Any) -> LTXExplainer:
    torch.manual_seed(4)
    explainer = build_ltx(explainee, LTXConfig(**settings))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, value in explainer.network.named_parameters():
            if "backbone" not in name:
                value.normal_(0, 0.2, generator=generator)
    return explainer


def tokens_after(model: Any, images: Tensor, blocks: int) -> Tensor:
    patches = model.stem(images).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.class_token.expand(len(images), -1, -1), patches], 1) + model.position
    for block in model.blocks[:blocks]:
        tokens = block(tokens)
    return tokens


# ---- layers


def test_a_transformer_is_read_at_its_last_block_and_evenly_before_it(vit: Explainee) -> None:
    assert spatial_layers(vit.model, vit.image_spec, 1) == ("blocks.2",)
    assert spatial_layers(vit.model, vit.image_spec, 3) == ("blocks.2", "blocks.1", "blocks.0")
    deep = randomise(ScenesViT(width=16, depth=12, heads=2))
    assert spatial_layers(deep, vit.image_spec, 3) == ("blocks.11", "blocks.7", "blocks.3")


def test_tokens_become_a_map_row_by_row(vit: Explainee, images: Tensor) -> None:
    spatial = SpatialLayers(vit.model, ["blocks.1"], vit.image_spec)
    assert spatial.shapes == [(16, 12, 12)]
    with torch.no_grad():
        tokens = tokens_after(vit.model, images, 2)
    (maps,) = spatial.read({"blocks.1": tokens})
    for y, x in ((0, 0), (0, 11), (5, 7), (11, 3)):
        assert torch.equal(maps[:, :, y, x], tokens[:, 1 + 12 * y + x])


def test_a_layer_without_places_is_refused(vit: Explainee) -> None:
    with pytest.raises(ModelError, match="'head' gives neither feature maps"):
        SpatialLayers(vit.model, ["head"], vit.image_spec)


@pytest.mark.parametrize(
    "name", ["ViT-B/16 (timm)", "ViT-B/16 (torchvision)", "ViT-B/16 (transformers)", "DeiT-S distilled"]
)
@pytest.mark.parametrize("form", ["shared", "own"])
def test_every_library_s_transformer_has_an_explainer(name: str, form: str) -> None:
    explainee = build(name, 64, depth=2)
    explainer = built(explainee, form=form)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, mask = explainer(images)
        assert torch.equal(logits, explainee.model(images))
    assert mask.shape == (2, 1, 64, 64)
    assert float((mask[0] - mask[1]).abs().max()) > 1e-3


# ---- networks


def weighed(selection: Tensor) -> Tensor:
    """Each position times what is selected around it, position by position; (N, 1, h, w)."""
    result = torch.zeros_like(selection)
    height, width = selection.shape[2:]
    for y in range(height):
        for x in range(width):
            around = 0.0
            for down, across in itertools.product((-1, 0, 1), repeat=2):
                row, column = min(max(y + down, 0), height - 1), min(max(x + across, 0), width - 1)
                around = around + selection[:, :, row, column] * (2 - abs(down)) * (2 - abs(across)) / 16
            result[:, :, y, x] = selection[:, :, y, x] * (0.9 + 0.1 * around)
    return result


@pytest.mark.parametrize("evidence", [True, False])
def test_a_shared_mask_is_the_decoder_on_the_patches_tokens(vit: Explainee, images: Tensor, evidence: bool) -> None:
    explainer = built(vit, evidence=evidence)
    decoder: Any = explainer.network
    with torch.no_grad():
        total = torch.zeros(4, 32, 12, 12)
        for project, blocks in zip(decoder.projections, (3, 2, 1), strict=True):
            patches = tokens_after(vit.model, images, blocks)[:, 1:]
            total += project(patches.reshape(4, 12, 12, 16).permute(0, 3, 1, 2))
        small = torch.sigmoid(F.conv2d(total.clamp(min=0), decoder.read.weight, decoder.read.bias))
        small = weighed(small) if evidence else small
        expected = F.interpolate(small, size=(96, 96), mode="bilinear", align_corners=False)
        found = explainer(images)[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_an_own_mask_is_an_mlp_on_the_copy_s_last_tokens(vit: Explainee, images: Tensor) -> None:
    explainer = built(vit, form="own")
    network: Any = explainer.network
    norm, first, _, last = network.read.layers
    with torch.no_grad():
        patches = tokens_after(network.backbone, images, 3)[:, 1:]
        centred = patches - patches.mean(2, keepdim=True)
        normed = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
        logits = torch.tanh(normed @ first.weight.T + first.bias) @ last.weight[0] + last.bias
        small = torch.sigmoid(logits).reshape(4, 1, 12, 12)
        expected = F.interpolate(weighed(small), size=(96, 96), mode="bilinear", align_corners=False)
        found = explainer(images)[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_embeddings_of_an_own_transformer_stay_as_they_are(vit: Explainee) -> None:
    network: Any = built(vit, form="own").network
    trained = {name for name, value in network.backbone.named_parameters() if value.requires_grad}
    assert trained == {name for name, _ in vit.model.named_parameters() if name.startswith("blocks.")}


def test_a_backbone_of_another_architecture_sees_the_image_as_it_was_trained_to(
    vit: Explainee, rng: np.random.Generator
) -> None:
    torch.manual_seed(1)
    other = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)).eval()
    spec = ImageSpec(size=(64, 64), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    source = Explainee(other, spec, ("a", "b"), "python:a:b", "random", fingerprint(other))
    network: Any = OwnBackbone.of(source, "0", vit.image_spec)
    pixels = torch.from_numpy(rng.random((2, 3, 96, 96), dtype=np.float32))
    with torch.no_grad():
        found = network(vit.normalise(pixels))
        smaller = F.interpolate(pixels, size=(64, 64), mode="bilinear", align_corners=False)
        expected = torch.sigmoid(network.read(other[0](source.normalise(smaller))))
    assert network.grid == (16, 16)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_an_explainer_of_another_architecture_becomes_a_bundle(vit: Explainee, tmp_path: Path) -> None:
    config = LTXConfig(form="own", backbone="timm:resnet18")
    torch.manual_seed(4)
    explainer = build_ltx(vit, config, pretrained=False)
    pictures = np.random.default_rng(2).integers(0, 256, (16, 96, 96, 3), dtype=np.uint8)
    pictures[::2] //= 4
    record = CheckpointRecord.of(explainer, config, "noise", 0)
    bundle = export_trained(explainer, record, pictures, tmp_path / "bundle")
    answer = OnnxEngine(bundle).run(pictures[:3])
    network: Any = explainer.network
    source = load_explainee("timm:resnet18", "random")
    with torch.no_grad():
        pixels = torch.from_numpy(pictures[:3]).permute(0, 3, 1, 2).float() / 255
        expected = vit.model(vit.normalise(pixels)).softmax(1)
        larger = F.interpolate(pixels, size=source.image_spec.size, mode="bilinear", align_corners=False)
        selection = network.read(network.backbone.forward_features(source.normalise(larger))).sigmoid()
        mask = F.interpolate(weighed(selection), size=(96, 96), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(answer.probabilities, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(answer.mask, mask.numpy(), atol=1e-4)
    assert np.ptp(answer.mask) > 1e-3


def test_settings_that_exclude_one_another_are_refused() -> None:
    with pytest.raises(UsageError, match="has the shared form"):
        LTXConfig(form="own", class_conditional=True)
    with pytest.raises(UsageError, match="add --form own"):
        LTXConfig(backbone="timm:resnet18")
    with pytest.raises(UsageError, match="add --backbone"):
        LTXConfig(form="own", backbone_weights="a.safetensors")


# ---- any class


def test_what_tells_classes_apart_are_the_classifier_s_own_weights(vit: Explainee) -> None:
    model: Any = vit.model
    assert class_weights(model, vit.image_spec) is model.head.weight
    silent = nn.Sequential(model, nn.Tanh())
    assert torch.equal(class_weights(silent, vit.image_spec), torch.eye(10))


def test_several_classes_are_answered_as_each_alone(vit: Explainee, images: Tensor) -> None:
    explainer = built(vit, class_conditional=True)
    target = torch.tensor([[0, 3, -1], [9, 9, 2], [5, -1, 4], [1, 2, 3]])
    with torch.no_grad():
        logits, masks = explainer(images, target)
        assert masks.shape == (4, 3, 96, 96)
        for index in range(4):
            for place in range(3):
                one = target[index : index + 1, place : place + 1]
                alone = explainer(images[index : index + 1], one)[1]
                torch.testing.assert_close(masks[index, place], alone[0, 0], rtol=0, atol=1e-5)
                if one < 0:
                    named = explainer(images[index : index + 1], logits[index : index + 1].argmax(1, keepdim=True))[1]
                    torch.testing.assert_close(alone, named, rtol=0, atol=1e-6)
        torch.testing.assert_close(masks[1, 0], masks[1, 1], rtol=0, atol=1e-5)
        assert (masks[1, 0] - masks[1, 2]).abs().max() > 1e-3


def by_hand(norm: Any, values: Tensor) -> Tensor:
    """A batch norm in eval mode, of (N, C, h, w)."""
    spread = (norm.running_var + norm.eps).sqrt()
    return ((values.mT - norm.running_mean) / spread * norm.weight + norm.bias).mT


def test_a_class_is_read_where_mixed_tokens_agree_with_the_classifier_s_weights(vit: Explainee, images: Tensor) -> None:
    explainer = built(vit, class_conditional=True)
    network: Any = explainer.network
    assert len(network.mixers) == 2
    head = vit.model.head.weight  # type: ignore[union-attr]
    centred = head - head.mean(0)
    vector = (centred / centred.square().mean().sqrt())[7]
    with torch.no_grad():
        found = explainer.predict(images, torch.full((4, 1), 7))
        assert torch.equal(found.maps[0].flatten(2).mT, tokens_after(vit.model, images, 3)[:, 1:])
        parts = [project(maps) for project, maps in zip(network.projections, found.maps, strict=True)]
        hidden = torch.stack(parts).sum(0).clamp(min=0)
        width = hidden.shape[1]
        for depthwise, first, _, pointwise, second in network.mixers:
            padded = torch.zeros(4, width, 16, 16)
            padded[:, :, 2:14, 2:14] = hidden
            gathered = sum(
                depthwise.weight[:, 0, y, x, None, None] * padded[:, :, y : y + 12, x : x + 12]
                for y in range(5)
                for x in range(5)
            )
            inner = by_hand(first, gathered.flatten(2)).clamp(min=0)
            mixed = by_hand(second, pointwise.weight[:, :, 0, 0] @ inner)
            hidden = (hidden + mixed.reshape(hidden.shape)).clamp(min=0)
        places = hidden.flatten(2).mT
        normed = places - places.mean(2, keepdim=True)
        normed = normed / (normed.square().mean(2, keepdim=True) + 1e-6).sqrt()
        scale = 2 / (len(vector) * width) ** 0.5
        agreement = scale * (normed @ network.of_class.weights(vector)) + network.of_class.offset(vector) / len(vector)
        plain = network.read(hidden)[:, 0]
        expected = torch.sigmoid(plain + agreement.reshape(4, 12, 12))
    torch.testing.assert_close(found.selection[:, 0], expected, rtol=0, atol=1e-5)


def test_before_training_a_class_is_read_where_the_map_points_its_way(vit: Explainee) -> None:
    torch.manual_seed(0)
    of_class = ClassReadout(class_weights(vit.model, vit.image_spec), 16)
    with torch.no_grad():
        found = of_class(torch.randn(2, 16, 3, 3), torch.tensor([[0, 3], [5, 9]]))
        own = of_class(of_class.vectors[[2]][:, :, None, None], torch.tensor([[2]]))
    assert float(found.abs().max()) < 4
    scale = float(of_class.vectors[2].std(correction=0))
    assert float(own) == pytest.approx(4 * scale, rel=0.05)


def test_images_are_mixed_where_the_classifier_sees_both_classes_best() -> None:
    count = 6
    pixels = torch.arange(float(count))[:, None, None, None].expand(count, 3, 40, 60) + torch.zeros(count, 3, 40, 60)
    pixels = torch.where(pixels == 5, torch.tensor(0.0), pixels)  # the last one shows what the first one shows
    tried: list[Tensor] = []

    def predict(images: Tensor) -> Tensor:
        tried.append(images.clone())
        shares = torch.stack([(images[:, 0] == label).float().mean((1, 2)) for label in range(count)], 1)
        return (shares + 1e-6).log()  # probabilities are the shares of the image

    mixed, target, elsewhere = mix_with_targets(pixels, predict, generator_of(0, 0))
    assert torch.equal(tried[0], pixels)
    assert len(tried) == 6
    for index in range(count):
        own = float(pixels[index, 0, 0, 0])
        shares = [(one[index, 0] != own).float().mean().item() for one in tried[1:]]
        foreign = mixed[index, 0] != own
        values = set(mixed[index, 0][foreign].tolist())
        best = max(min(share, 1 - share) for share in shares)
        share = foreign.float().mean().item()
        assert min(share, 1 - share) == pytest.approx(best)
        assert len(values) == 1
        assert float(target[index]) in {own, *values}
        assert torch.equal(elsewhere[index, 0] == 1, mixed[index, 0] != float(target[index]))
        rows, columns = foreign.any(1).nonzero(), foreign.any(0).nonzero()
        box = foreign[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()
        assert 0.38 <= box.shape[0] / 40 <= 0.67
        assert 0.38 <= box.shape[1] / 60 <= 0.67
    again = mix_with_targets(pixels, predict, generator_of(0, 0))
    for first, second in zip((mixed, target, elsewhere), again, strict=True):
        assert torch.equal(first, second)


def test_there_is_nothing_to_paste_into_an_image_that_is_alone() -> None:
    with pytest.raises(UsageError, match="at least two images"):
        mix_with_targets(torch.rand(1, 3, 8, 8), lambda images: images.mean((2, 3)), generator_of(0, 0))


def test_an_image_stays_whole_where_the_classifier_sees_no_second_class() -> None:
    pixels = torch.rand(5, 3, 20, 20, generator=torch.Generator().manual_seed(1))

    def predict(images: Tensor) -> Tensor:
        return 20 * F.one_hot(torch.arange(len(images)) % 3, 3).float()  # sure of the image's own, whatever is pasted

    mixed, target, elsewhere = mix_with_targets(pixels, predict, generator_of(0, 0))
    assert torch.equal(mixed, pixels)
    assert not elsewhere.any()
    assert target.tolist() == [0, 1, 2, 0, 1]


def test_an_image_with_another_class_in_a_part_of_it_stays_whole_and_is_asked_about_either() -> None:
    """Images of ones with a square of twos in a corner; every third has none."""
    pixels = torch.ones(300, 3, 40, 40)
    pixels[:, :, 24:34, 26:36] = 2
    pixels[::3] = 1

    def predict(images: Tensor) -> Tensor:
        values = images[:, 0].flatten(1)
        ones, twos = ((values == number).float().sum(1) for number in (1, 2))
        seen = torch.stack([ones / 600, twos / 60 - ones / 2000, torch.zeros(len(images))], 1)
        return 12 * seen

    backgrounds = [torch.zeros(1, 3, 1, 1), torch.full((1, 3, 1, 1), 5.0)]
    mixed, target, elsewhere = mix_with_targets(pixels, predict, generator_of(0, 0), None, backgrounds)
    assert torch.equal(mixed, pixels)  # no other image is of another class as a whole
    assert set(target.tolist()) == {0, 1}
    second = target == 1
    assert not second[::3].any()
    found = elsewhere.flatten(1).any(1)
    assert not found[::3].any()
    assert float(found.float().mean()) > 0.3
    for index in found.nonzero().flatten().tolist():
        inside = elsewhere[index, 0] == (0 if second[index] else 1)  # the part
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        assert inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 16 <= len(rows) == len(columns) <= 26
        assert (inside & (pixels[index, 0] == 2)).sum() >= 30  # most of what is not of the first class
    assert float(second[found].float().mean()) == pytest.approx(0.5, abs=0.15)


def test_a_part_that_only_one_background_makes_another_class_does_not_count() -> None:
    pixels = torch.ones(50, 3, 40, 40)

    def predict(images: Tensor) -> Tensor:
        dark = (images[:, 0] == 0).float().mean((1, 2))
        return torch.stack([torch.full_like(dark, 5.0), 40 * dark], 1)

    backgrounds = [torch.zeros(1, 3, 1, 1), torch.full((1, 3, 1, 1), 5.0)]
    one = mix_with_targets(pixels, predict, generator_of(0, 0), None, backgrounds[:1])
    both = mix_with_targets(pixels, predict, generator_of(0, 0), None, backgrounds)
    assert one.elsewhere.any()
    assert not both.elsewhere.any()


def test_every_second_image_gets_an_object_without_its_surroundings() -> None:
    pixels = torch.arange(6.0)[:, None, None, None].expand(6, 3, 48, 48).clone()
    objects = torch.zeros(6, 1, 48, 48)
    objects[:, :, 20:26, 18:28] = 0.9

    def predict(images: Tensor) -> Tensor:
        shares = torch.stack([(images[:, 0] == label).float().mean((1, 2)) for label in range(6)], 1)
        return (shares + 1e-6).log()

    mixed, target, elsewhere = mix_with_targets(pixels, predict, generator_of(0, 0), objects)
    for index in range(6):
        foreign = mixed[index, 0] != index
        rows, columns = foreign.any(1).nonzero(), foreign.any(0).nonzero()
        size = (int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1)
        if index % 2:  # 6 by 10, one more to each side, and a soft edge of one; perhaps past the image's border
            assert size == (10, 14) or int(foreign.sum()) <= 10 * 14
            core = mixed[index, 0][foreign].round(decimals=3)
            other = int(core.mode().values)
            assert other == core.mode().values
            assert other != index
            assert int(target[index]) in {index, other}
            inside = elsewhere[index, 0] == 1
            assert torch.equal(inside, foreign if int(target[index]) == index else ~foreign)
        else:
            assert min(size) >= 19  # a rectangle of two fifths


def test_half_of_the_mixed_images_are_asked_about_the_piece() -> None:
    pixels = torch.rand(2000, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(2000) % 4

    def predict(images: Tensor) -> Tensor:
        return 4 * F.one_hot(labels, 4).float()  # sees the others too, a little

    target = mix_with_targets(pixels, predict, generator_of(3, 1)).target
    assert float((target == labels).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(target, mix_with_targets(pixels, predict, generator_of(3, 2)).target)


def test_a_bundle_for_any_class_answers_several_in_one_pass(vit: Explainee, tmp_path: Path) -> None:
    config = LTXConfig(class_conditional=True)
    explainer = built(vit, class_conditional=True)
    pictures = np.random.default_rng(2).integers(0, 256, (16, 96, 96, 3), dtype=np.uint8)
    pictures[::2] //= 4
    record = replace(CheckpointRecord.of(explainer, config, "noise", 0), explainee=vit.spec)
    bundle = export_trained(explainer, record, pictures, tmp_path / "bundle")
    assert bundle.manifest.several_targets
    assert bundle.manifest.parity.target_dependence is not None
    engine = OnnxEngine(bundle)
    asked = np.array([[3, -1, 0, 8]] * 5)
    answer = engine.run(pictures[:5], asked)
    assert answer.mask.shape == (5, 4, 96, 96)
    assert answer.target[:, 0].tolist() == [3] * 5
    for place in range(4):
        one = engine.run(pictures[:5], asked[:, place])
        np.testing.assert_array_equal(one.target, answer.target[:, place])
        np.testing.assert_allclose(one.mask[:, 0], answer.mask[:, place], atol=1e-6)
    engine.most_targets = 3  # as of a plan
    in_groups = engine.run(pictures[:5], asked)
    np.testing.assert_array_equal(in_groups.target, answer.target)
    np.testing.assert_allclose(in_groups.mask, answer.mask, atol=1e-6)
    engine.most_targets = None
    with torch.no_grad():
        pixels = torch.from_numpy(pictures[:5]).permute(0, 3, 1, 2).float() / 255
        expected = explainer(vit.normalise(pixels), torch.from_numpy(asked))[1]
    np.testing.assert_allclose(answer.mask, expected.numpy(), atol=1e-4)

    results = saccade.open(bundle).explain(pictures[:2], target=["d", 0])
    assert [result.target for result in results] == [3, 0, 3, 0]
    assert [result.variant for result in results] == ["d", "a", "d", "a"]
    np.testing.assert_allclose(results[2].mask, answer.mask[1, 0], atol=1e-6)
    checks = {check.name: check for check in verify_engine(engine)}
    assert all(check.passed for check in checks.values())
    assert "two classes at once equal each alone" in checks
