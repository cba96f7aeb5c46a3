"""The two loops: steps of training and one evaluation. Neither knows a model or a domain."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from zoo.errors import NonFiniteError
from zoo.types import Batch, Criterion, Evaluator, Losses, Postprocess


class Step(NamedTuple):
    """One optimizer step. Tensors are on the device: reading them waits for it."""

    losses: Losses
    grad_norm: Tensor
    images: int


def autocast_dtype(device: torch.device, choice: str = "auto") -> torch.dtype | None:
    """The dtype of mixed precision: bfloat16 where asked for or where the hardware has it."""
    if choice == "float32":
        return None
    if choice == "bf16" or has_bfloat16(device):
        return torch.bfloat16
    return None


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is in the hardware (and so faster than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def takes_targets(model: nn.Module) -> bool:
    """Whether the model's forward has a ``targets`` parameter (denoising models do)."""
    return "targets" in inspect.signature(unwrap(model).forward).parameters


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    return getattr(model, "_orig_mod", model)


def train_steps(
    model: nn.Module,
    criterion: Criterion,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    device: torch.device,
    autocast: torch.dtype | None = None,
    max_norm: float = 0.0,
    accumulate: int = 1,
    hold_norms: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Train on ``batches``, ``accumulate`` of them a step, and yield after every step.

    From the step on before which ``hold_norms()`` is first true, batch norms use their statistics
    and keep them, as in evaluation.

    The caller sets rates, logs, saves and stops; it may do so between two steps only. The last
    step of an epoch may have fewer than ``accumulate`` batches. Where a model's forward has a
    parameter ``targets``, it is given the batch's.

    Raises :class:`NonFiniteError` before the weights are touched when a loss or a gradient is not
    finite; it names the first bad tensor and the images of the step.
    """
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    with_targets = takes_targets(model)
    held = False
    for window in _windows(batches, accumulate):
        if not held and hold_norms():
            held = True
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        optimizer.zero_grad(set_to_none=True)
        parts: list[Losses] = []
        outputs: Mapping[str, Any] = {}
        for number, host_batch in enumerate(window, start=1):
            batch = host_batch.to(device)
            inputs: dict[str, Any] = dict(batch.inputs)
            if with_targets:
                inputs["targets"] = batch.targets
            with _sync_only_at_last(model, number == len(window)):
                with torch.autocast(device.type, autocast or torch.bfloat16, bool(autocast)):
                    outputs = model(**inputs)
                losses = criterion(outputs, batch.targets)
                (losses.total / len(window)).backward()
            parts.append(Losses(losses.total.detach(), losses.terms))
        norm = nn.utils.clip_grad_norm_(parameters, max_norm or float("inf"))
        losses = _mean(parts)
        # The step's one wait for the device besides the matcher's.
        if not bool(torch.isfinite(losses.total + norm)):
            raise _diagnose(model, outputs, losses, window)
        optimizer.step()
        yield Step(losses, norm, sum(len(b) for b in window))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    postprocess: Postprocess,
    batches: Iterable[Batch],
    evaluator: Evaluator,
    *,
    device: torch.device,
    autocast: torch.dtype | None = None,
    progress: Callable[[Iterable[Batch]], Iterable[Batch]] = lambda batches: batches,
) -> Mapping[str, float]:
    """Predict every batch and score the predictions; each rank passes its share of batches.

    ``progress`` wraps the batches, for a progress bar. The model's mode is put back at the end.
    """
    was_training = model.training
    model.eval()
    try:
        for host_batch in progress(batches):
            batch = host_batch.to(device)
            with torch.autocast(device.type, autocast or torch.bfloat16, bool(autocast)):
                outputs = model(**batch.inputs)
            evaluator.update(postprocess(outputs, batch.metas), host_batch)
    finally:
        model.train(was_training)
    evaluator.gather()
    return evaluator.compute()


def _windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    iterator = iter(batches)
    while window := list(itertools.islice(iterator, size)):
        yield window


def _sync_only_at_last(model: nn.Module, last: bool) -> Any:
    """Average gradients over ranks once a step, not once a batch."""
    import contextlib

    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()


def _mean(parts: list[Losses]) -> Losses:
    if len(parts) == 1:
        return parts[0]
    total = torch.stack([p.total for p in parts]).mean()
    terms = {k: torch.stack([p.terms[k] for p in parts]).mean() for k in parts[0].terms}
    return Losses(total, terms)


def _diagnose(
    model: nn.Module, outputs: Mapping[str, Any], losses: Losses, window: list[Batch]
) -> NonFiniteError:
    """Name the first tensor that is not finite, in the order of the computation."""

    def outputs_first() -> Iterator[tuple[str, Tensor]]:
        for name, parameter in unwrap(model).named_parameters():
            yield f"parameter {name}", parameter
        for name, value in outputs.items():
            if isinstance(value, Tensor):
                yield f"output {name}", value
        for name, value in losses.terms.items():
            yield f"loss {name}", value
        yield "the total loss", losses.total
        for name, parameter in unwrap(model).named_parameters():
            if parameter.grad is not None:
                yield f"the gradient of {name}", parameter.grad

    bad = next((n for n, t in outputs_first() if not bool(torch.isfinite(t).all())), "the norm")
    images = [m.image_id for b in window for m in b.metas]
    return NonFiniteError(
        f"{bad} is not finite (images {images}); look at these images' annotations, lower optim.lr "
        "or set optim.autocast=float32, then go on from the last checkpoint with --resume"
    )
