"""Per-image fine-tuning (Barkan et al. 2023, second stage): from the pretrained explainer, a few steps for each image
alone; many images at once.

Every image has its own copy of what is trained, stacked along the first axis and run by `torch.vmap`; what is frozen is
computed once and shared. Nothing mixes the images, and groups always have the same size, so that each gets what it
would get alone, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ...errors import ModelError, UsageError
from ..attention import AttentionTap
from ..explainee import Explainee, guest
from ..perturb import branches_of, by_branch, make_baseline
from ..representation import checked_target, classes_to_explain
from .config import LTXConfig
from .heads import MaskLogits, head_of, is_one_convolution
from .losses import total_loss
from .model import LTXExplainer, Predicted
from .selection import CRITERIA, Criterion, score_masks

__all__ = ["TUNED", "FineTuned", "FinetuneConfig", "Tuned", "finetune"]

Tuned = Literal["head", "mask"]
TUNED: tuple[Tuned, ...] = get_args(Tuned)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How images are fine-tuned.

    Attributes:
        steps: updates per image.
        tune: what each image has its own copy of: ``"head"``, the decoder of the shared form, or the read-out and the
            last blocks of an own backbone; or ``"mask"``, the mask's own logits.
        blocks: of a transformer's own backbone, how many of the last blocks belong to the head.
        learning_rate: None takes 3e-3 for a head, 1e-2 for one that is a single convolution, the read-out of a
            convolutional backbone, and 0.1 for the logits of a mask.
        select: what the best step is chosen by, never by a label: ``"loss"``, the weighted losses of the mask as it is
            given away, ``"pos"``, the positive perturbation curve, or ``"insertion-deletion"``.
        score_every: steps between two masks that may be chosen; the first and the last always are.
        take_turns: of the preservation and the complement term one each step, in turn, for half the cost.
        clip: largest norm of an image's gradient.
        precision: ``"bf16"`` runs the classifier in autocast, faster where the processor has it.
        group: images that are computed together, always so many: the last ones are filled up. In batches of different
            sizes libraries round differently, and past a kink of the classifier the last digit of a mask grows to a
            tenth within a few steps; so an image gets the same to the last bit whatever it is tuned beside. 0 takes 4
            on a CPU, 1 there with bf16, and 16 elsewhere.
    """

    steps: int = 25
    tune: Tuned = "head"
    blocks: int = 0
    learning_rate: float | None = None
    select: Criterion = "loss"
    score_every: int = 5
    take_turns: bool = True
    clip: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    group: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise UsageError(f"unknown precision '{self.precision}'; there are: fp32, bf16")
        if self.tune not in TUNED:
            raise UsageError(f"unknown part to tune '{self.tune}'; there are: {', '.join(TUNED)}")
        if self.select not in CRITERIA:
            raise UsageError(f"unknown criterion '{self.select}'; there are: {', '.join(CRITERIA)}")
        if min(self.steps, self.score_every) < 1 or self.blocks < 0:
            raise UsageError("steps and the steps between two scores are at least 1, and blocks are not negative")
        if self.group < 0:
            raise UsageError("the images of a group are at least 1, or 0 for the default")
        if self.tune == "mask" and self.blocks:
            raise UsageError("blocks belong to a head; leave out one of the two")
        if self.clip <= 0 or (self.learning_rate is not None and self.learning_rate <= 0):
            raise UsageError("clip and learning rate are positive")

    def group_of(self, device: torch.device) -> int:
        """Images that are computed together, the default filled in."""
        if self.group:
            return self.group
        if device.type != "cpu":
            return 16
        return 1 if self.precision == "bf16" else 4

    def rate_of(self, head: nn.Module) -> float:
        """The learning rate, the default filled in."""
        if self.learning_rate:
            return self.learning_rate
        if isinstance(head, MaskLogits):
            return 0.1
        return 1e-2 if is_one_convolution(head) else 3e-3


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning found for a batch.

    Attributes:
        logits: (N, K).
        target: the classes explained, int64 (N,).
        start: masks of the pretrained explainer as it gives them, (N, 1, H, W) in [0, 1]: of the class explained where
            it answers for any, else of the predicted one.
        mask: the best of each image, of the same shape.
        step: the step at which it was found, int64 (N,); 0 is what the pretrained explainer selects.
        start_score: what was minimised to choose, at the start, (N,).
        score: at the best step, (N,).
        forwards: of the classifier, per image.
        backwards: through the classifier, per image.
    """

    logits: Tensor
    target: Tensor
    start: Tensor
    mask: Tensor
    step: Tensor
    start_score: Tensor
    score: Tensor
    forwards: int
    backwards: int


def finetune(
    explainer: LTXExplainer,
    pixels: Tensor,
    losses: LTXConfig,
    config: FinetuneConfig = FinetuneConfig(),
    *,
    target: Tensor | None = None,
    classifier: nn.Module | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> FineTuned:
    """Fine-tune a pretrained explainer for each image of a batch.

    Args:
        explainer: pretrained; left as found.
        pixels: (N, 3, H, W) in [0, 1].
        losses: weights and baseline of the losses, as in the pretraining.
        config: settings.
        target: the class to explain of each image, int64 (N,), negative for the predicted one. Any class may be asked
            for, whatever the explainer was trained on.
        classifier: what is asked about masked images, equal to the explainee's model but faster, such as that of
            `fast_for_input_gradients`; None takes the explainee's own.
        on_step: told the number of updates done.

    Raises:
        ModelError: a loss is not finite; the message names the step, the term and the image.
        UsageError: the model has no such class, or there is not one for each image.
    """
    if target is not None:
        classes = len(explainer.explainee.class_names)
        target = checked_target(target, len(pixels), classes).to(pixels.device)
    judge = explainer.explainee if classifier is None else replace(explainer.explainee, model=classifier)
    with guest(explainer), guest(judge.model):
        size, count, found = config.group_of(pixels.device), len(pixels), []
        for start in range(0, count, size):
            places = torch.arange(start, start + size, device=pixels.device).clamp_max(count - 1)
            asked = None if target is None else target[places]
            run = _Run(explainer, pixels[places].contiguous(), losses, config, asked, judge, start)
            told = partial(_tell, on_step, start * config.steps, min(size, count - start), count)
            found.append(run.go(told))
        return _together(found, count)


def _tell(on_step: Callable[[int], None], done: int, images: int, count: int, step: int) -> None:
    """Updates of the whole batch, of which so many are done for the images before these."""
    on_step((done + images * step) // count)


def _together(parts: Sequence[FineTuned], count: int) -> FineTuned:
    """The images of all parts as one batch, without those that only filled the last part."""
    tensors = {
        field.name: torch.cat([getattr(part, field.name) for part in parts])[:count]
        for field in fields(FineTuned)
        if field.name not in ("forwards", "backwards")
    }
    return FineTuned(**tensors, forwards=parts[0].forwards, backwards=parts[0].backwards)


class _Run:
    """One group on its way; `first` is the place of its first image in the batch."""

    def __init__(
        self,
        explainer: LTXExplainer,
        pixels: Tensor,
        losses: LTXConfig,
        config: FinetuneConfig,
        target: Tensor | None,
        judge: Explainee,
        first: int,
    ) -> None:
        self.explainer, self.pixels, self.losses, self.config = explainer, pixels, losses, config
        self.judge, self.first = judge, first
        self.baseline = make_baseline(pixels, losses.baseline, explainer.explainee.image_spec.mean)
        with torch.no_grad():
            asked = None if target is None else target[:, None]
            self.found = explainer.predict(explainer.explainee.normalise(pixels), asked)
            self.target = classes_to_explain(self.found.logits, target)
            self.head: nn.Module = MaskLogits()
            self.features = self.found.maps
            if config.tune == "mask":
                self.parameters = {"logits": self.found.selection.logit(1e-4)}
            else:
                self.head, self.features = head_of(explainer, self.found, pixels, config.blocks)
                self.parameters = {
                    name: value.detach()[None].repeat(len(pixels), *[1] * value.ndim)
                    for name, value in self.head.named_parameters()
                }
        for value in self.parameters.values():
            value.requires_grad_(True)
        self.forwards = 1
        self.backwards = 0
        self.turn = 0  # of the two terms that take turns

    def go(self, on_step: Callable[[int], None]) -> FineTuned:
        config = self.config
        optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=config.rate_of(self.head), weight_decay=self.losses.weight_decay
        )
        with torch.no_grad():
            start = self.explainer.mask(self.found)
        best: Tensor | None = None
        start_score = score = step_of = torch.empty(0)
        for step in range(config.steps + 1):
            last = step == config.steps
            with torch.set_grad_enabled(not last):
                selection = self._select()
            if last or step % config.score_every == 0:
                mask = self._mask(selection.detach())
                value = self._score(mask, step)
                if best is None:
                    best = mask
                    score = start_score = value
                    step_of = torch.zeros(len(value), dtype=torch.int64, device=value.device)
                else:
                    better = value < score
                    best = torch.where(better[:, None, None, None], mask, best)
                    score = torch.where(better, value, score)
                    step_of = torch.where(better, step, step_of)
            if last:
                break
            self._update(optimizer, self._losses(selection, step), step)
            on_step(step + 1)
        assert best is not None, "the first step is scored"
        return FineTuned(
            self.found.logits, self.target, start, best, step_of, start_score, score, self.forwards, self.backwards
        )

    def _select(self) -> Tensor:
        """The selections (N, 1, h, w) of all images, each by its own parameters."""

        def one(parameters: dict[str, Tensor], features: list[Tensor], target: Tensor) -> Tensor:
            inputs = ([value[None] for value in features], target[None, None])
            found: Tensor = torch.func.functional_call(self.head, parameters, inputs)
            return found[0]

        with AttentionTap():  # attention spelled out: the fused operator knows no vmap
            return torch.vmap(one)(self.parameters, self.features, self.target)

    def _losses(self, selection: Tensor, step: int) -> dict[str, Tensor]:
        """The weighted terms of this step, (N,) each; as in the pretraining, of the selection without evidence.

        Where preservation and complement take turns, a step has one of them, twice as heavy.
        """
        turns = self.config.take_turns and self.losses.preserve > 0 and self.losses.complement > 0
        keep, remove = not turns or self.turn == 0, not turns or self.turn == 1
        self.turn = 1 - self.turn
        terms, views = self._terms(self.explainer.upsample(selection), step, keep, remove)
        self.backwards += views
        return {
            name: value * (2 if turns and name in ("preserve", "complement") else 1) for name, value in terms.items()
        }

    def _score(self, mask: Tensor, step: int) -> Tensor:
        """What is minimised to choose the step, (N,), of the mask as it is given away."""
        if self.config.select == "loss":
            with torch.no_grad():
                return torch.stack(list(self._terms(mask, step)[0].values())).sum(0)
        value, forwards = score_masks(self.judge, self.pixels, mask, self.target, self.baseline, self.config.select)
        self.forwards += forwards
        return value

    def _terms(self, mask: Tensor, step: int, keep: bool = True, remove: bool = True) -> tuple[dict[str, Tensor], int]:
        """The weighted terms of masks (N, 1, H, W), (N,) each, and how many views of every image they took."""
        losses = self.losses
        keep, remove = keep and losses.preserve > 0, remove and losses.complement > 0
        branches, views = branches_of(keep, remove), keep + remove
        half = self.config.precision == "bf16"
        precision = torch.bfloat16 if half else mask.dtype
        with torch.autocast(self.pixels.device.type, torch.bfloat16, enabled=half):
            shown = self.judge.perturbed(self.pixels, mask, self.baseline, branches, precision)
            kept, removed = by_branch(branches, self.judge.model(shown).float())
        self.forwards += views
        terms = {}
        for name, values in total_loss(kept, removed, mask, self.target, losses).terms.items():
            if broken := (~torch.isfinite(values)).nonzero().flatten().tolist():
                raise ModelError(
                    f"fine-tuning stopped at step {step}: the {name} loss of image {self.first + broken[0]} of the "
                    "batch is not finite; check the image, or lower the learning rate"
                )
            terms[name] = getattr(losses, name) * values
        return terms, views

    def _update(self, optimizer: torch.optim.Optimizer, terms: dict[str, Tensor], step: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        gradients = [value.grad for value in self.parameters.values() if value.grad is not None]
        norm = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
        if broken := (~torch.isfinite(norm)).nonzero().flatten().tolist():
            raise ModelError(
                f"fine-tuning stopped at step {step}: the gradient of image {self.first + broken[0]} of the batch is "
                "not finite; check the image, or lower the learning rate"
            )
        scale = (self.config.clip / norm.clamp_min(1e-12)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(scale.reshape(-1, *[1] * (gradient.ndim - 1)))
        optimizer.step()

    def _mask(self, selection: Tensor) -> Tensor:
        """The mask as the explainer gives it, weighed by the evidence of the class where the explainer knows it."""
        found = Predicted(self.found.logits, self.target[:, None], selection, self.found.maps)
        return self.explainer.mask(found)
