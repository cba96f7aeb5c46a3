import pytest
import torch
from torch import Tensor

from zoo.types import Target


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, list[Target]]:
    """Two pictures of noise, the second padded, with two objects and one of three classes."""
    from detector_checks import padded_pair

    boxes = torch.tensor([[0.3, 0.4, 0.3, 0.5], [0.7, 0.6, 0.4, 0.4]])
    targets: list[Target] = [
        {"labels": torch.tensor([0, 2]), "boxes": boxes},
        {"labels": torch.tensor([1]), "boxes": boxes[:1]},
    ]
    return *padded_pair(), targets
