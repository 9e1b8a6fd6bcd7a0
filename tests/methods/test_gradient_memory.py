from __future__ import annotations

import pytest
import torch
from torch import nn

from saccade.errors import UsageError
from saccade.evaluate.scenes_models import IMAGE_SPEC, ScenesViT
from saccade.methods.explainee import Explainee, fingerprint
from saccade.methods.gradient.config import GradientConfig
from saccade.methods.gradient.explainer import GradientExplainer
from saccade.methods.gradient.memory import batch_and_points, largest_output, points_per_pass, room_of, saved_bytes


@pytest.mark.parametrize("room", [10, 11, 15, 29, 30, 59, 60, 1000])
@pytest.mark.parametrize("outer", [1, 4])
def test_the_most_points_that_fit_are_taken(room: float, outer: int) -> None:
    fixed, each, points = 6.0, 4.0, 6  # all points of one outer point take 30
    found = points_per_pass(room, fixed / 3.1, each / 3.1, points, outer)  # ONNX Runtime takes 3.1 times as much
    fitting = [k for k in range(1, points + 1) if fixed + k * each <= room]
    fitting += [points * k for k in range(1, outer + 1) if k * (fixed + points * each) <= room]
    assert found == max(fitting)


def test_no_room_for_a_point_is_said() -> None:
    with pytest.raises(UsageError, match="raise --memory-budget"):
        points_per_pass(9.9, 6 / 3.1, 4 / 3.1, 6)


def test_what_a_backward_pass_keeps_is_counted_once_and_without_the_weights() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.Sigmoid(), nn.Tanh()).requires_grad_(False)
    values = torch.randn(5, 10, requires_grad=True)
    assert saved_bytes(model, lambda: model(values)) == 2 * 5 * 20 * 4  # results of sigmoid and tanh


def test_the_room_is_what_program_and_weights_leave(tiny_explainee: Explainee) -> None:
    model = tiny_explainee.model
    room = room_of(model, 2.0)
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert room_of(model, 3.0) - room == pytest.approx(2**30)
    assert room < 2 * 2**30 - weights


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (8 * 30, (8, 6)),  # all points of all images
        (8 * 22, (8, 4)),  # as many as are wanted
        (8 * 21.9, (7, 4)),  # a smaller batch for one point more
        (23, (1, 4)),
        (21, (2, 1)),  # nowhere as many as wanted: the largest batch
        (10, (1, 1)),
    ],
)
def test_batches_give_way_to_points_that_are_worth_it(room: float, expected: tuple[int, int]) -> None:
    scale = 3.1
    assert batch_and_points(room, 6 / scale, 4 / scale, 6, 1, asked=8, wanted=4) == expected


def test_the_largest_output_is_that_of_the_first_convolution(tiny_explainee: Explainee) -> None:
    assert largest_output(tiny_explainee.model, tiny_explainee.image_spec) == 12 * 16 * 16 * 4


def test_less_memory_means_more_passes_and_the_same_map() -> None:
    torch.manual_seed(0)
    model = ScenesViT(width=32, depth=3, heads=2).eval()
    explainee = Explainee(model, IMAGE_SPEC, tuple("0123456789"), "python:tiny:build", "random", fingerprint(model))
    images = torch.randn(2, 3, *IMAGE_SPEC.size)
    target = torch.tensor([1, -1])
    found = {}
    for budget in (4.0, 0.46, 0.418):
        explainer = GradientExplainer(explainee, GradientConfig(method="iia2", memory_budget=budget, batch=8))
        found[explainer.at_once] = explainer.attribute(images, target).maps
    assert len(found) == 3
    assert 0 in found  # all points fit into 4 GiB
    for maps in found.values():
        torch.testing.assert_close(maps, found[0], rtol=1e-3, atol=1e-7)


def test_presets_choose_rule_and_steps_and_give_way_to_what_is_said() -> None:
    fast = GradientConfig(method="iia2", preset="fast")
    assert (fast.quadrature, fast.steps_of(False) < GradientConfig(method="iia2").steps_of(False)) == ("gauss", True)
    assert GradientConfig(method="iia2").quadrature == "riemann"
    assert GradientConfig(method="iia2", preset="fast", rule="midpoint", steps=7).quadrature == "midpoint"
    assert GradientConfig(method="iia2", preset="fast", steps=7).steps_of(True) == 7
    with pytest.raises(UsageError, match="did you mean fast"):
        GradientConfig(method="iia2", preset="fats")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="positive"):
        GradientConfig(method="iia2", memory_budget=0)
