"""Real checkpoints: a file, a folder, a URL or a hub id -> a state dict in our own names.

Nothing that is loaded may run code: ``.pth`` and ``.bin`` files are read with
``weights_only=True``, everything else is safetensors and JSON. Loading is strict: what a
checkpoint lacks and what a model has no place for are both reported. Only the rows of a class
head may differ; they are carried over by class name.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from zoo import checkpoint
from zoo.errors import ZooError

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A published checkpoint of a variant.

    ``source`` is a URL or a hub id; ``class_names`` the meaning of its class rows; ``metrics`` the
    publisher's figures (not measured here); ``licence`` theirs. ``bundled`` weights come with the
    package, and training starts from them unless it is told otherwise.
    """

    source: str
    class_names: tuple[str, ...] = ()
    class_ids: tuple[int, ...] = ()
    metrics: Mapping[str, float] | None = None
    licence: str = ""
    bundled: bool = False


@dataclass(frozen=True, kw_only=True)
class KeyLayout:
    """How another project names the tensors of a model we also have.

    ``marker`` is a regular expression that at least one of its keys matches and no key of any
    other layout does. ``rules`` are (pattern, replacement) pairs, each applied once with
    ``re.sub`` to every key, in order; a key that becomes empty is dropped. ``fix`` does what
    renaming can't (splitting a fused projection, say).
    """

    name: str
    marker: str
    rules: tuple[tuple[str, str], ...] = ()
    fix: Callable[[State], State] | None = None
    class_names: tuple[str, ...] = ()
    class_ids: tuple[int, ...] = ()

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Whether this layout's marker is among the keys."""
        marker = re.compile(self.marker)
        return any(marker.search(key) for key in state)

    def convert(self, state: Mapping[str, Tensor]) -> State:
        """The state under our names."""
        out: State = {}
        for key, value in state.items():
            for pattern, replacement in self.rules:
                key = re.sub(pattern, replacement, key)
            if key:
                out[key] = value
        return self.fix(out) if self.fix else out


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A checkpoint in our own names.

    ``class_names`` is empty where the checkpoint does not say; ``card`` is there for our own
    checkpoints; ``layout`` says whose names were read. Of a folder in the hub's layout,
    ``folder`` is the place and ``architecture`` what its config.json says that was saved.
    """

    state: State
    origin: str
    layout: str
    class_names: tuple[str, ...] = ()
    class_ids: tuple[int, ...] = ()
    card: checkpoint.Card | None = None
    folder: Path | None = None
    architecture: str = ""


def load(source: str | Path, layouts: Sequence[KeyLayout] = ()) -> Loaded:
    """Read a checkpoint from anywhere and rename its tensors.

    ``source`` is a run folder, a checkpoint folder of ours or of the hub's layout, a file
    (``.safetensors``, ``.pth``, ``.pt``, ``.bin``, ``.pdparams``), a URL, or a hub id such as
    ``facebook/detr-resnet-50``.

    Raises :class:`ZooError` where it is missing, broken, holds code, or is of none of ``layouts``.
    """
    path = locate(str(source))
    own = own_checkpoint(path)
    if own is not None:
        card = checkpoint.load_card(own)
        card = replace(card, preprocess=checkpoint.resolved(card.preprocess, own))
        state = checkpoint.load_weights(own)
        return Loaded(
            state=state,
            origin=str(source),
            layout="ours",
            class_names=card.class_names,
            class_ids=card.class_ids,
            card=card,
        )
    if path.is_dir():
        state = _read_hub_folder(path)
        names, architecture = _read_hub_config(path)
    else:
        state, names, architecture = read_file(path), (), ""
    folder = path if path.is_dir() else path.parent
    layout = next((known for known in layouts if known.recognises(state)), None)
    if layout is None:
        return Loaded(state=state, origin=str(source), layout="unknown", class_names=names)
    ids = tuple(range(len(names)))
    return Loaded(
        state=layout.convert(state),
        origin=str(source),
        layout=layout.name,
        class_names=names or layout.class_names,
        class_ids=ids or layout.class_ids,
        folder=folder,
        architecture=architecture,
    )


def locate(source: str) -> Path:
    """A local path for a path, URL or hub id; the latter two are downloaded once."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    if re.match(r"https?://", source):
        return _download(source)
    if checkpoint.exists(path):
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.parent.exists():
        return _from_hub(source)
    raise ZooError(
        f"there are no weights at {source}; give a run folder, a checkpoint file or folder, a URL "
        "or a hub id such as facebook/detr-resnet-50"
    )


def own_checkpoint(path: Path) -> Path | None:
    """The checkpoint folder of ours that ``path`` means: a run's best or last, itself, or a file's.

    None where it is not one of ours.
    """
    for folder in (path / "best", path / "last", path):
        if checkpoint.exists(folder):
            return folder
    if path.name == checkpoint.WEIGHTS and (path.parent / checkpoint.CARD).is_file():
        return path.parent
    return None


def _download(url: str) -> Path:
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Published names end in the first digits of their SHA-256, as in detr-r50-e632da11.pth.
        digest = re.search(r"-([0-9a-f]{8,})\.\w+$", target.name)
        try:
            torch.hub.download_url_to_file(url, str(target), digest.group(1) if digest else None)
        except (OSError, RuntimeError) as error:
            raise ZooError(
                f"{url} could not be downloaded ({error}); fetch it elsewhere and pass the file"
            ) from None
    return target


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model.bin"]
    wanted += ["tokenizer.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        first = str(error).strip().splitlines()[0]
        raise ZooError(
            f"hub id {name} could not be had ({first}); if {name} was meant as a file it does not "
            "exist, else download the folder elsewhere and pass its path"
        ) from None


def _read_hub_folder(folder: Path) -> State:
    """The tensors of a folder in the hub's layout."""
    shards = sorted(folder.glob("*.safetensors"))
    if shards:
        state: State = {}
        for shard in shards:
            state.update(checkpoint.read_safetensors(shard))
        return state
    for name in ("pytorch_model.bin", "model_state.pdparams"):
        if (folder / name).is_file():
            return read_file(folder / name)
    raise ZooError(
        f"{folder} holds no checkpoint (looked for best/, last/, model.json, *.safetensors, "
        "pytorch_model.bin and model_state.pdparams); give another folder"
    )


def _read_hub_config(folder: Path) -> tuple[tuple[str, ...], str]:
    """What a hub folder's config.json says: class names in order of index, and the architecture."""
    config = folder / "config.json"
    if not config.is_file():
        return (), ""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        labels = content.get("id2label") or {}
        names = tuple(labels[k] for k in sorted(labels, key=int))
        return names, str(next(iter(content.get("architectures") or ()), ""))
    except (json.JSONDecodeError, ValueError, AttributeError) as error:
        raise ZooError(f"{config} is broken ({error}); download it again") from None


def read_file(path: Path) -> State:
    """The tensors of one file, without running code; a training checkpoint's model is picked.

    ``argparse.Namespace`` is the one class besides tensors that is let in, since the DETR
    release's training checkpoints hold one; it is a bag of values.
    """
    if path.suffix == ".safetensors":
        return checkpoint.read_safetensors(path)
    if path.suffix == ".pdparams":
        from zoo.paddle import read_paddle

        return read_paddle(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an unusual pickle protocol
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = re.search(
            r"GLOBAL ([\w.]+)|Unsupported (?:global|class|operand)[^\n]*", str(error)
        )
        what = blocked.group(0) if blocked else str(error).strip().splitlines()[0]
        raise ZooError(
            f"{path} is refused: it holds more than tensors ({what}) and could run code; ask for "
            "its state dict as safetensors"
        ) from None
    except (OSError, RuntimeError, EOFError, BadZipFile, ValueError, KeyError) as error:
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise ZooError(f"{path} is not a readable checkpoint ({first}); fetch it again") from None
    state = _state_in(content)
    if state is None:
        raise ZooError(f"{path} holds no state dict; give a checkpoint of a model's weights")
    return state


def _state_in(content: Any) -> State | None:
    """The state dict in what a checkpoint file holds; averaged weights are preferred."""
    if not isinstance(content, dict):
        return None
    for keys in (("ema", "module"), ("ema",), ("model",), ("state_dict",), ("model_state_dict",)):
        inner: Any = content
        for key in keys:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and (state := _tensors(inner)):
            return state
    return _tensors(content) or None


def _tensors(content: Mapping[Any, Any]) -> State:
    found = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return {k.removeprefix("module."): v for k, v in found.items()}


def initialise(
    model: nn.Module,
    loaded: Loaded,
    *,
    class_rows: Sequence[str] = (),
    class_names: Sequence[str] = (),
    whole: bool = False,
) -> str:
    """Load ``loaded`` into ``model`` strictly, and say what was done.

    ``class_rows`` are the keys (or shell patterns of keys, for heads that are as many as layers)
    whose first dimension is one row a class, plus the same few rows at the end in both (DETR's
    no-object row). With other classes than the checkpoint's, rows are
    carried over by name and the rest stays as initialised; everything else has to fit. ``whole``
    is for loading a model that is to be used as it is: no row may be new.

    Raises :class:`ZooError` that lists both sides where it does not.
    """
    own = model.state_dict()
    state = dict(loaded.state)
    notes = [f"{loaded.origin}: {len(state)} tensors ({loaded.layout} names)"]
    for key in own:
        if key in state and any(fnmatchcase(key, rows) for rows in class_rows):
            state[key], note = _match_rows(own[key], state[key], loaded.class_names, class_names)
            if note:
                notes.append(f"{key}: {note}")
            if whole and "new" in note.split():
                raise ZooError(
                    f"{loaded.origin} has no trained rows for all classes ({key}: {note}); "
                    "fine-tune from it with tools/train.py --weights"
                )
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = [
        f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in sorted(own.keys() & state.keys())
        if own[k].shape != state[k].shape
    ]
    if missing or unknown or shapes:
        is_of = f" (of model {loaded.card.name})" if loaded.card else ""
        raise ZooError(
            f"{loaded.origin}{is_of} does not fit this model: missing {_some(missing)}; "
            f"without a place {_some(unknown)}; of other shapes {_some(shapes)}; "
            "choose the model that it was saved from with --model, or other weights (none: from "
            "scratch)"
        )
    model.load_state_dict(state)
    return "; ".join(notes)


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    shown = ", ".join(names[:most]) or "none"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _match_rows(
    own: Tensor, given: Tensor, from_names: Sequence[str], to_names: Sequence[str]
) -> tuple[Tensor, str]:
    """Class rows of a checkpoint arranged for other classes, by name."""
    if tuple(from_names) == tuple(to_names) and own.shape == given.shape:
        return given, ""
    if own.shape[1:] != given.shape[1:]:
        return given, ""  # not a matter of classes: let the shape check report it
    if not from_names:
        if own.shape == given.shape:
            return given, "the checkpoint names no classes; rows taken in order"
        return own, "the checkpoint names no classes and has other rows; new"
    rows = own.clone()
    extra = given.shape[0] - len(from_names)
    if extra != own.shape[0] - len(to_names) or extra < 0:
        return given, ""
    place = {name.casefold(): index for index, name in enumerate(from_names)}
    carried = []
    for index, name in enumerate(to_names):
        if (source := place.get(name.casefold())) is not None:
            rows[index] = given[source]
            carried.append(name)
    if extra:
        rows[-extra:] = given[-extra:]
    new = [name for name in to_names if name not in carried]
    return rows, f"{len(carried)} classes carried over by name, {len(new)} new ({_some(new)})"
