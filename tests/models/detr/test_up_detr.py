"""UP-DETR: patches as queries, one at a time and in groups; from pretext to fine-tuning."""

from dataclasses import replace

import pytest
import torch
from detector_checks import padded_pair, shaken
from torch.nn import functional as F
from torchvision.ops import box_convert, roi_align

from zoo.errors import ZooError
from zoo.models.detr.up_detr import PretextCriterion, UpDetr, UpDetrConfig
from zoo.registry import model_spec
from zoo.weights import Loaded

TINY = UpDetrConfig(
    backbone="nano", dim=32, num_heads=4, encoder_layers=1, decoder_layers=2, ffn_dim=48,
    num_queries=6, dropout=0.0, pretext=True, patch_size=32, freeze_backbone=False,
)  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(4)
    return shaken(UpDetr(TINY, 1).eval())


@pytest.fixture
def batch():
    """Two pictures, the second padded, with three patches each."""
    boxes = torch.tensor([[0.3, 0.4, 0.3, 0.5], [0.7, 0.6, 0.4, 0.4], [0.5, 0.5, 0.2, 0.2]])
    return *padded_pair(), torch.stack([boxes, boxes.flip(0)])


def test_a_patch_is_seen_alone_by_the_backbone(model, batch):
    pixels, mask, boxes = batch
    got = model._features(pixels, mask, boxes)
    sizes = [(128, 96), (96, 80)]
    normal = model.detr.backbone.normalize(pixels, mask)
    for i, (width, height) in enumerate(sizes):
        for n in range(3):
            box = box_convert(boxes[i, n], "cxcywh", "xyxy") * torch.tensor([width, height] * 2)
            cut = roi_align(normal[i : i + 1], [box[None]], (32, 32), aligned=True)
            want = model.detr.backbone.features(cut)[-1].mean((2, 3))[0]
            torch.testing.assert_close(got[i, n], want, rtol=0, atol=1e-5)


def test_groups_do_not_see_each_other(model, batch):
    pixels, mask, boxes = batch
    out = model(pixels, mask, boxes)
    other = boxes.clone()
    other[:, 1] = torch.tensor([0.2, 0.2, 0.3, 0.3])
    changed = model(pixels, mask, other)
    same = (out["pred_boxes"] - changed["pred_boxes"]).abs().amax(-1)
    assert same[:, [0, 1, 4, 5]].max() < 1e-6  # of the first and the third patch
    assert same[:, 2:4].min() > 1e-4


def test_groups_are_as_many_as_patches(model):
    _, seen = model._queries(torch.zeros(1, 2, model.detr.backbone.num_channels[-1]))
    assert seen.tolist() == [[a // 3 == b // 3 for b in range(6)] for a in range(6)]
    with pytest.raises(ZooError, match="6 queries can't be shared by 4 patches"):
        model._queries(torch.zeros(1, 4, model.detr.backbone.num_channels[-1]))


def test_some_queries_get_no_patch_in_training_only(model):
    patches = torch.ones(50, 3, model.detr.backbone.num_channels[-1])
    base = model.detr.query_embed.weight
    evaluated = model._queries(patches)[0]
    assert (evaluated != base).any(-1).all()
    torch.manual_seed(0)
    model.train()
    bare = (model._queries(patches)[0] == base).all(-1).float().mean()
    assert 0.05 < bare < 0.16


def test_the_reconstruction_loss_is_of_the_matched_patch(model, batch):
    pixels, mask, boxes = batch
    spec = model_spec("up_detr_pretext_nano")
    criterion = spec.criterion(spec.config, 1)
    assert isinstance(criterion, PretextCriterion)
    with torch.no_grad():
        out = model(pixels, mask, boxes)
    targets = [{"labels": torch.zeros(3, dtype=torch.long), "boxes": b} for b in boxes]
    losses = criterion(out, targets)
    logits, places = out["pred_logits"][None], out["pred_boxes"][None]
    found = criterion.criterion.matcher.assign(logits, places, targets)
    total = 0.0
    for image, query, row in zip(
        found.image.tolist(), found.query[0].tolist(), found.target[0].tolist(), strict=True
    ):
        a = F.normalize(out["pred_features"][image, query], dim=0)
        b = F.normalize(out["patch_features"][row // 3, row % 3], dim=0)
        total += float((a - b).square().sum())
    assert float(losses.terms["loss_feature"]) == pytest.approx(total / 6, rel=1e-4)


def test_fine_tuning_starts_from_the_pretext_task(model):
    spec = model_spec("up_detr_nano")
    tuned = UpDetr(replace(TINY, pretext=False), 5).eval()
    loaded = Loaded(state=model.state_dict(), origin="run", layout="ours", class_names=("patch",))
    names = ("a", "b", "c", "d", "e")
    note = spec.start(tuned, loaded, class_rows=spec.class_rows, class_names=names)
    assert "left out the pretext task's parts" in note
    before, after = model.state_dict(), tuned.state_dict()
    same = [k for k in after if "class_embed" not in k]
    assert all(torch.equal(before[k], after[k]) for k in same)
    assert set(before) - set(after) == {k for k in before if k.startswith(("patch_", "feature_"))}
    assert tuned(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))["pred_logits"].shape == (1, 6, 6)


def test_a_frozen_backbone_is_only_in_the_pretext_task():
    frozen = UpDetr(replace(TINY, freeze_backbone=True), 1)
    assert not any(p.requires_grad for p in frozen.detr.backbone.parameters())
    tuned = UpDetr(replace(TINY, freeze_backbone=True, pretext=False), 1)
    assert any(p.requires_grad for p in tuned.detr.backbone.parameters())


def test_bad_settings_and_missing_patches(model):
    with pytest.raises(ZooError, match="needs patches to find"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ZooError, match=r"model\.patch_drop is 1\.0"):
        UpDetr(replace(TINY, patch_drop=1.0), 1)
