"""Every shipped recipe parses for the models it is for, and runs two steps."""

import re
from dataclasses import fields

import pytest

from zoo.config import RECIPES, find_recipe, resolve
from zoo.log import read_log
from zoo.registry import data_spec, list_models, model_spec
from zoo.tools import train

NAMES = sorted(p.stem for p in RECIPES.glob("*.yaml"))
TINY = {
    "resnet": [
        "model.backbone=resnet18", "model.backbone_weights=none", "model.dilation=false",
        "model.dim=32", "model.encoder_layers=1", "model.decoder_layers=1", "model.ffn_dim=32",
    ],
    "nano": [],
    "document": [
        "model.dim=24", "model.num_heads=4", "model.num_layers=1", "model.ffn_dim=32",
        "model.coordinate_size=4", "model.shape_size=4", "model.grid_width=16",
        "data.encoding.tokenizer=bert_uncased",
        "data.train_documents=2", "data.val_documents=2", "data.questions=2",
    ],
}  # fmt: skip
PICTURES = [
    "data.train_images=4", "data.val_images=2", "data.augment.sizes=[64]",
    "data.augment.max_size=96", "data.augment.crop=0", "data.augment.val_size=64",
    "data.augment.val_max_size=96",
]  # fmt: skip


def model_of(recipe: str) -> str:
    """The model that a recipe's name begins with, the longest first."""
    fitting = [m for m in list_models() if recipe == m or recipe.startswith(f"{m}_")]
    return max(fitting, key=len)


def known(settings: list[str], model: str) -> list[str]:
    """The settings that the model has, of those that make one small."""
    names = {f"model.{f.name}" for f in fields(model_spec(model).config)}
    return [s for s in settings if not s.startswith("model.") or s.split("=")[0] in names]


@pytest.mark.parametrize("model", list_models())
def test_every_model_has_its_recipe(model):
    spec = model_spec(model)
    for data in ("docvqa", "documents") if spec.data == "documents" else ("coco", "shapes"):
        path = find_recipe(spec.recipe, data)
        config = resolve(
            model_name=model, model=spec.config, data_name=data, data=data_spec(data).config,
            recipe=spec.recipe,
        )  # fmt: skip
        assert config.recipe == path.stem


@pytest.mark.parametrize("recipe", NAMES)
def test_a_recipe_says_how_it_is_run(recipe):
    head = (RECIPES / f"{recipe}.yaml").read_text()
    assert re.search(r"^# Command {3}.*tools/train\.py", head, re.M), "no command in the header"
    assert re.search(r"^# Hardware ", head, re.M), "no hardware in the header"


@pytest.mark.parametrize("recipe", NAMES)
def test_a_recipe_runs_two_steps(recipe, tmp_path):
    model = model_of(recipe)
    documents = model_spec(model).data == "documents"
    kind = "document" if documents else "nano" if "nano" in model else "resnet"
    by_page = documents and model_spec(model).config.task == "classify"
    status = train.main(
        [
            "--model", model, "--recipe", recipe, "--out", str(tmp_path / "run"),
            "--weights", "none",
            "loader.batch_size=2", "loader.num_workers=0", *([] if documents else PICTURES),
            "run.epochs=1", "run.max_minutes=0", "run.log_steps=1", "run.device=cpu",
            *known(TINY[kind], model), *(["data.train_documents=4"] if by_page else []),
        ]
    )  # fmt: skip
    assert status == 0
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert [r["step"] for r in rows if r["kind"] == "train"] == [1, 2]
    assert ("accuracy" if by_page else "ANLS" if documents else "AP") in rows[-1]
