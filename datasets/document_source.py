"""Document data as the house's sources: a task's samples, how they are collated and scored.

The formats read files, the drawn documents draw; what they have in common from there on is here.
Three tasks: ``qa`` (questions), ``ser`` (semantic entity recognition: a tag for every word) and
``classify`` (a class for every page).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zoo import distributed
from zoo.collate import Collate
from zoo.config import to_plain
from zoo.datasets.anls import Mode, write_submission
from zoo.datasets.answers import RowSpans, pool, span_text
from zoo.datasets.document_eval import AnswerEvaluator, LabelEvaluator, TagEvaluator
from zoo.datasets.document_records import (
    Answers,
    Document,
    LabelledDocument,
    Question,
    RankedAnswer,
    TaggedPage,
    read_page,
)
from zoo.datasets.ocr.layouts import read_ocr
from zoo.datasets.ocr.page import Page
from zoo.datasets.page_pictures import picture_of
from zoo.datasets.questions import Asked, Corpus, QuestionAugment, QuestionRows, QuestionSet
from zoo.datasets.spans import OcrSurvey, survey
from zoo.datasets.tagged import LabelledRows, TaggedRows
from zoo.datasets.tokens import BUNDLED, load_tokenizer, tokenizer_file
from zoo.datasets.windows import EncodingConfig, padding_rules
from zoo.errors import ZooError
from zoo.files import write_json
from zoo.types import DataSource

log = logging.getLogger("zoo")

TASKS = ("qa", "ser", "classify")
CANDIDATES = 5  # of a question, kept for its n best


def corpus_of(
    questions: Sequence[Question], page_of: Callable[[Document], Page]
) -> tuple[Corpus, OcrSurvey | None]:
    """Questions of files with their pages and, where they have answers, the answers' spans.

    ``page_of`` is asked once a document. The survey says how many answers the OCR has lost.
    """
    places: dict[Document, int] = {}
    pages: list[Page] = []
    for question in questions:
        if question.document not in places:
            places[question.document] = len(pages)
            pages.append(page_of(question.document))
    found: OcrSurvey | None = None
    if all(question.answers for question in questions):
        found = survey(questions, lambda d: pages[places[d]], text_of=span_text)
    asked = []
    for number, question in enumerate(questions):
        spans = found.found[number] if found else None
        asked.append(
            Asked(
                question_id=question.question_id,
                text=question.text,
                pages=(places[question.document],),
                spans=(spans.spans if spans else (),),
                answers=question.answers,
                types=question.types,
            )
        )
    return Corpus(pages, asked), found


class QuestionEvaluator(AnswerEvaluator):
    """Pools the rows of each question over windows and pages, then scores the answers.

    Predictions are :class:`~zoo.datasets.answers.RowSpans`, one a row of
    :class:`~zoo.datasets.questions.QuestionRows`. What is scored is the best span: in these sets
    every question has an answer, and saying that there is none scores 0.
    """

    def __init__(self, corpus: Corpus, found: OcrSurvey | None = None, mode: Mode = "rrc") -> None:
        super().__init__(corpus.questions, mode=mode, survey=found, join=self._pool)
        self.corpus = corpus

    def _pool(self, place: int, rows: Sequence[RowSpans]) -> Answers:
        question = self.corpus.questions[place]
        ranked = []
        for answer in pool(rows):
            if answer.first is None or answer.last is None:
                continue
            page = self.corpus.pages[question.pages[answer.page]]
            text = span_text(page, answer.first, answer.last)
            ranked.append(
                RankedAnswer(text, answer.confidence, answer.page, answer.first, answer.last)
            )
        return Answers(tuple(ranked[:CANDIDATES]))

    def report(self, out: Path) -> tuple[str, tuple[str, ...]]:
        """Write ``submission.json`` and ``answers.json``; the figures as text."""
        given = self.answers()
        out.mkdir(parents=True, exist_ok=True)
        write_submission(out / "submission.json", self.questions, given)
        rows = [
            {"questionId": q.question_id, "question": q.text, "answers": list(q.answers),
             "given": given.get(q.question_id, "")}
            for q in self.corpus.questions
        ]  # fmt: skip
        write_json(out / "answers.json", rows)
        return figures(self.compute()), ("submission.json", "answers.json")


def figures(metrics: Mapping[str, float]) -> str:
    """Figures as a column of text."""
    width = max(map(len, metrics))
    return "\n".join(["", *(f"{name:{width}}  {value:.4f}" for name, value in metrics.items()), ""])


class ReportedTags(TagEvaluator):
    """:class:`TagEvaluator` with a report."""

    def report(self, out: Path) -> tuple[str, tuple[str, ...]]:
        """Write ``tags.json``: for every page its words with the tags given and right."""
        rows = [
            {"page": page.page.source, "words": list(page.page.words), "tags": list(page.tags),
             "given": given}
            for page, given in zip(self.pages, self.predicted(), strict=True)
        ]  # fmt: skip
        write_json(out / "tags.json", rows)
        return figures(self.compute()), ("tags.json",)


class ReportedLabels(LabelEvaluator):
    """:class:`LabelEvaluator` with a report."""

    def report(self, out: Path) -> tuple[str, tuple[str, ...]]:
        """The figures as text."""
        return figures(self.compute()), ()


def _common(task: str, encoding: EncodingConfig) -> dict[str, Any]:
    plain, files = to_plain(encoding), {}
    if encoding.tokenizer not in BUNDLED:  # a run is whole without the folder that it came from
        files["tokenizer.json"] = tokenizer_file(encoding.tokenizer)
        plain["tokenizer"] = "checkpoint:tokenizer.json"
    return {
        "files": files,
        "collate": Collate(padding_rules(load_tokenizer(encoding.tokenizer), encoding)),
        "preprocess": {"task": task, "encoding": plain},
    }


def question_source(
    name: str,
    *,
    train: Callable[[int], Corpus] | None,
    val: Corpus | None,
    encoding: EncodingConfig,
    augment: QuestionAugment,
    seed: int,
    found: OcrSurvey | None = None,
    mode: Mode = "rrc",
) -> DataSource:
    """A source of questions. ``train(epoch)`` is the epoch's corpus, ``found`` val's survey."""

    def evaluator() -> QuestionEvaluator:
        if val is None:
            raise ZooError(f"data {name} has no evaluation split; add one")
        return QuestionEvaluator(val, found, mode)

    def overfit(count: int) -> DataSource:
        if train is None:
            raise ZooError(f"data {name} has no training split; run.overfit needs one")
        whole = train(0)
        few = Corpus(whole.pages, [q for q in whole.questions if any(q.spans)][:count])
        still = replace(augment, no_answer=0.0, shrink=0.0)
        return question_source(
            name, train=lambda _: few, val=few, encoding=encoding, augment=still, seed=seed
        )

    return DataSource(
        name=name,
        train=QuestionSet(train, encoding, augment, seed) if train else None,
        val=QuestionRows(val, encoding) if val else None,
        evaluator=evaluator,
        class_names=(),
        class_ids=(),
        better="ANLS",
        overfit=overfit,
        **_common("qa", encoding),
    )


def tag_source(
    name: str,
    *,
    train: Sequence[TaggedPage],
    val: Sequence[TaggedPage],
    tag_names: Sequence[str],
    encoding: EncodingConfig,
    shrink: float,
    seed: int,
) -> DataSource:
    """A source of pages whose words have tags."""
    place = {tag: n for n, tag in enumerate(tag_names)}

    def rows(pages: Sequence[TaggedPage], moved: float) -> TaggedRows | None:
        if not pages:
            return None
        tags = [[place[tag] for tag in page.tags] for page in pages]
        return TaggedRows([p.page for p in pages], tags, encoding, shrink=moved, seed=seed)

    def overfit(count: int) -> DataSource:
        few = train[:count]
        return tag_source(
            name, train=few, val=few, tag_names=tag_names, encoding=encoding, shrink=0, seed=seed
        )

    return DataSource(
        name=name,
        train=rows(train, shrink),
        val=rows(val, 0.0),
        evaluator=lambda: ReportedTags(val, tag_names),
        class_names=tuple(tag_names),
        class_ids=tuple(range(len(tag_names))),
        better="F1",
        overfit=overfit,
        **_common("ser", encoding),
    )


def label_source(
    name: str,
    *,
    train: Sequence[tuple[Page, LabelledDocument]],
    val: Sequence[tuple[Page, LabelledDocument]],
    class_names: Sequence[str],
    encoding: EncodingConfig,
    shrink: float,
    seed: int,
) -> DataSource:
    """A source of pages of a class."""
    place = {label: n for n, label in enumerate(class_names)}

    def rows(pages: Sequence[tuple[Page, LabelledDocument]], moved: float) -> LabelledRows | None:
        if not pages:
            return None
        labels = [place[document.label] for _, document in pages]
        return LabelledRows([p for p, _ in pages], labels, encoding, shrink=moved, seed=seed)

    def overfit(count: int) -> DataSource:
        few = train[:count]
        return label_source(
            name, train=few, val=few, class_names=class_names, encoding=encoding, shrink=0,
            seed=seed,
        )  # fmt: skip

    return DataSource(
        name=name,
        train=rows(train, shrink),
        val=rows(val, 0.0),
        evaluator=lambda: ReportedLabels([document for _, document in val], class_names),
        class_names=tuple(class_names),
        class_ids=tuple(range(len(class_names))),
        better="accuracy",
        overfit=overfit,
        **_common("classify", encoding),
    )


# -- formats that are read from a folder -----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FilesConfig:
    """A folder of documents, and how their words are had."""

    folder: str = ""
    train_split: str = "train"  # "": none
    val_split: str = "val"
    task: str = "qa"  # qa, ser or classify, as far as the format has it
    ocr: str = "files"  # the OCR files of the data set; or an engine, such as tesseract
    language: str = "eng"  # of an engine
    seed: int = 0
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    augment: QuestionAugment = field(default_factory=QuestionAugment)

    def check(self, tasks: Sequence[str]) -> None:
        """Raise :class:`ZooError` for a task that the format does not have."""
        if self.task not in tasks:
            raise ZooError(
                f"data.task={self.task}, but this format has {' and '.join(tasks)}; set data.task"
            )


def page_reader(config: FilesConfig) -> Callable[[Document], Page]:
    """How a document's words are had: from its OCR file, or by an engine."""

    def from_file(document: Document) -> Page:
        return with_picture(read_page(document, read_ocr), document)

    def by_engine(document: Document) -> Page:
        from zoo.datasets.ocr.read import read_pages

        number = str(document.page + 1)
        [page] = read_pages(
            document.image, engine=config.ocr, language=config.language, pages=number
        )
        return page

    return from_file if config.ocr == "files" else by_engine


def with_picture(page: Page, document: Document) -> Page:
    """The page, with the document's image as its picture."""
    return replace(page, picture=picture_of(document.image, page))


def questions_of_files(
    name: str, config: FilesConfig, read: Callable[[Path, str], Sequence[Question]]
) -> DataSource:
    """A source of the questions that ``read(folder, split)`` gives."""
    folder, page_of = Path(config.folder), page_reader(config)
    train, val, found = None, None, None
    if config.train_split:
        corpus, survey_of_train = corpus_of(read(folder, config.train_split), page_of)
        tell(f"{name}, {config.train_split}", survey_of_train)
        if survey_of_train is None:
            raise ZooError(
                f"{folder}: the split '{config.train_split}' has questions without answers; "
                "training needs answers"
            )
        train = corpus
    if config.val_split:
        val, found = corpus_of(read(folder, config.val_split), page_of)
        tell(f"{name}, {config.val_split}", found)
    same = train
    return question_source(
        name,
        train=(lambda _: same) if same is not None else None,
        val=val,
        encoding=config.encoding,
        augment=config.augment,
        seed=config.seed,
        found=found,
    )


def tags_of_files(
    name: str,
    config: FilesConfig,
    read: Callable[[Path, str], Sequence[TaggedPage]],
    tag_names: Sequence[str],
) -> DataSource:
    """A source of the tagged pages that ``read(folder, split)`` gives."""
    folder = Path(config.folder)

    def pages_of(split: str) -> list[TaggedPage]:
        found = read(folder, split) if split else ()
        return [replace(t, page=with_picture(t.page, t.document)) for t in found]

    return tag_source(
        name,
        train=pages_of(config.train_split),
        val=pages_of(config.val_split),
        tag_names=tag_names,
        encoding=config.encoding,
        shrink=config.augment.shrink,
        seed=config.seed,
    )


def tell(what: str, found: OcrSurvey | None) -> None:
    """Say what the OCR of a split has lost, once."""
    if found is not None and distributed.is_main():
        log.info("%s: %s", what, found.sentence())
