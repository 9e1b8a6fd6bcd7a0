"""Per-image fine-tuning against one image alone, and against a plain loop."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_weights import randomise
from torch import Tensor

from saccade.errors import ModelError, UsageError
from saccade.evaluate.scenes_models import IMAGE_SPEC, ScenesViT
from saccade.methods.explainee import Explainee, fingerprint
from saccade.methods.fold import fast_for_input_gradients
from saccade.methods.ltx import finetune as finetune_module
from saccade.methods.ltx.config import LTXConfig
from saccade.methods.ltx.finetune import FinetuneConfig, finetune
from saccade.methods.ltx.heads import head_of
from saccade.methods.ltx.model import LTXExplainer, build_ltx
from saccade.methods.ltx.selection import score_masks

LOSSES = LTXConfig(evidence=False)


def explainer_of(explainee: Explainee, **settings: Any) -> LTXExplainer:
    torch.manual_seed(4)
    return build_ltx(explainee, LTXConfig(evidence=False, **settings))


@pytest.fixture(scope="module")
def vit() -> Explainee:
    model = randomise(ScenesViT(width=16, depth=3, heads=2)).requires_grad_(False)
    return Explainee(model, IMAGE_SPEC, tuple("abcdefghij"), "python:a:b", "random", fingerprint(model))


@pytest.fixture
def pixels(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random((5, 3, 32, 32), dtype=np.float32))


@pytest.fixture
def large(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random((4, 3, 96, 96), dtype=np.float32))


@pytest.mark.parametrize("form", ["shared", "own"])
@pytest.mark.parametrize("settings", [{"tune": "head"}, {"tune": "mask"}, {"select": "pos"}, {"take_turns": False}])
def test_an_image_gets_in_a_batch_what_it_gets_alone(
    tiny_explainee: Explainee, pixels: Tensor, form: str, settings: dict[str, Any]
) -> None:
    explainer = explainer_of(tiny_explainee, form=form)
    config = FinetuneConfig(steps=7, score_every=2, **settings)
    together = finetune(explainer, pixels, LOSSES, config)
    assert (together.mask - together.start).abs().max() > 1e-3
    for index in range(len(pixels)):
        alone = finetune(explainer, pixels[index : index + 1], LOSSES, config)
        assert torch.equal(alone.mask[0], together.mask[index])
        assert alone.step[0] == together.step[index]


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("settings", [{"tune": "head"}, {"tune": "mask"}, {"select": "insertion-deletion"}])
def test_a_transformer_s_image_gets_in_a_batch_what_it_gets_alone(
    vit: Explainee, large: Tensor, conditional: bool, settings: dict[str, Any]
) -> None:
    torch.manual_seed(4)
    explainer = build_ltx(vit, LTXConfig(class_conditional=conditional))
    target = torch.tensor([1, 3, -1, 7])
    config = FinetuneConfig(steps=6, score_every=2, **settings)
    together = finetune(explainer, large, LOSSES, config, target=target)
    assert (together.mask - together.start).abs().max() > 1e-3
    for index in range(len(large)):
        one = slice(index, index + 1)
        alone = finetune(explainer, large[one], LOSSES, config, target=target[one])
        assert torch.equal(alone.mask[0], together.mask[index])
        assert alone.step[0] == together.step[index]


def test_the_steps_are_those_of_a_plain_loop(tiny_explainee: Explainee, pixels: Tensor) -> None:
    explainer = explainer_of(tiny_explainee, form="own")
    losses = LTXConfig(evidence=False, preserve=1.5, complement=0.7, area=3.0)
    config = FinetuneConfig(steps=6, score_every=6, take_turns=False, learning_rate=0.02)
    found = finetune(explainer, pixels[:2], losses, config)
    network: Any = explainer.network
    mean = torch.tensor(tiny_explainee.image_spec.mean)[:, None, None]
    for index in range(2):
        image = pixels[index : index + 1]
        model, normalised = tiny_explainee.model, tiny_explainee.normalise(image)
        with torch.no_grad():
            label = model(normalised).argmax(1)
            maps = network.backbone.late(network.backbone.early(normalised))
        weight, bias = (value.detach().clone().requires_grad_(True) for value in network.read.parameters())
        optimizer = torch.optim.AdamW([weight, bias], lr=0.02, weight_decay=losses.weight_decay)
        for step in range(7):
            small = torch.sigmoid(F.conv2d(maps, weight, bias))
            mask = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
            kept = model(tiny_explainee.normalise(mask * image + (1 - mask) * mean)).softmax(1)[0, label]
            removed = model(tiny_explainee.normalise((1 - mask) * image + mask * mean)).softmax(1)[0, label]
            loss = -1.5 * kept.log() - 0.7 * (1 - removed).log() + 3 * mask.mean()
            if step == 6:
                break
            weight.grad, bias.grad = torch.autograd.grad(loss.sum(), [weight, bias])
            torch.nn.utils.clip_grad_norm_([weight, bias], 1.0)
            optimizer.step()
        end = loss.item()
        best = mask if end < found.start_score[index].item() else found.start[index]
        torch.testing.assert_close(
            found.mask[index : index + 1], best.detach().reshape(1, 1, 32, 32), rtol=0, atol=1e-4
        )
        assert float(found.score[index]) == pytest.approx(min(end, found.start_score[index].item()), abs=1e-4)


def test_both_terms_get_as_many_turns_and_a_score_both(
    tiny_explainee: Explainee, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, bool, bool]] = []
    total = finetune_module.total_loss

    def noting(kept: Tensor | None, removed: Tensor | None, *others: Any) -> Any:
        asked.append((kept is not None, removed is not None, torch.is_grad_enabled()))
        return total(kept, removed, *others)

    monkeypatch.setattr(finetune_module, "total_loss", noting)
    finetune(explainer_of(tiny_explainee), pixels[:4], LOSSES, FinetuneConfig(steps=6, score_every=3))
    score, keep, remove = (True, True, False), (True, False, True), (False, True, True)
    assert asked == [score, keep, remove, keep, score, remove, keep, remove, score]


@pytest.mark.parametrize("form", ["shared", "own"])
@pytest.mark.parametrize("evidence", [False, True])
def test_the_step_is_chosen_by_the_losses_of_the_mask_that_is_given(
    tiny_explainee: Explainee, pixels: Tensor, form: Any, evidence: bool
) -> None:
    torch.manual_seed(4)
    explainer = build_ltx(tiny_explainee, LTXConfig(form=form, evidence=evidence))
    losses = LTXConfig(preserve=1.5, complement=0.7, area=3.0)
    found = finetune(explainer, pixels, losses, FinetuneConfig(steps=4, score_every=1, learning_rate=0.05))
    mean = torch.tensor(tiny_explainee.image_spec.mean, dtype=torch.float64)[:, None, None]
    model = copy.deepcopy(tiny_explainee.model).double()
    exact = pixels.double()
    target = found.target[:, None]
    for masks, score in ((found.start, found.start_score), (found.mask, found.score)):
        mask = masks.double()
        with torch.no_grad():
            kept = model(tiny_explainee.normalise(mask * exact + (1 - mask) * mean)).softmax(1).gather(1, target)
            removed = model(tiny_explainee.normalise((1 - mask) * exact + mask * mean)).softmax(1).gather(1, target)
        expected = (-1.5 * kept.log() - 0.7 * (1 - removed).log()).flatten() + 3 * mask.mean((1, 2, 3))
        torch.testing.assert_close(score.double(), expected, rtol=0, atol=1e-4)
    assert (found.step > 0).any()


def test_every_term_of_the_pretraining_counts(tiny_explainee: Explainee, pixels: Tensor) -> None:
    explainer = explainer_of(tiny_explainee)
    config = FinetuneConfig(steps=1, take_turns=False)
    plain = finetune(explainer, pixels, LOSSES, config)
    sharp = finetune(explainer, pixels, LTXConfig(evidence=False, entropy=2.0), config)
    masks = plain.start.double().clamp(1e-6, 1 - 1e-6)
    bits = -(masks * masks.log2() + (1 - masks) * (1 - masks).log2()).mean((1, 2, 3))
    torch.testing.assert_close((sharp.start_score - plain.start_score).double(), 2 * bits, rtol=0, atol=1e-4)


def test_half_precision_stays_near_the_full_one(tiny_explainee: Explainee, pixels: Tensor) -> None:
    explainer = explainer_of(tiny_explainee)
    full, half = (
        finetune(explainer, pixels, LOSSES, FinetuneConfig(steps=5, score_every=1, precision=precision))  # type: ignore[arg-type]
        for precision in ("fp32", "bf16")
    )
    assert half.mask.dtype == torch.float32
    for index in range(len(pixels)):
        one = FinetuneConfig(steps=5, score_every=1, precision="bf16")
        alone = finetune(explainer, pixels[index : index + 1], LOSSES, one)
        assert torch.equal(alone.mask[0], half.mask[index])
        assert torch.equal(alone.score, half.score[index : index + 1])
    torch.testing.assert_close(half.start, full.start)
    torch.testing.assert_close(half.start_score, full.start_score, rtol=0.02, atol=0.01)
    assert not torch.equal(half.start_score, full.start_score)


@pytest.mark.parametrize("conditional", [False, True])
def test_the_start_is_the_explainer_s_own_mask_whatever_is_asked(
    tiny_explainee: Explainee, pixels: Tensor, conditional: bool
) -> None:
    torch.manual_seed(4)
    explainer = build_ltx(tiny_explainee, LTXConfig(class_conditional=conditional))
    assert explainer.head is not None
    for name, value in explainer.network.named_parameters():
        if "of_class" in name:
            torch.nn.init.normal_(value, 0, 0.5)
    target = torch.tensor([0, 1, 2, 3, 4])
    found = finetune(explainer, pixels, LOSSES, FinetuneConfig(steps=2), target=target)
    with torch.no_grad():
        expected = explainer(tiny_explainee.normalise(pixels), target[:, None])[1]
    torch.testing.assert_close(found.start, expected, rtol=0, atol=1e-6)
    assert torch.equal(found.target, target)


@pytest.mark.parametrize("form", ["shared", "own"])
def test_it_starts_from_the_pretrained_mask_and_never_chooses_a_worse_one(
    tiny_explainee: Explainee, pixels: Tensor, form: str
) -> None:
    explainer = explainer_of(tiny_explainee, form=form)
    with torch.no_grad():
        expected = explainer(tiny_explainee.normalise(pixels))[1]
    found = finetune(explainer, pixels, LOSSES, FinetuneConfig(steps=4, score_every=1))
    torch.testing.assert_close(found.start, expected, rtol=0, atol=1e-6)
    assert (found.score <= found.start_score).all()
    assert (found.step[found.score < found.start_score] > 0).all()
    leap = FinetuneConfig(steps=2, score_every=1, learning_rate=1e4, select="pos")
    awful = finetune(explainer, pixels, LTXConfig(evidence=False, area=1.0), leap)
    worse = awful.step == 0
    assert worse.any()
    assert torch.equal(awful.mask[worse], awful.start[worse])


def test_each_image_may_be_explained_for_a_class_of_its_own(tiny_explainee: Explainee, pixels: Tensor) -> None:
    explainer = explainer_of(tiny_explainee)
    config = FinetuneConfig(steps=10, learning_rate=0.05)
    twice = pixels[:1].repeat(2, 1, 1, 1)
    found = finetune(explainer, twice, LOSSES, config, target=torch.tensor([1, 3]))
    assert found.target.tolist() == [1, 3]
    assert (found.mask[0] - found.mask[1]).abs().max() > 1e-3
    predicted = finetune(explainer, pixels[:1], LOSSES, config, target=torch.tensor([-1]))
    with torch.no_grad():
        assert predicted.target == tiny_explainee.model(tiny_explainee.normalise(pixels[:1])).argmax(1)


@pytest.mark.parametrize(("target", "words"), [([0, 5], "no class 5"), ([0], "2 images have one target each")])
@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}])
def test_a_class_that_is_not_there_is_refused(
    tiny_explainee: Explainee, pixels: Tensor, target: list[int], words: str, settings: dict[str, Any]
) -> None:
    explainer = explainer_of(tiny_explainee, class_conditional=True)
    with pytest.raises(UsageError, match=words):
        finetune(explainer, pixels[:2], LOSSES, FinetuneConfig(steps=1, **settings), target=torch.tensor(target))


def test_progress_ends_with_the_steps(tiny_explainee: Explainee, pixels: Tensor) -> None:
    told: list[int] = []
    config = FinetuneConfig(steps=4, score_every=4, group=2)
    finetune(explainer_of(tiny_explainee), pixels, LOSSES, config, on_step=told.append)
    assert told == [2 * step // 5 for step in (1, 2, 3, 4)] + [(8 + 2 * step) // 5 for step in (1, 2, 3, 4)] + [
        (16 + step) // 5 for step in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize("group", [1, 2, 3])
def test_an_image_gets_the_same_in_any_place_and_memory_format(
    tiny_explainee: Explainee, pixels: Tensor, group: int
) -> None:
    explainer = explainer_of(tiny_explainee, form="own")
    config = FinetuneConfig(steps=3, score_every=1, group=group)
    found = finetune(explainer, pixels, LOSSES, config)
    turned = finetune(explainer, pixels.flip(0).contiguous(memory_format=torch.channels_last), LOSSES, config)
    assert torch.equal(found.mask, turned.mask.flip(0))
    assert torch.equal(found.step, turned.step.flip(0))


@pytest.mark.parametrize("select", ["loss", "pos"])
def test_another_form_of_the_classifier_may_be_asked(tiny_explainee: Explainee, pixels: Tensor, select: Any) -> None:
    explainer = explainer_of(tiny_explainee)
    folded = fast_for_input_gradients(tiny_explainee).model
    calls = 0

    def count(module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal calls
        calls += len(inputs[0])

    folded.register_forward_hook(count)
    config = FinetuneConfig(steps=3, score_every=1, select=select)
    plain = finetune(explainer, pixels[:4], LOSSES, config)
    fast = finetune(explainer, pixels[:4], LOSSES, config, classifier=folded)
    torch.testing.assert_close(fast.mask, plain.mask, rtol=0, atol=1e-4)
    assert calls == 4 * (fast.forwards - 1)  # all but the first look, which makes the mask too


def test_what_it_cost_is_counted(tiny_explainee: Explainee, pixels: Tensor) -> None:
    explainer = explainer_of(tiny_explainee)
    calls = 0

    def count(module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal calls
        calls += len(inputs[0])

    handle = tiny_explainee.model.register_forward_hook(count)
    found = finetune(explainer, pixels, LOSSES, FinetuneConfig(steps=6, score_every=3))
    handle.remove()
    assert calls == found.forwards * 8  # two groups of four
    assert found.forwards == 1 + 6 + 3 * 2  # the first look; one term a step; both at steps 0, 3 and 6
    assert found.backwards == 6


def test_the_explainer_is_left_as_found(tiny_explainee: Explainee, pixels: Tensor) -> None:
    explainer = explainer_of(tiny_explainee, form="own").train()
    before = fingerprint(explainer)
    flags = [parameter.requires_grad for parameter in explainer.parameters()]
    finetune(explainer, pixels, LOSSES, FinetuneConfig(steps=2))
    assert fingerprint(explainer) == before
    assert explainer.training
    assert [parameter.requires_grad for parameter in explainer.parameters()] == flags
    assert all(parameter.grad is None for parameter in explainer.parameters())


def test_a_loss_that_is_not_finite_names_the_image(tiny_explainee: Explainee, pixels: Tensor) -> None:
    pixels[3, 0, 4, 4] = float("nan")
    with pytest.raises(ModelError, match=r"step 0: the preserve loss of image 3"):
        finetune(explainer_of(tiny_explainee), pixels, LOSSES)


@pytest.mark.parametrize("select", ["loss", "pos"])
def test_a_gradient_that_is_not_finite_names_the_image(
    tiny_explainee: Explainee, pixels: Tensor, monkeypatch: pytest.MonkeyPatch, select: Any
) -> None:
    losses = finetune_module.total_loss

    def jagged(*arguments: Any) -> Any:
        found = losses(*arguments)
        for values in found.terms.values():
            kink = values[1] - values[1].detach()
            values[1] = values[1] + kink.square().sqrt()  # zero, of infinite slope
        return found

    monkeypatch.setattr(finetune_module, "total_loss", jagged)
    with pytest.raises(ModelError, match=r"step 0: the gradient of image 1 of the batch is not finite"):
        finetune(explainer_of(tiny_explainee), pixels, LOSSES, FinetuneConfig(steps=1, select=select))


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_the_last_blocks_of_a_transformer_are_tuned_for_each_image(vit: Explainee, large: Tensor, blocks: int) -> None:
    explainer = explainer_of(vit, form="own")
    config = FinetuneConfig(steps=3, score_every=1, blocks=blocks, learning_rate=3e-3)
    together = finetune(explainer, large, LOSSES, config)
    assert (together.mask[2] - together.start[2]).abs().max() > 1e-4
    alone = finetune(explainer, large[2:3], LOSSES, config)
    assert torch.equal(alone.mask[0], together.mask[2])
    normalised = vit.normalise(large)
    with torch.no_grad():
        head, _ = head_of(explainer, explainer.predict(normalised), large, blocks)
    own = sum(value.numel() for value in head.parameters())
    network: Any = explainer.network
    per_block = sum(value.numel() for value in network.backbone.blocks[0].parameters())
    assert own == sum(value.numel() for value in network.read.parameters()) + blocks * per_block


def test_blocks_that_are_not_there_are_refused(vit: Explainee, tiny_explainee: Explainee, large: Tensor) -> None:
    config = FinetuneConfig(steps=1, blocks=4)
    with pytest.raises(ModelError, match="no 4 transformer blocks"):
        finetune(explainer_of(vit, form="own"), large, LOSSES, config)
    with pytest.raises(ModelError, match="a decoder has no blocks"):
        finetune(explainer_of(vit), large, LOSSES, config)


@pytest.mark.parametrize("criterion", ["pos", "insertion-deletion"])
def test_masks_are_scored_as_by_a_naive_loop(tiny_explainee: Explainee, pixels: Tensor, criterion: Any) -> None:
    rng = np.random.default_rng(5)
    mask = torch.from_numpy(rng.random((5, 1, 32, 32), dtype=np.float32))
    target = torch.tensor([0, 4, 2, 2, 1])
    baseline = torch.full((1, 3, 1, 1), 0.25)
    found, forwards = score_masks(tiny_explainee, pixels, mask, target, baseline, criterion)
    calls = 0
    for index in range(5):
        ranked = sorted(np.ndindex(32, 32), key=lambda place: -float(mask[index, 0][place]))
        removal = insertion = 0.0
        for tenth in range(1, 10):
            first = ranked[: round(1024 * tenth / 10)]
            removed = pixels[index].clone()
            inserted = torch.full_like(removed, 0.25)
            for y, x in first:
                removed[:, y, x] = 0.25
                inserted[:, y, x] = pixels[index][:, y, x]
            with torch.no_grad():
                answers = [tiny_explainee.model(tiny_explainee.normalise(x[None])) for x in (removed, inserted)]
            removal += float(answers[0].softmax(1)[0, target[index]]) / 9
            insertion += float(answers[1].softmax(1)[0, target[index]]) / 9
        calls += 9 if criterion == "pos" else 18
        expected = removal if criterion == "pos" else removal - insertion
        assert float(found[index]) == pytest.approx(expected, abs=1e-5)
    assert forwards * 5 == calls


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"tune": "all"},
        {"precision": "fp8"},
        {"select": "label"},
        {"tune": "mask", "blocks": 1},
        {"clip": 0},
        {"score_every": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        FinetuneConfig(**settings)
