"""tools/predict.py with models that have masks: objects, segments, and several processes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as rle
from torch import Tensor, nn

import zoo
from zoo import checkpoint
from zoo.config import to_plain
from zoo.datasets.coco_panoptic_records import read_map, write_panoptic
from zoo.datasets.coco_results import Truth
from zoo.datasets.panoptic_eval import Segmentation
from zoo.registry import model_spec
from zoo.tools import evaluate, predict, train
from zoo.tools.predict_files import read_parts, settle, write_part
from zoo.tools.predict_segments import Maps
from zoo.visualize import class_colour

# pycocotools has not followed NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES, IDS, GROUND = ("apple", "pear", "ground"), (3, 7, 20), 2
SMALL = {"dim": 32, "num_heads": 4, "encoder_layers": 1, "decoder_layers": 1, "ffn_dim": 32}
SIZES = {"val_size": 64, "val_max_size": 96}
PAINT = {0: (255, 0, 0), 1: (0, 255, 0)}
Box = tuple[int, int, int, int]
Make = Callable[..., Path]


class Painted(nn.Module):
    """In the place of a trained model: apples are red, pears green, and what is grey is ground.

    Scores are 0.95, 0.7, and 0.9 for each half of the ground, which two queries see. Masks are at
    stride 4, as training gives them.
    """

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> dict[str, Tensor]:
        batch, _, height, width = pixel_values.shape
        probs = torch.full((batch, 6, 4), 1e-9)
        probs[..., 3] = 1.0
        boxes = torch.full((batch, 6, 4), 0.5)
        masks = torch.full((batch, 6, -(-height // 4), -(-width // 4)), -9.0)
        for n, pixels in enumerate(pixel_values.int()):
            red, green = (pixels[c] > 128 for c in (0, 1))
            left = torch.arange(width)[None] < width // 2
            grey = ~red & ~green
            areas = (red, 0, 0.95), (green, 1, 0.7), (grey & left, 2, 0.9), (grey & ~left, 2, 0.9)
            for query, (area, label, score) in enumerate(areas):
                if not area.any():
                    continue
                ys, xs = (t.float() for t in area.nonzero().T)
                x1, x2, y1, y2 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
                box = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
                boxes[n, query] = box / torch.tensor([width, height, width, height])
                probs[n, query, label], probs[n, query, 3] = score, 1 - score
                masks[n, query] = area[2::4, 2::4].float() * 18 - 9
        return {"pred_logits": probs.log(), "pred_boxes": boxes, "pred_masks": masks}


@pytest.fixture
def masks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes a run of a small panoptic DETR, in whose place :class:`Painted` predicts.

    ``preprocess`` is what its checkpoint says besides the sizes.
    """
    load = predict.load_model

    def exchanged(*args: Any, **more: Any) -> Any:
        predictor = load(*args, **more)
        if predictor.has_masks:
            predictor.model = Painted()
        return predictor

    monkeypatch.setattr(predict, "load_model", exchanged)

    def make(**preprocess: Any) -> Path:
        spec = model_spec("panoptic_detr_nano", num_queries=6, threshold=0.5, **SMALL)
        model = spec.build(spec.config, len(NAMES))
        card = checkpoint.Card(
            name=spec.name,
            config=to_plain(spec.config),
            class_names=NAMES,
            class_ids=IDS,
            preprocess={**SIZES, **preprocess},
        )
        checkpoint.save(tmp_path / "run" / "best", card=card, weights=model.state_dict())
        return tmp_path / "run"

    return make


def paint(path: Path, size: tuple[int, int] = (96, 64), **areas: Box) -> None:
    """A grey picture (width, height) with a red apple and a green pear."""
    picture = Image.new("RGB", size, (90, 90, 90))
    pen = ImageDraw.Draw(picture)
    for name, (x1, y1, x2, y2) in areas.items():
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=PAINT[NAMES.index(name)])
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


APPLE, PEAR = (8, 8, 40, 40), (56, 16, 88, 56)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Both fruits, one, one in a subfolder under the same name, and none."""
    folder = tmp_path / "photos"
    paint(folder / "a.png", apple=APPLE, pear=PEAR)
    paint(folder / "b.png", (64, 96), pear=(8, 8, 40, 80))
    paint(folder / "more" / "a.png", apple=(48, 8, 80, 56))
    paint(folder / "more" / "c.png")
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def run(*args: Any, status: int = 0) -> None:
    assert predict.main([*map(str, args), "--device", "cpu", "--float32"]) == status


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def area_of(box: Box, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def check_maps(out: Path) -> list[np.ndarray]:
    """Every map and what panoptic.json says of it agree; returns the maps in the file's order."""
    found = read(out / "panoptic.json")
    images = {im["id"]: im for im in found["images"]}
    assert [a["image_id"] for a in found["annotations"]] == list(images)
    maps = []
    for record in found["annotations"]:
        ids = read_map(out / "panoptic" / record["file_name"])
        image = images[record["image_id"]]
        assert ids.shape == (image["height"], image["width"])
        infos = {info["id"]: info for info in record["segments_info"]}
        assert set(np.unique(ids).tolist()) - {0} == infos.keys()
        for number, info in infos.items():
            rows, columns = np.nonzero(ids == number)
            left, top = int(columns.min()), int(rows.min())
            wide, high = int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1
            assert info["area"] == len(rows)
            assert info["bbox"] == [left, top, wide, high]
            assert info["iscrowd"] == 0
            assert 0.0 < info["score"] <= 1.0
            assert info["category_id"] in IDS
        maps.append(ids)
    return maps


# -- what is written ---------------------------------------------------------------------------


def test_masks_and_segments_are_those_of_the_picture(
    masks_run: Make, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(pictures, "--weights", masks_run(stuff=[GROUND]), "--out", out)
    found = read(out / "predictions.json")
    names = ["a.png", "b.png", "more/a.png", "more/c.png"]
    assert [im["file_name"] for im in found["images"]] == names
    sizes = {im["id"]: [im["height"], im["width"]] for im in found["images"]}
    of_first = [a for a in found["annotations"] if a["image_id"] == 1]
    assert [a["category_id"] for a in of_first] == [3, 20, 20, 7]  # best first
    for a in found["annotations"]:
        mask = rle.decode(a["segmentation"]).astype(bool)
        assert list(mask.shape) == a["segmentation"]["size"] == sizes[a["image_id"]]
        assert a["area"] == mask.sum() > 0
        x, y, width, height = a["bbox"]
        assert 0 <= x < x + width <= sizes[a["image_id"]][1]
        assert 0 <= y < y + height <= sizes[a["image_id"]][0]
    assert iou(rle.decode(of_first[0]["segmentation"]).astype(bool), area_of(APPLE)) > 0.9
    assert iou(rle.decode(of_first[3]["segmentation"]).astype(bool), area_of(PEAR)) > 0.9
    assert Truth(found, masks=True).counts().keys() == {3, 7, 20}  # it is a valid ground truth

    whole = read(out / "panoptic.json")
    assert whole["images"] == found["images"]
    assert whole["categories"] == [
        {"id": 3, "name": "apple", "isthing": 1},
        {"id": 7, "name": "pear", "isthing": 1},
        {"id": 20, "name": "ground", "isthing": 0},
    ]
    assert whole["info"]["weights"] == found["info"]["weights"]
    assert whole["info"]["threshold"] == found["info"]["threshold"] == 0.5
    assert [a["file_name"] for a in whole["annotations"]] == names
    first, _, second, empty = check_maps(out)
    # The ground was seen in two halves and is one segment; every pixel is somewhere.
    labels = [[s["category_id"] for s in a["segments_info"]] for a in whole["annotations"]]
    assert labels == [[3, 20, 7], [20, 7], [3, 20], [20]]
    assert (first > 0).all()
    assert iou(first == 1, area_of(APPLE)) > 0.9
    assert iou(second == 1, area_of((48, 8, 80, 56))) > 0.9
    assert (empty == 1).all()
    maps = sorted(p.relative_to(out / "panoptic").as_posix() for p in out.rglob("*.png"))
    assert maps == names  # those in two folders under one name, too
    assert sorted(p.name for p in out.iterdir()) == [
        "panoptic", "panoptic.json", "pictures", "predictions.json",
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert str(out / "panoptic.json") in printed
    assert "stuff" not in printed


def test_a_real_models_masks_are_written_as_they_are_predicted(
    pictures: Path, tmp_path: Path
) -> None:
    spec = model_spec("panoptic_dn_detr_nano", num_queries=8, threshold=0.0, **SMALL)
    model = spec.build(spec.config, len(NAMES))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.5)
    card = checkpoint.Card(
        name=spec.name, config=to_plain(spec.config), class_names=NAMES, class_ids=IDS,
        preprocess={**SIZES, "stuff": [0]},
    )  # fmt: skip
    weights, out = tmp_path / "run", tmp_path / "out"
    checkpoint.save(weights / "best", card=card, weights=model.state_dict())
    run(pictures, "--weights", weights, "--out", out, "--threshold", 0, "--attention")
    assert len(list((out / "attention").rglob("*.jpg"))) == 4
    found = read(out / "predictions.json")
    maps = check_maps(out)
    predictor = zoo.load_model(weights, device="cpu", fast=False)
    paths = [pictures / im["file_name"] for im in found["images"]]
    for number, seen in enumerate(predictor.stream(paths, threshold=0.0)):
        own = [a for a in found["annotations"] if a["image_id"] == number + 1]
        assert [a["segmentation"] for a in own] == [d.mask for d in seen.detections]
        assert [a["area"] for a in own] == [int(d.mask_array().sum()) for d in seen.detections]
        np.testing.assert_array_equal(maps[number], seen.panoptic.ids)
        infos = read(out / "panoptic.json")["annotations"][number]["segments_info"]
        assert [s["score"] for s in infos] == pytest.approx(seen.panoptic_scores)
        assert [s["category_id"] for s in infos] == [IDS[k] for k in seen.panoptic.labels]
    assert any(a["area"] for a in found["annotations"])


def test_threshold_and_classes_choose_objects_and_leave_segments(
    masks_run: Make, pictures: Path, tmp_path: Path
) -> None:
    weights, out = masks_run(stuff=[GROUND]), tmp_path / "out"

    def found(*options: Any) -> tuple[list[int], list[Any]]:
        run(pictures / "a.png", "--weights", weights, "--out", out, "--no-pictures", *options)
        annotations = read(out / "predictions.json")["annotations"]
        assert all(a["area"] > 0 for a in annotations)
        return [a["category_id"] for a in annotations], read(out / "panoptic.json")["annotations"]

    objects, segments = found()
    assert objects == [3, 20, 20, 7]
    assert found("--threshold", 0.8) == ([3, 20, 20], segments)
    assert found("--threshold", 0.8, "--classes", "pear,apple") == ([3], segments)
    assert found("--max-detections", 1) == ([3], segments)
    assert not (out / "pictures").exists()
    check_maps(out)


def test_a_detector_without_masks_writes_boxes_only(
    make_run: Make, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(pictures, "--weights", make_run(), "--out", out, "--threshold", 0.3, "--no-pictures")
    assert [p.name for p in out.iterdir()] == ["predictions.json"]
    found = read(out / "predictions.json")
    assert list(found) == ["info", "images", "annotations", "categories"]
    assert found["annotations"]
    for a in found["annotations"]:
        assert list(a) == ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "score"]
        assert a["area"] == pytest.approx(a["bbox"][2] * a["bbox"][3])


def test_what_a_checkpoint_does_not_say_of_stuff_is_told(
    masks_run: Make, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = (pictures / "a.png", "--out", out, "--no-pictures", "--weights")
    for preprocess, told in (({}, True), ({"stuff": []}, False)):
        run(*args, masks_run(**preprocess))
        assert ("does not say which classes are stuff" in capsys.readouterr().out) is told
        found = read(out / "panoptic.json")
        assert [c["isthing"] for c in found["categories"]] == [1, 1, 1]
        (record,) = found["annotations"]
        assert [s["category_id"] for s in record["segments_info"]] == [3, 20, 20, 7]


def test_a_trained_run_knows_what_is_stuff(pictures: Path, tmp_path: Path) -> None:
    weights, out = tmp_path / "trained", tmp_path / "out"
    small = [
        *(f"model.{key}={value}" for key, value in SMALL.items()),
        "model.threshold=0.0", "model.num_queries=12", "data.train_images=2", "data.val_images=1",
        "data.augment.sizes=[64]", "data.augment.max_size=96", "data.augment.val_size=64",
        "data.augment.val_max_size=96", "loader.batch_size=2", "run.epochs=1", "run.max_minutes=0",
        "run.device=cpu", "run.threads=1", "optim.autocast=float32",
    ]  # fmt: skip
    args = ["--model", "panoptic_detr_nano", "--data", "shapes_panoptic", "--out", str(weights)]
    assert train.main([*args, *small]) == 0
    predictor = zoo.load_model(weights, device="cpu", fast=False)
    assert [predictor.class_names[k] for k in predictor.stuff] == ["ground"]
    run(pictures, "--weights", weights, "--out", out, "--no-pictures")
    found = read(out / "panoptic.json")
    assert [c["name"] for c in found["categories"] if not c["isthing"]] == ["ground"]


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.jpg", "b c.PNG", "more/a.jpg"], ["a.png", "b c.png", "more/a.png"]),
        (["a.jpg", "b.jpg", "b.png"], ["a.jpg.png", "b.jpg.png", "b.png.png"]),
    ],
)
def test_no_two_pictures_share_a_map(paths: list[str], names: list[str]) -> None:
    assert Maps(Path("out"), paths, IDS).names == names


def test_pictures_of_one_stem_have_maps_of_their_own(masks_run: Make, tmp_path: Path) -> None:
    paint(tmp_path / "photos" / "a.png", apple=APPLE)
    paint(tmp_path / "photos" / "a.bmp", pear=PEAR)
    out = tmp_path / "out"
    run(tmp_path / "photos", "--weights", masks_run(stuff=[GROUND]), "--out", out, "--no-pictures")
    check_maps(out)
    labels = [
        {s["category_id"] for s in a["segments_info"]}
        for a in read(out / "panoptic.json")["annotations"]
    ]
    assert labels == [{7, 20}, {3, 20}]


def test_files_that_cannot_be_read_have_no_map(
    masks_run: Make, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "a bad.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    run(pictures, "--weights", masks_run(stuff=[GROUND]), "--out", out, status=1)
    found = read(out / "panoptic.json")
    assert [im["id"] for im in found["images"]] == [2, 3, 4, 5]
    assert "a bad.png" in (out / "failed.txt").read_text()
    assert len(check_maps(out)) == 4
    assert not (out / "panoptic" / "a bad.png").exists()


def test_a_map_that_cannot_be_written_is_one_sentence(
    masks_run: Make, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "panoptic").write_text("in the way")
    run(pictures, "--weights", masks_run(stuff=[GROUND]), "--out", out, status=2)
    err = capsys.readouterr().err
    assert err.count("error: ") == 1
    assert f"{out / 'panoptic' / 'a.png'} can't be written (File exists); free space" in err


# -- several processes -------------------------------------------------------------------------


def job(weights: Path, pictures: Path, out: Path) -> tuple[predict.PictureJob, argparse.Namespace]:
    args = predict.parser().parse_args(
        [str(pictures), "--weights", str(weights), "--out", str(out), "--batch-size", "1"]
    )
    model = predict.load_model(weights, device="cpu", fast=False)
    out.mkdir()
    return predict.PictureJob(args, model, settle(args, predict.PictureJob.suffixes, "p")), args


def test_each_process_writes_its_maps_and_the_first_one_file(
    masks_run: Make, pictures: Path, tmp_path: Path
) -> None:
    weights, one, three = masks_run(stuff=[GROUND]), tmp_path / "one", tmp_path / "three"
    run(pictures, "--weights", weights, "--out", one)
    work, _ = job(weights, pictures, three)
    for rank in (2, 0, 1):
        write_part(three, rank, work.records(range(rank, 4, 3)))
    parts = sorted(three.glob(".part_*"))
    assert [record[0] for record in read_parts(parts)] == [0, 1, 2, 3]
    assert work.finish(parts, 0.0) == 0
    for name in ("panoptic.json", "predictions.json"):
        mine, whole = read(three / name), read(one / name)
        assert mine == whole
    for path in (one / "panoptic").rglob("*.png"):
        other = three / path.relative_to(one)
        np.testing.assert_array_equal(read_map(other), read_map(path))


def test_maps_are_written_when_their_picture_is_done(
    masks_run: Make, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work, _ = job(masks_run(stuff=[GROUND]), pictures, out)
    records = work.records(range(4))
    first = next(records)
    assert (out / "panoptic" / "a.png").is_file()
    kept = json.dumps(first.plain())  # what goes through the parts: no pixels
    assert len(kept) < 3000
    assert [s["category_id"] for s in json.loads(kept)[4]] == [3, 20, 7]
    assert len(list(records)) == 3


# -- pictures ----------------------------------------------------------------------------------


def test_masks_are_drawn_in_the_colours_of_their_classes(masks_run: Make, tmp_path: Path) -> None:
    path, out = tmp_path / "big.png", tmp_path / "out"
    paint(path, (480, 320), apple=(80, 80, 200, 200), pear=(280, 120, 440, 280))
    weights = masks_run(stuff=[GROUND])

    def drawn(*options: Any) -> np.ndarray:
        run(path, "--weights", weights, "--out", out, *options)
        with Image.open(out / "pictures" / "big.png.jpg") as picture:
            assert picture.size == (480, 320)
            return np.asarray(picture).astype(int)

    def mixed(label: int) -> np.ndarray:
        return (np.array(class_colour(label)) + PAINT.get(label, (90, 90, 90))) / 2

    whole, apples = drawn(), drawn("--classes", "apple")
    for pixels in (whole, apples):
        assert np.abs(pixels[140, 140] - mixed(0)).max() < 8  # in the middle of the apple
    assert np.abs(whole[200, 360] - mixed(1)).max() < 8
    assert np.abs(whole[300, 120] - mixed(2)).max() < 8
    assert np.abs(apples[200, 360] - PAINT[1]).max() < 8  # the pear stays green
    assert np.abs(apples[300, 120] - 90).max() < 8


# -- scoring -----------------------------------------------------------------------------------


def write_set(folder: Path) -> None:
    """Pictures in COCO's panoptic format, with ids that name others than predict.py's do."""
    scenes: list[tuple[int, str, dict[str, Box]]] = [
        (2, "a.png", {"apple": APPLE, "pear": PEAR}),
        (3, "b.png", {"pear": (8, 8, 40, 40)}),
        (1, "c.png", {"apple": (16, 16, 72, 56)}),
    ]
    found = []
    for number, name, areas in scenes:
        paint(folder / "val" / name, **areas)
        ids = np.full((64, 96), 9, np.int32)
        for place, box in enumerate(areas.values(), 1):
            ids[area_of(box)] = place
        numbers = np.array([*range(1, len(areas) + 1), 9])
        labels = np.array([*(IDS[NAMES.index(fruit)] for fruit in areas), IDS[GROUND]])
        shown = Segmentation(ids, numbers, labels, np.zeros(len(numbers), bool))
        found.append((number, name, shown))
    write_panoptic(
        folder / "annotations" / "panoptic_val.json",
        found,
        images=[
            {"id": number, "file_name": name, "width": 96, "height": 64}
            for number, name, _ in scenes
        ],
        categories=[
            {"id": number, "name": name, "isthing": int(name != "ground")}
            for number, name in zip(IDS, NAMES, strict=True)
        ],
    )


@pytest.mark.parametrize("given", [["val"], ["val/b.png", "val/c.png", "val/a.png"]])
def test_what_is_written_is_scored_by_evaluate(
    given: list[str], masks_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures are the truth's by their names; by their ids none would be."""
    data, out, scores = tmp_path / "data", tmp_path / "out", tmp_path / "scores"
    write_set(data)
    pictures = [data / name for name in given]
    run(*pictures, "--weights", masks_run(stuff=[GROUND]), "--out", out, "--no-pictures")
    command = ["--results", out / "panoptic.json", "--data", f"coco_panoptic:{data}"]
    assert evaluate.main([str(a) for a in [*command, "--out", scores]]) == 0
    metrics = read(scores / "metrics.json")
    assert metrics["RQ"] == metrics["RQ_th"] == metrics["RQ_st"] == 1.0
    assert 0.9 < metrics["SQ"] <= 1.0
    assert "3 pictures, 3 classes" in capsys.readouterr().out
    before = (out / "panoptic.json").read_bytes()
    assert evaluate.main([str(a) for a in [*command, "--out", out]]) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert (out / "panoptic.json").read_bytes() == before
    # A segment of one class less is a segment less.
    found = read(out / "panoptic.json")
    found["annotations"][0]["segments_info"][0]["category_id"] = 7
    (out / "panoptic.json").write_text(json.dumps(found))
    assert evaluate.main([str(a) for a in [*command, "--out", scores]]) == 0
    assert read(scores / "metrics.json")["RQ"] < 1.0
