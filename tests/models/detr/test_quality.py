"""The criterion with the varifocal loss against transformers' RT-DETR loss."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou
from transformers.loss.loss_rt_detr import RTDetrLoss

from zoo.models.detr.contrastive import ContrastiveQueries, contrastive_queries
from zoo.models.detr.criterion import SetCriterion
from zoo.models.detr.denoising import denoising_queries
from zoo.models.detr.matcher import HungarianMatcher
from zoo.models.detr.quality import VarifocalLoss, paired_iou
from zoo.types import Target

CLASSES = 4
QUERIES = 7
THEIRS = SimpleNamespace(
    num_labels=CLASSES, matcher_class_cost=2.0, matcher_bbox_cost=5.0, matcher_giou_cost=2.0,
    use_focal_loss=True, matcher_alpha=0.25, matcher_gamma=2.0, weight_loss_vfl=1.0,
    weight_loss_bbox=5.0, weight_loss_giou=2.0, eos_coefficient=1e-4, focal_loss_alpha=0.75,
    focal_loss_gamma=2.0,
)  # fmt: skip


def criterion(alpha: float = 0.75, gamma: float = 2.0, **settings: Any) -> SetCriterion:
    matcher = HungarianMatcher(2.0, 5.0, 2.0, kind="focal")
    return SetCriterion(CLASSES, matcher, VarifocalLoss(alpha, gamma), **settings)


def random_boxes(*shape: int) -> Tensor:
    return torch.cat([torch.rand(*shape, 2) * 0.6 + 0.2, torch.rand(*shape, 2) * 0.3 + 0.05], -1)


def some_targets(*counts: int) -> list[Target]:
    return [{"labels": torch.randint(CLASSES, (n,)), "boxes": random_boxes(n)} for n in counts]


def some_outputs(batch: int, layers: int = 3, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    made = [
        {
            "pred_logits": (torch.randn(batch, QUERIES, CLASSES) * 2).to(dtype).requires_grad_(),
            "pred_boxes": random_boxes(batch, QUERIES).to(dtype).requires_grad_(),
        }
        for _ in range(layers)
    ]
    return {**made[-1], "aux_outputs": made[:-1]}


def with_denoising(outputs: dict[str, Any], targets: list[Target], layers: int = 2) -> None:
    queries = contrastive_queries(targets, CLASSES, total=5)
    shape = (layers, len(targets), queries.length)
    outputs["dn_outputs"] = {
        "pred_logits": torch.randn(*shape, CLASSES, dtype=torch.float64).requires_grad_(),
        "pred_boxes": random_boxes(*shape).double().requires_grad_(),
        "denoising": queries,
    }


def as_theirs(outputs: dict[str, Any]) -> dict[str, Any]:
    def one(layer: dict[str, Any]) -> dict[str, Any]:
        return {"logits": layer["pred_logits"], "pred_boxes": layer["pred_boxes"]}

    made = {**one(outputs), "auxiliary_outputs": [one(a) for a in outputs["aux_outputs"]]}
    if "dn_outputs" in outputs:
        noised = outputs["dn_outputs"]
        queries: ContrastiveQueries = noised["denoising"]
        made["denoising_meta_values"] = {
            "dn_positive_idx": [
                queries.slot[queries.image == n] for n in range(len(queries.valid))
            ],
            "dn_num_group": queries.groups,
        }
        made["dn_auxiliary_outputs"] = [
            {"logits": c, "pred_boxes": b}
            for c, b in zip(noised["pred_logits"], noised["pred_boxes"], strict=True)
        ]
    return made


def gradients(outputs: dict[str, Any]) -> list[Tensor]:
    layers = [outputs, *outputs["aux_outputs"]]
    if "dn_outputs" in outputs:
        layers.append(outputs["dn_outputs"])
    made = []
    for layer in layers:
        for name in ("pred_logits", "pred_boxes"):
            made.append(layer[name].grad.clone())
            layer[name].grad = None
    return made


@pytest.mark.parametrize("counts", [(3, 3), (2,), (4, 1, 0), (0, 0)])
@pytest.mark.parametrize("denoise", [False, True])
def test_equals_transformers(counts, denoise):
    targets = some_targets(*counts)
    targets = [{**t, "boxes": t["boxes"].double()} for t in targets]
    outputs = some_outputs(len(counts))
    # Transformers scores empty slots too, as of nothing: equal where there are none.
    if denoise and len(set(counts)) == 1 and sum(counts):
        with_denoising(outputs, targets)
    theirs = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    wanted = RTDetrLoss(THEIRS)(as_theirs(outputs), theirs)
    sum(wanted.values()).backward()
    wanted = {name: value.detach() for name, value in wanted.items()}
    their_gradients = gradients(outputs)
    found = criterion()(outputs, targets)
    found.total.backward()
    assert found.total.detach().item() == pytest.approx(sum(wanted.values()).item(), rel=1e-12)
    for mine, other in zip(gradients(outputs), their_gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
    names = {"ce": "loss_vfl", "bbox": "loss_bbox", "giou": "loss_giou"}
    weights = {"ce": 1.0, "bbox": 5.0, "giou": 2.0}
    for name, their in names.items():
        term = found.terms[f"loss_{name}"] * weights[name]
        assert float(term) == pytest.approx(float(wanted[their]), abs=1e-12)
        term = found.terms[f"loss_{name}_1"] * weights[name]
        assert float(term) == pytest.approx(float(wanted[f"{their}_aux_1"]), abs=1e-12)
        if "dn_outputs" in outputs:
            term = found.terms[f"dn_loss_{name}_0"] * weights[name]
            assert float(term) == pytest.approx(float(wanted[f"{their}_dn_0"]), abs=1e-12)


def test_settings_weigh():
    targets = some_targets(2, 3)
    outputs = some_outputs(2, layers=1)
    plain = criterion()(outputs, targets)
    other = criterion(coef_class=3.0, coef_bbox=1.0, coef_giou=0.0)(outputs, targets)
    wanted = 3 * plain.terms["loss_ce"] + plain.terms["loss_bbox"]
    torch.testing.assert_close(other.total, wanted)
    steep = criterion(alpha=0.5, gamma=1.0)(outputs, targets)
    assert steep.terms["loss_ce"] != plain.terms["loss_ce"]
    assert steep.terms["loss_giou"] == plain.terms["loss_giou"]


def test_empty_slots_and_visible_negatives():
    """Empty slots say nothing; negatives are to be no object of any class."""
    targets = some_targets(3, 1)
    outputs = some_outputs(2, layers=1)
    with_denoising(outputs, targets)
    noised = outputs["dn_outputs"]
    criterion()(outputs, targets).total.backward()
    gradient = noised["pred_logits"].grad
    valid = noised["denoising"].valid
    assert (gradient[:, ~valid] == 0).all()
    assert (gradient[:, valid] != 0).any(-1).all()
    queries = noised["denoising"]
    assert (gradient[:, queries.image, queries.negative] > 0).all()
    boxes = noised["pred_boxes"].grad
    assert (boxes[:, queries.image, queries.negative] == 0).all()
    assert (boxes[:, queries.image, queries.slot] != 0).any(-1).all()


def test_plain_denoising_has_no_negatives():
    targets = some_targets(2)
    outputs = some_outputs(1, layers=1)
    queries = denoising_queries(targets, CLASSES, groups=2)
    outputs["dn_outputs"] = {
        "pred_logits": torch.zeros(1, 1, 4, CLASSES), "pred_boxes": queries.boxes[None],
        "denoising": queries,
    }  # fmt: skip
    found = criterion()(outputs, targets)
    assert found.terms["dn_loss_ce"].isfinite()


def test_a_perfect_prediction_costs_nothing():
    targets = some_targets(3)
    logits = torch.full((1, QUERIES, CLASSES), -30.0)
    boxes = random_boxes(1, QUERIES)
    boxes[0, :3] = targets[0]["boxes"]
    logits[0, torch.arange(3), targets[0]["labels"]] = 30.0
    found = criterion()({"pred_logits": logits, "pred_boxes": boxes}, targets)
    assert float(found.total) < 1e-5


def test_no_gradient_passes_through_the_quality():
    targets = some_targets(3)
    outputs = some_outputs(1, layers=1)
    criterion(coef_bbox=0.0, coef_giou=0.0)(outputs, targets).total.backward()
    assert (outputs["pred_boxes"].grad == 0).all()


def test_paired_iou():
    a, b = torch.rand(2, 20, 2, 2).sort(2).values.flatten(2)
    torch.testing.assert_close(paired_iou(a, b), box_iou(a, b).diag())
    point = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert paired_iou(point, point) == 0


def test_wrong_use_is_said():
    with pytest.raises(ValueError, match="softmax"):
        SetCriterion(CLASSES, HungarianMatcher(kind="softmax"), VarifocalLoss())
    other = SetCriterion(5, HungarianMatcher(kind="focal"), VarifocalLoss())
    with pytest.raises(ValueError, match="4 columns; focal with 5 classes has 5"):
        other(some_outputs(1), some_targets(1))
