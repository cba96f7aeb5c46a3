"""The model that comes with the package: small enough, found by name, and able to read."""

import json
from pathlib import Path

import pytest
import torch

import zoo
from zoo import inference
from zoo.config import to_plain
from zoo.datasets.anls import question_anls
from zoo.datasets.ocr.page import Page
from zoo.datasets.papers.document import draw_document
from zoo.models.document.doc import BUNDLED
from zoo.models.document.predictor import DocumentReader
from zoo.registry import model_spec
from zoo.tools import evaluate, train

FOLDER = Path(BUNDLED.source)


def test_it_is_small_and_says_its_licence() -> None:
    sizes = [path.stat().st_size for path in FOLDER.iterdir()]
    assert sum(sizes) < 30e6
    assert "Apache License" in (FOLDER / "LICENSE").read_text()
    assert json.loads((FOLDER / "model.json").read_text())["name"] == "doc_nano"


def test_it_answers_on_documents_that_it_has_not_seen() -> None:
    reader = zoo.load_model("doc_nano", device="cpu")
    scores = []
    for n in range(2_000_000_000, 2_000_000_006):  # no training run's indices
        drawn = draw_document(9, n, "receipt", ocr_noise=0.0)
        asked = [q for q in drawn.questions if q.spans and q.field in ("date", "company", "total")]
        replies = reader.ask(drawn.page, [q.text for q in asked])
        scores += [
            question_anls(reply.text or "", q.answers, "rrc", 0.5)
            for reply, q in zip(replies, asked, strict=True)
        ]
    assert len(scores) >= 10
    assert sum(scores) / len(scores) > 0.6


def test_training_starts_from_it_unless_told_otherwise() -> None:
    spec = model_spec("doc_nano")
    assert train.starting_point(None, spec) == "doc_nano"
    assert train.starting_point("none", spec) is None
    assert train.starting_point("runs/x", spec) == "runs/x"
    assert train.starting_point(None, model_spec("layoutlm_base")) is None


def test_real_receipts_without_any_training(shared_data, tmp_path) -> None:
    """The first receipts of the held-out ones; the figure over all is in docs/log.md."""
    source = shared_data / "sroie_qa"
    content = json.loads((source / "val_v1.0.json").read_text())
    content["data"] = content["data"][:24]
    (tmp_path / "val_v1.0.json").write_text(json.dumps(content))
    for name in ("documents", "ocr"):
        (tmp_path / name).symlink_to((source / name).resolve())
    out = tmp_path / "scores"
    arguments = ["--weights", "doc_nano", "--data", str(tmp_path), "--out", str(out)]
    assert evaluate.main([*arguments, "--device", "cpu"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["ANLS"] >= 0.6
    assert metrics["ANLS"] == pytest.approx(metrics["nbest_ANLS"], abs=0.4)


@pytest.fixture(scope="module")
def reader():
    return zoo.load_model("doc_nano", device="cpu", fast=False)


def test_fast_answers_are_the_exact_ones(reader, monkeypatch) -> None:
    """In bfloat16, with the layers' matrices in it for good; the head stays as it is."""
    monkeypatch.setattr(inference, "has_bfloat16", lambda device: True)
    fast = zoo.load_model("doc_nano", device="cpu")
    kinds = {n: p.dtype for n, p in fast.model.named_parameters()}
    assert kinds["encoder.layers.0.linear1.weight"] == torch.bfloat16
    assert kinds["encoder.layers.0.norm1.weight"] == torch.float32
    assert kinds["head.spans.weight"] == torch.float32
    page = receipt(2_000_000_000)
    asked = ["What is the date?", "What is the total?"]
    for exact, quick in zip(reader.ask(page, asked), fast.ask(page, asked), strict=True):
        assert quick.text == exact.text
        assert quick.confidence == pytest.approx(exact.confidence, abs=0.1)


def receipt(index: int) -> Page:
    return draw_document(9, index, "receipt", ocr_noise=0.0).page


@pytest.mark.parametrize("overlap", [0, 32, 200])
def test_windows_change_nothing_on_a_page_that_fits_one(reader, overlap: int) -> None:
    page = receipt(2_000_000_000)
    asked = ["What is the total?", "What is the date?"]
    tokens = len(reader.tokenizer.words(page.words)[0])
    assert tokens < 300
    known = reader.ask(page, asked)
    other = DocumentReader(
        reader.model,
        reader.spec,
        preprocess={"encoding": {**to_plain(reader.encoding), "overlap": overlap}},
    )
    assert other.ask(page, asked) == known


def test_a_long_document_is_read_to_its_end_in_any_order(reader) -> None:
    """29 letters and, as the 29th page, the only one that is charged for; then all shuffled."""
    letters = [draw_document(9, 2_000_000_100 + n, "letter", ocr_noise=0.0).page for n in range(30)]
    invoice = draw_document(9, 2_000_000_003, "invoice", ocr_noise=0.0)
    [asked] = [q for q in invoice.questions if q.field == "freight"]
    page, question = invoice.page, asked.text
    alone = reader.ask(page, question)
    assert alone.text == asked.answers[0]
    pages = [*letters[:28], page, *letters[28:29]]
    assert len(pages) == 30
    long = reader.ask(pages, question)
    assert (long.page, long.text) == (28, alone.text)
    assert long.boxes == alone.boxes
    order = torch.randperm(30, generator=torch.Generator().manual_seed(4)).tolist()
    shuffled = reader.ask([pages[n] for n in order], question)
    assert order[shuffled.page] == 28
    assert (shuffled.text, shuffled.boxes) == (alone.text, alone.boxes)
    assert shuffled.confidence == pytest.approx(long.confidence, abs=1e-4)
