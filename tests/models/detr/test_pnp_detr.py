"""PnP-DETR: its samplers against loops, and what they promise about padding and order."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models.detr.pnp_detr import PnpCriterion, PnpDetr, PnpDetrConfig, PollAndPool
from zoo.registry import model_spec

TINY = PnpDetrConfig(
    backbone="nano", dim=32, num_heads=4, encoder_layers=1, decoder_layers=2, ffn_dim=48,
    num_queries=6, dropout=0.0, pooled_tokens=3,
)  # fmt: skip


@pytest.fixture
def cells():
    """A sampler in float64, cells, positions and a mask with padding."""
    torch.manual_seed(2)
    sampler = PollAndPool(16, 3).double()
    x, pos = torch.randn(2, 20, 16).double(), torch.randn(2, 20, 16).double()
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 13:] = False
    return sampler, x, pos, mask


def by_loops(sampler, x, pos, mask, share):
    """Tokens and positions of one image, by the paper's formulas, one cell at a time."""
    valid = [i for i in range(len(x)) if mask[i]]
    scores = {i: torch.sigmoid(sampler.score(x[i]))[0] for i in valid}
    best = sorted(valid, key=lambda i: -scores[i].item())[: max(1, int(share * len(valid)))]
    tokens = [F.layer_norm(x[i], x[i].shape) * scores[i] for i in best]
    places = [pos[i] for i in best]
    rest = [i for i in valid if i not in best]
    for m in range(sampler.aggregate.out_features):
        weights = torch.stack([sampler.aggregate(x[i])[m] for i in rest]).softmax(0)
        pairs = list(zip(weights, rest, strict=True))
        tokens.append(sum(w * sampler.value(x[i]) for w, i in pairs))
        places.append(sum(w * pos[i] for w, i in pairs))
    return torch.stack(tokens), torch.stack(places)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_the_samplers_are_the_papers(cells, share):
    sampler, x, pos, mask = cells
    sampled = sampler(x, pos, mask, share)
    assert sampled.tokens.shape == (2, int(20 * share) + 3, 16)
    for i in range(2):
        tokens, places = by_loops(sampler, x[i], pos[i], mask[i], share)
        there = sampled.valid[i]
        assert there.sum() == len(tokens)
        torch.testing.assert_close(sampled.tokens[i][there], tokens, rtol=0, atol=1e-12)
        torch.testing.assert_close(sampled.pos[i][there], places, rtol=0, atol=1e-12)


def test_an_image_with_one_cell_has_a_token_and_no_summary(cells):
    sampler, x, pos, _ = cells
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[0, 4] = True
    mask[1] = True
    sampled = sampler(x, pos, mask, 0.3)
    assert sampled.valid[0].tolist() == [True, *[False] * 8]
    assert sampled.tokens.isfinite().all()


def test_the_scorer_learns_from_what_is_kept(cells):
    sampler, x, pos, mask = cells
    sampler(x, pos, mask, 0.5).tokens.square().sum().backward()
    for name, parameter in sampler.named_parameters():
        assert parameter.grad is not None, name
    assert sampler.score.layers[0].weight.grad.abs().sum() > 0


def test_what_is_kept_does_not_depend_on_the_padding(cells):
    sampler, x, pos, mask = cells
    batched = sampler(x, pos, mask, 0.5)
    alone = sampler(x[1:, :13], pos[1:, :13], mask[1:, :13], 0.5)
    ours, single = batched.tokens[1][batched.valid[1]], alone.tokens[0][alone.valid[0]]
    torch.testing.assert_close(ours, single, rtol=0, atol=1e-12)
    torch.testing.assert_close(batched.scores[1], alone.scores[0], rtol=0, atol=1e-12)


def test_the_encoder_reads_less(monkeypatch):
    torch.manual_seed(0)
    model = PnpDetr(TINY, 3).eval()
    lengths = []
    encode = model.detr.encoder.forward
    monkeypatch.setattr(
        model.detr.encoder,
        "forward",
        lambda x, *rest: lengths.append(x.shape[1]) or encode(x, *rest),
    )
    out = model(torch.zeros(1, 3, 256, 320, dtype=torch.uint8))
    cells = 16 * 20
    assert lengths == [cells * 333 // 1000 + 3]
    assert "poll_scores" not in out


def test_the_share_varies_in_training_and_not_in_evaluation():
    torch.manual_seed(0)
    model = PnpDetr(replace(TINY, poll_least=0.3, poll_most=0.8), 3)
    drawn = [model._share() for _ in range(200)]
    assert 0.3 <= min(drawn) < 0.35
    assert 0.75 < max(drawn) <= 0.8
    assert {model.eval()._share() for _ in range(3)} == {TINY.poll_share}


def test_the_scores_are_penalised():
    spec = model_spec("pnp_detr_nano")
    criterion = spec.criterion(spec.config, 3)
    assert isinstance(criterion, PnpCriterion)
    outputs = {"pred_logits": torch.zeros(1, 6, 4), "pred_boxes": torch.full((1, 6, 4), 0.5)}
    targets = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.4, 0.4, 0.2, 0.2]])}]
    plain = criterion(outputs, targets)
    scored = criterion({**outputs, "poll_scores": torch.tensor([0.5])}, targets)
    assert scored.terms["loss_score"] == 0.5
    assert float(scored.total - plain.total) == pytest.approx(0.5e-4, rel=0.02)


def test_a_share_that_is_none_is_told():
    with pytest.raises(ZooError, match=r"model\.poll_share is 1\.5"):
        PnpDetr(replace(TINY, poll_share=1.5), 3)
    with pytest.raises(ZooError, match="the least no more than the most"):
        PnpDetr(replace(TINY, poll_least=0.9), 3)
