"""A small document encoder of our own: MiniLM's shape with boxes and relative biases.

Everything that MiniLM (Wang et al., arXiv 2002.10957) lacks begins at zero, so that with its
weights, or any BERT's of the shape, the model starts as exactly that text model.
"""

from __future__ import annotations

from zoo.datasets.windows import EncodingConfig
from zoo.models.document.config import LayoutConfig
from zoo.models.document.keys import BERT
from zoo.models.document.spec import document_spec
from zoo.registry import ROOT, ModelSpec, register_model
from zoo.weights import Weights

LAYOUTS = (BERT,)
BUNDLED = Weights(
    source=str(ROOT / "zoo" / "assets" / "doc_nano"), licence="Apache-2.0", bundled=True
)


@register_model
def doc_nano() -> ModelSpec:
    """Six layers, 384 wide, boxes and relative biases, no image: 24.1 M parameters."""
    weights = {"doc_nano": BUNDLED}
    return document_spec(
        LayoutConfig(),
        recipe="doc_nano",
        layouts=LAYOUTS,
        encoding=EncodingConfig(length=384, overlap=96),
        weights=weights,
    )
