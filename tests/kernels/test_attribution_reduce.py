"""`attribution_reduce` against a loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saccade.errors import UsageError
from saccade.kernels.attribution_reduce import Rule, attribution_reduce

FORMULAS = {
    "product": lambda g, v: g * v,
    "positive product": lambda g, v: max(0.0, g * v),
    "positive gradient": lambda g, v: max(0.0, g) * v,
    "positive value": lambda g, v: g * max(0.0, v),
}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("rule", list(FORMULAS))
@pytest.mark.parametrize("shared", [False, True], ids=["of each step", "the same for all steps"])
def test_it_is_what_a_loop_gives(rule: Rule, shared: bool) -> None:
    steps, count = 3, 2
    gradients, values = random(steps * count, 4, 3, 5), random(count if shared else steps * count, 4, 3, 5)
    weights = random(steps)
    expected = np.zeros((count, 3, 5))
    for step, image, channel, y, x in np.ndindex(steps, count, 4, 3, 5):
        row = step * count + image
        value = float(values[image if shared else row, channel, y, x])
        expected[image, y, x] += float(weights[step]) * FORMULAS[rule](float(gradients[row, channel, y, x]), value)
    found = attribution_reduce(gradients, values, weights, rule)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)


def test_half_precision_is_summed_in_single() -> None:
    gradients = torch.full((1, 4096, 1, 1), 1.0, dtype=torch.float16)
    found = attribution_reduce(gradients, gradients, torch.ones(1))
    assert found.dtype == torch.float32
    assert found.tolist() == [[[4096.0]]]  # in half precision sums past 2048 no longer grow


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rule": "sum"}, "there is no rule 'sum'; there are: product, positive product"),
        ({"gradients": torch.rand(5, 4, 3)}, r"\(S·N, C, …\) with S = 2 as the weights say, not float32 \(5, 4, 3\)"),
        ({"values": torch.rand(3, 4, 3)}, r"\(4, 4, 3\) as the gradients, or 2 of them .* not float32 \(3, 4, 3\)"),
        ({"values": torch.rand(4, 4, 2)}, r"not float32 \(4, 4, 2\)"),
        ({"weights": torch.rand(2, 1)}, r"weights are floating point \(S,\), not float32 \(2, 1\)"),
        ({"values": torch.rand(4, 4, 3, device="meta")}, "values is on meta, gradients on cpu"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], said: str) -> None:
    right = {"gradients": torch.rand(4, 4, 3), "values": torch.rand(4, 4, 3), "weights": torch.rand(2)}
    with pytest.raises(UsageError, match=said):
        attribution_reduce(**{**right, **change})
