"""Train the classifiers of planted scenes whose weights are in evaluate/weights.

    python examples/train_scenes.py resnet        about 15 minutes on two cores
    python examples/train_scenes.py vit           about 30 minutes; learns from the labels and from the ResNet
    python examples/train_scenes.py context       about 5 minutes; from the ResNet on, with textures that tell the class

A curriculum makes it short: the scenes start as digits on a plain colour, and the photographs and distractors fade in
over the first 40 % of the run. Every scene is new.

The labels and the ResNet's probabilities alone leave the transformer at chance for a very long time: nothing tells it
where to look. So its patch tokens also learn to predict the ResNet's feature map, place by place; the weight of that
term falls to 0 over the run.

In a third of the context scenes the digit is hidden, in another third the texture: the classifier then knows a class by
either.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from saccade.evaluate.scenes import SceneBatch, SceneConfig, SceneSource
from saccade.evaluate.scenes_models import IMAGE_SPEC, ScenesResNet, ScenesViT, resnet
from saccade.evaluate.weights_folder import WEIGHTS
from saccade.methods.attention_tap import AttentionTap
from saccade.methods.perturb import make_baseline, perturb

RECIPES = {
    "resnet": {"steps": 2400, "batch": 96, "rate": 4e-3, "decay": 0.02},
    "vit": {"steps": 3800, "batch": 96, "rate": 1e-3, "decay": 0.05},
    "context": {"steps": 500, "batch": 96, "rate": 2e-3, "decay": 0.02},
}
Item = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
NEAR = 2  # pixels around a digit or a texture that are hidden with it


class Steps(Dataset):  # type: ignore[type-arg]
    """Item ``step`` is the whole batch of that step, so that the clutter can follow the curriculum."""

    def __init__(self, steps: int, batch: int, config: SceneConfig) -> None:
        self.steps, self.batch, self.config = steps, batch, config

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Item:
        clutter = min(1.0, 0.1 + 0.9 * step / (0.4 * self.steps))
        if self.config.variant == "context":  # the network knows digits already
            clutter = 1.0
        source = SceneSource("train", replace(self.config, clutter=clutter))
        made = source.batch(range(step * self.batch, (step + 1) * self.batch))
        return made.images, made.labels, made.evidence, made.context


def normalise(images: Tensor) -> Tensor:
    mean, std = torch.tensor(IMAGE_SPEC.mean), torch.tensor(IMAGE_SPEC.std)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def batches(recipe: dict[str, float], config: SceneConfig) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        Steps(int(recipe["steps"]), int(recipe["batch"]), config), batch_size=None, num_workers=1, prefetch_factor=8
    )
    generator = torch.Generator().manual_seed(config.seed)
    for item in loader:
        images, labels, evidence, context = map(torch.as_tensor, item)
        if config.variant == "context":
            images = hidden(images, (evidence, context), generator)
        yield normalise(images), labels


def hidden(images: Tensor, parts: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    """Blur or paint over one of two parts (N, H, W), or neither, by chance, in images uint8 (N, H, W, 3)."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    which = torch.randint(0, 3, (len(images), 1, 1), generator=generator)
    chosen = (parts[0] & (which == 1)) | (parts[1] & (which == 2))
    gone = F.max_pool2d(chosen[:, None].float(), 2 * NEAR + 1, 1, NEAR)
    blurred = torch.rand((len(images), 1, 1, 1), generator=generator) < 0.5
    mean = make_baseline(pixels, "mean", IMAGE_SPEC.mean).expand_as(pixels)
    baseline = torch.where(blurred, make_baseline(pixels, "blur", IMAGE_SPEC.mean), mean)
    return perturb(pixels, 1 - gone, baseline).permute(0, 2, 3, 1) * 255


class Labels(nn.Module):
    """The loss of a classifier that learns from labels: images, labels and the progress in [0, 1] to loss, logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        logits = self.model(images)
        return F.cross_entropy(logits, labels), logits


class Distillation(nn.Module):
    """The loss of a transformer that learns from labels and a ResNet.

    Cross entropy with the labels, cross entropy with the teacher's probabilities at temperature 2 (Hinton et al.
    2015), and the squared error of the teacher's feature map, each channel divided by its root mean square, as a linear
    layer predicts it from the patch token of the same place.
    """

    temperature = 2.0

    def __init__(self, model: ScenesViT, teacher: ScenesResNet) -> None:
        super().__init__()
        self.model, self.teacher = model, teacher.requires_grad_(False)
        self.to_features = nn.Linear(model.head.in_features, teacher.fc.in_features)

    def forward(self, images: Tensor, labels: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            features = self.teacher.eval().features(images).float()
            soft = (self.teacher.fc(features.mean((2, 3))).float() / self.temperature).softmax(1)
            features = features / features.pow(2).mean((0, 2, 3), keepdim=True).sqrt().clamp_min(1e-3)
        tokens = self.model.tokens(images)
        logits = self.model.head(tokens[:, 0]).float()
        predicted = self.to_features(tokens[:, 1:]).float()
        loss = (
            0.3 * F.cross_entropy(logits, labels)
            + 0.7 * self.temperature**2 * F.cross_entropy(logits / self.temperature, soft)
            + 2 * (1 - progress) * F.mse_loss(predicted, features.flatten(2).transpose(1, 2))
        )
        return loss, logits


def train(model: nn.Module, losses: nn.Module, recipe: dict[str, float], config: SceneConfig) -> nn.Module:
    """Train ``model``, a part of ``losses``; the result is the average of its weights over the last steps."""
    steps = int(recipe["steps"])
    losses = losses.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    learned = [p for p in losses.parameters() if p.requires_grad]
    decayed = [p for p in learned if p.ndim > 1]
    others = [p for p in learned if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe["decay"]}, {"params": others, "weight_decay": 0.0}]
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe["rate"], total_steps=steps, pct_start=0.15)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    for step, (images, labels) in enumerate(track(batches(recipe, config), "training", total=steps)):
        # the tap spells attention out: on a CPU the fused operator's backward takes as long as all the rest
        with torch.autocast("cpu", torch.bfloat16), AttentionTap():
            loss, logits = losses(images, labels, step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        if step % 200 == 199:
            print(
                f"step {step + 1}: loss {loss.item():.3f}, batch accuracy {accuracy_of(logits, labels):.3f}", flush=True
            )
    return average.module.eval()


def accuracy_of(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())


@torch.no_grad()
def accuracy(model: nn.Module, split: str, count: int, config: SceneConfig) -> float:
    source = SceneSource(split, config)  # type: ignore[arg-type]
    right = 0.0
    for start in range(0, count, 100):
        scenes: SceneBatch = source.batch(range(start, start + 100))
        right += accuracy_of(model(normalise(torch.from_numpy(scenes.images))), torch.from_numpy(scenes.labels)) * 100
    return right / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--steps", type=int, help="fewer steps, to try it out")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    recipe = dict(RECIPES[arguments.model])
    if arguments.steps:
        recipe["steps"] = arguments.steps

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    began = time.perf_counter()
    config = SceneConfig(seed=arguments.seed, variant="context" if arguments.model == "context" else "digit")
    if arguments.model == "vit":
        student: ScenesResNet | ScenesViT = ScenesViT()
        losses: nn.Module = Distillation(student, resnet())
    else:
        student = resnet() if arguments.model == "context" else ScenesResNet()
        losses = Labels(student)
    model = train(student, losses, recipe, config)
    minutes = (time.perf_counter() - began) / 60
    held_out = {split: accuracy(model, split, 2000, replace(config, seed=0)) for split in ("val", "test")}
    print(f"trained in {minutes:.1f} min; accuracy: {held_out}")

    arguments.out.mkdir(parents=True, exist_ok=True)
    name = f"scenes_{arguments.model}"
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, arguments.out / f"{name}.safetensors")
    record = {
        "command": f"python examples/train_scenes.py {arguments.model} --seed {arguments.seed}",
        "seed": arguments.seed,
        "recipe": recipe,
        "minutes": round(minutes, 1),
        "accuracy on 2,000 held-out scenes": held_out,
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
    (arguments.out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
