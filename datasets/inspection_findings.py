"""What an inspection of a data set finds: splits, pictures, kinds of fault, and figures.

A finding is an ``error`` where training would refuse the data or where figures measured on them
could not be trusted, a ``warning`` where the data are used but are probably not what was meant,
and a ``note`` where there is something to know.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.datasets.split_files import SplitFiles
from zoo.types import Size

LEVELS = ("error", "warning", "note")
EXAMPLES = 5  # shown of what a finding counts
MANY = 100  # detections a picture that COCO's AP looks at


class Kind(NamedTuple):
    """A kind of finding: how bad it is, what is counted, and what to do."""

    level: str
    what: str
    remedy: str


KINDS: dict[str, Kind] = {
    "json": Kind("error", "annotation files that can't be read", "restore them"),
    "lists": Kind("error", "lists missing in the annotation file", "add them"),
    "record": Kind("error", "records that are not of the form their format asks for", "mend them"),
    "image_id": Kind("error", "image ids that occur twice", "give every image its own"),
    "category_id": Kind("error", "category ids that occur twice", "give every class its own"),
    "missing": Kind(
        "error",
        "listed pictures that are not there",
        "restore them, or train with data.on_error=skip",
    ),
    "unreadable": Kind(
        "error",
        "pictures that can't be read",
        "restore them, or train with data.on_error=skip",
    ),
    "unknown_image": Kind(
        "error", "annotations of an image that is not listed", "add the image or remove them"
    ),
    "unknown_category": Kind(
        "error", "annotations of a category that is not listed", "add the category or correct them"
    ),
    "bad_box": Kind(
        "error",
        "boxes that are not four finite numbers, or of negative width or height",
        "give what the format asks for",
    ),
    "size": Kind(
        "error",
        "pictures of another shape than their record says",
        "correct width, height and the boxes, or the file",
    ),
    "categories": Kind(
        "error", "categories that differ between the splits", "make the lists the same"
    ),
    "leak": Kind(
        "error",
        "files that are in two splits",
        "take them out of one: what is measured on them says nothing",
    ),
    "alike": Kind(
        "warning",
        "pictures that look the same as one of another split",
        "look at them, and take out what is the same scene",
    ),
    "duplicate": Kind("warning", "files with the same content as another one", "keep one of each"),
    "listed_twice": Kind("warning", "files listed under several image ids", "keep one record each"),
    "degenerate": Kind("warning", "boxes without area", "they are left out; correct them"),
    "outside": Kind(
        "warning", "boxes wholly outside their picture", "they are left out; correct them"
    ),
    "clipped": Kind(
        "warning", "boxes that stand over the edge of their picture", "they are clipped"
    ),
    "same_box": Kind(
        "warning", "annotations with the same box and class as another", "remove one of each"
    ),
    "annotation_id": Kind("warning", "annotation ids that occur twice", "give each its own"),
    "turned": Kind(
        "warning",
        "pictures turned by their EXIF orientation, whose record has the size of the unturned one",
        "they are used unturned; see in the samples whether the boxes fit",
    ),
    "scaled": Kind(
        "warning",
        "pictures at another scale than their record says",
        "boxes are scaled to fit; see in the samples whether they do",
    ),
    "unlisted": Kind(
        "warning", "pictures in the folder that no record lists", "they are not used; list them"
    ),
    "orphan": Kind(
        "warning", "label files whose picture is not there", "restore it, or remove them"
    ),
    "from_zero": Kind(
        "warning",
        "boxes that begin at 0, where VOC counts pixels from 1",
        "if the whole set counts from 0, give data.one_based=false",
    ),
    "unlearnable": Kind(
        "warning", "classes that other splits have, but train has no box of", "add examples"
    ),
    "empty_split": Kind("warning", "splits without any box", "annotate them"),
    "background": Kind("note", "pictures without annotations", "they are used as background"),
    "crowd": Kind(
        "note",
        "crowd regions or difficult objects",
        "left out of training, and neither right nor wrong in evaluation",
    ),
    "gaps": Kind("note", "gaps in the category ids", "they are mapped to 0..K-1 and back"),
    "unused": Kind("note", "classes without any box in any split", "they cost little"),
    "rare": Kind("note", "classes with fewer than 10 boxes in train", "expect little of them"),
    "oriented": Kind(
        "note",
        "pictures that their EXIF orientation turns",
        "boxes have to fit them upright; see in the samples whether they do",
    ),
    "many": Kind(
        "note",
        f"pictures with more than {MANY} objects",
        f"COCO's AP looks at {MANY} detections a picture; raise model.num_queries",
    ),
}


class Probe(NamedTuple):
    """What a picture's file is like; ``error`` says why it can't be read."""

    error: str = ""
    digest: str = ""  # of the file's bytes
    upright: Size = (0, 0)
    stored: Size = (0, 0)
    orientation: int = 1  # EXIF: 1 upright, else how it was turned or flipped
    kind: str = ""  # format and mode, such as JPEG RGB
    thumb: bytes = b""  # a small square of grey values


class Object(NamedTuple):
    """An annotation whose box can be drawn: xyxy in pixels as in the file, perhaps outside."""

    category: int
    box: tuple[float, float, float, float]
    crowd: bool
    fault: str = ""


@dataclass
class Picture:
    """An image record with its annotations; ``size`` (height, width) as the record says."""

    number: int
    name: str
    path: Path
    size: Size | None
    objects: list[Object] = field(default_factory=list)
    probe: Probe | None = None


@dataclass
class Finding:
    """A kind of fault, where, how often, and the first few examples."""

    code: str
    split: str
    examples: list[str] = field(default_factory=list)
    count: int = 0

    @property
    def level(self) -> str:
        """``error``, ``warning`` or ``note``."""
        return KINDS[self.code].level

    @property
    def text(self) -> str:
        """One sentence: what, how many, which, and what to do."""
        kind, more = KINDS[self.code], ", ..." if self.count > len(self.examples) else ""
        return f"{kind.what}: {self.count} ({', '.join(self.examples)}{more}); {kind.remedy}"


@dataclass
class Split:
    """One split as far as it could be understood."""

    name: str
    files: SplitFiles
    categories: dict[int, str] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    annotations: int = 0

    def boxes(self) -> Iterator[tuple[Picture, Object]]:
        """What training uses: no crowds, no degenerate boxes."""
        for picture in self.pictures:
            for found in picture.objects:
                if not found.crowd and found.fault not in ("degenerate", "outside"):
                    yield picture, found

    def class_counts(self) -> Counter[int]:
        """Boxes by category id."""
        return Counter(found.category for _, found in self.boxes())


class Inspection:
    """All splits of a folder, and what was found about them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.splits: list[Split] = []
        self._findings: dict[tuple[str, str], Finding] = {}

    def add(self, code: str, split: str, example: str) -> None:
        """Count one more of a kind."""
        found = self._findings.setdefault((code, split), Finding(code, split))
        found.count += 1
        if len(found.examples) < EXAMPLES:
            found.examples.append(example)

    def findings(self, level: str | None = None) -> list[Finding]:
        """Findings, the worst first, then in the order of :data:`KINDS`."""
        order = list(KINDS)
        found = [f for f in self._findings.values() if level in (None, f.level)]
        return sorted(found, key=lambda f: (LEVELS.index(f.level), order.index(f.code), f.split))


def statistics(split: Split) -> dict[str, Any]:
    """Counts and distributions of a split, as plain JSON values."""
    sizes = [p.size or (p.probe.upright if p.probe else (0, 0)) for p in split.pictures]
    sizes = [s for s in sizes if s[0]]
    used = [(found, picture.size) for picture, found in split.boxes()]
    sides = [(f.box[2] - f.box[0], f.box[3] - f.box[1]) for f, _ in used]
    areas = np.array([w * h for w, h in sides])
    per_class = split.class_counts()
    by_picture: dict[int, set[int]] = defaultdict(set)
    for picture, found in split.boxes():
        by_picture[found.category].add(picture.number)
    kinds = Counter(p.probe.kind for p in split.pictures if p.probe and not p.probe.error)
    return {
        "pictures": len(split.pictures),
        "annotations": split.annotations,
        "boxes": len(used),
        "crowds": sum(f.crowd for p in split.pictures for f in p.objects),
        "classes": len(split.categories),
        "classes_used": len(per_class),
        "width": _spread([w for _, w in sizes]),
        "height": _spread([h for h, _ in sizes]),
        "aspect": _spread([w / h for h, w in sizes]),
        "objects_per_picture": _spread([len(p.objects) for p in split.pictures]),
        "box_side": _spread([math.sqrt(a) for a in areas]),
        "box_aspect": _spread([w / h for w, h in sides]),
        "box_share": _spread(
            [
                math.sqrt(w * h / (s[0] * s[1]))
                for (w, h), (_, s) in zip(sides, used, strict=True)
                if s
            ]
        ),
        "small_medium_large": [
            float(part.mean()) if areas.size else 0.0
            for part in (areas < 32**2, (areas >= 32**2) & (areas < 96**2), areas >= 96**2)
        ],
        "formats": dict(kinds.most_common()),
        "per_class": {
            number: {"name": name, "boxes": per_class[number], "pictures": len(by_picture[number])}
            for number, name in split.categories.items()
        },
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Least, 5th, 50th and 95th percentile, and greatest; None of nothing."""
    if not values:
        return None
    found = np.percentile(np.asarray(values, dtype=np.float64), [0, 5, 50, 95, 100])
    return dict(zip(("least", "p5", "median", "p95", "greatest"), found.tolist(), strict=True))
