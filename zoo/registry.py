"""Where models and data formats are found by name, without a central table.

The decorated function's name is the registered name, and it begins with the name of the file it
stands in: ``detr_r50`` stands in ``models/**/detr.py``, ``dab_detr_nano`` in ``dab_detr.py``. So
a name leads to its file without importing any other, and listing reads file names and ``def``
lines only.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.errors import ZooError, nearest
from zoo.types import Criterion, DataSource, Postprocess
from zoo.weights import KeyLayout, Loaded, Weights, initialise

ROOT = Path(__file__).resolve().parent.parent


def same_tensors(spec: ModelSpec, loaded: Loaded) -> ModelSpec | None:
    """``spec`` where a checkpoint's tensors have the names and shapes of its model, else None."""
    with torch.device("meta"):
        classes = max(1, len(loaded.class_names))
        own = spec.build(without_pretrained(spec.config), classes).state_dict()
    given = {k: v.shape for k, v in loaded.state.items()}
    return spec if {k: v.shape for k, v in own.items()} == given else None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything the house needs to know of a model variant.

    ``config`` is an instance of a frozen dataclass: the variant's values. ``build`` and
    ``criterion`` take it with the number of classes; ``postprocess`` takes it alone.
    ``layouts`` name the foreign checkpoint layouts this model reads; ``class_rows`` the state
    keys whose first dimension is one row a class, perhaps with a few more at the end (such as
    DETR's no-object row); ``recipe`` the default recipe; ``data`` the built-in data set that it
    trains on where none is given; ``predictor`` the class behind :func:`zoo.load_model`;
    ``start`` loads a checkpoint into a model and says what it did, as
    :func:`zoo.weights.initialise` does; ``has_classes`` says of a config whether its model has
    classes at all. ``adapt`` makes of this specification the one that a foreign checkpoint needs,
    None where it is of another variant; ``preprocess`` is what prediction with such a checkpoint
    has to repeat (our own bring theirs).
    """

    config: Any
    build: Callable[[Any, int], nn.Module]
    criterion: Callable[[Any, int], Criterion]
    postprocess: Callable[[Any], Postprocess]
    predictor: Callable[..., Any]
    recipe: str
    data: str = "shapes"
    start: Callable[..., str] = initialise
    has_classes: Callable[[Any], bool] = lambda config: True
    adapt: Callable[[ModelSpec, Loaded], ModelSpec | None] = same_tensors
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Weights] = field(default_factory=dict)
    layouts: tuple[KeyLayout, ...] = ()
    class_rows: tuple[str, ...] = ()
    name: str = ""
    summary: str = ""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A data format: its typed settings, how to open it, and how to recognise a folder.

    ``matches`` returns None where the folder is of this format, else a clause that says what was
    looked for and not found. ``kind`` is what there is to learn from: pictures or documents.
    """

    config: Any
    build: Callable[[Any], DataSource]
    matches: Callable[[Path], str | None]
    kind: str = "pictures"
    name: str = ""
    summary: str = ""


_models: dict[str, tuple[Callable[[], ModelSpec], str]] = {}
_data: dict[str, tuple[Callable[[], DataSpec], str]] = {}


def _register(table: dict[str, tuple[Any, str]], fn: Callable[[], Any]) -> None:
    name, module = fn.__name__, fn.__module__
    stem = module.rsplit(".", 1)[-1]
    if name != stem and not name.startswith(stem + "_"):
        raise ValueError(f"{name} in {module}: a registered name begins with its file's name")
    if name in table and table[name][1] != module:
        raise ValueError(f"{name} is registered twice: in {table[name][1]} and in {module}")
    table[name] = (fn, module)


def register_model(fn: Callable[[], ModelSpec]) -> Callable[[], ModelSpec]:
    """Register the function's name as a model; its docstring's first line is the summary."""
    _register(_models, fn)
    return fn


def register_data(fn: Callable[[], DataSpec]) -> Callable[[], DataSpec]:
    """Register the function's name as a data source; its docstring's first line is the summary."""
    _register(_data, fn)
    return fn


@cache
def _index(folder: str, decorator: str) -> dict[str, str]:
    """Registered name -> module, read from the source files without importing them."""
    package = importlib.import_module(f"zoo.{folder}")
    found: dict[str, str] = {}
    base = Path(next(iter(package.__path__)))
    for path in sorted(base.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if f"@{decorator}" not in text:
            continue
        module = ".".join(("zoo", folder, *path.relative_to(base).with_suffix("").parts))
        for node in ast.parse(text, filename=str(path)).body:
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(d, ast.Name) and d.id == decorator for d in node.decorator_list
            ):
                if node.name in found:
                    raise ValueError(
                        f"{node.name} is registered twice: in {found[node.name]} and in {module}"
                    )
                found[node.name] = module
    return found


@cache
def model_aliases() -> dict[str, str]:
    """Family name -> default variant, from ``DEFAULT_VARIANT`` of the packages under models/."""
    package = importlib.import_module("zoo.models")
    base = Path(next(iter(package.__path__)))
    aliases = {}
    for init in sorted(base.glob("*/__init__.py")):
        module = importlib.import_module(f"zoo.models.{init.parent.name}")
        if default := getattr(module, "DEFAULT_VARIANT", None):
            aliases[init.parent.name] = default
    return aliases


def alias_note(family: str) -> str:
    """Why a family's name stands for its default variant: its package's ``DEFAULT_NOTE``."""
    module = importlib.import_module(f"zoo.models.{family}")
    return str(getattr(module, "DEFAULT_NOTE", "the family's default"))


def list_models(pattern: str = "*") -> list[str]:
    """Names of all registered models that match a shell pattern, sorted; imports nothing."""
    from fnmatch import fnmatch

    names = set(_index("models", "register_model")) | set(_models)
    return sorted(n for n in names if fnmatch(n, pattern))


def list_data() -> list[str]:
    """Names of all registered data sources, sorted."""
    return sorted(set(_index("datasets", "register_data")) | set(_data))


def _lookup(name: str, table: dict[str, tuple[Any, str]], index: dict[str, str], kind: str) -> Any:
    if name not in table:
        if name not in index:
            known = sorted({*index, *table, *(model_aliases() if kind == "model" else ())})
            raise ZooError(f"there is no {kind} '{name}'; {nearest(name, known)}")
        importlib.import_module(index[name])
    fn = table[name][0]
    spec = fn()
    summary = (fn.__doc__ or "").strip().split("\n")[0]
    return replace(spec, name=name, summary=summary)


def model_spec(name: str, **overrides: Any) -> ModelSpec:
    """The specification of a variant (or of a family's default), with config fields replaced.

    Raises :class:`ZooError` for an unknown name or field, naming the nearest.
    """
    name = model_aliases().get(name, name)
    spec: ModelSpec = _lookup(name, _models, _index("models", "register_model"), "model")
    known = [f.name for f in fields(spec.config)]
    for key in overrides:
        if key not in known:
            raise ZooError(f"model {name} has no setting '{key}'; {nearest(key, known)}")
    return replace(spec, config=replace(spec.config, **overrides))


def data_spec(name: str) -> DataSpec:
    """The specification of a data source. Raises :class:`ZooError` for an unknown name."""
    return _lookup(name, _data, _index("datasets", "register_data"), "data source")


def build_model(name: str, *, num_classes: int, **overrides: Any) -> nn.Module:
    """A freshly initialised model: ``build_model("detr_r50", num_classes=3, num_queries=50)``."""
    spec = model_spec(name, **overrides)
    return spec.build(spec.config, num_classes)


def without_pretrained(config: Any) -> Any:
    """``config`` for a model that is about to be loaded whole: ``backbone_weights`` need not be.

    ``none`` stays, since it also says that nothing is frozen.
    """
    if getattr(config, "backbone_weights", None) in (None, "none"):
        return config
    return replace(config, backbone_weights=None)
