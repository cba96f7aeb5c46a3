"""Paddle's pickles: arrays are read, code is not."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from zoo.errors import ZooError
from zoo.paddle import read_paddle

ARRAYS = {
    "embeddings.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "turned": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "count": np.array(3, dtype=np.int64),
}


class Pair:
    """As Paddle's tensors are pickled: as a call of tuple with a name and an array."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.parts = (name, array)

    def __reduce__(self) -> object:
        return tuple, (self.parts,)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("container", [dict, OrderedDict])
@pytest.mark.parametrize("pairs", [False, True])
def test_arrays_are_read(tmp_path: Path, protocol: int, container: type, pairs: bool) -> None:
    content = container({k: Pair(f"t_{k}", v) if pairs else v for k, v in ARRAYS.items()})
    content["StructuredToParameterName@@"] = {"embeddings.weight": "embedding_0.w_0"}
    path = tmp_path / "model_state.pdparams"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    state = read_paddle(path)
    assert state.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert state[name].numpy().dtype == array.dtype
        assert np.array_equal(state[name].numpy(), array)


class Evil:
    def __init__(self, call: object, *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> object:
        return self.call, self.arguments


@pytest.mark.parametrize("call", [os.mkdir, eval, getattr, __import__, np.load])
def test_code_is_not_run(tmp_path: Path, call: object) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "evil.pdparams"
    path.write_bytes(pickle.dumps({"w": ARRAYS["count"], "x": Evil(call, str(mark))}))
    with pytest.raises(ZooError, match=r"is refused.*could run code"):
        read_paddle(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable Paddle file"),
        (b"PK\x03\x04 a zip", "not a readable Paddle file"),
        (pickle.dumps(ARRAYS)[:-40], "not a readable Paddle file"),
        (pickle.dumps({}), "no arrays by name"),
        (pickle.dumps([1, 2]), "no arrays by name"),
        (pickle.dumps({"a": "b", 3: ARRAYS["count"]}), "no arrays by name"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model_state.pdparams"
    path.write_bytes(content)
    with pytest.raises(ZooError, match=f"{path.name}.*{message}"):
        read_paddle(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="there is no file"):
        read_paddle(tmp_path / "none.pdparams")
