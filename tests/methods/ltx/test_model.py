from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.contracts import ImageSpec
from saccade.errors import ModelError, UsageError
from saccade.methods.explainee import Explainee, fingerprint
from saccade.methods.ltx.backbone import OwnBackbone
from saccade.methods.ltx.config import LTXConfig
from saccade.methods.ltx.decoder import MaskDecoder
from saccade.methods.ltx.model import LTXExplainer, build_ltx
from saccade.methods.upsample import BilinearUpsample

SHARED, OWN = LTXConfig(evidence=False), LTXConfig(form="own", evidence=False)
BOTH = pytest.mark.parametrize("config", [SHARED, OWN], ids=["shared", "own"])


def randomised(network: nn.Module) -> nn.Module:
    """Weights and batch-norm statistics as after some training, so that masks vary from pixel to pixel."""
    generator = torch.Generator().manual_seed(6)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point():
            value.normal_(0, 0.3, generator=generator)
    return network


@pytest.fixture
def explainee(tiny_explainee: Explainee) -> Explainee:
    """A copy that a test may train."""
    return replace(tiny_explainee, model=copy.deepcopy(tiny_explainee.model))


@pytest.fixture
def images(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.normal(0, 1, (8, 3, 32, 32)).astype(np.float32))


def batch_norms(module: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (part for part in module.modules() if isinstance(part, nn.BatchNorm2d))


# ---- up-sampling


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((12, 12), (96, 96)),
        ((7, 7), (224, 224)),
        ((5, 9), (33, 50)),
        ((1, 1), (8, 8)),
        ((14, 3), (14, 3)),
        ((8, 8), (5, 4)),
    ],
)
def test_up_sampling_is_bilinear_interpolation(
    rng: np.random.Generator, source: tuple[int, int], size: tuple[int, int]
) -> None:
    maps = torch.from_numpy(rng.random((3, 1, *source), dtype=np.float32))
    expected = F.interpolate(maps.double(), size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(BilinearUpsample(source, size)(maps).double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("source", "size"), [((12, 12), (96, 96)), ((7, 7), (224, 224)), ((5, 9), (33, 50))])
def test_up_sampling_stays_in_the_unit_interval(
    rng: np.random.Generator, source: tuple[int, int], size: tuple[int, int]
) -> None:
    upsample = BilinearUpsample(source, size)
    ones = upsample(torch.ones(1, 1, *source))
    assert float(ones.max()) <= 1
    assert float(ones.min()) > 1 - 2e-6
    saturated = upsample(torch.from_numpy(rng.integers(0, 2, (64, 1, *source)).astype(np.float32)))
    assert float(saturated.max()) <= 1
    assert float(saturated.min()) >= 0


# ---- explainers


@BOTH
def test_an_explainer_gives_the_explainees_logits_and_a_mask_of_the_images_size(
    explainee: Explainee, images: Tensor, config: LTXConfig
) -> None:
    explainer = build_ltx(explainee, config)
    randomised(explainer.network)
    with torch.no_grad():
        expected = explainee.model(images)
        logits, mask = explainer(images)
    assert torch.equal(logits, expected)
    assert mask.shape == (8, 1, 32, 32)
    assert float(mask.min()) >= 0
    assert float(mask.max()) <= 1
    assert float(mask.std()) > 0.01


@BOTH
def test_saturated_masks_stay_in_the_unit_interval(explainee: Explainee, images: Tensor, config: LTXConfig) -> None:
    explainer = build_ltx(explainee, config)
    with torch.no_grad():
        for bias, value in ((1000.0, 1.0), (-1000.0, 0.0)):
            network: Any = explainer.network
            network.read.bias.fill_(bias)
            mask = explainer(images)[1]
            assert 0 <= float(mask.min()) <= float(mask.max()) <= 1
            assert float(mask.mean()) == pytest.approx(value, abs=1e-6)


@BOTH
def test_before_training_every_mask_is_about_a_half(explainee: Explainee, images: Tensor, config: LTXConfig) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        mask = build_ltx(explainee, config)(images)[1]
    assert float(mask.mean()) == pytest.approx(0.5, abs=0.15)


@BOTH
def test_a_batch_is_explained_as_its_images_are_one_by_one(
    explainee: Explainee, images: Tensor, config: LTXConfig
) -> None:
    explainer = build_ltx(explainee, config)
    randomised(explainer.network)
    with torch.no_grad():
        logits, mask = explainer(images)
        singles = [explainer(image[None]) for image in images]
    torch.testing.assert_close(torch.cat([single[0] for single in singles]), logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat([single[1] for single in singles]), mask, rtol=0, atol=1e-6)


def read_by_hand(decoder: Any, hidden: Tensor) -> Tensor:
    """One position at a time: the same weights at each."""
    small = torch.zeros(len(hidden), 1, *hidden.shape[2:])
    for n in range(len(hidden)):
        for y in range(hidden.shape[2]):
            for x in range(hidden.shape[3]):
                small[n, 0, y, x] = torch.sigmoid(
                    decoder.read.weight[0, :, 0, 0] @ hidden[n, :, y, x] + decoder.read.bias
                )
    return small


@pytest.mark.parametrize("form", ["shared", "own"])
def test_the_selection_is_weighed_by_the_class_activation_of_a_linear_head(
    explainee: Explainee, images: Tensor, form: str
) -> None:
    explainer = build_ltx(explainee, LTXConfig(form=form))  # type: ignore[arg-type]
    randomised(explainer.network)
    model: Any = explainee.model
    head = next(module for module in model.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        logits, _, selection, _ = explainer.predict(images)
        mask = explainer(images)[1]
        late = model.late(model.early(images))
        for n, label in enumerate(logits.argmax(1)):
            activation = sum(head.weight[label, c] * late[n, c] for c in range(late.shape[1])).clamp(min=0)
            evidence = (activation / activation.max())[None, None]
            factor = selection.shape[-1] // evidence.shape[-1]
            evidence = evidence.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
            small = (0.2 + 0.8 * selection[n : n + 1]) * evidence
            expected = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
            torch.testing.assert_close(mask[n : n + 1], expected, rtol=0, atol=1e-4)


def test_a_head_that_is_not_linear_after_pooling_gives_no_evidence(images: Tensor) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    ).eval()
    explainee = Explainee(model, ImageSpec(size=(32, 32)), tuple("abc"), "python:a:b", "pretrained", fingerprint(model))
    assert build_ltx(explainee, LTXConfig()).head is None


def test_a_shared_mask_is_the_decoder_on_the_captured_maps(explainee: Explainee, images: Tensor) -> None:
    explainer = build_ltx(explainee, SHARED)
    decoder: Any = randomised(explainer.network)
    assert explainer.layers == ("late", "early")
    model: Any = explainee.model
    with torch.no_grad():
        early = model.early(images)
        late = model.late(early)
        total = decoder.projections[1](early)
        total = total + decoder.projections[0](late).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        small = read_by_hand(decoder, torch.clamp(total, min=0))
        expected = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
        mask = explainer(images)[1]
    torch.testing.assert_close(mask, expected, rtol=0, atol=2e-6)


def test_an_own_mask_is_read_from_the_copys_last_map(explainee: Explainee, images: Tensor) -> None:
    explainer = build_ltx(explainee, OWN)
    own: Any = randomised(explainer.network)
    with torch.no_grad():
        small = torch.sigmoid(own.read(own.backbone.late(own.backbone.early(images))))
        expected = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
        mask = explainer(images)[1]
    torch.testing.assert_close(mask, expected, rtol=0, atol=2e-6)


@BOTH
def test_training_mode_reaches_neither_the_explainee_nor_an_own_backbone(
    explainee: Explainee, images: Tensor, config: LTXConfig
) -> None:
    explainer = build_ltx(explainee, config)
    explainer.train()
    assert explainer.training
    assert explainer.network.training
    assert not any(module.training for module in explainee.model.modules())
    frozen = [explainee.model]
    if isinstance(explainer.network, OwnBackbone):
        assert not any(module.training for module in explainer.network.backbone.modules())
        frozen.append(explainer.network.backbone)
    else:
        assert all(norm.training for norm in batch_norms(explainer.network))
    before = [fingerprint(model) for model in frozen]
    explainer(images)
    assert [fingerprint(model) for model in frozen] == before


@BOTH
def test_gradients_reach_the_network_and_nothing_else(explainee: Explainee, images: Tensor, config: LTXConfig) -> None:
    explainee.model.requires_grad_(False)
    explainer = build_ltx(explainee, config).train()
    logits, mask = explainer(images)
    assert not logits.requires_grad
    mask.square().sum().backward()
    assert all(parameter.grad is None for parameter in explainee.model.parameters())
    reached = {name for name, parameter in explainer.network.named_parameters() if parameter.grad is not None}
    behind_the_map = {"backbone.head.weight", "backbone.head.bias"} if config.form == "own" else set()
    assert reached == {name for name, _ in explainer.network.named_parameters()} - behind_the_map
    assert all(
        bool(parameter.grad.any())
        for name, parameter in explainer.network.named_parameters()
        if name in reached and not name.endswith("bias")
    )


def test_an_own_backbone_starts_as_the_explainee_and_is_another_model(explainee: Explainee) -> None:
    explainee.model.requires_grad_(False)
    network = build_ltx(explainee, OWN).network
    assert isinstance(network, OwnBackbone)
    assert fingerprint(network.backbone) == fingerprint(explainee.model)
    assert all(parameter.requires_grad for parameter in network.backbone.parameters())
    own = {value.data_ptr() for value in network.backbone.state_dict().values()}
    assert own.isdisjoint(value.data_ptr() for value in explainee.model.state_dict().values())
    with torch.no_grad():
        for parameter in network.backbone.parameters():
            parameter.add_(1)
    assert fingerprint(explainee.model) == explainee.fingerprint


def test_an_own_backbone_is_refused_more_than_one_layer() -> None:
    with pytest.raises(UsageError, match="reads one feature map"):
        LTXConfig(form="own", layers=("late", "early"))


@BOTH
def test_an_explainer_lies_where_the_explainee_lies(explainee: Explainee, config: LTXConfig) -> None:
    explainee.model.to("meta")  # a device that every machine has
    explainer = build_ltx(explainee, config)
    tensors = [*explainer.parameters(), *explainer.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert explainer(torch.zeros(2, 3, 32, 32, device="meta"))[1].shape == (2, 1, 32, 32)


# ---- several layers


class Pyramid(nn.Module):
    """Maps of 27, 13 and 5 pixels: no ratio between them is a whole number."""

    image_spec = ImageSpec(size=(55, 55))

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 6, 3, 2)
        self.middle = nn.Conv2d(6, 9, 3, 2)
        self.coarse = nn.Conv2d(9, 12, 5, 2)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.coarse(self.middle(self.fine(x).relu()).relu()).mean((2, 3)))
        return logits


@pytest.fixture
def pyramid() -> Explainee:
    torch.manual_seed(2)
    model = Pyramid().eval()
    return Explainee(model, Pyramid.image_spec, tuple("abcd"), "python:pyramid:build", "pretrained", fingerprint(model))


def nearest_by_hand(maps: Tensor, size: int) -> Tensor:
    """Each pixel takes the one that its top left corner falls into."""
    index = [position * maps.shape[-1] // size for position in range(size)]
    return maps[..., index, :][..., index]


def test_three_layers_of_odd_ratios_meet_at_the_finest(pyramid: Explainee, rng: np.random.Generator) -> None:
    images = torch.from_numpy(rng.normal(0, 1, (2, 3, 55, 55)).astype(np.float32))
    explainer = build_ltx(pyramid, LTXConfig(layers=("coarse", "middle", "fine"), width=7, evidence=False))
    decoder: Any = randomised(explainer.network)
    assert isinstance(decoder, MaskDecoder)
    model: Any = pyramid.model
    with torch.no_grad():
        fine = model.fine(images)
        middle = model.middle(fine.relu())
        coarse = model.coarse(middle.relu())
        assert [maps.shape[-1] for maps in (coarse, middle, fine)] == [5, 13, 27]
        parts = [project(maps) for project, maps in zip(decoder.projections, (coarse, middle, fine), strict=True)]
        assert {part.shape[1] for part in parts} == {7}
        total = sum(nearest_by_hand(part, 27) for part in parts)
        small = read_by_hand(decoder, total.clamp(min=0))
        expected = F.interpolate(small, size=(55, 55), mode="bilinear", align_corners=False)
        mask = explainer(images)[1]
    torch.testing.assert_close(mask, expected, rtol=0, atol=2e-6)


def test_a_single_named_layer_is_enough(pyramid: Explainee) -> None:
    explainer = build_ltx(pyramid, LTXConfig(layers=("middle",)))
    with torch.no_grad():
        assert explainer(torch.zeros(2, 3, 55, 55))[1].shape == (2, 1, 55, 55)


def test_a_layer_that_does_not_exist_or_gives_no_map_is_refused(pyramid: Explainee) -> None:
    with pytest.raises(ModelError, match=r"no layer 'midle'; did you mean middle"):
        build_ltx(pyramid, LTXConfig(layers=("midle",)))
    with pytest.raises(ModelError, match="'head' gives neither feature maps"):
        build_ltx(pyramid, LTXConfig(layers=("head",)))


@pytest.mark.parametrize(("width", "channels", "expected"), [(0, 40, 32), (0, 400, 50), (5, 400, 5)])
def test_the_width_is_an_eighth_of_the_finest_maps_unless_given(width: int, channels: int, expected: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, channels, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2)
    ).eval()
    explainee = Explainee(model, ImageSpec(size=(16, 16)), ("a", "b"), "python:a:b", "pretrained", fingerprint(model))
    decoder = build_ltx(explainee, LTXConfig(width=width)).network
    assert isinstance(decoder, MaskDecoder)
    assert decoder.read.in_channels == expected


def test_an_explainer_shares_the_explainees_model(explainee: Explainee) -> None:
    explainer = build_ltx(explainee, SHARED)
    assert isinstance(explainer, LTXExplainer)
    assert explainer.classifier is explainee.model
    assert not explainer.training
