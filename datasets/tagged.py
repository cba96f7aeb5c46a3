"""Pages with a tag for every word, and pages of a class, as samples.

A page longer than a window is read through several. In training every word of a window that has a
tag is learned from; in evaluation a word is tagged by the one window that shows most of what is
around it. The tag stands on a word's first piece (as in BERT's named entity recognition;
Devlin et al., arXiv 1810.04805, section 5.3), the others have :data:`IGNORED`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from zoo.datasets.ocr.page import Page
from zoo.datasets.page_pictures import PagePictures
from zoo.datasets.questions import moved
from zoo.datasets.tokens import load_tokenizer
from zoo.datasets.windows import EncodingConfig, Row, cut, make_row, room_of, tokenize_page
from zoo.sampling import uniforms
from zoo.types import Meta, Sample, Size

IGNORED = -100  # the label of what is no word's first piece
_STREAM = 52


class PageRows:
    """Windows of pages without a question: what tagging and classification share.

    ``shrink`` > 0 moves the boxes of a page, anew in every epoch; see
    :func:`zoo.datasets.questions.moved`. ``first_only`` keeps a page's first window alone.
    """

    def __init__(
        self,
        pages: Sequence[Page],
        encoding: EncodingConfig,
        *,
        shrink: float = 0.0,
        seed: int = 0,
        first_only: bool = False,
    ) -> None:
        encoding.check()
        self.pages, self.encoding, self.shrink, self.seed = pages, encoding, shrink, seed
        self.tokenizer = load_tokenizer(encoding.tokenizer)
        self._pictures = PagePictures(encoding)
        self._tokens = [tokenize_page(page, self.tokenizer) for page in pages]
        room = room_of(None, encoding)
        self._windows = [tuple(cut(t.words, room, encoding.overlap)) for t in self._tokens]
        self._places = [
            (page, n)
            for page, windows in enumerate(self._windows)
            for n in range(1 if first_only else len(windows))
        ]
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self._places)

    def set_epoch(self, epoch: int) -> None:
        """Choose the moves of the boxes."""
        places = np.arange(len(self.pages))
        self._draws = uniforms(4, places, seed=self.seed, epoch=epoch, stream=_STREAM)

    def sizes(self) -> list[Size]:
        """(1, tokens) of every row."""
        found = []
        for page, n in self._places:
            begin, end = self._windows[page][n]
            found.append((1, end - begin + 2))
        return found

    def row(self, index: int) -> tuple[int, Row]:
        """The page's place and the row; its boxes moved where they are to be."""
        page, n = self._places[index]
        row = make_row(
            None, self._tokens[page], self._windows[page], n, self.tokenizer, self.encoding
        )
        draws = self._draws[page]
        row.inputs.update(self._pictures(self.pages[page], draws, self.shrink))
        if self.shrink > 0:
            row.inputs["bbox"] = moved(row.inputs["bbox"], row.words >= 0, draws, self.shrink)
        return page, row

    def meta(self, page: int, row: Row) -> Meta:
        """``image_id`` is the page's place."""
        of = self.pages[page]
        return Meta(
            image_id=page,
            orig_size=(of.height, of.width),
            size=(1, len(row.words)),
            path=of.source,
            extra={"words": row.words, "starts": row.starts},
        )


class TaggedRows(PageRows):
    """Samples with ``labels`` [L]: ``tags`` has, for every page, a class index a word."""

    def __init__(
        self,
        pages: Sequence[Page],
        tags: Sequence[Sequence[int]],
        encoding: EncodingConfig,
        *,
        shrink: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(pages, encoding, shrink=shrink, seed=seed)
        for page, own in zip(pages, tags, strict=True):
            if len(page) != len(own):
                raise ValueError(f"{page.source}: {len(own)} tags for {len(page)} words")
        self.tags = [torch.tensor([*own], dtype=torch.int64) for own in tags]

    def __getitem__(self, index: int) -> Sample:
        page, row = self.row(index)
        words = row.words
        first = words != torch.cat([torch.tensor([-1]), words[:-1]])
        labels = torch.full_like(words, IGNORED)
        known = first & (words >= 0)
        labels[known] = self.tags[page][words[known]]
        return Sample(dict(row.inputs), {"labels": labels}, self.meta(page, row))


class LabelledRows(PageRows):
    """Samples with ``label`` []: one a page, its first window."""

    def __init__(
        self,
        pages: Sequence[Page],
        labels: Sequence[int],
        encoding: EncodingConfig,
        *,
        shrink: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(pages, encoding, shrink=shrink, seed=seed, first_only=True)
        if len(pages) != len(labels):
            raise ValueError(f"{len(labels)} labels for {len(pages)} pages")
        self.labels = list(labels)

    def __getitem__(self, index: int) -> Sample:
        page, row = self.row(index)
        target = {"label": torch.tensor(self.labels[page])}
        return Sample(dict(row.inputs), target, self.meta(page, row))
