"""Check a folder of annotated pictures before training on it.

    python tools/check_data.py FOLDER                        # all splits that are there
    python tools/check_data.py voc:FOLDER data.one_based=false   # coco, voc or yolo; see below
    python tools/check_data.py FOLDER --split train --split val --samples 24
    python tools/check_data.py FOLDER --strict               # warnings count, too: for scripts
    python tools/check_data.py FOLDER --json > report.json

Reads every record and every picture, goes on past every fault, and tells what the data are like
and what is wrong with them: missing, broken and duplicate pictures, boxes without area or outside
their picture, annotations of unknown images or categories, the same picture in two splits, and
more. Writes samples_<split>.png (annotated pictures; look at them: no program sees that a label is
wrong), flagged_<split>.png (boxes that are suspicious), classes.png and report.json.

COCO's JSON, Pascal VOC's XML and YOLO's text files are told apart by what is in the folder; where
it holds several, FORMAT:FOLDER says which is meant. data.key=value are those settings of training
that say how VOC's files are read: data.one_based=false and data.difficult=use.

Exit status: 0 fine (with --strict: no warnings either), 1 warnings and --strict, 2 errors.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from zoo.datasets.formats import open_set
from zoo.datasets.images import read_image
from zoo.datasets.inspection import inspect
from zoo.datasets.inspection_findings import (
    LEVELS,
    Finding,
    Inspection,
    Object,
    Picture,
    Probe,
    Split,
    statistics,
)
from zoo.datasets.split_files import SplitFiles
from zoo.errors import ZooError
from zoo.visualize import bar_chart, contact_sheet, draw_boxes

SHOWN_CLASSES = 30  # printed; all are in report.json and classes.png
DRAWN_CLASSES = 200
CELL = 360  # side of a picture on the sheets, in pixels


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        prog="check_data.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("data", metavar="FOLDER", help="or coco:FOLDER, voc:FOLDER, yolo:FOLDER")
    p.add_argument(
        "--split", action="append", default=[], metavar="NAME", help="default: all that are there"
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="default: runs/check_FOLDER")
    p.add_argument("--strict", action="store_true", help="exit with 1 where there are warnings")
    p.add_argument(
        "--samples", type=int, default=12, metavar="N",
        help="pictures on a sheet (default: %(default)s; 0: draw nothing)",
    )  # fmt: skip
    p.add_argument("--json", action="store_true", help="print the report as JSON, not as text")
    p.add_argument(
        "--workers", type=int, default=0, metavar="N", help="reading processes; default: chosen"
    )
    p.add_argument("overrides", nargs="*", metavar="data.key=value", help="how VOC is read")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    args = parser().parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return check(args)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def check(args: argparse.Namespace) -> int:
    """Inspect, draw, report; returns the exit status."""
    if args.samples < 0 or args.workers < 0:
        raise ZooError(
            f"--samples {args.samples} and --workers {args.workers} have to be 0 or more"
        )
    found = open_set(args.data, args.split, args.overrides)
    folder, splits = found.folder, found.splits
    out = args.out or Path("runs") / f"check_{folder.resolve().name}"
    first_line = f"data {folder} ({found.format.name}) | {layouts(folder, splits)} | output {out}"
    print(first_line, file=sys.stderr if args.json else sys.stdout, flush=True)
    result = inspect(folder, splits, workers=args.workers, track=progress)
    content = report(result)
    try:
        write(result, content, out, args.samples)
    except OSError as error:
        raise ZooError(
            f"{out} can't be written ({error.strerror}); free space, or give another --out"
        ) from None
    if args.json:
        print(json.dumps(content, indent=1))
    else:
        print("\n".join(as_text(result, content)))
        for path in sorted([*out.glob("*.png"), out / "report.json"]):
            print(f"wrote {path}")
    if content["errors"]:
        return 2
    return 1 if args.strict and content["warnings"] else 0


def write(result: Inspection, content: dict[str, Any], out: Path, samples: int) -> None:
    """The report and the pictures, in place of those of an earlier check."""
    out.mkdir(parents=True, exist_ok=True)
    for pattern in ("samples_*.png", "flagged_*.png", "classes.png"):
        for stale in out.glob(pattern):
            stale.unlink()
    (out / "report.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    if samples:
        draw(result, out, samples)


def layouts(folder: Path, splits: Mapping[str, SplitFiles]) -> str:
    """Where the splits were found, in words."""

    def below(path: Path) -> str:
        inside = path.is_relative_to(folder)
        return str(path.relative_to(folder) if inside else path)

    return "; ".join(
        f"{split}: {below(files.annotations)}, {below(files.images)}/"
        for split, files in splits.items()
    )


def progress(probes: Iterable[Probe], total: int, name: str) -> Iterator[Probe]:
    """A bar while the pictures of a split are read; none where nobody sees it."""
    return iter(tqdm(probes, f"reading {name}", total, unit="img", disable=None, leave=False))


# -- what is said -------------------------------------------------------------------------------


def report(result: Inspection) -> dict[str, Any]:
    """Everything that was found, as plain JSON values."""
    return {
        "folder": str(result.folder),
        **{f"{level}s": len(result.findings(level)) for level in LEVELS},
        "findings": [
            {
                "level": f.level,
                "code": f.code,
                "split": f.split,
                "count": f.count,
                "examples": f.examples,
                "text": f.text,
            }
            for f in result.findings()
        ],
        "splits": {s.name: statistics(s) for s in result.splits},
    }


def as_text(result: Inspection, content: dict[str, Any]) -> list[str]:
    """The report in lines."""
    lines = []
    for split in result.splits:
        lines += ["", *split_lines(split.name, content["splits"][split.name])]
    lines += ["", *class_lines(result, content)]
    for level in LEVELS:
        found = result.findings(level)
        lines += ["", f"{level}s"] if found else []
        lines += [f"  {line}" for f in found for line in wrapped(f)]
    counts = [f"{content[f'{level}s']} {level}s" for level in LEVELS]
    verdict = "has faults to be mended first" if content["errors"] else "is fit to train on"
    return [*lines, "", f"{result.folder} {verdict}: {', '.join(counts)}"]


def wrapped(found: Finding, width: int = 96) -> list[str]:
    """A finding with its split in front, broken into lines between words."""
    import textwrap

    head = f"[{found.split}] "
    return textwrap.wrap(
        head + found.text, width, subsequent_indent="    ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def split_lines(name: str, s: dict[str, Any]) -> list[str]:
    """Counts and distributions of one split."""
    small, medium, large = (f"{part:.0%}" for part in s["small_medium_large"])
    formats = ", ".join(f"{kind} {count}" for kind, count in s["formats"].items())
    lines = [
        f"{name}: {s['pictures']} pictures, {s['annotations']} annotations, {s['boxes']} boxes, "
        f"{s['crowds']} crowds, {s['classes_used']} of {s['classes']} classes",
        f"  {'':26}{'least':>8}{'5 %':>8}{'median':>8}{'95 %':>8}{'greatest':>10}",
    ]
    rows = {
        "width": ("width", 0),
        "height": ("height", 0),
        "width / height": ("aspect", 2),
        "objects a picture": ("objects_per_picture", 0),
        "side of a box (pixels)": ("box_side", 1),
        "... as a part of the picture": ("box_share", 3),
        "width / height of a box": ("box_aspect", 2),
    }
    for title, (key, digits) in rows.items():
        if spread := s[key]:
            shown = [f"{value:.{digits}f}" for value in spread.values()]
            first, *middle, last = shown
            lines.append(
                f"  {title:26}{first:>{8 - max(0, len(title) - 26)}}"
                + "".join(f"{v:>8}" for v in middle)
                + f"{last:>10}"
            )
    lines.append(f"  small, medium, large boxes (COCO's limits): {small}, {medium}, {large}")
    if formats:
        lines.append(f"  formats: {formats}")
    return lines


def class_lines(result: Inspection, content: dict[str, Any]) -> list[str]:
    """Boxes of each class in each split, the most frequent classes first."""
    names = {number: name for s in result.splits for number, name in s.categories.items()}
    if not names:
        return ["no classes"]
    counts = {s.name: s.class_counts() for s in result.splits}
    order = sorted(names, key=lambda n: (-sum(c[n] for c in counts.values()), n))
    most = max(1, *(sum(c[n] for c in counts.values()) for n in order))
    width = max(5, *(min(len(names[n]), 28) for n in order))
    lines = [f"{'class':{width}}{'id':>7}" + "".join(f"{split:>8}" for split in counts)]
    for number in order[:SHOWN_CLASSES]:
        row = [c[number] for c in counts.values()]
        bar = "#" * round(30 * sum(row) / most)
        lines.append(
            f"{names[number][:28]:{width}}{number:>7}"
            + "".join(f"{v:>8}" for v in row)
            + f"  {bar}"
        )
    if len(order) > SHOWN_CLASSES:
        lines.append(f"... and {len(order) - SHOWN_CLASSES} more classes, with fewer boxes")
    return lines


# -- what is drawn ------------------------------------------------------------------------------


def draw(result: Inspection, out: Path, samples: int) -> None:
    """The sheets and the histogram."""
    ids = sorted({number for s in result.splits for number in s.categories})
    index = {number: n for n, number in enumerate(ids)}
    for split in result.splits:
        chosen = choose(split, samples)
        sheet(split, chosen, index, out / f"samples_{split.name}.png", flagged=False)
        flagged = [p for p in readable(split) if any(o.fault for o in p.objects)]
        sheet(split, flagged[:samples], index, out / f"flagged_{split.name}.png", flagged=True)
    names = {number: name for s in result.splits for number, name in s.categories.items()}
    counts = {s.name: s.class_counts() for s in result.splits}
    totals = {n: sum(c[n] for c in counts.values()) for n in names}
    order = sorted(names, key=lambda n: (-totals[n], n))
    if order:
        bars = {f"{names[n]} ({n})": float(totals[n]) for n in order[:DRAWN_CLASSES]}
        bar_chart(bars, out / "classes.png", title="Boxes by class, all splits", unit="boxes")


def readable(split: Split) -> list[Picture]:
    """Pictures that can be drawn."""
    return [p for p in split.pictures if p.probe and not p.probe.error]


def choose(split: Split, count: int) -> list[Picture]:
    """Pictures for the sheet: every class once, the rarest first, then evenly over the split."""
    pictures = readable(split)
    classes = split.class_counts()
    chosen: dict[int, Picture] = {}
    covered: set[int] = set()
    for category, _ in sorted(classes.items(), key=lambda item: (item[1], item[0])):
        if len(chosen) >= count * 3 // 4 or category in covered:
            continue
        having = [p for p in pictures if any(o.category == category for o in p.objects)]
        if having:
            # The one with the fewest objects shows them best.
            best = min(having, key=lambda p: (p.number in chosen, len(p.objects)))
            chosen[best.number] = best
            covered |= {o.category for o in best.objects}
    rest = [p for p in pictures if p.number not in chosen]
    wanted = min(count - len(chosen), len(rest))
    for n in range(wanted):
        picture = rest[n * len(rest) // wanted]
        chosen[picture.number] = picture
    return sorted(chosen.values(), key=lambda p: p.name)


def sheet(
    split: Split, pictures: Sequence[Picture], index: dict[int, int], path: Path, *, flagged: bool
) -> None:
    """Annotated pictures side by side; with ``flagged`` suspicious boxes only, and why."""
    drawn, titles = [], []
    for picture in pictures:
        try:
            drawn.append(annotated(split, picture, index, flagged=flagged))
        except ZooError:  # it was readable a moment ago; what is there now is not ours to judge
            continue
        titles.append(f"{picture.name}: {len(picture.objects)}")
    if drawn:
        contact_sheet(drawn, 4, cell=CELL, titles=titles).save(path)


def annotated(
    split: Split, picture: Picture, index: dict[int, int], *, flagged: bool
) -> Image.Image:
    """A picture with its boxes, in the orientation that training will use."""
    assert picture.probe is not None
    stored, upright = picture.probe.stored, picture.probe.upright
    unturned = picture.size == stored and stored != upright
    image = read_image(picture.path, draft_size=(CELL, CELL), upright=not unturned)
    height, width = picture.size or upright
    down, right = image.shape[1] / height, image.shape[2] / width
    objects = [o for o in picture.objects if o.fault or not flagged]
    boxes = [scaled(o, right, down) for o in objects]
    names = [f"{split.categories[o.category]}{' (crowd)' * o.crowd}" for o in objects]
    return draw_boxes(
        image,
        boxes,
        [index[o.category] for o in objects],
        texts=[o.fault if flagged else name for o, name in zip(objects, names, strict=True)],
        dashed=[o.crowd for o in objects],
        min_side=CELL,
    )


def scaled(found: Object, right: float, down: float) -> tuple[float, float, float, float]:
    """The box in pixels of a picture of another scale."""
    x1, y1, x2, y2 = found.box
    return x1 * right, y1 * down, x2 * right, y2 * down


if __name__ == "__main__":
    raise SystemExit(main())
