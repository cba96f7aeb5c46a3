"""Rows of other members of the family against transformers' classes, on the same weights."""

from __future__ import annotations

from typing import Any

import torch
from reference import CLASSES, calibrate, ours, reference_deformable
from rows import Row, compare, random_targets, require, stepper
from torch import Tensor

from zoo.inference import prepare

NAME = "deformable_detr_r50"


def small(quick: bool) -> dict[str, int]:
    """Settings of a model that only tries the benchmark out."""
    return {"encoder_layers": 2, "decoder_layers": 2} if quick else {}


def deformable_inference(quick: bool, half: bool) -> Row:
    """Deformable DETR on one picture; with ``half`` our fastest setting against float32."""
    height, width = (96, 128) if quick else (800, 1066)
    torch.manual_seed(3)
    pixels = torch.randn(1, 3, height, width)
    mask = torch.ones(1, height, width, dtype=torch.bool)
    theirs: Any = reference_deformable(layers=2 if quick else 6).eval()
    calibrate(theirs, pixels)
    _, model = ours(theirs, NAME, **small(quick))
    prepare(model, half=half).to(memory_format=torch.channels_last)
    packed = pixels.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> Any:
        with torch.autocast("cpu", torch.bfloat16, half):
            return model(packed, mask)

    @torch.inference_mode()
    def their_run() -> Any:
        return theirs(pixel_values=pixels, pixel_mask=mask.long())

    mine, expected = run(), their_run()
    far = float((mine["pred_boxes"].float() - expected.pred_boxes).abs().max())
    spread = float(expected.pred_boxes.std(1).mean())
    require(far <= (0.01 if half else 1e-4), f"boxes differ by {far:.2e} of the image's side")
    logits = float((mine["pred_logits"].float() - expected.logits).abs().max())
    require(logits <= (0.1 if half else 1e-4), f"logits differ by {logits:.2e}")
    kind = "bf16" if half else "float32"
    note = f"same weights and pixels; boxes within {far:.0e} of the side (spread {spread:.2f})"
    name = f"inference, Deformable DETR R50, {height}x{width}, batch 1, {kind}"
    sides = {"ours": run, "theirs": their_run}
    return compare(name, 2.5 if half else 1.5, sides, 2 if quick else 5, note)


def deformable_training(quick: bool) -> Row:
    """A training step of Deformable DETR, batch 2, float32, without auxiliary losses."""
    height, width = (64, 96) if quick else (480, 640)
    draw = torch.Generator().manual_seed(5)
    pixels = torch.randn(2, 3, height, width, generator=draw)
    mask = torch.ones(2, height, width, dtype=torch.bool)
    targets = random_targets(2, 10, draw)
    theirs: Any = reference_deformable(dropout=0.0, layers=2 if quick else 6).train()
    calibrate(theirs, pixels)
    # transformers weighs classes by 1 in costs and losses, the release by 2.
    same = {"dropout": 0.0, "aux_loss": False, "cost_class": 1.0, "coef_class": 1.0}
    spec, model = ours(theirs, NAME, **same, **small(quick))
    model.train().to(memory_format=torch.channels_last)
    criterion = spec.criterion(spec.config, CLASSES)
    packed = pixels.to(memory_format=torch.channels_last)
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]

    def my_loss() -> Tensor:
        return criterion(model(packed, mask), targets).total

    def their_loss() -> Tensor:
        return theirs(pixel_values=pixels, pixel_mask=mask.long(), labels=labels).loss

    with torch.no_grad():
        a, b = float(my_loss()), float(their_loss())
    require(abs(a - b) <= 1e-4 * abs(b), f"losses differ: {a:.6f} and {b:.6f}")
    note = f"losses {a:.4f} and {b:.4f}; the reference trains the stem and the first stage too"
    name = "training step, Deformable DETR R50, 480x640, batch 2, float32"
    sides = {"ours": stepper(model, my_loss), "theirs": stepper(theirs, their_loss)}
    return compare(name, 1.25, sides, 1 if quick else 3, note)
