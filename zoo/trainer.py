"""The trainer: the only part with a state. Cadence, schedule, checkpoints and the log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from zoo import checkpoint, distributed
from zoo.checkpoint import Card
from zoo.config import Config, to_plain
from zoo.engine import Step, autocast_dtype, evaluate, train_steps
from zoo.errors import NonFiniteError, ZooError
from zoo.log import RunLog
from zoo.optim import AveragedModel, build_optimizer, rate_factor, set_rate
from zoo.registry import ModelSpec
from zoo.sampling import EvalBatches, PooledBatches, padded_share
from zoo.types import DataSource, FollowsProgress, Sample, SampleSet

# (epoch, part of the run that was over at its start, sample): workers need no other word of it.
Index = tuple[int, float, int]


def begin_epoch(samples: SampleSet, epoch: int, progress: float) -> None:
    """Tell a sample set which epoch it is, and, if it asks, how far the run was at its start."""
    samples.set_epoch(epoch)
    if isinstance(samples, FollowsProgress):
        samples.set_progress(progress)


class _ByEpoch(Dataset[Sample]):
    """A sample set addressed by (epoch, index), so that worker processes can outlive an epoch."""

    def __init__(self, samples: SampleSet) -> None:
        self.samples = samples
        self.begun = (-1, 0.0)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Index) -> Sample:
        epoch, progress, index = key
        if (epoch, progress) != self.begun:
            begin_epoch(self.samples, epoch, progress)
            self.begun = (epoch, progress)
        return self.samples[index]


class _Keyed:
    """A batch sampler's batches with the epoch and its progress in front of every index."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.epoch = 0
        self.progress = 0.0

    def __iter__(self) -> Iterator[list[Index]]:
        for batch in self.batches:
            yield [(self.epoch, self.progress, index) for index in batch]

    def __len__(self) -> int:
        return len(self.batches)


def worker_count(asked: int, device: torch.device) -> int:
    """Loading processes: as asked, or (-1) none beside a CPU model, else up to 8 a process."""
    if asked >= 0:
        return asked
    if device.type == "cpu":
        return 0
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, (os.cpu_count() or 1) // local - 1))


def make_loader(
    source: DataSource, samples: SampleSet, batches: Any, workers: int, device: torch.device
) -> DataLoader[Any]:
    """A DataLoader of :class:`Batch` over a batch sampler's lists of :data:`Index`."""
    return DataLoader(
        _ByEpoch(samples),
        batch_sampler=batches,
        collate_fn=source.collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        # Its own generator: a loader must not advance the one that dropout draws from, or a
        # resumed run would differ from an uninterrupted one.
        generator=torch.Generator(),
    )


def eval_loader(
    source: DataSource,
    batch_size: int,
    workers: int,
    device: torch.device,
    samples: SampleSet | None = None,
) -> DataLoader[Any]:
    """This rank's share of the evaluation set (or of ``samples``), every sample once."""
    samples = samples or source.val
    if samples is None:
        raise ZooError(f"data {source.name} has no evaluation split; add one")
    batches = EvalBatches(
        samples.sizes, batch_size, rank=distributed.rank(), world=distributed.world_size()
    )
    return make_loader(source, samples, _Keyed(batches), workers, device)


def progress_bar(name: str, batches: Any = None, **options: Any) -> Any:
    """A bar on the first rank's terminal; where there is no terminal, a line now and then."""
    return tqdm(
        batches,
        name,
        dynamic_ncols=True,
        disable=not distributed.is_main(),
        mininterval=0.2 if sys.stderr.isatty() else 30.0,
        **options,
    )


def evaluation_bar(batches: Any) -> Any:
    """The bar of an evaluation; it goes away when it is done."""
    return progress_bar("evaluating", batches, leave=False, unit="batch")


class Trainer:
    """Trains one model on one source, in ``out``.

    The folder holds ``config.yaml``, ``log.jsonl``, ``last/``, ``best/`` and
    ``learning_curve.png``. What can change in time is in :meth:`state_dict`; a run that is killed
    and resumed ends with the weights of one that was not, unless it is bounded by minutes (the
    schedule then follows the clock).
    """

    def __init__(
        self,
        config: Config,
        spec: ModelSpec,
        source: DataSource,
        model: nn.Module,
        *,
        device: torch.device,
        out: Path,
    ) -> None:
        if source.train is None or len(source.train) == 0:
            raise ZooError(f"data {source.name} has no training samples; add a train split")
        self.config, self.spec, self.source = config, spec, source
        self.device, self.out = device, out
        self.train_set: SampleSet = source.train
        self.model = model.to(device).to(memory_format=torch.channels_last)
        if distributed.world_size() > 1 and device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.criterion = spec.criterion(spec.config, len(source.class_names))
        if isinstance(self.criterion, nn.Module):
            self.criterion.to(device)
        self.postprocess = spec.postprocess(spec.config)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.average = AveragedModel(self.model, config.optim.ema) if config.optim.ema > 0 else None
        self.autocast = autocast_dtype(device, config.optim.autocast)
        self.workers = worker_count(config.loader.num_workers, device)
        self.batches = PooledBatches(
            self.train_set.sizes,
            config.loader.batch_size,
            seed=config.run.seed,
            rank=distributed.rank(),
            world=distributed.world_size(),
            pool=config.loader.pool,
        )
        self.epoch = 0
        self.position = 0  # batches of this epoch that are done
        self.epoch_progress = 0.0  # at the start of this epoch
        self.step = 0
        self.best = float("-inf")
        self.minutes = 0.0  # of earlier processes of this run
        self.eval_seconds = 0.0
        self.evaluated_at = 0.0
        self._started = time.monotonic()
        self._saved_at = 0.0
        self._progress = 0.0
        self._log: RunLog | None = None

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs besides the config; tensors and plain values."""
        state: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "position": self.position,
            "epoch_progress": self.epoch_progress,
            "step": self.step,
            "best": self.best,
            "minutes": self.elapsed_minutes(),
            "evaluated_at": self.evaluated_at,
            "eval_seconds": self.eval_seconds,
            "generators": distributed.all_gather(self._generators()),
        }
        if self.average is not None:
            state["model"] = self.model.state_dict()  # the folder's weights are the average's
            state["average_steps"] = self.average.steps
        return state

    def load_state_dict(
        self, state: Mapping[str, Any], weights: Mapping[str, torch.Tensor]
    ) -> None:
        """Go on from ``state``; ``weights`` are the checkpoint's published ones."""
        if (self.average is not None) != ("model" in state):
            raise ZooError(
                "the checkpoint was saved with another optim.ema (on or off); resume with the same"
            )
        ranks = state["generators"]
        if len(ranks) != distributed.world_size():
            raise ZooError(
                f"the run was started with {len(ranks)} processes, not "
                f"{distributed.world_size()}; resume with as many"
            )
        if self.average is not None:
            self.model.load_state_dict(state["model"])
            self.average.model.load_state_dict(weights)
            self.average.steps = state["average_steps"]
        else:
            self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.position, self.step = state["epoch"], state["position"], state["step"]
        # Checkpoints of before it was kept: what it is where steps bound the run.
        self.epoch_progress = state.get("epoch_progress", self.epoch / self.config.run.epochs)
        self.best, self.minutes = state["best"], state["minutes"]
        self.evaluated_at, self.eval_seconds = state["evaluated_at"], state["eval_seconds"]
        mine = ranks[distributed.rank()]
        torch.set_rng_state(mine["cpu"])
        if self.device.type == "cuda" and "cuda" in mine:
            torch.cuda.set_rng_state(mine["cuda"], self.device)
        self._started = time.monotonic()

    def _generators(self) -> dict[str, torch.Tensor]:
        """The states of this rank's random generators."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def resume(self) -> bool:
        """Go on from ``last/`` where there is one; says whether there was."""
        last = self.out / "last"
        if not checkpoint.exists(last):
            return False
        if distributed.is_main():
            checkpoint.settle(last)
        distributed.barrier()
        self.load_state_dict(checkpoint.load_trainer(last), checkpoint.load_weights(last))
        return True

    def elapsed_minutes(self) -> float:
        """Minutes that this run has had, over all its processes."""
        return self.minutes + (time.monotonic() - self._started) / 60

    # -- the run -------------------------------------------------------------------------------

    def fit(self) -> Mapping[str, float]:
        """Train to the end of the schedule or of the budget; returns the last metrics."""
        if distributed.is_main():
            self._log = RunLog(self.out, self.step)
        model = self._wrapped()
        metrics: Mapping[str, float] = {}
        total = self.config.run.epochs * self.steps_per_epoch()
        bar = progress_bar("training", total=total, initial=self.step, unit="step")
        try:
            keyed = _Keyed(self.batches)
            loader = make_loader(self.source, self.train_set, keyed, self.workers, self.device)
            self._tick()
            while self.epoch < self.config.run.epochs and not self._out_of_time():
                self._train_epoch(model, loader, keyed, bar)
                finished = self.position == 0
                if self._evaluates_now(finished):
                    metrics = self._evaluate(bar)
                elif finished and self._save_is_due():
                    self._save("last")
            if not metrics:
                metrics = self._evaluate(bar)
        finally:
            bar.close()
            if self._log is not None:
                self._log.close()
        return metrics

    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return -(-len(self.batches) // self.config.optim.accumulate)

    def progress(self) -> float:
        """The part of the run that is done, by steps or by minutes, whichever is further."""
        run = self.config.run
        done = self.step / (run.epochs * self.steps_per_epoch())
        if run.max_minutes > 0:
            usable = max(run.max_minutes - self.eval_seconds / 60, 1e-6)
            done = max(done, self.elapsed_minutes() / usable)
        return min(done, 1.0)

    def _wrapped(self) -> nn.Module:
        model = self.model
        if self.config.run.compile:
            # torch.compile's annotation is a callable, what it returns for a module is a module.
            compiled: Any = torch.compile(model, dynamic=True)
            model = compiled
        if distributed.world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            model = DistributedDataParallel(model, device_ids=ids)
        return model

    def _train_epoch(
        self, model: nn.Module, loader: DataLoader[Any], keyed: _Keyed, bar: Any
    ) -> None:
        """Train from the current position to the end of the epoch or of the time."""
        optim, run = self.config.optim, self.config.run
        if self.position == 0:
            self.epoch_progress = self._progress
        begin_epoch(self.train_set, self.epoch, self.epoch_progress)
        self.batches.set_epoch(self.epoch)
        self.batches.start = self.position
        keyed.epoch, keyed.progress = self.epoch, self.epoch_progress
        if distributed.is_main() and self.position == 0 and self.epoch == 0:
            self._say_padding()
        steps = train_steps(
            model, self.criterion, loader, self.optimizer,
            device=self.device, autocast=self.autocast, max_norm=optim.clip,
            accumulate=optim.accumulate,
            hold_norms=lambda: self._progress >= optim.norms_until < 1.0,
        )  # fmt: skip
        window: list[Step] = []
        since = time.monotonic()
        over = False
        try:
            for done in steps:
                self.step += 1
                self.position += optim.accumulate
                if self.average is not None:
                    self.average.update(self.model)
                window.append(done)
                bar.update(1)
                if self.step % run.log_steps == 0:
                    self._log_train(window, time.monotonic() - since, bar)
                    window, since = [], time.monotonic()
                if run.save_steps and self.step % run.save_steps == 0:
                    self._save("last")
                self._tick()
                if self._out_of_time():
                    break
            else:
                over = True  # also where this epoch has fewer samples than the first
        except NonFiniteError as error:
            raise NonFiniteError(f"step {self.step + 1}: {error}") from None
        if over or self.position >= len(self.batches):
            self.epoch, self.position = self.epoch + 1, 0

    def _tick(self) -> None:
        """Note the progress, the first rank's clock counting for all, and set the rate by it."""
        self._progress = self.progress()
        if self.config.run.max_minutes > 0 and distributed.world_size() > 1:
            shared = torch.tensor(self._progress, dtype=torch.float64, device=self.device)
            torch.distributed.broadcast(shared, 0)
            self._progress = float(shared)
        factor = rate_factor(self.config.optim, self.step, self._progress)
        set_rate(self.optimizer, factor)

    def _out_of_time(self) -> bool:
        return self.config.run.max_minutes > 0 and self._progress >= 1.0

    # -- evaluation and saving -----------------------------------------------------------------

    def _evaluates_now(self, finished: bool) -> bool:
        run = self.config.run
        if self.epoch >= run.epochs or self._out_of_time():
            return True
        due = finished and run.eval_every > 0 and self.epoch % run.eval_every == 0
        if due and run.eval_minutes > 0:
            waited = torch.tensor(self.elapsed_minutes() - self.evaluated_at)
            due = bool(distributed.broadcast(float(waited)) >= run.eval_minutes)
        return due

    def _evaluate(self, bar: Any) -> Mapping[str, float]:
        """Score the averaged (else the plain) weights; save ``last/`` and perhaps ``best/``."""
        config = self.config
        began = time.monotonic()
        model = self.average.model if self.average is not None else self.model
        size = config.loader.val_batch_size or config.loader.batch_size
        evaluator = self.source.evaluator()
        if self.source.val is None:
            raise ZooError(f"data {self.source.name} has no evaluation split; add one")
        metrics = evaluate(
            model, self.postprocess,
            eval_loader(self.source, size, self.workers, self.device),
            evaluator, device=self.device, autocast=self.autocast, progress=evaluation_bar,
        )  # fmt: skip
        metrics = distributed.broadcast(dict(metrics))
        self.eval_seconds = max(self.eval_seconds, time.monotonic() - began)
        self.evaluated_at = self.elapsed_minutes()
        self._tick()
        value = metrics[self.source.better]
        better = value > self.best
        self.best = max(self.best, value)
        self._save("last", metrics)
        if distributed.is_main():
            if better:
                checkpoint.publish(self.out / "last", self.out / "best")
            self._write("eval", metrics)
            shown = "  ".join(f"{k} {v:.3f}" for k, v in list(metrics.items())[:3])
            bar.write(
                f"epoch {self.epoch}  step {self.step}  {self.elapsed_minutes():.1f} min  {shown}"
                + ("  (best)" if better else ""),
                file=sys.stderr,
            )
            self._draw_curve()
        distributed.barrier()
        return metrics

    def _save_is_due(self) -> bool:
        due = self.elapsed_minutes() - self._saved_at >= self.config.run.save_minutes
        return bool(distributed.broadcast(due))

    def _save(self, name: str, metrics: Mapping[str, float] | None = None) -> None:
        state = self.state_dict()  # gathers over ranks
        self._saved_at = self.elapsed_minutes()
        if not distributed.is_main():
            return
        weights = (self.average.model if self.average is not None else self.model).state_dict()
        card = self.card(metrics)
        files = self.source.files
        checkpoint.save(self.out / name, card=card, weights=weights, trainer=state, files=files)

    def card(self, metrics: Mapping[str, float] | None = None) -> Card:
        """What the checkpoint says of itself."""
        return Card(
            name=self.spec.name,
            config=to_plain(self.spec.config),
            class_names=self.source.class_names,
            class_ids=self.source.class_ids,
            preprocess=self.source.preprocess,
            step=self.step,
            metrics=metrics,
        )

    # -- the log -------------------------------------------------------------------------------

    def _say_padding(self) -> None:
        sizes = self.train_set.sizes()
        share = padded_share(sizes, list(self.batches))
        tqdm.write(f"padding is {share:.1%} of the pixels of this epoch's batches", sys.stderr)

    def _log_train(self, window: Sequence[Step], seconds: float, bar: Any) -> None:
        """One line for the steps since the last; the only place that reads losses to the host."""
        names = ["loss", *window[-1].losses.terms, "grad_norm"]
        rows = [
            torch.stack([s.losses.total, *s.losses.terms.values(), s.grad_norm.to(self.device)])
            for s in window
        ]
        mean = torch.stack(rows).mean(0)
        mean = distributed.all_reduce_mean(mean)
        if not distributed.is_main():
            return
        values = dict(zip(names, mean.tolist(), strict=True))
        images = sum(s.images for s in window) * distributed.world_size()
        rate = self.optimizer.param_groups[0]["lr"]
        self._write("train", {"lr": rate, "images_per_s": images / max(seconds, 1e-9), **values})
        if self.config.run.max_minutes > 0 and self._progress > 0:
            # What the clock will leave, so that the bar tells the time to the end.
            bar.total = max(self.step, round(self.step / self._progress))
        bar.set_postfix(
            epoch=self.epoch, loss=f"{values['loss']:.3f}", lr=f"{rate:.1e}", refresh=False
        )

    def _write(self, kind: str, values: Mapping[str, float]) -> None:
        if self._log is not None:
            place = {"kind": kind, "step": self.step, "epoch": self.epoch}
            self._log.write({**place, "minutes": round(self.elapsed_minutes(), 4), **values})

    def _draw_curve(self) -> None:
        from zoo.visualize import learning_curve

        learning_curve(self.out / "log.jsonl", self.out / "learning_curve.png")
