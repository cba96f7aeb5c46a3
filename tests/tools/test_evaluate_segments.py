"""tools/evaluate.py on segments: panoptic quality and mask AP, of models and of files."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from zoo import checkpoint
from zoo.config import to_plain
from zoo.datasets.coco import CocoConfig
from zoo.datasets.coco_panoptic import open_coco_panoptic
from zoo.datasets.coco_panoptic_records import write_panoptic
from zoo.datasets.mask_eval import things_of
from zoo.datasets.panoptic_eval import Segmentation
from zoo.datasets.shapes import ShapesConfig, ShapesSet
from zoo.datasets.shapes_panoptic import NAMES, ShapesPanoptic
from zoo.datasets.transforms import AugmentConfig
from zoo.registry import model_spec
from zoo.tools import evaluate

SPLIT = "panoptic_examples"
QUERIES = 60
SIZES = {"val_size": 320, "val_max_size": 480}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def run(*args: Any, status: int = 0) -> None:
    assert evaluate.main([str(a) for a in args]) == status


def group_row(printed: str) -> list[str]:
    """The figures of all classes in a printed table: PQ, SQ and RQ."""
    (row,) = [line for line in printed.splitlines() if line.startswith("All ")]
    return row.split()[1:4]


@pytest.fixture
def sample(shared_data: Path) -> Path:
    return shared_data / "coco_panoptic_sample"


# -- files of segmentations --------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("results", ["prediction.json", "panoptic_examples.json"])
@pytest.mark.parametrize("named", ["file", "folder"])
def test_panoptic_quality_is_the_official_evaluators(
    sample: Path, tmp_path: Path, results: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"coco_panoptic:{sample}" if named == "folder" else sample / f"{SPLIT}.json"
    run("--results", sample / results, "--data", data, "--split", SPLIT, "--out", tmp_path)
    runs = read(sample / "expected_pq.json")["runs"]
    of_truth = next(name for name in runs if name != "prediction")
    own = "prediction" if results == "prediction.json" else of_truth
    wanted, got = runs[own], read(tmp_path / "panoptic.json")
    metrics = read(tmp_path / "metrics.json")
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        assert got["groups"][group]["n"] == wanted[group]["n"]
        for key in ("pq", "sq", "rq"):
            assert got["groups"][group][key] == pytest.approx(wanted[group][key], rel=0, abs=1e-6)
            assert metrics[f"{key.upper()}{suffix}"] == got["groups"][group][key]
    by_id = {name.rpartition("(")[2].rstrip(")"): v for name, v in got["classes"].items()}
    assert set(by_id) <= set(wanted["per_class"])
    for number, values in wanted["per_class"].items():
        for key, value in values.items():
            assert by_id.get(number, {}).get(key, 0.0) == pytest.approx(value, rel=0, abs=1e-6)
    printed = capsys.readouterr().out
    assert group_row(printed)[0] == f"{wanted['All']['pq']:.3f}"
    assert "2 pictures, 133 classes" in printed


# -- files of masks ----------------------------------------------------------------------------


def detection_format(sample: Path) -> dict[str, Any]:
    """The sample's things as its own authors wrote them in COCO's instance format."""
    content = read(sample / "panoptic_coco_detection_format.json")
    things = {c["id"] for c in read(sample / f"{SPLIT}.json")["categories"] if c["isthing"]}
    kept = [a for a in content["annotations"] if a["category_id"] in things]
    # pycocotools takes an annotation id of 0 for "matched to nothing".
    content["annotations"] = [{**a, "id": n} for n, a in enumerate(kept, 1)]
    content["categories"] = [c for c in content["categories"] if c["id"] in things]
    return content


def by_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = truth
        gt.createIndex()
        scored = COCOeval(gt, gt.loadRes(results), kind)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return [float(v) for v in scored.stats]


def moved(segment: dict[str, Any], shift: int) -> dict[str, Any]:
    """A mask that stands ``shift`` pixels to the right of where it should."""
    from pycocotools import mask

    pixels = np.roll(mask.decode(segment), shift, axis=1)
    found = mask.encode(np.asfortranarray(pixels))
    return {"size": found["size"], "counts": found["counts"].decode("ascii")}


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
@pytest.mark.parametrize("shift", [0, 5])
def test_mask_ap_is_pycocotools(sample: Path, tmp_path: Path, shift: int) -> None:
    truth = detection_format(sample)
    draw = np.random.default_rng(0)
    results = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "segmentation": moved(a["segmentation"], shift),
            "score": float(draw.random()),
        }
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]
    if shift:  # some are missed, and one is of another class
        results = results[::2]
        results[0]["category_id"] = results[-1]["category_id"]
    (tmp_path / "r.json").write_text(json.dumps(results))
    expected = by_pycocotools(truth, json.loads(json.dumps(results)), "segm")
    for n, data in enumerate((f"coco_panoptic:{sample}", sample / f"{SPLIT}.json")):
        out = tmp_path / str(n)
        run("--results", tmp_path / "r.json", "--data", data, "--split", SPLIT, "--out", out)
        figures = list(read(out / "metrics.json").values())
        assert figures == pytest.approx(expected, rel=0, abs=1e-6)
        assert figures[0] == pytest.approx(1.0, abs=1e-12) if not shift else 0.05 < figures[0] < 0.9


# -- models ------------------------------------------------------------------------------------


def save_run(
    folder: Path, names: tuple[str, ...], ids: tuple[int, ...], threshold: float = 0.5
) -> Path:
    """An untrained panoptic model of these classes, small."""
    small = {"dim": 32, "num_heads": 4, "encoder_layers": 1, "decoder_layers": 1, "ffn_dim": 32}
    spec = model_spec("panoptic_detr_nano", num_queries=QUERIES, threshold=threshold, **small)
    model = spec.build(spec.config, len(names))
    card = checkpoint.Card(
        name=spec.name,
        config=to_plain(spec.config),
        class_names=names,
        class_ids=ids,
        preprocess=SIZES,
    )
    checkpoint.save(folder / "best", card=card, weights=model.state_dict())
    return folder


class Knowing(nn.Module):
    """In the place of a trained model: what is to be seen in the pictures of a set, by their sizes.

    Masks are those of training, at stride 4. Every fifth object is seen too far to the right, and
    stuff in two halves, each by a query. ``names`` are the model's classes.
    """

    def __init__(self, samples: Any, data_names: tuple[str, ...], names: tuple[str, ...]) -> None:
        super().__init__()
        self.classes = len(names)
        place = [names.index(name) for name in data_names]
        self.seen: dict[tuple[int, int], list[tuple[int, torch.Tensor, torch.Tensor]]] = {}
        for index in range(len(samples)):
            sample = samples[index]
            objects = self.seen[sample.meta.size] = []
            target = (sample.target[k] for k in ("labels", "boxes", "masks"))
            for n, (label, box, mask) in enumerate(zip(*target, strict=True)):
                if int(label) in sample.meta.extra["stuff"]:
                    left = torch.arange(mask.shape[1]) < mask.shape[1] // 2
                    shown = [mask & left, mask & ~left]
                else:
                    shown = [mask if n % 5 else mask.roll(4, dims=1)]
                objects += [(place[int(label)], box, one) for one in shown]

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> dict[str, Any]:
        batch, _, height, width = pixel_values.shape
        logits = torch.zeros(batch, QUERIES, self.classes + 1)
        logits[..., -1] = 20.0
        boxes = torch.full((batch, QUERIES, 4), 0.5)
        masks = torch.full((batch, QUERIES, -(-height // 4), -(-width // 4)), -5.0)
        for n, valid in enumerate(pixel_mask):
            objects = self.seen[int(valid[:, 0].sum()), int(valid[0].sum())]
            for q, (label, box, mask) in enumerate(objects):
                logits[n, q, -1] = 0.0
                logits[n, q, label] = 8.0 + q * 0.05
                boxes[n, q] = box if q % 5 else box * 0.8
                masks[n, q, : mask.shape[0], : mask.shape[1]] = mask.float() * 10 - 5
        return {"pred_logits": logits, "pred_boxes": boxes, "pred_masks": masks}


@pytest.fixture
def source(sample: Path) -> Any:
    config = CocoConfig(
        folder=str(sample), train_split="", val_split=SPLIT, augment=AugmentConfig(**SIZES)
    )
    return open_coco_panoptic(config)


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch, source: Any) -> None:
    """Weights are loaded as always, and the model is exchanged for one that knows the pictures."""
    load = evaluate.load_model

    def exchanged(*args: Any, **more: Any) -> Any:
        predictor = load(*args, **more)
        predictor.model = Knowing(source.val, source.class_names, predictor.class_names)
        return predictor

    monkeypatch.setattr(evaluate, "load_model", exchanged)


@pytest.mark.data
def test_a_panoptic_model_is_scored_by_segments_boxes_and_masks(
    sample: Path, tmp_path: Path, source: Any, knowing: None, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save_run(tmp_path / "run", source.class_names, source.class_ids)
    data = ("--data", f"coco_panoptic:{sample}", "--split", SPLIT)
    run("--weights", weights, *data, "--device", "cpu", "--float32", "--batch-size", "2")
    printed = capsys.readouterr().out
    out = weights / "evaluation"
    metrics = read(out / "metrics.json")
    for name in ("PQ", "PQ_th", "PQ_st", "AP", "mask_AP"):
        assert 0.2 < metrics[name] < 0.97, name
    assert group_row(printed) == [f"{metrics[k]:.3f}" for k in ("PQ", "SQ", "RQ")]
    assert f"{'mask_AP':10} {metrics['mask_AP']:6.3f}" in printed

    # The reference, on the written masks and on the authors' own ground truth.
    truth = detection_format(sample)
    things = {c["id"] for c in truth["categories"]}
    found = [r for r in read(out / "segments.json") if r["category_id"] in things]
    names = [name for name in metrics if name.startswith("mask_")]
    expected = by_pycocotools(truth, found, "segm")
    assert [metrics[name] for name in names] == pytest.approx(expected, rel=0, abs=1e-6)

    # What was written scores as the model that wrote it.
    for file, prefix in (("segmentations", ""), ("segments", "mask_"), ("results", "")):
        again = tmp_path / file
        run("--results", out / f"{file}.json", *data, "--out", again)
        for name, value in read(again / "metrics.json").items():
            assert value == pytest.approx(metrics[f"{prefix}{name}"], rel=0, abs=1e-9), name


@pytest.mark.data
def test_segments_are_matched_by_the_names_of_their_classes(
    sample: Path, tmp_path: Path, source: Any, knowing: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also which classes are stuff, whose segments become one."""
    order = np.random.default_rng(2).permutation(len(source.class_names)).tolist()
    names = ("something else", *(source.class_names[k] for k in order))
    same = save_run(tmp_path / "same", source.class_names, source.class_ids)
    other = save_run(tmp_path / "other", names, tuple(range(1, len(names) + 1)))
    metrics = []
    for weights in (same, other):
        args = ("--data", f"coco_panoptic:{sample}", "--split", SPLIT, "--device", "cpu")
        run("--weights", weights, *args, "--float32")
        metrics.append(read(weights / "evaluation" / "metrics.json"))
    assert "1 classes of the model that the data does not have are left out: something else" in (
        capsys.readouterr().out
    )
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-9)
    shown = [read(w / "evaluation" / "segmentations.json")["annotations"] for w in (same, other)]
    for record in (r for records in shown for r in records):
        for segment in record["segments_info"]:
            del segment["score"]  # softmax over one class more
    assert shown[0] == shown[1]


def test_drawn_segments_are_scored_and_every_backend_agrees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save_run(tmp_path / "run", tuple(NAMES.values()), tuple(NAMES), 0.0)
    figures = []
    for backend in ("auto", "pycocotools"):
        out = tmp_path / backend
        args = ("--data", "shapes_panoptic", "data.val_images=3", "data.short_side=[64,80]")
        run("--weights", weights, *args, "--device", "cpu", "--backend", backend, "--out", out)
        figures.append(read(out / "metrics.json"))
    assert figures[0] == pytest.approx(figures[1], abs=1e-9)
    assert {"PQ", "PQ_st", "AP", "mask_AP"} <= figures[0].keys()
    assert "ground" in capsys.readouterr().out
    found = read(tmp_path / "auto" / "segmentations.json")["annotations"]
    assert len(found) == 3
    for record in found:
        assert (tmp_path / "auto/segmentations" / record["file_name"]).is_file()
        assert record["segments_info"]


def test_masks_are_scored_on_drawn_segments(tmp_path: Path) -> None:
    drawn = ShapesPanoptic(ShapesSet(ShapesConfig(), "val", augmented=False))
    truth = things_of(drawn, masks=True)
    for key, name in (("segmentation", "masks"), ("bbox", "boxes")):
        results = [
            {"image_id": a["image_id"], "category_id": a["category_id"], "score": 0.5, key: a[key]}
            for a in truth["annotations"]
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
        out = tmp_path / name
        run("--results", f"{out}.json", "--data", "shapes_panoptic", "--out", out)
        assert read(out / "metrics.json")["AP"] == pytest.approx(1.0)


# -- bad input ---------------------------------------------------------------------------------


def write_set(folder: Path) -> None:
    """Two pictures, each with sky over a cat."""
    ids = np.full((20, 30), 1, np.int32)
    ids[12:] = 2
    shown = Segmentation(ids, np.array([1, 2]), np.array([200, 7]), np.zeros(2, bool))
    (folder / "val").mkdir(parents=True)
    images = [{"id": n, "file_name": f"{n}.png", "width": 30, "height": 20} for n in (1, 2)]
    for image in images:
        Image.new("RGB", (30, 20)).save(folder / "val" / image["file_name"])
    categories = [
        {"id": 7, "name": "cat", "isthing": 1}, {"id": 200, "name": "sky", "isthing": 0},
    ]  # fmt: skip
    found = [(n, f"{n}.png", shown) for n in (1, 2)]
    truth = folder / "annotations" / "panoptic_val.json"
    write_panoptic(truth, found, images=images, categories=categories)
    write_panoptic(folder / "found.json", found)


def edit(change: Any) -> Any:
    def do(folder: Path) -> None:
        content = read(folder / "found.json")
        change(content["annotations"])
        (folder / "found.json").write_text(json.dumps(content))

    return do


def instances(folder: Path) -> None:
    (folder / "plain.json").write_text(
        json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]})
    )


BAD: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "no map": (
        lambda f: (f / "found" / "1.png").unlink(), "coco_panoptic:SET",
        ("found lacks 1 of the 2 maps", "first: image id 1, 1.png", "restore"),
    ),
    "no map of the truth": (
        lambda f: (f / "annotations/panoptic_val/2.png").unlink(), "SET",
        ("panoptic_val lacks 1 of the 2 maps", "image id 2"),
    ),
    "a picture less": (
        edit(lambda a: a.pop()), "SET", ("no prediction for image id 2", "predict every picture"),
    ),
    "another picture": (
        edit(lambda a: a[1].update(image_id=9)), "SET", ("annotations[1] is of image id 9",),
    ),
    "listed, not painted": (
        edit(lambda a: a[0]["segments_info"].append({"id": 5, "category_id": 7})), "SET",
        ("1.png lacks segment 5", "found.json lists", "(image id 1); mend"),
    ),
    "painted, not listed": (
        edit(lambda a: a[1]["segments_info"].pop()), "SET",
        ("2.png has pixels of segment 2", "found.json does not list", "(image id 2); mend"),
    ),
    "another class": (
        edit(lambda a: a[0]["segments_info"][0].update(category_id=8)), "SET",
        ("image id 1: segment 1 has category id 8", "use the data's own ids"),
    ),
    "a name outside": (
        edit(lambda a: a[0].update(file_name="../1.png")), "SET", ("'../1.png'; name its PNG",),
    ),
    "data without segments": (instances, "plain.json", ("plain.json has none; give a panoptic",)),
    "no such split": (
        lambda f: None, "coco_panoptic:SET --split night", ("of the split 'night'", "looked for"),
    ),
    "no such folder": (lambda f: None, "coco_panoptic:nowhere", ("no data folder nowhere",)),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_bad_segmentations_are_one_sentence(
    case: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path)
    change, data, parts = BAD[case]
    command = ("--results", "found.json", "--data", *data.replace("SET", ".").split())
    run(*command[:3], ".")
    capsys.readouterr()
    change(tmp_path)
    run(*command, status=2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for part in parts:
        assert part in error
