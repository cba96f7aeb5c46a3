"""ViLT: image and text in one transformer, without a CNN (Kim et al., ICML 2021, arXiv 2102.03334).

BERT's embeddings and patches of 32 x 32 pixels, each with the embedding of its modality, through a
ViT (section 3.1). It knows no boxes: text comes as it is read.

Unlike the release, all valid patches are used, in order (see :mod:`.vision`).
"""

from __future__ import annotations

from zoo.datasets.windows import EncodingConfig
from zoo.models.document.config import LayoutConfig
from zoo.models.document.keys import VILT
from zoo.models.document.spec import document_spec
from zoo.registry import ModelSpec, register_model
from zoo.weights import Weights

LAYOUTS = (VILT,)

WEIGHTS = {
    "vilt_b32": {
        "mlm": Weights(source="dandelin/vilt-b32-mlm", licence="Apache-2.0"),
        "vqa": Weights(
            source="dandelin/vilt-b32-finetuned-vqa", metrics={"VQAv2": 71.3}, licence="Apache-2.0"
        ),
    },
}


@register_model
def vilt_b32() -> ModelSpec:
    """ViLT-B/32, the paper's model: 111 M parameters, 40 tokens of text, images of 384 pixels."""
    config = LayoutConfig(
        task="classify",
        max_positions=40,
        dim=768,
        num_heads=12,
        num_layers=12,
        ffn_dim=3072,
        dropout=0.0,
        norm_first=True,
        boxes="none",
        attention="plain",
        vision="patch",
        patch_size=32,
        image_size=384,
        patch_norm=False,
        modalities=2,
        heads="vilt",
    )
    return document_spec(
        config,
        recipe="vilt_b32",
        layouts=LAYOUTS,
        encoding=EncodingConfig(
            length=40, overlap=8, question_length=20, image=384, image_fit="shorter"
        ),
        weights=WEIGHTS["vilt_b32"],
    )
