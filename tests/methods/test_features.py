from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.contracts import ImageSpec
from saccade.errors import ModelError
from saccade.methods.explainee import Explainee
from saccade.methods.features import capture, default_layers, feature_shapes
from saccade.methods.representation import class_gradient, linear_head


def images(size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(4))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_capture_gives_the_maps_of_a_model_split_by_hand(tiny_explainee: Explainee) -> None:
    model: Any = tiny_explainee.model
    with torch.no_grad(), capture(model, ["late", "early", "early.0"]) as maps:
        logits = model(images(32))
    with torch.no_grad():
        convolved = model.early[0](images(32))
        early = model.early[2](model.early[1](convolved))
        late = model.late(early)
    assert torch.equal(maps["early.0"], convolved)
    assert torch.equal(maps["early"], early)
    assert torch.equal(maps["late"], late)
    assert torch.equal(logits, model.head(late.mean((2, 3))))
    assert set(maps) == {"late", "early", "early.0"}


def test_captured_maps_carry_the_gradient(tiny_explainee: Explainee) -> None:
    model: Any = tiny_explainee.model
    with capture(model, ["late"]) as maps:
        logits = model(images(32))
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), maps["late"])
    expected = (model.head.weight[1] / maps["late"][0, 0].numel()).view(1, -1, 1, 1).expand_as(gradient)
    torch.testing.assert_close(gradient, expected)


class RectifiedInPlace(nn.Module):
    """As DenseNet: the map before global pooling is rectified in place."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.relu(self.features(images), inplace=True).mean((2, 3)))


def test_a_map_is_the_layer_s_output_though_the_model_writes_into_it() -> None:
    model = RectifiedInPlace().eval()
    with torch.no_grad(), capture(model, ["features"]) as maps:
        model(images(8))
    expected = F.conv2d(images(8), model.features.weight, model.features.bias, padding=1)
    assert expected.min() < 0
    torch.testing.assert_close(maps["features"], expected)


def test_a_head_that_rectifies_in_place_is_not_linear() -> None:
    model, spec = RectifiedInPlace().eval(), ImageSpec(size=(8, 8))
    assert linear_head(model, "features", spec) is None
    values = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    given = values.clone()
    gradient, _ = class_gradient(model, images(8), "features", values, torch.tensor([1, 2]))
    assert torch.equal(values, given)
    expected = (given > 0) * model.head.weight[[1, 2], :, None, None] / 64
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("error", [ModelError, RuntimeError, KeyboardInterrupt])
def test_hooks_are_gone_after_an_exception(tiny_explainee: Explainee, error: type[BaseException]) -> None:
    model = tiny_explainee.model
    before = hooks(model)

    def fail_inside() -> None:
        with capture(model, ["late", "early"]):
            assert hooks(model) == before + 2
            if error is RuntimeError:
                model(torch.zeros(1, 7, 4, 4))
            raise error

    with pytest.raises(error):
        fail_inside()
    assert hooks(model) == before


def test_an_unknown_layer_is_answered_with_the_nearest_and_leaves_no_hook(tiny_explainee: Explainee) -> None:
    before = hooks(tiny_explainee.model)
    with (
        pytest.raises(ModelError, match=r"no layer 'layte'; did you mean .*late"),
        capture(tiny_explainee.model, ["early", "layte"]),
    ):
        pass
    assert hooks(tiny_explainee.model) == before


def test_the_whole_model_is_no_layer(tiny_explainee: Explainee) -> None:
    with pytest.raises(ModelError, match="no layer ''"), capture(tiny_explainee.model, [""]):
        pass


def test_feature_shapes_are_those_of_the_convolution_arithmetic(tiny_explainee: Explainee) -> None:
    halved = math.floor((32 + 2 - 3) / 2) + 1
    quartered = math.floor((halved + 2 - 3) / 2) + 1
    shapes = feature_shapes(tiny_explainee.model, ["late", "early"], tiny_explainee.image_spec)
    assert shapes == [(24, quartered, quartered), (12, halved, halved)]


def test_a_layer_without_maps_is_refused_by_name(tiny_explainee: Explainee) -> None:
    with pytest.raises(ModelError, match=r"the layer 'head' does not give feature maps .*--layer"):
        feature_shapes(tiny_explainee.model, ["late", "head"], tiny_explainee.image_spec)


def test_a_transformer_block_is_refused_as_a_feature_map() -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=1).eval()
    with pytest.raises(ModelError, match=r"'blocks.0' does not give feature maps of shape \(N, C, h, w\)"):
        feature_shapes(model, ["blocks.0"], ImageSpec())


# ---- the layers that are found

Head = Callable[[Any, Tensor], Tensor]


def torchvision_model(name: str) -> nn.Module:
    from torchvision.models import get_model

    return get_model(name, weights=None, num_classes=10).eval()


def timm_model(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=10).eval()


def pooled(maps: Tensor) -> Tensor:
    return maps.mean((2, 3))


HEADS: dict[str, Head] = {
    "resnet50": lambda model, maps: model.fc(pooled(maps)),
    "densenet121": lambda model, maps: model.classifier(pooled(F.relu(maps))),
    "convnext_tiny": lambda model, maps: model.classifier(maps.mean((2, 3), keepdim=True)),
    "vgg16": lambda model, maps: model.classifier(maps.flatten(1)),
    "efficientnet_b0": lambda model, maps: model.classifier(pooled(maps)),
    "mobilenet_v3_large": lambda model, maps: model.classifier(pooled(maps)),
    "timm convnext_tiny": lambda model, maps: model.head.fc(
        model.head.norm(maps.mean((2, 3), keepdim=True)).flatten(1)
    ),
}


@pytest.mark.parametrize("name", list(HEADS))
def test_the_coarsest_layer_determines_the_logits_and_the_next_is_twice_as_fine(name: str) -> None:
    build = timm_model if name.startswith("timm") else torchvision_model
    with torch.device("meta"):  # shapes without arithmetic, which is most of the time that 224 pixels take
        shadow = build(name.removeprefix("timm "))
    layers = default_layers(shadow, ImageSpec())
    assert [shape[1:] for shape in feature_shapes(shadow, layers, ImageSpec())] == [(7, 7), (14, 14)]
    model = build(name.removeprefix("timm "))
    with torch.no_grad(), capture(model, layers) as maps:
        logits = model(images(64))
    with torch.no_grad():
        rebuilt = HEADS[name](model, maps[layers[0]])
    torch.testing.assert_close(rebuilt, logits, rtol=1e-4, atol=1e-5 * float(logits.abs().max()))
    assert not torch.allclose(logits[0], logits[1], rtol=1e-3, atol=1e-4 * float(logits.abs().max()))


def test_as_many_levels_are_found_as_asked_for_and_there_are(tiny_explainee: Explainee) -> None:
    model, spec = tiny_explainee.model, tiny_explainee.image_spec
    assert default_layers(model, spec, levels=1) == ("late",)
    assert default_layers(model, spec, levels=2) == ("late", "early")
    assert default_layers(model, spec, levels=3) == ("late", "early")


class Recurrent(nn.Module):
    """The module that gives the coarsest map runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 4, 1)
        self.down = nn.Conv2d(4, 4, 3, 2, 1)
        self.again = nn.Conv2d(4, 4, 3, 1, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.stem(x))
        x = self.again(self.again(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_a_module_that_runs_twice_is_never_chosen() -> None:
    model = Recurrent().eval()
    spec = ImageSpec(size=(32, 32))
    assert default_layers(model, spec) == ("down", "stem")
    assert hooks(model) == 0


def test_maps_whose_channels_come_last_are_never_chosen() -> None:
    class Permuted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1)

    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 40, 3, 4, 1)
            self.permuted = Permuted()
            self.head = nn.Linear(40, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.permuted(self.stem(x)).mean((1, 2)))
            return logits

    assert default_layers(ChannelsLast().eval(), ImageSpec(size=(32, 32))) == ("stem",)


def test_a_model_without_maps_is_refused_and_keeps_no_hooks() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    with pytest.raises(ModelError, match=r"no feature maps of shape \(N, C, h, w\).*--layer"):
        default_layers(model, ImageSpec(size=(8, 8)))
    assert hooks(model) == 0


def test_hooks_are_gone_after_a_model_that_fails() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(99, 4))
    with pytest.raises(RuntimeError):
        default_layers(model, ImageSpec(size=(8, 8)))
    assert hooks(model) == 0


def test_layers_are_found_on_the_device_where_the_model_lies(tiny_explainee: Explainee) -> None:
    import copy

    elsewhere = copy.deepcopy(tiny_explainee.model).to(
        "meta"
    )  # a device that every machine has, and takes no CPU tensors
    spec = tiny_explainee.image_spec
    layers = default_layers(elsewhere, spec)
    assert layers == default_layers(tiny_explainee.model, spec)
    assert feature_shapes(elsewhere, layers, spec) == feature_shapes(tiny_explainee.model, layers, spec)
