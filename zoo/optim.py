"""Parameter groups, the rate over a run, and the averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from zoo.config import OptimSection
from zoo.errors import ZooError, nearest

BACKBONE = ".backbone."  # of the model, or of one that it is made of


def parameter_groups(model: nn.Module, section: OptimSection) -> list[dict[str, Any]]:
    """The trainable parameters in groups by rate (backbone or not) and by decay.

    DETR decays everything (``decay_norms``); otherwise biases and all other parameters of one
    dimension are left out. Each group holds ``base_lr``, the rate at the schedule's 1.0, times
    what ``rates`` has for its beginning of the name (with ``*`` for anything, as in a shell:
    ``*.sampling_offsets.``). Raises :class:`ZooError` where nothing is trainable, and where a key
    of ``rates`` is no parameter's.
    """
    names = [name for name, _ in model.named_parameters()]
    for start in section.rates:
        if not any(_begins(name, start) for name in names):
            raise ZooError(
                f"optim.rates has '{start}', and no parameter of the model begins so; "
                f"{nearest(start, names)}"
            )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = section.backbone_lr if BACKBONE in f".{name}" else section.lr
        lr *= math.prod(r for start, r in section.rates.items() if _begins(name, start))
        decays = section.decay_norms or parameter.ndim > 1
        groups.setdefault((lr, section.weight_decay if decays else 0.0), []).append(parameter)
    if not groups:
        raise ZooError("the model has no trainable parameter; unfreeze some")
    return [
        {"params": params, "lr": lr, "base_lr": lr, "weight_decay": decay}
        for (lr, decay), params in groups.items()
    ]


def _begins(name: str, start: str) -> bool:
    return fnmatchcase(name, f"{start}*")


def build_optimizer(model: nn.Module, section: OptimSection) -> AdamW:
    """AdamW over :func:`parameter_groups`; its fused form where every parameter allows it."""
    groups = parameter_groups(model, section)
    params = [p for g in groups for p in g["params"]]
    fused = all(p.is_floating_point() and p.device.type in ("cuda", "cpu") for p in params)
    return AdamW(groups, betas=section.betas, fused=fused)


def rate_factor(section: OptimSection, step: int, progress: float) -> float:
    """What the base rates are multiplied by at ``step`` and ``progress`` (0..1 of the run).

    ``step`` counts for the linear warm-up only; everything after it depends on the progress, so
    that a schedule means the same for a run that is bounded by epochs or by minutes.
    """
    warm = min(1.0, (step + 1) / (section.warmup_steps + 1))
    progress = min(max(progress, 0.0), 1.0)
    if section.schedule == "cosine":
        half = 0.5 * (1.0 + math.cos(math.pi * progress))
        return warm * (section.final + (1.0 - section.final) * half)
    passed = sum(progress >= drop - 1e-9 for drop in section.drops)
    return warm * section.drop_factor**passed


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiply every group's base rate by ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


class AveragedModel:
    """An exponential moving average of a model's parameters, with its buffers copied.

    The decay starts small and rises towards ``decay`` (as ``decay * (1 - exp(-step / 200))``),
    so that a short run does not publish its random start.
    """

    ramp = 200.0

    def __init__(self, model: nn.Module, decay: float) -> None:
        import copy

        self.decay = decay
        self.steps = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model``."""
        self.steps += 1
        decay = self.decay * (1.0 - math.exp(-self.steps / self.ramp))
        mine, theirs = _floats(self.model.parameters()), _floats(model.parameters())
        torch._foreach_lerp_(mine, theirs, 1.0 - decay)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)


def _floats(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t.detach() for t in tensors]
