"""ERNIE-Layout: reading order, boxes and image (Peng et al., Findings of EMNLP 2022, 2210.06155).

Two models bear the name. The paper's has spatially disentangled attention (section 3.3): here
``ernie_layout_disentangled``, for which no weights are public. The released one, ERNIE-LayoutX
(PaddleNLP), is multilingual and has LayoutLMv2's relative biases instead:
``ernie_layout_x_base``, which loads Paddle's weights and those of the public PyTorch port.

What weights need of the release's quirks is kept: "ResNet101" is a stem and one stage; the pixels'
constants are in BGR order though the pixels are RGB; x relations are of left sides and y relations
of bottoms. Its other defects are not: sizes of boxes are clamped; questions are not told from
pages by adding -1e8 to the logits of segment 1 (answers are looked for among a page's tokens only).
"""

from __future__ import annotations

from dataclasses import replace

from zoo.datasets.windows import EncodingConfig
from zoo.models.document.config import LayoutConfig
from zoo.models.document.keys import ERNIE_PADDLE, ERNIE_PORT
from zoo.models.document.spec import document_spec
from zoo.registry import ModelSpec, register_model
from zoo.weights import Weights

LAYOUTS = (ERNIE_PORT, ERNIE_PADDLE)

WEIGHTS = {
    "ernie_layout_x_base": {
        "port": Weights(source="Norm/ERNIE-Layout-Pytorch", licence="MIT"),
    },
}


ENCODING = EncodingConfig(tokenizer="", template="document_first", image=224)


@register_model
def ernie_layout_x_base() -> ModelSpec:
    """ERNIE-LayoutX as released, multilingual: 281 M parameters, 192 M of them words."""
    config = LayoutConfig(
        vocab_size=250002,
        max_positions=514,
        pad_id=1,
        segment_types=100,
        dim=768,
        num_heads=12,
        num_layers=12,
        ffn_dim=3072,
        boxes="sum",
        attention="bias",
        vision="grid",
        pixel_mean=(103.53, 116.28, 123.675),
        pixel_std=(57.375, 57.12, 58.395),
        heads="ernie",
    )
    return document_spec(
        config,
        recipe="ernie_layout_x_base",
        layouts=LAYOUTS,
        encoding=ENCODING,
        weights=WEIGHTS["ernie_layout_x_base"],
    )


@register_model
def ernie_layout_disentangled() -> ModelSpec:
    """ERNIE-Layout with the paper's attention, base size: 282 M parameters, no public weights."""
    released = ernie_layout_x_base()
    config = replace(released.config, attention="disentangled")
    return replace(released, config=config, recipe="ernie_layout_disentangled", weights={})
