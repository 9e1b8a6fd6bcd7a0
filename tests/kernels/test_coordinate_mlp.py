"""`coordinate_mlp` against a loop over points, and its gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saccade.errors import UsageError
from saccade.kernels.coordinate_mlp import Activation, coordinate_mlp
from saccade.methods.inr.network import grid_of_points

N, A, F, D, L = 2, 3, 3, 4, 3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def arguments(grid: tuple[int, int] = (2, 5)) -> dict[str, Tensor]:
    return {
        "frequencies": random(F, 2),
        "first": random(1, 2 * F, D),
        "shift": random(N, L, D),
        "area": random(1, A, D),
        "weights": random(N, L - 1, D, D),
        "last": random(1, D),
        "offset": random(N, A),
        "features": random(N, *grid, D),
    }


def sampled(features: np.ndarray[Any, Any], x: float, y: float) -> np.ndarray[Any, Any]:
    """Bilinear between the centres of the map's cells, as at the edge beyond them."""
    rows, columns, _ = features.shape
    across = min(max((x + 1) * columns / 2 - 0.5, 0.0), columns - 1.0)
    along = min(max((y + 1) * rows / 2 - 0.5, 0.0), rows - 1.0)
    left, top = math.floor(across), math.floor(along)
    found = np.zeros(features.shape[2])
    for row in (top, top + 1):
        for column in (left, left + 1):
            share = max(0.0, 1 - abs(across - column)) * max(0.0, 1 - abs(along - row))
            found += share * features[min(row, rows - 1), min(column, columns - 1)]
    return found


@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("area_at", [0, 1, 2])
def test_it_is_what_a_loop_over_points_gives(activation: Activation, area_at: int) -> None:
    given = arguments()
    found = coordinate_mlp((3, 4), **given, area_at=area_at, activation=activation).numpy()
    v = {name: np.broadcast_to(value.numpy(), (N, *value.shape[1:])) if name != "frequencies" else value.numpy()
         for name, value in given.items()}  # fmt: skip
    act = (lambda z: z / (1 + np.exp(-z))) if activation == "silu" else (lambda z: np.maximum(z, 0))
    for image, area, i, j in np.ndindex(N, A, 3, 4):
        x, y = (2 * j + 1) / 4 - 1, (2 * i + 1) / 3 - 1
        turns = 2 * math.pi * (v["frequencies"] @ [x, y])
        state = np.concatenate([np.sin(turns), np.cos(turns)]) @ v["first"][image]
        state = state + v["shift"][image, 0] + sampled(v["features"][image], x, y)
        for layer in range(L):
            if layer:
                state = act(state) @ v["weights"][image, layer - 1] + v["shift"][image, layer]
            if layer == area_at:
                state = state + v["area"][image, area]
        expected = act(state) @ v["last"][image] + v["offset"][image, area]
        assert found[image, area, i, j] == pytest.approx(1 / (1 + math.exp(-expected)), abs=1e-12)


@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("area_at", [0, 1, 2])
@pytest.mark.parametrize("squash", [True, False])
def test_gradients_go_to_all_weights_and_features(activation: Activation, area_at: int, squash: bool) -> None:
    given = {name: value.requires_grad_() for name, value in arguments((2, 3)).items()}

    def operator(*tensors: Tensor) -> Tensor:  # computes the states again, as on a GPU
        found: Tensor = torch.ops.saccade.coordinate_mlp(
            *tensors, 3, 4, area_at, activation == "silu", squash, torch.float64
        )
        return found

    def plain(*tensors: Tensor) -> Tensor:
        return coordinate_mlp((3, 4), *tensors, area_at=area_at, activation=activation, squash=squash)

    assert torch.autograd.gradcheck(operator, tuple(given.values()))
    towards = torch.randn(N, A, 3, 4, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad(masks(*given.values()), tuple(given.values()), towards) for masks in (operator, plain)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_modulation_of_an_image_is_a_shift_and_scaled_columns() -> None:
    given = arguments()
    scale, plain = 1 + 0.1 * random(N, L, D), {**given, "features": torch.zeros(N, 1, 1, D, dtype=torch.float64)}
    scaled = coordinate_mlp(
        (3, 4),
        **{
            **plain,
            "first": plain["first"] * scale[:, :1],
            "shift": plain["shift"] * scale,
            "weights": plain["weights"] * scale[:, 1:, None],
        },
        area_at=2,
    )
    turns = 2 * math.pi * grid_of_points(3, 4).double() @ plain["frequencies"].mT
    state = torch.cat([turns.sin(), turns.cos()], 1) @ plain["first"] + plain["shift"][:, :1]
    state = scale[:, :1] * state
    for layer in range(1, L):
        state = torch.nn.functional.silu(state) @ plain["weights"][:, layer - 1] + plain["shift"][:, layer, None]
        state = scale[:, layer, None] * state
    state = torch.nn.functional.silu(state[:, None] + plain["area"][:, :, None])
    expected = (state @ plain["last"][0] + plain["offset"][:, :, None]).sigmoid()
    torch.testing.assert_close(scaled.flatten(2), expected, rtol=0, atol=1e-6)  # the grid is of single precision


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": (0, 4)}, r"at least one row and one column, not \(0, 4\)"),
        ({"first": torch.rand(6, 4)}, r"first is floating point \(N, 2F, D\), not float32 \(6, 4\)"),
        ({"shift": random(2, 3, 5)}, r"shift is \(N, L, D\), here \(2 or 1, 3, 4\) .* not float64 \(2, 3, 5\)"),
        ({"weights": random(2, 3, 4, 4)}, r"weights is \(N, L − 1, D, D\), here \(2 or 1, 2, 4, 4\)"),
        ({"offset": random(2, 4)}, r"offset is \(N, A\), here \(2 or 1, 3\)"),
        ({"area": random(3, 3, 4)}, r"shift is .*\(3 or 1, 3, 4\)"),
        ({"last": random(1, 4).float()}, r"last is floating point as first \(torch.float64\), not float32"),
        ({"frequencies": random(4, 2)}, r"frequencies are floating point \(3, 2\).* not float64 \(4, 2\)"),
        ({"features": random(2, 5, 4)}, r"features are \(N, h, w, D\), here \(2 or 1, h, w, 4\)"),
        ({"area_at": 3}, "area_at is one of the layers; not 3, 3, 3 and 3"),
        ({"activation": "gelu"}, "activation is 'silu' or 'relu', not 'gelu'"),
        ({"offset": torch.rand(2, 3, dtype=torch.float64, device="meta")}, "offset is on meta, first on cpu"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        coordinate_mlp(**{"size": (3, 4), **arguments(), **change})
