"""A trained document model at work: scans, photographs and PDFs asked, tagged and classified."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from PIL import Image
from torch import nn

from zoo.collate import Collate
from zoo.config import from_plain
from zoo.datasets.answers import Answer, RowSpans, pool, span_boxes, span_text
from zoo.datasets.ocr.page import Box, Page
from zoo.datasets.page_pictures import PagePictures
from zoo.datasets.ser_eval import entities
from zoo.datasets.tagged import PageRows
from zoo.datasets.tokens import load_tokenizer
from zoo.datasets.windows import (
    EncodingConfig,
    Row,
    padding_rules,
    rows_of,
    tokenize_page,
    tokenize_question,
)
from zoo.errors import ZooError
from zoo.models.document.outputs import labels_of, spans_of, tags_of
from zoo.registry import ModelSpec
from zoo.types import Meta, Sample

TOKENS = 4096  # of a batch, padding included

Source = str | Path | Image.Image | Page | Sequence[Page]
Found = TypeVar("Found")

# What a model that was trained for a task does, and what one that was not does not.
ABILITIES = {
    "qa": ("answers questions: ask()", "answers no questions"),
    "ser": ("tags words: tag()", "tags no words"),
    "classify": ("classifies pages: classify()", "classifies no pages"),
}


@dataclass(frozen=True)
class Reply:
    """An answer as a person wants it.

    ``text`` is the page's own; None where the best answer is that there is none, and ``reason``
    says why. ``confidence`` is 0..1, its share among all candidates of all windows and pages and
    the null answer. ``page`` counts the pages of the file (or of the list) from 0; ``boxes`` are
    one a line, xyxy in pixels of the page. ``others`` are the next best, best first.
    """

    question: str
    text: str | None
    confidence: float
    page: int | None = None
    boxes: tuple[Box, ...] = ()
    reason: str = ""
    others: tuple[Reply, ...] = ()


@dataclass(frozen=True)
class WordTag:
    """A word of a page with its tag, and how sure that is: 0..1, its share among all tags."""

    text: str
    box: Box
    tag: str
    confidence: float


@dataclass(frozen=True)
class Entity:
    """A run of words of one type: ``B-`` begins one, ``I-`` goes on.

    ``first`` and ``last`` (both included) are its words' places in the page; ``boxes`` are one a
    line, xyxy in pixels of the page. It is as sure as the least sure of its words.
    """

    type: str
    text: str
    confidence: float
    page: int
    boxes: tuple[Box, ...]
    first: int
    last: int


@dataclass(frozen=True)
class PageTags:
    """What was found on a page; ``page`` counts those of the file (or of the list) from 0."""

    page: int
    words: tuple[WordTag, ...]
    entities: tuple[Entity, ...]


@dataclass(frozen=True)
class PageClass:
    """The class of a page, its share 0..1 among all, and the ``best`` (name, share), best first."""

    page: int
    name: str
    confidence: float
    best: tuple[tuple[str, float], ...]


class DocumentReader:
    """A layout-aware encoder at work; what :func:`zoo.load_model` returns for a document model.

    It does what it was trained for, of these three:

    >>> reader = zoo.load_model("runs/receipts")
    >>> reader.ask("scan.png", "What is the total?").text
    '12.50'
    >>> [entity.text for entity in reader.tag("scan.png")[0].entities]
    ['12.50']
    >>> reader.classify("scan.pdf")[0].name
    'receipt'
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        *,
        class_names: Sequence[str] = (),
        class_ids: Sequence[int] = (),
        preprocess: Mapping[str, Any] | None = None,
        device: torch.device | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model, self.spec = model.eval(), spec
        self.class_names, self.class_ids = tuple(class_names), tuple(class_ids)
        self.device = device or torch.device("cpu")
        self.autocast = autocast
        self.postprocess = spec.postprocess(spec.config)
        settings = dict((preprocess or {}).get("encoding") or {})
        self.encoding: EncodingConfig = from_plain(EncodingConfig(), settings, "encoding.")
        self.encoding.check()
        self.tokenizer = load_tokenizer(self.encoding.tokenizer)
        self._collate = Collate(padding_rules(self.tokenizer, self.encoding))

    @property
    def task(self) -> str:
        """What it was trained for: ``qa``, ``ser`` or ``classify``."""
        return str(self.spec.config.task)

    @property
    def entity_types(self) -> tuple[str, ...]:
        """The types of entities that its tags speak of, in the order of the classes."""
        return tuple(dict.fromkeys(n.partition("-")[2] for n in self.class_names if "-" in n))

    def data_config(self, config: Any) -> Any:
        """A data source's settings, with this model's tokens and task."""
        names = {f.name for f in fields(config)}
        if not {"encoding", "task"} <= names:
            raise ZooError(
                f"model {self.spec.name} reads documents; give it questions or pages, not pictures"
            )
        return replace(config, encoding=self.encoding, task=self.spec.config.task)

    def read(self, source: Source, **options: Any) -> list[Page]:
        """The pages of a file or picture; ``options`` are ``zoo.datasets.ocr.read.read_pages``'s.

        Pages are passed through, so that words from any reader can be asked about.
        """
        if isinstance(source, Page):
            return [source]
        if not isinstance(source, str | Path | Image.Image):
            return list(source)
        from zoo.datasets.ocr.read import read_pages

        return read_pages(source, **options)

    def check_questions(self, questions: Sequence[str]) -> None:
        """Raise :class:`ZooError` for a question that is empty or too long."""
        for text in questions:
            tokenize_question(text, self.tokenizer, self.encoding)

    @overload
    def ask(self, source: Source, question: str, **options: Any) -> Reply: ...

    @overload
    def ask(self, source: Source, question: Sequence[str], **options: Any) -> list[Reply]: ...

    def ask(
        self, source: Source, question: str | Sequence[str], *, others: int = 4, **options: Any
    ) -> Reply | list[Reply]:
        """Answer one question, or several, on all pages of ``source``; the pages are read once.

        Up to ``others`` next best answers go with each. Raises :class:`ZooError` where the file
        can't be read, a question is empty or too long, or the model was trained for another task.
        """
        self._expect("qa")
        questions = [question] if isinstance(question, str) else list(question)
        asked = [tokenize_question(text, self.tokenizer, self.encoding) for text in questions]
        pages = self.read(source, **options)
        rows = self._rows(asked, pages)
        spans = self._spans([row for _, _, row in rows], [page for _, page, _ in rows])
        found: list[list[RowSpans]] = [[] for _ in questions]
        for (number, _, _), row in zip(rows, spans, strict=True):
            found[number].append(row)
        replies = [
            self._reply(text, pool(own), pages, others)
            for text, own in zip(questions, found, strict=True)
        ]
        return replies[0] if isinstance(question, str) else replies

    def tag(self, source: Source, **options: Any) -> list[PageTags]:
        """The tag of every word of every page of ``source``, and the entities that they make.

        A page longer than a window is read through several, and each word is tagged by the one
        that shows most of what is around it. A page without words has no entities. Raises
        :class:`ZooError` where the file can't be read or the model was trained for another task.
        """
        self._expect("ser")
        pages = self.read(source, **options)
        samples = [s for s in _samples(pages, self.encoding) if len(pages[int(s.meta.image_id)])]
        tagged: list[dict[int, tuple[int, float]]] = [{} for _ in pages]
        results = self._results(samples, _sure_tags)
        for sample, found in zip(samples, results, strict=True):
            tagged[int(sample.meta.image_id)].update(found)
        return [
            self._page_tags(page, number, [own[n] for n in range(len(page))])
            for page, number, own in zip(pages, _numbers(pages), tagged, strict=True)
        ]

    def classify(self, source: Source, *, best: int = 3, **options: Any) -> list[PageClass]:
        """The class of every page of ``source``, with the shares of the ``best`` classes.

        As in training, a page is judged by its first window. Raises :class:`ZooError` where the
        file can't be read or the model was trained for another task.
        """
        self._expect("classify")
        pages = self.read(source, **options)
        results = self._results(_samples(pages, self.encoding, first_only=True), _shares)
        found = []
        for number, shares in zip(_numbers(pages), results, strict=True):
            order = sorted(range(len(shares)), key=lambda n: -shares[n])
            ranked = tuple((self.class_names[n], shares[n]) for n in order)
            found.append(PageClass(number, *ranked[0], ranked[: max(1, best)]))
        return found

    def _expect(self, task: str) -> None:
        if self.task != task:
            raise ZooError(
                f"model {self.spec.name} was trained for the task '{self.task}' (it "
                f"{ABILITIES[self.task][0]}) and {ABILITIES[task][1]}; load one that was trained "
                f"with model.task={task}"
            )

    def _page_tags(self, page: Page, number: int, found: Sequence[tuple[int, float]]) -> PageTags:
        tags = [self.class_names[label] for label, _ in found]
        sure = [share for _, share in found]
        spans = [
            Entity(
                name, span_text(page, first, last), min(sure[first : last + 1]), number,
                tuple(span_boxes(page, first, last)), first, last,
            )
            for name, first, last in entities(tags)
        ]  # fmt: skip
        words = tuple(map(WordTag, page.words, page.boxes, tags, sure))
        return PageTags(number, words, tuple(spans))

    def _rows(
        self, asked: Sequence[Sequence[int]], pages: Sequence[Page]
    ) -> list[tuple[int, int, Row]]:
        """(question, page, row) for every question and every window of every page with words."""
        tokens = [tokenize_page(page, self.tokenizer) for page in pages]
        pictures = PagePictures(self.encoding)
        found = []
        for place, page in enumerate(tokens):
            if not len(page):
                continue
            picture = pictures(pages[place])
            for number, question in enumerate(asked):
                for row in rows_of(question, page, self.tokenizer, self.encoding):
                    row.inputs.update(picture)
                    found.append((number, place, row))
        return found

    def _spans(self, rows: Sequence[Row], pages: Sequence[int]) -> list[RowSpans]:
        """The candidates of all rows."""
        samples = [
            Sample(row.inputs, {}, _meta(row, page)) for row, page in zip(rows, pages, strict=True)
        ]
        return self._results(samples, spans_of)

    @torch.inference_mode()
    def _results(
        self,
        samples: Sequence[Sample],
        read: Callable[[Mapping[str, Any], Sequence[Meta]], Sequence[Found]],
    ) -> list[Found]:
        """What ``read`` makes of the model's outputs for each sample, in batches of like length."""
        found: dict[int, Found] = {}
        order = sorted(range(len(samples)), key=lambda n: -samples[n].meta.size[1])
        while order:
            count = max(1, TOKENS // samples[order[0]].meta.size[1])
            part, order = order[:count], order[count:]
            batch = self._collate([samples[n] for n in part]).to(self.device)
            with torch.autocast(
                self.device.type, self.autocast or torch.bfloat16, self.autocast is not None
            ):
                outputs = self.model(**batch.inputs)
            found.update(zip(part, read(outputs, batch.metas), strict=True))
        return [found[n] for n in range(len(samples))]

    def _reply(
        self, question: str, answers: Sequence[Answer], pages: Sequence[Page], others: int
    ) -> Reply:
        if not answers:
            return Reply(question, None, 1.0, reason="no text was found")
        numbers = _numbers(pages)
        replies = [self._one(question, a, pages, numbers) for a in answers[: others + 1]]
        best = replies[0]
        return Reply(
            best.question, best.text, best.confidence, best.page, best.boxes, best.reason,
            tuple(replies[1:]),
        )  # fmt: skip

    def _one(
        self, question: str, answer: Answer, pages: Sequence[Page], numbers: Sequence[int]
    ) -> Reply:
        if answer.first is None or answer.last is None:
            return Reply(question, None, answer.confidence, reason="no answer was found")
        page = pages[answer.page]
        return Reply(
            question,
            span_text(page, answer.first, answer.last),
            answer.confidence,
            numbers[answer.page],
            tuple(span_boxes(page, answer.first, answer.last)),
        )


def _meta(row: Row, page: int) -> Meta:
    extra = {"words": row.words, "starts": row.starts, "ends": row.ends, "page": page}
    return Meta(image_id=page, orig_size=(1, 1), size=(1, len(row.words)), extra=extra)


def _numbers(pages: Sequence[Page]) -> list[int]:
    """The pages' numbers in their file, or their places where they are not of one file."""
    numbers = [page.number for page in pages]
    return numbers if len(set(numbers)) == len(pages) else list(range(len(pages)))


def _samples(
    pages: Sequence[Page], encoding: EncodingConfig, *, first_only: bool = False
) -> list[Sample]:
    """All windows of pages without a question; ``meta.image_id`` is the page's place."""
    rows = PageRows(pages, encoding, first_only=first_only)
    found = []
    for index in range(len(rows)):
        page, row = rows.row(index)
        found.append(Sample(dict(row.inputs), {}, rows.meta(page, row)))
    return found


def _sure_tags(
    outputs: Mapping[str, Any], metas: Sequence[Meta]
) -> list[dict[int, tuple[int, float]]]:
    """For each row, of the words that it has to tag, class index and share by place in the page."""
    tags = tags_of(outputs, metas)
    best = outputs["logits"].float().softmax(-1).amax(-1).cpu()
    found = []
    for own, row, meta in zip(tags, best, metas, strict=True):
        shares = row[meta.extra["starts"].nonzero()[:, 0]].tolist()
        assert own.words is not None
        found.append(dict(zip(own.words, zip(own.labels, shares, strict=True), strict=True)))
    return found


def _shares(outputs: Mapping[str, Any], metas: Sequence[Meta]) -> list[list[float]]:
    """The share of every class, for each page."""
    labels_of(outputs, metas)  # raises for what is not finite
    shares: list[list[float]] = outputs["logits"].float().softmax(-1).tolist()
    return shares
