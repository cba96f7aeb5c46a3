"""Asking through the tool: files and questions told apart, a bad file named, all of it written."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from zoo.tools import ask, train

pytestmark = pytest.mark.skipif(shutil.which("tesseract") is None, reason="no Tesseract here")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A model that has learned next to nothing: what it answers does not matter here."""
    out = tmp_path_factory.mktemp("runs") / "run"
    status = train.main(
        [
            "--model", "doc_nano", "--weights", "none", "--out", str(out),
            "model.dim=24", "model.num_heads=4",
            "model.num_layers=1", "model.ffn_dim=32", "data.train_documents=2",
            "data.val_documents=2", "data.questions=1", "run.epochs=1", "run.device=cpu",
            "data.augment.no_answer=0",
        ]
    )  # fmt: skip
    assert status == 0
    return out


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def write(path: Path, text: str = "Total amount 12.50") -> Path:
    image = Image.new("RGB", (600, 200), "white")
    ImageDraw.Draw(image).text((30, 60), text, "black", ImageFont.load_default(size=40))
    image.save(path)
    return path


def test_answers_of_a_folder_in_json(run, tmp_path, capsys) -> None:
    folder = tmp_path / "scans"
    (folder / "inner").mkdir(parents=True)
    write(folder / "a.png")
    write(folder / "inner" / "b.pdf")
    (folder / "notes.txt").write_text("not a page")
    arguments = [str(folder), "What is the total?", "Who?", "--weights", str(run), "--json"]
    assert ask.main([*arguments, "--others", "2", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(one["file"]).name for one in found] == ["a.png", "b.pdf"]
    for one in found:
        assert [a["question"] for a in one["answers"]] == ["What is the total?", "Who?"]
        assert one["pages"][0]["rotation"] == 0
        for answer in one["answers"]:
            assert 0 <= answer["confidence"] <= 1
            assert len(answer["others"]) == 2
            if answer["answer"] is not None:
                assert answer["page"] == 1
                assert set(answer["answer"].split()) <= {"Total", "amount", "12.50"}
                assert len(answer["boxes"]) == 1


def test_a_bad_file_is_named_and_the_others_are_read(run, tmp_path, capsys) -> None:
    good, bad = write(tmp_path / "good.png"), tmp_path / "bad.png"
    bad.write_bytes(b"")
    out = tmp_path / "out"
    questions = tmp_path / "questions.txt"
    questions.write_text("What is the total?\n\nWhich <b>name</b>?\n")
    arguments = [str(bad), str(good), "--questions", str(questions), "--weights", str(run)]
    assert ask.main([*arguments, "--out", str(out), "--device", "cpu"]) == 1
    said = capsys.readouterr()
    assert "bad.png is empty" in said.err
    assert "1 of 2 files could not be read" in said.err
    assert "What is the total?" in said.out
    answers = json.loads((out / "answers.json").read_text())
    assert "error" in answers[0]
    assert len(answers[1]["answers"]) == 2
    report = (out / "report.html").read_text()
    assert "&lt;b&gt;name&lt;/b&gt;" in report
    assert "<b>name" not in report
    has_answer = any(a["answer"] is not None for a in answers[1]["answers"])
    assert has_answer == ("data:image/jpeg;base64," in report)
    assert has_answer == (out / "pages").is_dir()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["{file}"], "there is no question"),
        (["What is it?"], "there is no file to ask about"),
        (["{file}", "nofile.png", "What is it?"], "there is no picture or folder nofile.png"),
        (["{file}", " ?"], None),
        (["{file}", "why " * 90 + "?"], "and 64 is the most"),
        (["{file}", "What is it?", "--language", "xyz"], None),
    ],
)
def test_what_cannot_be_asked(run, tmp_path, capsys, arguments, fault) -> None:
    file = write(tmp_path / "a.png")
    given = [str(file) if a == "{file}" else a for a in arguments]
    status = ask.main([*given, "--weights", str(run), "--device", "cpu"])
    said = capsys.readouterr().err
    if fault is not None:
        assert status == 2
        assert fault in said
    elif "xyz" in given:
        assert status == 1
        assert "Tesseract has no language xyz" in said
    else:
        assert status == 0  # a question mark is a token, and so a question


def test_flags_may_stand_anywhere(run, tmp_path, capsys) -> None:
    file = write(tmp_path / "a.png")
    given = [str(file), "--weights", str(run), "What is the total?", "--device", "cpu", "Who?"]
    assert ask.main([*given, "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert [a["question"] for a in found["answers"]] == ["What is the total?", "Who?"]


def test_files_and_questions_are_told_apart(tmp_path) -> None:
    odd = write(tmp_path / "is it a file?.png")
    files, questions = ask.sorted_out([str(odd), "scan.png", "Total?", "the total due"])
    assert files == [str(odd), "scan.png"]
    assert questions == ["Total?", "the total due"]
