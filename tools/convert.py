"""Convert annotated pictures between COCO's JSON, Pascal VOC's XML and YOLO's text files.

    python tools/convert.py FOLDER --to yolo --out cells_yolo       # the format is recognised
    python tools/convert.py FOLDER --to voc --out cells_voc --split train --split val
    python tools/convert.py voc:FOLDER --to coco --out cells --link # pictures as hard links
    python tools/convert.py voc:FOLDER --to coco --out cells data.one_based=false

All pictures and annotations of the splits are written below --out, which has to be new or empty:
    coco    annotations/instances_SPLIT.json, SPLIT/
    voc     Annotations/, JPEGImages/, ImageSets/Main/SPLIT.txt, labels.txt
    yolo    data.yaml, images/SPLIT/, labels/SPLIT/
What the new format has no place for is counted and told. The first fault of the data ends it
before anything is written; tools/check_data.py lists all of them.

Exit status: 0 done, 1 done with --strict but something was left out, 2 something in the input is
wrong and nothing was written.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from zoo.datasets.convert import TARGETS, Conversion, convert
from zoo.datasets.formats import open_set
from zoo.errors import ZooError


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        prog="convert.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("data", metavar="FOLDER", help="or coco:FOLDER, voc:FOLDER, yolo:FOLDER")
    p.add_argument("--to", required=True, choices=TARGETS, help="the format to write")
    p.add_argument("--out", required=True, type=Path, metavar="DIR", help="new or empty")
    p.add_argument(
        "--split", action="append", default=[], metavar="NAME", help="default: all that are there"
    )
    how = p.add_mutually_exclusive_group()
    how.add_argument("--copy", action="store_true", help="copy the pictures (the default)")
    how.add_argument(
        "--link", action="store_true", help="hard links: no copies, but the same files"
    )
    p.add_argument("--strict", action="store_true", help="exit with 1 where something is left out")
    p.add_argument("overrides", nargs="*", metavar="data.key=value", help="how VOC is read")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    args = parser().parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return run(args)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run(args: argparse.Namespace) -> int:
    """Convert and tell; returns the exit status."""
    source = open_set(args.data, args.split, args.overrides)
    out = args.out.expanduser()
    print(
        f"data {source.folder} ({source.format.name}): {', '.join(source.splits)} | to {args.to}, "
        f"pictures {'linked' if args.link else 'copied'} | output {out}",
        flush=True,
    )
    result = convert(source, args.to, out, link=args.link, track=progress)
    print("\n".join(as_text(result)))
    return 1 if args.strict and result.lost else 0


def as_text(result: Conversion) -> list[str]:
    """What was written and what was not, in lines."""
    lines = [
        f"{split}: {count} pictures, {result.objects[split]} objects"
        for split, count in result.pictures.items()
    ]
    lines += [f"left out: {what}: {count}" for what, count in sorted(result.lost.items())]
    lines += [f"note: {what}: {count}" for what, count in sorted(result.changed.items())]
    return [*lines, f"wrote {result.out}"]


def progress(pictures: Iterable[Any], total: int, name: str) -> Iterator[Any]:
    """A bar while the pictures of a split are placed; none where nobody sees it."""
    return iter(tqdm(pictures, f"writing {name}", total, unit="img", disable=None, leave=False))


if __name__ == "__main__":
    raise SystemExit(main())
