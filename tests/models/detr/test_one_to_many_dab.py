"""One-to-many matching in DAB-DETR: only training has it, and it changes no prediction."""

from dataclasses import replace

import pytest
import torch

from zoo.errors import ZooError
from zoo.models.detr.dab_detr import DabDetr, DabDetrConfig, _criterion
from zoo.models.detr.one_to_many import OneToManyCriterion

PLAIN = DabDetrConfig(
    widths=(16, 16, 24, 32), depths=(1, 1, 1, 1), dim=32, num_heads=4, encoder_layers=1,
    decoder_layers=3, ffn_dim=48, num_queries=7, denoising=True, dn_groups=2, many_groups=2,
    many_repeats=2,
)  # fmt: skip
SELECTING = replace(
    PLAIN, strides=(8, 16, 32), memory_stride=16, query_selection=True, local_start=True
)
CONFIGS = {
    "plain": PLAIN, "selecting": SELECTING, "no noise": replace(SELECTING, denoising=False),
    "patterns": replace(PLAIN, num_patterns=2),
}  # fmt: skip


def targets():
    return [
        {"labels": torch.randint(5, (m,)), "boxes": torch.rand(m, 4) * 0.2 + 0.3} for m in (2, 0, 4)
    ]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_groups_change_no_prediction_and_everything_learns(name):
    config = CONFIGS[name]
    torch.manual_seed(0)
    model = DabDetr(config, 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    alone = DabDetr(replace(config, many_groups=0), 5)
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith("many.")}
    alone.load_state_dict(kept)
    pixels, wanted = torch.randint(0, 256, (3, 3, 96, 128), dtype=torch.uint8), targets()
    outs = []
    for m in (model, alone):
        torch.manual_seed(1)
        outs.append(m.train()(pixels, targets=wanted))
    assert "many_outputs" not in outs[1]
    for out, other in zip(
        *([o, *o["aux_outputs"], *([o["dn_outputs"]] if config.denoising else [])] for o in outs),
        strict=True,
    ):
        for key in ("pred_logits", "pred_boxes"):
            torch.testing.assert_close(out[key], other[key], rtol=0, atol=1e-5)
    many = outs[0]["many_outputs"]
    assert many["pred_boxes"].shape == (3, 3, 14, 4)
    criterion, plain = _criterion(config, 5), _criterion(replace(config, many_groups=0), 5)
    assert isinstance(criterion, OneToManyCriterion)
    losses, base = criterion(outs[0], wanted), plain(outs[1], wanted)
    assert losses.terms.keys() > base.terms.keys()
    torch.testing.assert_close(losses.terms["loss_ce"], base.terms["loss_ce"], rtol=0, atol=1e-4)
    assert losses.total > base.total
    losses.total.backward()
    for n, parameter in model.named_parameters():
        assert parameter.grad is not None, n
        assert torch.isfinite(parameter.grad).all(), n
    assert all(p.grad.abs().sum() > 0 for p in model.many.parameters())
    evaluated = model.eval()(pixels)
    assert set(evaluated) == {"pred_logits", "pred_boxes"}


def test_settings_that_make_no_sense_are_refused():
    for change in ({"many_groups": -1}, {"many_repeats": 0}, {"coef_many": -1.0}):
        with pytest.raises(ZooError, match="many_groups"):
            DabDetr(replace(PLAIN, **change), 5)
