"""One function a row: it checks that both sides do the same work, then times them in turn.

``quick`` shrinks the work for a test of the benchmark itself; its figures mean nothing.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from reference import CLASSES, calibrate, freeze_as_ours, ours, reference, sharpen
from torch import Tensor

from zoo.inference import prepare
from zoo.models.layers.packed import pack_convolutions

CPU = torch.device("cpu")
OBJECTS = [7, 3, 14, 1, 22, 5, 2, 9]  # of a batch's images; COCO's have 7.3 on average
Work = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """A line of the table; ``ratio`` is reference over ours, by medians."""

    name: str
    target: float
    ratio: float
    ours: str
    theirs: str
    note: str = ""

    @property
    def verdict(self) -> str:
        """Met, or below the target."""
        return "met" if self.ratio >= self.target else f"below the target of {self.target:g} x"


class WorkDiffersError(AssertionError):
    """The two sides do not compute the same; their times can't be compared."""


def alternate(sides: Mapping[str, Work], repeats: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each side, the sides taking turns so that a noisy machine meets both."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + warm):
        for name, work in sides.items():
            began = time.perf_counter()
            work()
            if turn >= warm:
                times[name].append(time.perf_counter() - began)
    return times


def shown(times: list[float]) -> str:
    """Median and range, in a readable unit."""
    unit, factor = ("s", 1.0) if median(times) >= 1 else ("ms", 1000.0)
    low, middle, high = (f(times) * factor for f in (min, median, max))
    return f"{middle:.3g} {unit} ({low:.3g} .. {high:.3g})"


def compare(name: str, target: float, sides: Mapping[str, Work], repeats: int, note: str) -> Row:
    """Time ``ours`` and ``theirs`` and make the row."""
    times = alternate(sides, repeats)
    ratio = median(times["theirs"]) / median(times["ours"])
    return Row(name, target, ratio, shown(times["ours"]), shown(times["theirs"]), note)


def require(condition: bool, what: str) -> None:
    """Raise where the sides differ."""
    if not condition:
        raise WorkDiffersError(what)


# ---- Inference -------------------------------------------------------------------------------


def both(model: torch.nn.Module, theirs: Any, pixels: Tensor, half: bool) -> tuple[Work, Work]:
    """Predictions of our prepared model and of the reference, on pictures without padding.

    With ``half`` ours is run in bf16, its fastest setting.
    """
    mask = torch.ones(pixels.shape[0], *pixels.shape[2:], dtype=torch.bool)
    pack_convolutions(prepare(model, half=half).to(memory_format=torch.channels_last))
    packed = pixels.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> Any:
        with torch.autocast("cpu", torch.bfloat16, half):
            return model(packed, mask)

    @torch.inference_mode()
    def their_run() -> Any:
        return theirs(pixel_values=pixels, pixel_mask=mask.long())

    return run, their_run


def inference(quick: bool, half: bool) -> Row:
    """R50 on one picture; with ``half`` our fastest CPU setting against the reference's float32."""
    height, width = (96, 128) if quick else (800, 1066)
    torch.manual_seed(3)
    pixels = torch.randn(1, 3, height, width)
    theirs = reference(layers=1 if quick else 6).eval()
    calibrate(theirs, pixels)
    if half:
        sharpen(theirs)  # there is a threshold of 0.5 to be above
    layers = {"encoder_layers": 1, "decoder_layers": 1} if quick else {}
    _, model = ours(theirs, **layers)
    run, their_run = both(model, theirs, pixels, half)

    mine, expected = run(), their_run()
    far = (mine["pred_boxes"].float() - expected.pred_boxes).abs()
    note = "same weights and pixels; frozen norms folded, channels-last"
    if half:
        sure = expected.logits.softmax(-1)[..., :-1].amax(-1) > 0.5
        require(int(sure.sum()) >= 10, f"only {int(sure.sum())} detections above 0.5")
        worst = float(far[sure].max())
        require(worst <= 0.01, f"boxes differ by {worst:.4f} of the image's side")
        spread = float(expected.pred_boxes.std(1).mean())
        note += (
            f", bf16; {int(sure.sum())} boxes over 0.5 within {worst:.4f} of the side (they differ "
            f"from each other by {spread:.4f} in standard deviation)"
        )
    else:
        worst = max(float(far.max()), float((mine["pred_logits"] - expected.logits).abs().max()))
        require(worst <= 1e-4, f"outputs differ by {worst:.2e}")
        note += f"; outputs equal to {worst:.0e}"
    kind = "bf16" if half else "float32"
    name = f"inference, R50, {height}x{width}, batch 1, {kind}"
    sides = {"ours": run, "theirs": their_run}
    return compare(name, 2.5 if half else 1.25, sides, 2 if quick else 7, note)


# ---- Training step ---------------------------------------------------------------------------


def training_sides(quick: bool, half: bool, frozen: bool) -> tuple[dict[str, Work], str]:
    """A whole step of each side: forward, matching, losses, backward, clipping, AdamW.

    With ``frozen`` the reference's stem and first stage are frozen, as DETR's are and ours; else
    it trains them, as it comes.
    """
    height, width = (64, 96) if quick else (480, 640)
    draw = torch.Generator().manual_seed(5)
    pixels = torch.randn(2, 3, height, width, generator=draw)
    mask = torch.ones(2, height, width, dtype=torch.bool)
    targets = random_targets(2, 10, draw)
    theirs = reference(dropout=0.0, layers=1 if quick else 6).train()
    calibrate(theirs, pixels)
    if frozen:
        freeze_as_ours(theirs)
    layers = {"encoder_layers": 1, "decoder_layers": 1} if quick else {}
    spec, model = ours(theirs, dropout=0.0, aux_loss=False, **layers)
    model.train().to(memory_format=torch.channels_last)
    criterion = spec.criterion(spec.config, CLASSES)
    packed = pixels.to(memory_format=torch.channels_last)
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]

    def my_loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, half):
            out = model(packed, mask)
        return criterion(out, targets).total

    def their_loss() -> Tensor:
        return theirs(pixel_values=pixels, pixel_mask=mask.long(), labels=labels).loss

    with torch.no_grad():
        a, b = float(my_loss()), float(their_loss())
    tolerance = 0.02 if half else 1e-4
    require(abs(a - b) <= tolerance * abs(b), f"losses differ: {a:.6f} and {b:.6f}")

    sides = {"ours": stepper(model, my_loss), "theirs": stepper(theirs, their_loss)}
    note = f"losses {a:.4f} and {b:.4f}; auxiliary losses and dropout off"
    if not frozen:
        note += "; the reference as it comes trains the stem and the first stage, DETR freezes them"
    return sides, note


def stepper(net: Any, loss_of: Callable[[], Tensor]) -> Work:
    """A training step: zeroed gradients, forward, loss, backward, clipping, AdamW."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()
        return float(loss.detach())

    return step


def training(quick: bool, half: bool, frozen: bool = False) -> Row:
    """A training step, R50, batch 2."""
    sides, note = training_sides(quick, half, frozen)
    name = f"training step, R50, 480x640, batch 2, {'bf16' if half else 'float32'}"
    if frozen:
        name += ", those layers frozen in the reference too"
    return compare(name, 2.0 if half else 1.25, sides, 2 if quick else 5, note)


# ---- Matching and losses ---------------------------------------------------------------------


def random_targets(images: int, boxes: int, draw: torch.Generator) -> list[dict[str, Tensor]]:
    """Targets with ``boxes`` objects an image, boxes inside it."""
    targets = []
    for _ in range(images):
        size = torch.rand(boxes, 2, generator=draw) * 0.4 + 0.05
        centre = torch.rand(boxes, 2, generator=draw) * (1 - size) + size / 2
        labels = torch.randint(0, CLASSES, (boxes,), generator=draw)
        targets.append({"labels": labels, "boxes": torch.cat([centre, size], 1)})
    return targets


def matching(quick: bool) -> Row:
    """Matcher and losses on the same outputs, forward and backward, all six layers."""
    from transformers import DetrConfig
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    from zoo.registry import model_spec

    images, queries, boxes = (2, 20, 4) if quick else (16, 300, 20)
    draw = torch.Generator().manual_seed(7)
    logits = torch.randn(6, images, queries, CLASSES + 1, generator=draw)
    places = torch.rand(6, images, queries, 4, generator=draw) * 0.5 + 0.2
    targets = random_targets(images, boxes, draw)
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    spec = model_spec("detr_r50")
    criterion = spec.criterion(spec.config, CLASSES)
    config = DetrConfig(num_labels=CLASSES, auxiliary_loss=True)

    def leaves() -> tuple[Tensor, Tensor]:
        return logits.clone().requires_grad_(), places.clone().requires_grad_()

    def run() -> Tensor:
        x, b = leaves()
        layers = [{"pred_logits": c, "pred_boxes": p} for c, p in zip(x, b, strict=True)]
        total = criterion({**layers[-1], "aux_outputs": layers[:-1]}, targets).total
        total.backward()
        return total.detach()

    def their_run() -> Tensor:
        x, b = leaves()
        total, _, _ = ForObjectDetectionLoss(x[-1], labels, CPU, b[-1], config, x, b)
        total.backward()
        return total.detach()

    mine, expected = float(run()), float(their_run())
    require(abs(mine - expected) <= 1e-4 * abs(expected), f"losses {mine} and {expected}")
    name = f"matcher + losses, batch {images}, {queries} queries, {boxes} boxes, 6 layers"
    note = f"losses equal ({mine:.4f}); forward and backward"
    sides = {"ours": run, "theirs": their_run}
    return compare(name, 4.0, sides, 2 if quick else 5, note)


def focal_matching(quick: bool) -> Row:
    """The same for Deformable DETR in two stages: focal costs, six layers and the proposals.

    Both sides match the proposals with the objects as of class 0, as the release does. (The
    reference's loss leaves them out; it is called for them once more.)
    """
    from transformers import DeformableDetrConfig
    from transformers.loss.loss_deformable_detr import (
        DeformableDetrForObjectDetectionLoss,
        DeformableDetrHungarianMatcher,
    )

    from zoo.registry import model_spec

    queries, objects = (20, OBJECTS[:2]) if quick else (300, OBJECTS)
    images = len(objects)
    draw = torch.Generator().manual_seed(7)
    logits = torch.randn(7, images, queries, CLASSES, generator=draw) - 2.0
    places = torch.rand(7, images, queries, 4, generator=draw) * 0.5 + 0.2
    targets = [random_targets(1, count, draw)[0] for count in objects]
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    things = [{**t, "class_labels": torch.zeros_like(t["class_labels"])} for t in labels]
    # transformers weighs the class loss by 1, the release by 2.
    spec = model_spec("deformable_detr_r50_two_stage", coef_class=1.0)
    criterion = spec.criterion(spec.config, CLASSES)
    every = DeformableDetrConfig(num_labels=CLASSES, class_cost=2, auxiliary_loss=True)
    one = DeformableDetrConfig(num_labels=CLASSES, class_cost=2)
    matcher = DeformableDetrHungarianMatcher(2, 5, 2)

    def leaves() -> tuple[Tensor, Tensor]:
        return logits.clone().requires_grad_(), places.clone().requires_grad_()

    def run() -> Tensor:
        x, b = leaves()
        found = [{"pred_logits": c, "pred_boxes": p} for c, p in zip(x, b, strict=True)]
        *earlier, last, proposals = found
        outputs = {**last, "aux_outputs": earlier, "enc_outputs": proposals}
        total = criterion(outputs, targets).total
        total.backward()
        return total.detach()

    def their_run() -> Tensor:
        x, b = leaves()
        loss = DeformableDetrForObjectDetectionLoss
        total = loss(x[5], labels, CPU, b[5], every, x[:6], b[:6])[0]
        total = total + loss(x[6], things, CPU, b[6], one)[0]
        total.backward()
        return total.detach()

    def match() -> Any:
        return criterion.matcher.assign(logits, places, targets)

    def their_match() -> Any:
        pairs = zip(logits, places, strict=True)
        return [matcher({"logits": x, "pred_boxes": b}, labels) for x, b in pairs]

    mine, expected = float(run()), float(their_run())
    require(abs(mine - expected) <= 1e-4 * abs(expected), f"losses {mine} and {expected}")
    pairs = criterion.matcher.match(logits, places, targets)
    for layer, other in zip(pairs, their_match(), strict=True):
        for (query, row), (their_query, their_row) in zip(layer, other, strict=True):
            same = torch.equal(query, their_query[their_row.argsort()])
            require(same and torch.equal(row, their_row.sort().values), "the pairs differ")
    alone = alternate({"ours": match, "theirs": their_match}, 2 if quick else 7)
    name = (
        f"matcher + losses, batch {images}, {queries} queries, {min(objects)} to {max(objects)} "
        "boxes an image, 6 layers and the proposals, focal"
    )
    note = (
        f"losses equal ({mine:.4f}) and pairs the same; forward and backward; matching alone "
        f"{shown(alone['ours'])} against {shown(alone['theirs'])}"
    )
    sides = {"ours": run, "theirs": their_run}
    return compare(name, 4.0, sides, 2 if quick else 7, note)


# ---- Evaluation ------------------------------------------------------------------------------


def evaluation(quick: bool) -> Row:
    """From detections in memory to the 12 figures, against pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from zoo.datasets.coco_eval import evaluate_results

    images, each = (20, 10) if quick else (5000, 100)
    truth, results = random_coco(images, each)

    def run() -> list[float]:
        return list(evaluate_results(truth, results, "bbox").metrics().values())

    def their_run() -> list[float]:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = truth
            coco.createIndex()
            scorer = COCOeval(coco, coco.loadRes(results), "bbox")
            scorer.evaluate()
            scorer.accumulate()
            scorer.summarize()
        return [float(v) for v in scorer.stats]

    require(np.allclose(run(), their_run(), atol=1e-9, rtol=0), "the 12 figures differ")
    name = f"COCO evaluation, {images} images x {each} detections"
    sides = {"ours": run, "theirs": their_run}
    note = "pycocotools; the same 12 figures to 1e-9"
    return compare(name, 4.0, sides, 1 if not quick else 2, note)


def random_coco(images: int, each: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth (7 objects an image, 80 classes) and detections near and beside them."""
    draw = np.random.default_rng(11)
    truth: dict[str, Any] = {
        "images": [{"id": i + 1, "width": 640, "height": 480} for i in range(images)],
        "categories": [{"id": c + 1, "name": str(c)} for c in range(80)],
        "annotations": [],
    }
    results = []
    for image in range(1, images + 1):
        sides = draw.uniform(10, 200, (7, 2))
        corners = draw.uniform(0, 1, (7, 2)) * ([640, 480] - sides)
        labels = draw.integers(1, 81, 7)
        for corner, side, label in zip(corners, sides, labels, strict=True):
            box = [*corner.tolist(), *side.tolist()]
            record = {"id": len(truth["annotations"]) + 1, "image_id": image, "bbox": box}
            area = {"area": float(side.prod()), "iscrowd": 0, "category_id": int(label)}
            truth["annotations"].append({**record, **area})
        pick = draw.integers(0, 7, each)
        noise = draw.normal(0, 8, (each, 4))
        boxes = np.concatenate([corners[pick], sides[pick]], 1) + noise
        boxes[:, 2:] = np.maximum(boxes[:, 2:], 2)
        classes = np.where(draw.random(each) < 0.5, labels[pick], draw.integers(1, 81, each))
        for box, label, score in zip(boxes, classes, draw.random(each), strict=True):
            row = {"image_id": image, "category_id": int(label)}
            results.append({**row, "bbox": box.tolist(), "score": float(score)})
    return truth, results


# ---- Data, without a peer --------------------------------------------------------------------


def data_loading(folder: Path, quick: bool) -> list[str]:
    """Pictures a second and core at the paper's augmentation, and the padded share."""
    from zoo.datasets.coco import CocoConfig, open_coco
    from zoo.sampling import PooledBatches, padded_share

    source = open_coco(CocoConfig(folder=str(folder)))
    samples = source.train
    assert samples is not None
    count = min(len(samples), 4 if quick else 50)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    speeds = []
    for epoch in range(2 if quick else 5):
        samples.set_epoch(epoch)
        began = time.process_time()
        for index in range(count):
            samples[index]
        speeds.append(count / (time.process_time() - began))
    torch.set_num_threads(threads)
    lines = [f"{median(speeds):.0f} pictures a second and core ({count} pictures of {folder.name})"]
    # 50 pictures are too few to pool: the sizes drawn in many epochs stand for a large set.
    sizes = []
    for epoch in range(max(1, 5000 // len(samples))):
        samples.set_epoch(epoch)
        sizes += samples.sizes()
    for batch in (2, 4, 8, 16):
        shares = []
        for pool in (1, 128):
            batches = PooledBatches(lambda: sizes, batch, seed=0, rank=0, world=1, pool=pool)
            shares.append(padded_share(sizes, list(batches)))
        lines.append(
            f"padded share, batch {batch}: {shares[0]:.1%} unpooled, {shares[1]:.1%} pooled"
        )
    return lines
