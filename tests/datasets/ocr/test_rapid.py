"""RapidOCR as an engine: lines split into words, pages turned, and the package missing."""

import importlib
import importlib.util

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from zoo.datasets.ocr import rapid
from zoo.datasets.ocr.lines import shared_out
from zoo.datasets.ocr.page import Page
from zoo.datasets.ocr.rapid import RapidOcr, page_of_lines, spaced
from zoo.datasets.ocr.read import read_pages
from zoo.datasets.ocr.tesseract import OcrOptions
from zoo.errors import ZooError

needs_rapidocr = pytest.mark.skipif(
    importlib.util.find_spec("rapidocr_onnxruntime") is None,
    reason="rapidocr-onnxruntime is not installed",
)
LINES = ("INVOICE NUMBER 20418", "Customer Oakwood Garden", "Total amount due 1250.75")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def letters(found: Page) -> list[str]:
    """The lines without spaces: the models lose some of them."""
    return "".join(found.text().split(" ")).splitlines()


WANTED = [line.replace(" ", "") for line in LINES]


def page(size: tuple[int, int] = (760, 740)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    for n, line in enumerate(LINES):
        font = ImageFont.load_default(size=40)
        ImageDraw.Draw(image).text((40, 30 + 80 * n), line, "black", font)
    return image


def test_a_line_is_shared_out_by_characters() -> None:
    assert shared_out(" ab  c ") == [("ab", 0, 0.4), ("c", 0.8, 1)]
    assert shared_out("a a")[1] == ("a", pytest.approx(2 / 3), 1)
    assert shared_out("  ") == []


def test_words_of_lines_straight_slanted_and_upright() -> None:
    straight = [[10, 20], [110, 20], [110, 40], [10, 40]]
    slanted = [[0, 0], [100, 50], [95, 60], [-5, 10]]
    upright = [[150, 10], [170, 10], [170, 110], [150, 110]]
    found = page_of_lines(
        [(straight, "ab cdefg hi", 0.75), (slanted, "ab cd", 1.2), (upright, "ab cdefg hi", 0.5),
         (straight, " ", 0.9)],
        (200, 120), rotation=90, dpi=300, engine="x",
    )  # fmt: skip
    assert found.words == ("ab", "cdefg", "hi", "ab", "cd", "ab", "cdefg", "hi")
    step = 100 / 11
    for n, (begin, end) in enumerate(((0, 2), (3, 8), (9, 11))):
        assert found.boxes[n] == pytest.approx((10 + begin * step, 20, 10 + end * step, 40))
        assert found.boxes[5 + n] == pytest.approx((150, 10 + begin * step, 170, 10 + end * step))
    assert found.boxes[3] == pytest.approx((0, 0, 40, 30))
    assert found.boxes[4] == pytest.approx((55, 30, 100, 60))
    assert found.confidences == (0.75,) * 3 + (1.0,) * 2 + (0.5,) * 3
    assert found.lines == (0, 0, 0, 1, 1, 2, 2, 2)
    assert (found.width, found.height, found.rotation, found.dpi) == (200, 120, 90, 300)


def places(*centres: float) -> list[list[list[float]]]:
    return [[[x - 5, 0], [x + 5, 0], [x + 5, 9], [x - 5, 9]] for x in centres]


def test_lost_spaces_are_put_back() -> None:
    letters = list("LOT276JA")
    apart = places(10, 20, 30, 52, 62, 72, 94, 104)
    assert spaced("LOT276JA", letters, apart) == "LOT 276 JA"
    upright = [[[y, x] for x, y in box] for box in apart]
    assert spaced("LOT276JA", letters, upright) == "LOT 276 JA"
    assert spaced("LOT 276", list("LOT 276"), places(10, 20, 30, 45, 60, 70, 80)) == "LOT 276"
    assert spaced("东京都276", list("东京都276"), places(10, 20, 40, 60, 70, 80)) == "东京都276"
    assert spaced("even", list("even"), places(10, 20, 30, 40)) == "even"
    assert spaced("LOT276", ["LO", "T2", "7", "6"], places(10, 20, 30, 90)) == "LOT276"
    for text, parts in (
        ("LOT276", ["LOT", "276"]),
        ("LOT276", list("LOT27")),
        ("", []),
        ("a", ["a"]),
    ):
        assert spaced(text, parts, places(*range(0, 10 * len(parts), 10))) == text


def test_the_package_is_missing(monkeypatch) -> None:
    def absent(name: str):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(rapid, "_idle", [])
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ZooError) as caught:
        RapidOcr()
    assert str(caught.value) == (
        "the OCR engine rapidocr is not installed (No module named 'rapidocr_onnxruntime'); "
        "install it: pip install 'layout-detr-zoo[rapidocr]'"
    )


def test_what_it_cannot_do() -> None:
    with pytest.raises(ZooError, match="reads eng, chi_sim, chi_tra, not deu; read that with tess"):
        RapidOcr(OcrOptions(language="eng+deu"))
    with pytest.raises(ZooError, match="engine rapidocr has no psm; leave it out"):
        RapidOcr(OcrOptions(psm=6))


@needs_rapidocr
def test_words_lines_and_places() -> None:
    image = page()
    found = RapidOcr()(image, 200)
    assert letters(found) == WANTED
    assert len(set(found.lines)) == len(LINES)
    assert (found.width, found.height, found.rotation, found.dpi) == (760, 740, 0, 200)
    assert 0.6 < min(found.confidences) <= max(found.confidences) <= 1
    assert found.engine.startswith("rapidocr ")
    grey = np.asarray(image.convert("L"))
    for word, box in zip(found.words, found.boxes, strict=True):
        x1, y1, x2, y2 = map(int, box)
        assert grey[y1:y2, x1:x2].min() < 128, word


@needs_rapidocr
@pytest.mark.parametrize("angle", [90, 180, 270])
def test_a_page_on_its_side_is_turned(angle: int) -> None:
    found = RapidOcr()(page().rotate(angle, expand=True), 200)
    assert found.rotation == angle
    assert letters(found) == WANTED
    assert (found.width, found.height) == (760, 740)


@needs_rapidocr
def test_a_blank_page_has_no_words() -> None:
    found = RapidOcr()(Image.new("L", (600, 400), 255))
    assert (len(found), found.width, found.height) == (0, 600, 400)


@needs_rapidocr
def test_one_thread_a_page_and_models_are_kept(monkeypatch) -> None:
    import onnxruntime

    made = []
    real = onnxruntime.InferenceSession

    def session(*given, **options):
        threads = options["sess_options"]
        made.append((threads.intra_op_num_threads, threads.inter_op_num_threads))
        return real(*given, **options)

    monkeypatch.setattr("rapidocr_onnxruntime.utils.infer_engine.InferenceSession", session)
    monkeypatch.setattr(rapid, "_idle", [])
    RapidOcr()(page())
    assert made
    assert set(made) == {(1, 1)}
    count = len(made)
    RapidOcr()(page())
    assert len(made) == count


@needs_rapidocr
def test_pages_are_read_in_parallel_and_kept(tmp_path, monkeypatch) -> None:
    frames = [page(), page((760, 750)), page((760, 760))]
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    found = read_pages(tmp_path / "a.tiff", engine="rapidocr", workers=2)
    assert [p.height for p in found] == [740, 750, 760]
    assert [letters(p) for p in found] == [WANTED] * 3
    monkeypatch.setattr(RapidOcr, "_read", None)
    assert read_pages(tmp_path / "a.tiff", engine="rapidocr") == found
