"""Ask questions about scans, photographs and PDFs.

    python tools/ask.py receipt.jpg "What is the total?" "Which company?"
    python tools/ask.py FOLDER 'inbox/*.pdf' --questions questions.txt --weights runs/receipts
    python tools/ask.py contract.pdf "When does it end?" --pages 1-3 --out found
    python tools/ask.py scan.png "Who signed?" --json > answers.json

What has a space in it or ends in a question mark is a question, everything else a file, folder or
pattern. Answers are the page's own words, with how sure the model is (its share among all
candidates and "there is no answer"), the page and, in --json and --out, the boxes in pixels.
--out writes answers.json, the pages with the answers marked, and report.html, which has all of it
in one file.

Pictures are read by --engine: tesseract, rapidocr (pip install 'layout-detr-zoo[rapidocr]'), or
json, which takes words that you have already: those of scan.json or scan.tsv beside scan.png (for
one page of several: scan.page3.json), as Tesseract (tsv), Microsoft Read or this project write
them.

Exit status: 0 done; 1 done, but some files could not be read (they are named); 2 something in the
input is wrong.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from zoo.datasets.ocr.files import count_pages, open_pages
from zoo.datasets.ocr.page import Page
from zoo.datasets.ocr.read import NAMES, check_engine, read_pages
from zoo.datasets.ocr.tesseract import OcrOptions, turned
from zoo.datasets.picture_files import SUFFIXES, list_files
from zoo.errors import ZooError
from zoo.files import write_json
from zoo.inference import load_model
from zoo.models.document.predictor import DocumentReader, Reply
from zoo.trainer import progress_bar
from zoo.visualize import add_legend, mark_text

SHOWN = 1200  # pixels of the longer side of a page in the report


@dataclass
class Asked:
    """What became of one file: its pages and replies, or why there are none."""

    path: str
    pages: list[Page]
    replies: list[Reply]
    reason: str = ""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        prog="ask.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("what", nargs="+", metavar="FILE|QUESTION")
    p.add_argument(
        "--weights", default="doc_nano", metavar="RUN|NAME",
        help="the model to ask (default: %(default)s, which comes with the package)",
    )  # fmt: skip
    p.add_argument("--questions", type=Path, metavar="FILE", help="further questions, one a line")
    p.add_argument("--pages", metavar="1-3,7", help="of every file; default: all")
    p.add_argument("--password", help="of locked PDFs")
    p.add_argument(
        "--engine", default="tesseract", metavar="NAME",
        help=f"where the words of pictures come from: {', '.join(NAMES)} (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("--language", default="eng", help="of the pages (default: %(default)s)")
    p.add_argument(
        "--timeout", type=float, default=OcrOptions().timeout, metavar="SECONDS",
        help="for Tesseract to read a page (default: %(default)g)",
    )  # fmt: skip
    p.add_argument("--no-ocr-cache", action="store_true", help="read every page anew")
    p.add_argument("--others", type=int, default=0, metavar="N", help="next best answers to show")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    p.add_argument("--out", type=Path, metavar="DIR", help="write answers, pages and a report")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    args = parser().parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return ask(args)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def ask(args: argparse.Namespace) -> int:
    """Read all files, ask all questions of each; returns the exit status."""
    check_engine(args.engine)
    given, questions = sorted_out(args.what)
    if args.questions is not None:
        questions += questions_in(args.questions)
    if not questions:
        raise ZooError('there is no question; add one, such as "What is the total?"')
    if not given:
        raise ZooError("there is no file to ask about; name a picture, a PDF or a folder")
    suffixes = SUFFIXES | {".pdf"}
    files = list(list_files(given, args.out or Path("runs/none"), suffixes))
    if not files:
        raise ZooError(f"there is no picture or PDF in {', '.join(given)}; name another folder")
    reader = load_model(args.weights, device=args.device)
    if not isinstance(reader, DocumentReader):
        raise ZooError(f"{args.weights} is a model of another kind; give one that reads documents")
    count = sum(p.numel() for p in reader.model.parameters())
    print(
        f"model {reader.spec.name} of {args.weights}, {count / 1e6:.1f} M parameters | "
        f"{len(files)} files, {len(questions)} questions | device {reader.device}"
        + (f" | output {args.out}" if args.out else ""),
        file=sys.stderr,
        flush=True,
    )
    # What can't be answered in any file ends the run before the first is read.
    reader.check_questions(questions)
    found = []
    many = progress_bar("asking", files, unit="file") if len(files) > 1 else files
    for path in many:
        began = time.monotonic()
        found.append(ask_file(args, reader, path, questions))
        if not args.json:
            print(table(found[-1], time.monotonic() - began), flush=True)
    if args.json:
        print(json.dumps([plain(one) for one in found], indent=1, ensure_ascii=False))
    if args.out is not None:
        write_out(args, found)
    failed = [one for one in found if one.reason]
    if failed:
        print(f"{len(failed)} of {len(found)} files could not be read:", file=sys.stderr)
        for one in failed:
            named = one.path in one.reason
            print(f"  {one.reason}" if named else f"  {one.path}: {one.reason}", file=sys.stderr)
    return 1 if failed else 0


def sorted_out(what: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files and questions, told apart by their looks; what exists is a file in any case.

    Raises :class:`ZooError` for an empty one.
    """
    files: list[str] = []
    questions: list[str] = []
    for item in what:
        if not item.strip():
            raise ZooError("a question or file is empty; write a question, or leave it out")
        looks = " " in item.strip() or item.rstrip().endswith("?")
        exists = os.path.exists(os.path.expanduser(item))  # of any text, however long
        (questions if looks and not exists else files).append(item)
    return files, questions


def questions_in(path: Path) -> list[str]:
    """The questions of a file, one a line; blank lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ZooError(f"{path} can't be read ({error}); give a text file of questions") from None
    questions = [line.strip() for line in lines if line.strip()]
    if not questions:
        raise ZooError(f"{path} has no question; write one a line")
    return questions


def ask_file(
    args: argparse.Namespace, reader: DocumentReader, path: str, questions: Sequence[str]
) -> Asked:
    """One file's replies; a file that can't be read has none, and says why."""
    try:
        count = count_pages(path, pages=args.pages, password=args.password)
        pages = read_pages(
            path, engine=args.engine, language=args.language, timeout=args.timeout,
            pages=args.pages, password=args.password, cache=not args.no_ocr_cache,
            progress=lambda pages: page_bar(path, pages, count),
        )  # fmt: skip
    except ZooError as error:
        return Asked(path, [], [], str(error))
    return Asked(path, pages, reader.ask(pages, questions, others=args.others))


def page_bar(path: str, pages: Iterable[Page], count: int) -> Iterable[Page]:
    """The pages of a file as they are read, with a bar where it has several."""
    if count < 2:
        return pages
    bar: Iterable[Page] = progress_bar(
        f"reading {Path(path).name}", pages, total=count, unit="page", leave=False
    )
    return bar


def table(one: Asked, seconds: float) -> str:
    """A file's replies as text."""
    lines = [f"\n{one.path}"]
    if one.reason:
        return f"{lines[0]}\n  not read"
    words = sum(map(len, one.pages))
    lines[0] += f"  ({len(one.pages)} pages, {words} words, {seconds:.1f} s)"
    room = max(24, shutil.get_terminal_size((100, 20)).columns - 50)
    for reply in one.replies:
        for rank, candidate in enumerate((reply, *reply.others)):
            asked = candidate.question if rank == 0 else ""
            text = candidate.text if candidate.text is not None else f"- ({candidate.reason})"
            page = "" if candidate.page is None else f"p. {candidate.page + 1}"
            shown = shortened(text, room)
            lines.append(f"  {asked:32.32}  {candidate.confidence:4.0%}  {page:6}  {shown}")
    return "\n".join(lines)


def plain(one: Asked) -> dict[str, Any]:
    """A file's replies for JSON; pages count from 1 there, as people do."""

    def reply(found: Reply) -> dict[str, Any]:
        return {
            "question": found.question,
            "answer": found.text,
            "confidence": round(found.confidence, 4),
            "page": None if found.page is None else found.page + 1,
            "boxes": [[round(c, 1) for c in box] for box in found.boxes],
            **({"reason": found.reason} if found.reason else {}),
            **({"others": [reply(o) for o in found.others]} if found.others else {}),
        }

    if one.reason:
        return {"file": one.path, "error": one.reason}
    sizes = [{"width": p.width, "height": p.height, "rotation": p.rotation} for p in one.pages]
    return {"file": one.path, "pages": sizes, "answers": [reply(r) for r in one.replies]}


def write_out(args: argparse.Namespace, found: Sequence[Asked]) -> None:
    """``answers.json``, ``pages/*.png`` and ``report.html``."""
    out: Path = args.out
    write_json(out / "answers.json", [plain(one) for one in found])
    parts = []
    for number, one in enumerate(found, 1):
        pictures = marked_pages(one, args.password)
        for page, picture in pictures.items():
            path = out / "pages" / f"{number:04d}_{Path(one.path).stem}_{page + 1}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        parts.append(report_of(one, pictures))
    (out / "report.html").write_text(REPORT.replace("CONTENT", "\n".join(parts)), encoding="utf-8")
    names = ("answers.json", "report.html", "pages/")
    print(f"wrote {', '.join(names)} in {out}", file=sys.stderr)


def marked_pages(one: Asked, password: str | None) -> dict[int, Image.Image]:
    """The pages that have an answer, with the answers' boxes, by number."""
    wanted = sorted({reply.page for reply in one.replies if reply.page is not None})
    if not wanted:
        return {}
    by_number = {page.number: page for page in one.pages}
    marked = {}
    chosen = ",".join(str(n + 1) for n in wanted)
    for item in open_pages(one.path, pages=chosen, password=password):
        page = by_number[item.number]
        picture = turned(item.image, page.rotation)
        own = [r for r in one.replies if r.page == item.number]
        boxes = [box for reply in own for box in reply.boxes]
        labels = [n for n, reply in enumerate(own) for _ in reply.boxes]
        # On the page only where there is room beside its words; below it in any case.
        texts = [
            shortened(r.question, 40) if k == 0 else "" for r in own for k in range(len(r.boxes))
        ]
        legend = [
            f"{shortened(r.question, 60)} {shortened(r.text or '', 60)} ({r.confidence:.0%})"
            for r in own
        ]
        picture = mark_text(picture, boxes, labels, texts, words=page.boxes)
        marked[item.number] = add_legend(picture, range(len(own)), legend)
    return marked


def shortened(text: str, most: int) -> str:
    """``text``, cut where it is longer than ``most`` letters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def report_of(one: Asked, pictures: dict[int, Image.Image]) -> str:
    """A file's part of the report; everything that comes from outside is escaped."""
    parts = [f"<h2>{html.escape(one.path)}</h2>"]
    if one.reason:
        return f"{parts[0]}<p class=bad>{html.escape(one.reason)}</p>"
    parts.append("<table><tr><th>question<th>answer<th>sure<th>page</tr>")
    for reply in one.replies:
        text = html.escape(reply.text) if reply.text is not None else f"<i>{reply.reason}</i>"
        page = "" if reply.page is None else str(reply.page + 1)
        parts.append(
            f"<tr><td>{html.escape(reply.question)}<td>{text}<td>{reply.confidence:.0%}"
            f"<td>{page}</tr>"
        )
    parts.append("</table>")
    for number, picture in pictures.items():
        small = picture.convert("RGB")
        small.thumbnail((SHOWN, SHOWN))
        content = io.BytesIO()
        small.save(content, "JPEG", quality=80)
        data = base64.b64encode(content.getvalue()).decode()
        parts.append(f'<img alt="page {number + 1}" src="data:image/jpeg;base64,{data}">')
    return "".join(parts)


REPORT = """<!doctype html><meta charset=utf-8><title>Answers</title>
<style>body{font:15px/1.4 sans-serif;max-width:1000px;margin:2em auto;padding:0 1em}
table{border-collapse:collapse}td,th{text-align:left;padding:.2em .8em;border-bottom:1px solid #ccc}
img{max-width:100%;border:1px solid #ccc;margin:.6em 0;display:block}.bad{color:#a00}</style>
CONTENT
"""


if __name__ == "__main__":
    raise SystemExit(main())
