"""Every member of the DETR family on the same data for the same minutes: hours, not `make bench`.

    python benchmarks/family.py --data shapes ../shared/data/bccd --minutes 20
    python benchmarks/family.py --data FOLDER --models dn_detr_nano dino_nano --seeds 0 1 2
    python benchmarks/family.py --data shapes --table        # of the runs that are there

Each run is ``tools/train.py --model NAME`` in a process of its own with as many threads as
``--threads`` says, so that minutes times threads are minutes of processor time; leave that many
cores alone with it. A run that is finished is not repeated, one that was cut off is begun anew (its
schedule follows the clock). ``OUT/DATA/table.md``, ``by_minutes.png`` and ``by_images.png`` are
written after every run. Exit status: 0 done, 1 a run failed (the others are done nevertheless).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 30  # of the model on one picture, for its time


@dataclass(frozen=True)
class Run:
    """One training of a model with a seed, and the folder that it is in."""

    model: str
    seed: int
    folder: Path

    @property
    def figures_file(self) -> Path:
        """Where what was measured after the training is kept; there once the run is finished."""
        return self.folder / "family.json"


@dataclass
class Curve:
    """AP over a run: at ``minutes`` and after ``images`` seen."""

    minutes: list[float] = field(default_factory=list)
    images: list[float] = field(default_factory=list)
    ap: list[float] = field(default_factory=list)
    ap50: list[float] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, then write tables and curves; returns the exit status."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", nargs="+", required=True, metavar="NAME-OR-FOLDER")
    p.add_argument("--models", nargs="+", help="default: every detector that ends in _nano")
    p.add_argument("--seeds", nargs="+", type=int, default=[0])
    p.add_argument("--minutes", type=float, default=20.0, help="of training, evaluations included")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", type=Path, default=ROOT / "runs" / "family")
    p.add_argument("--table", action="store_true", help="train nothing")
    p.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--set", nargs="+", default=[], metavar="section.key=value", help="every run")
    args = p.parse_args(argv)
    if args.measure:
        print(json.dumps(measured(args.measure, args.threads)))
        return 0
    models = args.models or nanos()
    failed = 0
    for data in args.data:
        folder = args.out / Path(data).name
        runs = [Run(m, s, folder / f"{m}_{s}") for s in args.seeds for m in models]
        for n, run in enumerate(runs):
            if not args.table and not run.figures_file.is_file():
                print(f"{Path(data).name}: {n + 1} of {len(runs)}: {run.folder.name}", flush=True)
                failed += not finish(run, data, args)
            done = [r for r in runs if r.figures_file.is_file()]
            if done:
                write(folder, done, args.minutes, args.threads)
        print(f"wrote {folder / 'table.md'}")
    return 1 if failed else 0


def nanos() -> list[str]:
    """The small variants of the detectors of boxes, by name."""
    from zoo.registry import list_models, model_spec

    specs = {n: model_spec(n) for n in list_models() if n.endswith("_nano")}
    return [
        n
        for n, spec in specs.items()
        # Those of masks and of pretext training have other data and other scores.
        if spec.build.__module__.startswith("zoo.models.detr.") and spec.data == "shapes"
    ]


def finish(run: Run, data: str, args: argparse.Namespace) -> bool:
    """Train and measure one run; False (and what it said last) where that failed."""
    shutil.rmtree(run.folder, ignore_errors=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    train = [sys.executable, str(ROOT / "tools" / "train.py"), "--model", run.model]
    train += ["--data", data, "--out", str(run.folder), f"run.max_minutes={args.minutes}"]
    train += [f"run.seed={run.seed}", f"run.threads={args.threads}", "run.epochs=10000"]
    measure = [sys.executable, __file__, "--data", data, "--measure", str(run.folder)]
    measure += ["--threads", str(args.threads)]
    for command in ([*train, *args.set], measure):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            print(*done.stderr.strip().splitlines()[-3:], sep="\n", file=sys.stderr)
            return False
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    run.figures_file.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    return True


def measured(folder: Path, threads: int) -> dict[str, float]:
    """Parameters, milliseconds for a picture and memory of a trained run, in this process.

    The picture is a square of the evaluation's size; its time is a median, without reading it
    and without what follows the model. Memory is what the resident set grows by at its peak.
    """
    import torch
    from PIL import Image

    import zoo
    from zoo.datasets.transforms import collate_detection

    torch.set_num_threads(threads)
    detector = zoo.load_model(str(folder))
    side = detector.resizing.val_size
    batch = collate_detection([detector.prepare(Image.new("RGB", (side, side), (120, 90, 60)))])
    before = resident("VmRSS")
    times = []
    with torch.inference_mode(), detector._mixed():
        for _ in range(REPEATS):
            start = time.perf_counter()
            detector.model(**batch.inputs)
            times.append(time.perf_counter() - start)
    return {
        "parameters": float(sum(p.numel() for p in detector.model.parameters())),
        "milliseconds": 1000 * statistics.median(times),
        "megabytes": resident("VmHWM") - before,
    }


def resident(key: str) -> float:
    """A line of this process's status in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return float(next(x for x in lines if x.startswith(key)).split()[1]) / 1024


def curve_of(run: Run) -> Curve:
    """The evaluations in a run's log."""
    import yaml

    from zoo.log import read_log

    config: Any = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    a_step = config["loader"]["batch_size"] * config["optim"]["accumulate"]
    curve = Curve()
    for row in read_log(run.folder / "log.jsonl"):
        if row["kind"] == "eval":
            curve.minutes.append(row["minutes"])
            curve.images.append(row["step"] * a_step)
            curve.ap.append(row["AP"])
            curve.ap50.append(row["AP50"])
    return curve


def write(folder: Path, runs: Sequence[Run], minutes: float, threads: int) -> None:
    """``table.md`` and the two pictures of a data set's finished runs."""
    curves = {run: curve_of(run) for run in runs}
    names = sorted({r.model for r in runs}, key=lambda m: -_mean(_ends(curves, m, "ap")))
    lines = [
        f"{minutes:g} minutes with {threads} thread{'s' * (threads > 1)} a run.",
        "",
        "| model | AP | AP50 | seeds | images seen | parameters | ms an image | MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        own = [r for r in runs if r.model == name]
        facts: list[Mapping[str, float]] = [json.loads(r.figures_file.read_text()) for r in own]
        seen = _mean(_ends(curves, name, "images"))
        lines.append(
            f"| `{name}` | {_spread(_ends(curves, name, 'ap'))} | "
            f"{_spread(_ends(curves, name, 'ap50'))} | {len(own)} | {seen:,.0f} | "
            f"{facts[0]['parameters'] / 1e6:.1f} M | "
            f"{statistics.median(f['milliseconds'] for f in facts):.0f} | "
            f"{statistics.median(f['megabytes'] for f in facts):.0f} |"
        )
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(folder / "by_minutes.png", curves, names, "minutes", "minutes of training")
    draw(folder / "by_images.png", curves, names, "images", "images seen")


def _ends(curves: Mapping[Run, Curve], model: str, what: str) -> list[float]:
    """The last value of a model's runs; their evaluation after the last step."""
    return [float(getattr(c, what)[-1]) for r, c in curves.items() if r.model == model]


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _spread(values: Sequence[float]) -> str:
    """The mean, and the least and the greatest where there are several."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{_mean(values):.3f} ({min(values):.3f} .. {max(values):.3f})"


def draw(
    path: Path, curves: Mapping[Run, Curve], names: Sequence[str], what: str, label: str
) -> None:
    """AP of all runs over minutes or images; a colour a model, best first in the legend."""
    from matplotlib.figure import Figure

    figure = Figure((9, 5), layout="constrained")
    axes = figure.subplots()
    for n, name in enumerate(names):
        own = [c for r, c in curves.items() if r.model == name]
        for k, curve in enumerate(own):
            title = name if k == 0 else None
            style = "-" if n < 10 else "--"
            places = [0.0, *getattr(curve, what)]  # random weights find nothing
            colour = f"C{n % 10}"
            axes.plot(places, [0.0, *curve.ap], style, color=colour, marker=".", label=title)
    axes.set_xlabel(label)
    axes.set_ylabel("AP")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
