"""What is not finite stops the training, is named, and changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from squares import SquareCNN, few, random_squares, short, to_explainee
from torch import Tensor, nn

from saccade.contracts import Uint8
from saccade.errors import ModelError
from saccade.evaluate import scenes_models
from saccade.methods.checkpoint import load_checkpoint, network_state, read_record
from saccade.methods.explainee import fingerprint
from saccade.methods.ltx.model import LTXExplainer
from saccade.methods.train import StepReport, train_explainer


class Named:
    """`few`, whose images have names."""

    def __call__(self, step: int) -> Uint8:
        return few(step)

    def part(self, step: int, part: slice) -> Uint8:
        return few(step)[part]

    digest = ""

    def names(self, step: int) -> list[str]:
        return [f"photo-{step}-{place}.png" for place in range(8)]


class BreaksOn(SquareCNN):
    """Logits, or only their gradient (√0 has an infinite slope), are not finite for chosen rows of a batch of two
    views.
    """

    def __init__(self, rows: list[int], how: str) -> None:
        super().__init__()
        self.rows, self.how = rows, how

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x).clone()
        if len(x) == 16 and self.rows:
            chosen = logits[self.rows]
            logits[self.rows] = chosen * float("nan") if self.how == "loss" else chosen + (0 * chosen.square()).sqrt()
        return logits


def breaking(rows: list[int], how: str = "loss") -> nn.Module:
    torch.manual_seed(11)
    return BreaksOn(rows, how)


@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize(
    ("rows", "term", "images"),
    [
        ([2], "preserve", "photo-0-2.png;"),
        ([2, 7], "preserve", "photo-0-2.png, photo-0-7.png;"),
        ([8], "complement", "photo-0-0.png;"),
        ([9, 10, 12, 13, 15], "complement", "photo-0-1.png, photo-0-2.png, photo-0-4.png and 2 more;"),
    ],
)
def test_term_and_images_are_named(tmp_path: Path, how: str, rows: list[int], term: str, images: str) -> None:
    subject = f"the {term} loss" if how == "loss" else f"the gradient of the {term} loss"
    with pytest.raises(ModelError) as caught:
        train_explainer(to_explainee(breaking(rows, how)), Named(), short(), tmp_path, data="squares")
    assert f"stopped at step 1: {subject} is not finite for {images} lower --learning-rate" in str(caught.value)
    assert not (tmp_path / "checkpoint.json").exists()


def test_images_of_a_stream_without_names_go_by_their_places(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the preserve loss is not finite for image 3, image 5;"):
        train_explainer(to_explainee(breaking([3, 5])), few, short(), tmp_path, data="squares")


class BlindFor(SquareCNN):
    """Nothing that it computes of a chosen image of eight is finite."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[3::8] = float("nan")
        return super().forward(x)


def test_an_image_that_spoils_the_statistics_of_the_others_is_the_one_that_is_named(tmp_path: Path) -> None:
    torch.manual_seed(11)
    with pytest.raises(ModelError, match=r"the preserve loss is not finite for image 3; lower"):
        train_explainer(to_explainee(BlindFor()), few, short(), tmp_path, data="squares")


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_the_explainer_is_as_it_was_before_the_step_and_so_is_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Weights and batch statistics alike, and nothing was written."""
    monkeypatch.setattr("saccade.methods.train.SAVE_EVERY", 2)
    model = breaking([], how)
    after: dict[int, dict[str, Tensor]] = {}
    explainers: list[LTXExplainer] = []
    files: dict[str, bytes] = {}

    def on_step(report: StepReport, explainer: LTXExplainer) -> None:
        after[report.step] = network_state(explainer.network)
        explainers.append(explainer)
        if report.step == 3:
            model.rows = [4]
            files.update({file.name: file.read_bytes() for file in tmp_path.iterdir()})

    with pytest.raises(ModelError, match=r"step 4: .*not finite for photo-3-4.png;"):
        train_explainer(to_explainee(model), Named(), short(), tmp_path, data="squares", on_step=on_step)
    now = explainers[-1].network.state_dict()
    assert all(torch.equal(now[name], value) for name, value in after[3].items())
    assert any(not torch.equal(after[2][name], value) for name, value in after[3].items() if "running" in name)
    assert read_record(tmp_path).step == 2
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_weights_that_are_not_finite_make_every_image_so(tmp_path: Path) -> None:
    def poison(report: StepReport, explainer: LTXExplainer) -> None:
        if report.step == 3:
            next(explainer.network.parameters()).data.fill_(float("nan"))

    explainee = random_squares()
    with pytest.raises(ModelError, match=r"step 4: the preserve loss .* image 0, image 1, image 2 and 5 more; lower"):
        train_explainer(explainee, few, short(), tmp_path, data="squares", on_step=poison)
    assert fingerprint(explainee.model) == explainee.fingerprint


def test_a_gradient_that_breaks_inside_the_network_is_told_apart(tmp_path: Path) -> None:
    def break_network(report: StepReport, explainer: LTXExplainer) -> None:
        if report.step == 1:
            explainer.network.read.weight.register_hook(lambda gradient: gradient * float("inf"))

    with pytest.raises(ModelError, match="step 2: the gradient of the network is not finite; lower"):
        train_explainer(random_squares(), few, short(), tmp_path, data="squares", on_step=break_network)


@pytest.mark.parametrize("weights", [{"preserve": 0.0}, {"complement": 0.0}])
def test_a_term_without_a_weight_costs_no_forward(tmp_path: Path, weights: dict[str, float]) -> None:
    seen: list[int] = []
    explainee = random_squares()
    handle = explainee.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    train_explainer(explainee, few, short(steps=2, **weights), tmp_path, data="squares")
    handle.remove()
    assert seen[-4:] == [8, 8, 8, 8]  # the images, and one view of them


def test_a_checkpoint_from_before_these_settings_loads(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(Path(scenes_models.__file__).parent / "weights" / "scenes_resnet_ltx_shared", folder)
    stored = json.loads((folder / "checkpoint.json").read_text())
    for name in ("entropy", "patience", "validate_every", "ema_decay", "start"):
        stored["config"].pop(name)
    for name in ("best_step", "best_score"):
        stored.pop(name)
    (folder / "checkpoint.json").write_text(json.dumps(stored))
    explainer, record = load_checkpoint(folder)
    assert (record.config.entropy, record.config.patience, record.best_step) == (0, 0, None)
    assert not explainer.training
