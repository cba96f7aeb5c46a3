"""DAB- and DN-Deformable-DETR: anchors as queries, and noised objects that nobody sees."""

from dataclasses import replace

import torch
from detector_checks import shaken

from zoo.models.detr.dab_deformable_detr import DabDeformableDetr, DabDeformableDetrConfig
from zoo.registry import model_spec

TINY = DabDeformableDetrConfig(
    backbone="nano", num_levels=3, dim=32, num_heads=4, encoder_layers=1, decoder_layers=3,
    ffn_dim=48, num_queries=9,
)  # fmt: skip


def built(**settings):
    torch.manual_seed(4)
    return shaken(DabDeformableDetr(replace(TINY, **settings), 3))


def test_a_query_begins_at_its_anchor_and_every_layer_moves_it(batch):
    pixels, mask, _ = batch
    model = built().train()
    with torch.no_grad():
        for parameter in model.bbox_embed.layers[-1].parameters():
            parameter.zero_()
        out = model(pixels, mask)
    anchors = model.anchors().sigmoid().expand(2, -1, -1)
    for layer in (*out["aux_outputs"], out):
        torch.testing.assert_close(layer["pred_boxes"], anchors, rtol=0, atol=1e-4)
    with torch.no_grad():
        model.bbox_embed.layers[-1].bias.fill_(0.1)
        moved = model(pixels, mask)
    for n, layer in enumerate((*moved["aux_outputs"], moved)):
        wanted = (model.anchors() + 0.1 * (n + 1)).sigmoid().expand(2, -1, -1)
        torch.testing.assert_close(layer["pred_boxes"], wanted, rtol=0, atol=1e-4)


def test_positions_are_scaled_by_contents_from_the_second_layer_on():
    model = built()
    references = torch.rand(1, 9, 4)
    one, other = torch.randn(2, 1, 9, 32)
    assert torch.equal(model._places(references, one, 0), model._places(references, other, 0))
    apart = model._places(references, one, 1) - model._places(references, other, 1)
    assert apart.abs().max() > 1e-3


def test_queries_do_not_see_the_noised_objects(batch):
    pixels, mask, targets = batch
    model = built(denoising=True, dn_groups=2).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        noised, plain = model(pixels, mask, targets), model(pixels, mask)
    torch.testing.assert_close(noised["pred_boxes"], plain["pred_boxes"], rtol=0, atol=1e-5)
    torch.testing.assert_close(noised["pred_logits"], plain["pred_logits"], rtol=0, atol=1e-5)
    assert noised["dn_outputs"]["pred_boxes"].shape == (3, 2, 4, 4)
    spec = model_spec("dn_deformable_detr_nano")
    terms = spec.criterion(spec.config, 3)(noised, targets).terms
    assert {"dn_loss_ce", "dn_loss_giou_1", "loss_bbox_0"} <= set(terms)


def test_frozen_centres_stay():
    model = built(random_refpoints_xy=True)
    assert "anchors.xy" not in dict(model.named_parameters())
    assert "anchors.wh" in dict(model.named_parameters())
