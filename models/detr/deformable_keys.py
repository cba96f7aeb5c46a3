"""Other projects' names of Deformable DETR's tensors.

Checked: transformers' names against transformers 5.23 itself, by equal outputs; the release's
names against its source (fundamentalvision/Deformable-DETR, models/) and transformers' table.
No released file was at hand.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from zoo.models.detr.coco_classes import COCO_91
from zoo.models.detr.detr import TRANSFORMERS_LAYERS, TRANSFORMERS_RESNET, split_fused
from zoo.weights import KeyLayout, State

_HEAD = re.compile(r"^(decoder\.)?((?:class|bbox)_embed)\.(\d+)\.(.+)$")


def arrange_heads(state: State) -> State:
    """Every head once, and the proposals' apart.

    Others list the layers' heads as the model's and, where the decoder uses them too, once more as
    the decoder's; one of the two may be left out of a file. A model that refines no boxes lists
    its only head once a layer, or once. In two stages the last head is the proposals'.
    """
    out = {key: value for key, value in state.items() if not _HEAD.match(key)}
    heads: dict[str, dict[int, dict[str, Tensor]]] = {}
    refines = False
    for key, value in state.items():
        if found := _HEAD.match(key):
            _, name, number, rest = found.groups()
            heads.setdefault(name, {}).setdefault(int(number), {})[rest] = value
            refines |= key.startswith("decoder.bbox_embed.")
    for name, numbered in heads.items():
        order = sorted(numbered)
        if not refines and all(_equal(numbered[n], numbered[order[0]]) for n in order):
            order = order[:1]
        if "proposals.proj.weight" in out and len(order) > 1:
            last = numbered[order.pop()]
            out.update({f"proposals.{name}.{rest}": value for rest, value in last.items()})
        for n in order:
            out.update({f"{name}.{n}.{rest}": value for rest, value in numbered[n].items()})
    return out


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def _from_release(state: State) -> State:
    return arrange_heads(split_fused(state))


_Rules = tuple[tuple[str, str], ...]

_COMMON: _Rules = (
    (r"^.*\.num_batches_tracked$", ""),
    (r"^input_proj\.", "input_proj.projections."),
    (r"^level_embed$", "input_proj.level_embed"),
    (r"^enc_output\.", "proposals.proj."),
    (r"^enc_output_norm\.", "proposals.norm."),
    (r"(self_attn)\.out_proj\.", r"\1.o_proj."),
)

# fundamentalvision/Deformable-DETR; its decoder attends to the memory under the name norm1
_RELEASE: _Rules = (
    (r"^backbone\.0\.body\.", "backbone."),
    (r"^transformer\.", ""),
    *_COMMON,
    (r"^(decoder\.layers\.\d+)\.norm2\.", r"\1.first_norm."),
    (r"^(decoder\.layers\.\d+)\.norm1\.", r"\1.norm2."),
    (r"^(decoder\.layers\.\d+)\.first_norm\.", r"\1.norm1."),
)

# transformers: hub files (of version 4 names, which version 5 still writes), its names in memory
# since version 5, and both with either ResNet.
_TRANSFORMERS: _Rules = (
    (r"^model\.", ""),
    (r"^backbone\.(conv_encoder\.)?model\.(_backbone\.)?", "backbone."),
    *TRANSFORMERS_RESNET,
    *_COMMON,
    (r"^query_position_embeddings\.", "query_embed."),
    *TRANSFORMERS_LAYERS,
)

COCO_IDS = tuple(range(len(COCO_91)))

LAYOUTS = (
    KeyLayout(
        name="the Deformable DETR release's",
        marker=r"^transformer\.encoder\.layers\.0\.self_attn\.sampling_offsets\.weight$",
        rules=_RELEASE,
        fix=_from_release,
        class_names=COCO_91,
        class_ids=COCO_IDS,
    ),
    KeyLayout(
        name="transformers'",
        marker=r"^model\.encoder\.layers\.0\.self_attn\.sampling_offsets\.weight$",
        rules=_TRANSFORMERS,
        fix=arrange_heads,
    ),
)
