"""LayoutLM: a BERT that knows where each word stands (Xu et al., KDD 2020, arXiv 1912.13318).

The six terms of a word's box are added to its embedding (section 2.2, with width and height as in
the release). The paper's image embeddings, used in fine-tuning only, are in no released checkpoint.
"""

from __future__ import annotations

from zoo.datasets.windows import EncodingConfig
from zoo.models.document.config import LayoutConfig
from zoo.models.document.keys import BERT, LAYOUTLM
from zoo.models.document.spec import document_spec
from zoo.registry import ModelSpec, register_model
from zoo.weights import Weights

LAYOUTS = (LAYOUTLM, BERT)

WEIGHTS = {
    "layoutlm_base": {
        "base": Weights(source="microsoft/layoutlm-base-uncased", licence="MIT"),
    },
    "layoutlm_docqa": {
        "docvqa": Weights(source="impira/layoutlm-document-qa", licence="MIT"),
    },
}


@register_model
def layoutlm_base() -> ModelSpec:
    """LayoutLM, the paper's base model: 112 M parameters, lower-case English."""
    config = LayoutConfig(
        dim=768, num_heads=12, num_layers=12, ffn_dim=3072, boxes="sum", attention="plain"
    )
    return document_spec(
        config,
        recipe="layoutlm_base",
        layouts=LAYOUTS,
        encoding=EncodingConfig(sep_box=1000),
        weights=WEIGHTS["layoutlm_base"],
    )


@register_model
def layoutlm_docqa() -> ModelSpec:
    """LayoutLM with RoBERTa's vocabulary, the shape of impira's model that answers questions."""
    config = LayoutConfig(
        vocab_size=50265,
        max_positions=514,
        pad_id=1,
        segment_types=1,
        eps=1e-5,
        dim=768,
        num_heads=12,
        num_layers=12,
        ffn_dim=3072,
        boxes="sum",
        attention="plain",
    )
    return document_spec(
        config,
        recipe="layoutlm_docqa",
        layouts=LAYOUTS,
        encoding=EncodingConfig(tokenizer="", sep_box=1000, segments=False, separators=2),
        weights=WEIGHTS["layoutlm_docqa"],
    )
