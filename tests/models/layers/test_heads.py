"""Heads of detectors: how they begin, their precision, and the rows with the best scores."""

import math

import pytest
import torch

from zoo.models.layers.heads import (
    MAX_LOGIT,
    MIN_SIDE,
    best_rows,
    box_head,
    class_head,
    exact,
)


def test_heads_begin_at_the_prior_and_move_nothing():
    x = torch.randn(2, 5, 16)
    scores = class_head(16, 7)(x * 0).sigmoid()
    torch.testing.assert_close(scores, torch.full((2, 5, 7), 0.01))
    assert not box_head(16)(x).any()
    assert torch.tensor(MIN_SIDE, dtype=torch.float64).logit().item() == pytest.approx(
        -MAX_LOGIT, abs=2 * MIN_SIDE
    )
    assert math.isfinite(MAX_LOGIT)


def test_a_head_keeps_its_precision_under_autocast():
    head = class_head(64, 7)
    torch.nn.init.normal_(head.weight)
    x = torch.randn(2, 5, 64)
    expected = head(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(x).dtype == torch.bfloat16
        found = exact(head, x)
        assert exact(head, x.bfloat16()).dtype == torch.float32
    assert torch.equal(found, expected)


def test_the_best_rows_of_all_tensors_are_the_same_ones():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.2, 0.3]])
    own, shared = torch.randn(2, 3, 4), torch.randn(1, 3, 2)
    first, second = best_rows(2, scores, own, shared)
    for image, rows in enumerate(([1, 2], [0, 2])):
        assert torch.equal(first[image], own[image, rows])
        assert torch.equal(second[image], shared[0, rows])
    [everything] = best_rows(9, scores, own)
    assert everything.shape == (2, 3, 4)
