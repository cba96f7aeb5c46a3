"""Published checkpoints, as folders of the hub's layout, straight to something that answers."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    LayoutLMConfig,
    LayoutLMForQuestionAnswering,
    LayoutLMForTokenClassification,
    LayoutLMModel,
    LayoutLMv3Config,
    LayoutLMv3ForQuestionAnswering,
    LayoutLMv3ForSequenceClassification,
    ViltConfig,
    ViltForQuestionAnswering,
)

import zoo
from zoo import inference
from zoo.config import find_recipe, from_plain, read_recipe, to_plain
from zoo.datasets.ocr.page import Page
from zoo.datasets.page_pictures import HeldPicture
from zoo.datasets.tokens import ASSETS
from zoo.datasets.windows import EncodingConfig
from zoo.errors import ZooError
from zoo.registry import ModelSpec, list_models, model_spec

THEIRS = {
    "hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 32,
    "vocab_size": 30522,
}  # fmt: skip
V3 = {
    **THEIRS, "coordinate_size": 4, "shape_size": 4, "max_position_embeddings": 514,
    "type_vocab_size": 1,
}  # fmt: skip
OURS = {
    "dim": 24, "num_heads": 4, "num_layers": 2, "ffn_dim": 32, "vocab_size": 30522,
    "coordinate_size": 4, "shape_size": 4, "grid_width": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_variants(monkeypatch):
    """The registered variants, as small as the checkpoints here; everything else is real."""

    def small(name: str) -> ModelSpec:
        spec = model_spec(name)
        if spec.data != "documents":
            return spec
        return replace(spec, config=replace(spec.config, **OURS))

    monkeypatch.setattr(inference, "model_spec", small)


def save(folder: Path, model: torch.nn.Module, *, tokenizer: bool = True) -> Path:
    model.save_pretrained(folder)
    if tokenizer:
        shutil.copy(ASSETS / "bert_uncased" / "tokenizer.json", folder)
    return folder


def page() -> Page:
    words = ("Total", "9.00", "Date", "1.2.2003")
    boxes = ((5, 5, 40, 15), (50, 5, 80, 15), (5, 25, 40, 35), (50, 25, 99, 35))
    image = Image.new("RGB", (100, 50), "white")
    return Page(words=words, boxes=boxes, width=100, height=50, picture=HeldPicture(image))


def test_layoutlm_answers_as_transformers_does(tmp_path) -> None:
    torch.manual_seed(3)
    theirs = LayoutLMForQuestionAnswering(LayoutLMConfig(**THEIRS)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    reader = zoo.load_model(save(tmp_path, theirs), device="cpu", fast=False)
    assert reader.spec.name == "layoutlm_base"
    assert reader.encoding.tokenizer == str(tmp_path)
    assert reader.encoding.sep_box == 1000
    reply = reader.ask(page(), "What is the total?", others=20)
    # The same row, arranged by hand.
    tokenizer = reader.tokenizer
    question = tokenizer.text("What is the total?")
    ids, places = tokenizer.words(page().words)
    row = [tokenizer.cls, *question, tokenizer.sep, *ids, tokenizer.sep]
    sep = [1000] * 4
    boxes = [[0] * 4, *[[0] * 4] * len(question), sep, *page().bbox()[places].tolist(), sep]
    first = len(question) + 2
    segments = [0] * first + [1] * (len(ids) + 1)
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor([row]), bbox=torch.tensor([boxes]),
            token_type_ids=torch.tensor([segments]),
        )  # fmt: skip
    start, end = out.start_logits[0], out.end_logits[0]
    place = list(range(len(ids)))
    spans = {
        (places[a], places[b]): float(start[first + a] + end[first + b])
        for a in place if a == 0 or places[a] != places[a - 1]
        for b in place[a:] if b == place[-1] or places[b] != places[b + 1]
    }  # fmt: skip
    best = max(spans, key=lambda span: spans[span])
    texts = [r.text for r in (reply, *reply.others) if r.text is not None]
    assert texts[0] == " ".join(page().words[best[0] : best[1] + 1])


def test_layoutlmv3_looks_at_the_page(tmp_path) -> None:
    theirs = LayoutLMv3ForQuestionAnswering(LayoutLMv3Config(**V3))
    reader = zoo.load_model(save(tmp_path, theirs), device="cpu")
    assert reader.spec.name == "layoutlmv3_base"
    assert (reader.encoding.image, reader.encoding.separators) == (224, 2)
    assert reader.ask(page(), "What is the total?").confidence > 0
    blind = replace(page(), picture=None, source="words.json")
    with pytest.raises(ZooError, match=r"words\.json has words and no picture"):
        reader.ask(blind, "What is the total?")


def test_a_tagger_says_its_classes(tmp_path) -> None:
    settings = LayoutLMConfig(**THEIRS, id2label={0: "O", 1: "B-TOTAL"}, label2id={})
    theirs = LayoutLMForTokenClassification(settings)
    reader = zoo.load_model(save(tmp_path, theirs), device="cpu")
    assert reader.task == "ser"
    assert reader.class_names == ("O", "B-TOTAL")
    assert len(reader.tag(page())[0].words) == 4


def test_a_classifier_says_its_classes(tmp_path) -> None:
    settings = LayoutLMv3Config(**V3, id2label={0: "letter", 1: "form"}, label2id={})
    theirs = LayoutLMv3ForSequenceClassification(settings)
    reader = zoo.load_model(save(tmp_path, theirs), device="cpu")
    assert reader.classify(page())[0].name in ("letter", "form")


def test_vilt_classifies_by_the_picture(tmp_path) -> None:
    settings = ViltConfig(**THEIRS, num_labels=3, id2label={0: "a", 1: "b", 2: "c"}, label2id={})
    theirs = ViltForQuestionAnswering(settings)
    folder = save(tmp_path, theirs)
    # What it calls question answering is to choose one of its classes.
    loaded = zoo.load_model("vilt_b32", weights=folder, device="cpu")
    assert loaded.task == "classify"
    assert loaded.classify(page())[0].name in "abc"


def test_a_base_model_is_to_be_fine_tuned_first(tmp_path) -> None:
    folder = save(tmp_path, LayoutLMModel(LayoutLMConfig(**THEIRS)))
    with pytest.raises(ZooError, match=r"no whole model for the task 'qa' .*new head.*fine-tune"):
        zoo.load_model(folder, device="cpu")


def test_without_its_tokenizer_a_vocabulary_can_not_be_guessed(tmp_path) -> None:
    folder = save(tmp_path, LayoutLMv3ForQuestionAnswering(LayoutLMv3Config(**V3)), tokenizer=False)
    with pytest.raises(ZooError, match=r"published with its weights.*tokenizer\.json"):
        zoo.load_model(folder, device="cpu")


def test_paddles_files_are_read_without_running_them(tmp_path) -> None:
    """The released ERNIE-LayoutX: a pickle of arrays, with linear weights turned."""
    spec = inference.model_spec("ernie_layout_x_base")
    model = spec.build(spec.config, 0)
    content = {"ernie_layout.visual.backbone.res2a.conv0._conv.weight": np.zeros((4, 4, 1, 1))}
    path = tmp_path / "model_state.pdparams"
    path.write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(ZooError, match=r"has the shapes of none of .*ernie_layout_x_base"):
        zoo.load_model(tmp_path, device="cpu")
    loaded = zoo.weights.load(path, spec.layouts)
    assert loaded.layout == "ERNIE-Layout's (Paddle)"
    key = "encoder.vision.backbone.layer1.0.conv1.weight"
    assert key in loaded.state
    assert key in model.state_dict()


@pytest.mark.parametrize(
    "name", [name for name in list_models() if model_spec(name).data == "documents"]
)
def test_recipes_know_pages_as_the_published_weights_do(name: str) -> None:
    spec = model_spec(name)
    given = read_recipe(find_recipe(spec.recipe))["data"]["encoding"]
    found = to_plain(from_plain(EncodingConfig(), given, "encoding."))
    assert found == spec.preprocess["encoding"]
    assert json.loads(json.dumps(found)) == found
