"""Which checkpoint is whose, and what of it fits which model."""

from dataclasses import replace

import pytest
import torch

from zoo.checkpoint import Card
from zoo.errors import ZooError
from zoo.models.document.config import LayoutConfig
from zoo.models.document.keys import CLASS_ROWS, LAYOUTS, fit, start_from
from zoo.models.document.model import DocumentModel
from zoo.weights import Loaded

TINY = LayoutConfig(
    dim=12, num_heads=2, num_layers=1, ffn_dim=16, vocab_size=20, max_positions=16, heads="bert"
)

# One telling key of every family, base model first, as published files spell it.
FAMILIES = {
    "LayoutLM's": [
        ["embeddings.x_position_embeddings.weight", "embeddings.token_type_embeddings.weight"],
        ["layoutlm.embeddings.x_position_embeddings.weight", "qa_outputs.weight"],
    ],
    "LayoutLMv3's": [
        ["patch_embed.proj.weight", "embeddings.x_position_embeddings.weight"],
        ["layoutlmv3.patch_embed.proj.weight", "layoutlmv3.embeddings.word_embeddings.weight"],
    ],
    "ViLT's": [
        ["embeddings.text_embeddings.word_embeddings.weight",
         "embeddings.token_type_embeddings.weight"],
        ["vilt.embeddings.text_embeddings.word_embeddings.weight"],
    ],
    "ERNIE-Layout's (PyTorch port)": [
        ["visual.backbone.resnet.layer0.0.conv1.weight", "embeddings.x_position_embeddings.weight"],
        ["ernie_layout.visual.backbone.resnet.layer0.0.conv1.weight"],
    ],
    "ERNIE-Layout's (Paddle)": [
        ["visual.backbone.res2a.conv0._conv.weight", "embeddings.token_type_embeddings.weight"],
        ["ernie_layout.visual.backbone.res2a.conv0._conv.weight", "encoder.rel_pos_bias"],
    ],
    "BERT's": [
        ["embeddings.token_type_embeddings.weight", "embeddings.position_embeddings.weight"],
        ["bert.embeddings.token_type_embeddings.weight", "cls.predictions.bias"],
    ],
}  # fmt: skip


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("which", [0, 1])
def test_a_family_is_told_from_its_keys(family: str, which: int) -> None:
    state = dict.fromkeys(FAMILIES[family][which], torch.zeros(1))
    if family == "BERT's" and which == 0:
        # Its position table must not be taken for a relative's box table.
        state["embeddings.word_embeddings.weight"] = torch.zeros(1)
    assert [known.name for known in LAYOUTS if known.recognises(state)] == [family]


@pytest.mark.parametrize(
    "key",
    [
        "layoutlmv2.embeddings.x_position_embeddings.weight",
        "transformer.decoder.layers.0.self_attn.in_proj_weight",
        "lilt.embeddings.word_embeddings.weight",
    ],
)
def test_strangers_are_not_claimed(key: str) -> None:
    assert not any(known.recognises({key: torch.zeros(1)}) for known in LAYOUTS)


@pytest.mark.parametrize(
    "key",
    [
        "layoutlm.embeddings.position_ids",
        "layoutlmv3.embeddings.position_ids",
        "layoutlmv3.visual_bbox",
        "vilt.embeddings.text_embeddings.position_ids",
        "bert.embeddings.position_ids",
        "ernie_layout.embeddings.position_ids",
        "ernie_layout.visual.pixel_mean",
    ],
)
def test_constants_of_older_files_are_dropped(key: str) -> None:
    prefix = key.partition(".")[0]
    found = [k for family in FAMILIES.values() for k in family if k[0].startswith(f"{prefix}.")]
    keys = found[0]
    state = dict.fromkeys([*keys, key], torch.zeros(2, 2))
    (layout,) = [known for known in LAYOUTS if known.recognises(state)]
    assert layout.convert(state).keys() == layout.convert(dict.fromkeys(keys, state[key])).keys()


def model(task: str = "qa", classes: int = 0, **settings: object) -> DocumentModel:
    return DocumentModel(replace(TINY, task=task, **settings), classes)


def ours(source: DocumentModel, names: tuple[str, ...] = ()) -> Loaded:
    return Loaded(state=source.state_dict(), origin="RUN", layout="ours", class_names=names)


def test_a_model_fits_itself() -> None:
    first, second = model(), model()
    note = start_from(second, ours(first))
    assert "new" not in note
    assert "left out" not in note
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value)


def test_another_tasks_head_is_left_out() -> None:
    asked, tagger = model(), model("ser", 2)
    before = tagger.head.out.weight.clone()
    note = start_from(tagger, ours(asked), ("a", "b"))
    assert "left out head; new head" in note
    assert torch.equal(tagger.head.out.weight, before)
    assert torch.equal(
        tagger.encoder.layers[0].linear1.weight, asked.encoder.layers[0].linear1.weight
    )
    # Two classes are never taken for start and end, nor the other way round.
    assert "new head" in start_from(asked, ours(tagger, ("a", "b")))


def test_classes_are_carried_over_by_name() -> None:
    first, second = model("ser", 3), model("ser", 2)
    note = start_from(second, ours(first, ("x", "y", "z")), ("z", "w"))
    assert "1 classes carried over by name, 1 new (w)" in note
    assert torch.equal(second.head.out.weight[0], first.head.out.weight[2])
    assert all(key in first.state_dict() for key in CLASS_ROWS)


def test_a_text_models_lack_is_filled_and_said() -> None:
    text = model(boxes="none", attention="plain")
    whole = model(vision="grid", grid_width=16)
    note = start_from(whole, ours(text))
    for part in ("encoder.embeddings.boxes", "encoder.bias", "encoder.vision"):
        assert part in note
    assert torch.equal(whole.encoder.embeddings.word.weight, text.encoder.embeddings.word.weight)


def test_a_part_is_whole_or_an_error() -> None:
    loaded = ours(model())
    del loaded.state["encoder.bias.x"]
    with pytest.raises(ZooError, match=r"missing encoder\.bias\.x"):
        start_from(model(), loaded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layers.0.linear1.weight": None}, "missing encoder.layers.0.linear1.weight"),
        ({"encoder.gadget": torch.zeros(1)}, "without a place encoder.gadget"),
        ({"encoder.embeddings.word.weight": torch.zeros(21, 12)}, r"\(21, 12\) for \(20, 12\)"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(
    change: dict[str, torch.Tensor | None], message: str
) -> None:
    loaded = ours(model())
    for key, value in change.items():
        if value is None:
            del loaded.state[key]
        else:
            loaded.state[key] = value
    with pytest.raises(ZooError, match=message):
        start_from(model(), loaded)


def test_boxes_that_a_model_would_ignore_are_refused() -> None:
    with pytest.raises(ZooError, match=r"without a place .*encoder\.embeddings\.boxes"):
        start_from(model(boxes="none", attention="plain"), ours(model()))


def test_fitting_changes_neither_side() -> None:
    source, target = model("ser", 2), model()
    state = {k: v.clone() for k, v in target.state_dict().items()}
    loaded = ours(source)
    keys = set(loaded.state)
    fitted, note = fit(target, loaded)
    assert set(loaded.state) == keys
    assert note
    assert all(torch.equal(state[k], v) for k, v in target.state_dict().items())
    assert set(fitted.state) == set(state)


def test_what_settings_switch_off_is_left_out_of_our_own_and_told() -> None:
    """An ablation: fine-tuned from a model with boxes, without them."""
    card = Card(name="doc_nano", config={}, class_names=(), class_ids=(), preprocess={})
    given = Loaded(state=DocumentModel(TINY, 0).state_dict(), origin="x", layout="ours", card=card)
    blind = DocumentModel(replace(TINY, boxes="none", attention="plain"), 0)
    assert "left out encoder bias, encoder embeddings boxes" in start_from(blind, given)
