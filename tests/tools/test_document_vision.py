"""Models that look at the page's picture, through the same tools: train, evaluate, ask."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import zoo
from zoo.datasets.ocr.page import Page
from zoo.datasets.page_pictures import HeldPicture
from zoo.datasets.papers.document import draw_document, paint
from zoo.datasets.tokens import ASSETS
from zoo.log import read_log
from zoo.tools import evaluate, export, train

TINY = [
    "model.dim=24", "model.num_heads=4", "model.num_layers=1", "model.ffn_dim=32",
    "model.patch_size=8", "model.image_size=32", "loader.batch_size=4", "run.log_steps=1",
    "run.device=cpu", "run.epochs=1", "--weights", "none",
]  # fmt: skip
V3 = [
    "model.coordinate_size=4", "model.shape_size=4", "data.encoding.tokenizer=bert_uncased",
    "data.encoding.image=32", "data.encoding.length=160", "data.encoding.overlap=32",
]  # fmt: skip


def write_folder(folder: Path) -> Path:
    """A folder of one's own: two painted pages with their words, a question each."""
    for split, index in (("train", 0), ("val", 1)):
        drawn = draw_document(5, index, "receipt", ocr_noise=0.0)
        folder.mkdir(parents=True, exist_ok=True)
        paint(drawn, 5).save(folder / f"{split}.png")
        (folder / f"{split}.json").write_text(drawn.page.to_json())
        question = next(q for q in drawn.questions if q.spans)
        record = {
            "image": f"{split}.png", "ocr": f"{split}.json", "question": question.text,
            "answers": list(question.answers),
        }  # fmt: skip
        (folder / f"{split}.jsonl").write_text(json.dumps(record) + "\n")
    return folder


def test_layoutlmv3_learns_from_files_and_answers(tmp_path, capsys) -> None:
    folder, out = write_folder(tmp_path / "own"), tmp_path / "run"
    arguments = ["--model", "layoutlmv3_base", "--data", str(folder), "--out", str(out)]
    assert train.main([*arguments, *TINY, *V3]) == 0
    last = [row for row in read_log(out / "log.jsonl") if row["kind"] == "eval"][-1]
    assert last["oracle_ANLS"] == 1.0
    assert evaluate.main(["--weights", str(out), "--data", str(folder), "data.seed=0"]) == 0
    capsys.readouterr()
    reader = zoo.load_model(out, device="cpu", fast=False)
    assert reader.encoding.image == 32
    drawn = draw_document(5, 1, "receipt", ocr_noise=0.0).page
    with Image.open(folder / "val.png") as image:
        seen = reader.read(image.copy(), engine="tesseract") if _has_tesseract() else []
    assert all(page.picture is not None for page in seen)

    # What the picture shows makes a difference.
    def ask(picture: Image.Image) -> float:
        page: Page = replace(drawn, picture=HeldPicture(picture))
        return reader.ask(page, "What is the total?").confidence

    with Image.open(folder / "val.png") as image:
        assert ask(image.copy()) != ask(Image.new("RGB", image.size, "black"))


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("vilt_b32", ["data.encoding.image=32", "data.encoding.image_multiple=8"]),
        ("ernie_layout_disentangled", [
            "model.grid_width=16", "model.vocab_size=30522",
            "model.task=classify", "data.task=classify",
            "data.encoding.tokenizer=bert_uncased", "data.encoding.image=64",
        ]),
    ],
)  # fmt: skip
def test_drawn_documents_are_classified_by_their_pictures(model, settings, tmp_path) -> None:
    out = tmp_path / "run"
    few = ["data.train_documents=6", "data.val_documents=3"]
    arguments = ["--model", model, "--out", str(out), *TINY, *few, *settings]
    assert train.main(arguments) == 0
    reader = zoo.load_model(out, device="cpu")
    assert reader.task == "classify"
    drawn = draw_document(5, 0, "receipt", ocr_noise=0.0)
    assert reader.classify(_painted(drawn))[0].name in reader.class_names


def _painted(drawn) -> Page:
    return replace(drawn.page, picture=HeldPicture(paint(drawn, 5)))


def _has_tesseract() -> bool:
    return shutil.which("tesseract") is not None


def test_a_run_is_whole_without_the_folder_of_its_tokenizer(tmp_path) -> None:
    """It comes along into the checkpoint, and from there into what is published of it."""
    folder, own = write_folder(tmp_path / "own"), tmp_path / "words"
    own.mkdir()
    shutil.copy(ASSETS / "bert_uncased" / "tokenizer.json", own)
    out = tmp_path / "run"
    arguments = ["--model", "layoutlmv3_base", "--data", str(folder), "--out", str(out)]
    small = [*TINY, *V3, f"data.encoding.tokenizer={own}"]
    assert train.main([*arguments, *small]) == 0
    assert export.main([str(out), str(tmp_path / "published")]) == 0
    shutil.rmtree(own)
    for source in (out, tmp_path / "published"):
        reader = zoo.load_model(source, device="cpu")
        assert reader.tokenizer.text("total")
        assert Path(reader.encoding.tokenizer).name == "tokenizer.json"
        assert source in Path(reader.encoding.tokenizer).parents
        assert evaluate.main(["--weights", str(source), "--data", str(folder)]) == 0
    assert (out / "best" / "tokenizer.json").is_file()
    shutil.move(out, tmp_path / "moved")
    assert zoo.load_model(tmp_path / "moved", device="cpu").tokenizer.text("total")
