"""Pages: what one refuses, the grid, our own format, boxes put on the page."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.datasets.ocr.page import Page, on_page, page_from_json
from zoo.errors import ZooError

PAGE = Page(
    words=("TOTAL", "12.50", "東京"),
    boxes=((10, 10, 50, 20), (60, 10, 100, 21.5), (0, 150, 100, 200)),
    width=100, height=200, confidences=(0.9, 1.0, 0.5), lines=(0, 0, 1), blocks=(0, 0, 1),
    source="scan.png",
)  # fmt: skip


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ((50, 10, 10, 20), "is inverted"),
        ((-1, 10, 10, 20), "is negative"),
        ((10, 10, 101, 20), "reaches over the page of 100 x 200"),
        ((10, 10, 20, 201), "reaches over the page"),
        ((10, 10, 20, float("nan")), "is not four finite numbers"),
    ],
)
def test_a_page_refuses_boxes_that_are_none(box, fault) -> None:
    with pytest.raises(ZooError, match=rf"scan\.png, word 1 '12\.50': its box .* {fault}"):
        replace(PAGE, boxes=(PAGE.boxes[0], box, PAGE.boxes[2]))


def test_a_page_needs_one_of_each_a_word_and_a_size() -> None:
    with pytest.raises(ZooError, match="2 lines for 3 words"):
        replace(PAGE, lines=(0, 1))
    with pytest.raises(ZooError, match="0 x 200 is no size"):
        replace(PAGE, width=0)


def test_the_grid() -> None:
    assert PAGE.bbox().tolist() == [[100, 50, 500, 100], [600, 50, 1000, 107], [0, 750, 1000, 1000]]
    assert PAGE.bbox().dtype == torch.int64
    empty = Page(words=(), boxes=(), width=3, height=4)
    assert empty.bbox().shape == (0, 4)
    assert empty.text() == ""
    assert PAGE.text() == "TOTAL 12.50\n東京"


def test_a_page_is_written_and_read() -> None:
    again = page_from_json(PAGE.to_json(), "scan.png")
    assert again == PAGE
    with pytest.raises(ZooError, match=r"x\.json is not of the format zoo-page-1"):
        page_from_json("{}", "x.json")
    with pytest.raises(ZooError, match=r"x\.json is a broken page"):
        page_from_json('{"format": "zoo-page-1", "words": ["a"]}', "x.json")


def test_another_order() -> None:
    turned = PAGE.ordered([2, 0, 1])
    assert turned.words == ("東京", "TOTAL", "12.50")
    assert turned.boxes[1] == PAGE.boxes[0]
    assert turned.confidences == (0.5, 0.9, 1.0)
    with pytest.raises(ValueError, match="every word once"):
        PAGE.ordered([0, 0, 1])


@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
def test_any_four_numbers_become_a_box_on_the_page(values) -> None:
    (x1, y1, x2, y2), _ = on_page(values, 100, 200)
    assert 0 <= x1 <= x2 <= 100
    assert 0 <= y1 <= y2 <= 200
