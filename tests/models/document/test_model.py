"""What holds for every variant: padding, masks, gradients, precision, errors, shapes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.models.document import encoder
from zoo.models.document.config import LayoutConfig
from zoo.models.document.doc import doc_nano
from zoo.models.document.encoder import LayoutEncoder
from zoo.models.document.ernie_layout import ernie_layout_disentangled, ernie_layout_x_base
from zoo.models.document.layoutlm import layoutlm_base, layoutlm_docqa
from zoo.models.document.layoutlmv3 import layoutlmv3_base
from zoo.models.document.losses import DocumentCriterion
from zoo.models.document.model import DocumentModel
from zoo.models.document.vilt import vilt_b32
from zoo.registry import ModelSpec

Variant = Callable[[], LayoutConfig | ModelSpec]


def config_of(variant: Variant) -> LayoutConfig:
    """A variant's settings, whether it is registered yet or not."""
    made = variant()
    return made if isinstance(made, LayoutConfig) else made.config


VARIANTS: dict[str, Variant] = {
    fn.__name__: fn
    for fn in (
        doc_nano,
        layoutlm_base,
        layoutlmv3_base,
        vilt_b32,
        ernie_layout_x_base,
        ernie_layout_disentangled,
    )
}
TASKS = ("qa", "ser", "classify")
CLASSES = 4
LENGTH = 9


def tiny(name: str, **settings: Any) -> LayoutConfig:
    """A variant with its switches and the size of a toy."""
    sizes = {"dim": 24, "num_heads": 4, "num_layers": 2, "ffn_dim": 32, "dropout": 0.0}
    text = {"vocab_size": 30, "max_positions": 60, "segment_types": 2}
    boxes = {"coordinate_size": 4, "shape_size": 4}
    vision = {"patch_size": 8, "image_size": 32, "grid_width": 16}
    return replace(config_of(VARIANTS[name]), **{**sizes, **text, **boxes, **vision, **settings})


def make(name: str, task: str = "qa", **settings: Any) -> DocumentModel:
    """A model in double precision, far from its start (where biases and boxes are zero)."""
    model = DocumentModel(tiny(name, task=task, **settings), CLASSES).double()
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def batch(name: str, lengths: tuple[int, ...] = (LENGTH, 4, 1)) -> dict[str, Tensor]:
    count, length = len(lengths), max(lengths)
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    out = {
        "input_ids": torch.randint(2, 30, (count, length)),
        "bbox": torch.randint(0, 1001, (count, length, 4)),
        "attention_mask": mask,
        "segment_ids": torch.randint(0, 2, (count, length)),
    }
    if config_of(VARIANTS[name]).vision != "none":
        out["pixel_values"] = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    return out


def valid(out: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    return {k: v[mask] if v.shape[:2] == mask.shape else v for k, v in out.items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor], limit: float = 1e-10) -> None:
    for key, value in first.items():
        assert value.std() > 1e-3, key
        assert (value - second[key]).abs().max() <= limit, key


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", list(VARIANTS))
@torch.no_grad()
def test_masked_keys_are_ignored(name: str, task: str) -> None:
    model, given = make(name, task), batch(name)
    mask = given["attention_mask"]
    wanted = valid(model(**given), mask)
    changed = dict(given)
    for key, other in (("input_ids", 7), ("bbox", 999), ("segment_ids", 1)):
        changed[key] = given[key].clone()
        changed[key][~mask] = other
    equal(valid(model(**changed), mask), wanted)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", list(VARIANTS))
@torch.no_grad()
def test_padding_changes_nothing(name: str, task: str) -> None:
    """Each row of a padded batch is as if alone."""
    model, given = make(name, task), batch(name)
    out = model(**given)
    for row, length in enumerate((LENGTH, 4, 1)):
        text = {
            k: v[row : row + 1] if k == "pixel_values" else v[row : row + 1, :length]
            for k, v in given.items()
        }
        alone = model(**text)
        del text["attention_mask"]  # no mask and a mask that is True everywhere are one
        unmasked = model(**text)
        for key, value in alone.items():
            mine = out[key][row : row + 1]
            mine = mine if task == "classify" else mine[:, :length]
            assert (mine - value).abs().max() <= 1e-10
            assert torch.equal(unmasked[key], value)


@pytest.mark.parametrize("at_once", [1, 10**6])
@pytest.mark.parametrize("name", VARIANTS)
def test_leaving_padding_out_changes_nothing(name: str, at_once: int, monkeypatch) -> None:
    """On CPUs rows are packed where a batch has much padding; results and gradients stay."""
    model, given = make(name), batch(name)
    mask = given["attention_mask"]
    calls: list[int] = []
    packed = LayoutEncoder._encode_packed

    def counted(self: LayoutEncoder, *args: Any) -> Tensor:
        calls.append(1)
        return packed(self, *args)

    monkeypatch.setattr(LayoutEncoder, "_encode_packed", counted)
    monkeypatch.setattr(encoder, "PACKED", at_once)
    results = []
    for full in (2.0, 0.0):  # packed, and not
        monkeypatch.setattr(encoder, "MOSTLY_FULL", full)
        model.zero_grad()
        out = valid(model(**given), mask)
        sum((x**2).sum() for x in out.values()).backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((out, grads))
    assert len(calls) == (name != "ernie_layout_disentangled")
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_in_single_precision_padding_changes_next_to_nothing() -> None:
    model, given = make("doc_nano").float(), batch("doc_nano")
    out = model(**given)["start_logits"]
    alone = model(**{k: v[1:2, :4] for k, v in given.items()})["start_logits"]
    assert (out[1:2, :4] - alone).abs().max() <= 1e-6


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_parameter_is_trained(name: str, task: str) -> None:
    model, given = make(name, task), batch(name)
    out = model(**given)
    if task == "qa":
        targets = [{"starts": torch.tensor([1, 2]), "ends": torch.tensor([3, 2])},
                   {"starts": torch.tensor([3]), "ends": torch.tensor([3])},
                   {"starts": torch.tensor([0]), "ends": torch.tensor([0])}]  # fmt: skip
    elif task == "ser":
        targets = [{"labels": torch.randint(0, CLASSES, (n,))} for n in (LENGTH, 4, 1)]
    else:
        targets = [{"label": torch.tensor(n)} for n in (0, 3, 1)]
    losses = DocumentCriterion(task)(out, targets)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_bfloat16_is_near_and_its_biases_are_trained(name: str, trains: bool) -> None:
    """In training the attention is written out on CPUs, else fused; both take the bias."""
    model, given = make(name).float().train(trains), batch(name)
    mask = given["attention_mask"]
    with torch.set_grad_enabled(trains):
        wanted = model(**given)["start_logits"][mask]
        with torch.autocast("cpu", torch.bfloat16):
            found = model(**given)["start_logits"]
    assert found.dtype == torch.float32
    assert (found[mask] - wanted).abs().max() < 0.1 * wanted.abs().max()
    if trains:
        found[mask].pow(2).sum().backward()
        for holder in (model.encoder.bias, model.encoder.places):
            for table in holder.parameters() if holder is not None else ():
                assert torch.isfinite(table.grad).all()
                assert table.grad.abs().max() > 0


def test_the_bias_makes_a_difference() -> None:
    model, given = make("doc_nano"), batch("doc_nano")
    before = model(**given)["start_logits"]
    for table in model.encoder.bias.parameters():
        torch.nn.init.zeros_(table)
    mask = given["attention_mask"]
    assert (model(**given)["start_logits"] - before)[mask].abs().max() > 1e-3


def test_reading_order_is_what_position_ids_say() -> None:
    """The same tokens in another order, with their places told, have the same scores."""
    for name in ("doc_nano", "layoutlmv3_base", "ernie_layout_disentangled"):
        model, given = make(name), batch(name, (LENGTH,))
        del given["attention_mask"]
        order = torch.randperm(LENGTH)
        shuffled = {k: v if k == "pixel_values" else v[:, order] for k, v in given.items()}
        wanted = model(**given)["start_logits"][:, order]
        found = model(**shuffled, position_ids=order[None])["start_logits"]
        assert (found - wanted).abs().max() <= 1e-10
        assert (model(**shuffled)["start_logits"] - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["layoutlmv3_base", "vilt_b32", "ernie_layout_x_base"])
@torch.no_grad()
def test_the_image_is_seen(name: str) -> None:
    """Unlike in transformers' pipeline, which drops LayoutLMv3's image without a word."""
    model, given = make(name), batch(name)
    mask = given["attention_mask"]
    seen = model(**given)["start_logits"][mask]
    del given["pixel_values"]
    assert (model(**given)["start_logits"][mask] - seen).abs().max() > 1e-3


@torch.no_grad()
def test_folding_the_cnns_norms_changes_nothing() -> None:
    model, given = make("ernie_layout_x_base"), batch("ernie_layout_x_base")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    wanted = model(**given)
    model.encoder.vision.backbone.fuse()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    mask = given["attention_mask"]
    equal(valid(model(**given), mask), valid(wanted, mask))


def test_masks_may_be_integers() -> None:
    model, given = make("doc_nano"), batch("doc_nano")
    wanted = model(**given)
    given["attention_mask"] = given["attention_mask"].long()
    for key, value in model(**given).items():
        assert torch.equal(value, wanted[key])


def test_shapes_of_the_outputs() -> None:
    given = batch("doc_nano")
    assert make("doc_nano", "ser")(**given)["logits"].shape == (3, LENGTH, CLASSES)
    assert make("doc_nano", "classify")(**given)["logits"].shape == (3, CLASSES)
    out = make("doc_nano")(**given)
    assert {k: v.shape for k, v in out.items()} == {
        "start_logits": (3, LENGTH),
        "end_logits": (3, LENGTH),
    }


def test_what_is_refused() -> None:
    model, given = make("doc_nano"), batch("doc_nano")
    with pytest.raises(ZooError, match="no vision and would ignore the image"):
        model(**given, pixel_values=torch.zeros(3, 3, 8, 8))
    with pytest.raises(ZooError, match="61 tokens and the model 60 positions"):
        model(torch.zeros(1, 61).long(), torch.zeros(1, 61, 4).long())
    with pytest.raises(ZooError, match="attention reads boxes"):
        make("doc_nano", boxes="none")(given["input_ids"])
    with pytest.raises(ZooError, match="needs classes"):
        DocumentModel(tiny("doc_nano", task="ser"), 0)


@pytest.mark.parametrize(
    ("variant", "wanted"),
    [(doc_nano, 24.1), (ernie_layout_x_base, 281.1), (ernie_layout_disentangled, 282.1)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_millions_of_parameters(variant: Variant, wanted: float) -> None:
    """Of the encoder, as the docstrings say; the others' shapes are compared with transformers'."""
    with torch.device("meta"):
        model = DocumentModel(config_of(variant), CLASSES)
    millions = sum(p.numel() for p in model.encoder.parameters()) / 1e6
    assert millions == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize("variant", [*VARIANTS.values(), layoutlm_docqa])
def test_names_are_as_the_registry_asks(variant: Variant) -> None:
    stem = variant.__module__.rsplit(".", 1)[-1]
    assert variant.__name__.startswith(f"{stem}_")
    config_of(variant).check()
