"""Rows of other members of the family against transformers' classes, on the same weights."""

from __future__ import annotations

from typing import Any

import torch
from reference import (
    CLASSES,
    calibrate,
    freeze_as_ours,
    ours,
    picture,
    reference_deformable,
    reference_rt_detr,
)
from rows import Row, Work, both, compare, random_targets, require, stepper
from torch import Tensor

NAME = "deformable_detr_r50"


def small(quick: bool) -> dict[str, int]:
    """Settings of a model that only tries the benchmark out."""
    return {"encoder_layers": 2, "decoder_layers": 2} if quick else {}


def deformable_inference(quick: bool, half: bool) -> Row:
    """Deformable DETR on one picture; with ``half`` our fastest setting against float32."""
    height, width = (96, 128) if quick else (800, 1066)
    torch.manual_seed(3)
    pixels = torch.randn(1, 3, height, width)
    theirs: Any = reference_deformable(layers=2 if quick else 6).eval()
    calibrate(theirs, pixels)
    _, model = ours(theirs, NAME, **small(quick))
    run, their_run = both(model, theirs, pixels, half)

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
    sides, note = deformable_sides(quick)
    name = "training step, Deformable DETR R50, 480x640, batch 2, float32"
    note += "; the reference trains the stem and the first stage too"
    return compare(name, 1.25, sides, 1 if quick else 3, note)


def deformable_sides(quick: bool, frozen: bool = False) -> tuple[dict[str, Work], str]:
    """A whole training step of each side, and their losses.

    With ``frozen`` the reference's stem and first stage are frozen, as ours are.
    """
    height, width = (64, 96) if quick else (480, 640)
    draw = torch.Generator().manual_seed(5)
    pixels = torch.randn(2, 3, height, width, generator=draw)
    mask = torch.ones(2, height, width, dtype=torch.bool)
    targets = random_targets(2, 10, draw)
    theirs: Any = reference_deformable(dropout=0.0, layers=2 if quick else 6).train()
    calibrate(theirs, pixels)
    if frozen:
        freeze_as_ours(theirs)
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
    sides = {"ours": stepper(model, my_loss), "theirs": stepper(theirs, their_loss)}
    return sides, f"losses {a:.4f} and {b:.4f}"


def rt_detr_inference(quick: bool, half: bool) -> Row:
    """RT-DETR R50 on one picture of its own size; with ``half`` bf16 against float32.

    Which cells become queries, and in which order, hangs on scores that may differ by less than
    rounding. So queries are compared that begin at the same box; in bf16 a few have no peer.
    """
    side = 160 if quick else 640
    pixels = picture(side, seed=3)
    layers = 2 if quick else 6
    theirs: Any = reference_rt_detr(layers=layers)
    calibrate(theirs, pixels, whole=True)
    _, model = ours(theirs, "rt_detr_r50", decoder_layers=layers)
    run, their_run = both(model, theirs, pixels, half)

    begun: list[Tensor] = []
    selection: Any = model.selection
    hook = selection.register_forward_hook(lambda *call: begun.append(call[2]["boxes"].sigmoid()))
    mine, expected = run(), their_run()
    hook.remove()
    apart = (begun[0][0][:, None] - expected.enc_topk_bboxes[0]).abs().amax(-1)
    distance, place = apart.min(0)  # of each of the reference's queries, the nearest of ours
    same = distance < 0.004
    share = float(same.float().mean())
    least = 0.9 if half else 1.0
    require(share >= least, f"only {share:.0%} of the queries begin at the same box")
    place = place[same]
    boxes, logits = expected.pred_boxes[0, same], expected.logits[0, same]
    far = (mine["pred_boxes"][0, place].float() - boxes).abs().amax(-1)
    off = (mine["pred_logits"][0, place].float() - logits).abs().amax(-1)
    most, worst = (float(far.quantile(0.9)), float(far.max()))
    require(most <= (0.005 if half else 1e-5), f"boxes differ by {most:.2e} of the image's side")
    require(worst <= (0.02 if half else 1e-4), f"boxes differ by {worst:.2e} of the image's side")
    most_off = float(off.quantile(0.9))
    require(most_off <= (0.2 if half else 1e-4), f"logits differ by {most_off:.2e}")
    kind = "bf16" if half else "float32"
    moved = float((boxes - expected.enc_topk_bboxes[0, same]).abs().mean())
    note = (
        f"same weights and pixels; {share:.0%} of the queries begin alike, nine of ten of their "
        f"boxes within {most:.0e} of the side, all within {worst:.0e} (layers moved them by "
        f"{moved:.2f})"
    )
    name = f"inference, RT-DETR R50, {side}x{side}, batch 1, {kind}"
    sides = {"ours": run, "theirs": their_run}
    return compare(name, 2.5 if half else 1.5, sides, 2 if quick else 7, note)
