"""What all document models have in common as registered models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from zoo.config import to_plain
from zoo.datasets.windows import EncodingConfig
from zoo.errors import ZooError
from zoo.models.document.config import LayoutConfig
from zoo.models.document.keys import CLASS_ROWS, fit, start_from
from zoo.models.document.losses import DocumentCriterion
from zoo.models.document.model import DocumentModel
from zoo.models.document.outputs import postprocess
from zoo.models.document.predictor import DocumentReader
from zoo.registry import ModelSpec
from zoo.types import Criterion
from zoo.weights import KeyLayout, Loaded, Weights


def document_spec(
    config: LayoutConfig,
    *,
    recipe: str,
    layouts: tuple[KeyLayout, ...],
    encoding: EncodingConfig,
    weights: Mapping[str, Weights] | None = None,
) -> ModelSpec:
    """The specification of a document model; ``config.task`` chooses head, loss and prediction.

    ``encoding`` is how its published weights know pages; its recipe has the same.
    """
    return ModelSpec(
        config=config,
        build=_build,
        criterion=_criterion,
        postprocess=postprocess,
        predictor=DocumentReader,
        recipe=recipe,
        data="documents",
        start=_start,
        weights=weights or {},
        layouts=layouts,
        class_rows=CLASS_ROWS,
        has_classes=lambda config: config.task != "qa",
        adapt=_adapt,
        preprocess={"task": config.task, "encoding": to_plain(encoding)},
    )


def _build(config: LayoutConfig, num_classes: int) -> nn.Module:
    return DocumentModel(config, num_classes)


def _criterion(config: LayoutConfig, num_classes: int) -> Criterion:
    return DocumentCriterion(config.task)


def _start(
    model: DocumentModel,
    loaded: Loaded,
    *,
    class_rows: Sequence[str] = (),
    class_names: Sequence[str] = (),
    whole: bool = False,
) -> str:
    """As :func:`zoo.weights.initialise`; but parts that a text model lacks may be new."""
    if whole:
        _, note = fit(model, loaded)
        if "new " in note:
            raise ZooError(
                f"{loaded.origin} is no whole model for the task '{model.config.task}' ({note}); "
                "fine-tune from it with tools/train.py --weights"
            )
    return start_from(model, loaded, class_names)


# How transformers calls a model for a task, at the end of the architecture's name.
_ARCHITECTURES = {
    "ForQuestionAnswering": "qa",
    "ForTokenClassification": "ser",
    "ForSequenceClassification": "classify",
}


def _adapt(spec: ModelSpec, loaded: Loaded) -> ModelSpec | None:
    """``spec`` with the task and the tokenizer of a published checkpoint, if it is of its shape.

    The task is what config.json says, else what its head is for; a checkpoint without any keeps
    the spec's. The tokenizer is the checkpoint's own where it has one.
    """
    task = next((t for end, t in _ARCHITECTURES.items() if loaded.architecture.endswith(end)), "")
    answers = any(key.startswith("qa.") for key in loaded.state)
    if task in ("", "qa"):  # ViLT's question answering is a choice among classes
        task = "qa" if answers else spec.config.task
    config = replace(spec.config, task=task)
    with torch.device("meta"):
        model = DocumentModel(config, max(1, len(loaded.class_names)))
    own = {key: value.shape for key, value in model.state_dict().items()}
    fitted, _ = fit(model, loaded)
    given = {key: value.shape for key, value in fitted.state.items()}
    if own != given:
        return None
    encoding = dict(spec.preprocess["encoding"])
    if loaded.folder is not None and (loaded.folder / "tokenizer.json").is_file():
        encoding["tokenizer"] = str(loaded.folder)
    return replace(spec, config=config, preprocess={"task": task, "encoding": encoding})
