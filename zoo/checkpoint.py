"""Checkpoints: folders with ``model.safetensors``, ``model.json`` and ``trainer.pt``.

The first two are what one publishes: the weights, and a card with the model's name and config, the
classes with their data set's ids, and versions. ``trainer.pt`` is what a run needs to go on.

A save writes a new folder beside the old one and then swaps their names, so that a kill at any
moment leaves one of the two loadable: :func:`settle` finds it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.errors import ZooError
from zoo.quantize import unpack

FORMAT = 1
WEIGHTS, CARD, TRAINER = "model.safetensors", "model.json", "trainer.pt"
OWN_FILE = "checkpoint:"  # before the name of a file that lies beside the weights


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a checkpoint says of itself.

    ``config`` holds the values of the variant's config dataclass; ``class_ids`` the data set's own
    category ids, in the order of ``class_names``; ``preprocess`` what prediction has to repeat.
    """

    name: str
    config: Mapping[str, Any]
    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    preprocess: Mapping[str, Any]
    step: int = 0
    metrics: Mapping[str, float] | None = None

    def to_json(self) -> str:
        """The card as JSON text, with the versions that wrote it."""
        import zoo

        plain = {
            "format": FORMAT,
            "name": self.name,
            "config": dict(self.config),
            "class_names": list(self.class_names),
            "class_ids": list(self.class_ids),
            "preprocess": dict(self.preprocess),
            "step": self.step,
            "metrics": dict(self.metrics or {}),
            "versions": {"zoo": zoo.__version__, "torch": str(torch.__version__)},
        }
        return json.dumps(plain, indent=1) + "\n"


def save(
    folder: Path,
    *,
    card: Card,
    weights: Mapping[str, Tensor],
    trainer: Mapping[str, Any] | None = None,
    files: Mapping[str, Path] | None = None,
) -> None:
    """Write a checkpoint so that ``folder`` is at any moment the old one or the new one.

    ``files`` are copied into it under the names given. Raises :class:`ZooError` where the disk is
    full or the folder can't be written; what stood there before stays.
    """

    def fill(fresh: Path) -> None:
        tensors = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        (fresh / CARD).write_text(card.to_json(), encoding="utf-8")
        if trainer is not None:
            torch.save(dict(trainer), fresh / TRAINER)
        for name, path in (files or {}).items():
            shutil.copyfile(path, fresh / name)

    _replace(folder, fill)


def publish(folder: Path, to: Path) -> None:
    """Copy a checkpoint without what only a resumed run needs; as safe as :func:`save`."""

    def fill(fresh: Path) -> None:
        for path in folder.iterdir():
            if path.name != TRAINER:
                shutil.copyfile(path, fresh / path.name)

    _replace(to, fill)


def _replace(folder: Path, fill: Callable[[Path], None]) -> None:
    """Put what ``fill`` writes into a new folder in the place of ``folder``."""
    fresh, old = _beside(folder, "new"), _beside(folder, "old")
    settle(folder)
    try:
        fresh.mkdir(parents=True)
        fill(fresh)
        for path in fresh.iterdir():
            _sync(path)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        _sync(folder.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        settle(folder)
        raise _unwritable(folder, error) from error
    shutil.rmtree(old, ignore_errors=True)


def _unwritable(folder: Path, error: Exception) -> ZooError:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    # torch.save reports a full disk as a RuntimeError of its zip writer.
    if not full:
        try:
            full = shutil.disk_usage(folder.parent).free < 1 << 20
        except OSError:
            full = False
    if full:
        remedy = "the disk is full; free space and go on with --resume"
    else:
        remedy = f"{' '.join(str(error).split())}; give a writable folder with --out"
    return ZooError(f"checkpoint {folder} could not be saved, the one before it stays: {remedy}")


def settle(folder: Path) -> None:
    """Finish or undo what a killed :func:`save` left behind; harmless otherwise."""
    fresh, old = _beside(folder, "new"), _beside(folder, "old")
    if not folder.exists() and old.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(fresh, ignore_errors=True)


def exists(folder: Path) -> bool:
    """Whether there is a checkpoint (also one that a kill left under its spare name)."""
    return (folder / CARD).is_file() or (_beside(folder, "old") / CARD).is_file()


def extra_files(folder: Path) -> dict[str, Path]:
    """The files of a checkpoint that came along with its preprocessing, by name."""
    own = (WEIGHTS, CARD, TRAINER)
    return {p.name: p for p in _located(folder).iterdir() if p.is_file() and p.name not in own}


def resolved(values: Any, folder: Path) -> Any:
    """Plain values with every ``checkpoint:NAME`` as the path of that file of ``folder``."""
    if isinstance(values, Mapping):
        return {key: resolved(value, folder) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [resolved(value, folder) for value in values]
    if isinstance(values, str) and values.startswith(OWN_FILE):
        # A name only: nothing outside of the folder is meant by it.
        return str(_located(folder) / Path(values.removeprefix(OWN_FILE)).name)
    return values


def _located(folder: Path) -> Path:
    old = _beside(folder, "old")
    return old if not folder.exists() and old.exists() else folder


def load_card(folder: Path) -> Card:
    """The card of a checkpoint folder. Raises :class:`ZooError` where it is missing or broken."""
    path = _located(folder) / CARD
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["format"] > FORMAT:
            raise ZooError(f"{path} is of format {plain['format']}; update this package to read it")
        return Card(
            name=plain["name"],
            config=plain["config"],
            class_names=tuple(plain["class_names"]),
            class_ids=tuple(plain["class_ids"]),
            preprocess=plain["preprocess"],
            step=plain["step"],
            metrics=plain["metrics"],
        )
    except FileNotFoundError:
        raise ZooError(f"{path} is missing; {folder} is not a checkpoint folder") from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ZooError(f"{path} is broken ({error!r}); take another checkpoint") from None


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint folder, on the CPU; packed ones (int8) as float32."""
    return unpack(read_safetensors(_located(folder) / WEIGHTS))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file. Raises :class:`ZooError` where it is missing or broken."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ZooError(f"{path} is missing; take a complete checkpoint") from None
    except (SafetensorError, OSError) as error:
        raise ZooError(f"{path} is not a readable safetensors file ({error})") from None


def load_trainer(folder: Path) -> dict[str, Any]:
    """What ``trainer.pt`` holds; read without running any code of it."""
    path = _located(folder) / TRAINER
    if not path.is_file():
        raise ZooError(f"{path} is missing; without it a run can't go on, only start from weights")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise ZooError(f"{path} is broken ({first}); start anew with --weights {folder}") from None


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}.{suffix}")


def _sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk, where the system can do that."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
