"""Files to pages: opened, read by an engine (or by a PDF itself), in an order, kept in a cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

from PIL import Image

from zoo.datasets.ocr.beside import Beside
from zoo.datasets.ocr.files import PageImage, open_pages, open_words
from zoo.datasets.ocr.page import Page, Picture, page_from_json
from zoo.datasets.ocr.rapid import RapidOcr
from zoo.datasets.ocr.tesseract import OcrOptions, Tesseract
from zoo.datasets.page_pictures import HeldPicture, PictureOfFile
from zoo.errors import ZooError, nearest

log = logging.getLogger("zoo")

Order = Callable[[Page], list[int]]
CACHE_MB = 500


class Engine(Protocol):
    """Reads a picture's words. ``name`` and ``version`` are a part of the cache's key."""

    name: str
    version: str
    options: OcrOptions

    def __call__(self, image: Image.Image, dpi: float = 0.0) -> Page: ...


ENGINES: dict[str, Callable[[OcrOptions], Engine]] = {"tesseract": Tesseract, "rapidocr": RapidOcr}
NAMES = (*ENGINES, Beside.name)


def check_engine(name: str) -> None:
    """Raise :class:`ZooError` for an unknown engine; whether it is installed is not looked at."""
    if name not in NAMES:
        raise ZooError(f"there is no OCR engine '{name}'; {nearest(name, list(NAMES))}")


def engine_named(name: str, options: OcrOptions | None = None) -> Engine | Beside:
    """An engine of :data:`ENGINES`, or ``json``: the words of files beside the pictures.

    Raises :class:`ZooError` for an unknown name, and where the engine is not installed.
    """
    check_engine(name)
    return Beside() if name == Beside.name else ENGINES[name](options or OcrOptions())


def read_pages(
    source: str | Path | Image.Image,
    *,
    engine: str = "tesseract",
    language: str = "eng",
    psm: int = 3,
    timeout: float = 120.0,
    pages: str | None = None,
    password: str | None = None,
    text_layer: bool = True,
    order: Order | None = None,
    cache: bool = True,
    workers: int = 0,
    progress: Callable[[Iterable[Page]], Iterable[Page]] = lambda pages: pages,
) -> list[Page]:
    """The pages of a file (a picture, a TIFF of several pages, a PDF) or of a Pillow image.

    ``pages`` chooses some (``1-3,7``). A PDF's own words are taken where it has any and
    ``text_layer`` is on; everything else is read by the engine, ``workers`` pages at a time (0: as
    many as there are processors). The engine ``json`` takes the words of files beside the picture
    or PDF instead (:mod:`~zoo.datasets.ocr.beside`), also of a PDF with words of its own. ``order``
    puts words into another order than the engine's. ``progress`` wraps the pages as they are done;
    whatever their number, no more pictures are in memory than are being read.

    Raises :class:`ZooError` naming file and page for whatever can't be read.
    """
    check_engine(engine)
    options = OcrOptions(language=language, psm=psm, timeout=timeout)
    items: Iterator[PageImage | Page]
    if isinstance(source, Image.Image):
        name, items = "the picture", iter([PageImage(source, 0)])
    else:
        name = str(source)
        opened = open_words if text_layer and engine != Beside.name else open_pages
        items = iter(opened(source, pages=pages, password=password))

    def finished(page: Page, number: int) -> Page:
        picture: Picture
        if isinstance(source, Image.Image):
            picture = HeldPicture(source, page.rotation)
        else:
            picture = PictureOfFile(name, number, page.rotation, password)
        page = replace(page, number=number, source=name, picture=picture)
        return page.ordered(order(page)) if order else page

    def read(item: PageImage, reader: Engine | Beside) -> Page:
        if isinstance(reader, Beside):
            return finished(reader(item), item.number)
        try:
            page = read_image_of(item, reader, cache)
        except ZooError as error:
            raise ZooError(f"{name}, page {item.number + 1}: {error}") from None
        return finished(page, item.number)

    def all_pages() -> Iterator[Page]:
        count = workers or os.cpu_count() or 1
        made: list[Engine | Beside] = []  # only where a page needs it: a PDF of text does not
        with ThreadPoolExecutor(count) as pool:
            waiting: deque[Page | Future[Page]] = deque()
            for item in items:
                if isinstance(item, Page):
                    waiting.append(finished(item, item.number))
                else:
                    if not made:
                        made.append(engine_named(engine, options))
                    waiting.append(pool.submit(read, item, made[0]))
                del item  # its picture
                while len(waiting) > count:
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())

    return list(progress(all_pages()))


def _result(page: Page | Future[Page]) -> Page:
    return page if isinstance(page, Page) else page.result()


def read_image_of(item: PageImage, engine: Engine, cached: bool) -> Page:
    """A page's words by the engine, or from the cache."""
    if not cached:
        return engine(item.image, item.dpi)
    path = cache_folder() / f"{_key(item, engine)}.json"
    try:
        page = page_from_json(path.read_text(encoding="utf-8"), str(path))
        os.utime(path)  # what is used stays longest
        return page
    except FileNotFoundError:
        pass
    except (ZooError, OSError, UnicodeDecodeError) as error:
        log.warning("%s is not usable and is written anew (%s)", path, error)
    page = engine(item.image, item.dpi)
    _store(path, page)
    return page


def _key(item: PageImage, engine: Engine) -> str:
    """What a page's words depend on: pixels, engine, version and options."""
    said = [engine.name, engine.version, asdict(engine.options), item.dpi, item.image.size]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    digest.update(item.image.mode.encode())
    digest.update(item.image.tobytes())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where read pages are kept: ``ZOO_CACHE``, else the user's cache folder."""
    base = os.environ.get("ZOO_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "layout-detr-zoo" / "ocr"


def _store(path: Path, page: Page) -> None:
    """Write a page whole or not at all; a cache that can't be written is told, and no error."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(page.to_json(), encoding="utf-8")
        fresh.replace(path)
        _limit(path.parent)
    except OSError as error:
        log.warning("the page is not kept: %s can't be written (%s)", path, error.strerror)
        fresh.unlink(missing_ok=True)


def _limit(folder: Path) -> None:
    """Delete the files that were not used for longest while all take over :data:`CACHE_MB`."""
    files = []
    for path in folder.glob("*.json"):
        try:
            stat = path.stat()
        except FileNotFoundError:  # another process was quicker
            continue
        files.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= CACHE_MB * 2**20:
            break
        path.unlink(missing_ok=True)
        total -= size
