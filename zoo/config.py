"""A run's settings: typed sections, recipe files over them, and overrides on top.

The schema of a run is the sections below plus the config dataclasses of the chosen model and data
source, so that every key of a recipe or of a command line is checked: an unknown key names the
nearest, a wrong type names the full path. The order is: dataclass defaults < recipe file <
``section.key=value``.

A recipe is a small YAML file with the sections ``model data loader optim run`` and, optionally,
``extends: OTHER`` (a recipe that it starts from). ``NAME_DATA.yaml`` is preferred to ``NAME.yaml``
where the data source is called DATA.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from zoo.errors import ZooError, nearest

RECIPES = Path(__file__).resolve().parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """How long, how often, where, and how reproducibly."""

    epochs: int = 300
    max_minutes: float = 0.0  # time budget of the run, evaluation included; 0: none
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    threads: int = 0  # CPU threads; 0: torch's choice
    eval_every: int = 1  # epochs between evaluations; 0: only at the end
    eval_minutes: float = 0.0  # at least so many minutes between evaluations
    save_steps: int = 0  # steps between saves of last/, besides the end of an epoch; 0: none
    save_minutes: float = 2.0  # at least so many minutes between saves at the end of an epoch
    log_steps: int = 20  # steps between lines of the log
    overfit: int = 0  # train and evaluate on so many training images, without augmentation
    compile: bool = False  # torch.compile the model


@dataclass(frozen=True, kw_only=True)
class LoaderSection:
    """How samples become batches."""

    batch_size: int = 2  # images a process and step
    val_batch_size: int = 0  # 0: batch_size
    num_workers: int = -1  # loading processes; -1: chosen from the machine
    pool: int = 128  # batches sorted together by size and aspect ratio; 1: no pooling


@dataclass(frozen=True, kw_only=True)
class OptimSection:
    """AdamW and what is around it."""

    lr: float = 1e-4
    backbone_lr: float = 1e-5  # of parameters whose name begins with "backbone."
    # By the beginning of parameters' names, what the rate is multiplied by: for parts that begin
    # at zero beside parts that were trained before.
    rates: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 1e-4
    decay_norms: bool = True  # whether biases and norms decay too (DETR's do)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 0.1  # largest norm of the gradient; 0: not clipped
    accumulate: int = 1  # batches a step
    schedule: str = "step"  # step or cosine
    drops: tuple[float, ...] = (2 / 3,)  # step: parts of the run after which the rate falls
    drop_factor: float = 0.1
    warmup_steps: int = 0  # linear
    final: float = 0.0  # cosine: last rate as a part of the first
    # The part of the run after which batch norms keep their statistics and train with them; 1:
    # never. What batches of a few pictures are normalised by is not what evaluation has.
    norms_until: float = 1.0
    ema: float = 0.0  # decay of the averaged weights that are evaluated and published; 0: none
    autocast: str = "auto"  # auto (bf16 where the hardware has it), bf16 or float32


@dataclass(frozen=True, kw_only=True)
class Config:
    """A resolved run: what ``config.yaml`` of a run folder holds."""

    model_name: str
    data_name: str
    recipe: str
    model: Any
    data: Any
    loader: LoaderSection = field(default_factory=LoaderSection)
    optim: OptimSection = field(default_factory=OptimSection)
    run: RunSection = field(default_factory=RunSection)

    def save(self, path: Path) -> None:
        """Write the resolved recipe as YAML; :func:`read_config` reads it back."""
        plain = to_plain(self)
        sections = {
            "model": {"name": plain.pop("model_name"), **plain.pop("model")},
            "data": {"name": plain.pop("data_name"), **plain.pop("data")},
        }
        path.write_text(OmegaConf.to_yaml(OmegaConf.create({**sections, **plain})), "utf-8")


def to_plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, all the way down: what JSON and YAML can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value


def from_plain(like: Any, values: dict[str, Any], path: str = "") -> Any:
    """An instance of ``like``'s dataclass with ``values`` (nested dicts) over its own.

    Raises :class:`ZooError` with the full path for an unknown key or a wrong type.
    """
    try:
        merged = _merge(like, values)
    except OmegaConfBaseException as error:
        raise _fault(like, values, path, error) from None
    return _rebuild(like, OmegaConf.to_container(merged, resolve=False))


def _merge(like: Any, values: dict[str, Any]) -> Any:
    schema = OmegaConf.structured(like)
    _unlock(schema)
    return OmegaConf.merge(schema, values)


def _fault(like: Any, values: dict[str, Any], path: str, error: Exception) -> ZooError:
    """Which of ``values`` the schema refuses, by trying them one at a time."""
    names = [f.name for f in dataclasses.fields(like)]
    for key, value in values.items():
        if key not in names:
            return ZooError(f"there is no setting '{path}{key}'; {nearest(str(key), names)}")
        child = getattr(like, key)
        if dataclasses.is_dataclass(child):
            if not isinstance(value, dict):
                return ZooError(f"{path}{key} is a section of settings, not {value!r}")
            try:
                _merge(child, value)
            except OmegaConfBaseException as inner:
                return _fault(child, value, f"{path}{key}.", inner)
            continue
        try:
            _merge(like, {key: value})
        except OmegaConfBaseException:
            hint = next(f.type for f in dataclasses.fields(like) if f.name == key)
            hint = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else hint
            return ZooError(f"{path}{key}={value!r} has the wrong type; it takes {hint}")
    return ZooError(f"{path}: {str(error).splitlines()[0]}")


def _unlock(node: Any) -> None:
    """Let the values of frozen dataclasses be replaced while a config is being put together."""
    if OmegaConf.is_dict(node):
        OmegaConf.set_readonly(node, False)
        for key in node:
            _unlock(node._get_node(key))


def _rebuild(like: Any, plain: Any) -> Any:
    hints = typing.get_type_hints(type(like))
    values = {}
    for f in dataclasses.fields(like):
        value, old = plain[f.name], getattr(like, f.name)
        if dataclasses.is_dataclass(old):
            value = _rebuild(old, value)
        elif isinstance(value, list) and _is_tuple(hints[f.name]):
            value = _tuples(value)
        values[f.name] = value
    return type(like)(**values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _is_tuple(hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_is_tuple(h) for h in typing.get_args(hint))
    return hint is tuple or typing.get_origin(hint) is tuple


def find_recipe(name: str, data_name: str = "") -> Path:
    """The file of a recipe: a path, or a name in ``zoo/recipes`` (NAME_DATA before NAME)."""
    as_path = Path(name)
    if as_path.suffix in (".yaml", ".yml"):
        if not as_path.is_file():
            raise ZooError(f"there is no recipe file {as_path}; give a YAML file or a recipe name")
        return as_path
    for candidate in (f"{name}_{data_name}", name):
        if (path := RECIPES / f"{candidate}.yaml").is_file():
            return path
    known = [p.stem for p in RECIPES.glob("*.yaml")]
    raise ZooError(f"there is no recipe '{name}'; {nearest(name, known)}")


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe's plain sections, its ``extends`` chain merged under it."""
    try:
        loaded = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise ZooError(f"{path} is not readable YAML ({where}); mend it there") from None
    plain = OmegaConf.to_container(loaded, resolve=False)
    if not isinstance(plain, dict):
        raise ZooError(f"{path} is not a recipe: its top level has to be sections of settings")
    base = plain.pop("extends", None)
    if base is None:
        return typing.cast("dict[str, Any]", plain)
    parent = Path(path).parent / f"{base}.yaml"
    under = read_recipe(parent if parent.is_file() else find_recipe(str(base)))
    merged = OmegaConf.to_container(OmegaConf.merge(under, plain), resolve=False)
    return typing.cast("dict[str, Any]", merged)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """``["optim.lr=1e-3"]`` as nested sections, values read as YAML."""
    for item in overrides:
        key, eq, _ = item.partition("=")
        if not eq or "." not in key:
            raise ZooError(f"'{item}' is not section.key=value, as in optim.lr=1e-4")
    try:
        plain = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)), resolve=False)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ZooError(f"overrides {list(overrides)}: {str(error).splitlines()[0]}") from None
    return typing.cast("dict[str, Any]", plain)


def resolve(
    *,
    model_name: str,
    model: Any,
    data_name: str,
    data: Any,
    recipe: str | Path,
    overrides: Sequence[str] = (),
    given: dict[str, Any] | None = None,
) -> Config:
    """The run's settings: defaults < recipe < ``given`` (from flags) < overrides.

    ``model`` and ``data`` are the config instances of the chosen variant and source.
    Raises :class:`ZooError` for anything that the schema does not know or allow.
    """
    path = find_recipe(str(recipe), data_name)
    layers = [read_recipe(path), given or {}, parse_overrides(overrides)]
    plain = OmegaConf.to_container(OmegaConf.merge(*layers), resolve=False)
    assert isinstance(plain, dict)
    return _build(model_name, model, data_name, data, path.stem, plain, str(path))


def _build(
    model_name: str,
    model: Any,
    data_name: str,
    data: Any,
    recipe: str,
    plain: dict[Any, Any],
    where: str,
) -> Config:
    sections: dict[str, Any] = {
        "model": model,
        "data": data,
        "loader": LoaderSection(),
        "optim": OptimSection(),
        "run": RunSection(),
    }
    built = {}
    for key in plain:
        if key not in sections:
            raise ZooError(f"{where}: no section '{key}'; {nearest(str(key), list(sections))}")
    for key, like in sections.items():
        values = plain.get(key) or {}
        if not isinstance(values, dict):
            raise ZooError(f"{where}: section '{key}' has to hold settings, not {values!r}")
        built[key] = from_plain(like, values, f"{key}.")
    config = Config(model_name=model_name, data_name=data_name, recipe=recipe, **built)
    _check(config)
    return config


def _check(config: Config) -> None:
    """Values that a type can't rule out."""
    o, run, loader = config.optim, config.run, config.loader
    choices = {
        "optim.schedule": (o.schedule, ("step", "cosine")),
        "optim.autocast": (o.autocast, ("auto", "bf16", "float32")),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise ZooError(f"{key}={value} is not one of {', '.join(allowed)}")
    at_least = {
        "optim.accumulate": (o.accumulate, 1),
        "loader.batch_size": (loader.batch_size, 1),
        "loader.pool": (loader.pool, 1),
        "run.epochs": (run.epochs, 1),
        "run.log_steps": (run.log_steps, 1),
        "run.overfit": (run.overfit, 0),
        "run.max_minutes": (run.max_minutes, 0),
    }
    for key, (number, least) in at_least.items():
        if number < least:
            raise ZooError(f"{key}={number} is below {least}")
    if not 0 <= o.ema < 1:
        raise ZooError(f"optim.ema={o.ema} is not a decay: 0 (none) to below 1, such as 0.999")
    if not 0 <= o.norms_until <= 1:
        raise ZooError(f"optim.norms_until={o.norms_until} is not a part of the run, 0..1")


def read_config(path: Path) -> Config:
    """The resolved settings of a run folder's ``config.yaml``."""
    from zoo.registry import data_spec, model_spec

    if not path.is_file():
        raise ZooError(f"{path} is missing; is {path.parent} the folder of a run?")
    plain = read_recipe(path)
    try:
        model_name = plain["model"].pop("name")
        data_name = plain["data"].pop("name")
        recipe = plain.pop("recipe")
    except (KeyError, AttributeError, TypeError):
        raise ZooError(f"{path} lacks model.name, data.name or recipe; restore it") from None
    model, data = model_spec(model_name).config, data_spec(data_name).config
    return _build(model_name, model, data_name, data, recipe, plain, str(path))
