"""A question and a page as rows of tokens: windows that overlap and never cut a word.

A page of more tokens than a model takes is read through windows. Neighbouring windows share
``overlap`` tokens, and every token belongs to the one window that shows most of what is around it
(its "maximal context", as in BERT's SQuAD code; Devlin et al., arXiv 1810.04805): only there may
an answer begin, so no answer is counted twice.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.datasets.ocr.page import Page
from zoo.datasets.tokens import WordTokenizer
from zoo.errors import ZooError

Ints = NDArray[np.int64]
WordSpan = tuple[int, int]  # first and last word, both included

TEMPLATES = ("question_first", "document_first")
FITS = ("square", "shorter")
LONGEST_TO_SHORTEST = 640 / 384  # of an image that keeps its shape, as in ViLT


@dataclass(frozen=True, kw_only=True)
class EncodingConfig:
    """How a page becomes a model's tokens; it belongs to the model and travels with it.

    ``template``: ``question_first`` is ``[CLS] question [SEP] page [SEP]`` (BERT, LayoutLM),
    ``document_first`` is ``[CLS] page [SEP] question [SEP]`` with positions that begin anew at the
    question (ERNIE-Layout's). ``sep_box`` is the box of ``[SEP]``: 0, or 1000 in LayoutLM v1.
    ``separators`` stand between question and page: 2 in RoBERTa's family.

    ``image`` is the side in pixels of the page's picture as the model sees it (0: it sees none),
    ``image_fit`` how the page fits into it; see :class:`zoo.datasets.page_pictures.PagePictures`.
    """

    tokenizer: str = "bert_uncased"  # a bundled name, a tokenizer.json or its folder
    template: str = "question_first"
    length: int = 512  # tokens of a row, special ones and question included
    overlap: int = 128  # tokens that neighbouring windows share
    question_length: int = 64  # tokens of a question; a longer one is an error
    sep_box: int = 0
    segments: bool = True  # whether the second part of a row has segment id 1
    separators: int = 1
    image: int = 0
    image_fit: str = "square"  # or shorter: the page keeps its shape
    image_multiple: int = 32  # of both sides, with image_fit=shorter

    def check(self) -> None:
        """Raise :class:`ZooError` for values that can't work together."""
        if self.template not in TEMPLATES:
            raise ZooError(f"template={self.template} is not one of {', '.join(TEMPLATES)}")
        if self.image_fit not in FITS:
            raise ZooError(f"image_fit={self.image_fit} is not one of {', '.join(FITS)}")
        if self.image < 0 or self.image_multiple < 1:
            raise ZooError(
                f"image={self.image} and image_multiple={self.image_multiple} are no sizes in "
                "pixels; give image=0 for a model that sees none"
            )
        if self.separators not in (1, 2) or (
            self.separators == 2 and self.template != "question_first"
        ):
            raise ZooError(
                f"separators={self.separators} is not 1, or 2 with template=question_first"
            )
        room = self.length - self.question_length - self.special
        if self.question_length < 1 or room < 8:
            raise ZooError(
                f"length={self.length} leaves no room beside questions of "
                f"{self.question_length} tokens; give a length of {self.question_length + 64}"
            )
        if not 0 <= self.overlap < room:
            raise ZooError(f"overlap={self.overlap} has to be 0 to {room - 1} here")

    @property
    def special(self) -> int:
        """Tokens of a row that are neither question nor page."""
        return 2 + self.separators


@dataclass(frozen=True, eq=False)
class PageTokens:
    """A page's pieces: ``ids`` [T], ``words`` [T] (place of each piece's word), ``bbox`` [T, 4]."""

    ids: Ints
    words: Ints
    bbox: Ints
    first: Ints = field(init=False)  # [words] place of each word's first piece
    last: Ints = field(init=False)  # and of its last

    def __post_init__(self) -> None:
        count = int(self.words[-1]) + 1 if len(self.words) else 0
        places = np.arange(count)
        object.__setattr__(self, "first", np.searchsorted(self.words, places, "left"))
        object.__setattr__(self, "last", np.searchsorted(self.words, places, "right") - 1)

    def __len__(self) -> int:
        return len(self.ids)


def tokenize_page(page: Page, tokenizer: WordTokenizer) -> PageTokens:
    """A page's words as pieces, each with its word's box on the grid of 0..1000."""
    ids, words = tokenizer.words(page.words)
    places = np.array(words, dtype=np.int64)
    return PageTokens(np.array(ids, dtype=np.int64), places, page.bbox().numpy()[places])


def tokenize_question(text: str, tokenizer: WordTokenizer, config: EncodingConfig) -> list[int]:
    """A question's pieces. Raises :class:`ZooError` where it is empty or too long."""
    ids = tokenizer.text(text)
    if not ids:
        raise ZooError(f"the question {text!r} is empty; ask something")
    if len(ids) > config.question_length:
        raise ZooError(
            f"the question '{text[:60]}...' has {len(ids)} tokens, and {config.question_length} is "
            "the most; ask a shorter one, or set a larger question_length"
        )
    return ids


def cut(words: Ints, room: int, overlap: int) -> list[tuple[int, int]]:
    """Windows over tokens that belong to ``words`` [T, sorted]: (begin, end) pairs.

    Each has ``room`` tokens at most and begins and ends between words; the next begins
    ``overlap`` tokens before its end, or less where a word would be cut. Together they cover
    everything; a page without tokens is one empty window.
    """
    total = len(words)
    if total <= room:
        return [(0, total)]
    edges = [0, *(np.flatnonzero(np.diff(words)) + 1).tolist(), total]
    windows: list[tuple[int, int]] = []
    begin = 0
    while True:
        end = edges[bisect_right(edges, begin + room) - 1]
        if end <= begin:
            raise ZooError(f"a word of more than {room} tokens does not fit a window; use longer")
        windows.append((begin, end))
        if end == total:
            return windows
        following = edges[bisect_left(edges, end - overlap)]
        # An overlap as long as the window would never get on.
        begin = following if following > begin else edges[bisect_right(edges, begin)]


def owned(windows: Sequence[tuple[int, int]], index: int) -> NDArray[np.bool_]:
    """Which tokens of window ``index`` have their maximal context in it, [end - begin].

    The context is the smaller of what a window shows before and after a token; among equals the
    earlier window has it.
    """
    begin, end = windows[index]
    total = windows[-1][1]
    places = np.arange(begin, end)
    endless = np.full_like(places, 1 << 30)  # the page's own edges cut nothing off

    def context(window: tuple[int, int]) -> Ints:
        inside = (places >= window[0]) & (places < window[1])
        before = places - window[0] if window[0] > 0 else endless
        after = window[1] - 1 - places if window[1] < total else endless
        return np.where(inside, np.minimum(before, after), -1)

    own = context(windows[index])
    mine = np.ones(len(places), dtype=bool)
    for other in range(len(windows)):
        if other != index:
            theirs = context(windows[other])
            mine &= (own > theirs) | ((own == theirs) & (index < other))
    return mine


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a batch: a question before (or behind) one window of one page.

    ``inputs`` are the model's, without the batch's dimension. ``words`` [L] is the place in the
    page of each token's word, -1 for what is not of the page; ``starts`` and ``ends`` [L] say
    where an answer may begin (at a word's first piece, in its window of maximal context) and end.
    """

    inputs: dict[str, Tensor]
    words: Tensor
    starts: Tensor
    ends: Tensor


def room_of(question: Sequence[int] | None, config: EncodingConfig) -> int:
    """Tokens of a page that fit beside a question, or (None) with none."""
    return config.length - (2 if question is None else len(question) + config.special)


def make_row(
    question: Sequence[int] | None,
    page: PageTokens,
    windows: Sequence[tuple[int, int]],
    index: int,
    tokenizer: WordTokenizer,
    config: EncodingConfig,
) -> Row:
    """Window ``index`` of a page with its question, arranged as the model knows it.

    Without a question (None) it is ``[CLS] page [SEP]``, for tagging and classification.
    """
    begin, end = windows[index]
    part = slice(begin, end)
    asked = [tokenizer.cls, *(question or ()), tokenizer.sep]
    count = end - begin
    nothing = np.zeros((0,), dtype=np.int64)
    if question is None:
        before, after = np.array([tokenizer.cls]), np.array([tokenizer.sep])
        second, positions = count + 2, nothing
    elif config.template == "question_first":
        asked += [tokenizer.sep] * (config.separators - 1)
        before, after = np.array(asked), np.array([tokenizer.sep])
        second = len(before)
        positions = nothing
    else:
        before, after = np.array([tokenizer.cls]), np.array([tokenizer.sep, *asked[1:]])
        second = 1 + count + 1
        positions = np.concatenate([np.arange(second), np.arange(len(asked) - 1)])
    offset = len(before)
    ids = np.concatenate([before, page.ids[part], after])
    length = len(ids)
    bbox = np.zeros((length, 4), dtype=np.int64)
    bbox[ids == tokenizer.sep] = config.sep_box
    bbox[offset : offset + count] = page.bbox[part]
    inputs = {"input_ids": torch.from_numpy(ids), "bbox": torch.from_numpy(bbox)}
    if config.segments:
        inputs["segment_ids"] = (torch.arange(length) >= second).long()
    if len(positions):
        inputs["position_ids"] = torch.from_numpy(positions)
    words = np.full(length, -1, dtype=np.int64)
    words[offset : offset + count] = page.words[part]
    starts, ends = np.zeros(length, dtype=bool), np.zeros(length, dtype=bool)
    if count:
        inside = np.arange(begin, end)
        starts[offset : offset + count] = (page.first[page.words[part]] == inside) & owned(
            windows, index
        )
        ends[offset : offset + count] = page.last[page.words[part]] == inside
    return Row(inputs, torch.from_numpy(words), torch.from_numpy(starts), torch.from_numpy(ends))


def row_targets(
    spans: Sequence[WordSpan],
    page: PageTokens,
    window: tuple[int, int],
    question: Sequence[int],
    config: EncodingConfig,
) -> dict[str, Tensor]:
    """``starts`` and ``ends`` [S]: every span of the answer that lies in the window, in its tokens.

    ([0], [0]), the place of ``[CLS]``, where there is none: the null answer.
    """
    offset = len(question) + 1 + config.separators if config.template == "question_first" else 1
    begin, end = window
    found = [
        (int(page.first[a]) - begin + offset, int(page.last[b]) - begin + offset)
        for a, b in spans
        if page.first[a] >= begin and page.last[b] < end
    ]
    found = sorted(set(found)) or [(0, 0)]
    starts, ends = zip(*found, strict=True)
    return {"starts": torch.tensor(starts), "ends": torch.tensor(ends)}


def rows_of(
    question: Sequence[int], page: PageTokens, tokenizer: WordTokenizer, config: EncodingConfig
) -> list[Row]:
    """All rows of a question and a page."""
    windows = cut(page.words, room_of(question, config), config.overlap)
    return [make_row(question, page, windows, n, tokenizer, config) for n in range(len(windows))]


def padding_rules(tokenizer: WordTokenizer, config: EncodingConfig) -> dict[str, Any]:
    """The :class:`zoo.collate.Collate` rules of rows."""
    from zoo.collate import Pad

    images = {"pixel_values": Pad(0, dims=(1, 2), mask="pixel_mask")}
    return {
        **(images if config.image_fit == "shorter" else {}),
        "input_ids": Pad(tokenizer.pad, dims=(0,), mask="attention_mask", multiple=8),
        "bbox": Pad(0, dims=(0,), multiple=8),
        "segment_ids": Pad(0, dims=(0,), multiple=8),
        "position_ids": Pad(0, dims=(0,), multiple=8),
    }
