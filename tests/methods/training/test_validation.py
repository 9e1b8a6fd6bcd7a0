from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from squares import few, history_of, random_squares, short, states_equal

from saccade.errors import UsageError
from saccade.methods import train as train_module
from saccade.methods.checkpoint import network_state, read_record
from saccade.methods.ltx.model import LTXExplainer
from saccade.methods.train import StepReport, train_explainer


class Scores:
    """A validation that answers what it is told to, whatever the explainer."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = values
        self.asked = 0

    def __call__(self, explainer: LTXExplainer) -> float:
        self.asked += 1
        return self.values[self.asked - 1]


def keep_states(states: dict[int, dict[str, torch.Tensor]]) -> Callable[[StepReport, LTXExplainer], None]:
    def on_step(report: StepReport, explainer: LTXExplainer) -> None:
        states[report.step] = network_state(explainer.network)

    return on_step


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_patience_stops_the_training_and_the_best_weights_are_its_result(tmp_path: Path) -> None:
    states: dict[int, dict[str, torch.Tensor]] = {}
    config = short(steps=40, validate_every=2, patience=3)
    scores = Scores([float("nan"), 0.3, 0.2, 0.4, 0.4, 0.39, float("nan")])
    explainer = train_explainer(
        random_squares(), few, config, tmp_path, data="squares", validate=scores, on_step=keep_states(states)
    )
    assert max(states) == 14
    assert scores.asked == 7
    record = read_record(tmp_path)
    assert (record.step, record.best_step, record.best_score) == (14, 8, 0.4)
    assert equal(load_file(tmp_path / "explainer.safetensors"), states[8])
    assert equal(network_state(explainer.network), states[8])
    assert not equal(states[8], states[14])
    validated = {row["step"]: row["validation"] for row in history_of(tmp_path) if "validation" in row}
    assert list(validated) == [2, 4, 6, 8, 10, 12, 14]
    assert list(validated.values())[1:6] == list(scores.values[1:6])


def test_without_patience_the_last_weights_are_used_and_the_best_are_known(tmp_path: Path) -> None:
    states: dict[int, dict[str, torch.Tensor]] = {}
    config = short(steps=7, validate_every=3)
    scores = Scores([0.5, 0.2, 0.1])
    explainer = train_explainer(
        random_squares(), few, config, tmp_path, data="squares", validate=scores, on_step=keep_states(states)
    )
    assert [row["step"] for row in history_of(tmp_path) if "validation" in row] == [3, 6, 7]
    assert equal(load_file(tmp_path / "explainer.safetensors"), states[7])
    assert equal(network_state(explainer.network), states[7])
    assert (read_record(tmp_path).best_step, read_record(tmp_path).best_score) == (3, 0.5)
    state = train_module.load_training_state(tmp_path)
    assert state is not None
    assert equal(state["course"]["best_network"], states[3])


def test_validation_does_not_change_the_training(tmp_path: Path) -> None:
    plain = train_explainer(random_squares(), few, short(), tmp_path / "plain", data="squares")
    config = short(validate_every=2)

    def validate(explainer: LTXExplainer) -> float:
        explainer.eval()
        return float(torch.rand(()))

    watched = train_explainer(random_squares(), few, config, tmp_path / "watched", data="squares", validate=validate)
    assert states_equal(plain.network, watched.network)


def test_every_zero_never_validates(tmp_path: Path) -> None:
    scores = Scores([])
    train_explainer(random_squares(), few, short(validate_every=0), tmp_path, data="squares", validate=scores)
    assert scores.asked == 0


@pytest.mark.parametrize("stop", [5, 9, 11])
def test_best_patience_and_history_go_on_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """The score is the weights' own, so that a wrong best or a wrong count gives another end."""
    monkeypatch.setattr(train_module, "SAVE_EVERY", 4)
    config = short(steps=40, validate_every=2, patience=4)
    tops: dict[int, float] = {2: 0.2, 4: 0.6, 6: 0.5, 8: 0.1, 10: 0.3, 12: 0.4, 14: 0.0}
    seen: list[int] = []

    def validate(explainer: LTXExplainer) -> float:
        seen.append(1)
        return tops[2 * len(seen)]

    class Interrupted(Exception):
        pass

    def interrupt(report: StepReport, _: LTXExplainer) -> None:
        if report.step == stop:
            raise Interrupted

    whole = train_explainer(random_squares(), few, config, tmp_path / "whole", data="squares", validate=validate)
    seen.clear()
    with pytest.raises(Interrupted):
        train_explainer(
            random_squares(), few, config, tmp_path / "parts", data="squares", validate=validate, on_step=interrupt
        )
    del seen[read_record(tmp_path / "parts").step // 2 :]  # what was validated since the last save is validated again
    parts = train_explainer(
        random_squares(), few, config, tmp_path / "parts", data="squares", validate=validate, resume=True
    )
    assert len(history_of(tmp_path / "whole")) == 12
    assert history_of(tmp_path / "parts") == history_of(tmp_path / "whole")
    assert read_record(tmp_path / "parts") == read_record(tmp_path / "whole")
    assert states_equal(parts.network, whole.network)
    again = train_explainer(
        random_squares(), few, config, tmp_path / "parts", data="squares", validate=Scores([]), resume=True
    )
    assert states_equal(again.network, whole.network)


def test_patience_without_a_validation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to validate with"):
        train_explainer(random_squares(), few, short(patience=2), tmp_path, data="squares")
