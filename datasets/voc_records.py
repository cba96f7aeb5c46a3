"""What Pascal VOC's XML files say, in COCO's form.

The files of a split called ``train`` stand in one of these layouts, the names ``annotations`` and
``images`` in place of ``Annotations`` and ``JPEGImages`` included::

    ImageSets/Main/train.txt   Annotations/ID.xml   JPEGImages/ID.jpg      VOC's own
    train/Annotations/ID.xml   train/JPEGImages/ID.jpg
    train/ID.xml   train/ID.jpg                                            common export

- **Boxes.** VOC counts pixels from 1 and its corners are inclusive: a box is
  ``[xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]``. For a set that counts from 0 to
  exclusive ends, ``one_based=False`` takes the numbers as they are. Fractions are allowed.
- **difficult** objects are ignored as crowds are: not learned, and a detection in them is neither
  right nor wrong (``difficult="use"``: like any other). COCO's measure knows no other way to
  ignore, and differs a little from VOC's: it asks how much of the detection lies in the object.
- **Classes** are the lines of ``labels.txt`` or ``classes.txt`` in the folder, in that order, else
  all names in all files, sorted. Their ids are 1, 2, ...
- **Size** is that of the XML file (the rules of :mod:`zoo.datasets.coco` hold where the picture's
  differs); ``0 x 0``, as some programs write, is as good as none.
- **Pictures** are found by the XML file's name, ``filename`` is asked only where that fails:
  renamed files keep the old one. One without an XML file is not used. Image ids are 1, 2, ... in
  the order of the list or the names.

A file with a document type is refused, and so are entities, which need one.

Everingham et al., The Pascal Visual Object Classes Challenge: a Retrospective, IJCV 2015, and the
development kit's description of the annotations.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from zoo.datasets.split_files import (
    ORIGIN,
    Tell,
    decoded,
    is_picture,
    leads_out,
    names_of,
    pictures_below,
    read_limited,
    refuse,
)
from zoo.errors import ZooError

LABEL_FILES = ("labels.txt", "classes.txt")
MAX_BYTES = 16 * 2**20  # of an XML file
MAX_LIST = 256 * 2**20  # of a list of pictures
FLAGS = ("difficult", "truncated", "occluded")  # of an object: 0 or 1

_FOLDERS = (("Annotations", "JPEGImages"), ("annotations", "images"), ("Annotations", "images"))
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocFiles:
    """A split's XML files and pictures; ``annotations`` is the list of ids or the XML folder."""

    annotations: Path
    images: Path
    xml: Path
    names: tuple[str, ...]
    one_based: bool = True
    difficult: str = "ignore"

    def read(self) -> dict[str, Any]:
        """The split as a COCO dict. Raises :class:`ZooError` for the first fault."""
        return self.survey(refuse)

    def survey(self, tell: Tell) -> dict[str, Any]:
        """As much as can be understood; see :class:`zoo.datasets.split_files.SplitFiles`."""
        if not self.names:
            tell(
                "lists",
                f"{self.annotations}: no object names a class; annotate one, or write the names "
                f"into {LABEL_FILES[0]} in the set's folder",
            )
        ids = {name: number for number, name in enumerate(self.names, 1)}
        pictures = _Pictures(self.images)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for stem in self._stems(tell):
            path = self.xml / f"{stem}.xml"
            if not path.is_file():
                tell(
                    "record",
                    f"{self.annotations}: '{stem}' has no file {path}; add it, without objects "
                    "where the picture shows none, or remove the line",
                )
                continue
            try:
                root = parse(path)
            except ZooError as error:
                tell("json", str(error))
                continue
            number = len(images) + 1
            height, width = _size(root, path, tell)
            images.append(
                {
                    "id": number,
                    "file_name": pictures.name(stem, root.findtext("filename") or ""),
                    "height": height,
                    "width": width,
                }
            )
            for place, element in enumerate(root.findall("object"), 1):
                where = f"{path}, object {place}"
                found = self._object(element, where, ids, tell)
                if found is not None:
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": number, **found, ORIGIN: where}
                    )
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        return {"images": images, "annotations": annotations, "categories": categories}

    def unlisted(self, listed: Set[str]) -> list[str]:
        """Pictures without an XML file, or, where there are lists, in none of them."""
        spare = pictures_below(self.images) - listed
        if self.annotations == self.xml:
            return sorted(spare)
        used: set[str] = set()
        for file in self.annotations.parent.glob("*.txt"):
            # Lists of one class have a second column.
            used |= {line.split()[0] for line in _lines(file)} | set(_lines(file))
        return sorted(name for name in spare if os.path.splitext(name)[0] not in used)

    def _stems(self, tell: Tell) -> Iterator[str]:
        if self.annotations == self.xml:
            yield from (os.path.splitext(name)[0] for name in _xml_below(self.xml))
            return
        seen: set[str] = set()
        for number, line in enumerate(decoded(self.annotations, MAX_LIST).splitlines(), 1):
            stem, where = line.strip(), f"{self.annotations}, line {number}"
            if not stem:
                continue
            if leads_out(stem):
                tell("record", f"{where}: '{stem[:80]}' leads out of the set; give a name in it")
            elif stem in seen:
                tell("record", f"{where}: '{stem}' stands there twice; remove one line")
            else:
                seen.add(stem)
                yield stem

    def _object(
        self, element: ElementTree.Element, where: str, ids: dict[str, int], tell: Tell
    ) -> dict[str, Any] | None:
        """An annotation without its ids, None for one that is at fault."""
        name = (element.findtext("name") or "").strip()
        if not name:
            tell("record", f"{where} has no name; name its class")
            return None
        if name not in ids:
            tell(
                "unknown_category",
                f"{where} is of the class '{name[:80]}', which is not among those of the labels "
                "file; add the name there or correct it",
            )
            return None
        texts = [(element.findtext(f"bndbox/{key}") or "").strip() for key in _CORNERS]
        try:
            x1, y1, x2, y2 = corners = [float(text) for text in texts]
        except ValueError:
            corners = [math.nan]
        if not all(abs(v) < 2**53 for v in corners):
            shown = ", ".join(f"{k} '{t[:40]}'" for k, t in zip(_CORNERS, texts, strict=True))
            tell("bad_box", f"{where} has a bndbox of {shown}; give four finite numbers")
            return None
        shift = 1.0 if self.one_based else 0.0
        box = [x1 - shift, y1 - shift, x2 - x1 + shift, y2 - y1 + shift]
        if min(box[2:]) < -1e-6:
            shown = ", ".join(f"{v:g}" for v in corners)
            tell(
                "bad_box",
                f"{where} has a bndbox ({shown}) that ends before it begins; exchange the corners",
            )
            return None
        if self.one_based and min(x1, y1) == 0:
            shown = ", ".join(f"{v:g}" for v in corners)
            tell("from_zero", f"{where} ({shown}); see whether the set counts from 0")
        box[2:] = [max(side, 0.0) for side in box[2:]]
        found: dict[str, Any] = {
            "category_id": ids[name],
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for flag in FLAGS:
            text = (element.findtext(flag) or "0").strip()
            if text not in ("0", "1"):
                tell("record", f"{where} has {flag} '{text[:40]}'; give 0 or 1")
                return None
            if text == "1":
                found[flag] = 1
        if found.get("difficult") and self.difficult == "ignore":
            found["iscrowd"] = 1
        if pose := (element.findtext("pose") or "").strip().replace("Unspecified", ""):
            found["pose"] = pose
        known = {"name", "bndbox", "pose", *FLAGS}
        if other := sorted({child.tag for child in element} - known):
            found["_other"] = other
        return found


def find_split(
    folder: Path,
    split: str,
    *,
    names: Sequence[str] | None = None,
    one_based: bool = True,
    difficult: str = "ignore",
) -> VocFiles:
    """The files of a split; ``names`` are the classes (default: :func:`class_names`).

    Raises :class:`ZooError` where there is no such folder, no split of this name in it (naming
    what was looked for), or no folder of pictures.
    """
    if not folder.is_dir():
        raise ZooError(f"there is no data folder {folder}; correct data.folder")
    if (found := _find(folder, split)) is None:
        there = ", ".join(all_splits(folder)) or "none"
        raise ZooError(
            f"{folder} has no VOC annotations of the split '{split}' (looked for "
            f"{looked_for(split)}; splits that are there: {there}); add them or name another split"
        )
    annotations, xml, images = found
    if not images.is_dir():
        raise ZooError(f"{annotations} has no folder of pictures; put them in {images}")
    known = class_names(folder) if names is None else tuple(names)
    return VocFiles(annotations, images, xml, known, one_based, difficult)


def looked_for(split: str) -> str:
    """The places of a split's annotations, in words."""
    return f"ImageSets/Main/{split}.txt with Annotations/, {split}/Annotations/, {split}/*.xml"


def all_splits(folder: Path) -> list[str]:
    """Names of the splits of a folder: those that it has lists of, and the common ones."""
    lists = {p.stem for p in (folder / "ImageSets" / "Main").glob("*.txt") if _pair(folder)}
    common = [name for split in ("train", "val", "test") for name in names_of(split)]
    return sorted(lists | {name for name in common if _beside(folder / name)})


def has_split(folder: Path, split: str) -> bool:
    """Whether the annotations of a split are there."""
    return _find(folder, split) is not None


def class_names(folder: Path) -> tuple[str, ...]:
    """The classes of the whole set, all its splits: from a labels file, else sorted.

    Files that can't be read add no class: whoever reads their split is told of them. Raises
    :class:`ZooError` for a labels file with an empty line or a name twice.
    """
    for file in (folder / name for name in LABEL_FILES):
        if not file.is_file():
            continue
        names = [line.strip() for line in decoded(file, MAX_BYTES).rstrip().splitlines()]
        for number, name in enumerate(names, 1):
            if not name or name in names[: number - 1]:
                what = f"the class '{name}' stands there twice" if name else "it is empty"
                raise ZooError(f"{file}, line {number}: {what}; give every class a line")
        return tuple(names)
    found: set[str] = set()
    pair = _pair(folder)
    below = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    places = [pair[0]] if pair else [b[0] for b in map(_beside, below) if b]
    for place in places:
        for name in _xml_below(place):
            try:
                root = parse(place / name)
            except ZooError:
                continue
            found |= {(e.findtext("name") or "").strip() for e in root.findall("object")}
    return tuple(sorted(found - {""}))


def parse(path: Path) -> ElementTree.Element:
    """The root of an annotation file, which has to be ``annotation``.

    Raises :class:`ZooError` with line and column where it is no XML, and for a document type.
    """
    parser = ElementTree.XMLParser(target=_NoDoctype())
    try:
        parser.feed(read_limited(path, MAX_BYTES))
        root: ElementTree.Element = parser.close()
    except ElementTree.ParseError as error:
        line, column = error.position
        raise ZooError(
            f"{path}: broken XML in line {line}, column {column + 1} "
            f"({str(error).partition(':')[0]}); restore the file"
        ) from None
    except _DoctypeError:
        raise ZooError(
            f"{path}: it declares a document type, which may hide entities; remove the DOCTYPE"
        ) from None
    except (ValueError, LookupError) as error:
        raise ZooError(f"{path}: its encoding is not known ({error}); save it as UTF-8") from None
    if root.tag != "annotation":
        raise ZooError(
            f"{path}: its root is <{root.tag[:40]}>, where VOC has <annotation>; give a VOC file"
        )
    return root


class _DoctypeError(Exception): ...


class _NoDoctype(ElementTree.TreeBuilder):
    """Builds the tree, and stops at a document type, whatever the encoding it is written in."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise _DoctypeError


class _Pictures:
    """Finds the picture of an XML file, listing each folder once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, dict[str, str]] = {}

    def name(self, stem: str, filename: str) -> str:
        """The picture's name below the folder; of one that is not there the likeliest."""
        below, slash, own = stem.rpartition("/")
        if below not in self.known:
            try:
                there = sorted(e.name for e in os.scandir(self.folder / below))
            except OSError:
                there = []
            table = {name: name for name in there}
            table |= {os.path.splitext(name)[0]: name for name in there if is_picture(name)}
            self.known[below] = table
        table = self.known[below]
        written = filename.strip().replace("\\", "/").rpartition("/")[2]
        found = table.get(own)
        if found is None or not is_picture(found):
            found = table.get(written) if is_picture(written) else None
        return below + slash + (found or f"{own}.jpg")


def _find(folder: Path, split: str) -> tuple[Path, Path, Path] | None:
    """Annotations (list or folder), XML folder and pictures' folder of a split."""
    pair = _pair(folder)
    for name in names_of(split):
        file = folder / "ImageSets" / "Main" / f"{name}.txt"
        if pair and file.is_file():
            return file, *pair
    for name in names_of(split):
        if beside := _beside(folder / name):
            return beside[0], *beside
    return None


def _pair(folder: Path) -> tuple[Path, Path] | None:
    """Folders of XML files and of pictures; the latter may be missing."""
    known = [(folder / a, folder / b) for a, b in _FOLDERS if (folder / a).is_dir()]
    there = [pair for pair in known if pair[1].is_dir()] or known
    return next((pair for pair in there if _holds_xml(pair[0])), None)


def _beside(folder: Path) -> tuple[Path, Path] | None:
    """The same of a split's folder, in which they may be one."""
    return _pair(folder) or ((folder, folder) if _holds_xml(folder) else None)


def _holds_xml(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.is_dir() or e.name.endswith(".xml")]
    except OSError:
        return False
    return any(n.endswith(".xml") for n in names) or any(
        _holds_xml(folder / n) for n in names if folder.name in ("Annotations", "annotations")
    )


def _xml_below(folder: Path) -> list[str]:
    """Names of the XML files of a folder and its subfolders, sorted, with ``/``."""
    return sorted(
        os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")
        for place, _, names in os.walk(folder)
        for name in names
        if name.endswith(".xml") and not name.startswith(".")
    )


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in decoded(file, MAX_LIST).splitlines() if line.strip()]
    except ZooError:
        return []


def _size(root: ElementTree.Element, path: Path, tell: Tell) -> tuple[int | None, int | None]:
    """(height, width) as the file says, (None, None) where it doesn't."""
    texts = [(root.findtext(f"size/{key}") or "0").strip() for key in ("height", "width")]
    try:
        sides = [float(text) for text in texts]
    except ValueError:
        sides = [-1.0]
    if sides == [0, 0]:
        return None, None
    if not all(1 <= v < 2**31 and v % 1 == 0 for v in sides):
        tell(
            "record",
            f"{path} has a size of height '{texts[0][:20]}' and width '{texts[1][:20]}'; give "
            "both in whole pixels, or neither",
        )
        return None, None
    return int(sides[0]), int(sides[1])
