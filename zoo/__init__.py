"""A model zoo for detection without anchors and for reading documents.

Five lines are enough to use a trained model::

    import zoo

    model = zoo.load_model("runs/detr")
    for d in model.predict("street.jpg"):
        print(d.label, d.score, d.box)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# oneDNN (torch's kernels on CPUs) prepares one for every shape and keeps 1024. A training step of
# a detector uses some hundreds, so with pictures of many sizes they were made anew in most steps.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")

if TYPE_CHECKING:
    from zoo.errors import ZooError as ZooError
    from zoo.inference import load_model as load_model
    from zoo.registry import build_model as build_model
    from zoo.registry import list_models as list_models

__version__ = "0.1.0"
__all__ = ["ZooError", "build_model", "list_models", "load_model"]

_HOMES = {
    "ZooError": "zoo.errors",
    "build_model": "zoo.registry",
    "list_models": "zoo.registry",
    "load_model": "zoo.inference",
}


def __getattr__(name: str) -> Any:
    """Import the public functions when they are first used: ``import zoo`` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'zoo' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
