"""Using a trained detector: pictures in, labelled boxes out. What ``zoo.load_model`` returns.

>>> model = zoo.load_model("runs/cells")
>>> for found in model.predict("picture.jpg"):
...     print(found.label, found.score, found.box)
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeGuard, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from zoo.datasets import images as pictures
from zoo.datasets.panoptic_eval import Segmentation
from zoo.datasets.transforms import AugmentConfig, collate_detection, detection_sample, plan_val
from zoo.errors import ZooError, nearest
from zoo.models.detr.panoptic_postprocess import PanopticPostprocess, Segments
from zoo.registry import ModelSpec
from zoo.types import Batch, Detections, Postprocess, Sample, Size

Source = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8] | Tensor

POOL = 8  # batches read ahead, to find pictures of one size that can share a batch

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class Detection:
    """One object: its class, the model's confidence 0..1, and where it is.

    ``box`` is (x1, y1, x2, y2) in pixels of the picture, upright by its EXIF orientation, inside
    it. ``class_id`` is the class's id in the data that the model was trained on, ``index`` its
    place among the model's classes, ``query`` the object query that spoke (-1 where unknown).
    ``mask`` is what of the picture the object covers, at the picture's own size, in COCO's
    run-length encoding (``size`` and ``counts``, JSON's types); None of a model without masks.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    class_id: int
    index: int
    query: int
    mask: dict[str, Any] | None = field(default=None, hash=False, repr=False)

    def mask_array(self) -> NDArray[np.bool_]:
        """The mask as bool [H, W], True where the object is; :class:`ZooError` where none is."""
        if self.mask is None:
            raise ZooError(
                f"the detection of {self.label} has no mask, as its model finds boxes only; use a "
                "model whose name begins with panoptic"
            )
        from pycocotools import mask as rle

        return np.asarray(rle.decode(self.mask)).astype(bool)


@dataclass(frozen=True)
class Seen:
    """What a detector saw in one picture: its (height, width), and the objects, best first.

    ``panoptic`` is the whole picture in segments, whose labels are class indices, with a score
    each in ``panoptic_scores``; None of a model without masks, and left out where two are compared.
    """

    size: Size
    detections: list[Detection]
    panoptic: Segmentation | None = field(default=None, compare=False)
    panoptic_scores: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Where a detector looked: weights over the cells of its feature map, each map of sum 1.

    ``detections`` [M, h, w]: the last decoder layer's cross attention, averaged over heads, of
    the queries that found M objects. ``points`` [P, h, w]: the last encoder layer's self
    attention of the cells that P chosen points lie in. Both cover the whole picture.
    """

    detections: Tensor
    points: Tensor


class Detector:
    """A detection model with all that is needed to use it on pictures.

    ``class_names`` and ``class_ids`` are the model's classes in order; ``preprocess`` holds
    ``val_size`` and ``val_max_size``, the sizes that the model was evaluated at (DETR's for COCO
    where they are missing), and ``square`` where it saw squares. The model is in evaluation mode
    on ``device``; ``autocast`` is the dtype of mixed precision, or None.

    Of a panoptic model (``has_masks``) detections have masks, and :meth:`stream` also gives the
    segments of every picture. ``stuff`` are its class indices of stuff, by its config or else by
    ``preprocess``; None where neither says, and then segments of one class stay apart.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        *,
        class_names: Sequence[str],
        class_ids: Sequence[int],
        preprocess: Mapping[str, Any],
        device: torch.device,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model, self.spec = model, spec
        self.class_names, self.class_ids = tuple(class_names), tuple(class_ids)
        self.device, self.autocast = device, autocast
        self.postprocess: Postprocess = spec.postprocess(spec.config)
        self.has_masks = isinstance(self.postprocess, PanopticPostprocess)
        stuff = getattr(spec.config, "stuff", ()) or preprocess.get("stuff")
        self.stuff: tuple[int, ...] | None = None if stuff is None else tuple(stuff)
        names = ("val_size", "val_max_size", "square", "multiple")
        known = {k: preprocess[k] for k in names if k in preprocess}
        self.resizing = AugmentConfig(**known)

    def data_config(self, config: Any) -> Any:
        """A data source's settings, with this model's preprocessing where the source has any."""
        if "augment" not in {f.name for f in fields(config)}:
            return config
        sizes = self.resizing
        like = {"val_size": sizes.val_size, "val_max_size": sizes.val_max_size}
        same = {"square": sizes.square, "multiple": sizes.multiple}
        augment = replace(config.augment, **like, **same)
        return replace(config, augment=augment)

    # -- predicting ----------------------------------------------------------------------------

    @overload
    def predict(
        self,
        images: Source,
        *,
        threshold: float = ...,
        classes: Sequence[str] | None = ...,
        batch_size: int = ...,
        max_detections: int = ...,
    ) -> list[Detection]: ...

    @overload
    def predict(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        threshold: float = ...,
        classes: Sequence[str] | None = ...,
        batch_size: int = ...,
        max_detections: int = ...,
    ) -> list[list[Detection]]: ...

    def predict(
        self,
        images: Source | list[Any] | tuple[Any, ...],
        *,
        threshold: float = 0.5,
        classes: Sequence[str] | None = None,
        batch_size: int = 8,
        max_detections: int = 100,
    ) -> list[Detection] | list[list[Detection]]:
        """The objects in a picture, best first; for a list of pictures, a list for each.

        A picture is a path, a file's content (bytes), a PIL image, a uint8 array [H, W, 3] or
        [H, W], or a uint8 tensor [3, H, W] or [1, H, W]. Objects of a score below ``threshold``,
        or of none of ``classes`` (names), are left out; ``max_detections`` of a picture remain.
        Masks, where the model has them, are made for objects above the threshold only.

        Raises :class:`ZooError` for an unknown class or a picture that can't be read.
        """
        several = isinstance(images, list | tuple)
        sources: Sequence[Source] = images if isinstance(images, list | tuple) else [images]
        found = []
        for result in self.stream(
            sources,
            threshold=threshold,
            classes=classes,
            batch_size=batch_size,
            max_detections=max_detections,
        ):
            if isinstance(result, ZooError):
                raise result
            found.append(result.detections)
        return found if several else found[0]

    def stream(
        self,
        sources: Iterable[Source],
        *,
        threshold: float = 0.5,
        classes: Sequence[str] | None = None,
        batch_size: int = 8,
        max_detections: int = 100,
    ) -> Iterator[Seen | ZooError]:
        """As :meth:`predict`, for any number of pictures: one result at a time, in their order.

        Pictures are read by threads while the model works, some batches ahead and no more. The
        result of a picture that can't be read is the :class:`ZooError` that says why. Segments of
        a panoptic model are of the whole picture, whatever ``threshold`` and ``classes`` are.
        """
        wanted = self._wanted(classes)
        if not 0 <= threshold <= 1:
            raise ZooError(f"a threshold of {threshold} is not in 0..1")
        if batch_size < 1 or max_detections < 1:
            raise ZooError("batch_size and max_detections have to be 1 or more")
        postprocess = self._postprocess_for(max_detections, threshold)
        samples = prefetch(self._try_prepare, sources, self._threads(), 2 * batch_size)
        while group := list(itertools.islice(samples, POOL * batch_size)):
            results: dict[int, Seen | ZooError] = {}
            places = []
            for place, sample in enumerate(group):
                if isinstance(sample, ZooError):
                    results[place] = sample
                else:
                    places.append((sample.meta.size, place))
            # Only pictures of one size share a batch: without padding, what is seen in a picture
            # does not depend on its neighbours (DETR's convolutions look over a padded edge).
            batches: dict[int, list[int]] = {}  # of each place, those that share its batch
            for _, same in itertools.groupby(sorted(places), key=lambda sized: sized[0]):
                while part := [place for _, place in itertools.islice(same, batch_size)]:
                    batches |= dict.fromkeys(part, part)
            # A batch is seen when its first result is due, so that few wait: with segments, each
            # holds a map of the picture's own size.
            for place in range(len(group)):
                if place not in results:
                    part = batches[place]
                    batch = collate_detection([s for s in (group[p] for p in part) if _good(s)])
                    raw = postprocess(self._forward(batch), batch.metas)
                    for found_at, found, meta in zip(part, raw, batch.metas, strict=True):
                        results[found_at] = self._seen(found, meta.orig_size, threshold, wanted)
                yield results.pop(place)

    def _forward(self, batch: Batch) -> Mapping[str, Any]:
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(self.device)
        with torch.inference_mode(), self._mixed():
            return self.model(**batch.inputs)

    def _mixed(self) -> torch.autocast:
        dtype = self.autocast or torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.autocast is not None)

    def _threads(self) -> int:
        """Reading threads: a CPU is busy with the model, beside a GPU most are idle."""
        count = os.cpu_count() or 1
        if self.device.type == "cpu":
            return 1 if count < 8 else 2
        return max(1, min(8, count - 1))

    def _postprocess_for(self, max_detections: int, threshold: float) -> Postprocess:
        """The model's, for so many detections, without the masks of those that are left out."""
        config = self.spec.config
        asked: dict[str, Any] = {"max_detections": max_detections}
        if self.has_masks:
            asked["instance_threshold"] = max(config.instance_threshold, threshold)
        changed = {k: v for k, v in asked.items() if getattr(config, k, v) != v}
        return self.spec.postprocess(replace(config, **changed)) if changed else self.postprocess

    def _wanted(self, classes: Sequence[str] | None) -> Tensor | None:
        """Which class indices to keep, [K] bool."""
        if classes is None:
            return None
        places = {name.casefold(): n for n, name in enumerate(self.class_names)}
        wanted = torch.zeros(len(self.class_names), dtype=torch.bool)
        for name in classes:
            if name.casefold() not in places:
                raise ZooError(
                    f"the model knows no class '{name}'; {nearest(name, self.class_names)}"
                )
            wanted[places[name.casefold()]] = True
        return wanted

    def _seen(self, found: Detections, size: Size, threshold: float, wanted: Tensor | None) -> Seen:
        chosen = self._selected(found, size, threshold, wanted)
        if not isinstance(found, Segments):
            return Seen(size, chosen)
        return Seen(size, chosen, found.panoptic, found.panoptic_scores)

    def _selected(
        self, found: Detections, size: Size, threshold: float, wanted: Tensor | None
    ) -> list[Detection]:
        scores, labels = found.scores.float().cpu(), found.labels.cpu()
        kept = scores >= threshold
        if wanted is not None:
            kept &= wanted[labels]
        height, width = size
        limit = torch.tensor([width, height, width, height])
        boxes = found.boxes.float().cpu().clamp(min=0).minimum(limit)
        queries = torch.full_like(labels, -1) if found.queries is None else found.queries.cpu()
        masks = found.masks if isinstance(found, Segments) else [None] * len(labels)
        return [
            Detection(
                label=self.class_names[index],
                score=score,
                box=(x1, y1, x2, y2),
                class_id=self.class_ids[index],
                index=index,
                query=query,
                mask=mask,
            )
            for index, score, (x1, y1, x2, y2), query, mask in zip(
                labels[kept].tolist(),
                scores[kept].tolist(),
                boxes[kept].tolist(),
                queries[kept].tolist(),
                itertools.compress(masks, kept.tolist()),
                strict=True,
            )
        ]

    # -- reading -------------------------------------------------------------------------------

    def _try_prepare(self, source: Source) -> Sample | ZooError:
        try:
            return self.prepare(source)
        except ZooError as error:
            return error

    def prepare(self, source: Source) -> Sample:
        """A picture as the model's input: resized as in evaluation, uint8, without a target."""
        image = read_picture(source)
        frame = (image.shape[1], image.shape[2])
        plan = plan_val([frame], self.resizing)[0]
        nothing = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64)
        path = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
        extra = {} if self.stuff is None else {"stuff": self.stuff}  # as data sources say it
        return detection_sample(
            image, *nothing, plan, frame=frame, image_id=0, path=path, extra=extra
        )

    # -- looking inside ------------------------------------------------------------------------

    def attention(
        self,
        image: Source,
        detections: Sequence[Detection] = (),
        *,
        points: Sequence[tuple[float, float]] = (),
    ) -> AttentionMaps:
        """Where the model looked for ``detections`` (of this picture), and from ``points``.

        Points are (x, y) in pixels of the picture. The model runs once more, on this picture
        alone; the weights are computed for what is asked and nothing else.

        Raises :class:`ZooError` where the model has no such attention, or a point is outside.
        """
        sample = self.prepare(image)
        height, width = sample.meta.orig_size
        for x, y in points:
            if not (0 <= x <= width and 0 <= y <= height):
                raise ZooError(f"point ({x}, {y}) is outside the {width} x {height} picture")
        queries = [found.query for found in detections]
        if queries and min(queries) < 0:
            raise ZooError("these detections don't tell their query; use those of predict()")
        model = getattr(self.model, "detr", self.model)  # or the DETR that it is made of
        cross = _last_attention(model, "decoder", "cross_attn")
        own = _last_attention(model, "encoder", "self_attn")
        calls: dict[str, tuple[Any, ...]] = {}
        grids: list[tuple[int, int]] = []

        def remember(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                calls[name] = (*args, *kwargs.values())

            return hook

        def note_grids(_: nn.Module, __: Any, levels: Sequence[tuple[Tensor, Tensor]]) -> None:
            grids.extend((f.shape[-2], f.shape[-1]) for f, _mask in levels)

        hooks = [
            cross.register_forward_pre_hook(remember("cross"), with_kwargs=True),
            own.register_forward_pre_hook(remember("own"), with_kwargs=True),
            model.get_submodule("backbone").register_forward_hook(note_grids),
        ]
        try:
            self._forward(collate_detection([sample]))
        finally:
            for hook in hooks:
                hook.remove()
        cells = calls["own"][1].shape[1]
        grid = next(((h, w) for h, w in reversed(grids) if h * w == cells), None)
        if grid is None:
            raise ZooError(f"the model attends to {cells} tokens, which are no map of the picture")
        h, w = grid
        chosen = [
            min(int(y / height * h), h - 1) * w + min(int(x / width * w), w - 1) for x, y in points
        ]
        return AttentionMaps(
            detections=self._rows(cross, calls["cross"], queries).reshape(-1, h, w),
            points=self._rows(own, calls["own"], chosen).reshape(-1, h, w),
        )

    def _rows(self, attention: Any, call: tuple[Any, ...], rows: Sequence[int]) -> Tensor:
        """Weights of the chosen queries of one recorded call, averaged over heads, [R, S]."""
        query, key, _value, *rest = call
        mask: Tensor | None = rest[0] if rest else None
        chosen = torch.tensor(rows, dtype=torch.int64, device=query.device)
        if mask is not None and mask.shape[-2] != 1:
            mask = mask[..., chosen, :]
        with torch.inference_mode(), self._mixed():
            weights = attention.weights(query[:, chosen], key, mask)
        return weights[0].float().mean(0).cpu()


def _last_attention(model: nn.Module, part: str, name: str) -> nn.Module:
    """The last attention module called ``name`` in the model's ``part``.

    Such a module is called with (query, key, value, mask), and its ``weights(query, key, mask)``
    are what it would attend with.
    """
    found = None
    for path, module in model.named_modules():
        if path.startswith(part + ".") and path.endswith("." + name) and hasattr(module, "weights"):
            found = module
    if found is None:
        raise ZooError(
            f"model {type(model).__name__} has no {name} in its {part} to look at: RT-DETR and the "
            "deformable members sample points and have no maps of attention; take detr_r50 or "
            "dn_detr_nano, for example"
        )
    return found


def _good(sample: Sample | ZooError) -> TypeGuard[Sample]:
    return isinstance(sample, Sample)


def read_picture(source: Source) -> Tensor:
    """Any accepted kind of picture as uint8 RGB [3, H, W]; see :meth:`Detector.predict`."""
    if isinstance(source, str | os.PathLike | bytes):
        return pictures.read_image(source)
    if isinstance(source, Image.Image):
        upright = pictures.as_rgb(ImageOps.exif_transpose(source))
        return torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    if isinstance(source, np.ndarray):
        if source.dtype == np.uint8 and source.ndim == 2:
            return torch.from_numpy(source.copy()).expand(3, -1, -1)
        if source.dtype == np.uint8 and source.ndim == 3 and source.shape[2] == 3:
            return torch.from_numpy(source.copy()).permute(2, 0, 1)
        kind = f"an array of {source.dtype} {list(source.shape)}"
    elif isinstance(source, Tensor):
        if source.dtype == torch.uint8 and source.ndim == 3 and source.shape[0] in (1, 3):
            return source.cpu().expand(3, -1, -1)
        kind = f"a tensor of {source.dtype} {list(source.shape)}"
    else:
        kind = f"a {type(source).__name__}"
    raise ZooError(
        f"{kind} is not a picture; give a path, bytes, a PIL image, a uint8 array [H, W, 3] or a "
        "uint8 tensor [3, H, W]"
    )


def prefetch(
    work: Callable[[In], Out], items: Iterable[In], threads: int, ahead: int
) -> Iterator[Out]:
    """``map(work, items)`` by threads that are at most ``ahead`` results before the consumer.

    Items are drawn as they are needed. An exception of ``work`` comes out in its place.
    """
    waiting: deque[Future[Out]] = deque()
    source = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="reader") as pool:
        try:
            for item in itertools.islice(source, max(1, ahead)):
                waiting.append(pool.submit(work, item))
            while waiting:
                done = waiting.popleft().result()
                for item in itertools.islice(source, 1):
                    waiting.append(pool.submit(work, item))
                yield done
        finally:
            for future in waiting:
                future.cancel()
