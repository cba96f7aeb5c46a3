"""What predicting on files needs, whatever is predicted: the files, and what became of each.

Under torchrun every process writes what became of its share of the files, a line a file, into a
part of its own; the first process then makes one file of all parts, in the order of the files.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, TypeVar

import torch
from PIL import Image

from zoo import distributed
from zoo.datasets.picture_files import list_files
from zoo.errors import ZooError

Out = TypeVar("Out")


class Files(NamedTuple):
    """The output folder, what all files have in common, and the files relative to it."""

    out: Path
    root: Path
    paths: list[str]


class Plain(Protocol):
    """What became of a file; ``plain`` begins with the file's number among all."""

    def plain(self) -> Sequence[Any]:
        """For JSON."""
        ...


class Job(Protocol):
    """Predicting with models of one kind."""

    def say_first_line(self) -> None:
        """Model, parameters, data, device and output folder, before anything takes long."""
        ...

    def records(self, share: Sequence[int]) -> Iterable[Plain]:
        """One record for each of the files of these numbers."""
        ...

    def finish(self, parts: Sequence[Path], began: float) -> int:
        """Write the results of all parts and say what was found; the number of failed files.

        ``began`` is the ``time.monotonic()`` at which the work did.
        """
        ...


def on_main(work: Callable[..., Out], *args: Any) -> Out:
    """The result of ``work`` in the first process, in all; so is the ZooError that it raises."""
    result: Any = None
    if distributed.is_main():
        try:
            result = work(*args)
        except ZooError as error:
            result = error
    result = distributed.broadcast(result)
    if isinstance(result, ZooError):
        raise result
    return result


# -- files -------------------------------------------------------------------------------------


def check_given(args: argparse.Namespace) -> None:
    """Raise :class:`ZooError` for what does not exist, before a model is loaded for it."""
    for item in args.files:
        next(list_files([item], args.out or Path("runs")), None)


def settle(args: argparse.Namespace, suffixes: Collection[str], noun: str) -> Files:
    """Where the output goes, and the files to predict on: ``noun``, by their ``suffixes``."""
    out = args.out
    if out is None:
        number = 1
        while (out := Path("runs") / f"predictions_{number}").exists():
            number += 1
    given = list_files(args.files, out, suffixes)
    files = list(dict.fromkeys(os.path.abspath(f) for f in given))
    if not files:
        raise ZooError(
            f"there is no {noun} in {', '.join(args.files)} (looked for "
            f"{' '.join(sorted(suffixes))}); give other files or folders"
        )
    try:
        root = os.path.commonpath([os.path.dirname(f) for f in files])
    except ValueError:
        raise ZooError(f"the {noun}s lie on several drives; run once for each") from None
    return Files(out, Path(root), [os.path.relpath(f, root) for f in files])


def clear(out: Path) -> None:
    """Make the output folder, without what an earlier run left for later."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for stale in [*out.glob(".part_*.jsonl*"), out / "failed.txt"]:
            stale.unlink(missing_ok=True)
    except OSError as error:
        raise ZooError(f"{out} can't be written ({error.strerror}); give another --out") from None


def save(picture: Image.Image, path: Path) -> None:
    """Write a JPEG; raises :class:`ZooError` where that can't be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)
    except OSError as error:
        raise no_room(path, error) from None


def no_room(path: Path, error: OSError) -> ZooError:
    """What to say where a result can't be written."""
    return ZooError(f"{path} can't be written ({error.strerror}); free space or give another --out")


# -- parts -------------------------------------------------------------------------------------


def write_part(out: Path, rank: int, records: Iterable[Plain]) -> None:
    """One process's records, one a line, under their final name when all are there."""
    path = part_of(out, rank)
    fresh = path.with_suffix(".jsonl.new")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record.plain()) + "\n")
        fresh.rename(path)
    except OSError as error:
        raise no_room(fresh, error) from None


def part_of(out: Path, rank: int) -> Path:
    """The file of a process's records."""
    return out / f".part_{rank}.jsonl"


def wait_for_parts(out: Path, world: int) -> list[Path]:
    """The files of all processes, when they are complete.

    By looking and not by a collective, which gives up when one process is ahead by many minutes.
    """
    parts = [part_of(out, rank) for rank in range(world)]
    while not all(part.exists() for part in parts):
        time.sleep(0.2)
    return parts


def read_parts(parts: Sequence[Path]) -> Iterator[list[Any]]:
    """All processes' records in the order of the files, a line of each in memory."""

    def lines(part: Path) -> Iterator[list[Any]]:
        with part.open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    return heapq.merge(*map(lines, parts), key=lambda record: record[0])


# -- results -----------------------------------------------------------------------------------


def write_results(path: Path, content: Callable[[IO[str]], None]) -> None:
    """Write a file as a whole or not at all; ``content`` writes into it."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            content(file)
        fresh.replace(path)
    except OSError as error:
        raise no_room(path, error) from None


def note_failure(out: Path, path: Path, reason: str) -> None:
    """Add a file to failed.txt, its name byte for byte."""
    with (out / "failed.txt").open("ab") as failures:
        failures.write(os.fsencode(f"{path}\t{reason}\n"))


def machine(device: torch.device, autocast: torch.dtype | None) -> str:
    """Device, threads, processes and precision, for the first line."""
    world = distributed.world_size()
    where = str(device) + f" x {world}" * (world > 1)
    if device.type == "cpu":
        where += f" ({torch.get_num_threads()} threads)"
    return f"device {where}, {'bf16' if autocast else 'float32'}"
