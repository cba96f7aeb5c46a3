"""Samples of questions: the window has the answer, every window is read, boxes stay in place."""

import numpy as np
import pytest
import torch

from zoo.collate import Collate
from zoo.datasets.ocr.page import Page
from zoo.datasets.questions import Asked, Corpus, QuestionAugment, QuestionRows, QuestionSet, moved
from zoo.datasets.tokens import load_tokenizer
from zoo.datasets.windows import EncodingConfig, padding_rules

ENCODING = EncodingConfig(length=48, overlap=8, question_length=16)


def page(count: int, seed: int) -> Page:
    words = tuple(f"w{seed}x{n}" for n in range(count))
    boxes = tuple((10.0 * (n % 8), 20.0 * (n // 8), 10.0 * (n % 8) + 9, 20.0 * (n // 8) + 15)
                  for n in range(count))  # fmt: skip
    return Page(words=words, boxes=boxes, width=100, height=400, source=f"page {seed}")


def corpus() -> Corpus:
    pages = [page(40, 1), page(5, 2), page(0, 3)]
    return Corpus(
        pages,
        [
            Asked(question_id=7, text="where is it?", pages=(0,), spans=(((30, 31), (2, 2)),)),
            Asked(question_id=8, text="and what?", pages=(1, 2), spans=(((4, 4),), ())),
            Asked(question_id=9, text="not on the page?", pages=(0,), spans=((),)),
        ],
    )


def words_of(sample, at: int) -> int:
    return int(sample.meta.extra["words"][at])


def test_training_shows_a_window_with_the_answer() -> None:
    data = QuestionSet(lambda _: corpus(), ENCODING, QuestionAugment(no_answer=0.0), seed=3)
    seen = set()
    for epoch in range(12):
        data.set_epoch(epoch)
        first, second, third = (data[n] for n in range(3))
        spans = {
            (words_of(first, a), words_of(first, b))
            for a, b in zip(*(first.target[k].tolist() for k in ("starts", "ends")), strict=True)
        }
        assert spans <= {(30, 31), (2, 2)}
        assert spans
        seen |= spans
        assert second.meta.extra["page"] == 0
        assert words_of(second, int(second.target["ends"])) == 4
        assert third.target["starts"].tolist() == [0]
    assert seen == {(30, 31), (2, 2)}


def test_a_part_of_the_windows_has_no_answer() -> None:
    data = QuestionSet(lambda _: corpus(), ENCODING, QuestionAugment(no_answer=0.5), seed=3)
    empty = 0
    for epoch in range(60):
        data.set_epoch(epoch)
        empty += data[0].target["starts"].tolist() == [0]
    assert 15 <= empty <= 45


def test_sizes_are_known_beforehand_and_draws_repeat() -> None:
    data = QuestionSet(lambda _: corpus(), ENCODING, QuestionAugment(), seed=3)
    again = QuestionSet(lambda _: corpus(), ENCODING, QuestionAugment(), seed=3)
    for epoch in (0, 5, 2):
        data.set_epoch(epoch)
        again.set_epoch(epoch)
        for n, size in enumerate(data.sizes()):
            sample = data[n]
            assert size == (1, len(sample.inputs["input_ids"]))
            for name, value in again[n].inputs.items():
                assert torch.equal(value, sample.inputs[name]), name
    boxes = []
    for epoch in range(3):
        data.set_epoch(epoch)
        boxes.append(data[1].inputs["bbox"].sum().item())
    assert len(set(boxes)) > 1


def test_evaluation_reads_every_word_of_every_page() -> None:
    data = QuestionRows(corpus(), ENCODING)
    seen: dict[tuple[int, int], set[int]] = {}
    for n in range(len(data)):
        sample = data[n]
        assert data.sizes()[n] == (1, len(sample.inputs["input_ids"]))
        extra = sample.meta.extra
        words = extra["words"][extra["starts"]].tolist()
        place = (sample.meta.image_id, extra["page"])
        assert not seen.get(place, set()) & set(words)
        seen.setdefault(place, set()).update(words)
    assert seen == {
        (0, 0): set(range(40)), (2, 0): set(range(40)), (1, 0): set(range(5)), (1, 1): set(),
    }  # fmt: skip


def test_rows_collate() -> None:
    data = QuestionRows(corpus(), ENCODING)
    rules = padding_rules(load_tokenizer(ENCODING.tokenizer), ENCODING)
    batch = Collate(rules)([data[0], data[len(data) - 1], data[4]])
    length = batch.inputs["input_ids"].shape[1]
    assert length % 8 == 0
    assert batch.inputs["attention_mask"].shape == (3, length)
    assert batch.inputs["bbox"].shape == (3, length, 4)


@pytest.mark.parametrize("draws", [np.zeros(4), np.ones(4), np.array([0.5, 1.0, 0.3, 0.9])])
def test_moved_boxes_stay_on_the_grid_and_in_order(draws: np.ndarray) -> None:
    bbox = torch.tensor([[0, 0, 0, 0], [0, 0, 1000, 1000], [10, 20, 30, 25], [1000] * 4])
    of_page = torch.tensor([False, True, True, False])
    new = moved(bbox, of_page, draws, 0.2)
    assert new.min() >= 0
    assert new.max() <= 1000
    assert (new[:, 2:] >= new[:, :2]).all()
    assert torch.equal(new[[0, 3]], bbox[[0, 3]])
    if not draws.any():
        assert torch.equal(new, bbox)


def test_spans_belong_to_pages() -> None:
    with pytest.raises(ValueError, match="one tuple of spans a page"):
        Asked(question_id=1, text="?", pages=(0, 1), spans=((),))
