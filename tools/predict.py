"""Find objects in pictures, tag words or classify pages, with a trained model.

    python tools/predict.py street.jpg --weights runs/cells
    python tools/predict.py FOLDER --weights runs/cells --out labelled --threshold 0.3
    python tools/predict.py 'photos/**/*.png' --weights facebook/detr-resnet-50 --classes dog,cat
    python tools/predict.py street.jpg --weights runs/r50 --attention --points 0.5,0.5 0.2,0.8
    python tools/predict.py form.pdf --weights runs/forms --pages 1-3
    python tools/predict.py FOLDER 'inbox/*.pdf' --weights runs/receipts --language deu
    torchrun --nproc-per-node 8 tools/predict.py FOLDER --weights runs/r50 --no-pictures

Which of these, the model decides. A detector writes predictions.json (COCO's format: images,
annotations with scores, categories), pictures/ with the boxes drawn in, and with --attention also
attention/: where the decoder looked for each object, and where the encoder looked from the middle
of each (or from --points, in parts of width and height). One with masks also writes these, into
predictions.json and the pictures, and every picture in segments: panoptic.json and panoptic/, in
COCO's panoptic format.

A model of documents that was trained with model.task=ser (a tag for each word) or
model.task=classify (a class for each page) takes pictures and PDFs; it writes predictions.json (of
each file and page the words with boxes, tags and entities, or class and scores) and pictures/ with
the entities or the class marked. Models that answer questions are used with tools/ask.py.

Folders are searched with all their subfolders. Under torchrun the processes share the files out;
they have to see the same file system.

Exit status: 0 done; 1 done, but some files could not be read (they are named, counted, and listed
in failed.txt); 2 something in the input is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

import zoo
from zoo import distributed
from zoo.datasets.images import read_image
from zoo.datasets.ocr.read import NAMES
from zoo.datasets.ocr.tesseract import OcrOptions
from zoo.datasets.picture_files import SUFFIXES
from zoo.errors import ZooError
from zoo.inference import load_model
from zoo.models.detr.detector import AttentionMaps, Detection, Detector, Seen, prefetch
from zoo.models.document.predictor import DocumentReader
from zoo.tools.predict_documents import DocumentJob
from zoo.tools.predict_files import (
    Files,
    Job,
    check_given,
    clear,
    machine,
    note_failure,
    on_main,
    read_parts,
    save,
    settle,
    wait_for_parts,
    write_part,
    write_results,
)
from zoo.tools.predict_segments import (
    Maps,
    masked,
    merge_panoptic,
    of_mask,
    words_of_stuff,
    write_lines,
)
from zoo.trainer import progress_bar
from zoo.visualize import contact_sheet, draw_boxes, mark_point, overlay_heat

LOOKED_AT = 8  # objects of a picture whose attention is drawn
SHOWN = 3  # up to so many pictures, the objects are printed


class Record(NamedTuple):
    """What became of one file: ``size`` is None where it could not be read, for ``reason``."""

    number: int  # among all files of all processes
    size: tuple[int, int] | None
    objects: list[Detection]
    reason: str = ""
    segments: list[dict[str, Any]] | None = None  # of a model with masks, as COCO's format has them

    def plain(self) -> Sequence[Any]:
        """For JSON."""
        objects = [(d.box, d.class_id, d.label, d.score, d.mask) for d in self.objects]
        return self.number, self.size, objects, self.reason, self.segments


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        prog="predict.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("files", nargs="+", metavar="FILE|FOLDER|GLOB")
    p.add_argument("--weights", required=True, metavar="RUN|NAME|FILE|URL|HUB-ID")
    p.add_argument("--out", type=Path, metavar="DIR", help="default: runs/predictions_N, a new one")
    p.add_argument("--no-pictures", action="store_true", help="write predictions.json only")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    p.add_argument(
        "--float32", action="store_true", help="no bfloat16, also where the hardware has it"
    )
    g = p.add_argument_group("for models that find objects")
    g.add_argument(
        "--threshold", type=float, default=0.5, metavar="P", help="least score (default: 0.5)"
    )
    g.add_argument("--classes", metavar="A,B", help="names of the classes to keep; default: all")
    g.add_argument("--batch-size", type=int, default=8, metavar="N", help="default: %(default)s")
    g.add_argument(
        "--max-detections", type=int, default=100, metavar="N", help="a picture (default: 100)"
    )
    g.add_argument("--attention", action="store_true", help="draw where the model looked")
    g.add_argument(
        "--points", nargs="+", type=point, metavar="X,Y",
        help="draw the encoder's attention from here (parts of width and height, 0..1)",
    )  # fmt: skip
    g = p.add_argument_group("for models that read documents")
    g.add_argument("--pages", metavar="1-3,7", help="of every file; default: all")
    g.add_argument("--password", help="of locked PDFs")
    g.add_argument(
        "--engine", default="tesseract", metavar="NAME",
        help=f"where the words of pictures come from: {', '.join(NAMES)} (default: %(default)s)",
    )  # fmt: skip
    g.add_argument("--language", default="eng", help="of the pages (default: %(default)s)")
    g.add_argument(
        "--timeout", type=float, default=OcrOptions().timeout, metavar="SECONDS",
        help="for Tesseract to read a page (default: %(default)g)",
    )  # fmt: skip
    g.add_argument("--no-ocr-cache", action="store_true", help="read every page anew")
    return p


def point(text: str) -> tuple[float, float]:
    """``0.25,0.5`` as two numbers in 0..1."""
    x, y = (float(v) for v in text.split(","))
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(text)
    return x, y


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return predict(args)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        distributed.shutdown()


def predict(args: argparse.Namespace) -> int:
    """Predict on all files; returns the exit status."""
    distributed.init(args.device)
    on_main(check_given, args)
    model = load_model(args.weights, device=args.device, fast=not args.float32)
    kind = job_of(model, args)
    # What the first process finds counts for all: files may come and go in the meantime.
    files = on_main(settle, args, kind.suffixes, kind.noun)
    job: Job = kind(args, model, files)
    on_main(clear, files.out)
    if distributed.is_main():
        job.say_first_line()
    rank, world = distributed.rank(), distributed.world_size()
    began = time.monotonic()
    write_part(files.out, rank, job.records(range(rank, len(files.paths), world)))
    if not distributed.is_main():
        return 0  # the first process says how it went, for all
    parts = wait_for_parts(files.out, world)
    failed = job.finish(parts, began)
    for part in parts:
        part.unlink()
    return 1 if failed else 0


def job_of(model: Any, args: argparse.Namespace) -> type[PictureJob] | type[DocumentJob]:
    """Who predicts with a model of this kind.

    Raises :class:`ZooError` for a model that is used with another tool, and for flags that are not
    for this kind of model.
    """
    kinds = ((Detector, PictureJob), (DocumentReader, DocumentJob))
    kind: Any = next((job for own, job in kinds if isinstance(model, own)), None)
    if kind is None:
        raise ZooError(
            f"{args.weights} is {model.spec.name}, which does not find objects, tag words or "
            "classify pages"
        )
    if isinstance(model, DocumentReader) and model.task == "qa":
        raise ZooError(
            f"{args.weights} is {model.spec.name}, which answers questions; ask it with "
            'tools/ask.py FILE "What is the total?" --weights ' + str(args.weights)
        )
    usual = parser()
    for name in kind.foreign:
        if getattr(args, name) != usual.get_default(name):
            raise ZooError(
                f"--{name.replace('_', '-')} is not for {args.weights} ({model.spec.name}); see "
                "--help for the flags of each kind of model"
            )
    return kind


# -- work --------------------------------------------------------------------------------------


class PictureJob:
    """Finding the objects of one process's share of the files, drawing included."""

    suffixes = SUFFIXES
    noun = "picture"
    foreign = ("pages", "password", "engine", "language", "timeout", "no_ocr_cache")

    def __init__(self, args: argparse.Namespace, model: Detector, files: Files) -> None:
        self.args, self.model = args, model
        self.out, self.root, self.paths = files
        self.attends = (args.attention or bool(args.points)) and not args.no_pictures
        self.draws = not args.no_pictures
        self.maps = Maps(self.out, self.paths, model.class_ids)

    def say_first_line(self) -> None:
        """Model, parameters, data, device and output folder, before anything takes long."""
        model = self.model
        count = sum(p.numel() for p in model.model.parameters())
        print(
            f"model {model.spec.name} of {self.args.weights}, {count / 1e6:.2f} M parameters, "
            f"{len(model.class_names)} classes | {len(self.paths)} pictures | "
            f"{machine(model.device, model.autocast)} | output {self.out}",
            flush=True,
        )
        if words := words_of_stuff(model):
            print(words, flush=True)

    def finish(self, parts: Sequence[Path], began: float) -> int:
        """Write the results of all parts and say what was found; the number of failed files."""
        counts, failed = merge(parts, self)
        if len(self.paths) <= SHOWN:
            say_objects(parts, self.paths)
        seconds = max(time.monotonic() - began, 1e-9)
        say_summary(self.out, len(self.paths), counts, failed, seconds, self)
        return failed

    def records(self, share: Sequence[int]) -> Iterator[Record]:
        """One record a file; files are read and pictures drawn while the model works."""
        if not self.draws and not self.model.has_masks:
            for number, seen in self._seen(share):
                yield self._record(number, seen)
            return
        yield from prefetch(self._drawn, self._attended(share), threads=1, ahead=4)

    def _seen(self, share: Sequence[int]) -> Iterator[tuple[int, Seen | ZooError]]:
        args = self.args
        stream = self.model.stream(
            (self.root / self.paths[n] for n in share),
            threshold=args.threshold,
            classes=args.classes.split(",") if args.classes else None,
            batch_size=args.batch_size,
            max_detections=args.max_detections,
        )
        with progress_bar("predicting", total=len(share), unit="picture") as bar:
            for number, seen in zip(share, stream, strict=True):
                bar.update(1)
                if isinstance(seen, ZooError):
                    tqdm.write(f"failed: {seen}", sys.stderr)
                yield number, seen

    def _attended(
        self, share: Sequence[int]
    ) -> Iterator[tuple[int, Seen | ZooError, AttentionMaps | None]]:
        for number, seen in self._seen(share):
            maps = None
            if self.attends and isinstance(seen, Seen):
                path = self.root / self.paths[number]
                maps = self.model.attention(
                    path, seen.detections[:LOOKED_AT], points=self._points(seen)
                )
            yield number, seen, maps

    def _points(self, seen: Seen) -> list[tuple[float, float]]:
        height, width = seen.size
        if self.args.points:
            return [(x * width, y * height) for x, y in self.args.points]
        boxes = [d.box for d in seen.detections[:LOOKED_AT]]
        return [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes]

    def _record(self, number: int, seen: Seen | ZooError) -> Record:
        if isinstance(seen, ZooError):
            return Record(number, None, [], str(seen))
        return Record(number, seen.size, seen.detections, "", self.maps.write(number, seen))

    def _drawn(self, work: tuple[int, Seen | ZooError, AttentionMaps | None]) -> Record:
        number, seen, maps = work
        image = None
        if self.draws and isinstance(seen, Seen):
            try:
                image = read_image(self.root / self.paths[number])
            except ZooError as error:  # it was readable a moment ago
                seen = error
        if isinstance(seen, Seen) and image is not None:
            name = self.paths[number]
            if os.path.splitext(name)[1].lower() not in (".jpg", ".jpeg"):
                name += ".jpg"
            found = seen.detections
            picture = draw_boxes(
                masked(image, found),
                [d.box for d in found],
                [d.index for d in found],
                [d.score for d in found],
                class_names=self.model.class_names,
                min_side=480,
            )
            save(picture, self.out / "pictures" / name)
            if maps is not None and len(maps.detections) + len(maps.points):
                sheet = attention_sheet(image, found[:LOOKED_AT], self._points(seen), maps)
                save(sheet, self.out / "attention" / name)
        return self._record(number, seen)


def attention_sheet(
    image: torch.Tensor,
    found: Sequence[Detection],
    points: Sequence[tuple[float, float]],
    maps: AttentionMaps,
) -> Image.Image:
    """A tile for every object (the decoder's attention) and every point (the encoder's)."""
    tiles, titles = [], []
    for d, heat in zip(found, maps.detections, strict=True):
        tiles.append(draw_boxes(overlay_heat(image, heat), [d.box], colours=[(255, 255, 255)]))
        titles.append(f"decoder: {d.label} {d.score:.0%}")
    for (x, y), heat in zip(points, maps.points, strict=True):
        tiles.append(mark_point(overlay_heat(image, heat), x, y))
        titles.append(f"encoder at {x:.0f}, {y:.0f}")
    columns = max(len(found), len(points)) if len(found) in (0, len(points)) else 4
    return contact_sheet(tiles, columns=min(columns, LOOKED_AT), titles=titles)


# -- results -----------------------------------------------------------------------------------


def merge(parts: Sequence[Path], job: PictureJob) -> tuple[Counter[str], int]:
    """Write predictions.json and failed.txt; returns objects by class and the number of failures.

    A pass for each of the lists: nothing but a line is held in memory. Of a model with masks also
    panoptic.json.
    """
    out, root, paths, model = job.out, job.root, job.paths, job.model
    counts: Counter[str] = Counter()
    failed = 0
    info = {
        "description": f"objects found by {model.spec.name}",
        "weights": str(job.args.weights),
        "threshold": job.args.threshold,
        "folder": str(root),
        "zoo": zoo.__version__,
    }
    categories = [
        {"id": number, "name": name}
        for number, name in zip(model.class_ids, model.class_names, strict=True)
    ]

    def images() -> Iterator[dict[str, Any]]:
        for number, size, *_ in read_parts(parts):
            if size is not None:
                name = Path(paths[number]).as_posix()
                yield {"id": number + 1, "file_name": name, "height": size[0], "width": size[1]}

    def annotations() -> Iterator[dict[str, Any]]:
        numbers = itertools.count(1)
        for number, _, objects, *_ in read_parts(parts):
            for (x1, y1, x2, y2), class_id, label, score, mask in objects:
                counts[label] += 1
                yield {
                    "id": next(numbers),
                    "image_id": number + 1,
                    "category_id": class_id,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": score,
                    **of_mask(mask),
                }

    def write(file: IO[str]) -> None:
        nonlocal failed
        for number, size, _, reason, _ in read_parts(parts):
            if size is None:
                failed += 1
                note_failure(out, root / paths[number], reason)
        file.write(f'{{"info": {json.dumps(info)},\n"images": [')
        write_lines(file, images())
        file.write('],\n"annotations": [')
        write_lines(file, annotations())
        file.write(f'],\n"categories": {json.dumps(categories)}}}\n')

    write_results(out / "predictions.json", write)
    if model.has_masks:
        merge_panoptic(parts, out, job.maps, model, info, images())
    return counts, failed


# -- what is said ------------------------------------------------------------------------------


def say_objects(parts: Sequence[Path], paths: Sequence[str]) -> None:
    """Every object of a few pictures."""
    for number, _, objects, *_ in read_parts(parts):
        for box, _, label, score, _ in objects:
            corners = ", ".join(f"{v:.0f}" for v in box)
            print(f"{paths[number]}: {label} {score:.0%} at ({corners})")


def say_summary(
    out: Path, total: int, counts: Counter[str], failed: int, seconds: float, run: PictureJob
) -> None:
    """What was found and where it is."""
    objects = ", ".join(f"{name} {n}" for name, n in counts.most_common(8))
    print(
        f"{total - failed} pictures in {seconds:.1f} s ({(total - failed) / seconds:.1f} a second),"
        f" {counts.total()} objects" + (f": {objects}" if objects else "")
    )
    if failed:
        what = "1 file" if failed == 1 else f"{failed} files"
        print(f"{what} could not be read, see {out / 'failed.txt'}", file=sys.stderr)
    print(f"predictions  {out / 'predictions.json'}")
    if run.model.has_masks and failed < total:
        print(f"segments     {out / 'panoptic.json'}, {out / 'panoptic'}/")
    if run.draws and failed < total:
        print(f"pictures     {out / 'pictures'}/")
    if run.attends and (out / "attention").is_dir():
        print(f"attention    {out / 'attention'}/")


if __name__ == "__main__":
    raise SystemExit(main())
