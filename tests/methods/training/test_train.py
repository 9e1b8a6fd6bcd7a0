from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from squares import (
    NAMES,
    SquareCNN,
    few,
    history_of,
    short,
    squares,
    states_equal,
    stream,
    to_explainee,
    trained_squares_state,
)
from torch import Tensor

from saccade.contracts import Uint8
from saccade.errors import ModelError, OutputError, UsageError
from saccade.methods import train as train_module
from saccade.methods.checkpoint import load_checkpoint, load_samples, read_record, save_samples
from saccade.methods.explainee import Explainee, fingerprint, load_explainee
from saccade.methods.inr.amortized_config import AmortizedConfig
from saccade.methods.ltx.config import LTXConfig
from saccade.methods.ltx.model import LTXExplainer, build_ltx
from saccade.methods.train import StepReport, learning_rate, masks_of, train_explainer


def as_pixels(images: Uint8) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


PLAIN = {"evidence": False}  # the network's selection is the mask, as published


@pytest.fixture(scope="module")
def trained_state() -> dict[str, Tensor]:
    return trained_squares_state()


@pytest.fixture
def explainee(trained_state: dict[str, Tensor]) -> Explainee:
    model = SquareCNN()
    model.load_state_dict(trained_state)
    return to_explainee(model)


# ---- it learns where the evidence is


@pytest.mark.parametrize("form", [{}, PLAIN], ids=["default", "plain"])
@pytest.mark.parametrize("complement", [1.0, 0.0])
def test_the_mask_finds_the_square_and_the_explainee_is_left_as_found(
    explainee: Explainee, tmp_path: Path, complement: float, form: dict[str, Any]
) -> None:
    explainee.model.get_submodule("early").requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in explainee.model.named_parameters()}
    config = LTXConfig(steps=120, batch_size=32, learning_rate=1e-2, complement=complement, **form)
    explainer = train_explainer(explainee, stream, config, tmp_path, data="squares")
    images, labels, where = squares(5, 128)
    probabilities, masks = masks_of(explainer, images)
    assert (probabilities.argmax(1) == labels).mean() > 0.95
    inside, outside = masks[:, 0][where].mean(), masks[:, 0][~where].mean()
    assert inside > 4 * outside

    assert fingerprint(explainee.model) == explainee.fingerprint
    assert {name: parameter.requires_grad for name, parameter in explainee.model.named_parameters()} == before
    assert all(parameter.grad is None for parameter in explainee.model.parameters())
    for module in explainee.model.modules():
        assert not module.training
        assert not module._forward_hooks


def test_an_own_backbone_learns_too(explainee: Explainee, tmp_path: Path) -> None:
    config = LTXConfig(form="own", steps=120, batch_size=32, learning_rate=2e-3, complement=0, **PLAIN)
    explainer = train_explainer(explainee, stream, config, tmp_path, data="squares")
    images, _, where = squares(5, 128)
    masks = masks_of(explainer, images)[1][:, 0]
    assert masks[where].mean() > 4 * masks[~where].mean()
    assert fingerprint(explainee.model) == explainee.fingerprint


def test_an_explainer_for_any_class_finds_the_square_that_it_is_asked_about(
    explainee: Explainee, tmp_path: Path
) -> None:
    config = LTXConfig(steps=150, batch_size=32, learning_rate=1e-2, class_conditional=True, **PLAIN)
    explainer = train_explainer(explainee, stream, config, tmp_path, data="squares")
    images, labels, where = squares(6, 64)
    others, other_labels, elsewhere = squares(7, 64)
    apart = (labels != other_labels) & ~(where & elsewhere).any((1, 2))
    images[elsewhere] = others[elsewhere]  # two squares of different colours
    images, target = images[apart], np.stack([labels, other_labels], 1)[apart]
    with torch.no_grad():
        masks = explainer(explainee.normalise(as_pixels(images)), torch.from_numpy(target))[1].numpy()
    right = 0
    for pair, first, second in zip(masks, where[apart], elsewhere[apart], strict=True):
        right += pair[0][first].mean() > 2 * pair[0][second].mean()
        right += pair[1][second].mean() > 2 * pair[1][first].mean()
    assert right >= 0.9 * 2 * len(masks)


def test_bf16_training_gives_finite_masks_and_keeps_float_weights(explainee: Explainee, tmp_path: Path) -> None:
    explainer = train_explainer(explainee, few, short(precision="bf16"), tmp_path, data="squares")
    _, masks = masks_of(explainer, squares(5, 16)[0])
    assert np.isfinite(masks).all()
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert {value.dtype for value in explainer.network.parameters()} == {torch.float32}
    assert all(math.isfinite(row["total"]) for row in history_of(tmp_path))


@pytest.mark.parametrize("baseline", ["black", "mean", "blur"])
@pytest.mark.parametrize(("complement", "evidence"), [(0.0, False), (0.5, False), (0.5, True)])
def test_the_first_step_reports_the_losses_of_its_masks(
    explainee: Explainee, tmp_path: Path, baseline: str, complement: float, evidence: bool
) -> None:
    """The same numbers, from the formulas in float64 and one model call per view. What is trained is the selection:
    with evidence it is the same as without.
    """
    settings = PLAIN | {"evidence": evidence}
    config = short(steps=1, baseline=baseline, complement=complement, area=0.3, area_form="softplus", **settings)
    torch.manual_seed(config.seed)
    explainer = build_ltx(explainee, config)
    explainer.network.train()
    pixels = torch.from_numpy(few(0)).permute(0, 3, 1, 2).double() / 255
    model = SquareCNN().double().eval()
    model.load_state_dict(explainee.model.state_dict())

    def probabilities(images: Tensor) -> Tensor:
        return model((images - 0.4) / 0.2).softmax(1)

    with torch.no_grad():
        selection = explainer.predict(((pixels - 0.4) / 0.2).float()).selection.double()
        mask = F.interpolate(selection, size=pixels.shape[2:], mode="bilinear", align_corners=False)
        target = probabilities(pixels).argmax(1, keepdim=True)
        if baseline == "blur":
            from scipy.ndimage import gaussian_filter

            replacement = torch.from_numpy(gaussian_filter(pixels.numpy(), 2.0, mode="nearest", radius=6, axes=(2, 3)))
        else:
            replacement = torch.full_like(pixels, {"black": 0.0, "mean": 0.4}[baseline])
        kept = probabilities(mask * pixels + (1 - mask) * replacement)
        removed = probabilities((1 - mask) * pixels + mask * replacement)
        preserve = float(-kept.gather(1, target).log().mean())
        counterfactual = float(-(1 - removed.gather(1, target)).log().mean()) if complement else 0.0
        area = float(torch.log1p(mask.exp()).mean())

    train_explainer(explainee, few, config, tmp_path, data="squares")
    (row,) = history_of(tmp_path)
    assert row["preserve"] == pytest.approx(preserve, rel=1e-4)
    assert row.get("complement", 0.0) == pytest.approx(counterfactual, rel=1e-4)
    assert ("complement" in row) == (complement > 0)
    assert row["area"] == pytest.approx(area, rel=1e-5)
    assert row["total"] == pytest.approx(preserve + complement * counterfactual + 0.3 * area, rel=1e-4)


# ---- interruption and resumption


class Interrupted(Exception):
    pass


def stop_after(step: int) -> Callable[[StepReport, LTXExplainer], None]:
    def on_step(report: StepReport, _: LTXExplainer) -> None:
        if report.step == step:
            raise Interrupted

    return on_step


@pytest.mark.parametrize("settings", [{}, {"form": "own"}, {"class_conditional": True}], ids=str)
def test_an_interrupted_training_resumes_to_the_same_bits(
    explainee: Explainee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(train_module, "SAVE_EVERY", 5)
    config = short(**settings)
    whole = train_explainer(explainee, few, config, tmp_path / "whole", data="squares")
    with pytest.raises(Interrupted):
        train_explainer(explainee, few, config, tmp_path / "parts", data="squares", on_step=stop_after(8))
    assert read_record(tmp_path / "parts").step == 5
    assert not any(module._forward_hooks for module in explainee.model.modules())
    assert all(parameter.requires_grad for parameter in explainee.model.parameters())

    seen: list[int] = []
    torch.manual_seed(99)
    parts = train_explainer(
        explainee,
        few,
        config,
        tmp_path / "parts",
        data="squares",
        resume=True,
        on_step=lambda report, _: seen.append(report.step),
    )
    assert seen == list(range(6, 13))
    assert states_equal(parts.network, whole.network)
    assert history_of(tmp_path / "parts") == history_of(tmp_path / "whole")
    assert [row["step"] for row in history_of(tmp_path / "parts")] == list(range(1, 13))
    assert read_record(tmp_path / "parts") == read_record(tmp_path / "whole")
    stored = (tmp_path / "parts" / "explainer.safetensors").read_bytes()
    assert stored == (tmp_path / "whole" / "explainer.safetensors").read_bytes()


def test_what_a_caller_does_between_steps_does_not_change_the_training(explainee: Explainee, tmp_path: Path) -> None:
    plain = train_explainer(explainee, few, short(), tmp_path / "plain", data="squares")
    watched = train_explainer(
        explainee,
        few,
        short(),
        tmp_path / "watched",
        data="squares",
        on_step=lambda _, explainer: (masks_of(explainer, few(50)), explainer.eval()),
    )
    assert states_equal(plain.network, watched.network)


def test_the_seed_decides_the_weights(explainee: Explainee, tmp_path: Path) -> None:
    first, again, other = (
        train_explainer(explainee, few, short(steps=2, seed=seed), tmp_path / str(index), data="squares")
        for index, seed in enumerate((3, 3, 4))
    )
    assert states_equal(first.network, again.network)
    assert not states_equal(first.network, other.network)


def test_a_finished_training_resumes_to_itself(explainee: Explainee, tmp_path: Path) -> None:
    first = train_explainer(explainee, few, short(), tmp_path, data="squares")
    again = train_explainer(explainee, few, short(), tmp_path, data="squares", resume=True)
    assert states_equal(first.network, again.network)
    assert len(history_of(tmp_path)) == 12


def test_a_training_is_not_overwritten_unasked(explainee: Explainee, tmp_path: Path) -> None:
    train_explainer(explainee, few, short(steps=2), tmp_path, data="squares")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=rf"{tmp_path.name}' already holds a training; .*--resume"):
        train_explainer(explainee, few, short(steps=2), tmp_path, data="squares")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("change", [{"area": 7.0}, {"steps": 3}, {"learning_rate": 0.1}, {"layers": ("late", "early")}])
def test_resuming_with_other_settings_is_refused(explainee: Explainee, tmp_path: Path, change: dict[str, Any]) -> None:
    train_explainer(explainee, few, short(steps=2), tmp_path, data="squares")
    with pytest.raises(UsageError, match=r"trained with other settings; resume with the same options"):
        train_explainer(explainee, few, short(**({"steps": 2} | change)), tmp_path, data="squares", resume=True)


def test_resuming_for_another_explainee_is_refused(explainee: Explainee, tmp_path: Path) -> None:
    train_explainer(explainee, few, short(steps=2), tmp_path, data="squares")
    torch.manual_seed(1)
    with pytest.raises(UsageError, match=r"trained for another explainee.*--out"):
        train_explainer(to_explainee(SquareCNN()), few, short(steps=2), tmp_path, data="squares", resume=True)


def test_resuming_where_nothing_is_starts_from_the_beginning(explainee: Explainee, tmp_path: Path) -> None:
    plain = train_explainer(explainee, few, short(steps=2), tmp_path / "plain", data="squares")
    fresh = train_explainer(explainee, few, short(steps=2), tmp_path / "fresh", data="squares", resume=True)
    assert states_equal(plain.network, fresh.network)


# ---- what goes wrong


def test_a_stream_that_fails_ends_the_training_with_its_own_error(explainee: Explainee, tmp_path: Path) -> None:
    def broken(step: int) -> Uint8:
        if step == 4:
            raise OSError("the disk is gone")
        return few(step)

    steps: list[int] = []
    with pytest.raises(OSError, match="the disk is gone"):
        train_explainer(
            explainee, broken, short(), tmp_path, data="squares", on_step=lambda report, _: steps.append(report.step)
        )
    assert steps == [1, 2, 3, 4]


def test_a_folder_that_cannot_be_written_is_named(explainee: Explainee, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write the checkpoint '.*file.runs'"):
        train_explainer(explainee, few, short(steps=1), tmp_path / "file" / "runs", data="squares")


# ---- learning rate


@pytest.mark.parametrize(("steps", "warmup"), [(600, 0.1), (120, 0.25), (15, 0.1), (50, 0.0), (1, 0.1)])
def test_the_learning_rate_warms_up_linearly_and_falls_as_a_cosine(steps: int, warmup: float) -> None:
    config = LTXConfig(steps=steps, warmup=warmup, learning_rate=0.5)
    rates = [learning_rate(step, config) for step in range(steps)]
    warm = warmup * steps
    rising = [step for step in range(steps) if step < warm]
    falling = [step for step in range(steps) if step >= warm]
    for step in rising:
        assert rates[step] == pytest.approx(0.5 * (step + 1) / (warm + 1))
    for step in falling:
        turn = np.cos(np.pi * (step - warm) / (steps - warm))
        assert rates[step] == pytest.approx(0.5 * (1 + turn) / 2)
    assert all(0 < rate <= 0.5 for rate in rates)
    ups = [rates[step] for step in rising]
    downs = [rates[step] for step in falling]
    assert all(low < high for low, high in itertools.pairwise(ups))
    assert all(high > low for high, low in itertools.pairwise(downs))


def test_the_peak_is_at_the_end_of_the_warm_up_and_the_end_is_zero() -> None:
    config = LTXConfig(steps=600, warmup=0.1, learning_rate=0.5)
    assert max(range(600), key=lambda step: learning_rate(step, config)) == 60
    assert learning_rate(60, config) == 0.5
    assert learning_rate(599, config) < 1e-5
    assert learning_rate(600, config) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("form", "peak"), [("shared", 3e-3), ("own", 5e-4)])
def test_the_steps_are_taken_at_the_scheduled_rate(
    explainee: Explainee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, peak: float
) -> None:
    taken: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *arguments: Any) -> Any:
        taken.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train_explainer(explainee, few, short(form=form, steps=5, warmup=0.4), tmp_path, data="squares")
    assert taken == pytest.approx([peak / 3, 2 * peak / 3, peak, 0.75 * peak, 0.25 * peak])
    assert [row["learning_rate"] for row in history_of(tmp_path)] == taken


# ---- checkpoints

MODULE = """
import torch
import torch.nn.functional as F
from torch import nn
from saccade.contracts import ImageSpec


def build():
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )
    model.image_spec = ImageSpec(size=(32, 32), mean=(0.3, 0.4, 0.5), std=(0.2, 0.25, 0.3))
    return model
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's model, to be loaded by its spec."""
    name = f"users_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return f"python:{name}:build"


@pytest.fixture
def folder(spec: str, tmp_path: Path) -> Path:
    """A short training of the user's model."""
    train_explainer(load_explainee(spec), few, short(steps=3), tmp_path / "run", data="squares")
    return tmp_path / "run"


@pytest.mark.parametrize("form", ["shared", "own"])
def test_a_loaded_checkpoint_gives_the_same_masks(spec: str, tmp_path: Path, form: str) -> None:
    config = short(steps=3, form=form)
    trained = train_explainer(
        load_explainee(spec, class_names=["x", "y", "z"]), few, config, tmp_path / "run", data="squares"
    )
    loaded, record = load_checkpoint(tmp_path / "run")
    for ours, theirs in zip(masks_of(loaded, few(77)), masks_of(trained, few(77)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert record.config == config
    assert record.layers == trained.layers
    assert record.step == 3
    assert record.data == "squares"
    assert record.explainee == spec
    assert record.class_names == loaded.explainee.class_names == ("x", "y", "z")
    assert record.image_spec == loaded.explainee.image_spec == trained.explainee.image_spec
    assert not any(module.training for module in loaded.modules())


def test_a_checkpoint_finds_the_weights_file_of_its_explainee(spec: str, tmp_path: Path) -> None:
    torch.manual_seed(8)
    other = load_explainee(spec).model
    for value in other.parameters():
        torch.nn.init.normal_(value, 0, 0.1)
    save_file(other.state_dict(), tmp_path / "own.safetensors")
    explainee = load_explainee(spec, tmp_path / "own.safetensors", image_size=(24, 24))
    trained = train_explainer(
        explainee, lambda step: few(step)[:, :24, :24], short(steps=2), tmp_path / "run", data="squares"
    )
    loaded, record = load_checkpoint(tmp_path / "run")
    assert record.image_spec.size == (24, 24)
    images = few(77)[:, 4:28, 4:28]
    np.testing.assert_array_equal(masks_of(loaded, images)[1], masks_of(trained, images)[1])

    (tmp_path / "own.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(ModelError, match=r"no weights file .*own.safetensors"):
        load_checkpoint(tmp_path / "run")
    moved, _ = load_checkpoint(tmp_path / "run", weights=str(tmp_path / "moved.safetensors"))
    np.testing.assert_array_equal(masks_of(moved, images)[1], masks_of(trained, images)[1])


def test_a_checkpoint_of_named_classes_loads_with_a_model_of_a_library(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=3)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    explainee = load_explainee(
        "timm:mobilenetv3_small_050", tmp_path / "own.safetensors", class_names=NAMES, image_size=(64, 64)
    )
    batch = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    trained = train_explainer(explainee, lambda _: batch, short(steps=1), tmp_path / "run", data="noise")
    loaded, _ = load_checkpoint(tmp_path / "run")
    assert loaded.explainee.class_names == NAMES
    np.testing.assert_array_equal(masks_of(loaded, batch)[1], masks_of(trained, batch)[1])


def test_another_explainee_is_refused_by_its_fingerprint(spec: str, folder: Path, tmp_path: Path) -> None:
    state = load_explainee(spec).model.state_dict()
    expected = read_record(folder).fingerprint
    state["7.bias"] = state["7.bias"] + 1e-6
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=rf"not the one that '.*run' was trained for.*{expected[:12]}.*--weights"):
        load_checkpoint(folder, weights=str(tmp_path / "other.safetensors"))


def test_a_folder_without_a_checkpoint_is_answered_with_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere' is not a checkpoint.*saccade train ltx --out"):
        load_checkpoint(tmp_path / "nowhere")


def test_a_checkpoint_of_a_newer_format_is_refused(folder: Path) -> None:
    path = folder / "checkpoint.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"format": stored["format"] + 1, "new": 1}))
    with pytest.raises(ModelError, match=rf"has format {stored['format'] + 1} and this Saccade reads up to .*upgrade"):
        load_checkpoint(folder)


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda stored: {name: value for name, value in stored.items() if name != key}


@pytest.mark.parametrize(
    "damage",
    [
        *map(without, ("format", "config", "layers", "fingerprint", "image_spec", "class_names")),
        lambda stored: stored | {"surplus": 1},
        lambda stored: stored | {"config": stored["config"] | {"steps": -1}},
        lambda stored: stored | {"config": stored["config"] | {"surplus": 1}},
        lambda stored: stored | {"config": [1]},
        lambda stored: stored | {"image_spec": None},
        lambda stored: stored | {"image_spec": stored["image_spec"] | {"size": [0, 4]}},
        lambda stored: stored | {"format": "one"},
        lambda stored: [stored],
        lambda stored: None,
    ],
)
def test_a_damaged_record_is_named(folder: Path, damage: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(ModelError, match=r"checkpoint.json' is damaged: \S"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 1', b"\xff\xfe\x00"])
def test_a_record_that_is_no_json_is_named(folder: Path, content: bytes) -> None:
    (folder / "checkpoint.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"checkpoint.json' is damaged: \S"):
        load_checkpoint(folder)


def test_missing_and_truncated_explainer_weights_are_named(folder: Path) -> None:
    weights = folder / "explainer.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"cannot read the weights '.*explainer.safetensors'"):
        load_checkpoint(folder)
    weights.unlink()
    with pytest.raises(ModelError, match=r"cannot read the weights '.*explainer.safetensors'"):
        load_checkpoint(folder)


def test_samples_come_back_as_they_were_kept(tmp_path: Path) -> None:
    assert load_samples(tmp_path) is None
    save_samples(tmp_path / "new", few(3))
    stored = load_samples(tmp_path / "new")
    assert stored is not None
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, few(3))


def test_no_partial_files_are_left(folder: Path) -> None:
    names = {file.name for file in folder.iterdir()}
    assert names == {"checkpoint.json", "explainer.safetensors", "history.jsonl", "training_state.pt"}


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "both"}, "unknown form 'both'; there are: shared, own"),
        ({"area_form": "l2"}, "unknown area form 'l2'; there are: l1, softplus"),
        ({"baseline": "grey"}, "unknown baseline 'grey'; there are: black, mean, blur"),
        ({"precision": "fp8"}, "unknown precision 'fp8'; there are: fp32, bf16, fp16"),
        ({"steps": 0}, "steps"),
        ({"steps": -3}, "steps"),
        ({"batch_size": 0}, "batch size"),
        ({"width": -1}, "width"),
        ({"preserve": -0.1}, "weights of the losses"),
        ({"complement": -1.0}, "weights of the losses"),
        ({"area": -1e-9}, "weights of the losses"),
        ({"area": math.nan}, "weights of the losses"),
        ({"entropy": -1.0}, "weights of the losses"),
        ({"preserve": math.inf}, "weights of the losses"),
        ({"preserve": 0.0, "complement": 0.0}, "preserve or complement is positive"),
        ({"warmup": 1.0}, "warmup"),
        ({"warmup": -0.1}, "warmup"),
        ({"warmup": math.nan}, "warmup"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"learning_rate": -1e-3}, "learning rate"),
        ({"learning_rate": math.nan}, "learning rate"),
        ({"learning_rate": math.inf}, "learning rate"),
        ({"weight_decay": -0.1}, "weight decay"),
        ({"weight_decay": math.nan}, "weight decay"),
        ({"clip": 0.0}, "clip"),
        ({"clip": math.nan}, "clip"),
        ({"validate_every": -1}, "not negative"),
        ({"patience": -1}, "not negative"),
        ({"patience": 2, "validate_every": 0}, "patience counts validations"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LTXConfig(**settings)


@pytest.mark.parametrize(
    "settings", [{"preserve": 0.0}, {"complement": 0.0, "area": 0.0}, {"warmup": 0.0}, {"width": 0}]
)
def test_settings_at_their_limits_are_taken(settings: dict[str, Any]) -> None:
    config = LTXConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


# ---- from another training


def test_a_training_may_start_where_another_ended(explainee: Explainee, tmp_path: Path) -> None:
    first = train_explainer(explainee, few, short(), tmp_path / "first", data="squares")
    slow = short(start=(str(tmp_path / "first"),), learning_rate=1e-9, weight_decay=0.0)
    second = train_explainer(explainee, few, slow, tmp_path / "second", data="squares")
    fresh = train_explainer(explainee, few, replace(slow, start=()), tmp_path / "fresh", data="squares")
    for name, value in first.network.named_parameters():
        torch.testing.assert_close(second.network.get_parameter(name), value, rtol=0, atol=1e-6)
    assert any(
        not torch.allclose(fresh.network.get_parameter(name), value, atol=1e-3)
        for name, value in first.network.named_parameters()
    )


def test_a_training_may_start_from_the_mean_of_several(explainee: Explainee, tmp_path: Path) -> None:
    ends = [
        train_explainer(explainee, few, short(seed=seed), tmp_path / str(seed), data="squares").network
        for seed in range(3)
    ]
    config = short(start=tuple(str(tmp_path / str(seed)) for seed in range(3)), learning_rate=1e-9, weight_decay=0.0)
    mixed = train_explainer(explainee, few, config, tmp_path / "mixed", data="squares").network
    for name, value in mixed.named_parameters():
        expected = sum(end.get_parameter(name).double() for end in ends) / 3
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)


def test_a_training_of_another_kind_is_no_start(explainee: Explainee, tmp_path: Path) -> None:
    train_explainer(explainee, few, short(), tmp_path / "first", data="squares")
    functions = AmortizedConfig(steps=1, batch_size=8, start=(str(tmp_path / "first"),))
    with pytest.raises(ModelError, match="is a checkpoint of train ltx, not of train inr"):
        train_explainer(explainee, few, functions, tmp_path / "a", data="squares")
    wide = short(width=5, start=(str(tmp_path / "first"),))
    with pytest.raises(ModelError, match="do not fit the model"):
        train_explainer(explainee, few, wide, tmp_path / "b", data="squares")
    with pytest.raises(ModelError, match="is not a checkpoint"):
        train_explainer(explainee, few, short(start=(str(tmp_path / "none"),)), tmp_path / "c", data="squares")
