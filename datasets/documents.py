"""The built-in data set of documents: receipts, invoices, forms, letters and tables, drawn anew.

It needs no download. A document is a pure function of (seed, index), and training sees new ones in
every epoch; see :mod:`zoo.datasets.papers`. Three tasks come of the same documents: questions
(``data.task=qa``), tags of words as in FUNSD (``ser``) and classes of pages (``classify``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.datasets.document_records import Document, LabelledDocument, TaggedPage
from zoo.datasets.document_source import TASKS, label_source, question_source, tag_source
from zoo.datasets.funsd_records import TAG_NAMES
from zoo.datasets.ocr.page import Page
from zoo.datasets.papers.document import KINDS, SyntheticDocument, draw_document, paint
from zoo.datasets.questions import Asked, Corpus, QuestionAugment
from zoo.datasets.windows import EncodingConfig
from zoo.errors import ZooError, nearest
from zoo.registry import DataSpec, register_data
from zoo.sampling import uniforms
from zoo.types import DataSource

_VAL = 1_000_000_000  # the first index of held-out documents: no epoch reaches it
_STREAM = 54  # of random numbers: which questions of a document are asked


@dataclass(frozen=True, kw_only=True)
class DocumentsConfig:
    """How many documents, of which kinds, and what is to be learned of them."""

    task: str = "qa"  # qa, ser or classify
    train_documents: int = 1000  # an epoch; questions see new ones in every epoch
    val_documents: int = 100
    questions: int = 4  # of a document and epoch
    kinds: tuple[str, ...] = ()  # all of receipt, invoice, form, letter, table
    ocr_noise: float = 0.04  # mean share of words that are misread, cut, joined or lost
    seed: int = 0  # of the documents and of what is done with them
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    augment: QuestionAugment = field(default_factory=QuestionAugment)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ZooError(f"data.task={self.task}: {nearest(self.task, TASKS)}")
        for kind in self.kinds:
            if kind not in KINDS:
                raise ZooError(f"data.kinds: there is no '{kind}'; {nearest(kind, KINDS)}")
        for name in ("train_documents", "val_documents", "questions"):
            if getattr(self, name) < 1:
                raise ZooError(f"data.{name}={getattr(self, name)} is below 1")
        if not 0 <= self.ocr_noise <= 0.3:
            raise ZooError(f"data.ocr_noise={self.ocr_noise} is not in 0..0.3")


@dataclass(frozen=True)
class DrawnPicture:
    """The picture of document ``index``, painted when a model is to see it."""

    config: DocumentsConfig
    index: int

    def load(self) -> Image.Image:
        """RGB."""
        return paint(_draw(self.config, self.index), self.config.seed)


def _draw(config: DocumentsConfig, index: int) -> SyntheticDocument:
    kind = config.kinds[index % len(config.kinds)] if config.kinds else None
    return draw_document(config.seed, index, kind, ocr_noise=config.ocr_noise)


def draw(config: DocumentsConfig, index: int) -> SyntheticDocument:
    """Document ``index``, of one of the config's kinds."""
    document = _draw(config, index)
    return replace(document, page=replace(document.page, picture=DrawnPicture(config, index)))


def draw_corpus(config: DocumentsConfig, first: int, count: int) -> Corpus:
    """Documents ``first`` and following, with some questions of each."""
    pages: list[Page] = []
    asked: list[Asked] = []
    order = uniforms(64, np.arange(first, first + count), seed=config.seed, epoch=0, stream=_STREAM)
    for number in range(count):
        document = draw(config, first + number)
        place = len(pages)
        pages.append(document.page)
        chosen = np.argsort(order[number, : len(document.questions)])[: config.questions]
        for n in sorted(chosen.tolist()):
            question = document.questions[n]
            asked.append(
                Asked(
                    question_id=len(asked),
                    text=question.text,
                    pages=(place,),
                    spans=(question.spans,),
                    answers=question.answers,
                    types=(document.kind,),
                )
            )
    return Corpus(pages, asked)


def _answerable(corpus: Corpus) -> Corpus:
    """Only the questions that have an answer: what ANLS is defined for."""
    return Corpus(corpus.pages, [q for q in corpus.questions if any(q.spans)])


def _records(config: DocumentsConfig, first: int, count: int) -> list[SyntheticDocument]:
    return [draw(config, n) for n in range(first, first + count)]


def _build(config: DocumentsConfig) -> DataSource:
    count, held_out = config.train_documents, config.val_documents
    if config.task == "qa":
        return question_source(
            "documents",
            train=lambda epoch: draw_corpus(config, epoch * count, count),
            val=_answerable(draw_corpus(config, _VAL, held_out)),
            encoding=config.encoding,
            augment=config.augment,
            seed=config.seed,
        )
    train, val = _records(config, 0, count), _records(config, _VAL, held_out)
    shrink = config.augment.shrink
    if config.task == "ser":

        def tagged(documents: list[SyntheticDocument]) -> list[TaggedPage]:
            return [TaggedPage(document=_named(d), page=d.page, tags=d.entities) for d in documents]

        return tag_source(
            "documents", train=tagged(train), val=tagged(val), tag_names=TAG_NAMES,
            encoding=config.encoding, shrink=shrink, seed=config.seed,
        )  # fmt: skip

    def labelled(documents: list[SyntheticDocument]) -> list[tuple[Page, LabelledDocument]]:
        return [(d.page, LabelledDocument(document=_named(d), label=d.kind)) for d in documents]

    return label_source(
        "documents", train=labelled(train), val=labelled(val), class_names=config.kinds or KINDS,
        encoding=config.encoding, shrink=shrink, seed=config.seed,
    )  # fmt: skip


def _named(document: SyntheticDocument) -> Document:
    return Document(document_id=f"{document.kind} {document.index}", image=Path())


def _matches(folder: Path) -> str | None:
    return "the built-in documents have no folder"


@register_data
def documents() -> DataSpec:
    """Drawn receipts, invoices, forms, letters and tables; no download."""
    return DataSpec(config=DocumentsConfig(), build=_build, matches=_matches, kind="documents")
