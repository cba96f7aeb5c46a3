"""What tools/predict.py does with models that tag words or classify pages.

predictions.json is ours: ``info``, and ``files`` with a list of ``pages`` each. A page has its
number (from 1, as people count), its size in pixels, and ``rotation``: by how many degrees
clockwise it was turned to be read; boxes are xyxy in pixels of the turned page. A page of a model
that tags has ``words`` (text, box, tag, confidence) and ``entities`` (type, text, confidence, one
box a line, and its first and last word, from 0); a page of one that classifies has ``class``,
``confidence`` and the best ``scores``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import Image
from tqdm import tqdm

import zoo
from zoo.datasets.ocr.files import open_pages
from zoo.datasets.ocr.page import Page
from zoo.datasets.ocr.read import check_engine, read_pages
from zoo.datasets.ocr.tesseract import turned
from zoo.datasets.picture_files import SUFFIXES
from zoo.errors import NonFiniteError, ZooError
from zoo.models.document.predictor import DocumentReader, PageClass, PageTags
from zoo.tools.predict_files import Files, machine, note_failure, read_parts, save, write_results
from zoo.trainer import progress_bar
from zoo.visualize import add_legend, mark_text

SHOWN = 3  # up to so many files, what was found is printed
Plain = dict[str, Any]


class Record(NamedTuple):
    """What became of one file: ``pages`` is None where it could not be read, for ``reason``."""

    number: int  # among all files of all processes
    pages: list[Plain] | None
    reason: str = ""

    def plain(self) -> Sequence[Any]:
        """For JSON."""
        return tuple(self)


class DocumentJob:
    """Tagging or classifying one process's share of the files, drawing included."""

    suffixes = SUFFIXES | {".pdf"}
    noun = "picture or PDF"
    foreign = ("threshold", "classes", "batch_size", "max_detections", "attention", "points")

    def __init__(self, args: argparse.Namespace, reader: DocumentReader, files: Files) -> None:
        check_engine(args.engine)
        self.args, self.reader, self.files = args, reader, files
        self.predict: Callable[[Sequence[Page]], list[Plain]] = {
            "ser": self._tagged,
            "classify": self._classified,
        }[reader.task]

    def say_first_line(self) -> None:
        """Model, parameters, data, device and output folder, before anything takes long."""
        reader = self.reader
        count = sum(p.numel() for p in reader.model.parameters())
        kinds = reader.entity_types or reader.class_names
        print(
            f"model {reader.spec.name} of {self.args.weights}, {count / 1e6:.2f} M parameters, "
            f"{len(kinds)} {'types of entities' if reader.task == 'ser' else 'classes of pages'} | "
            f"{len(self.files.paths)} files | {machine(reader.device, reader.autocast)} | "
            f"output {self.files.out}",
            flush=True,
        )

    def records(self, share: Sequence[int]) -> Iterator[Record]:
        """One record a file, in the order of ``share``."""
        with progress_bar("predicting", total=len(share), unit="file") as bar:
            for number in share:
                record = self._record(number)
                if record.pages is None:
                    tqdm.write(f"failed: {record.reason}", sys.stderr)
                yield record
                bar.update(1)

    def _record(self, number: int) -> Record:
        args, path = self.args, self.files.root / self.files.paths[number]
        try:
            pages = read_pages(
                path, engine=args.engine, language=args.language, timeout=args.timeout,
                pages=args.pages, password=args.password, cache=not args.no_ocr_cache,
            )  # fmt: skip
            found = self.predict(pages)
        except NonFiniteError:  # it's the model's fault, and so that of every file
            raise
        except ZooError as error:
            return Record(number, None, str(error))
        reason = "" if args.no_pictures else self._draw(number, found)
        return Record(number, None, reason) if reason else Record(number, found)

    def _tagged(self, pages: Sequence[Page]) -> list[Plain]:
        return [
            {
                **about(page, found),
                "words": [
                    {"text": w.text, "box": rounded(w.box), "tag": w.tag,
                     "confidence": round(w.confidence, 4)}
                    for w in found.words
                ],
                "entities": [
                    {"type": e.type, "text": e.text, "confidence": round(e.confidence, 4),
                     "boxes": [rounded(box) for box in e.boxes], "words": [e.first, e.last]}
                    for e in found.entities
                ],
            }
            for page, found in zip(pages, self.reader.tag(pages), strict=True)
        ]  # fmt: skip

    def _classified(self, pages: Sequence[Page]) -> list[Plain]:
        found = self.reader.classify(pages, best=len(self.reader.class_names))
        return [
            {
                **about(page, one),
                "class": one.name,
                "confidence": round(one.confidence, 4),
                "scores": {name: round(share, 4) for name, share in one.best},
            }
            for page, one in zip(pages, found, strict=True)
        ]

    def _draw(self, number: int, found: Sequence[Plain]) -> str:
        """Draw a file's pages, one open at a time; why, where it can't be opened any more."""
        name, by_page = self.files.paths[number], {page["page"]: page for page in found}
        opened = open_pages(
            self.files.root / name, pages=self.args.pages, password=self.args.password
        )
        while True:
            try:
                item = next(opened, None)
            except ZooError as error:  # it was readable a moment ago
                return str(error)
            if item is None:
                return ""
            page = by_page[item.number + 1]
            picture = self._drawn(turned(item.image, page["rotation"]), page)
            save(picture, self.files.out / "pictures" / f"{name}_{page['page']}.jpg")

    def _drawn(self, image: Image.Image, page: Plain) -> Image.Image:
        """Entities in their types' colours with a legend, or a legend with the page's class."""
        if "class" in page:
            index = self.reader.class_names.index(page["class"])
            return add_legend(image, [index], [f"{page['class']} {page['confidence']:.0%}"])
        colours = {name: n for n, name in enumerate(self.reader.entity_types)}
        boxes, labels, texts = [], [], []
        for entity in page["entities"]:
            for line, box in enumerate(entity["boxes"]):
                boxes.append(box)
                labels.append(colours[entity["type"]])
                texts.append("" if line else f"{entity['type']} {entity['confidence']:.0%}")
        words = [word["box"] for word in page["words"]]
        marked = mark_text(image, boxes, labels, texts, words=words)
        counts = Counter(entity["type"] for entity in page["entities"])
        shown = [name for name in colours if name in counts]
        legend = [f"{name} {counts[name]}" for name in shown]
        return add_legend(marked, [colours[name] for name in shown], legend)

    def finish(self, parts: Sequence[Path], began: float) -> int:
        """Write predictions.json and failed.txt, and say what was found; the failed files."""
        files = self.files
        counts: Counter[str] = Counter()
        pages = failed = 0
        info = {
            "description": f"{self._what()} by {self.reader.spec.name}",
            "task": self.reader.task,
            "weights": str(self.args.weights),
            "class_names": self.reader.class_names,
            "folder": str(files.root),
            "zoo": zoo.__version__,
        }

        def write(file: IO[str]) -> None:
            nonlocal pages, failed
            file.write(f'{{"info": {json.dumps(info, ensure_ascii=False)},\n"files": [')
            separator = "\n"
            for number, found, reason in read_parts(parts):
                if found is None:
                    failed += 1
                    note_failure(files.out, files.root / files.paths[number], reason)
                    continue
                pages += len(found)
                counts.update(name for page in found for name in names_on(page))
                one = {"file_name": Path(files.paths[number]).as_posix(), "pages": found}
                # Names of files may hold bytes that are no letters: those are escaped.
                file.write(separator + json.dumps(one))
                separator = ",\n"
                if len(files.paths) <= SHOWN:
                    say(files.paths[number], found)
            file.write("]}\n")

        write_results(files.out / "predictions.json", write)
        self._say_summary(counts, pages, failed, max(time.monotonic() - began, 1e-9))
        return failed

    def _what(self) -> str:
        return "entities found" if self.reader.task == "ser" else "pages classified"

    def _say_summary(self, counts: Counter[str], pages: int, failed: int, seconds: float) -> None:
        files = self.files
        read = len(files.paths) - failed
        what = ", ".join(f"{name} {n}" for name, n in counts.most_common(12))
        total = f"{counts.total()} entities" if self.reader.task == "ser" else "classes"
        print(
            f"{pages} pages of {read} files in {seconds:.1f} s ({pages / seconds:.1f} a second), "
            + total + (f": {what}" if what else "")
        )  # fmt: skip
        if failed:
            several = "1 file" if failed == 1 else f"{failed} files"
            print(f"{several} could not be read, see {files.out / 'failed.txt'}", file=sys.stderr)
        print(f"predictions  {files.out / 'predictions.json'}")
        if not self.args.no_pictures and read:
            print(f"pictures     {files.out / 'pictures'}/")


def about(page: Page, found: PageTags | PageClass) -> Plain:
    """What is said of every page."""
    return {
        "page": found.page + 1,
        "width": page.width,
        "height": page.height,
        "rotation": page.rotation,
    }


def rounded(box: Sequence[float]) -> list[float]:
    """A box to a tenth of a pixel."""
    return [round(c, 1) for c in box]


def names_on(page: Plain) -> list[str]:
    """The types of a page's entities, or its class."""
    return [page["class"]] if "class" in page else [e["type"] for e in page["entities"]]


def say(path: str, pages: Sequence[Plain]) -> None:
    """What was found in a file, a line each."""
    for page in pages:
        where = f"{path}, p. {page['page']}"
        if "class" in page:
            print(f"{where}: {page['class']} {page['confidence']:.0%}")
        for entity in page.get("entities", ()):
            print(f"{where}: {entity['type']} {entity['confidence']:.0%}  {entity['text']}")
