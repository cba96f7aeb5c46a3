"""``load_model``: from a run folder, a checkpoint, a hub id or a model name to something usable."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo import weights as checkpoints
from zoo.config import from_plain
from zoo.distributed import init
from zoo.engine import has_bfloat16
from zoo.errors import ZooError
from zoo.models.layers.packed import pack_convolutions
from zoo.models.layers.transformer import DecoderLayer, EncoderLayer
from zoo.registry import (
    ModelSpec,
    list_models,
    model_aliases,
    model_spec,
    without_pretrained,
)
from zoo.weights import Loaded

log = logging.getLogger("zoo")


def load_model(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    fast: bool = True,
) -> Any:
    """A trained model that is ready to use: the predictor of its kind.

    ``source`` is a run folder, a checkpoint (of ours, or in a published layout: file, folder, URL
    or hub id; the variant is found from its tensors), or the name of a registered model whose
    ``weights`` are given or published. With ``fast``, frozen norms are folded into their
    convolutions, bfloat16 is used where the hardware has it, and on a CPU convolutions keep their
    weights as it computes with them; without, everything is float32 as in training.

    Raises :class:`ZooError` where there is no such model or its weights don't fit.
    """
    chosen = init(device)
    spec, loaded = find(source, weights)
    model = restore(spec, loaded)
    half = fast and has_bfloat16(chosen)
    if fast:
        prepare(model, half=half)
    model.to(chosen).to(memory_format=torch.channels_last)
    if fast and chosen.type == "cpu":
        pack_convolutions(model)
    return spec.predictor(
        model.eval(),
        spec,
        class_names=loaded.class_names,
        class_ids=loaded.class_ids,
        preprocess=loaded.card.preprocess if loaded.card else spec.preprocess,
        device=chosen,
        autocast=torch.bfloat16 if half else None,
    )


def find(source: str | Path, weights: str | Path | None = None) -> tuple[ModelSpec, Loaded]:
    """The specification and the weights that ``source`` stands for; see :func:`load_model`."""
    name = str(source)
    if name in list_models() or name in model_aliases():
        spec = model_spec(name)
        if weights is None and not spec.weights:
            raise ZooError(
                f"model {spec.name} has no published weights; train it, or pass weights="
            )
        if weights is None:
            weights = next(iter(spec.weights.values())).source
        return _checked(spec, checkpoints.load(weights, spec.layouts))
    path = checkpoints.locate(name)
    own = checkpoints.own_checkpoint(path)
    if own is not None:
        loaded = checkpoints.load(own)
        assert loaded.card is not None
        return _checked(model_spec(loaded.card.name), loaded)
    return _recognise(path)


def _checked(spec: ModelSpec, loaded: Loaded) -> tuple[ModelSpec, Loaded]:
    """The spec with the config that the checkpoint was saved with."""
    from dataclasses import replace

    if loaded.card is not None:
        saved = model_spec(loaded.card.name)
        config = from_plain(saved.config, dict(loaded.card.config), f"{loaded.origin}: config.")
        return replace(saved, config=config), loaded
    # What does not fit is told when it is loaded.
    return spec.adapt(spec, loaded) or spec, loaded


def _recognise(path: Path) -> tuple[ModelSpec, Loaded]:
    """Find the registered variant that a foreign checkpoint fits, from its keys and shapes."""
    tried = []
    for name in list_models():
        spec = model_spec(name)
        if not spec.layouts:
            continue
        loaded = checkpoints.load(path, spec.layouts)
        if loaded.layout == "unknown":
            continue
        tried.append(name)
        if (adapted := spec.adapt(spec, loaded)) is not None:
            return adapted, loaded
    what = f"the shapes of none of {', '.join(tried)}" if tried else "no known layout of names"
    raise ZooError(f"{path} has {what}; pass the model's name and weights={path}")


def restore(spec: ModelSpec, loaded: Loaded) -> nn.Module:
    """The model that a checkpoint holds, with the checkpoint's own classes."""
    if not loaded.class_names and spec.has_classes(spec.config):
        raise ZooError(
            f"{loaded.origin} does not say its classes; fine-tune from it with tools/train.py, or "
            "put an id2label map into a config.json beside it"
        )
    model = spec.build(without_pretrained(spec.config), len(loaded.class_names))
    spec.start(
        model, loaded, class_rows=spec.class_rows, class_names=loaded.class_names, whole=True
    )
    return model


def prepare(model: nn.Module, *, half: bool = False) -> nn.Module:
    """Fold what can be folded for inference, in place; outputs stay equal to rounding.

    With ``half``, for a model that is run under bfloat16's autocast, convolutions and the
    transformer layers' matrices become bfloat16 once, in place of in every call.
    """
    for module in list(model.modules()):
        fuse = getattr(module, "fuse", None)
        if callable(fuse):
            fuse()
    if half:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.to(torch.bfloat16)
            elif isinstance(module, EncoderLayer | DecoderLayer):
                for linear in module.modules():
                    if isinstance(linear, nn.Linear):
                        linear.to(torch.bfloat16)
    return model.eval()
