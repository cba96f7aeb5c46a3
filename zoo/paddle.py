"""Paddle's ``.pdparams`` files: pickles, of which only arrays are let in.

A pickle may name any function and call it. Here the few that rebuild NumPy arrays and plain
containers are known, and everything else is refused before it is looked up.
"""

from __future__ import annotations

import codecs
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.errors import ZooError
from zoo.weights import State

_RECONSTRUCT = np.zeros(0).__reduce__()[0]  # its place depends on NumPy's version
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "tuple"): tuple,
    ("__builtin__", "tuple"): tuple,
    ("_codecs", "encode"): codecs.encode,  # bytes, as older protocols write them
}


class _Refused(Exception):  # noqa: N818 (an answer, not an error of ours)
    """A pickle asked for something that is not on the list."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Refused(f"{module}.{name}")
        return _ALLOWED[module, name]


def read_paddle(path: Path) -> State:
    """The tensors of a ``.pdparams`` file, without running code from it.

    Raises :class:`ZooError` where it is missing, broken, or holds more than arrays.
    """
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file).load()
    except _Refused as error:
        raise ZooError(
            f"{path} is refused: it holds more than arrays ({error}) and could run code; ask for "
            "its state dict as safetensors"
        ) from None
    except FileNotFoundError:
        raise ZooError(f"there is no file {path}; give a .pdparams file") from None
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError,
            IndexError, AttributeError, MemoryError) as error:  # fmt: skip
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise ZooError(f"{path} is not a readable Paddle file ({first}); fetch it again") from None
    state = _arrays(content)
    if not state:
        raise ZooError(f"{path} holds no arrays by name; give a model's .pdparams file")
    return state


def _arrays(content: Any) -> State:
    """Arrays by name; newer files have (name, array) pairs as values."""
    state: State = {}
    if not isinstance(content, Mapping):
        return state
    for key, value in content.items():
        if isinstance(value, tuple) and len(value) == 2:
            value = value[1]
        if isinstance(key, str) and isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            state[key] = torch.from_numpy(np.array(value, order="C"))
    return state
