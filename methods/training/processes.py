"""Where a training computes: in this process, or in several with one device each through Lightning Fabric."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...errors import UsageError, require
from .config import Precision

__all__ = ["FabricProcesses", "OneProcess", "open_processes"]


class OneProcess:
    """One process with one device; fp32, or bf16 in autocast.

    Attributes:
        device: where the models and images go.
        rank: number of this process, from 0.
        count: number of processes.
    """

    rank = 0
    count = 1

    def __init__(self, device: torch.device | str, precision: Precision = "fp32") -> None:
        self.device = torch.device(device)
        self._precision = precision

    def prepare(self, network: nn.Module) -> None:
        """Make the network's batch statistics those of all processes."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of forward passes."""
        return torch.autocast(self.device.type, torch.bfloat16) if self._precision == "bf16" else nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, on every process."""
        return values

    def first(self, value: float) -> float:
        """The first process's value, on every process."""
        return value

    def backward(self, loss: Tensor, network: nn.Module) -> None:
        """Leave the gradients of the processes' summed losses in the network."""
        loss.backward()  # type: ignore[no-untyped-call]

    def clip(self, network: nn.Module, optimizer: torch.optim.Optimizer, largest: float) -> float:
        """Bound the norm of the gradients; returns what it was."""
        return float(nn.utils.clip_grad_norm_(network.parameters(), largest))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take an optimiser step."""
        optimizer.step()

    def skips(self, norm: float) -> bool:
        """The step is left out because scaled gradients were too large for fp16, and the next scale is smaller."""
        return False

    def state(self) -> dict[str, Any]:
        """What a resumed training needs, such as the scale of the gradients."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


class FabricProcesses(OneProcess):
    """The processes of a launched ``lightning_fabric.Fabric``.

    Gradients are summed here rather than by DistributedDataParallel, which expects every parameter to take part in
    every step; an own backbone's head does not.
    """

    def __init__(self, fabric: Any) -> None:
        super().__init__(fabric.device)
        self._fabric = fabric
        self._plugin = fabric.strategy.precision
        self.rank = fabric.global_rank
        self.count = fabric.world_size

    def prepare(self, network: nn.Module) -> None:
        """Replace batch norm, whose statistics would be those of this process's images."""
        if self.count > 1:
            _share_batch_norm(network)

    def autocast(self) -> AbstractContextManager[Any]:
        """Fabric's."""
        context: AbstractContextManager[Any] = self._fabric.autocast()
        return context

    def sum(self, values: Tensor) -> Tensor:
        """All-reduce."""
        if self.count == 1:
            return values
        total: Tensor = self._fabric.all_reduce(values, reduce_op="sum")
        return total

    def first(self, value: float) -> float:
        """Broadcast."""
        return float(self._fabric.broadcast(value))

    def backward(self, loss: Tensor, network: nn.Module) -> None:
        """Backward of the scaled loss, then one all-reduce of all gradients."""
        self._fabric.backward(loss)
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        if self.count > 1 and gradients:
            total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
            parts = torch.split(total, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def clip(self, network: nn.Module, optimizer: torch.optim.Optimizer, largest: float) -> float:
        """Of the gradients without their scale."""
        self._plugin.unscale_gradients(optimizer)
        return super().clip(network, optimizer, largest)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave out a step whose scaled gradients overflowed."""
        self._plugin.optimizer_step(optimizer)

    def skips(self, norm: float) -> bool:
        """With fp16, until the scale has fallen below 1."""
        scaler = getattr(self._plugin, "scaler", None)
        return scaler is not None and not norm < float("inf") and scaler.get_scale() > 1

    def state(self) -> dict[str, Any]:
        """The scale, with fp16."""
        state: dict[str, Any] = self._plugin.state_dict()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """The scale, with fp16."""
        self._plugin.load_state_dict(state)


def open_processes(
    precision: Precision, device: torch.device | str, devices: int = 1, nodes: int = 1
) -> OneProcess | FabricProcesses:
    """This process, or as many as there are devices; each runs the program from its beginning to this call.

    Args:
        precision: of the training.
        device: ``"cpu"`` or ``"cuda"``; with several devices, which kind.
        devices: processes on this machine, one device each.
        nodes: machines.

    Raises:
        UsageError: fp16 without a GPU, or fewer GPUs than devices.
        MissingDependencyError: several devices or fp16, and Lightning Fabric is not installed.
    """
    kind = torch.device(device).type
    if precision == "fp16" and kind != "cuda":
        raise UsageError(f"--precision fp16 needs a GPU and the device is '{device}'; take bf16 or fp32")
    if devices == nodes == 1 and precision != "fp16":
        return OneProcess(device, precision)
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise UsageError(f"--devices {devices}: there are {torch.cuda.device_count()} GPUs")
    purpose = "--precision fp16" if devices == nodes == 1 else "training on several devices"
    lightning = require("lightning_fabric", extra="train", purpose=purpose)
    index = torch.device(device).index
    fabric = lightning.Fabric(
        accelerator=kind,
        devices=[index] if index is not None and devices == 1 else devices,
        num_nodes=nodes,
        strategy="auto" if devices == nodes == 1 else "ddp",
        precision={"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[precision],
    )
    fabric.launch()
    return FabricProcesses(fabric)


class _Sum(torch.autograd.Function):
    """Sum over the processes; every process's loss depends on the sum, so the gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm with the mean and variance over the images of all processes, on any device."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same shape."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        ones = values.new_full((1,), values.numel() / values.shape[1])
        sums = _Sum.apply(torch.cat([values.sum((0, 2, 3)), ones]))  # type: ignore[no-untyped-call]
        count = sums[-1].detach()
        centred = values - (mean := sums[:-1] / count).view(1, -1, 1, 1)
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count  # type: ignore[no-untyped-call]
        self._keep(mean.detach(), variance.detach() * count / (count - 1))
        scale = (self.weight / (variance + self.eps).sqrt()).view(1, -1, 1, 1)
        normalised: Tensor = centred * scale + self.bias.view(1, -1, 1, 1)
        return normalised.to(x.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def _share_batch_norm(module: nn.Module) -> None:
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = _SharedBatchNorm  # the same parameters and buffers, another forward
