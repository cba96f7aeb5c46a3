from dataclasses import dataclass, field
from pathlib import Path

import pytest

from zoo.config import (
    OptimSection,
    find_recipe,
    from_plain,
    read_recipe,
    resolve,
    to_plain,
)
from zoo.errors import ZooError


@dataclass(frozen=True, kw_only=True)
class Augment:
    sizes: tuple[int, ...] = (480, 512)
    crop: float = 0.5
    pair: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Data:
    folder: str = ""
    augment: Augment = field(default_factory=Augment)
    weights: str | None = None


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text("optim: {lr: 0.001, clip: 0.5}\ndata: {augment: {crop: 0.25}}\n")
    return path


def resolved(recipe: Path, *overrides: str, **given):
    return resolve(
        model_name="m", model=Augment(), data_name="d", data=Data(), recipe=recipe,
        overrides=overrides, given=given or None,
    )  # fmt: skip


def test_layers_are_merged_in_order(recipe):
    config = resolved(recipe, "optim.clip=0.1", "data.augment.sizes=[1,9]", data={"folder": "x"})
    assert config.optim.lr == 0.001  # recipe over default
    assert config.optim.clip == 0.1  # override over recipe
    assert config.data == Data(folder="x", augment=Augment(sizes=(1, 9), crop=0.25))
    assert config.optim.weight_decay == OptimSection().weight_decay


def test_values_keep_their_types(recipe):
    config = resolved(recipe, "data.augment.pair=[3,4]", "data.weights=file.pth", "optim.lr=1")
    assert config.data.augment.pair == (3, 4)
    assert config.data.weights == "file.pth"
    assert isinstance(config.optim.lr, float)
    assert isinstance(config.optim.drops, tuple)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.epochz=1", r"'run\.epochz'; did you mean epochs\?"),
        ("data.augment.sizs=[1]", r"'data\.augment\.sizs'; did you mean sizes\?"),
        ("rum.epochs=1", r"no section 'rum'; did you mean run\?"),
        ("run.epochs=abc", r"run\.epochs='abc' has the wrong type; it takes int"),
        ("data.augment.sizes=[a]", r"data\.augment\.sizes=\['a'\] has the wrong type"),
        ("data.augment=3", r"data\.augment is a section of settings, not 3"),
        ("optim.betas=[1]", r"optim\.betas=\[1\] has the wrong type"),
        ("optim.schedule=linear", r"optim\.schedule=linear is not one of step, cosine"),
        ("optim.accumulate=0", r"optim\.accumulate=0 is below 1"),
        ("optim.ema=1.5", r"optim\.ema=1\.5 is not a decay"),
        ("optim.norms_until=2", r"optim\.norms_until=2\.0 is not a part of the run"),
        ("epochs", r"'epochs' is not section\.key=value"),
        ("epochs=3", r"'epochs=3' is not section\.key=value"),
    ],
)
def test_a_bad_override_is_one_clear_sentence(recipe, override, message):
    with pytest.raises(ZooError, match=message) as caught:
        resolved(recipe, override)
    assert "\n" not in str(caught.value)


def test_a_recipe_can_extend_another(tmp_path, recipe):
    child = tmp_path / "child.yaml"
    child.write_text("extends: small\noptim: {clip: 0.2}\n")
    assert read_recipe(child)["optim"] == {"lr": 0.001, "clip": 0.2}


def test_unreadable_and_unknown_recipes(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("optim: {lr: [1\n")
    with pytest.raises(ZooError, match=r"broken\.yaml is not readable YAML"):
        resolved(broken)
    broken.write_text("- 1\n")
    with pytest.raises(ZooError, match="not a recipe"):
        resolved(broken)
    with pytest.raises(ZooError, match="no recipe file"):
        find_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(ZooError, match="no recipe 'nonesuch'"):
        find_recipe("nonesuch")


def test_a_saved_config_reads_back_equal(tmp_path, recipe):
    config = resolved(recipe, "data.augment.pair=[3,4]")
    path = tmp_path / "config.yaml"
    config.save(path)
    plain = read_recipe(path)
    assert plain["model"].pop("name") == "m"
    assert plain["data"].pop("name") == "d"
    assert from_plain(Data(), plain["data"]) == config.data
    assert from_plain(OptimSection(), plain["optim"]) == config.optim
    assert to_plain(config)["optim"]["drops"] == list(config.optim.drops)
