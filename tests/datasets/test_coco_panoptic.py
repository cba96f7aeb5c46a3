"""COCO's panoptic format: reading, masks of samples, what is wrong with files, writing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.datasets.coco import CocoConfig
from zoo.datasets.coco_panoptic import matches, open_coco_panoptic
from zoo.datasets.coco_panoptic_records import (
    PanopticTruth,
    from_two_channels,
    predictions,
    write_panoptic,
)
from zoo.datasets.masks import pixels_of
from zoo.datasets.panoptic_eval import evaluate_panoptic
from zoo.datasets.transforms import AugmentConfig
from zoo.errors import ZooError

CATEGORIES = [
    {"id": 7, "name": "cat", "isthing": 1},
    {"id": 200, "name": "sky", "isthing": 0},
    {"id": 2, "name": "dog", "isthing": 1},
]
SMALL = AugmentConfig(
    sizes=(40, 48), max_size=96, crop_resize=(40, 50), crop_size=(24, 40), val_size=40,
    val_max_size=80,
)  # fmt: skip


def info(number, category, ids, crowd=0):
    rows, columns = np.nonzero(ids == number)
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    return {
        "id": number, "category_id": category, "iscrowd": crowd, "area": len(rows),
        "bbox": [int(v) for v in box],
    }  # fmt: skip


def write_split(folder: Path, split: str, offset: int = 0) -> None:
    """Two pictures of 60 x 40: sky above, a cat, a dog, a crowd of dogs, void on the right."""
    maps = folder / "annotations" / f"panoptic_{split}"
    maps.mkdir(parents=True)
    (folder / split).mkdir()
    images, annotations = [], []
    for n in range(2):
        ids = np.zeros((40, 60), np.int32)
        ids[:20, :50] = 300
        ids[20:, :25] = 70_000
        ids[25:35, 30:40] = 5
        ids[36:, 30:45] = 9
        if n:
            ids = ids[::-1].copy()
        number = 10 + n + offset
        colours = np.stack([(ids % 251).astype(np.uint8)] * 3, axis=-1)
        Image.fromarray(colours).save(folder / split / f"{n}.png")
        Image.fromarray(pixels_of(ids)).save(maps / f"{n}.png")
        images.append({"id": number, "file_name": f"{n}.png", "width": 60, "height": 40})
        segments = [
            info(9, 2, ids, crowd=1), info(300, 200, ids), info(70_000, 7, ids), info(5, 2, ids),
        ]  # fmt: skip
        annotations.append({"image_id": number, "file_name": f"{n}.png", "segments_info": segments})
    data = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(data))


@pytest.fixture
def panoptic(tmp_path) -> Path:
    write_split(tmp_path, "train")
    write_split(tmp_path, "val", 100)
    return tmp_path


def opened(folder, **more):
    return open_coco_panoptic(CocoConfig(folder=str(folder), augment=SMALL, **more))


def test_a_sample_has_a_mask_for_every_object_but_crowds(panoptic):
    source = opened(panoptic)
    assert source.class_names == ("dog", "cat", "sky")
    assert source.class_ids == (2, 7, 200)
    sample = source.val[0]
    target = sample.target
    assert target["labels"].tolist() == [2, 1, 0]
    assert sample.meta.extra["stuff"] == (2,)
    assert source.preprocess == {"val_size": 40, "val_max_size": 80, "stuff": [2]}
    assert target["masks"].dtype == torch.bool
    assert target["masks"].shape == (3, 10, 15)
    # The val picture is as it is: sky 20 x 50 pixels are 5 x 12.5 cells.
    sky, cat, _dog = target["masks"]
    assert sky[:5, :12].all()
    assert sky.sum() == 5 * 12
    assert cat[5:, :6].all()
    assert not (sky & cat).any()
    assert matches(panoptic) is None
    assert "panoptic_train.json" in matches(panoptic / "train")


def test_masks_follow_crops_and_flips(panoptic):
    source = opened(panoptic)
    cut_off = 0
    for epoch in range(12):
        source.train.set_epoch(epoch)
        sizes = source.train.sizes()
        for place in range(2):
            sample = source.train[place]
            height, width = sample.meta.size
            assert sizes[place] == (height, width)
            masks, boxes = sample.target["masks"], sample.target["boxes"]
            assert len(masks) == len(boxes) == len(sample.target["labels"])
            cut_off += len(boxes) < 3
            assert masks.shape[1:] == (-(-height // 4), -(-width // 4))
            # A cell's pixel in the picture has the grey of its segment.
            grey = {2: 300 % 251, 1: 70_000 % 251, 0: 5}
            pixels = sample.inputs["pixel_values"][0]
            for mask, box, label in zip(masks, boxes, sample.target["labels"], strict=True):
                rows, columns = (v * 4 + 2 for v in mask.nonzero().unbind(1))
                inside = (rows < height) & (columns < width)
                rows, columns = rows[inside], columns[inside]
                shown = pixels[rows, columns].int()
                right = (shown - grey[int(label)]).abs() <= 3
                if len(right) > 8:  # the others are mixed with a neighbour
                    assert right.float().mean() > 0.5
                x, y, w, h = (box * torch.tensor([width, height, width, height])).tolist()
                assert (columns >= x - w / 2 - 1).all()
                assert (columns <= x + w / 2 + 1).all()
                assert (rows >= y - h / 2 - 1).all()
                assert (rows <= y + h / 2 + 1).all()
    assert cut_off


def test_overfitting_and_scores_of_the_truth(panoptic):
    source = opened(panoptic).overfit(1)
    assert len(source.train) == len(source.val) == 1
    evaluator = source.evaluator()
    metrics = evaluator.compute()
    assert metrics["PQ"] == 0.0
    assert metrics["AP"] == metrics["mask_AP"] == 0.0


def change(folder, edit, split="train"):
    path = folder / "annotations" / f"panoptic_{split}.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def segment(data, place=1):
    return data["annotations"][0]["segments_info"][place]


BAD = {
    "no isthing": (lambda d: d["categories"][0].pop("isthing"), "isthing None"),
    "unknown category": (
        lambda d: segment(d).update(category_id=66),
        "segment 300 of image id 10 has category id 66",
    ),
    "no category": (lambda d: segment(d).pop("category_id"), "category id None"),
    "a category without an id": (lambda d: d["categories"][1].pop("id"), "[1] has id None"),
    "an image without an id": (lambda d: d["images"].append({"file_name": "0.png"}), "id None"),
    "an id that is a list": (lambda d: d["images"].append({"id": [1]}), "images[2] has id [1]"),
    "unknown image": (lambda d: d["annotations"][0].update(image_id=1), "image id 1"),
    "two annotations": (lambda d: d["annotations"][1].update(image_id=10), "two annotations"),
    "no annotation": (lambda d: d["annotations"].pop(), "image id 11 has no annotation"),
    "no map's name": (lambda d: d["annotations"][0].pop("file_name"), "file_name None"),
    "a name outside": (lambda d: d["annotations"][0].update(file_name="../a"), "'../a'"),
    "no segments": (lambda d: d["annotations"][0].pop("segments_info"), "no list segments_info"),
    "id 0": (lambda d: segment(d).update(id=0), "has id 0"),
    "id too high": (lambda d: segment(d).update(id=2**24), "has id 16777216"),
    "id twice": (lambda d: segment(d).update(id=5), "segment 5 twice"),
    "bad box": (lambda d: segment(d).update(bbox=[0, 0, 0, 5]), "bbox [0, 0, 0, 5]"),
    "box outside": (lambda d: segment(d).update(bbox=[70, 0, 9, 9]), "inside the picture"),
    "no map": (lambda d: d["annotations"][0].update(file_name="x.png"), "lacks 1 of the 2 maps"),
    "a picture outside": (
        lambda d: d["images"][0].update(file_name="../0.png"),
        "leads out of the pictures' folder",
    ),
    "a map elsewhere": (lambda d: d["annotations"][0].update(file_name="/etc/a"), "'/etc/a'"),
    "no list of images": (lambda d: d.pop("images"), "no list 'images'"),
    "no category of that name": (lambda d: d["categories"][0].pop("name"), "name None"),
    "a segment that is none": (
        lambda d: d["annotations"][0].update(segments_info=[7]),
        "no list segments_info",
    ),
    "no picture": (lambda d: d["images"][0].update(file_name="x.png"), "lacks 1 of the 2 pict"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_is_wrong_with_the_json_is_told_in_one_sentence(panoptic, fault, coco_kit):
    edit, words = BAD[fault]
    change(panoptic, edit)
    with pytest.raises(ZooError) as caught:
        opened(panoptic)
    coco_kit.one_sentence(caught, "; ", words, panoptic / "annotations" / "panoptic_train")


def test_json_that_is_broken_is_told_with_line_and_column(panoptic, coco_kit):
    path = panoptic / "annotations" / "panoptic_train.json"
    path.write_text('{"images": [\n}')
    with pytest.raises(ZooError) as caught:
        opened(panoptic)
    coco_kit.one_sentence(caught, "; ", f"{path}, line 2, column 1: broken JSON")


def test_folders_are_recognised_by_names_that_say_panoptic(panoptic, tmp_path):
    """Splits may be called anything; a JSON of another format beside them has no maps."""
    maps = panoptic / "annotations"
    for split in ("train", "val"):
        (maps / f"panoptic_{split}").rename(maps / f"panoptic_{split}_old")
        (maps / f"panoptic_{split}.json").rename(maps / f"panoptic_{split}_old.json")
    assert matches(panoptic) is None
    for split in ("train", "val"):
        (maps / f"panoptic_{split}_old").rename(tmp_path / split[::-1])
    assert "panoptic_train.json" in matches(panoptic)


def repaint(folder, paint, mode="RGB"):
    path = folder / "annotations" / "panoptic_train" / "0.png"
    pixels = np.array(Image.open(path))
    Image.fromarray(paint(pixels)).convert(mode).save(path)


MAPS = {
    "size": (
        lambda p: p[:20],
        "RGB",
        "60 x 20 pixels where the record of image id 10 says 60 x 40",
    ),
    "lacks a segment": (lambda p: np.where(p == 5, 0, p), "RGB", "lacks segment 5"),
    "unlisted": (
        lambda p: np.concatenate([p[:, :59], np.full((40, 1, 3), 6, np.uint8)], 1),
        "RGB",
        "has pixels of segment 394758",
    ),
    "palette": (lambda p: p, "P", "mode P"),
}


@pytest.mark.parametrize("fault", MAPS)
def test_what_is_wrong_with_a_map_is_told_when_it_is_read(panoptic, fault, coco_kit):
    paint, mode, words = MAPS[fault]
    repaint(panoptic, paint, mode)
    with pytest.raises(ZooError) as caught:
        opened(panoptic).train[0]
    coco_kit.one_sentence(caught, "; ", words, "annotations/panoptic_train/0.png")


def test_a_broken_map_and_missing_folders(panoptic, tmp_path):
    (panoptic / "annotations" / "panoptic_train" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ZooError, match=r"0\.png"):
        opened(panoptic).train[0]
    (panoptic / "annotations" / "panoptic_val").rename(tmp_path / "elsewhere")
    with pytest.raises(ZooError, match="no folder of maps"):
        opened(panoptic)
    with pytest.raises(ZooError, match=r"no panoptic annotations.*panoptic_other.json"):
        opened(panoptic, train_split="other")
    with pytest.raises(ZooError, match="there is no data folder"):
        opened(tmp_path / "nowhere")


def test_splits_have_to_agree_and_pictures_are_not_mixed(panoptic):
    with pytest.raises(ZooError, match="mosaic"):
        open_coco_panoptic(CocoConfig(folder=str(panoptic), augment=replace(SMALL, mosaic=0.5)))
    change(panoptic, lambda d: d["categories"][0].update(isthing=0), "val")
    with pytest.raises(ZooError, match="differ in their categories"):
        opened(panoptic)


def test_what_is_written_is_read_again(panoptic, tmp_path):
    truth = PanopticTruth.open(panoptic / "annotations" / "panoptic_val.json")
    shown = [(n, f"{n}.jpg", truth.segmentation(n)) for n in truth.image_ids()]
    out = tmp_path / "out" / "found.json"
    write_panoptic(out, shown, scores={110: (0.5, 0.25, 0.75, 1.0)})
    again = predictions(out, truth)
    for number, _, segments in shown:
        np.testing.assert_array_equal(again.segmentation(number).ids, segments.ids)
    written = json.loads(out.read_text())["annotations"][0]
    original = truth.content["annotations"][0]["segments_info"]
    for mine, theirs, score in zip(
        written["segments_info"], original, (0.5, 0.25, 0.75, 1.0), strict=True
    ):
        assert mine == {**theirs, "score": score}
    # A truth as a prediction has the crowds, which are wrong for nobody.
    assert evaluate_panoptic(truth, again).metrics()["PQ"] == 1.0


def test_predictions_that_do_not_fit(panoptic, tmp_path):
    truth = PanopticTruth.open(panoptic / "annotations" / "panoptic_val.json")
    out = tmp_path / "found.json"
    write_panoptic(out, [(110, "0.jpg", truth.segmentation(110))])
    with pytest.raises(ZooError, match="no prediction for image id 111"):
        evaluate_panoptic(truth, predictions(out, truth))
    write_panoptic(out, [(3, "0.jpg", truth.segmentation(110))])
    with pytest.raises(ZooError, match="image id 3"):
        predictions(out, truth)
    for content, words in (("[", "as JSON"), ("[]", "no list 'annotations'")):
        out.write_text(content)
        with pytest.raises(ZooError, match=words):
            predictions(out, truth)
    with pytest.raises(ZooError, match="there is no file"):
        predictions(tmp_path / "nothing.json", truth)


def test_predictions_of_other_ids_are_matched_by_file_names(panoptic, tmp_path):
    truth = PanopticTruth.open(panoptic / "annotations" / "panoptic_val.json")
    out = tmp_path / "found.json"
    one, two = (truth.segmentation(n) for n in (110, 111))  # 0.png and 1.png

    def score(*names: str, ids: tuple[int, int] = (1, 2)) -> float:
        images = [{"id": n, "file_name": name} for n, name in zip(ids, names, strict=True)]
        shown = [(ids[0], "b.png", two), (ids[1], "a.png", one)]
        write_panoptic(out, shown, images=images)
        return evaluate_panoptic(truth, predictions(out, truth)).metrics()["PQ"]

    assert score("1.png", "0.png") == 1.0
    assert score("val/1.png", "val/0.png") == 1.0  # in a folder of them
    assert score("1.png", "0.png", ids=(110, 111)) == 1.0  # whose ids are others'
    with pytest.raises(ZooError, match=r"annotations\[0\] is of image id 1,"):
        score("other.png", "0.png")
    with pytest.raises(ZooError, match=r"image id 110 is 1.jpg, and 0.png in .*panoptic_val.json"):
        score("1.jpg", "0.jpg", ids=(110, 111))
    # Two of one name are not told apart by it; that their ids are the truth's is not known either.
    with pytest.raises(ZooError, match=r"image id 110 is a/1.png, and 0.png in"):
        score("a/1.png", "b/1.png", ids=(110, 111))
    # By ids where no picture is named, or named alike but for the suffix.
    write_panoptic(out, [(110, "x.png", one), (111, "y.png", two)], images=[{"id": 110}])
    assert evaluate_panoptic(truth, predictions(out, truth)).metrics()["PQ"] == 1.0
    images = [{"id": 110, "file_name": "0.jpg"}, {"id": 111, "file_name": "1.jpg"}]
    write_panoptic(out, [(110, "x.png", one), (111, "y.png", two)], images=images)
    assert evaluate_panoptic(truth, predictions(out, truth)).metrics()["PQ"] == 1.0


def test_the_real_sample(shared_data):
    folder = shared_data / "coco_panoptic_sample"
    split = "panoptic_examples"
    source = opened(folder, train_split=split, val_split=split)
    assert len(source.class_names) == 133
    sample = source.val[0]
    assert len(sample.target["masks"]) == 17  # of 18 segments one is a crowd
    covered = sample.target["masks"].any(0).float().mean()
    assert covered > 0.8
    assert sample.target["masks"].sum(0).max() == 1


def test_the_two_channel_format_cuts_a_picture_the_same_way(shared_data):
    folder = shared_data / "coco_panoptic_sample"
    truth = PanopticTruth.open(folder / "panoptic_examples.json")
    for number in truth.image_ids():
        shown = truth.segmentation(number)
        other = from_two_channels(folder / "panoptic_examples_2ch_format" / truth.path(number).name)
        assert set(other.labels.tolist()) <= set(truth.categories)
        for segment_id, label, crowd in zip(shown.numbers, shown.labels, shown.crowd, strict=True):
            if crowd:
                continue
            inside = np.unique(other.ids[shown.ids == segment_id])
            assert len(inside) == 1
            assert other.labels[other.numbers == inside[0]] == [label]
