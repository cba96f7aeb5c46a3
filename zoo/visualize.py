"""Pictures of what goes in and comes out: boxes, contact sheets, attention, curves.

Every function takes and gives plain values; nothing here keeps a state, opens a window or needs a
display. Colours of classes are fixed by their index, so that a class has the same one in every
picture.
"""

from __future__ import annotations

import colorsys
import contextlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from zoo.errors import ZooError
from zoo.log import read_log

Colour = tuple[int, int, int]
Picture = Image.Image | Tensor | NDArray[np.uint8]


def as_pil(image: Picture) -> Image.Image:
    """A copy as an RGB PIL image.

    ``image`` is a PIL image, a uint8 tensor [3, H, W] or [1, H, W], or a uint8 array [H, W, 3].
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ValueError(f"a uint8 [3, H, W] is needed, not {image.dtype} {list(image.shape)}")
        image = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy()
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a uint8 [H, W, 3] is needed, not {image.dtype} {list(image.shape)}")
    return Image.fromarray(image)


def class_colour(index: int) -> Colour:
    """A saturated colour for a class; neighbouring indices are far apart in hue."""
    # Steps of the golden ratio spread any number of hues evenly; brightness takes turns.
    hue = (0.02 + index * 0.618033988749895) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, (1.0, 0.8, 0.9)[index % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def _ink(background: Colour) -> Colour:
    """Black or white, whichever is easier to read on ``background``."""
    red, green, blue = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def _scale(size: tuple[int, int]) -> float:
    """How much larger than at 640 pixels lines and letters have to be to look alike."""
    return max(size) / 640


@cache
def _font(height: float) -> ImageFont.FreeTypeFont:
    """A font for Latin, Greek and Cyrillic letters; Pillow's own has Latin ones only."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size=max(8.0, height))


def draw_boxes(
    image: Picture,
    boxes: ArrayLike | Tensor,
    labels: Sequence[int] | Tensor = (),
    scores: Sequence[float] | Tensor | None = None,
    *,
    class_names: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    dashed: Sequence[bool] | None = None,
    colours: Sequence[Colour] | None = None,
    min_side: int = 0,
) -> Image.Image:
    """The image with labelled boxes on it; lines and letters grow with the image.

    ``boxes`` [M, 4] are xyxy in pixels of the image (they may stand over its edges); ``labels``
    [M] choose the colours and, through ``class_names``, the words, to which ``scores`` [M] are
    added as percentages. ``texts`` [M] are written instead of both. Boxes of lower score are drawn
    first, so that the better ones stay readable. ``dashed`` boxes (crowds, ground truth) have
    broken lines, ``colours`` [M] replace those of the classes. An image whose longer side is below
    ``min_side`` is enlarged first.
    """
    picture = as_pil(image)
    corners = _array(boxes).reshape(-1, 4)
    if max(picture.size) < min_side:
        factor = min_side / max(picture.size)
        width, height = (max(1, round(n * factor)) for n in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        corners = corners * factor
    classes = [int(n) for n in _array(labels)] if len(labels) else [0] * len(corners)
    values = None if scores is None else _array(scores)
    inks = [class_colour(n) for n in classes] if colours is None else list(colours)
    words = _texts(len(corners), classes, values, class_names if len(labels) else None, texts)
    scale = _scale(picture.size)
    line = max(1, round(2 * scale))
    font = _font(12 * scale)
    pen = ImageDraw.Draw(picture)
    order = range(len(corners)) if values is None else np.argsort(values, kind="stable").tolist()
    for i in order:
        box = _inside(corners[i], picture.size)
        if dashed is not None and dashed[i]:
            _dashed(pen, box, inks[i], line)
        else:
            pen.rectangle(box, outline=inks[i], width=line)
    # Words after all boxes: no line runs through them.
    for i in order:
        if words[i]:
            box = _inside(corners[i], picture.size)
            _label(pen, picture.size, box, words[i], inks[i], font)
    return picture


def _array(values: Any) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    return np.asarray(values, dtype=np.float64)


def _texts(
    count: int,
    classes: Sequence[int],
    scores: NDArray[np.float64] | None,
    class_names: Sequence[str] | None,
    texts: Sequence[str] | None,
) -> list[str]:
    if texts is not None:
        return list(texts)
    words = [class_names[c] if class_names is not None else "" for c in classes]
    if scores is not None:
        words = [f"{word} {score:.0%}".strip() for word, score in zip(words, scores, strict=True)]
    return words[:count]


def _inside(box: NDArray[np.float64], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box clipped to the image, its corners in order."""
    width, height = size
    x1, x2 = np.clip(sorted((box[0], box[2])), 0, width - 1).tolist()
    y1, y2 = np.clip(sorted((box[1], box[3])), 0, height - 1).tolist()
    return x1, y1, x2, y2


def _dashed(
    pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float], colour: Colour, width: int
) -> None:
    x1, y1, x2, y2 = box
    dash = 5.0 * width
    for (ax, ay), (bx, by) in (
        ((x1, y1), (x2, y1)),
        ((x2, y1), (x2, y2)),
        ((x2, y2), (x1, y2)),
        ((x1, y2), (x1, y1)),
    ):
        length = math.hypot(bx - ax, by - ay)
        for n in range(0, math.ceil(length / dash), 2):
            start, stop = n * dash / length, min((n + 1) * dash / length, 1.0)
            pen.line(
                (
                    ax + (bx - ax) * start,
                    ay + (by - ay) * start,
                    ax + (bx - ax) * stop,
                    ay + (by - ay) * stop,
                ),
                fill=colour,
                width=width,
            )


def _label(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    text: str,
    colour: Colour,
    font: ImageFont.FreeTypeFont,
) -> None:
    """A word on a plate above the box, or inside where there is no room above."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    pad = max(1.0, (bottom - top) / 6)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = max(0.0, min(box[0], size[0] - width))
    y = box[1] - height if box[1] >= height else min(box[1], size[1] - height)
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    pen.text((x + pad - left, y + pad - top), text, fill=_ink(colour), font=font)


def mark_text(
    image: Picture,
    boxes: ArrayLike | Tensor,
    labels: Sequence[int],
    texts: Sequence[str],
    *,
    words: ArrayLike | Tensor = (),
) -> Image.Image:
    """A page with places in its text marked, all of which stays readable.

    ``boxes`` [M, 4] are xyxy in pixels, ``labels`` [M] choose their colours. ``texts`` [M] are
    written small beside their boxes, if there is room that is none of ``words`` [N, 4], no other
    box and no other text; where there is none they are left out (and so are empty ones).
    """
    picture = as_pil(image)
    corners, taken = _array(boxes).reshape(-1, 4), _array(words).reshape(-1, 4)
    scale = _scale(picture.size)
    gap, font = 1.5 * scale, _font(7 * scale)
    # As with a marker: the paper takes the colour, the ink stays.
    tint = Image.new("RGB", picture.size, "white")
    pen = ImageDraw.Draw(tint)
    for box, label in zip(corners, labels, strict=True):
        pale = _blend(class_colour(label), 0.3)
        pen.rectangle(_inside(box + gap * np.array([-1, -1, 1, 1]), picture.size), fill=pale)
    picture = ImageChops.multiply(picture, tint)
    pen = ImageDraw.Draw(picture)
    taken = np.concatenate([taken, corners])
    for box, label, text in zip(corners, labels, texts, strict=True):
        x1, y1, x2, y2 = box.tolist()
        width, height = font.getlength(text) + 2 * gap, 9 * scale
        middle = (y1 + y2 - height) / 2
        above, below = y1 - gap - height, y2 + gap
        for x, y in ((x2 + gap, middle), (x1, above), (x1, below), (x1 - gap - width, middle)):
            plate = np.array([x, y, x + width, y + height])
            inside = x >= 0 and y >= 0 and plate[2] < picture.width and plate[3] < picture.height
            free = (np.minimum(taken[:, 2:], plate[2:]) <= np.maximum(taken[:, :2], plate[:2])).any(
                1
            )
            if text and inside and free.all():
                colour = class_colour(label)
                pen.rectangle(plate.tolist(), fill=colour)
                pen.text((x + gap, y + height / 2), text, fill=_ink(colour), font=font, anchor="lm")
                taken = np.concatenate([taken, plate[None]])
                break
    return picture


def add_legend(image: Picture, labels: Sequence[int], texts: Sequence[str]) -> Image.Image:
    """The image, unchanged, with a strip below it that says in ``texts`` what colours mean."""
    picture = as_pil(image)
    scale = _scale(picture.size)
    size, font = 12 * scale, _font(12 * scale)
    rows: list[list[tuple[int, str, float]]] = [[]]
    x = size
    for label, text in zip(labels, texts, strict=True):
        width = font.getlength(text) + 3 * size
        if rows[-1] and x + width > picture.width:
            rows.append([])
            x = size
        rows[-1].append((label, text, x))
        x += width
    strip = math.ceil((1.6 * len(rows) + 0.6) * size)
    whole = Image.new("RGB", (picture.width, picture.height + strip), "white")
    whole.paste(picture)
    pen = ImageDraw.Draw(whole)
    for n, row in enumerate(rows):
        y = picture.height + (1.6 * n + 0.6) * size
        for label, text, x in row:
            pen.rectangle((x, y, x + size, y + size), fill=class_colour(label))
            pen.text((x + 1.4 * size, y + size / 2), text, fill="black", font=font, anchor="lm")
    return whole


def _blend(colour: Colour, share: float) -> Colour:
    """A colour with white, of which ``share`` 0..1 is the colour."""
    red, green, blue = (round(255 + (c - 255) * share) for c in colour)
    return red, green, blue


def contact_sheet(
    images: Sequence[Picture],
    columns: int = 4,
    *,
    cell: int = 320,
    titles: Sequence[str] | None = None,
) -> Image.Image:
    """Many images on one white sheet, each fitted into a square of ``cell`` pixels.

    Raises ``ValueError`` where there are none.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    columns = min(columns, len(images))
    gap, head = max(2, cell // 40), (max(12, cell // 16) if titles else 0)
    small = [ImageOps.contain(as_pil(image), (cell, cell)) for image in images]
    heights = [max(s.height for s in small[n : n + columns]) for n in range(0, len(small), columns)]
    width = columns * (cell + gap) + gap
    sheet = Image.new("RGB", (width, sum(heights) + len(heights) * (head + gap) + gap), "white")
    pen, top = ImageDraw.Draw(sheet), gap
    for row, height in enumerate(heights):
        for column, image in enumerate(small[row * columns : (row + 1) * columns]):
            left = gap + column * (cell + gap)
            if titles:
                font = _font(head * 0.7)
                text = _shortened(titles[row * columns + column], cell, font)
                pen.text((left, top), text, fill="black", font=font)
            place = (left + (cell - image.width) // 2, top + head + (height - image.height) // 2)
            sheet.paste(image, place)
        top += head + height + gap
    return sheet


def _shortened(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """The end of a text that is too wide (of a path, that is the name)."""
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text


def overlay_heat(image: Picture, heat: Tensor | ArrayLike, *, strength: float = 0.8) -> Image.Image:
    """A heat map over a darkened image: where it is hot, warm colours cover it.

    ``heat`` [h, w] of any range, at any resolution; it is stretched over the whole image with
    its least value as none and its greatest as full heat. ``strength`` 0..1 is how much of the
    image is covered at full heat.
    """
    import matplotlib

    picture = as_pil(image)
    values = _array(heat)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"a heat map [h, w] is needed, not {list(values.shape)}")
    span = values.max() - values.min()
    values = (values - values.min()) / span if span > 0 else np.zeros_like(values)
    grey = Image.fromarray(values.astype(np.float32))
    fine = np.asarray(grey.resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)
    colours = matplotlib.colormaps["inferno"](fine)[..., :3] * 255
    cover = strength * fine[..., None]
    mixed = np.asarray(picture) * 0.6 * (1 - cover) + colours * cover
    return Image.fromarray(mixed.round().astype(np.uint8))


def mark_point(
    image: Picture, x: float, y: float, *, colour: Colour = (0, 255, 255)
) -> Image.Image:
    """The image with a ring and a dot at (x, y) in pixels."""
    picture = as_pil(image)
    radius = 5 * _scale(picture.size)
    pen = ImageDraw.Draw(picture)
    for size, ink in ((radius + 1, (0, 0, 0)), (radius, colour)):
        pen.ellipse(
            (x - size, y - size, x + size, y + size), outline=ink, width=max(1, round(radius / 3))
        )
    pen.ellipse((x - 1, y - 1, x + 1, y + 1), fill=colour)
    return picture


def learning_curve(
    rows: Sequence[Mapping[str, Any]] | Path,
    path: Path,
    *,
    metrics: Sequence[str] | None = None,
) -> None:
    """Draw a run's log as a PNG: the loss on the left axis, metrics on the right one.

    ``rows`` are the rows of a ``log.jsonl``, or its path: of ``kind`` train (with ``step`` and
    ``loss``) or eval (with ``step`` and figures). ``metrics`` are the figures to draw; where they
    aren't named, the first ones of the first evaluation, three at most. The best value of the
    first is marked. Drawn also where there is nothing to draw yet.
    """
    log = read_log(rows) if isinstance(rows, Path) else list(rows)
    train = [r for r in log if r["kind"] == "train" and "loss" in r]
    scored = [r for r in log if r["kind"] == "eval"]
    figure, axes = _figure((9, 5))
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.25)
    if train:
        steps = np.array([r["step"] for r in train])
        losses = np.array([r["loss"] for r in train], dtype=np.float64)
        axes.plot(steps, losses, color="tab:gray", alpha=0.35, linewidth=1)
        axes.plot(steps, _smooth(losses), color="black", linewidth=1.5, label="loss")
        # A loss that fell by much is readable on a logarithmic axis only.
        known = losses[np.isfinite(losses) & (losses > 0)]
        if known.size == losses.size and known.max() > 20 * known.min():
            axes.set_yscale("log")
    names = list(metrics) if metrics is not None else _figures_of(scored)
    right = axes.twinx()
    right.set_ylabel("metric")
    for n, name in enumerate(names):
        points = [(r["step"], r[name]) for r in scored if name in r]
        right.plot(*zip(*points, strict=True), marker=".", color=f"C{n}", label=name)
        if n == 0:
            step, value = max(points, key=lambda p: p[1])
            right.annotate(
                f"{name} {value:.3f}", (step, value), xytext=(0, 6), textcoords="offset points",
                ha="center", fontsize=9, color=f"C{n}",
            )  # fmt: skip
    if names:
        right.set_ylim(bottom=0)
        right.margins(y=0.12)
        _epoch_axis(axes, scored)
    handles = [h for a in (axes, right) for h in a.get_legend_handles_labels()[0]]
    if handles:
        # Outside of the axes: curves fill any corner of them in time.
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False)
    _save(figure, path)


def _figures_of(scored: Sequence[Mapping[str, Any]]) -> list[str]:
    if not scored:
        return []
    skipped = {"kind", "step", "epoch", "minutes"}
    first = scored[0]
    names = [k for k, v in first.items() if k not in skipped and isinstance(v, int | float)]
    return names[:3]


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A centred running mean over a twentieth of the values."""
    half = len(values) // 40
    if not half:
        return values
    padded = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (padded[high] - padded[low]) / (high - low)


def _epoch_axis(axes: Any, scored: Sequence[Mapping[str, Any]]) -> None:
    """Epochs along the upper edge."""
    # At an evaluation in the middle of an epoch the row holds the whole ones only: less a step.
    a_step = max(
        (r["epoch"] / r["step"] for r in scored if r.get("epoch") and r["step"]), default=0
    )
    if a_step:
        top = axes.secondary_xaxis("top", functions=(lambda s: s * a_step, lambda e: e / a_step))
        top.set_xlabel("epoch")


def precision_recall_curves(
    recall: ArrayLike, curves: Mapping[str, ArrayLike], path: Path, *, title: str = ""
) -> None:
    """Draw precision [R] over ``recall`` [R] as a PNG, a line for each of the named curves.

    Values are 0..1; NaN or negative ones (nothing to measure) are left out.
    """
    figure, axes = _figure((7, 6))
    levels = _array(recall)
    for name, values in curves.items():
        precision = _array(values)
        axes.plot(levels, np.where(precision >= 0, precision, np.nan), label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=title)
    axes.grid(alpha=0.25)
    if 0 < len(curves) <= 12:
        axes.legend(loc="lower left", fontsize=9, framealpha=0.9)
    _save(figure, path)


def bar_chart(values: Mapping[str, float], path: Path, *, title: str = "", unit: str = "") -> None:
    """Draw named values as horizontal bars, in their order, as a PNG."""
    figure, axes = _figure((8, max(2.0, 0.22 * len(values) + 1)))
    axes.barh(range(len(values)), list(values.values()), color="tab:blue")
    axes.set_yticks(range(len(values)), list(values), fontsize=8)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=unit)
    axes.grid(axis="x", alpha=0.25)
    _save(figure, path)


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure of its own, without pyplot's list of open ones."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:
    """Write a figure so that a reader never sees half of it."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(fresh, format="png")
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise ZooError(
            f"{path} can't be written ({error.strerror}); free space or give another output folder"
        ) from None
