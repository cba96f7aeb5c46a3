"""Other projects' names of DAB-DETR's and DN-DETR's tensors.

Checked: transformers' names against transformers 5.23 itself, by equal outputs; the release's
names against its source (IDEA-Research/DAB-DETR, models/DAB_DETR; DN-DETR, models/DN_DAB_DETR) and
against the table of transformers' conversion script. No released file was at hand.
"""

from __future__ import annotations

from zoo.models.detr.coco_classes import COCO_91
from zoo.models.detr.detr import TRANSFORMERS_RESNET, split_fused
from zoo.weights import KeyLayout, State


def _split(state: State) -> State:
    """Fused projections apart, and anchors into centres and sizes."""
    out = split_fused(state)
    anchors = out.pop("anchors", None)
    if anchors is not None:
        out["anchors.xy"], out["anchors.wh"] = anchors[:, :2].clone(), anchors[:, 2:].clone()
    return out


_COMMON = (
    (r"^.*\.num_batches_tracked$", ""),
    (r"\.(out|output)_proj\.", ".o_proj."),
)

# IDEA-Research/DAB-DETR and DN-DETR, the same but for DN-DETR's label_enc. The decoder's box head
# is there twice, as the model's and as the decoder's.
_RELEASE = (
    *_COMMON,
    (r"^backbone\.0\.body\.", "backbone."),
    (r"^transformer\.", ""),
    (r"^bbox_embed\.", "decoder.bbox_embed."),
    (r"^refpoint_embed\.weight$", "anchors"),
    (r"^label_enc\.", "label_embed.embedding."),
)

# transformers 5.23, in memory and in files (where the tied decoder.bbox_embed is left out), with
# timm's or its own ResNet; "layer.0" to "layer.2" are a decoder layer's parts in older files.
_TRANSFORMERS = (
    *_COMMON,
    (r"^model\.", ""),
    (r"^backbone\.conv_encoder\.model\.(_backbone\.)?", "backbone."),
    *TRANSFORMERS_RESNET,
    (r"^input_projection\.", "input_proj."),
    (r"^query_refpoint_embeddings\.weight$", "anchors"),
    (r"^bbox_predictor\.", "decoder.bbox_embed."),
    (r"^decoder\.layernorm\.", "decoder.norm."),
    (r"^(decoder\.layers\.\d+)\.(self_attn|cross_attn|mlp|layer\.[012])\.", r"\1."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.cross_attn_layer_norm\.", ".norm2."),
    (r"^(encoder\..*)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(decoder\..*)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.fc([12])\.", r".linear\1."),
    (r"\.activation_fn\.", ".activation."),
    (r"\.([sc])\w+_attn_([qkv])[a-z]+_", r".\1a_\2"),
    (r"a_vproj\.", "a_v_proj."),
)

COCO_IDS = tuple(range(len(COCO_91)))

LAYOUTS = (
    KeyLayout(
        name="the DAB-DETR release's",
        marker=r"^transformer\.decoder\.ref_anchor_head\.layers\.0\.weight$",
        rules=_RELEASE,
        fix=_split,
        class_names=COCO_91,
        class_ids=COCO_IDS,
    ),
    KeyLayout(
        name="transformers'",
        marker=r"^model\.query_refpoint_embeddings\.weight$",
        rules=_TRANSFORMERS,
        fix=_split,
    ),
)
