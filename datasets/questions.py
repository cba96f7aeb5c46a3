"""Questions on pages as samples: one window a question in training, every window in evaluation.

The formats (:mod:`zoo.datasets.docvqa` and its neighbours) and the drawn documents give a
:class:`Corpus`; what is done with it is here, the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.datasets.ocr.page import GRID, Page
from zoo.datasets.page_pictures import PagePictures
from zoo.datasets.tokens import load_tokenizer
from zoo.datasets.windows import (
    EncodingConfig,
    PageTokens,
    Row,
    WordSpan,
    cut,
    make_row,
    room_of,
    row_targets,
    tokenize_page,
    tokenize_question,
)
from zoo.errors import ZooError
from zoo.sampling import uniforms
from zoo.types import Meta, Sample, Size

_STREAM = 50  # of random numbers: which window, and how the boxes are moved


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question on pages of a corpus.

    ``pages`` are places in :attr:`Corpus.pages`; ``spans`` has, for each of them, all spans of
    words that are an equally right answer (none where the page does not have it). ``answers`` are
    the gold texts, ``types`` what a data set says of the question's kind.
    """

    question_id: int | str
    text: str
    pages: tuple[int, ...]
    spans: tuple[tuple[WordSpan, ...], ...] = ()
    answers: tuple[str, ...] = ()
    types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.spans and len(self.spans) != len(self.pages):
            raise ValueError(f"question {self.question_id}: one tuple of spans a page is needed")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Pages, and the questions that are asked of them."""

    pages: Sequence[Page]
    questions: Sequence[Asked]
    _tokens: dict[tuple[str, int], PageTokens] = field(default_factory=dict, repr=False)

    def tokens(self, place: int, tokenizer: str) -> PageTokens:
        """The pieces of a page; tokenized once."""
        key = (tokenizer, place)
        if key not in self._tokens:
            self._tokens[key] = tokenize_page(self.pages[place], load_tokenizer(tokenizer))
        return self._tokens[key]


@dataclass(frozen=True, kw_only=True)
class QuestionAugment:
    """What differs between epochs besides the window. All are parts, 0..1."""

    no_answer: float = 0.15  # of the questions show a window without the answer, where there is one
    shrink: float = 0.1  # pages are made smaller by up to so much, each side by itself
    # A page that was shrunk lies anywhere on the grid: so coordinates are not learned by heart.


@dataclass(frozen=True)
class _Place:
    """One row to make: a question, one of its pages, and a window of it."""

    question: int
    page: int  # among the question's pages
    window: int
    windows: tuple[tuple[int, int], ...]


class _Rows:
    """What training and evaluation share: questions tokenized, rows made."""

    def __init__(self, encoding: EncodingConfig) -> None:
        encoding.check()
        self.encoding = encoding
        self.tokenizer = load_tokenizer(encoding.tokenizer)
        self.pictures = PagePictures(encoding)
        self._questions: dict[str, list[int]] = {}

    def asked(self, question: Asked) -> list[int]:
        text = question.text
        if text not in self._questions:
            try:
                self._questions[text] = tokenize_question(text, self.tokenizer, self.encoding)
            except ZooError as error:
                raise ZooError(f"question {question.question_id}: {error}") from None
        return self._questions[text]

    def windows(self, corpus: Corpus, question: Asked, page: int) -> tuple[tuple[int, int], ...]:
        tokens = corpus.tokens(question.pages[page], self.encoding.tokenizer)
        room = room_of(self.asked(question), self.encoding)
        return tuple(cut(tokens.words, room, self.encoding.overlap))

    def size(self, corpus: Corpus, place: _Place) -> Size:
        """(1, tokens) of a row, padding aside."""
        question = corpus.questions[place.question]
        begin, end = place.windows[place.window]
        special = self.encoding.length - room_of(self.asked(question), self.encoding)
        return (1, special + end - begin)

    def row(self, corpus: Corpus, place: _Place) -> tuple[Asked, Row, dict[str, Tensor]]:
        question = corpus.questions[place.question]
        tokens = corpus.tokens(question.pages[place.page], self.encoding.tokenizer)
        asked = self.asked(question)
        row = make_row(asked, tokens, place.windows, place.window, self.tokenizer, self.encoding)
        spans = question.spans[place.page] if question.spans else ()
        window = place.windows[place.window]
        return question, row, row_targets(spans, tokens, window, asked, self.encoding)


class QuestionSet:
    """A training set with one sample a question and epoch: one window of one of its pages.

    The window has the answer, but for a part ``augment.no_answer`` of the questions, or where no
    window has. ``draw(epoch)`` gives the epoch's corpus: always the same one for a data set of
    files, a new one for drawn documents. A pure function of (seed, epoch, index).
    """

    def __init__(
        self,
        draw: Callable[[int], Corpus],
        encoding: EncodingConfig,
        augment: QuestionAugment,
        seed: int,
    ) -> None:
        self._draw, self._rows, self.augment, self.seed = draw, _Rows(encoding), augment, seed
        self.epoch = -1
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self._places)

    def set_epoch(self, epoch: int) -> None:
        """Choose the corpus, the windows and the moves of the boxes."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        self.corpus = self._draw(epoch)
        count = len(self.corpus.questions)
        self._draws = uniforms(7, np.arange(count), seed=self.seed, epoch=epoch, stream=_STREAM)
        self._places = [self._choose(n) for n in range(count)]

    def sizes(self) -> list[Size]:
        """(1, tokens) of every sample of the epoch."""
        return [self._rows.size(self.corpus, place) for place in self._places]

    def __getitem__(self, index: int) -> Sample:
        question, row, target = self._rows.row(self.corpus, self._places[index])
        page = self.corpus.pages[question.pages[self._places[index].page]]
        draws, most = self._draws[index, 3:], self.augment.shrink
        inputs = {**row.inputs, **self._rows.pictures(page, draws, most)}
        if most > 0:
            inputs["bbox"] = moved(inputs["bbox"], row.words >= 0, draws, most)
        return Sample(inputs, target, meta_of(index, page, row, self._places[index].page))

    def _choose(self, number: int) -> _Place:
        question = self.corpus.questions[number]
        with_answer: list[_Place] = []
        without: list[_Place] = []
        for page in range(len(question.pages)):
            windows = self._rows.windows(self.corpus, question, page)
            spans = question.spans[page] if question.spans else ()
            tokens = self.corpus.tokens(question.pages[page], self._rows.encoding.tokenizer)
            for n, (begin, end) in enumerate(windows):
                has = any(tokens.first[a] >= begin and tokens.last[b] < end for a, b in spans)
                (with_answer if has else without).append(_Place(number, page, n, windows))
        kind, which = self._draws[number, :2]
        negative = bool(without) and (not with_answer or kind < self.augment.no_answer)
        pool = without if negative else with_answer
        return pool[int(which * len(pool))]


class QuestionRows:
    """An evaluation set: every window of every page of every question, one sample each."""

    def __init__(self, corpus: Corpus, encoding: EncodingConfig) -> None:
        self.corpus, self._rows = corpus, _Rows(encoding)
        self._places = []
        for number, question in enumerate(corpus.questions):
            for page in range(len(question.pages)):
                windows = self._rows.windows(corpus, question, page)
                self._places += [_Place(number, page, n, windows) for n in range(len(windows))]

    def __len__(self) -> int:
        return len(self._places)

    def set_epoch(self, epoch: int) -> None:
        """Nothing changes between epochs."""

    def sizes(self) -> list[Size]:
        """(1, tokens) of every row."""
        return [self._rows.size(self.corpus, place) for place in self._places]

    def __getitem__(self, index: int) -> Sample:
        place = self._places[index]
        question, row, target = self._rows.row(self.corpus, place)
        page = self.corpus.pages[question.pages[place.page]]
        inputs = {**row.inputs, **self._rows.pictures(page)}
        return Sample(inputs, target, meta_of(place.question, page, row, place.page))


def meta_of(question: int, page: Page, row: Row, place: int) -> Meta:
    """What the postprocess and the evaluator need of a row.

    ``question`` is its place in the corpus, ``place`` the page's among the question's.
    """
    extra: dict[str, Any] = {
        "page": place,
        "words": row.words,
        "starts": row.starts,
        "ends": row.ends,
    }
    return Meta(
        image_id=question,
        orig_size=(page.height, page.width),
        size=(1, len(row.words)),
        path=page.source,
        extra=extra,
    )


def moved(bbox: Tensor, of_page: Tensor, draws: NDArray[np.float64], most: float) -> Tensor:
    """``bbox`` [L, 4] with the page's boxes shrunk by up to ``most`` and put anywhere on the grid.

    ``draws`` are four numbers in 0..1: how much and where to, across and down.
    """
    kept = 1 - most * torch.tensor(draws[:2])
    shift = (1 - kept) * GRID * torch.tensor(draws[2:4])
    new = (bbox.double() * kept.repeat(2) + shift.repeat(2)).round().long().clamp_(0, GRID)
    return torch.where(of_page[:, None], new, bbox)
