from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.errors import ZooError
from zoo.visualize import (
    add_legend,
    as_pil,
    bar_chart,
    class_colour,
    contact_sheet,
    draw_boxes,
    learning_curve,
    mark_point,
    mark_text,
    overlay_heat,
    precision_recall_curves,
)

GREY = torch.full((3, 120, 160), 90, dtype=torch.uint8)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def changed(picture: Image.Image, base: Any = 90) -> np.ndarray:
    """Where a picture differs from a flat one, [H, W]."""
    return (np.asarray(picture).astype(int) != base).any(-1)


@pytest.mark.parametrize(
    "image",
    [
        GREY,
        GREY[:1],
        GREY.permute(1, 2, 0).numpy(),
        Image.new("RGB", (160, 120), (90, 90, 90)),
        Image.new("L", (160, 120), 90),
    ],
)
def test_every_kind_of_image_is_taken(image: Any) -> None:
    picture = as_pil(image)
    assert (picture.mode, picture.size) == ("RGB", (160, 120))
    assert not changed(picture).any()


def test_the_image_given_stays_as_it_is() -> None:
    given = Image.new("RGB", (160, 120), (90, 90, 90))
    draw_boxes(given, [[10, 10, 50, 50]], [0])
    mark_point(given, 5, 5)
    overlay_heat(given, np.eye(3))
    assert not changed(given).any()


@pytest.mark.parametrize(
    "image",
    [torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.uint8), np.zeros((4, 4, 3), np.float32)],
)
def test_images_of_another_layout_are_refused(image: Any) -> None:
    with pytest.raises(ValueError, match="uint8"):
        as_pil(image)


def test_boxes_are_drawn_where_they_are() -> None:
    picture = draw_boxes(GREY, torch.tensor([[30.0, 40.0, 100.0, 90.0]]))
    where = np.argwhere(changed(picture))
    assert where.min(0).tolist() == [40, 30]
    assert where.max(0).tolist() == [90, 100]
    assert not changed(picture)[50:80, 40:90].any()  # the inside is left alone


def test_boxes_over_the_edge_and_without_area_are_drawn_too() -> None:
    boxes = np.array([[-20, -20, 500, 500], [50, 50, 50, 50], [200, 20, 190, 10], [90, 80, 70, 60]])
    for dashed in (None, [True] * 4):
        picture = draw_boxes(GREY, boxes, [0, 1, 2, 3], class_names="abcd", dashed=dashed)
        assert changed(picture)[0, :8].any()
        assert changed(picture)[119, 150:].any()
        assert changed(picture)[50, 50]


def test_no_boxes_change_nothing() -> None:
    assert not changed(draw_boxes(GREY, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0))).any()


def test_dashed_lines_have_gaps() -> None:
    box = [[10, 10, 150, 110]]
    solid, dashed = (draw_boxes(GREY, box, [0], dashed=[d]) for d in (False, True))
    assert changed(solid)[10, 10:150].all()
    assert 0.3 < changed(dashed)[10, 10:150].mean() < 0.8


def test_labels_are_readable_at_every_size() -> None:
    for width, height in ((80, 60), (640, 480), (3000, 2000)):
        image = np.full((height, width, 3), 90, np.uint8)
        box = [[width * 0.3, height * 0.5, width * 0.6, height * 0.9]]
        bare = changed(draw_boxes(image, box, [0]))
        named = changed(draw_boxes(image, box, [0], [0.987], class_names=["lorry"]))
        plate = np.argwhere(named & ~bare)
        high, wide = np.ptp(plate, axis=0) + 1
        assert high >= max(7, height / 60)
        assert wide >= 3 * high  # "lorry 99%"


def test_letters_contrast_with_their_plate() -> None:
    image = np.full((600, 800, 3), 90, np.uint8)
    for index in range(60):
        colour = class_colour(index)
        picture = draw_boxes(image, [[100, 300, 500, 550]], [index], class_names=["W"] * 60)
        plate = np.asarray(picture)[:300].reshape(-1, 3).astype(int)
        inks = [ink for ink in ((0, 0, 0), (255, 255, 255)) if (plate == ink).all(-1).any()]
        assert len(inks) == 1
        luminance = [np.dot(c, (0.299, 0.587, 0.114)) for c in (inks[0], colour)]
        assert abs(luminance[0] - luminance[1]) > 75


def test_better_boxes_are_drawn_over_worse_ones() -> None:
    boxes = [[20, 20, 100, 100]] * 2
    for scores, best in (([0.9, 0.5], 0), ([0.5, 0.9], 1)):
        picture = draw_boxes(GREY, boxes, [0, 1], scores)
        assert picture.getpixel((20, 90)) == class_colour(best)


def test_colours_and_texts_can_be_given() -> None:
    picture = draw_boxes(GREY, [[20, 20, 100, 100]], colours=[(1, 2, 3)], texts=["x"])
    assert picture.getpixel((20, 90)) == (1, 2, 3)


def test_small_images_can_be_enlarged_first() -> None:
    picture = draw_boxes(GREY, [[40, 40, 80, 80]], [0], min_side=480)
    assert picture.size == (480, 360)
    assert picture.getpixel((120, 200)) == class_colour(0)
    assert draw_boxes(GREY, [], [], min_side=100).size == (160, 120)


def test_classes_have_different_colours() -> None:
    colours = [class_colour(n) for n in range(30)]
    assert len(set(colours)) == 30
    assert class_colour(3) == class_colour(3)


def page_with_words() -> tuple[np.ndarray, list[list[int]]]:
    """White paper with black words in rows that leave no room between them, [y, x] below."""
    image = np.full((600, 640, 3), 255, np.uint8)
    words = [[x, y, x + 60, y + 14] for y in range(40, 240, 16) for x in range(40, 520, 64)]
    for x1, y1, x2, y2 in words:
        image[y1 + 4 : y2 - 4, x1:x2:3] = 0
    return image, words


def test_marked_text_stays_readable_and_its_paper_is_coloured() -> None:
    image, words = page_with_words()
    chosen = words[10]
    picture = np.asarray(mark_text(image, [chosen], [1], ["TOTAL"], words=words))
    for x1, y1, x2, y2 in words:
        assert (picture[y1 + 4 : y2 - 4, x1:x2:3] == 0).all()  # every stroke is there
    x1, y1, x2, _ = chosen
    paper = picture[y1 + 1, x1 + 1 : x2 - 1].astype(int)
    assert (paper == paper[0]).all()
    assert paper[0].argmax() == np.argmax(class_colour(1))
    assert paper[0].min() < 200
    others = [w for w in words if w[1] != y1]
    assert all((picture[w[1] + 1, w[0] : w[2]] == 255).all() for w in others)  # no plate on a word


def test_a_text_is_written_where_there_is_room_and_nowhere_else() -> None:
    image, words = page_with_words()
    bare = np.asarray(mark_text(image, words, [0] * len(words), [""] * len(words), words=words))
    named = mark_text(image, words, [0] * len(words), ["NAME"] * len(words), words=words)
    changed_ = (np.asarray(named) != bare).any(-1)
    assert changed_.any()
    for x1, y1, x2, y2 in words:
        assert not changed_[y1 : y2 + 1, x1 : x2 + 1].any()
    plates = (np.asarray(named) == class_colour(0)).all(-1)
    assert plates[:40].any()  # above the first row
    assert plates[:, 548:].any()  # right of the last words
    assert not plates[60:200, 110:480].any()  # and none in the thick of it
    lonely = mark_text(image, [[40, 400, 100, 414]], [2], ["ALONE"], words=words)
    right = (np.asarray(lonely)[395:420, 100:200] == class_colour(2)).all(-1)
    assert right.any()


def test_nothing_to_mark_changes_nothing() -> None:
    image, words = page_with_words()
    assert np.array_equal(np.asarray(mark_text(image, [], [], [], words=words)), image)


def test_a_legend_stands_below_the_image() -> None:
    image, _ = page_with_words()
    picture = np.asarray(add_legend(image, [0, 4], ["NAME 3", "TOTAL 1"]))
    assert picture.shape[1] == 640
    assert picture.shape[0] > 600
    assert np.array_equal(picture[:600], image)
    strip = picture[600:]
    for index in (0, 4):
        assert (strip == class_colour(index)).all(-1).sum() >= 100
    assert not (strip == class_colour(1)).all(-1).any()
    many = add_legend(image, list(range(30)), [f"menu.sub_price {n}" for n in range(30)])
    tall = np.asarray(many)[600:]
    assert tall.shape[0] > 3 * strip.shape[0]  # they go on in further rows
    for index in range(30):
        assert (tall == class_colour(index)).all(-1).sum() >= 100


def test_contact_sheet_holds_every_image() -> None:
    images = [np.full((40, 40 + 10 * n, 3), 20 * n, np.uint8) for n in range(7)]
    sheet = contact_sheet(images, columns=3, cell=100, titles=[f"folder/{n}" for n in range(7)])
    assert sheet.width == 3 * 100 + 4 * 2
    assert sheet.height < 3 * (100 + 12 + 2) + 2
    colours = {c for _, c in sheet.getcolors(1 << 20) or ()}
    assert {(20 * n,) * 3 for n in range(7)} <= colours
    assert contact_sheet(images[:1], columns=4, cell=100).width == 104
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_heat_is_where_it_belongs() -> None:
    heat = torch.zeros(6, 8)
    heat[1, 6] = 3.0
    pixels = np.asarray(overlay_heat(GREY, heat)).astype(int).sum(-1)
    y, x = np.unravel_index(pixels.argmax(), pixels.shape)
    assert (y // 20, x // 20) == (1, 6)
    assert np.asarray(overlay_heat(GREY, torch.ones(3, 3))).std() == 0  # nothing stands out
    with pytest.raises(ValueError, match="heat map"):
        overlay_heat(GREY, torch.ones(3))


def test_points_are_marked() -> None:
    where = np.argwhere(changed(mark_point(GREY, 40, 70)))
    assert where.mean(0) == pytest.approx([70, 40], abs=1)


def log_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(20, 400, 20):
        rows.append({"kind": "train", "step": step, "epoch": step // 100, "loss": 90 / step})
        if step % 100 == 0:
            rows.append(
                {
                    "kind": "eval",
                    "step": step,
                    "epoch": step // 100,
                    "minutes": 1.0,
                    "AP": step / 500,
                }
            )
    return rows


def test_learning_curve_is_drawn_from_rows_or_a_log(tmp_path: Path) -> None:
    rows = log_rows()
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"kind": "tra')  # cut by a kill
    learning_curve(rows, tmp_path / "a.png")
    learning_curve(log, tmp_path / "b.png")
    a, b = (pixels_of(tmp_path / f"{n}.png") for n in "ab")
    assert a.shape[0] > 300
    assert (a == b).all()
    learning_curve(rows[:4], tmp_path / "c.png")  # no evaluation yet
    c = pixels_of(tmp_path / "c.png")
    assert (a != c).any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png", "c.png", "log.jsonl"]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"kind": "train", "step": 1, "loss": 1.0}],
        [{"kind": "eval", "step": 0, "epoch": 0, "AP": -1.0}],
        [{"kind": "eval", "step": 5, "epoch": 0, "minutes": 0.1, "AP": 0.5, "note": "text"}],
        [{"kind": "train", "step": n, "loss": v} for n, v in enumerate([1.0, float("nan"), 0.0])],
        [{"kind": "other", "step": 3}],
    ],
)
def test_learning_curve_of_a_young_run_is_drawn(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    learning_curve(rows, tmp_path / "deep" / "curve.png")
    assert pixels_of(tmp_path / "deep" / "curve.png").shape[1] > 300


def test_learning_curve_draws_the_metrics_it_is_asked_for(tmp_path: Path) -> None:
    rows = [r | ({"F1": 0.9} if r["kind"] == "eval" else {}) for r in log_rows()]
    for name, metrics in (("a", ["AP"]), ("b", ["AP", "F1"]), ("c", None)):
        learning_curve(rows, tmp_path / f"{name}.png", metrics=metrics)
    a, b, c = (pixels_of(tmp_path / f"{n}.png") for n in "abc")
    assert (a != b).any()
    assert (b == c).all()


def test_curves_and_bars_are_drawn(tmp_path: Path) -> None:
    levels = np.linspace(0, 1, 11)
    precision_recall_curves(levels, {"a": 1 - levels}, tmp_path / "a.png", title="t")
    precision_recall_curves(levels, {"a": np.full(11, np.nan)}, tmp_path / "b.png", title="t")
    precision_recall_curves(levels, {}, tmp_path / "c.png")
    bar_chart({f"class {n}": n / 40 for n in range(40)}, tmp_path / "d.png", unit="AP")
    a, b = (pixels_of(tmp_path / f"{n}.png") for n in "ab")
    assert (a != b).any()
    assert pixels_of(tmp_path / "d.png").shape[0] > 600


def test_no_global_figures_are_left_open(tmp_path: Path) -> None:
    import sys

    learning_curve([], tmp_path / "a.png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match=r"curve.png can't be written"):
        learning_curve([], tmp_path / "file" / "curve.png")
