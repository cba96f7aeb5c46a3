"""Predicting with models that tag or classify, through the tool: files in, results and pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.datasets.ocr.page import Page
from zoo.datasets.papers.document import draw_document, paint
from zoo.errors import NonFiniteError, ZooError
from zoo.tools import predict, predict_documents, train

TINY = [
    "--model", "doc_nano", "--weights", "none", "model.dim=24", "model.num_heads=4",
    "model.num_layers=1", "model.ffn_dim=32", "data.encoding.length=160",
    "data.encoding.overlap=32", "data.train_documents=12", "data.val_documents=2",
    "data.questions=1", "loader.batch_size=4", "optim.lr=0.01", "run.epochs=4", "run.device=cpu",
]  # fmt: skip


def trained(task: str, out: Path) -> Path:
    assert train.main([*TINY, "--out", str(out), f"model.task={task}", f"data.task={task}"]) == 0
    return out


@pytest.fixture(scope="module")
def tagger(tmp_path_factory) -> Path:
    return trained("ser", tmp_path_factory.mktemp("runs") / "tagger")


@pytest.fixture(scope="module")
def sorter(tmp_path_factory) -> Path:
    return trained("classify", tmp_path_factory.mktemp("runs") / "sorter")


@pytest.fixture
def scans(tmp_path, monkeypatch) -> Path:
    """A receipt, and a PDF of a form and a blank page; reading gives the words as they are drawn.

    What can't be opened is still an error, so that only the OCR engine is stood in for.
    """
    folder = tmp_path / "scans"
    (folder / "inner").mkdir(parents=True)
    drawn = {
        "receipt.png": [draw_document(5, 60, "receipt", ocr_noise=0.0)],
        "form.pdf": [draw_document(5, 61, "form", ocr_noise=0.0)],
    }
    paint(drawn["receipt.png"][0], 5).save(folder / "receipt.png")
    form = paint(drawn["form.pdf"][0], 5)
    blank = Image.new("RGB", form.size, "white")
    form.save(folder / "inner" / "form.pdf", save_all=True, append_images=[blank], resolution=200)
    (folder / "notes.txt").write_text("not a page")

    def read(path: Path, **options: Any) -> list[Page]:
        from zoo.datasets.ocr.files import open_pages

        opened = open_pages(path, pages=options["pages"], password=options["password"])
        found = []
        for item in opened:
            width, height = item.image.size
            here = drawn[Path(path).name]
            words: Page | None = here[item.number].page if item.number < len(here) else None
            if words is None:
                words = Page(words=(), boxes=(), width=width, height=height)
            wide, high = width / words.width, height / words.height
            boxes = tuple((a * wide, b * high, c * wide, d * high) for a, b, c, d in words.boxes)
            found.append(
                Page(words=words.words, boxes=boxes, lines=words.lines, width=width, height=height,
                     number=item.number, source=str(path))
            )  # fmt: skip
        return found

    monkeypatch.setattr(predict_documents, "read_pages", read)
    return folder


def run(*arguments: object, status: int = 0) -> None:
    assert predict.main([*map(str, arguments), "--device", "cpu"]) == status


def result(out: Path) -> Any:
    return json.loads((out / "predictions.json").read_text(encoding="utf-8"))


def test_a_folder_is_tagged(tagger, scans, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    run(scans, "--weights", tagger, "--out", out, "--float32")
    said = capsys.readouterr()
    first = said.out.splitlines()[0]
    for part in ("doc_nano", str(tagger), "3 types of entities", "2 files", "cpu", str(out)):
        assert part in first
    found = result(out)
    assert found["info"]["task"] == "ser"
    assert [one["file_name"] for one in found["files"]] == ["receipt.png", "inner/form.pdf"]
    assert [len(one["pages"]) for one in found["files"]] == [1, 2]
    assert [page["page"] for page in found["files"][1]["pages"]] == [1, 2]
    assert found["files"][1]["pages"][1]["words"] == []  # a page without words is no error
    assert found["files"][1]["pages"][1]["entities"] == []
    # The same as in Python, from the same words.
    reader = zoo.load_model(tagger, device="cpu", fast=False)
    page = found["files"][0]["pages"][0]
    drawn = draw_document(5, 60, "receipt", ocr_noise=0.0).page
    (expected,) = reader.tag(drawn)
    assert [w["text"] for w in page["words"]] == list(drawn.words)
    assert [w["tag"] for w in page["words"]] == [w.tag for w in expected.words]
    assert [(e["type"], e["text"]) for e in page["entities"]] == [
        (e.type, e.text) for e in expected.entities
    ]
    assert page["entities"]  # a tagger of nothing but O would show nothing here
    for entity, own in zip(page["entities"], expected.entities, strict=True):
        assert entity["confidence"] == pytest.approx(own.confidence, abs=1e-4)
        assert entity["boxes"] == [pytest.approx(box, abs=0.06) for box in own.boxes]
        assert entity["words"] == [own.first, own.last]
    total = sum(len(p["entities"]) for one in found["files"] for p in one["pages"])
    assert f"{total} entities: " in said.out
    assert "3 pages of 2 files in " in said.out
    assert f"receipt.png, p. 1: {page['entities'][0]['type']} " in said.out
    assert sorted(p.name for p in out.iterdir()) == ["pictures", "predictions.json"]


def test_entities_are_drawn_in_the_colours_of_their_types(tagger, scans, tmp_path) -> None:
    from zoo.visualize import class_colour

    out = tmp_path / "out"
    run(scans, "--weights", tagger, "--out", out)
    names = sorted(p.relative_to(out / "pictures").as_posix() for p in out.rglob("*.jpg"))
    assert names == ["inner/form.pdf_1.jpg", "inner/form.pdf_2.jpg", "receipt.png_1.jpg"]
    page = result(out)["files"][0]["pages"][0]
    types = zoo.load_model(tagger, device="cpu").entity_types
    with Image.open(out / "pictures" / "receipt.png_1.jpg") as picture:
        assert picture.width == page["width"]
        assert picture.height > page["height"]  # the legend is below the page
        below = np.asarray(picture.convert("RGB"), dtype=int)[page["height"] :]
        x1, y1, x2, y2 = (round(c) for c in page["entities"][-1]["boxes"][0])
        marked = np.asarray(picture.convert("RGB").crop((x1, y1, x2, y2)), dtype=int)
    for name in {e["type"] for e in page["entities"]}:
        colour = class_colour(types.index(name))
        assert (abs(below - colour).sum(-1) < 60).any()  # JPEG is not exact
    # The paper of the last entity has its type's hue.
    colour = np.array(class_colour(types.index(page["entities"][-1]["type"])))
    assert marked.mean((0, 1)).argmax() == colour.argmax()
    with Image.open(out / "pictures" / "inner" / "form.pdf_2.jpg") as picture:
        assert np.ptp(np.asarray(picture)) < 20  # nothing on a blank page


def test_pages_are_classified_and_can_be_chosen(sorter, scans, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    some = tmp_path / "some"
    run(scans / "inner" / "*.pdf", "--weights", sorter, "--out", some, "--pages", "2")
    (one,) = result(some)["files"]
    assert [page["page"] for page in one["pages"]] == [2]
    run(scans, "--weights", sorter, "--out", out, "--float32")
    found = result(out)
    reader = zoo.load_model(sorter, device="cpu", fast=False)
    pages = [page for one in found["files"] for page in one["pages"]]
    assert len(pages) == 3
    for page in pages:
        assert set(page["scores"]) == set(reader.class_names)
        assert page["confidence"] == max(page["scores"].values()) == page["scores"][page["class"]]
    (expected,) = reader.classify(draw_document(5, 60, "receipt", ocr_noise=0.0).page)
    assert pages[0]["class"] == expected.name
    assert pages[0]["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    said = capsys.readouterr().out
    assert "5 classes of pages | 2 files" in said
    assert f"receipt.png, p. 1: {expected.name} " in said
    assert len(list((out / "pictures").rglob("*.jpg"))) == 3


def test_bad_files_are_named_and_the_others_are_done(tagger, scans, tmp_path, capsys) -> None:
    (scans / "a bad.png").write_bytes(b"")
    out = tmp_path / "out"
    run(scans, "--weights", tagger, "--out", out, "--no-pictures", status=1)
    said = capsys.readouterr()
    assert "1 file could not be read" in said.err
    assert "a bad.png is empty" in (out / "failed.txt").read_text()
    assert [one["file_name"] for one in result(out)["files"]] == ["receipt.png", "inner/form.pdf"]
    assert not (out / "pictures").exists()
    run(scans / "receipt.png", "--weights", tagger, "--out", out)
    assert not (out / "failed.txt").exists()


def test_a_file_that_goes_away_and_spoiled_weights(tagger, scans, tmp_path, monkeypatch) -> None:
    def gone(path: Path, **_: Any) -> Any:
        raise ZooError(f"there is no file {path}")
        yield

    out = tmp_path / "out"
    monkeypatch.setattr(predict_documents, "open_pages", gone)
    run(scans / "receipt.png", "--weights", tagger, "--out", out, status=1)
    assert "there is no file" in (out / "failed.txt").read_text()

    def spoiled(*_: object, **__: object) -> Any:
        raise NonFiniteError("the weights are spoiled")

    monkeypatch.setattr(predict_documents.DocumentReader, "tag", spoiled)
    run(scans, "--weights", tagger, "--out", out, status=2)


def test_what_is_not_for_a_model_of_documents(tagger, scans, tmp_path, capsys) -> None:
    def fault(*arguments: object) -> str:
        run(*arguments, "--out", tmp_path / "out", status=2)
        return capsys.readouterr().err

    assert "--threshold is not for" in fault(scans, "--weights", tagger, "--threshold", 0.3)
    assert "--attention is not for" in fault(scans, "--weights", tagger, "--attention")
    assert "abbyy" in fault(scans, "--weights", tagger, "--engine", "abbyy")
    (tmp_path / "empty").mkdir()
    assert "no picture or PDF in" in fault(tmp_path / "empty", "--weights", tagger)
    assert "no picture or folder gone.pdf" in fault("gone.pdf", "--weights", tmp_path / "nothing")
    assert not (tmp_path / "out").exists()


def test_a_model_that_answers_is_used_with_another_tool(scans, tmp_path, capsys) -> None:
    run(scans, "--weights", "doc_nano", "--out", tmp_path / "out", status=2)
    said = capsys.readouterr().err
    assert "answers questions" in said
    assert "tools/ask.py" in said


def test_flags_of_documents_are_not_for_detectors(make_run, scans, capsys) -> None:
    run(scans, "--weights", make_run(), "--pages", "1", status=2)
    assert "--pages is not for" in capsys.readouterr().err


def test_parts_of_two_processes_become_one_file(tagger, tmp_path, capsys) -> None:
    from zoo.tools.predict_documents import DocumentJob, Record
    from zoo.tools.predict_files import Files, part_of, write_part

    entity = {"type": "TOTAL", "text": "9", "confidence": 1.0, "boxes": [], "words": [0, 0]}
    page = {"page": 1, "words": [], "entities": [entity]}
    write_part(tmp_path, 0, [Record(0, [page, page]), Record(2, None, "broken")])
    write_part(tmp_path, 1, [Record(1, [page])])
    args = predict.parser().parse_args(["x", "--weights", "run", "--no-pictures"])
    reader = zoo.load_model(tagger, device="cpu")
    job = DocumentJob(args, reader, Files(tmp_path, Path("/scans"), ["a.png", "b.png", "c.png"]))
    assert job.finish([part_of(tmp_path, 0), part_of(tmp_path, 1)], 0.0) == 1
    assert [one["file_name"] for one in result(tmp_path)["files"]] == ["a.png", "b.png"]
    assert (tmp_path / "failed.txt").read_text() == "/scans/c.png\tbroken\n"
    assert "3 pages of 2 files" in (said := capsys.readouterr().out)
    assert "3 entities: TOTAL 3" in said


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="no Tesseract here")
def test_a_scan_is_read_by_tesseract(tagger, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    drawn = draw_document(5, 60, "receipt", ocr_noise=0.0)
    paint(drawn, 5, wear=0.0).save(tmp_path / "scan.png")
    run(tmp_path / "scan.png", "--weights", tagger, "--out", tmp_path / "out")
    (one,) = result(tmp_path / "out")["files"]
    read = {w["text"] for w in one["pages"][0]["words"]}
    assert len(read & set(drawn.page.words)) > 0.5 * len(set(drawn.page.words))
    tags = {w["tag"] for w in one["pages"][0]["words"]}
    assert tags <= set(result(tmp_path / "out")["info"]["class_names"])


def test_an_unreadable_page_without_an_engine_is_said(tagger, tmp_path, monkeypatch) -> None:
    def missing(*_: object, **__: object) -> list[Page]:
        raise ZooError("Tesseract is not installed; install it")

    monkeypatch.setattr(predict_documents, "read_pages", missing)
    Image.new("RGB", (60, 60), "white").save(tmp_path / "a.png")
    run(tmp_path / "a.png", "--weights", tagger, "--out", tmp_path / "out", status=1)
    assert "not installed" in (tmp_path / "out" / "failed.txt").read_text()
