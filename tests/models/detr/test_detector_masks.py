"""Masks of detections, and pictures in segments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from painted import IDS, NAMES, Box, PaintConfig, Painted, detector, near, paint
from torch import Tensor

from zoo.errors import ZooError
from zoo.models.detr import panoptic_postprocess
from zoo.models.detr.detector import Detection, Detector, Seen
from zoo.models.detr.panoptic_postprocess import PanopticPostprocess
from zoo.registry import ModelSpec

# pycocotools has not followed NumPy 2.
masks_are_coded = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(PaintConfig):
    threshold: float = 0.3
    instance_threshold: float = 0.0
    stuff: tuple[int, ...] = ()


class Masked(Painted):
    """As :class:`Painted`, with a mask of each area at stride 4."""

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> dict[str, Tensor]:
        found = super().forward(pixel_values, pixel_mask)
        centres = pixel_values[..., 2::4, 2::4].int()
        areas = torch.stack([centres[:, 0] > 128, centres[:, 1] > 128], dim=1)
        return {**found, "pred_masks": areas.float() * 18 - 9}


def masked(preprocess: dict[str, Any] | None = None, **config: Any) -> Detector:
    spec = ModelSpec(
        name="masked",
        config=MaskedConfig(**config),
        build=lambda c, k: Masked(),
        criterion=lambda c, k: pytest.fail("no training here"),
        postprocess=lambda c: PanopticPostprocess(
            threshold=c.threshold,
            instance_threshold=c.instance_threshold,
            stuff=c.stuff,
            max_detections=c.max_detections,
        ),
        predictor=Detector,
        recipe="masked",
    )
    return Detector(
        Masked().eval(),
        spec,
        class_names=NAMES,
        class_ids=IDS,
        preprocess={"val_size": 64, "val_max_size": 128, **(preprocess or {})},
        device=torch.device("cpu"),
    )


def overlap(mask: NDArray[np.bool_], box: Box) -> float:
    wanted = np.zeros_like(mask)
    wanted[box[1] : box[3], box[0] : box[2]] = True
    return float((mask & wanted).sum() / (mask | wanted).sum())


RED, GREEN = (30, 20, 130, 100), (220, 60, 290, 150)
BOTH = {"red": RED, "green": GREEN}


@masks_are_coded
def test_masks_are_of_the_original_picture_and_go_with_their_boxes() -> None:
    picture = paint((300, 160), **BOTH)
    model = masked()
    for classes, boxes in ((None, [RED, GREEN]), (["green"], [GREEN]), (["red"], [RED])):
        found = model.predict(picture, classes=classes)
        assert len(found) == len(boxes)
        for one, box in zip(found, boxes, strict=True):
            mask = one.mask_array()
            assert (mask.dtype, mask.shape) == (bool, (160, 300))
            assert one.mask is not None
            assert one.mask["size"] == [160, 300]
            assert isinstance(one.mask["counts"], str)
            assert near(one, box)
            assert overlap(mask, box) > 0.9
    assert model.predict(picture, max_detections=1) == model.predict(picture)[:1]


@masks_are_coded
def test_a_stream_gives_segments_of_the_whole_picture() -> None:
    picture = paint((300, 160), **BOTH)
    seen, again = masked().stream([picture, picture], threshold=0.99, classes=["green"])
    assert isinstance(seen, Seen)
    assert seen.detections == []
    assert seen == again
    shown = seen.panoptic
    assert shown is not None
    assert shown.size == seen.size == (160, 300)
    assert shown.labels.tolist() == [0, 1]
    assert len(seen.panoptic_scores) == 2
    assert seen.panoptic_scores[0] > seen.panoptic_scores[1] > 0.5
    assert (shown.ids[20:100, 30:130] == 1).mean() > 0.95
    assert (shown.ids[60:150, 220:290] == 2).mean() > 0.95


@masks_are_coded
@pytest.mark.parametrize("least", [0.0, 0.9694])
def test_masks_of_what_is_left_out_are_not_made(
    least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model's own threshold is higher, it holds: what is below has an empty mask."""
    made: list[bool] = []
    encode = panoptic_postprocess.encoded
    monkeypatch.setattr(
        panoptic_postprocess, "encoded", lambda m: made.append(bool(m.any())) or encode(m)
    )
    model = masked(instance_threshold=least)
    picture = paint((300, 160), **BOTH)
    red, green = model.predict(picture, threshold=0.0)
    masks = [bool(d.mask_array().any()) for d in (red, green)]
    assert masks == [True, least == 0.0]
    made.clear()
    assert model.predict(picture, threshold=1.0) == []
    assert made == [False]  # the empty one
    made.clear()
    assert model.predict(picture, threshold=(red.score + green.score) / 2) == [red]
    assert made == [False] + [True] * masks[0]


@masks_are_coded
def test_stuff_is_what_the_checkpoint_says() -> None:
    picture = paint((300, 160), **BOTH)
    for model, known in (
        (masked(), None),
        (masked({"stuff": []}), ()),
        (masked({"stuff": [1]}), (1,)),
        (masked({"stuff": [1]}, stuff=(0,)), (0,)),  # its config has the last word
    ):
        assert model.stuff == known
        assert model.prepare(picture).meta.extra == ({} if known is None else {"stuff": known})
    halves = paint((160, 80), red=(0, 0, 160, 80))

    class Halves(Masked):
        """Two queries see the picture's halves, of one class."""

        def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> dict[str, Tensor]:
            found = super().forward(pixel_values, pixel_mask)
            masks = torch.full_like(found["pred_masks"], -9.0)
            middle = masks.shape[-1] // 2
            masks[:, 0, :, :middle] = masks[:, 1, :, middle:] = 9.0
            logits = found["pred_logits"][:, :1].expand(-1, 2, -1)
            return {**found, "pred_logits": logits, "pred_masks": masks}

    for stuff, count in (([], 2), ([1], 2), ([0], 1)):
        model = masked({"stuff": stuff})
        model.model = Halves().eval()
        (seen,) = model.stream([halves])
        assert isinstance(seen, Seen)
        assert seen.panoptic is not None
        assert len(seen.panoptic.numbers) == count
        assert len(seen.detections) == 2


def test_a_detection_of_boxes_has_no_mask_and_is_what_it_was() -> None:
    picture = paint((100, 100), red=(0, 0, 60, 60))
    (seen,) = detector().stream([picture])
    assert isinstance(seen, Seen)
    (found,) = seen.detections
    assert (found.mask, seen.panoptic, seen.panoptic_scores) == (None, None, ())
    same = Detection(found.label, found.score, found.box, found.class_id, found.index, found.query)
    assert same == found
    assert {same, found} == {found}
    assert "mask" not in repr(found)
    assert not detector().has_masks
    with pytest.raises(ZooError, match="the detection of red has no mask"):
        found.mask_array()


@masks_are_coded
def test_detections_with_masks_are_compared_by_them_and_can_be_counted() -> None:
    one, same = (masked().predict(paint((100, 100), red=(0, 0, 60, 60)))[0] for _ in range(2))
    assert one == same
    assert len({one, same}) == 1
    assert "counts" not in repr(one)
    other = Detection(one.label, one.score, one.box, one.class_id, one.index, one.query, None)
    assert one != other
