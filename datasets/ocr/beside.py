"""Bring your own OCR: the words of a page from a file beside its picture or PDF.

For ``scan.png`` these are, in this order, ``scan.page1.json``, ``scan.page1.tsv``, ``scan.json``
and ``scan.tsv``, in any layout that :func:`~zoo.datasets.ocr.layouts.read_ocr` knows. For a file
of several pages the first two are of the page of that number, and the others have all of them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from zoo.datasets.ocr.files import PageImage
from zoo.datasets.ocr.layouts import read_ocr
from zoo.datasets.ocr.page import Page
from zoo.errors import ZooError

SUFFIXES = (".json", ".tsv")


class Beside:
    """The words that are written beside a file; nothing is recognised, and nothing cached.

    Unlike an engine it needs to know which file and page a picture is, and not its pixels.
    """

    name = "json"

    def __call__(self, item: PageImage) -> Page:
        """The words of a page of a file.

        The OCR of a PDF's page may be of any resolution, that of a picture has to be of its size.
        Raises :class:`ZooError` that names where it looked, or says what is wrong with the file.
        """
        if item.path is None:
            raise ZooError(
                "engine json reads the words beside a file, and a picture in memory has none; "
                "give the file's path, or a page"
            )
        one, all_pages = places(item.path, item.number)
        size = (item.image.height, item.image.width)
        for paths, number in ((one, 0), (all_pages, item.number)):
            for path in paths:
                if path.is_file():
                    page = read_ocr(path, size, number, any_scale=item.of_pdf)
                    return replace(page, number=item.number)
        looked = ", ".join(path.name for path in (*one, *all_pages))
        raise ZooError(
            f"there are no words of {item.path}, page {item.number + 1} (looked for {looked} in "
            f"{item.path.parent}); write one of these, or choose an engine that reads the picture"
        )


def places(path: Path, number: int) -> tuple[list[Path], list[Path]]:
    """Where the words of page ``number`` (from 0) may be: files of that page alone, of all pages.

    The number is after a point, so that ``scan_2.png`` and page 2 of ``scan.tiff`` differ.
    """
    return (
        [path.with_name(f"{path.stem}.page{number + 1}{suffix}") for suffix in SUFFIXES],
        [path.with_name(f"{path.stem}{suffix}") for suffix in SUFFIXES],
    )
