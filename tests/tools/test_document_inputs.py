"""Bad documents through the tools: one sentence each, the right status, and the batch goes on."""

import json
import struct
import zlib
from pathlib import Path

import pytest
from pdfs import write_pdf
from PIL import Image

from zoo.datasets.ocr import tesseract
from zoo.log import read_log
from zoo.tools import ask, evaluate, train

pytest.importorskip("pypdfium2")

TINY = [
    "model.dim=24", "model.num_heads=4", "model.num_layers=1", "model.ffn_dim=32",
    "run.epochs=1", "run.device=cpu", "loader.batch_size=4", "--weights", "none",
]  # fmt: skip
ASK = "What is the total?"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A model that has learned next to nothing: what it answers does not matter here."""
    out = tmp_path_factory.mktemp("runs") / "run"
    small = ["data.train_documents=2", "data.val_documents=2", "data.questions=1"]
    assert train.main(["--model", "doc_nano", "--out", str(out), *TINY, *small]) == 0
    return out


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def page_json(*words: str, size=(100, 60), boxes=None) -> str:
    places = boxes or [(10, 10 * n, 50, 10 * n + 8) for n in range(len(words))]
    content = {"format": "zoo-page-1", "words": words, "boxes": places}
    return json.dumps({**content, "width": size[0], "height": size[1]})


def scan(path: Path, content: str | None = None, size=(100, 60)) -> Path:
    """A blank picture with its words beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 255).save(path)
    if content is not None:
        path.with_suffix(".json").write_text(content)
    return path


def asked(run: Path, *arguments: object) -> int:
    given = [str(a) for a in arguments]
    return ask.main([*given, ASK, "--weights", str(run), "--device", "cpu"])


def huge(path: Path) -> None:
    """A PNG of a hundred bytes that claims 3.6 billion pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0" * 99))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


INVERTED, NEGATIVE, OVER = (50, 10, 10, 20), (-5, 10, 10, 20), (10, 10, 101, 20)
BAD_FILES = {
    "empty": ("bad.png", lambda p: p.write_bytes(b""), "bad.png is empty; fetch it again"),
    "no picture": ("bad.png", lambda p: p.write_text("words"), "neither a picture nor a PDF; give"),
    "cut off": ("bad.pdf", lambda p: p.write_bytes(b"%PDF-1.4 x"), "bad.pdf is a broken PDF"),
    "locked": ("bad.pdf", lambda p: write_pdf(p, ["x"], password="sesame"),
               "bad.pdf: it is locked by a password; give the right one (password)"),
    "bomb": ("bad.png", huge, "bad.png is too large a picture"),
    "no words": ("bad.png", scan, "looked for bad.page1.json, bad.page1.tsv, bad.json, bad.tsv in"),
    "other size": ("bad.png", lambda p: scan(p, page_json("a", size=(90, 60))),
                   "bad.json is of a page of 90 x 60, its image has 100 x 60 pixels; give the OCR"),
    "broken": ("bad.png", lambda p: scan(p, "{"), "bad.json, line 1: broken JSON"),
    "unknown": ("bad.png", lambda p: scan(p, "{}"), "bad.json is of no known OCR format"),
    "inverted": ("bad.png", lambda p: scan(p, page_json("TOTAL", boxes=[INVERTED])),
                 "bad.json, word 0 'TOTAL': its box [50.0, 10.0, 10.0, 20.0] is inverted; give"),
    "negative": ("bad.png", lambda p: scan(p, page_json("TOTAL", boxes=[NEGATIVE])),
                 "bad.json, word 0 'TOTAL': its box [-5.0, 10.0, 10.0, 20.0] is negative; give"),
    "over": ("bad.png", lambda p: scan(p, page_json("TOTAL", boxes=[OVER])),
             "reaches over the page of 100 x 60; give pixels of this page"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD_FILES))
def test_a_bad_file_is_named_and_the_others_are_read(run, tmp_path, capsys, case) -> None:
    name, make, fault = BAD_FILES[case]
    make(tmp_path / name)
    good = scan(tmp_path / "good.png", page_json("Total", "12.50"))
    assert asked(run, tmp_path / name, good, "--engine", "json", "--json") == 1
    said = capsys.readouterr()
    assert "1 of 2 files could not be read:" in said.err
    [line] = [line for line in said.err.splitlines() if fault in line]
    assert str(tmp_path / name.split(".")[0]) in line
    first, second = json.loads(said.out)
    assert fault in first["error"]
    assert second["answers"][0]["question"] == ASK


def test_a_file_that_may_not_be_read(run, tmp_path, capsys, monkeypatch) -> None:
    bad = scan(tmp_path / "bad.png")
    good = scan(tmp_path / "good.png", page_json("Total", "12.50"))
    opened = Path.open

    def guarded(path, *given, **options):
        if path == bad:
            raise PermissionError(13, "Permission denied")
        return opened(path, *given, **options)

    monkeypatch.setattr(Path, "open", guarded)
    assert asked(run, bad, good, "--engine", "json") == 1
    said = capsys.readouterr()
    assert f"{bad} can't be read (Permission denied); give a file of pages" in said.err
    assert str(good) in said.out


@pytest.mark.parametrize(
    ("password", "status", "fault"),
    [
        (None, 1, "locked.pdf: it is locked by a password; give the right one (password)"),
        ("guess", 1, "locked.pdf: the password is wrong; give the right one (password)"),
        ("sesame", 0, None),
    ],
)
def test_a_locked_pdf(run, tmp_path, capsys, password, status, fault) -> None:
    path = write_pdf(tmp_path / "locked.pdf", ["Total due 12.50"], password="sesame")
    out = ["--out", tmp_path / "out"]
    assert asked(run, path, *(["--password", password] if password else []), *out) == status
    said = capsys.readouterr()
    if fault:
        assert fault in said.err
    else:
        assert "(1 pages, 3 words," in said.out
        assert (tmp_path / "out" / "report.html").is_file()


def test_long_files_show_their_pages_as_they_are_read(run, tmp_path, capsys, monkeypatch) -> None:
    bars = []

    def bar(name, items, total=None, **options):
        bars.append([name, total, 0])
        for item in items:
            bars[-1][2] += 1
            yield item

    monkeypatch.setattr(ask, "progress_bar", bar)
    path = write_pdf(tmp_path / "long.pdf", *([f"page number {n}"] for n in range(1, 501)))
    assert asked(run, path) == 0
    assert bars == [["reading long.pdf", 500, 500]]
    assert "(500 pages, 1500 words," in capsys.readouterr().out
    assert asked(run, path, "--pages", "7,499-") == 0
    assert bars[1:] == [["reading long.pdf", 3, 3]]
    assert "(3 pages, 9 words," in capsys.readouterr().out
    assert asked(run, path, "--pages", "500") == 0
    assert len(bars) == 2  # a single page has no bar
    assert asked(run, path, "--pages", "501") == 1
    assert "long.pdf has 500 pages; '501' is not among them" in capsys.readouterr().err


def test_a_page_without_words_has_no_answer(run, tmp_path, capsys) -> None:
    path = scan(tmp_path / "blank.png", page_json())
    assert asked(run, path, "--engine", "json", "--json") == 0
    [found] = json.loads(capsys.readouterr().out)
    [answer] = found["answers"]
    assert (answer["answer"], answer["page"]) == (None, None)
    assert answer["reason"] == "no text was found"


@pytest.mark.parametrize(
    ("question", "fault"),
    [
        ("", "a question or file is empty; write a question, or leave it out"),
        ("  ", "a question or file is empty"),
        ("\u200b \u200b", "is empty; ask something"),
        ("why " * 90 + "?", "has 91 tokens, and 64 is the most; ask a shorter one"),
    ],
)
def test_questions_that_cannot_be_asked(run, tmp_path, capsys, question, fault) -> None:
    path = scan(tmp_path / "a.png", page_json("a"))
    arguments = [str(path), question, "--engine", "json", "--weights", str(run)]
    assert ask.main([*arguments, "--device", "cpu"]) == 2
    assert fault in capsys.readouterr().err


def test_a_file_of_questions_that_has_none(run, tmp_path, capsys) -> None:
    path = scan(tmp_path / "a.png", page_json("a"))
    (tmp_path / "q.txt").write_text("\n \n")
    assert asked(run, path, "--questions", tmp_path / "q.txt") == 2
    assert "q.txt has no question; write one a line" in capsys.readouterr().err


def test_engines_and_their_help(run, tmp_path, capsys) -> None:
    path = scan(tmp_path / "a.png", page_json("a"))
    assert asked(run, path, "--engine", "tesserakt") == 2
    said = capsys.readouterr().err
    assert "error: there is no OCR engine 'tesserakt'; did you mean tesseract?" in said
    with pytest.raises(SystemExit):
        ask.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "tesseract, rapidocr, json (default: tesseract)" in said
    assert "scan.json or scan.tsv beside scan.png" in said


class TestTesseract:
    """What is wrong with the program itself; it need not be installed for that."""

    @pytest.fixture
    def program(self, tmp_path, monkeypatch):
        """A program in Tesseract's place; it knows English, and reads nothing in good time."""
        path = tmp_path / "tesseract"
        path.write_text(
            '#!/bin/sh\ncase "$1" in --version) echo "tesseract 5.3.0";; '
            '--list-langs) printf "List of languages\\neng\\n";; *) exec sleep 20;; esac\n'
        )
        path.chmod(0o755)
        self.put(monkeypatch, str(path))

    def put(self, monkeypatch, program: str) -> None:
        monkeypatch.setattr(tesseract, "_program", lambda: program)
        for name in ("_version", "_languages"):
            monkeypatch.setattr(tesseract, name, getattr(tesseract, name).__wrapped__)

    def ask(self, run, tmp_path, capsys, *arguments) -> str:
        """What is said of a picture that Tesseract is to read; a PDF with words is answered."""
        path = scan(tmp_path / "scan.png")
        text = write_pdf(tmp_path / "text.pdf", ["Total due 12.50"])
        assert asked(run, path, text, *arguments) == 1
        said = capsys.readouterr()
        assert "(1 pages, 3 words," in said.out
        [line] = [line for line in said.err.splitlines() if line.startswith(f"  {path}")]
        return line

    def test_missing(self, run, tmp_path, capsys, monkeypatch) -> None:
        self.put(monkeypatch, str(tmp_path / "no-such-program"))
        line = self.ask(run, tmp_path, capsys)
        assert "Tesseract is not installed; install it (Debian: apt install tesseract-ocr)" in line

    def test_without_the_language(self, run, tmp_path, capsys, program) -> None:
        line = self.ask(run, tmp_path, capsys, "--language", "eng+deu")
        assert "Tesseract has no language deu (it has eng); install it: apt install" in line
        assert "tesseract-ocr-deu" in line

    def test_too_slow(self, run, tmp_path, capsys, program) -> None:
        line = self.ask(run, tmp_path, capsys, "--timeout", "0.3")
        assert "scan.png, page 1: Tesseract took over 0.3 s for a page of 100 x 60; give" in line


def test_boxes_of_others_are_mended_and_told(run, tmp_path, caplog, capsys) -> None:
    boxes = (INVERTED, NEGATIVE, OVER, (1, 2, 3, 4))
    words = [{"text": f"w{n}", "boundingBox": box} for n, box in enumerate(boxes)]
    result = {"width": 100, "height": 60, "unit": "pixel", "lines": [{"words": words}]}
    path = scan(tmp_path / "a.png", json.dumps({"recognitionResults": [result]}))
    assert asked(run, path, "--engine", "json") == 0
    assert "a.json: 3 of 4 boxes were over the page or inverted" in caplog.text
    assert "(1 pages, 4 words," in capsys.readouterr().out


def test_a_detector_is_not_asked(run, make_run, tmp_path, capsys) -> None:
    path = scan(tmp_path / "a.png", page_json("a"))
    detector = make_run("detector")
    assert asked(detector, path) == 2
    said = capsys.readouterr().err
    assert f"error: {detector} is " in said
    assert "give one that reads documents" in said


def test_a_reader_of_answers_finds_no_objects(run, tmp_path, capsys) -> None:
    from zoo.tools import predict

    path = scan(tmp_path / "a.png", page_json("a"))
    out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert predict.main([str(path), "--weights", str(run), *out]) == 2
    said = capsys.readouterr().err
    assert f"error: {run} is doc_nano, which " in said
    assert "tools/ask.py" in said


# -- data sets ---------------------------------------------------------------------------------

GOOD = {"image": "a.png", "ocr": "a.json", "question": ASK, "answers": ["12.50"]}


def lines(folder: Path, *records: dict, split: str = "train", ocr: str | None = None) -> Path:
    """A folder of JSON lines; all are about one page."""
    scan(folder / "a.png", ocr or page_json("Total", "12.50"))
    if not (folder / "val.jsonl").is_file():
        (folder / "val.jsonl").write_text(json.dumps(GOOD))
    (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


def docvqa(folder: Path, *records: dict) -> Path:
    """A folder in DocVQA's format with the split val."""
    scan(folder / "documents" / "a.png")
    (folder / "ocr").mkdir()
    (folder / "ocr" / "a.json").write_text(page_json("Total", "12.50"))
    plain = {"question": ASK, "image": "documents/a.png", "answers": ["12.50"]}
    data = [{"questionId": n, **plain, **record} for n, record in enumerate(records)]
    (folder / "val_v1.0.json").write_text(json.dumps({"data": data}))
    return folder


def trained(folder: Path, tmp_path: Path) -> int:
    arguments = ["--model", "doc_nano", "--data", str(folder), "--out", str(tmp_path / "out")]
    return train.main([*arguments, *TINY])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"answers": []}, "train.jsonl, line 2 has no right answer, and can't be scored; add one"),
        ({"id": 0}, "train.jsonl, line 2: question id 0 occurs twice; give each an id of its own"),
        ({"question": " "}, "train.jsonl, line 2 has the question ' '; write a question there"),
        ({"question": "why " * 90}, "question 1: the question 'why why"),
        ({"ocr": "b.json"}, "names 1 of 2 OCR files that are missing (first: "),
        ({"image": "b.png"}, "names 1 of 2 pictures that are missing (first: "),
    ],
)
def test_questions_that_nothing_can_be_trained_on(tmp_path, capsys, change, fault) -> None:
    folder = lines(tmp_path / "data", GOOD, GOOD | change)
    assert trained(folder, tmp_path) == 2
    [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert fault in said


@pytest.mark.parametrize(
    ("ocr", "fault"),
    [
        (page_json("a", size=(90, 60)), "a.json is of a page of 90 x 60, its image has 100 x 60"),
        (page_json("a", boxes=[INVERTED]), "a.json, word 0 'a': its box [50.0, 10.0, 10.0, 20.0]"),
        (page_json("a", boxes=[NEGATIVE]), "is negative; give pixels of the page"),
        (page_json("a", boxes=[OVER]), "reaches over the page of 100 x 60"),
        ("", "a.json is empty; write the page's words there"),
    ],
)
def test_words_that_are_not_the_pages(tmp_path, capsys, ocr, fault) -> None:
    folder = lines(tmp_path / "data", GOOD)
    (folder / "a.json").write_text(ocr)
    assert trained(folder, tmp_path) == 2
    [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert fault in said


def test_an_answer_that_is_nowhere_is_told_and_no_error(tmp_path, caplog) -> None:
    lost = GOOD | {"answers": ["Oakwood Garden Supplies"]}
    folder = lines(tmp_path / "data", GOOD, lost, lost)
    lines(tmp_path / "data", GOOD, lost, split="val")
    caplog.set_level("INFO", "zoo")
    assert trained(folder, tmp_path) == 0
    [told] = [r.getMessage() for r in caplog.records if "train:" in r.getMessage()]
    assert "the OCR holds 1 of 3 answers" in told
    assert "lost: 2, first: question 1" in told
    last = [row for row in read_log(tmp_path / "out" / "log.jsonl") if row["kind"] == "eval"][-1]
    assert last["answers_found"] == 0.5
    assert 0.4 < last["oracle_ANLS"] < 0.9


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        (({}, {"questionId": 0}), "val_v1.0.json: question 0 occurs twice; give every question"),
        (({}, {"answers": []}), "val_v1.0.json: question 1 has no right answer, and can't be"),
        (({"question": ""},), "val_v1.0.json: question 0 has the question ''; write a question"),
    ],
)
def test_questions_that_cannot_be_scored(run, tmp_path, capsys, records, fault) -> None:
    folder = docvqa(tmp_path / "data", *records)
    arguments = ["--weights", str(run), "--data", str(folder), "--device", "cpu"]
    assert evaluate.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert fault in capsys.readouterr().err
    (tmp_path / "s.json").write_text('[{"questionId": 0, "answer": "x"}]')
    arguments = ["--results", str(tmp_path / "s.json"), "--data", str(folder)]
    assert evaluate.main(arguments) == 2
    assert fault in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        ([(0, "a"), (1, "b"), (0, "c")], "s.json, record 2 answers question 0 a second time; keep"),
        ([(0, "a"), (7, "b")], "s.json, record 1 answers question 7, which is not among the 2"),
        ([(0, 12.5)], "s.json, record 0 (question 0) has the answer 12.5; give a text"),
    ],
)
def test_submissions_that_cannot_be_scored(tmp_path, capsys, answers, fault) -> None:
    folder = docvqa(tmp_path / "data", {}, {})
    path = tmp_path / "s.json"
    path.write_text(json.dumps([{"questionId": n, "answer": text} for n, text in answers]))
    assert evaluate.main(["--results", str(path), "--data", str(folder)]) == 2
    assert fault in capsys.readouterr().err
    own = lines(tmp_path / "own", GOOD)
    (own / "val.jsonl").write_text("\n".join(json.dumps(GOOD | {"id": n}) for n in (0, 1)))
    assert evaluate.main(["--results", str(path), "--data", str(own)]) == 2
    assert fault in capsys.readouterr().err


def test_the_words_beside_pictures_can_be_trained_on(tmp_path) -> None:
    """data.ocr takes an engine's name, json too: an OCR file need not be named in the records."""
    record = {key: value for key, value in GOOD.items() if key != "ocr"}
    folder = lines(tmp_path / "data", record)
    (folder / "val.jsonl").write_text(json.dumps(record))
    out = tmp_path / "out"
    arguments = ["--model", "doc_nano", "--data", str(folder), "--out", str(out), "data.ocr=json"]
    assert train.main([*arguments, *TINY]) == 0
    assert read_log(out / "log.jsonl")[-1]["oracle_ANLS"] == 1.0
