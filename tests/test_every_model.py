"""The contract of a registered model: a new one is tested by being registered.

ResNet variants are built as small as their config allows; what is tested is the same code.
"""

import copy
import json
from dataclasses import fields, replace
from fnmatch import fnmatchcase

import pytest
import torch

from zoo.checkpoint import Card
from zoo.config import from_plain, to_plain
from zoo.datasets.coco_eval import CocoEvaluator
from zoo.datasets.document_source import QuestionEvaluator
from zoo.datasets.ocr.page import Page
from zoo.datasets.questions import Asked, Corpus
from zoo.engine import evaluate, train_steps
from zoo.inference import prepare
from zoo.registry import ModelSpec, list_models, model_spec, without_pretrained
from zoo.types import Batch, Meta

CPU = torch.device("cpu")
SMALLER = {
    "backbone": lambda name: name if name == "nano" else "resnet18",
    "dim": lambda _: 32,
    "num_heads": lambda _: 4,
    "encoder_layers": lambda _: 1,
    "decoder_layers": lambda _: 2,
    "ffn_dim": lambda _: 48,
    "num_queries": lambda _: 12,
    "dropout": lambda _: 0.0,
    "dilation": lambda _: False,  # a ResNet-18's blocks can't be dilated
    "box_noise": lambda _: 0.4,  # noise of a whole box drowns what one batch has to say
    "norm": lambda _: "batch",  # random weights behind frozen norms learn nothing
    "backbone_weights": lambda _: "none",
}


SMALL_DOCUMENTS = {
    "dim": 24, "num_heads": 4, "num_layers": 1, "ffn_dim": 32, "dropout": 0.0, "vocab_size": 60,
    "max_positions": 64, "coordinate_size": 4, "shape_size": 4, "patch_size": 8, "image_size": 32,
    "grid_width": 16, "segment_types": 2, "task": "qa",
}  # fmt: skip


def small(name: str) -> ModelSpec:
    spec = model_spec(name)
    if reads_documents(spec):
        return replace(spec, config=replace(spec.config, **SMALL_DOCUMENTS))
    names = {f.name for f in fields(spec.config)}
    values = {k: fn(getattr(spec.config, k)) for k, fn in SMALLER.items() if k in names}
    return replace(spec, config=replace(without_pretrained(spec.config), **values))


def reads_documents(spec: ModelSpec) -> bool:
    return spec.data == "documents"


def batch_for(spec: ModelSpec, classes: int = 3) -> Batch:
    """Two samples of different sizes, the second without anything to find."""
    if reads_documents(spec):
        return rows(spec.config.vision != "none")
    return with_patches(spec, batch(classes))


def with_patches(spec: ModelSpec, data: Batch) -> Batch:
    """The batch with what a pretext task gets besides, where the model's is one."""
    if spec.data == "patches":
        boxes = torch.stack([data.targets[0]["boxes"], data.targets[0]["boxes"].flip(0)])
        data.inputs["query_boxes"] = boxes
    return data


def rows(looks: bool) -> Batch:
    """A question on two pages, with pictures perhaps; the second has no answer, and padding."""
    draw = torch.Generator().manual_seed(3)
    length = 16
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, 11:] = False
    boxes = torch.rand(2, length, 2, 2, generator=draw).sort(2).values.flatten(2)
    inputs = {
        "input_ids": torch.randint(5, 60, (2, length), generator=draw),
        "bbox": (boxes * 1000).long(),
        "attention_mask": mask,
    }
    if looks:
        shape = (2, 3, 32, 32)
        inputs["pixel_values"] = torch.randint(0, 255, shape, generator=draw, dtype=torch.uint8)
    targets = [
        {"starts": torch.tensor([7, 12]), "ends": torch.tensor([8, 12])},
        {"starts": torch.tensor([0]), "ends": torch.tensor([0])},
    ]
    words = torch.where(torch.arange(length) < 5, -1, torch.arange(length) - 5)
    metas = []
    for number in range(2):
        of_page = (words >= 0) & mask[number]
        extra = {"page": 0, "words": words, "starts": of_page, "ends": of_page}
        metas.append(Meta(image_id=number, orig_size=(64, 96), size=(1, length), extra=extra))
    return Batch(inputs, targets, metas)


def batch(classes: int = 3) -> Batch:
    """Two images of different sizes, the second without objects."""
    draw = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 255, (2, 3, 64, 96), generator=draw, dtype=torch.uint8)
    mask = torch.ones(2, 64, 96, dtype=torch.bool)
    mask[1, :, 64:] = False
    pixels[1, :, :, 64:] = 0
    boxes = torch.tensor([[0.3, 0.4, 0.3, 0.5], [0.7, 0.6, 0.4, 0.4]])
    targets = [
        {"labels": torch.tensor([0, classes - 1]), "boxes": boxes},
        {"labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)},
    ]
    for number, target in enumerate(targets):
        target["image_id"] = torch.tensor([number])
    metas = [
        Meta(image_id=0, orig_size=(64, 96), size=(64, 96)),
        Meta(image_id=1, orig_size=(64, 64), size=(64, 64)),
    ]
    return Batch({"pixel_values": pixels, "pixel_mask": mask}, targets, metas)


@pytest.fixture(params=list_models())
def spec(request) -> ModelSpec:
    return small(request.param)


def test_every_parameter_gets_a_finite_gradient(spec):
    model = spec.build(spec.config, 3)
    criterion = spec.criterion(spec.config, 3)
    data = batch_for(spec)
    for sample in (data, Batch(data.inputs, [data.targets[1]] * 2, data.metas)):
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        [step] = train_steps(model, criterion, [sample], optimizer, device=CPU)
        assert torch.isfinite(step.losses.total)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name  # DDP waits for every one
                assert torch.isfinite(parameter.grad).all(), name


def test_one_batch_can_be_learned(spec):
    torch.manual_seed(1)
    model = spec.build(spec.config, 3)
    criterion = spec.criterion(spec.config, 3)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 2e-3)
    steps = train_steps(
        model, criterion, [batch_for(spec)] * 40, optimizer, device=CPU, max_norm=1.0
    )
    losses = [float(s.losses.total) for s in steps]
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


def test_evaluation_runs_and_the_number_of_classes_is_honoured(spec):
    if reads_documents(spec):
        evaluate_documents(spec)
    else:
        evaluate_detection(spec)


def test_prepared_in_half_precision_it_says_the_same(spec):
    """What becomes bfloat16 once is what autocast makes bfloat16 in every call."""
    torch.manual_seed(2)
    inputs = batch_for(spec).inputs
    model = spec.build(spec.config, 3)
    said = []
    for half in (False, True):
        ready = prepare(copy.deepcopy(model), half=half)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            said.append({k: v for k, v in ready(**inputs).items() if isinstance(v, torch.Tensor)})
    assert said[0]
    torch.testing.assert_close(said[1], said[0], rtol=0, atol=0, equal_nan=True)


def evaluate_documents(spec):
    page = Page(words=("a", "b", "12.50", "d"), boxes=((0, 0, 9, 9),) * 4, width=96, height=64)
    asked = [
        Asked(question_id=n, text="?", pages=(0,), spans=(((2, 2),),), answers=("12.50",))
        for n in range(2)
    ]
    data = batch_for(spec)
    for meta in data.metas:
        meta.extra["starts"][9:] = meta.extra["ends"][9:] = False  # the page has four words
    evaluator = QuestionEvaluator(Corpus([page], asked))
    model, post = spec.build(spec.config, 0), spec.postprocess(spec.config)
    metrics = evaluate(model, post, [data], evaluator, device=CPU)
    assert 0 <= metrics["ANLS"] <= 1
    for task in ("ser", "classify"):
        config = replace(spec.config, task=task)
        logits = spec.build(config, 5)(**data.inputs)["logits"]
        assert logits.shape[-1] == 5
        assert len(spec.postprocess(config)({"logits": logits}, data.metas)) == 2


def evaluate_detection(spec):
    model = spec.build(spec.config, 5)
    truth = {
        "images": [{"id": i, "height": 64, "width": 96} for i in (0, 1)],
        "categories": [{"id": 3 * i + 1, "name": f"c{i}"} for i in range(5)],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 7, "bbox": [9, 9, 30, 30],
             "area": 900, "iscrowd": 0},
        ],
    }  # fmt: skip
    evaluator = CocoEvaluator(truth, tuple(3 * i + 1 for i in range(5)))
    post = spec.postprocess(spec.config)
    metrics = evaluate(model, post, [batch_for(spec, 5)], evaluator, device=CPU)
    assert 0 <= metrics["AP"] <= 1
    model.eval()
    found = post(model(**batch_for(spec).inputs), batch().metas)
    assert len(found) == 2
    for detections, meta in zip(found, batch().metas, strict=True):
        assert 0 < len(detections.boxes) <= 100
        assert detections.labels.max() < 5
        assert (detections.scores[:-1] >= detections.scores[1:]).all()
        height, width = meta.orig_size
        assert (detections.boxes >= 0).all()
        assert (detections.boxes[:, [0, 2]] <= width).all()
        assert (detections.boxes[:, [1, 3]] <= height).all()


def test_state_and_config_round_trip(spec):
    model = spec.build(spec.config, 3)
    again = spec.build(spec.config, 3)
    again.load_state_dict(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    card = Card(
        name=spec.name, config=to_plain(spec.config), class_names=("a",), class_ids=(1,),
        preprocess={},
    )  # fmt: skip
    plain = json.loads(card.to_json())["config"]
    assert from_plain(model_spec(spec.name).config, plain) == spec.config


def test_what_it_says_of_itself(spec):
    assert spec.summary.endswith(".")
    assert spec.recipe
    config = spec.config
    if reads_documents(spec):
        config = replace(config, task="ser")
    state = spec.build(config, 3).state_dict()
    for rows in spec.class_rows:
        found = [key for key in state if fnmatchcase(key, rows)]
        assert found, rows
        assert all(state[key].shape[0] in (3, 4) for key in found), rows
    if not reads_documents(spec):
        heads = [k for k in state if "class_embed" in k.split(".")]
        assert all(any(fnmatchcase(k, r) for r in spec.class_rows) for k in heads)
