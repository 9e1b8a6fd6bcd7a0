from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from squares import few, history_of, random_squares, short, states_equal
from torch import nn

from saccade.errors import UsageError
from saccade.methods import train as train_module
from saccade.methods.checkpoint import network_state
from saccade.methods.ltx.model import LTXExplainer
from saccade.methods.train import StepReport, train_explainer
from saccade.methods.training.average import WeightAverage

DECAY = 0.6


def mean_of(rows: list[np.ndarray], decay: float) -> np.ndarray:
    """The running mean as a sum of weighted steps, in float64."""
    kept = [min(decay, (1 + n) / (10 + n)) for n in range(1, len(rows))]
    total = np.zeros_like(rows[0], dtype=np.float64)
    for place, row in enumerate(rows):
        share = (1 - kept[place - 1]) if place else 1.0
        total += share * np.prod(kept[place:]) * row.astype(np.float64)
    return total


def test_weights_and_batch_statistics_are_the_sum_of_their_shares() -> None:
    network = nn.BatchNorm2d(3)
    average = WeightAverage(network, DECAY)
    weights, variances = [], []
    generator = torch.Generator().manual_seed(0)
    for _ in range(25):
        with torch.no_grad():
            network.weight.copy_(torch.randn(3, generator=generator))
        network(torch.randn(2, 3, 4, 4, generator=generator))
        average.update()
        weights.append(network.weight.detach().numpy().copy())
        variances.append(network.running_var.numpy().copy())
    mean = average.network.state_dict()
    np.testing.assert_allclose(mean["weight"].numpy(), mean_of(weights, DECAY), rtol=0, atol=1e-6)
    np.testing.assert_allclose(mean["running_var"].numpy(), mean_of(variances, DECAY), rtol=0, atol=1e-6)
    assert int(mean["num_batches_tracked"]) == 25
    assert np.abs(weights[-1] - mean["weight"].numpy()).max() > 0.1


def test_the_result_is_the_mean_of_the_same_training_s_steps(tmp_path: Path) -> None:
    rows: list[dict[str, torch.Tensor]] = []

    def keep(report: StepReport, explainer: LTXExplainer) -> None:
        rows.append(network_state(explainer.network))

    train_explainer(random_squares(), few, short(), tmp_path / "plain", data="squares", on_step=keep)
    plain, rows = rows, []
    asked: list[dict[str, torch.Tensor]] = []

    def validate(explainer: LTXExplainer) -> float:
        asked.append(network_state(explainer.network))
        return 0.0

    config = short(ema_decay=DECAY, validate_every=len(plain))
    averaged = train_explainer(
        random_squares(), few, config, tmp_path / "mean", data="squares", validate=validate, on_step=keep
    )
    result = network_state(averaged.network)
    for name, value in result.items():
        if value.is_floating_point():
            expected = mean_of([row[name].numpy() for row in plain], DECAY)
            np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=1e-6, err_msg=name)
    assert not all(torch.equal(result[name], plain[-1][name]) for name in result)
    # what is shown, validated and stored is what the training is for
    for seen in (rows[-1], asked[-1], load_file(tmp_path / "mean" / "explainer.safetensors")):
        assert all(torch.equal(seen[name], result[name]) for name in result)
    losses = [[row["total"] for row in history_of(tmp_path / name)] for name in ("plain", "mean")]
    assert losses[0] == losses[1]


def test_a_resumed_training_ends_with_the_same_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "SAVE_EVERY", 4)
    config = short(ema_decay=DECAY)
    whole = train_explainer(random_squares(), few, config, tmp_path / "whole", data="squares")

    def interrupt(report: StepReport, _: LTXExplainer) -> None:
        if report.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_explainer(random_squares(), few, config, tmp_path / "parts", data="squares", on_step=interrupt)
    parts = train_explainer(random_squares(), few, config, tmp_path / "parts", data="squares", resume=True)
    assert states_equal(parts.network, whole.network)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(UsageError, match="running mean"):
        short(ema_decay=decay)
