"""The first steps of training each small detector, against the values in golden_losses.json.

A refactoring that changes a number shows here: the loss and the gradient's norm of a few steps on
tiny built-in pictures, with the criterion, the optimizer and the rates of the model's own recipe.
A change that is meant to change numbers renews the file, for all models or for those named::

    python tests/models/detr/test_golden_losses.py [MODEL ...]
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zoo.config import resolve
from zoo.engine import train_steps
from zoo.optim import build_optimizer, rate_factor, set_rate
from zoo.registry import data_spec, list_models, model_spec

FILE = Path(__file__).with_name("golden_losses.json")
STEPS = 4
IMAGES = 2  # a step
# More than two threads instead of one, or no oneDNN, change: 2e-5 of a loss and 9e-3 of a norm
# where proposals change places, 4e-7 otherwise.
TOLERANCE = {"loss": 1e-4, "grad_norm": 3e-2}
SETTINGS = [
    f"data.train_images={STEPS * IMAGES}",
    "data.val_images=1",
    "data.augment.sizes=[64]",
    "data.augment.max_size=112",
    f"loader.batch_size={IMAGES}",
    "run.epochs=1",
    "run.max_minutes=0",
]


def small_detectors() -> list[str]:
    """The nano variants, by name."""
    names = list_models("*_nano")
    return [n for n in names if model_spec(n).build.__module__.startswith("zoo.models.detr.")]


def curve(name: str) -> dict[str, list[float]]:
    """Loss and gradient norm of the first steps, as the trainer takes them in float32."""
    spec = model_spec(name)
    data = data_spec(spec.data)
    config = resolve(
        model_name=name, model=spec.config, data_name=data.name, data=data.config,
        recipe=spec.recipe, overrides=SETTINGS,
    )  # fmt: skip
    spec, optim = replace(spec, config=config.model), config.optim
    source = data.build(config.data)
    samples, classes = source.train, len(source.class_names)
    batches = [
        source.collate([samples[n] for n in range(first, first + IMAGES)])
        for first in range(0, len(samples), IMAGES)
    ]
    torch.manual_seed(0)
    model = spec.build(spec.config, classes).to(memory_format=torch.channels_last)
    criterion, optimizer = spec.criterion(spec.config, classes), build_optimizer(model, optim)
    set_rate(optimizer, rate_factor(optim, 0, 0.0))
    taken = []
    torch.manual_seed(1)
    for step in train_steps(
        model, criterion, batches, optimizer, device=torch.device("cpu"), max_norm=optim.clip
    ):
        taken.append((float(step.losses.total), float(step.grad_norm)))
        set_rate(optimizer, rate_factor(optim, len(taken), len(taken) / STEPS))
    losses, norms = zip(*taken, strict=True)
    return {"loss": list(losses), "grad_norm": list(norms)}


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("name", small_detectors())
def test_the_first_steps_of_training_are_as_before(name):
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    assert name in golden, f"a new model; run python {Path(__file__).name} {name}"
    found = curve(name)
    for kind, values in golden[name].items():
        assert len(values) == STEPS
        assert found[kind] == pytest.approx(values, rel=TOLERANCE[kind]), kind


def test_there_is_no_record_of_a_model_that_is_gone():
    assert set(json.loads(FILE.read_text(encoding="utf-8"))) <= set(small_detectors())


def main(names: list[str]) -> None:
    """Write the values of these models, or of all, into the file."""
    torch.set_num_threads(1)
    golden = json.loads(FILE.read_text(encoding="utf-8")) if names else {}
    golden |= {name: curve(name) for name in names or small_detectors()}
    blocks = []
    for name, values in sorted(golden.items()):
        rows = [f'    "{k}": {json.dumps([float(f"{v:.7g}") for v in values[k]])}' for k in values]
        blocks.append(f'  "{name}": {{\n' + ",\n".join(rows) + "\n  }")
    FILE.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
