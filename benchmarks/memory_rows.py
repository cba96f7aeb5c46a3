"""Peak memory of training steps, each side in processes of its own: ``memory_rows.py KIND SIDE``.

What is measured is the growth of the resident set's peak during a second step.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # a process of its own begins here

import torch
from family_rows import deformable_sides
from reference import CLASSES, calibrate, ours, reference_panoptic
from rows import Row, Work, random_targets, require, stepper, training_sides
from torch import Tensor

# The allocator gives large blocks back at once: what it would keep for later is not the step's.
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
HOW = (
    "VmHWM above the built model and optimizer state, after one step of warm-up; both with the "
    "same layers frozen; median of 3 processes"
)


def detr(quick: bool) -> Row:
    """A training step of DETR R50."""
    return row("detr", "peak memory of the training step, float32", quick)


def deformable(quick: bool) -> Row:
    """A training step of Deformable DETR R50."""
    name = "peak memory of the training step, Deformable DETR R50, 480x640, batch 2, float32"
    return row("deformable", name, quick)


def masks(quick: bool) -> Row:
    """A step of the second stage of panoptic DETR's training: the mask head, R50."""
    name = "peak memory of mask training, panoptic DETR R50, 480x640, batch 1, float32"
    note = "; 10 objects, 100 queries; the reference makes masks for all queries"
    return row("masks", name, quick, note)


def row(kind: str, name: str, quick: bool, note: str = "") -> Row:
    """Both sides' peaks, in MB, as a row; the reference's has to be the higher one."""
    peaks = {side: peak(kind, side, quick) for side in ("ours", "theirs")}
    ratio = peaks["theirs"] / max(peaks["ours"], 1.0)
    shown = (f"{peaks[side]:.0f} MB" for side in ("ours", "theirs"))
    return Row(name, 1.0, ratio, *shown, HOW + note)


def peak(kind: str, side: str, quick: bool) -> float:
    """MB of a side, the median of three processes."""
    command = [sys.executable, __file__, kind, side, *(["quick"] if quick else [])]
    environment = {**os.environ, **AT_ONCE}
    found = []
    for _ in range(1 if quick else 3):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            said = done.stderr.strip() or f"exit status {done.returncode}"
            raise RuntimeError(f"{kind}, {side}: {said.splitlines()[-1]}")
        found.append(float(done.stdout.strip().splitlines()[-1]))
    return median(found)


def memory_of(kind: str, side: str, quick: bool) -> float:
    """MB that the second training step of a side adds at its peak, in this process."""
    step = SIDES[kind](quick)[side]
    step()
    Path("/proc/self/clear_refs").write_text("5")

    def status(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(x for x in lines if x.startswith(key)).split()[1]) / 1024

    before = status("VmRSS")
    step()
    return status("VmHWM") - before


def mask_sides(quick: bool) -> dict[str, Work]:
    """A step of each side that trains the mask head alone.

    Both get targets at stride 4, the size of the logits: the reference enlarges its logits to the
    targets' size, and its losses at full size would take more. One image: that takes it gigabytes.
    """
    height, width = (64, 96) if quick else (480, 640)
    draw = torch.Generator().manual_seed(5)
    pixels = torch.randn(1, 3, height, width, generator=draw)
    mask = torch.ones(1, height, width, dtype=torch.bool)
    targets = random_targets(1, 10, draw)
    for target in targets:
        target["masks"] = filled(target["boxes"], height // 4, width // 4)
    theirs: Any = reference_panoptic(layers=1 if quick else 6).train()
    calibrate(theirs.detr, pixels)
    small = {"encoder_layers": 1, "decoder_layers": 1} if quick else {}
    same = {"dropout": 0.0, "aux_loss": False, "freeze_detector": True}
    spec, model = ours(theirs, "panoptic_detr_r50", **same, **small)
    model.train().to(memory_format=torch.channels_last)
    criterion = spec.criterion(spec.config, CLASSES)
    packed = pixels.to(memory_format=torch.channels_last)
    labels = [
        {"class_labels": t["labels"], "boxes": t["boxes"], "masks": t["masks"]} for t in targets
    ]

    def my_loss() -> Tensor:
        return criterion(model(packed, mask, targets), targets).total

    def their_output() -> Any:
        return theirs(pixel_values=pixels, pixel_mask=mask.long(), labels=labels)

    with torch.no_grad():
        mine, other = float(my_loss()), their_output().loss_dict
    expected = float(other["loss_mask"] + other["loss_dice"])
    require(abs(mine - expected) <= 1e-4 * expected, f"mask losses {mine} and {expected}")
    return {
        "ours": stepper(model, my_loss),
        "theirs": stepper(theirs, lambda: their_output().loss),
    }


def filled(boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks [M, height, width] of the cells that the boxes [M, 4] cxcywh touch: none is empty."""
    x = torch.arange(width) + 0.5
    y = torch.arange(height) + 0.5
    cx, cy, w, h = boxes[..., None].unbind(1)
    rows = (y - cy * height).abs() < (h * height + 1) / 2
    columns = (x - cx * width).abs() < (w * width + 1) / 2
    return rows[:, :, None] & columns[:, None]


SIDES: dict[str, Callable[[bool], dict[str, Work]]] = {
    "detr": lambda quick: training_sides(quick, half=False, frozen=True)[0],
    "deformable": lambda quick: deformable_sides(quick, frozen=True)[0],
    "masks": mask_sides,
}

if __name__ == "__main__":
    print(memory_of(sys.argv[1], sys.argv[2], "quick" in sys.argv[3:]))
