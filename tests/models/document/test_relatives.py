"""LayoutLM, LayoutLMv3, ViLT and BERT against transformers, through their published names.

Tiny shapes, every parameter far from its start, padded rows of odd lengths, extreme boxes.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LayoutLMConfig,
    LayoutLMForMaskedLM,
    LayoutLMForQuestionAnswering,
    LayoutLMForSequenceClassification,
    LayoutLMForTokenClassification,
    LayoutLMModel,
    LayoutLMv3Config,
    LayoutLMv3ForQuestionAnswering,
    LayoutLMv3ForSequenceClassification,
    LayoutLMv3ForTokenClassification,
    LayoutLMv3Model,
    ViltConfig,
    ViltForQuestionAnswering,
    ViltForTokenClassification,
    ViltModel,
)

from zoo.models.document.config import LayoutConfig
from zoo.models.document.doc import doc_nano
from zoo.models.document.keys import LAYOUTS, fit, start_from
from zoo.models.document.layoutlm import layoutlm_base, layoutlm_docqa
from zoo.models.document.layoutlmv3 import layoutlmv3_base
from zoo.models.document.model import DocumentModel
from zoo.models.document.vilt import vilt_b32
from zoo.weights import Loaded

DTYPES = [(torch.float32, 1e-5), (torch.float64, 1e-11)]
SHAPE = {"dim": 24, "num_heads": 4, "num_layers": 2, "ffn_dim": 40, "vocab_size": 50}
TEXT = {**SHAPE, "max_positions": 20}
THEIRS = {
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "vocab_size": 50,
    "max_position_embeddings": 20,
}
LENGTHS = (11, 6, 1)


def randomise(model: nn.Module) -> nn.Module:
    """Every parameter far from its start, so that a swapped or a lost one shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            drawn = torch.randn(tensor.shape, generator=generator)
            if name.endswith("weight") and tensor.ndim == 1:
                tensor.copy_(1 + 0.2 * drawn)
            else:
                tensor.copy_(drawn * (1.0 if "rel_pos" in name else 0.25))
    return model.eval()


def rows(pad: int, segments: int, inverted: bool = False) -> dict[str, Tensor]:
    """A padded batch of rows of ``LENGTHS`` tokens, with boxes at all extremes."""
    generator = torch.Generator().manual_seed(2)
    count, length = len(LENGTHS), max(LENGTHS)
    ids = torch.randint(2, 50, (count, length), generator=generator)
    corners = torch.randint(0, 1001, (count, length, 2, 2), generator=generator)
    bbox = corners.sort(2).values.flatten(2)
    bbox[0, 0], bbox[0, 1], bbox[0, 2] = 0, 1000, torch.tensor([0, 0, 1000, 1000])
    bbox[0, 3] = bbox[0, 4]
    if inverted:
        bbox[0, 5] = torch.tensor([900, 800, 100, 20])
    mask = torch.arange(length) < torch.tensor(LENGTHS)[:, None]
    ids[~mask] = pad
    bbox[~mask] = 0
    kinds = torch.randint(0, segments, (count, length), generator=generator)
    return {"input_ids": ids, "bbox": bbox, "attention_mask": mask, "segment_ids": kinds}


def as_theirs(inputs: dict[str, Tensor], *without: str) -> dict[str, Tensor]:
    names = {"segment_ids": "token_type_ids"}
    given = {names.get(k, k): v for k, v in inputs.items() if k not in without}
    return {k: v.long() if v.dtype == torch.bool else v for k, v in given.items()}


def load(
    config: LayoutConfig, reference: nn.Module, layout: str, classes: int = 0
) -> tuple[DocumentModel, str]:
    """Our model with the reference's weights; exactly the layout named claims its keys."""
    state = reference.state_dict()
    found = [known for known in LAYOUTS if known.recognises(state)]
    assert [known.name for known in found] == [layout]
    model = DocumentModel(config, classes)
    loaded = Loaded(state=found[0].convert(state), origin="test", layout=layout)
    return model.eval(), start_from(model, loaded)


def close(mine: Tensor, theirs: Tensor, limit: float, mask: Tensor | None = None) -> None:
    if mask is not None:
        mine, theirs = mine[mask], theirs[mask]
    assert mine.shape == theirs.shape
    assert theirs.std() > 0.05  # or there would be nothing to compare
    assert (mine - theirs).abs().max().item() <= limit


@torch.no_grad()
def compare(
    config: LayoutConfig,
    reference: nn.Module,
    layout: str,
    dtype: torch.dtype,
    limit: float,
    inputs: dict[str, Tensor],
    theirs: dict[str, Tensor],
    classes: int = 0,
) -> str:
    """Whatever a reference puts out equals ours, on valid tokens; returns the loading's note."""
    model, note = load(config, reference, layout, classes)
    model, reference = model.to(dtype), reference.to(dtype)
    mask = inputs["attention_mask"]
    out = reference(**theirs)
    length = mask.shape[1]
    if "last_hidden_state" in out:
        close(model.encoder(**inputs).text, out.last_hidden_state[:, :length], limit, mask)
    elif "start_logits" in out:
        mine = model(**inputs)
        for key in ("start_logits", "end_logits"):
            close(mine[key], out[key][:, :length], limit, mask)
            assert bool((mine[key][~mask] == -1e8).all())
    else:
        per_token = out.logits.ndim == 3
        close(model(**inputs)["logits"], out.logits, limit, mask if per_token else None)
    return note


# ---- LayoutLM ---------------------------------------------------------------------------------

LAYOUTLM_CASES = {
    "encoder": (LayoutLMModel, "qa", 0),
    "qa": (LayoutLMForQuestionAnswering, "qa", 0),
    "ser": (LayoutLMForTokenClassification, "ser", 5),
    "classify": (LayoutLMForSequenceClassification, "classify", 5),
}


@pytest.mark.parametrize("case", list(LAYOUTLM_CASES))
@pytest.mark.parametrize(("dtype", "limit"), DTYPES)
def test_layoutlm(case: str, dtype: torch.dtype, limit: float) -> None:
    kind, task, classes = LAYOUTLM_CASES[case]
    labels = {"num_labels": classes} if classes else {}
    reference = randomise(kind(LayoutLMConfig(**THEIRS, **labels)))
    config = replace(layoutlm_base().config, task=task, **TEXT)
    inputs = rows(0, 2)
    note = compare(
        config, reference, "LayoutLM's", dtype, limit, inputs, as_theirs(inputs), classes
    )
    assert ("left out pooler" in note) == (case != "classify")
    assert ("new head" in note) == (case == "encoder")


def test_layoutlm_with_robertas_vocabulary() -> None:
    reference = LayoutLMForQuestionAnswering(
        LayoutLMConfig(**THEIRS, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5)
    )
    inputs = rows(1, 1)
    del inputs["segment_ids"]
    config = replace(layoutlm_docqa().config, **TEXT)
    compare(config, randomise(reference), "LayoutLM's", *DTYPES[0], inputs, as_theirs(inputs))


def test_a_pretrained_layoutlm_leaves_its_word_head_behind() -> None:
    reference = randomise(LayoutLMForMaskedLM(LayoutLMConfig(**THEIRS)))
    config = replace(layoutlm_base().config, **TEXT)
    model, note = load(config, reference, "LayoutLM's")
    assert "left out cls, pooler; new head" in note or "left out cls; new head" in note
    inputs = rows(0, 2)
    with torch.no_grad():
        wanted = reference.layoutlm(**as_theirs(inputs)).last_hidden_state
        close(model.encoder(**inputs).text, wanted, 1e-5, inputs["attention_mask"])


# ---- LayoutLMv3 -------------------------------------------------------------------------------

V3 = {"coordinate_size": 4, "shape_size": 4, "patch_size": 8, "image_size": 32, **TEXT}
V3_THEIRS = {
    **THEIRS,
    "type_vocab_size": 1,
    "coordinate_size": 4,
    "shape_size": 4,
    "input_size": 32,
    "patch_size": 8,
    "max_rel_pos": 6,
    "max_rel_2d_pos": 256,
    "rel_pos_bins": 8,
    "rel_2d_pos_bins": 16,
}
V3_BINS = {"position_bins": 8, "position_reach": 6, "box_bins": 16, "box_reach": 256}
V3_CASES = {
    "encoder": (LayoutLMv3Model, "qa", 0),
    "qa": (LayoutLMv3ForQuestionAnswering, "qa", 0),
    "ser, few": (LayoutLMv3ForTokenClassification, "ser", 9),
    "ser, many": (LayoutLMv3ForTokenClassification, "ser", 10),
    "classify": (LayoutLMv3ForSequenceClassification, "classify", 5),
}


def layoutlmv3(kind: Any, classes: int = 0) -> nn.Module:
    labels = {"num_labels": classes} if classes else {}
    return randomise(kind(LayoutLMv3Config(**V3_THEIRS, **labels)))


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("case", list(V3_CASES))
@pytest.mark.parametrize(("dtype", "limit"), DTYPES)
def test_layoutlmv3(case: str, image: bool, dtype: torch.dtype, limit: float) -> None:
    kind, task, classes = V3_CASES[case]
    inputs = rows(1, 1, inverted=True)
    if image:
        inputs["pixel_values"] = torch.randn(len(LENGTHS), 3, 32, 32, dtype=dtype)
    config = replace(layoutlmv3_base().config, task=task, **V3, **V3_BINS)
    reference = layoutlmv3(kind, classes)
    theirs = as_theirs(inputs)
    compare(config, reference, "LayoutLMv3's", dtype, limit, inputs, theirs, classes)


@torch.no_grad()
def test_layoutlmv3_image_tokens_and_bytes() -> None:
    reference = layoutlmv3(LayoutLMv3Model)
    model, _ = load(replace(layoutlmv3_base().config, **V3, **V3_BINS), reference, "LayoutLMv3's")
    inputs = rows(1, 1)
    pixels = torch.randint(0, 256, (len(LENGTHS), 3, 32, 32), dtype=torch.uint8)
    normalised = (pixels.float() / 255 - 0.5) / 0.5  # as their image processor does it
    wanted = reference(**as_theirs(inputs), pixel_values=normalised).last_hidden_state
    found = model.encoder(**inputs, pixel_values=pixels)
    close(found.visual, wanted[:, max(LENGTHS) :], 1e-5)
    close(found.text, wanted[:, : max(LENGTHS)], 1e-5, inputs["attention_mask"])


def test_relative_biases_are_trained_here_and_not_in_transformers() -> None:
    """transformers 5 gathers them under ``torch.no_grad()``; unilm's original trained them."""
    reference = layoutlmv3(LayoutLMv3ForQuestionAnswering)
    model, _ = load(replace(layoutlmv3_base().config, **V3, **V3_BINS), reference, "LayoutLMv3's")
    inputs = rows(1, 1)
    at = torch.tensor([3, 2, 0])
    reference(**as_theirs(inputs), start_positions=at, end_positions=at).loss.backward()
    out = model(**inputs)
    loss = nn.functional.cross_entropy(out["start_logits"], at)
    (loss + nn.functional.cross_entropy(out["end_logits"], at)).backward()
    theirs = reference.layoutlmv3.encoder
    for name, table in model.encoder.bias.named_parameters():
        assert table.grad.abs().max() > 1e-6, name
        their_name = "rel_pos_bias" if name == "position" else f"rel_pos_{name}_bias"
        assert getattr(theirs, their_name).weight.grad is None


# ---- ViLT -------------------------------------------------------------------------------------

VILT = {"patch_size": 8, "image_size": 32, **TEXT}
VILT_CASES = {
    "ser": (ViltForTokenClassification, "ser", 5),
    "classify": (ViltForQuestionAnswering, "classify", 7),
}


def vilt_inputs(dtype: torch.dtype) -> dict[str, Tensor]:
    """Images of three sizes, padded."""
    inputs = rows(0, 2)
    pixels = torch.randn(len(LENGTHS), 3, 40, 56, dtype=dtype)
    mask = torch.ones(len(LENGTHS), 40, 56, dtype=torch.bool)
    mask[0, 24:] = False
    mask[1, :, 16:] = False
    mask[2, 32:] = False
    mask[2, :, 32:] = False  # the size that the positions are made for
    return {**inputs, "pixel_values": pixels * mask[:, None], "pixel_mask": mask}


def vilt(kind: Any, **settings: Any) -> nn.Module:
    return randomise(kind(ViltConfig(**THEIRS, image_size=32, patch_size=8, **settings)))


@pytest.mark.parametrize("case", list(VILT_CASES))
@pytest.mark.parametrize(("dtype", "limit"), DTYPES)
def test_vilt(case: str, dtype: torch.dtype, limit: float) -> None:
    kind, task, classes = VILT_CASES[case]
    inputs = vilt_inputs(dtype)
    config = replace(vilt_b32().config, task=task, **VILT)
    theirs = as_theirs(inputs, "bbox")
    reference = vilt(kind, num_labels=classes)
    compare(config, reference, "ViLT's", dtype, limit, inputs, theirs, classes)


@pytest.mark.parametrize(("dtype", "limit"), DTYPES)
@torch.no_grad()
def test_vilt_encoder(dtype: torch.dtype, limit: float) -> None:
    """Text and the image's class token only: transformers permutes the patches at random."""
    reference = vilt(ViltModel).to(dtype)
    model, note = load(replace(vilt_b32().config, task="ser", **VILT), reference, "ViLT's", 3)
    assert "left out pooler; new head" in note
    model = model.to(dtype)
    inputs = vilt_inputs(dtype)
    wanted = reference(**as_theirs(inputs, "bbox")).last_hidden_state
    found = model.encoder(**inputs)
    close(found.text, wanted[:, : max(LENGTHS)], limit, inputs["attention_mask"])
    close(found.visual[:, 0], wanted[:, max(LENGTHS)], limit)
    # And here they keep their order.
    assert torch.equal(found.visual, model.encoder(**inputs).visual)


# ---- BERT and MiniLM as a start ---------------------------------------------------------------

BERT_CASES = {
    "encoder": (BertModel, "qa", 0),
    "qa": (BertForQuestionAnswering, "qa", 0),
    "ser": (BertForTokenClassification, "ser", 5),
    "classify": (BertForSequenceClassification, "classify", 5),
}


@pytest.mark.parametrize("case", list(BERT_CASES))
@pytest.mark.parametrize(("dtype", "limit"), DTYPES)
def test_our_own_starts_as_the_text_model(case: str, dtype: torch.dtype, limit: float) -> None:
    """Boxes and biases are new, begin at zero and change nothing, whatever the boxes are."""
    kind, task, classes = BERT_CASES[case]
    labels = {"num_labels": classes} if classes else {}
    reference = randomise(kind(BertConfig(**THEIRS, **labels)))
    config = replace(doc_nano().config, task=task, **TEXT)
    inputs = rows(0, 2)
    theirs = as_theirs(inputs, "bbox")
    note = compare(config, reference, "BERT's", dtype, limit, inputs, theirs, classes)
    assert "encoder.embeddings.boxes, encoder.bias" in note
    assert ("new head" in note) == (case == "encoder")


def test_names_from_tensorflow() -> None:
    reference = randomise(BertModel(BertConfig(**THEIRS)))
    state = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for k in reference.state_dict()
    }
    (layout,) = [known for known in LAYOUTS if known.recognises(dict.fromkeys(state))]
    renamed = layout.convert(dict.fromkeys(state, torch.zeros(1)))
    assert renamed.keys() == layout.convert(reference.state_dict()).keys()


# ---- The published sizes ----------------------------------------------------------------------

FULL = {
    "layoutlm_base": (layoutlm_base, LayoutLMForQuestionAnswering, LayoutLMConfig()),
    "layoutlm_docqa": (
        layoutlm_docqa,
        LayoutLMForQuestionAnswering,
        LayoutLMConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
    ),
    "layoutlmv3_base": (
        layoutlmv3_base,
        LayoutLMv3ForQuestionAnswering,
        LayoutLMv3Config(max_position_embeddings=514, type_vocab_size=1),
    ),
    "vilt_b32": (vilt_b32, ViltForQuestionAnswering, ViltConfig(num_labels=3129)),
}


@pytest.mark.parametrize("name", list(FULL))
def test_variants_have_the_published_shapes(name: str) -> None:
    """Every tensor of the full-sized models has its place and its shape; built without memory."""
    variant, kind, settings = FULL[name]
    with torch.device("meta"):
        reference = kind(settings)
        made = variant()
        model = DocumentModel(getattr(made, "config", made), 3129)
    state = reference.state_dict()
    (layout,) = [known for known in LAYOUTS if known.recognises(state)]
    fitted, note = fit(model, Loaded(state=layout.convert(state), origin="x", layout=layout.name))
    assert "new" not in note
    found = {key: value.shape for key, value in fitted.state.items()}
    assert found == {key: value.shape for key, value in model.state_dict().items()}
