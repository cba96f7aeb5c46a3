from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from painted import IDS, NAMES, Painted, detector, near, paint
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models.detr.detector import POOL, Detection, Detector, Seen, prefetch, read_picture
from zoo.registry import model_spec


def test_boxes_come_back_in_pixels_of_the_original() -> None:
    picture = paint((300, 160), red=(30, 20, 130, 100), green=(220, 60, 290, 150))
    found = detector().predict(picture)
    assert [f.label for f in found] == ["red", "green"]  # best first: the larger one
    assert [(f.class_id, f.index, f.query) for f in found] == [(7, 0, 0), (40, 1, 1)]
    assert near(found[0], (30, 20, 130, 100))
    assert near(found[1], (220, 60, 290, 150))
    assert all(isinstance(v, float) for f in found for v in (f.score, *f.box))
    assert 0.5 < found[1].score < found[0].score <= 1


def test_every_kind_of_picture_gives_the_same(tmp_path: Path) -> None:
    picture = paint((120, 100), red=(10, 10, 50, 60))
    path = tmp_path / "a.png"
    picture.save(path)
    array = np.array(picture)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    model = detector()
    expected = model.predict(path)
    assert len(expected) == 1
    for same in (str(path), path.read_bytes(), picture, array, tensor):
        assert model.predict(same) == expected


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "L", "1", "LA", "I;16"])
def test_pictures_of_any_mode_are_read(mode: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.full((40, 50), 65535, dtype=np.uint16))
    else:
        picture = Image.new("RGB", (50, 40), "white").convert(mode)
    pixels = read_picture(picture)
    assert pixels.shape == (3, 40, 50)
    assert pixels.dtype == torch.uint8
    assert int(pixels.min()) > 250


def test_grey_arrays_and_tensors_become_rgb() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for source in (grey, torch.from_numpy(grey)[None]):
        assert torch.equal(read_picture(source), torch.from_numpy(grey).expand(3, 3, 4))


@pytest.mark.parametrize(
    "source",
    [np.zeros((4, 4, 3), dtype=np.float32), torch.zeros(4, 4, 3), np.zeros((4, 4, 4), np.uint8), 5],
)
def test_what_is_no_picture_is_refused_by_name(source: Any) -> None:
    with pytest.raises(ZooError, match="is not a picture; give a path"):
        detector().predict(source)


def test_boxes_are_in_the_upright_picture(tmp_path: Path) -> None:
    upright = paint((160, 300), red=(20, 30, 100, 130))
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[274] = 6  # stored lying on its side
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    model = detector()
    for source in (path, Image.open(path)):
        (found,) = model.predict(source)
        assert near(found, (20, 30, 100, 130))


def test_a_list_gives_a_list_each_in_order_whatever_the_batches() -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for n in range(23):
        width, height = rng.integers(60, 240, 2).tolist()
        x, y = int(rng.integers(0, width - 40)), int(rng.integers(0, height - 40))
        pictures.append(paint((width, height), **{NAMES[n % 2]: (x, y, x + 40, y + 40)}))
    model = detector()
    alone = [model.predict(p) for p in pictures]
    assert [f.label for found in alone for f in found] == [NAMES[n % 2] for n in range(23)]
    for batch_size in (1, 4, 50):
        assert model.predict(pictures, batch_size=batch_size) == alone
    assert model.predict([]) == []
    assert model.predict(pictures[:1]) == alone[:1]


def test_pictures_of_one_size_and_no_others_share_a_batch() -> None:
    wide, tall = paint((200, 100)), paint((100, 200))
    model = detector()
    model.predict([wide, tall] * 5, batch_size=4)
    assert isinstance(model.model, Painted)
    shapes = [(1, 3, 100, 200), (1, 3, 200, 100), (4, 3, 100, 200), (4, 3, 200, 100)]
    assert sorted(model.model.batches) == shapes


def test_threshold_classes_and_limit_leave_out() -> None:
    picture = paint((100, 100), red=(0, 0, 60, 60), green=(70, 70, 90, 90))
    model = detector()
    red, green = model.predict(picture)
    assert model.predict(picture, classes=["green"]) == [green]
    assert model.predict(picture, classes=["GREEN", "red"]) == [red, green]
    assert model.predict(picture, threshold=(red.score + green.score) / 2) == [red]
    assert model.predict(picture, threshold=1.0) == []
    assert model.predict(picture, max_detections=1) == [red]
    assert len(model.predict(paint((100, 100)), threshold=0.0)) == 2


def test_what_cannot_be_meant_is_refused() -> None:
    picture = paint((100, 100))
    with pytest.raises(ZooError, match=r"knows no class 'gren'; did you mean green"):
        detector().predict(picture, classes=["gren"])
    with pytest.raises(ZooError, match=r"threshold of 50 is not in 0\.\.1"):
        detector().predict(picture, threshold=50)
    with pytest.raises(ZooError, match="batch_size"):
        detector().predict(picture, batch_size=0)


def test_a_bad_file_is_an_error_in_predict_and_a_result_in_a_stream(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    paint((100, 100), red=(0, 0, 60, 60)).save(good)
    bad.write_bytes(good.read_bytes()[:200])
    model = detector()
    with pytest.raises(ZooError, match=r"bad.png is truncated"):
        model.predict([good, bad])
    first, second, third, fourth = model.stream([good, bad, tmp_path / "none.png", good])
    assert isinstance(first, Seen)
    assert first.size == (100, 100)
    assert first.detections[0].label == "red"
    assert isinstance(second, ZooError)
    assert isinstance(third, ZooError)
    assert "none.png" in str(third)
    assert fourth == first


def test_a_stream_reads_no_further_ahead_than_it_has_to() -> None:
    drawn = 0

    def sources() -> Iterator[Image.Image]:
        nonlocal drawn
        for _ in range(10_000):
            drawn += 1
            yield paint((60, 60))

    stream = detector().stream(sources(), batch_size=2)
    next(stream)
    stream.close()
    assert drawn <= 2 * POOL + 2 * 2 + 1


def test_preprocessing_is_the_evaluations() -> None:
    model = detector(val_size=64, val_max_size=96)
    model.predict(paint((200, 100)))
    assert isinstance(model.model, Painted)
    assert model.model.batches == [(1, 3, 48, 96)]


def test_prefetch_keeps_order_and_raises_in_place() -> None:
    def work(n: int) -> int:
        if n == 3:
            raise ValueError("three")
        return n * n

    results = prefetch(work, range(9), threads=3, ahead=4)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert list(prefetch(work, [], threads=2, ahead=4)) == []


def test_prefetch_overlaps_with_its_consumer() -> None:
    second_started = threading.Event()

    def work(n: int) -> int:
        if n == 1:
            second_started.set()
        return n

    results = prefetch(work, range(3), threads=1, ahead=2)
    assert next(results) == 0
    assert second_started.wait(10)  # without anybody asking for it
    assert list(results) == [1, 2]


def test_a_batch_is_seen_when_its_first_result_is_due() -> None:
    """So that results with maps of whole pictures do not pile up."""
    wide, tall = paint((200, 100), red=(0, 0, 60, 60)), paint((100, 200), green=(0, 0, 60, 60))
    model = detector()
    assert isinstance(model.model, Painted)
    batches = model.model.batches
    stream = model.stream([wide, wide, tall, wide, tall, tall], batch_size=2)
    counts, labels = [], []
    for seen in stream:
        assert isinstance(seen, Seen)
        counts.append(len(batches))
        labels.append(seen.detections[0].label)
    assert labels == ["red", "red", "green", "red", "green", "green"]
    assert counts == [1, 1, 2, 3, 3, 4]


# -- attention on the real models --------------------------------------------------------------


def real(name: str) -> Detector:
    spec = model_spec(name)
    return Detector(
        spec.build(spec.config, 2).eval(),
        spec,
        class_names=NAMES,
        class_ids=IDS,
        preprocess={"val_size": 96, "val_max_size": 128},
        device=torch.device("cpu"),
    )


MODELS = ["detr_nano", "dab_detr_nano", "dn_detr_nano"]


@pytest.mark.parametrize("name", MODELS)
def test_attention_is_what_the_model_attended_with(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Tensor, Tensor, Tensor | None]] = []
    original = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, **rest: Any) -> Tensor:
        calls.append((q, k, attn_mask))
        return original(q, k, v, attn_mask=attn_mask, **rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model = real(name)
    picture = paint((128, 96), red=(10, 10, 40, 60))
    found = model.predict(picture, threshold=0.0)[:5]
    assert len(found) == 5
    calls.clear()
    maps = model.attention(picture, found, points=[(0, 0), (127.9, 95.9), (70, 30)])
    assert maps.detections.shape == (5, *maps.points.shape[1:])
    h, w = maps.points.shape[1:]
    assert h / w == pytest.approx(96 / 128)

    def weights(call: tuple[Tensor, Tensor, Tensor | None], rows: list[int]) -> Tensor:
        q, k, mask = call
        scores = q.double() @ k.double().mT / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1)[0].mean(0)[rows].float()

    # The encoder's layers come first; the decoder's last attention is the one to the memory.
    own, cross = calls[model.spec.config.encoder_layers - 1], calls[-1]
    assert own[0].shape[2] == own[1].shape[2] == cross[1].shape[2] == h * w
    queries = [f.query for f in found]
    torch.testing.assert_close(maps.detections.flatten(1), weights(cross, queries))
    places = [0, h * w - 1, int(30 / 96 * h) * w + int(70 / 128 * w)]
    torch.testing.assert_close(maps.points.flatten(1), weights(own, places))
    torch.testing.assert_close(maps.detections.sum((1, 2)), torch.ones(5))


@pytest.mark.parametrize("name", MODELS)
def test_looking_inside_leaves_the_model_as_it_was(name: str) -> None:
    model = real(name)
    picture = paint((128, 96), red=(10, 10, 40, 60))
    before = model.predict(picture, threshold=0.0)
    maps = model.attention(picture)
    assert maps.detections.shape[0] == maps.points.shape[0] == 0
    assert model.predict(picture, threshold=0.0) == before
    hooks = [m for m in model.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_attention_that_cannot_be_had_says_why() -> None:
    picture = paint((128, 96))
    with pytest.raises(ZooError, match=r"point \(500, 3\) is outside the 128 x 96 picture"):
        real("detr_nano").attention(picture, points=[(500, 3)])
    unknown = Detection("red", 0.9, (0.0, 0.0, 1.0, 1.0), class_id=7, index=0, query=-1)
    with pytest.raises(ZooError, match="don't tell their query"):
        real("detr_nano").attention(picture, [unknown])
    with pytest.raises(ZooError, match="model Painted has no cross_attn in its decoder"):
        detector().attention(picture)


def test_mixed_precision_gives_nearly_the_same() -> None:
    model = real("detr_nano")
    picture = paint((128, 96), red=(10, 10, 40, 60))
    exact = model.attention(picture, points=[(20, 20)])
    model.autocast = torch.bfloat16
    half = model.attention(picture, points=[(20, 20)])
    assert half.points.dtype == torch.float32
    torch.testing.assert_close(half.points, exact.points, rtol=0.1, atol=1e-3)


def test_bytes_that_are_no_picture_are_refused() -> None:
    with pytest.raises(ZooError, match="not a picture"):
        detector().predict(b"text")
