"""What flows through the house: samples, batches, losses, and the protocols between the parts.

The way of the data, the same for pictures and documents::

    file -> Sample(inputs, target, meta) -> transforms -> Collate(rules) -> Batch
         -> model(**batch.inputs) -> outputs
         -> training:    criterion(outputs, targets) -> Losses
         -> evaluation:  postprocess(outputs, metas) -> predictions -> evaluator

**Input keys are the parameter names of the model's forward.** That one rule keeps the engine free
of branches by domain.

Two conventions hold everywhere:

* masks are **True where valid** (as in SDPA and transformers; the DETR release is the opposite);
* boxes are normalised **cxcywh** in 0..1 inside models and criteria, pixel **xyxy** in
  predictions, and integer **xyxy 0..1000** for the words of a page (``bbox``). They are converted
  by :func:`torchvision.ops.box_convert` only. Normalised means relative to the image *without*
  the padding of its batch.

Letters used in shapes:

====== =================================================================
``B``  images (or rows) in a batch
``C``  channels; ``K`` classes
``H``  height, ``W`` width, of an image or a feature map
``L``  tokens in a sequence, ``S`` tokens in a memory (often H * W)
``Q``  object queries
``N``  layers; ``M`` target boxes of one image, ``T`` of a whole batch
``D``  embedding size; ``A`` attention heads
====== =================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

Target = dict[str, Tensor]
Size = tuple[int, int]  # (height, width), in pixels


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What is known of a sample besides tensors; it stays on the host.

    ``size`` is the image as the model sees it, before the batch is padded; ``orig_size`` is the
    image in its file (after EXIF orientation). ``extra`` is for whatever a source's own
    postprocessing or evaluator needs.
    """

    image_id: int
    orig_size: Size
    size: Size
    path: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Sample:
    """One example: model inputs by parameter name, its target and what is known of it."""

    inputs: dict[str, Tensor]
    target: Target
    meta: Meta


@dataclass
class Batch:
    """Collated samples: padded inputs, one target and one meta a sample."""

    inputs: dict[str, Tensor]
    targets: list[Target]
    metas: list[Meta]

    def __len__(self) -> int:
        return len(self.metas)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """A batch whose tensors live on ``device``; metas stay on the host."""

        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.to(device, non_blocking=non_blocking) for k, v in tensors.items()}

        return Batch(move(self.inputs), [move(t) for t in self.targets], self.metas)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; called by the DataLoader."""
        return Batch(
            {k: v.pin_memory() for k, v in self.inputs.items()},
            [{k: v.pin_memory() for k, v in t.items()} for t in self.targets],
            self.metas,
        )


class Losses(NamedTuple):
    """``total`` is what is differentiated; ``terms`` are detached, unweighted, 0-d, for the log."""

    total: Tensor
    terms: dict[str, Tensor]


@dataclass
class Detections:
    """Objects found in one image, best first.

    ``boxes`` [M, 4] float, xyxy in pixels of the original image; ``scores`` [M] in 0..1;
    ``labels`` [M] contiguous class indices, 0..K-1; ``queries`` [M] the query that spoke (for
    attention maps), or None.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    queries: Tensor | None = None


class Criterion(Protocol):
    """Outputs and targets to losses. Normalisers are averaged over ranks by the criterion."""

    def __call__(self, outputs: Mapping[str, Any], targets: Sequence[Target]) -> Losses: ...


class Postprocess(Protocol):
    """Outputs to one prediction a sample, in the terms of the original file."""

    def __call__(self, outputs: Mapping[str, Any], metas: Sequence[Meta]) -> list[Any]: ...


class Evaluator(Protocol):
    """Scores predictions: fed batch by batch, gathered over ranks once, computed at the end.

    ``report`` is for a person: it writes what there is to see besides the figures into a folder,
    and returns the figures as text with the names of the files.
    """

    def update(self, predictions: Sequence[Any], batch: Batch) -> None: ...

    def gather(self) -> None: ...

    def compute(self) -> Mapping[str, float]: ...

    def report(self, out: Path) -> tuple[str, Sequence[str]]: ...


@runtime_checkable
class SampleSet(Protocol):
    """A map-style data set whose every draw is a function of (seed, epoch, index) alone.

    So the order of loading, the number of workers and a resumed run change nothing.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentation that the following draws use."""

    def sizes(self) -> Sequence[Size]:
        """(height, width) that each sample will have in the current epoch, without reading it."""


@runtime_checkable
class FollowsProgress(Protocol):
    """A sample set whose samples depend on how far the run is, besides (seed, epoch, index)."""

    def set_progress(self, progress: float) -> None:
        """Say which part of the run, 0..1, is over at the start of the current epoch."""


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A training and an evaluation set, and how they are collated and scored.

    ``class_ids`` are the data set's own category ids in the order of ``class_names``: index in
    the model <-> id in files <-> name. ``better`` names the metric that "best" means.
    ``preprocess`` is what prediction has to repeat of the evaluation's preprocessing, and what else
    it has to know of the data (``stuff``: which classes are); plain JSON values, which travel in
    the checkpoint. ``files`` go along with it under the names given, and
    ``checkpoint:NAME`` stands for them in ``preprocess``. ``overfit(n)`` is a source whose two
    sets are the same first n training samples without augmentation: the self-check of a new data
    set.
    """

    name: str
    train: SampleSet | None
    val: SampleSet | None
    collate: Callable[[Sequence[Sample]], Batch]
    evaluator: Callable[[], Evaluator]
    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    better: str = "AP"
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    overfit: Callable[[int], DataSource] | None = None

    def __post_init__(self) -> None:
        if len(self.class_names) != len(self.class_ids):
            raise ValueError(f"{self.name}: one id a class name is needed")


class BatchIndices(Protocol):
    """Yields lists of sample indices; a batch sampler whose epoch can be set."""

    def __iter__(self) -> Iterator[list[int]]: ...

    def __len__(self) -> int: ...
