import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zoo.types import Target


def _load(name: str) -> None:
    """A helper module beside this file, under its name; the folder is on no path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


_load("detector_checks")
_load("panoptic_checks")


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
