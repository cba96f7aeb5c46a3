"""Other projects' names of RT-DETR's tensors, version 1 and 2, and their names of COCO's classes.

Checked: transformers' names against transformers 5.23 itself, by equal outputs, and those of its
older files against its own table of renamings; the release's names against its source
(lyuwenyu/RT-DETR, rtdetr_pytorch and rtdetrv2_pytorch) and the tables of transformers' conversion
scripts. No published file was at hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from zoo.models.detr.coco_classes import COCO_80
from zoo.models.detr.detr import split_fused
from zoo.models.layers.resnet_vd import from_release
from zoo.weights import KeyLayout, Loaded, State, Weights, initialise

COCO_NAMES, COCO_IDS = tuple(COCO_80.values()), tuple(COCO_80)

# transformers' files spell six of COCO's classes as PASCAL VOC does.
_SPELLED = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def coco_classes(
    names: Sequence[str], ids: Sequence[int]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """A checkpoint's classes; where they are COCO's 80, as COCO spells and numbers them."""
    spelled = tuple(_SPELLED.get(name, name) for name in names)
    return (COCO_NAMES, COCO_IDS) if spelled == COCO_NAMES else (tuple(names), tuple(ids))


def start(model: nn.Module, loaded: Loaded, **kwargs: Any) -> str:
    """As :func:`zoo.weights.initialise`, with COCO's classes under COCO's names.

    Counts of batches that the model has and the checkpoint lacks begin at 0: published norms are
    frozen ones, and may be trained on (``model.norm=batch``).
    """
    names, ids = coco_classes(loaded.class_names, loaded.class_ids)
    if kwargs.get("whole"):
        kwargs["class_names"] = names
    counts = {k: v for k, v in model.state_dict().items() if k.endswith(".num_batches_tracked")}
    state = {**{k: torch.zeros_like(v) for k, v in counts.items()}, **loaded.state}
    return initialise(
        model, replace(loaded, state=state, class_names=names, class_ids=ids), **kwargs
    )


def published(hubs: Mapping[str, tuple[str, float]]) -> Mapping[str, Weights]:
    """transformers' conversions of the release, from their names on the hub and their AP.

    AP is the release's READMEs', on val2017. "objects365" was trained on Objects365, then COCO.
    """
    coco: dict[str, Any] = {"class_names": COCO_NAMES, "class_ids": COCO_IDS}
    coco["licence"] = "Apache-2.0"
    return {
        name: Weights(source=f"PekingU/{hub}", metrics={"AP": ap}, **coco)
        for name, (hub, ap) in hubs.items()
    }


def _completed(state: State) -> State:
    """One of each head, and a count beside every statistic of the parts whose norms are trained.

    Heads that are the model's and, once more, the decoder's are taken from the decoder. A count
    of batches says nothing where a norm's momentum is given; published files may lack it.
    """
    out: State = {}
    for key, value in state.items():
        if not key.startswith("top."):
            out[key] = value
    for key, value in state.items():
        if key.startswith("top."):
            out.setdefault("decoder." + key.removeprefix("top."), value)
    for key in state:
        if key.endswith(".norm.running_var") and not key.startswith("backbone."):
            counter = key.removesuffix("running_var") + "num_batches_tracked"
            out.setdefault(counter, torch.tensor(0))
    return out


def _from_release(state: State) -> State:
    backbone = {k.removeprefix("backbone."): v for k, v in state.items() if _is_backbone(k)}
    rest = {k: v for k, v in state.items() if not _is_backbone(k)}
    renamed = {f"backbone.{k}": v for k, v in from_release(backbone).items()}
    return _completed({**renamed, **split_fused(rest)})


def _is_backbone(key: str) -> bool:
    return re.match(r"backbone\.", key) is not None


# Frozen norms count nothing; anchors and shares of points follow from the picture and the config.
_COMMON = (
    (r"^backbone\..*\.num_batches_tracked$", ""),
    (r"^(.*\.)?(anchors|valid_mask|n_points_scale|num_points_scale)$", ""),
    (r"\.out_proj\.", ".o_proj."),
)

_RELEASE = (
    *_COMMON,
    # Version 1's, a plain sequence, and version 2's.
    (r"^encoder\.input_proj\.(\d+)\.0\.", r"encoder.input_proj.\1.conv."),
    (r"^encoder\.input_proj\.(\d+)\.1\.", r"encoder.input_proj.\1.norm."),
    (r"^decoder\.enc_output\.(0|proj)\.", "selection.proj."),
    (r"^decoder\.enc_output\.(1|norm)\.", "selection.norm."),
    (r"^encoder\.encoder\.0\.layers\.", "encoder.layers."),
    (r"^decoder\.input_proj\.", "memory_proj."),
    (r"^decoder\.decoder\.layers\.", "decoder.layers."),
    (r"^decoder\.enc_score_head\.", "selection.class_embed."),
    (r"^decoder\.enc_bbox_head\.", "selection.bbox_embed."),
    (r"^decoder\.dec_score_head\.", "decoder.class_embed."),
    (r"^decoder\.dec_bbox_head\.", "decoder.bbox_embed."),
    (r"^decoder\.denoising_class_embed\.", "label_embed."),
)

# transformers 5.23, in memory and in files; its older files have "encoder.encoder" for "aifi",
# "out_proj" for "o_proj" and no "mlp".
_TRANSFORMERS = (
    (r"^model\.", ""),
    (r"^backbone\.model\.", "backbone."),
    *_COMMON,
    (r"^backbone\.embedder\.embedder\.", "backbone.stem."),
    (r"^backbone\.encoder\.stages\.(\d+)\.layers\.", r"backbone.stages.\1."),
    (r"^(backbone\.stages\.\d+\.\d+)\.layer\.", r"\1.convs."),
    (r"^(backbone\..*\.shortcut)\.1\.", r"\1."),
    (r"^(backbone\..*)\.convolution\.", r"\1.conv."),
    (r"^(backbone\..*)\.normalization\.", r"\1.norm."),
    (r"^encoder_input_proj\.", "encoder.input_proj."),
    (r"^decoder_input_proj\.", "memory_proj."),
    (r"^((?:encoder\.input|memory)_proj\.\d+)\.0\.", r"\1.conv."),
    (r"^((?:encoder\.input|memory)_proj\.\d+)\.1\.", r"\1.norm."),
    (r"^encoder\.(?:encoder|aifi)\.0\.layers\.", "encoder.layers."),
    (r"^enc_output\.0\.", "selection.proj."),
    (r"^enc_output\.1\.", "selection.norm."),
    (r"^enc_score_head\.", "selection.class_embed."),
    (r"^enc_bbox_head\.", "selection.bbox_embed."),
    (r"^denoising_class_embed\.", "label_embed."),
    (r"^(class_embed|bbox_embed)\.", r"top.\1."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.(?:mlp\.)?fc([12])\.", r".linear\1."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"^(encoder\..*)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(decoder\..*)\.final_layer_norm\.", r"\1.norm3."),
)

LAYOUTS = (
    KeyLayout(
        name="the RT-DETR release's",
        marker=r"^decoder\.dec_score_head\.0\.weight$",
        rules=_RELEASE,
        fix=_from_release,
        class_names=COCO_NAMES,
        class_ids=COCO_IDS,
    ),
    KeyLayout(
        name="transformers'",
        marker=r"^model\.enc_score_head\.weight$",
        rules=_TRANSFORMERS,
        fix=_completed,
    ),
)
