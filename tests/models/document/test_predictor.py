"""Tagging and classifying in Python: windows, entities, and what a reader was not trained for."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from zoo.datasets.ocr.page import Page
from zoo.datasets.papers.document import draw_document
from zoo.datasets.tagged import PageRows
from zoo.errors import NonFiniteError, ZooError
from zoo.models.document.predictor import DocumentReader
from zoo.registry import model_spec

TAGS = ("O", "B-NAME", "I-NAME", "B-TOTAL", "I-TOTAL")
KINDS = ("letter", "receipt", "form", "table")
ENCODING = {"length": 48, "overlap": 12, "question_length": 32}
BLANK = Page(words=(), boxes=(), width=10, height=10)


class ByToken(nn.Module):
    """Scores that each token's id and place in its row decide: other windows, other scores."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, input_ids: Tensor, **_: Tensor) -> dict[str, Tensor]:
        places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        seen = torch.stack([input_ids, places + 1, input_ids * (places + 3)], -1).double()
        mix = torch.linspace(0.1, 2.9, 3 * self.classes).reshape(3, -1).double()
        return {"logits": torch.sin(seen @ mix).float() * 4}


class ByPage(ByToken):
    """One row of scores a page, from its first words."""

    def forward(self, input_ids: Tensor, **_: Tensor) -> dict[str, Tensor]:
        return {"logits": super().forward(input_ids)["logits"][:, 1]}


class Marked(nn.Module):
    """Gives tokens of given ids given classes, by a wide margin."""

    def __init__(self, classes: dict[int, int]) -> None:
        super().__init__()
        self.known = classes

    def forward(self, input_ids: Tensor, **_: Tensor) -> dict[str, Tensor]:
        logits = torch.zeros(*input_ids.shape, len(TAGS))
        for token, index in self.known.items():
            logits[..., index] += 9.0 * (input_ids == token)
        return {"logits": logits}


def reader_of(model: nn.Module, task: str, names: tuple[str, ...] = TAGS) -> DocumentReader:
    spec = model_spec("doc_nano")
    spec = replace(spec, config=replace(spec.config, task=task))
    return DocumentReader(model, spec, class_names=names, preprocess={"encoding": ENCODING})


def page_of(*words: str, line: int = 4) -> Page:
    """Words in rows of ``line``, 10 pixels each."""
    boxes = tuple(
        (20.0 * (n % line), 20.0 * (n // line), 20.0 * (n % line) + 10, 20.0 * (n // line) + 10)
        for n in range(len(words))
    )
    lines = tuple(n // line for n in range(len(words)))
    return Page(words=words, boxes=boxes, lines=lines, width=100, height=100)


def test_entities_are_words_between_a_begin_and_the_next() -> None:
    reader = reader_of(nn.Identity(), "ser")
    words = ("to", "anna", "lee", "sum", "nine", "one", "two", "three")
    tags = ("O", "B-NAME", "I-NAME", "O", "B-TOTAL", "B-TOTAL", "I-NAME", "O")
    ids = [reader.tokenizer.words([word])[0] for word in words]
    assert all(len(own) == 1 for own in ids)
    known = {own[0]: TAGS.index(tag) for own, tag in zip(ids, tags, strict=True)}
    reader.model = Marked(known)
    (found,) = reader.tag(page_of(*words, line=2))
    assert [w.tag for w in found.words] == list(tags)
    assert [w.text for w in found.words] == list(words)
    shown = [(e.type, e.text, e.first, e.last) for e in found.entities]
    assert shown == [
        ("NAME", "anna lee", 1, 2),
        ("TOTAL", "nine", 4, 4),
        ("TOTAL", "one", 5, 5),
        ("NAME", "two", 6, 6),
    ]
    # "anna" ends the first line and "lee" begins the second: a box of each.
    assert found.entities[0].boxes == ((20.0, 0.0, 30.0, 10.0), (0.0, 20.0, 10.0, 30.0))
    e = 2.718281828459045
    assert found.words[1].confidence == pytest.approx(e**9 / (e**9 + 4), abs=1e-6)
    assert reader.entity_types == ("NAME", "TOTAL")


def test_an_entity_is_as_sure_as_its_least_sure_word() -> None:
    page = draw_document(5, 60, "receipt", ocr_noise=0.0).page
    (found,) = reader_of(ByToken(len(TAGS)), "ser").tag(page)
    assert any(e.last > e.first for e in found.entities)
    for e in found.entities:
        own = [w.confidence for w in found.words[e.first : e.last + 1]]
        assert e.confidence == min(own)


def test_every_word_is_tagged_by_the_window_that_shows_most_around_it() -> None:
    page = draw_document(5, 60, "receipt", ocr_noise=0.0).page
    reader = reader_of(ByToken(len(TAGS)), "ser")
    rows = PageRows([page], reader.encoding)
    assert len(rows) > 2
    expected: dict[int, tuple[str, float]] = {}
    seen = 0
    for n in range(len(rows)):  # each window alone: neither batches nor padding
        _, row = rows.row(n)
        shares = reader.model(row.inputs["input_ids"][None])["logits"][0].softmax(-1)
        seen += len({w for w in row.words.tolist() if w >= 0})
        for place in row.starts.nonzero()[:, 0].tolist():
            best = int(shares[place].argmax())
            word = int(row.words[place])
            assert word not in expected
            expected[word] = (TAGS[best], float(shares[place, best]))
    assert seen > len(page)  # windows overlap
    (found,) = reader.tag(page)
    assert len(found.words) == len(page) == len(expected)
    for n, word in enumerate(found.words):
        assert word.tag == expected[n][0]
        assert word.confidence == pytest.approx(expected[n][1], abs=1e-6)
        assert word.box == page.boxes[n]


def test_pages_are_kept_apart_and_blank_ones_have_nothing() -> None:
    pages = [draw_document(5, n, "receipt", ocr_noise=0.0).page for n in (60, 61)]
    reader = reader_of(ByToken(len(TAGS)), "ser")
    alone = [reader.tag(page)[0] for page in pages]
    among = reader.tag([BLANK, pages[0], BLANK, pages[1]])
    assert [one.page for one in among] == [0, 1, 2, 3]
    assert among[0].words == among[0].entities == among[2].words == ()
    for one, other in zip(alone, among[1::2], strict=True):
        assert [w.tag for w in one.words] == [w.tag for w in other.words]
        assert [e.boxes for e in one.entities] == [e.boxes for e in other.entities]
    assert reader.tag(BLANK)[0].entities == ()
    assert reader.tag([]) == []
    of_file = [replace(page, number=n) for n, page in zip((4, 2), pages, strict=True)]
    found = reader.tag(of_file)
    assert [one.page for one in found] == [4, 2]
    assert {e.page for e in found[0].entities} == {4}


def test_a_page_has_the_class_of_its_first_window() -> None:
    pages = [draw_document(5, n, ocr_noise=0.0).page for n in range(6)] + [BLANK]
    reader = reader_of(ByPage(len(KINDS)), "classify", KINDS)
    found = reader.classify(pages, best=9)
    assert [one.page for one in found] == list(range(7))
    rows = PageRows(pages, reader.encoding, first_only=True)
    for n, one in enumerate(found):
        shares = reader.model(rows.row(n)[1].inputs["input_ids"][None])["logits"][0].softmax(-1)
        assert one.name == KINDS[int(shares.argmax())]
        assert one.confidence == pytest.approx(float(shares.max()), abs=1e-6)
        assert one.best[0] == (one.name, one.confidence)
        assert sorted(name for name, _ in one.best) == sorted(KINDS)
        assert sum(share for _, share in one.best) == pytest.approx(1.0, abs=1e-5)
        assert [share for _, share in one.best] == sorted((s for _, s in one.best), reverse=True)
    assert len({one.name for one in found}) > 1
    assert [len(one.best) for one in reader.classify(pages, best=2)] == [2] * 7


@pytest.mark.parametrize(
    ("task", "call", "fault"),
    [
        ("qa", "tag", r"\(it answers questions: ask\(\)\) and tags no words.*model.task=ser"),
        ("qa", "classify", r"classifies no pages; load one .* model.task=classify"),
        ("ser", "ask", r"\(it tags words: tag\(\)\) and answers no questions.*model.task=qa"),
        ("ser", "classify", r"\(it tags words: tag\(\)\) and classifies no pages"),
        ("classify", "tag", r"\(it classifies pages: classify\(\)\) and tags no words"),
    ],
)
def test_what_it_was_not_trained_for_is_refused(task: str, call: str, fault: str) -> None:
    reader = reader_of(ByToken(5), task)
    with pytest.raises(ZooError, match=fault):
        getattr(reader, call)(BLANK, *(["Who?"] if call == "ask" else []))


def test_scores_that_are_not_finite_are_an_error() -> None:
    class Spoiled(ByPage):
        def forward(self, input_ids: Tensor, **_: Tensor) -> dict[str, Tensor]:
            return {"logits": super().forward(input_ids)["logits"] * float("nan")}

    with pytest.raises(NonFiniteError, match="weights are spoiled"):
        reader_of(Spoiled(4), "classify", KINDS).classify(page_of("a", "b"))
