"""One step of a training: losses, gradients, and nothing changed where they are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ...errors import ModelError
from ..perturb import Baseline, make_baseline
from .config import TrainingConfig
from .explainer import Batch, TrainedExplainer, TrainedMethod
from .processes import OneProcess
from .targets import generator_of, mix_with_targets

__all__ = ["take_step"]

_AROUND: tuple[Baseline, ...] = ("mean", "black", "blur")  # a part of an image that is shown alone

_UNKNOWN = 0.3  # of the steps, before an explainer for any class finds objects well enough to paste them


def take_step(
    explainer: TrainedExplainer,
    method: TrainedMethod,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    config: TrainingConfig,
    processes: OneProcess,
    step: int,
    names: Callable[[int], Sequence[str]],
) -> dict[str, float]:
    """Update the network once.

    Args:
        explainer: whose network is trained.
        method: whose losses are taken.
        optimizer: of the network's parameters.
        pixels: this process's images, (N, 3, H, W) in [0, 1]: of all images every `processes.count`-th.
        config: settings.
        processes: what the sums go over.
        step: from 0, for messages.
        names: from the number of images in the step to their names.

    Returns:
        Each loss that has a weight, before weighting: its mean over the images of all processes.

    Raises:
        ModelError: a loss or a gradient is not finite. The network is as it was.
    """
    network = explainer.network
    batch = _asked(explainer, method, pixels, config, processes, step)
    buffers = [buffer.clone() for buffer in network.buffers()]  # a forward pass moves the batch statistics
    with processes.autocast():
        losses, _ = method.losses(explainer, batch, config)
    count = round(float(processes.sum(torch.tensor(float(len(pixels)), device=pixels.device))))
    values = _of_all_processes(losses.terms, count, processes)
    try:
        _refuse(values, "loss", step, names, partial(_own_fault, explainer, batch, processes, count))
        optimizer.zero_grad(set_to_none=True)
        processes.backward(losses.total * (len(pixels) / count), network)
        norm = processes.clip(network, optimizer, config.clip)
        if not math.isfinite(norm) and not processes.skips(norm):
            _refuse(_gradients(explainer, method, batch, config, processes, count), "gradient", step, names)
            raise ModelError(_message(step, "the gradient of the network is not finite"))
    except ModelError:
        optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)
        raise
    processes.step(optimizer)
    return {name: float(each.mean()) for name, each in values.items()}


def _asked(
    explainer: TrainedExplainer,
    method: TrainedMethod,
    pixels: Tensor,
    config: TrainingConfig,
    processes: OneProcess,
    step: int,
) -> Batch:
    """The images and the class each is explained for: of an explainer for any class images that show several, and once
    it knows objects, also images into which such were pasted.
    """
    explainee, seed = explainer.explainee, step * processes.count + processes.rank
    target = elsewhere = None
    if config.class_conditional:
        objects: Tensor | None = None
        if config.start or step >= _UNKNOWN * config.steps:
            explainer.network.eval()  # this pass is not what its batch statistics are about
            with torch.no_grad(), processes.autocast():
                objects = method.objects(explainer, explainee.normalise(pixels)).float()
            explainer.network.train()

        def predict(images: Tensor) -> Tensor:
            with processes.autocast():
                logits: Tensor = explainee.model(explainee.normalise(images))
            return logits.float()

        backgrounds = [make_baseline(pixels, kind, explainee.image_spec.mean) for kind in _AROUND]
        mixed = mix_with_targets(pixels, predict, generator_of(config.seed, seed), objects, backgrounds)
        pixels, target, elsewhere = mixed
    baseline = make_baseline(pixels, config.baseline, explainee.image_spec.mean)
    return Batch(pixels, baseline, target, elsewhere, seed)


def _gradients(
    explainer: TrainedExplainer,
    method: TrainedMethod,
    batch: Batch,
    config: TrainingConfig,
    processes: OneProcess,
    count: int,
) -> dict[str, Tensor]:
    """Per term and image the sum of the gradient with respect to what the term looks at, which is not finite where a
    part of it is not.
    """
    with processes.autocast():
        losses, looked_at = method.losses(explainer, batch, config)
    sums = {}
    for name, values in losses.terms.items():
        (gradient,) = torch.autograd.grad(values.sum(), looked_at[name], retain_graph=True)
        sums[name] = gradient.flatten(1).double().sum(1)
    return _of_all_processes(sums, count, processes)


def _of_all_processes(terms: Mapping[str, Tensor], count: int, processes: OneProcess) -> dict[str, Tensor]:
    """From numbers for this process's images those for all images of the step, (count,)."""
    if processes.count == 1:
        return {name: values.detach() for name, values in terms.items()}
    whole = {}
    for name, values in terms.items():
        places = values.new_zeros(count)
        places[processes.rank :: processes.count] = values.detach()
        whole[name] = processes.sum(places)
    return whole


@torch.no_grad()
def _own_fault(explainer: TrainedExplainer, batch: Batch, processes: OneProcess, count: int) -> list[int]:
    """The images of which the classifier itself makes no finite logits. Through the batch statistics of the network one
    of them is enough to make the losses of all others not finite either.
    """
    explainee = explainer.explainee
    with processes.autocast():
        logits = explainee.model(explainee.normalise(batch.pixels))
    finite = {"logits": torch.isfinite(logits).all(1).float()}
    return (_of_all_processes(finite, count, processes)["logits"] == 0).nonzero().flatten().tolist()


def _refuse(
    terms: Mapping[str, Tensor],
    what: str,
    step: int,
    names: Callable[[int], Sequence[str]],
    own_fault: Callable[[], list[int]] = list,
) -> None:
    for term, values in terms.items():
        broken = (~torch.isfinite(values)).nonzero().flatten().tolist()
        if broken:
            broken = own_fault() or broken
            known = names(len(values))
            first = ", ".join(known[place] for place in broken[:3])
            more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
            subject = f"the {term} loss" if what == "loss" else f"the gradient of the {term} loss"
            raise ModelError(_message(step, f"{subject} is not finite for {first}{more}"))


def _message(step: int, problem: str) -> str:
    return (
        f"training stopped at step {step + 1}: {problem}; lower --learning-rate, or check these images and the weights"
    )
