"""What ``make demo`` runs: ask, train, measure and look, without any data of one's own.

    python tools/demo.py                    # 12 minutes on two CPU cores
    python tools/demo.py --minutes 3        # a shorter look
    python tools/demo.py --out runs/mine

Draws a worn scan of a receipt, reads it with Tesseract and asks the model that comes with the
package three questions, in seconds. Where Tesseract is not installed, the words of the drawing are
used instead.

Then trains the model that ``detr`` stands for on the built-in pictures of shapes, scores it on
held-out pictures by COCO's mean average precision, and predicts on some that it has never seen.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from zoo.datasets.ocr.read import engine_named
from zoo.datasets.papers.document import SyntheticDocument, draw_document, paint
from zoo.datasets.shapes import export
from zoo.errors import ZooError
from zoo.inference import load_model
from zoo.models.document.predictor import DocumentReader, Reply
from zoo.tools import ask, evaluate, predict, train
from zoo.visualize import contact_sheet

PICTURES = 12  # held-out pictures to predict on
READER = "doc_nano"
RECEIPT = (12, 7_000_007)  # seed and number of the drawn receipt: none that the reader has learned
QUESTIONS = {  # by the receipt's field that answers them
    "company": "What is the name of the company?",
    "date": "What is the date?",
    "total": "What is the total?",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    p = argparse.ArgumentParser(
        prog="demo.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--minutes", type=float, default=11.0, help="of training (default: %(default)s)")
    p.add_argument("--out", type=Path, help="default: runs/demo_N, a new folder")
    args = p.parse_args(argv)
    out = args.out or fresh_folder()
    began = time.monotonic()
    try:
        marked = ask_a_receipt(out / "document")
        run(out, args.minutes)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\ndone in {(time.monotonic() - began) / 60:.1f} minutes")
    print(f"answers on a scan   {marked}")
    print(f"checkpoint          {out / 'best'}")
    print(f"annotated pictures  {out / 'pictures.png'} and {out / 'predictions'}/")
    print(f"learning curve      {out / 'learning_curve.png'}")
    print(f"evaluation          {out / 'evaluation'}/")
    return 0


def ask_a_receipt(out: Path, device: str = "auto") -> Path:
    """Draw a receipt, read it, ask about it and print how it went; the picture of the answers."""
    began = time.monotonic()
    drawn = draw_document(*RECEIPT, "receipt", ocr_noise=0.0)
    right = {q.field: " or ".join(q.answers) for q in drawn.questions}
    scan, marked = out / "scan.png", out / "answers.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        paint(drawn, RECEIPT[0]).save(scan)
    except OSError as error:
        raise ZooError(f"{scan} can't be written ({error.strerror}); give another --out") from None
    asked = list(QUESTIONS.values())
    shown = " ".join(f'"{text}"' for text in asked)
    print(f"\n$ tools/ask.py {scan} {shown} --weights {READER}", flush=True)
    reader: DocumentReader = load_model(READER, device=device)
    found = answers_on(scan, drawn, asked, reader)
    rows = [("asked", "answer", "right answer", "sure")]
    for field, reply in zip(QUESTIONS, found.replies, strict=True):
        answer = reply.text if reply.text is not None else f"- ({reply.reason})"
        rows.append((reply.question, answer, right[field], f"{reply.confidence:.0%}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    # A page without any answer is written as it is.
    pictures = ask.marked_pages(found, None) or {0: Image.open(scan)}
    pictures[0].save(marked)
    words, seconds = sum(map(len, found.pages)), time.monotonic() - began
    print(f"{words} words, {len(asked)} questions, {seconds:.1f} s in all: {marked}")
    return marked


def answers_on(
    scan: Path, drawn: SyntheticDocument, questions: Sequence[str], reader: DocumentReader
) -> ask.Asked:
    """What ``reader`` answers on a scan; the words are Tesseract's, or those that were drawn."""
    try:
        engine_named("tesseract")
    except ZooError as error:
        print(f"{error}. Here the words of the drawing are used, as if they had been read.")
        replies: list[Reply] = reader.ask([drawn.page], questions, others=0)
        return ask.Asked(str(scan), [drawn.page], replies)
    args = ask.parser().parse_args([str(scan), "--weights", READER])
    found = ask.ask_file(args, reader, str(scan), questions)
    if found.reason:
        raise ZooError(found.reason)
    return found


def run(out: Path, minutes: float) -> None:
    """Train, evaluate, and predict on held-out pictures, all into ``out``."""
    steps: list[tuple[str, list[str]]] = [
        ("train", ["--model", "detr", "--out", str(out), f"run.max_minutes={minutes}"]),
        (
            "evaluate",
            ["--weights", str(out), "--data", "shapes", "--out", str(out / "evaluation")],
        ),
    ]
    for name, arguments in steps:
        tool = train.main if name == "train" else evaluate.main
        print(f"\n$ tools/{name}.py {' '.join(arguments)}", flush=True)
        if status := tool(arguments):
            raise ZooError(f"tools/{name}.py ended with status {status}; see its message above")
    held_out = out / "held_out"
    export(held_out, {"val": PICTURES})
    arguments = [str(held_out / "val"), "--weights", str(out), "--out", str(out / "predictions")]
    arguments += ["--threshold", "0.35"]
    print(f"\n$ tools/predict.py {' '.join(arguments)}", flush=True)
    if status := predict.main(arguments):
        raise ZooError(f"tools/predict.py ended with status {status}; see its message above")
    drawn = sorted((out / "predictions").rglob("*.[jp][pn]g"))
    contact_sheet([Image.open(path) for path in drawn], columns=4).save(out / "pictures.png")


def fresh_folder() -> Path:
    """A folder under runs/ that does not exist yet."""
    number = 1
    while (out := Path("runs") / f"demo_{number}").exists():
        number += 1
    return out


if __name__ == "__main__":
    raise SystemExit(main())
