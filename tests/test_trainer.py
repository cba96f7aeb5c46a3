import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy import ToyModel, ToySet, toy_source, toy_spec

from zoo import checkpoint
from zoo.config import Config, LoaderSection, OptimSection, RunSection
from zoo.errors import NonFiniteError, ZooError
from zoo.log import read_log
from zoo.trainer import Trainer

CPU = torch.device("cpu")


def config(**sections) -> Config:
    run = {"epochs": 3, "log_steps": 2, "seed": 4} | sections.get("run", {})
    optim = {
        "lr": 0.01,
        "backbone_lr": 0.005,
        "ema": 0.9,
        "accumulate": 2,
        "autocast": "float32",
        "drops": (0.5,),
        "warmup_steps": 2,
        "clip": 1.0,
    } | sections.get("optim", {})
    return Config(
        model_name="toy",
        data_name="toy",
        recipe="toy",
        model=toy_spec().config,
        data=None,
        loader=LoaderSection(batch_size=4, num_workers=0),
        optim=OptimSection(**optim),
        run=RunSection(**run),
    )


def trainer(out: Path, **sections) -> Trainer:
    settings = config(**sections)
    spec, source = toy_spec(dropout=0.3), toy_source()
    torch.manual_seed(settings.run.seed)
    model = spec.build(spec.config, 2)
    return Trainer(settings, spec, source, model, device=CPU, out=out)


class KilledError(Exception):
    pass


def interrupted_at(t: Trainer, step: int) -> None:
    """Run until just after ``step`` was taken, then stop as a kill would: nothing more is saved."""
    tick = t._tick

    def watch() -> None:
        if t.step >= step:
            raise KilledError
        tick()

    t._tick = watch  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        t.fit()


def published(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_weights(out / "last")


@pytest.mark.parametrize(("ema", "norms_until"), [(0.0, 1.0), (0.9, 0.5)])
@pytest.mark.parametrize(("kill", "save_steps"), [(1, 1), (3, 2), (4, 0), (5, 3), (9, 4)])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, ema, norms_until, kill, save_steps):
    optim = {"ema": ema, "norms_until": norms_until}
    sections = {"optim": optim, "run": {"save_steps": save_steps, "eval_every": 1}}
    whole = trainer(tmp_path / "whole", **sections)
    whole.fit()
    cut = trainer(tmp_path / "cut", **sections)
    interrupted_at(cut, kill)
    torch.manual_seed(999)  # whatever the new process's generator is at
    again = trainer(tmp_path / "cut", **sections)
    torch.rand(7)
    resumed = again.resume()
    assert resumed == checkpoint.exists(tmp_path / "cut" / "last")
    saved = kill // save_steps * save_steps if save_steps else 0
    assert again.step == max(saved, (kill - 1) // 4 * 4)  # every evaluation saves, too
    if not resumed:
        torch.manual_seed(4)
        again = trainer(tmp_path / "cut", **sections)
    again.fit()
    assert again.step == whole.step == 3 * 4  # 7 batches an epoch, two a step
    for key, value in published(tmp_path / "whole").items():
        assert torch.equal(value, published(tmp_path / "cut")[key]), key
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    rows = [
        [(r["kind"], r["step"], r.get("loss"), r.get("AP")) for r in read_log(out / "log.jsonl")]
        for out in (tmp_path / "whole", tmp_path / "cut")
    ]
    kept = [r for r in rows[1] if r[0] == "eval"]
    assert kept == [r for r in rows[0] if r[0] == "eval"]
    assert len({r[:2] for r in rows[1]}) == len(rows[1])  # no step is told twice


def test_batch_norms_keep_their_statistics_from_a_part_of_the_run_on(tmp_path):
    t = trainer(tmp_path, optim={"norms_until": 0.5})
    tick, seen = t._tick, []

    def watch() -> None:
        tick()
        if not seen or t.step > seen[-1][0]:
            seen.append((t.step, t.progress(), t.model.norm.running_mean.clone()))

    t._tick = watch  # type: ignore[method-assign]
    t.fit()
    changes = [
        (before[1], bool((after[2] != before[2]).any()))
        for before, after in itertools.pairwise(seen)
    ]
    assert len(changes) == 12
    for progress, changed in changes:
        assert changed == (progress < 0.5)


def test_the_run_folder(tmp_path):
    t = trainer(tmp_path / "run", run={"epochs": 2})
    metrics = t.fit()
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"log.jsonl", "last", "best", "learning_curve.png", "tensorboard"} <= names
    card = checkpoint.load_card(tmp_path / "run" / "best")
    assert (card.name, card.class_names, card.class_ids) == ("toy", ("no", "yes"), (3, 5))
    assert card.metrics == metrics
    rows = [json.loads(x) for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in rows if r["kind"] == "eval"] == [1, 2]
    train = [r for r in rows if r["kind"] == "train"]
    assert {"loss", "loss_ce", "grad_norm", "lr", "images_per_s", "minutes"} <= train[0].keys()
    # What is published is the average, what training goes on from is the model.
    state = checkpoint.load_trainer(tmp_path / "run" / "last")["model"]
    assert torch.equal(state["head.weight"], t.model.head.weight)
    assert not torch.equal(published(tmp_path / "run")["head.weight"], t.model.head.weight)


def test_best_is_the_best_not_the_last(tmp_path):
    t = trainer(tmp_path / "run")
    values = iter([0.2, 0.9, 0.5])
    steps = []

    class Judge:
        def update(self, predictions, batch): ...
        def gather(self): ...
        def compute(self):
            steps.append(t.step)
            return {"AP": next(values)}

    t.source = replace(t.source, evaluator=Judge)
    assert t.fit() == {"AP": 0.5}
    assert checkpoint.load_card(tmp_path / "run" / "best").step == steps[1]
    assert checkpoint.load_card(tmp_path / "run" / "last").step == steps[2]


def test_a_time_budget_ends_the_run_with_an_evaluation(tmp_path):
    t = trainer(tmp_path / "run", run={"epochs": 10**6, "max_minutes": 0.03, "eval_every": 0})
    metrics = t.fit()
    assert metrics["scored"] == 11
    assert 0.03 <= t.elapsed_minutes() < 0.5
    assert t.optimizer.param_groups[0]["lr"] == pytest.approx(
        t.optimizer.param_groups[0]["base_lr"] * 0.1
    )  # the schedule ran to its end, though the epochs did not


@pytest.mark.parametrize("later", [9, 47])
def test_epochs_may_differ_in_their_number_of_samples(tmp_path, later):
    """Drawn documents don't all have as many questions as the first epoch's."""
    t = trainer(tmp_path / "run", optim={"accumulate": 1}, run={"eval_every": 0})
    samples = t.train_set
    samples.set_epoch = lambda epoch: vars(samples).update(
        epoch=epoch, count=30 if epoch == 0 else later
    )
    t.fit()
    assert t.epoch == 3
    assert t.step == 30 // 4 + 2 * (later // 4)


def test_what_is_not_finite_is_told_with_its_step_and_leaves_the_checkpoint(tmp_path):
    t = trainer(tmp_path / "run", run={"save_steps": 1})
    forward = ToyModel.forward

    def poisoned(self, values):
        out = forward(self, values)
        return {"logits": out["logits"] * (float("nan") if t.step == 2 else 1.0)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToyModel, "forward", poisoned)
        with pytest.raises(NonFiniteError, match=r"^step 3: output logits is not finite \(images"):
            t.fit()
    assert checkpoint.load_card(tmp_path / "run" / "last").step == 2
    assert all(torch.isfinite(v).all() for v in published(tmp_path / "run").values())


def test_resuming_with_another_ema_or_number_of_processes_is_refused(tmp_path):
    trainer(tmp_path / "run", run={"epochs": 1}).fit()
    with pytest.raises(ZooError, match=r"another optim\.ema"):
        trainer(tmp_path / "run", optim={"ema": 0.0}).resume()
    t = trainer(tmp_path / "run")
    state = checkpoint.load_trainer(tmp_path / "run" / "last")
    state["generators"] = state["generators"] * 2
    with pytest.raises(ZooError, match="started with 2 processes, not 1"):
        t.load_state_dict(state, published(tmp_path / "run"))


def test_workers_change_nothing(tmp_path):
    results = []
    for workers in (0, 2):
        t = trainer(tmp_path / f"w{workers}", run={"epochs": 2})
        t.workers = workers
        t.fit()
        results.append(published(tmp_path / f"w{workers}"))
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key])


TWO_RANKS = """
import importlib.util, sys
from pathlib import Path
import torch
from zoo import distributed
from zoo.config import Config, LoaderSection, OptimSection, RunSection
from zoo.trainer import Trainer

spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
toy = sys.modules["toy"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
out = Path(sys.argv[2])
device = distributed.init("cpu")
config = Config(
    model_name="toy", data_name="toy", recipe="toy", model=None, data=None,
    loader=LoaderSection(batch_size=3, num_workers=0),
    optim=OptimSection(lr=0.01, backbone_lr=0.01, ema=0.9, accumulate=2, autocast="float32"),
    run=RunSection(epochs=2, log_steps=1, max_minutes=float(sys.argv[3])),
)
torch.manual_seed(distributed.rank())  # DDP has to make them equal
toy_spec = toy.toy_spec(dropout=0.2)
model = toy_spec.build(toy_spec.config, 2)
trainer = Trainer(config, toy_spec, toy.toy_source(), model, device=device, out=out / "run")
metrics = trainer.fit()
assert metrics["scored"] == 11, metrics
torch.save({k: v for k, v in trainer.model.named_parameters()}, out / f"{distributed.rank()}.pt")
distributed.shutdown()
"""


@pytest.mark.parametrize("minutes", [0.0, 0.05])
def test_two_ranks_score_every_sample_once_and_end_with_equal_parameters(tmp_path, minutes):
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(script), str(Path(__file__).parent / "toy.py"), str(tmp_path), str(minutes),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


class FollowingSet(ToySet):
    """Samples that are scaled by the progress they were told, and a note of what that was."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.progress = -1.0
        self.told: list[tuple[int, float]] = []

    def set_progress(self, progress: float) -> None:
        self.progress = progress
        self.told.append((self.epoch, progress))

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        sample.inputs["values"] *= 1 - self.progress
        return sample


def following(out: Path, **sections) -> Trainer:
    settings = config(**sections)
    spec, source = toy_spec(dropout=0.3), toy_source()
    source = replace(source, train=FollowingSet(len(source.train)))
    torch.manual_seed(settings.run.seed)
    model = spec.build(spec.config, 2)
    return Trainer(settings, spec, source, model, device=CPU, out=out)


@pytest.mark.parametrize("kill", [2, 4, 7, 9])
def test_samples_follow_the_progress_of_the_epochs_start_also_resumed(tmp_path, kill):
    sections = {"run": {"save_steps": 1}}
    whole = following(tmp_path / "whole", **sections)
    whole.fit()
    assert set(whole.train_set.told) == {(e, e / 3) for e in range(3)}
    cut = following(tmp_path / "cut", **sections)
    interrupted_at(cut, kill)
    again = following(tmp_path / "cut", **sections)
    assert again.resume()
    again.fit()
    assert set(again.train_set.told) <= set(whole.train_set.told)
    for key, value in published(tmp_path / "whole").items():
        assert torch.equal(value, published(tmp_path / "cut")[key]), key


def test_where_the_clock_bounds_the_run_progress_is_the_clocks(tmp_path):
    t = following(tmp_path, run={"max_minutes": 1.0, "epochs": 100, "save_steps": 1})
    t.minutes = 0.5  # as if resumed
    interrupted_at(t, 2)
    assert t.train_set.told[0][1] == pytest.approx(0.5, abs=0.1)
    state = checkpoint.load_trainer(tmp_path / "last")
    assert state["epoch_progress"] == t.train_set.told[0][1]
