"""A detector that finds painted areas and needs no training, and pictures for it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from zoo.models.detr.detector import Detection, Detector
from zoo.models.detr.postprocess import DetectionPostprocess
from zoo.registry import ModelSpec

NAMES, IDS = ("red", "green"), (7, 40)
Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class PaintConfig:
    max_detections: int = 100


class Painted(nn.Module):
    """A detector that needs no training: finds the red and the green area of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[int, ...]] = []

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> dict[str, Tensor]:
        assert pixel_values.dtype == torch.uint8
        assert not self.training
        self.batches.append(tuple(pixel_values.shape))
        logits, boxes = (
            torch.zeros(len(pixel_values), 2, 3),
            torch.full((len(pixel_mask), 2, 4), 0.5),
        )
        for b, (pixels, mask) in enumerate(zip(pixel_values.int(), pixel_mask, strict=True)):
            height, width = int(mask[:, 0].sum()), int(mask[0].sum())
            for query in (0, 1):
                where = (pixels[query] > 128) & (pixels[1 - query] < 128) & (pixels[2] < 128) & mask
                logits[b, query, 2] = 9.0
                if where.any():
                    ys, xs = where.nonzero().T
                    x1, x2 = xs.min() / width, (xs.max() + 1) / width
                    y1, y2 = ys.min() / height, (ys.max() + 1) / height
                    boxes[b, query] = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
                    share = where.sum() / mask.sum()
                    logits[b, query, query], logits[b, query, 2] = 4.0 + share, 0.0
        return {"pred_logits": logits, "pred_boxes": boxes}


def detector(**preprocess: int) -> Detector:
    spec = ModelSpec(
        name="painted",
        config=PaintConfig(),
        build=lambda c, k: Painted(),
        criterion=lambda c, k: pytest.fail("no training here"),
        postprocess=lambda c: DetectionPostprocess("softmax", c.max_detections),
        predictor=Detector,
        recipe="painted",
    )
    return Detector(
        Painted().eval(),
        spec,
        class_names=NAMES,
        class_ids=IDS,
        preprocess=preprocess or {"val_size": 100, "val_max_size": 200},
        device=torch.device("cpu"),
    )


def paint(size: tuple[int, int], **areas: Box) -> Image.Image:
    """A grey picture (width, height) with painted rectangles."""
    picture = Image.new("RGB", size, (90, 90, 90))
    pen = ImageDraw.Draw(picture)
    for colour, (x1, y1, x2, y2) in areas.items():
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill={"red": "#ff0000", "green": "#00ff00"}[colour])
    return picture


def near(found: Detection, box: Box, within: float = 3.0) -> bool:
    return max(abs(a - b) for a, b in zip(found.box, box, strict=True)) <= within
