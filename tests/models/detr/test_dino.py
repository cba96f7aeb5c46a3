"""DINO: what its three changes promise, each against Deformable DETR's way or a loop."""

from dataclasses import replace

import pytest
import torch
from detector_checks import shaken
from torch.nn import functional as F

from zoo.models.detr.dino import Dino, DinoConfig
from zoo.registry import model_spec

TINY = DinoConfig(
    backbone="nano", num_levels=3, dim=32, num_heads=4, encoder_layers=1, decoder_layers=3,
    ffn_dim=48, num_queries=9, dn_queries=4,
)  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(4)
    return shaken(Dino(TINY, 3))


def test_contents_are_learned_and_places_are_the_best_proposals(model, batch):
    pixels, mask, _ = batch
    model.eval()
    levels = model.input_proj(model.backbone(pixels, mask), mask)
    memory = model.encoder(levels)
    content, anchors, chosen = model._queries(memory, levels)
    assert torch.equal(content[0], model.content.weight)
    assert torch.equal(content[0], content[1])
    proposed = model.proposals(memory, levels)
    for i in range(2):
        order = proposed.logits[i].amax(-1).argsort(descending=True)[:9]
        torch.testing.assert_close(chosen["pred_logits"][i], proposed.logits[i, order])
        torch.testing.assert_close(anchors[i].sigmoid(), proposed.boxes[i, order].sigmoid())
    assert not anchors.requires_grad
    assert chosen["pred_boxes"].requires_grad


@pytest.mark.parametrize("twice", [True, False])
def test_a_layer_learns_from_the_box_of_the_next_one_and_of_no_other(model, batch, twice):
    pixels, mask, _ = batch
    model.config = replace(model.config, look_forward_twice=twice)
    levels = model.input_proj(model.backbone(pixels, mask), mask)
    memory = model.encoder(levels).detach()
    content, anchors, _ = model._queries(memory, levels)
    steps = []

    def head(state):
        step = model.bbox_embed(state.detach())  # nothing but boxes connects the layers
        step.retain_grad()
        steps.append(step)
        return step

    wrapped = torch.nn.Module()
    wrapped.forward = head
    wrapped.register_parameter("dtype_of", torch.nn.Parameter(torch.zeros(1)))
    _, boxes = model.decoder(
        content, anchors, memory, levels, query_pos=model._places, box_heads=[wrapped],
        refine=True, look_forward_twice=twice, every=True,
    )  # fmt: skip
    for n, reached in ((1, {0, 1} if twice else {1}), (2, {1, 2} if twice else {2})):
        for step in steps:
            step.grad = None
        boxes[n].sum().backward(retain_graph=True)
        layers = {i // 2 for i, s in enumerate(steps) if s.grad is not None and s.grad.any()}
        assert layers == reached


def test_queries_do_not_see_the_noised_objects(model, batch):
    pixels, mask, targets = batch
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        torch.manual_seed(1)
        noised = model(pixels, mask, targets)
        plain = model(pixels, mask)
    torch.testing.assert_close(noised["pred_boxes"], plain["pred_boxes"], rtol=0, atol=1e-5)
    torch.testing.assert_close(noised["pred_logits"], plain["pred_logits"], rtol=0, atol=1e-5)
    assert "dn_outputs" not in plain
    assert noised["dn_outputs"]["pred_boxes"].shape == (3, 2, 8, 4)  # 2 groups of 2 pairs


def test_negatives_are_to_be_recognised_as_nothing(model, batch):
    pixels, mask, targets = batch
    spec = model_spec("dino_nano")
    criterion = spec.criterion(spec.config, 3)
    model.train()
    with torch.no_grad():
        model.class_embed.bias.fill_(1.0)  # no class is unlikely, so that every term counts
        torch.manual_seed(1)
        out = model(pixels, mask, targets)
    losses = criterion(out, targets)
    queries, logits = out["dn_outputs"]["denoising"], out["dn_outputs"]["pred_logits"][-1]
    labels = torch.cat([t["labels"] for t in targets])
    total = 0.0
    for image, slot, negative, row in zip(
        queries.image, queries.slot, queries.negative, queries.target, strict=True
    ):
        for place, wanted in ((slot, labels[row]), (negative, None)):
            for c, logit in enumerate(logits[image, place]):
                p = logit.sigmoid()
                if wanted is not None and c == wanted:
                    total += 0.25 * (1 - p) ** 2 * F.softplus(-logit)
                else:
                    total += 0.75 * p**2 * F.softplus(logit)
    expected = float(total) / len(queries.target)
    assert float(losses.terms["dn_loss_ce"]) == pytest.approx(expected, rel=1e-4)


def test_proposals_are_one_more_auxiliary_output(model, batch):
    pixels, mask, targets = batch
    out = model.train()(pixels, mask, targets)
    assert [a["pred_boxes"].shape for a in out["aux_outputs"]] == [(2, 9, 4)] * 3
    criterion = model_spec("dino_nano").criterion(TINY, 3)
    terms = criterion(out, targets).terms
    assert {"loss_ce_0", "loss_ce_2", "loss_ce", "dn_loss_ce_1"} <= set(terms)


def test_without_denoising_there_is_no_table_of_labels():
    model = Dino(replace(TINY, dn_queries=0), 3)
    assert not hasattr(model, "label_embed")


def test_fewer_cells_than_queries(model):
    model = Dino(replace(TINY, num_queries=500), 3).eval()
    out = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert out["pred_boxes"].shape == (1, 64 + 16 + 4, 4)
