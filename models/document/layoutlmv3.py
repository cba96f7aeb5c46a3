"""LayoutLMv3: text, boxes and image patches in one model (Huang et al., arXiv 2204.08387).

RoBERTa's embeddings and positions with six concatenated box terms; 196 patches and a class token
behind the text (section 3.1); relative biases in reading order, x and y (section 3.1, as in v2),
scaled like the scores. The "cogview" softmax of the release is the plain one in exact arithmetic.

Unlike the release: an image of another size than 224 has its positions interpolated.
"""

from __future__ import annotations

from zoo.datasets.windows import EncodingConfig
from zoo.models.document.config import LayoutConfig
from zoo.models.document.keys import LAYOUTLMV3
from zoo.models.document.spec import document_spec
from zoo.registry import ModelSpec, register_model
from zoo.weights import Weights

LAYOUTS = (LAYOUTLMV3,)

WEIGHTS = {
    "layoutlmv3_base": {
        "base": Weights(source="microsoft/layoutlmv3-base", licence="CC-BY-NC-SA-4.0"),
    },
}


@register_model
def layoutlmv3_base() -> ModelSpec:
    """LayoutLMv3, the paper's base model: 125 M parameters; weights not for commercial use."""
    config = LayoutConfig(
        vocab_size=50265,
        max_positions=514,
        positions="offset",
        pad_id=1,
        segment_types=1,
        eps=1e-5,
        dim=768,
        num_heads=12,
        num_layers=12,
        ffn_dim=3072,
        boxes="concat",
        attention="bias",
        bias_scaled=True,
        vision="patch",
        heads="layoutlmv3",
    )
    return document_spec(
        config,
        recipe="layoutlmv3_base",
        layouts=LAYOUTS,
        encoding=EncodingConfig(tokenizer="", segments=False, separators=2, image=224),
        weights=WEIGHTS["layoutlmv3_base"],
    )
