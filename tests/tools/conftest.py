"""A trained run and a folder of pictures, made up: small enough for a test, whole in every part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo import checkpoint
from zoo.config import to_plain
from zoo.datasets.shapes import ShapesConfig, export
from zoo.registry import model_spec

NAMES, IDS = ("apple", "pear", "fig"), (3, 7, 20)
PREPROCESS = {"val_size": 64, "val_max_size": 96}
SMALL = {"dim": 32, "num_heads": 4, "encoder_layers": 1, "decoder_layers": 1, "ffn_dim": 32}

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run folder with an untrained small DETR whose queries speak of different places."""

    def make(
        name: str = "run", class_names: tuple[str, ...] = NAMES, class_ids: tuple[int, ...] = IDS
    ) -> Path:
        torch.manual_seed(3)
        spec = model_spec("detr_nano", num_queries=12, **SMALL)
        model = spec.build(spec.config, len(class_names))
        with torch.no_grad():
            model.query_embed.weight.mul_(3)
            model.bbox_embed.layers[-1].weight.mul_(6)
            model.class_embed.weight.mul_(6)
            model.class_embed.bias[-1] = -2.0  # seldom "no object"
        card = checkpoint.Card(
            name="detr_nano",
            config=to_plain(spec.config),
            class_names=class_names,
            class_ids=class_ids,
            preprocess=PREPROCESS,
        )
        checkpoint.save(tmp_path / name / "best", card=card, weights=model.state_dict())
        return tmp_path / name

    return make


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Seeded noise pictures of several shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for n in range(count):
        height, width = ((60, 80), (80, 60), (64, 64))[n % 3]
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        path = folder / f"{n:02}.png"
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


@pytest.fixture
def make_data(tmp_path: Path, make_run: MakeRun) -> Callable[..., Path]:
    """Writes a COCO folder whose objects are what the made-up model sees, moved a little.

    So its average precision is neither 0 nor 1.
    """

    def make(
        name: str = "data",
        *,
        pictures: int = 7,
        class_names: tuple[str, ...] = NAMES,
        class_ids: tuple[int, ...] = IDS,
    ) -> Path:
        folder = tmp_path / name
        model = zoo.load_model(make_run("teacher"), device="cpu", fast=False)
        id_of = {n.casefold(): i for n, i in zip(class_names, class_ids, strict=True)}
        rng = np.random.default_rng(1)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for n, path in enumerate(write_pictures(folder / "val", pictures)):
            with Image.open(path) as picture:
                width, height = picture.size
            images.append({"id": 10 * n, "file_name": path.name, "height": height, "width": width})
            for d in model.predict(path, threshold=0.0)[: n % 4]:
                x1, y1, x2, y2 = np.array(d.box) + rng.normal(0, 1.5, 4)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 10 * n,
                        "category_id": id_of[d.label],
                        "bbox": [x1, y1, max(x2 - x1, 2.0), max(y2 - y1, 2.0)],
                        "iscrowd": 0,
                    }
                )
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": number, "name": name}
                for number, name in zip(class_ids, class_names, strict=True)
            ],
        }
        (folder / "annotations").mkdir()
        (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))
        return folder

    return make


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in COCO's format with nothing wrong in it, for the tests of a file together."""
    folder = tmp_path_factory.mktemp("clean")
    shapes = ShapesConfig(short_side=(64, 80), long_side=100, empty=0.15)
    export(folder, {"train": 30, "val": 8}, shapes)
    return folder


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(clean, tmp_path / "data"))
