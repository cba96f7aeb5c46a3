"""Score a model, or a file of results: boxes and masks by COCO's metrics, answers by ANLS.

    python tools/evaluate.py --weights runs/cells --data FOLDER           # its val split
    python tools/evaluate.py --weights runs/cells --data FOLDER --split test --out scores
    python tools/evaluate.py --weights facebook/detr-resnet-50 --data COCO --float32
    python tools/evaluate.py --weights runs/demo --data shapes
    python tools/evaluate.py --results results.json --data FOLDER         # made by anything
    python tools/evaluate.py --results segments.json --data instances_val.json
    python tools/evaluate.py --results panoptic.json --data coco_panoptic:FOLDER  # its maps beside
    python tools/evaluate.py --weights runs/receipts --data FOLDER        # of questions
    python tools/evaluate.py --results submission.json --data FOLDER      # in DocVQA's form
    torchrun --nproc-per-node 8 tools/evaluate.py --weights runs/r50 --data COCO

Prints the twelve COCO figures and AP by class (a figure without anything to measure it on is
"-"), and writes metrics.json, per_class.json, results.json (COCO's results format, with the data's
own ids) and precision_recall.png; of panoptic data also PQ of all, things, stuff and each class
(panoptic.json), the masks (segments.json) and the segmentations (segmentations.json and its maps);
of questions metrics.json, submission.json and answers.json, of tags tags.json. The classes of
checkpoint and data are matched by name. Results files may hold boxes, masks or COCO's panoptic
format. Exit status: 0 done, 2 something in the input is wrong.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from zoo import distributed
from zoo.config import from_plain, parse_overrides
from zoo.datasets.coco_eval import Backend, CocoEvaluator, IouType, score
from zoo.datasets.coco_panoptic_records import (
    PanopticTruth,
    check_maps,
    find_split,
    predictions,
    read_panoptic,
)
from zoo.datasets.coco_panoptic_records import candidates as panoptic_candidates
from zoo.datasets.coco_records import candidates, read_json
from zoo.datasets.coco_report import WRITTEN, table, write_scores
from zoo.datasets.coco_results import Truth, found_of, read_results
from zoo.datasets.document_eval import score_submission
from zoo.datasets.document_records import Question
from zoo.datasets.document_source import figures
from zoo.datasets.docvqa_records import read_docvqa
from zoo.datasets.formats import FORMATS, open_set
from zoo.datasets.jsonl_records import read_questions
from zoo.datasets.mask_eval import SegmentsEvaluator, things_of
from zoo.datasets.panoptic_eval import evaluate_panoptic
from zoo.engine import evaluate as run_evaluation
from zoo.errors import ZooError
from zoo.files import write_json
from zoo.inference import load_model
from zoo.models.detr.panoptic_postprocess import Segments
from zoo.registry import data_spec, list_data
from zoo.tools.train import data_settings
from zoo.trainer import eval_loader, evaluation_bar, worker_count
from zoo.types import DataSource, Detections, Meta, Postprocess


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        prog="evaluate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--weights", metavar="RUN|FILE|URL|HUB-ID", help="the model to score")
    what.add_argument("--results", type=Path, metavar="FILE", help="score these results instead")
    p.add_argument(
        "--data", required=True, metavar="NAME|FOLDER", help="or an annotation file for --results"
    )
    p.add_argument("--split", default="val", help="default: %(default)s")
    p.add_argument("--out", type=Path, metavar="DIR", help="default: WEIGHTS/evaluation")
    p.add_argument("--batch-size", type=int, default=8, metavar="N", help="default: %(default)s")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    p.add_argument(
        "--float32", action="store_true", help="no bfloat16, also where the hardware has it"
    )
    p.add_argument(
        "--backend", choices=("auto", "faster_coco_eval", "pycocotools"), default="auto",
        help="what computes the figures; all give the same (default: the fastest)",
    )  # fmt: skip
    p.add_argument("overrides", nargs="*", metavar="data.key=value", help="settings of the data")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    args = parser().parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if args.weights is not None:
            evaluate_model(args)
        else:
            evaluate_file(args)
        return 0
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        distributed.shutdown()


# -- a model -----------------------------------------------------------------------------------


def evaluate_model(args: argparse.Namespace) -> Mapping[str, float]:
    """Predict the split with the model, score, print and write."""
    if args.batch_size < 1:
        raise ZooError(f"--batch-size {args.batch_size} has to be 1 or more")
    predictor = load_model(args.weights, device=args.device, fast=not args.float32)
    source = open_data(args.data, args.split, args.overrides, predictor)
    if source.val is None or len(source.val) == 0:
        raise ZooError(f"{args.data} has no pictures in its split {args.split}; add some")
    post, notes = by_name(predictor, source)
    out = args.out or default_folder(args.weights)
    if distributed.is_main():
        say_first_line(args, predictor, source, out)
        for note in notes:
            print(note)
    device = predictor.device
    loader = eval_loader(source, args.batch_size, worker_count(-1, device), device)
    evaluator = source.evaluator()
    if isinstance(evaluator, CocoEvaluator):
        evaluator.backend = args.backend
    if isinstance(evaluator, SegmentsEvaluator):
        evaluator.use_backend(args.backend)
        evaluator.keep = True
    began = time.monotonic()
    metrics = run_evaluation(
        predictor.model, post, loader, evaluator,
        device=device, autocast=predictor.autocast, progress=evaluation_bar,
    )  # fmt: skip
    if distributed.is_main():
        seconds = time.monotonic() - began
        count = len(source.val)
        text, written = evaluator.report(out)
        print(text)
        write_json(out / "metrics.json", dict(metrics))
        print(f"{count} pictures in {seconds:.1f} s ({count / seconds:.1f} a second)")
        say_files(out, "metrics.json", *written)
    return metrics


def open_data(data: str, split: str, overrides: Sequence[str], predictor: Any) -> DataSource:
    """The split to score on, prepared as the model's checkpoint asks for."""
    name, given = data_settings(data)
    spec = data_spec(name)
    sections = parse_overrides(overrides)
    if unknown := sections.keys() - {"data"}:
        raise ZooError(f"there is no section '{min(unknown)}' here; give data.key=value")
    config = spec.config
    names = {f.name for f in fields(config)}
    if "val_split" in names:
        # The training split need not be there.
        given |= {"train_split": "", "val_split": split}
    elif split != "val":
        raise ZooError(f"data {name} has the split val only; leave --split {split} out")
    config = predictor.data_config(config)
    config = from_plain(config, given, "data.")
    return spec.build(from_plain(config, sections.get("data", {}), "data."))


@dataclass(frozen=True)
class Relabelled:
    """A postprocess whose class indices are the data's: ``places[label]``, dropped where -1."""

    inner: Postprocess
    places: torch.Tensor

    def __call__(self, outputs: Mapping[str, Any], metas: Sequence[Meta]) -> list[Detections]:
        """The inner one's detections under the data's indices."""
        return [self._relabelled(f) for f in self.inner(outputs, [self._own(m) for m in metas])]

    def _own(self, meta: Meta) -> Meta:
        """The meta, with what is stuff named by the model's indices, as the inner one reads it."""
        if "stuff" not in meta.extra:
            return meta
        of_data = set(meta.extra["stuff"])
        stuff = tuple(k for k, place in enumerate(self.places.tolist()) if place in of_data)
        return replace(meta, extra={**meta.extra, "stuff": stuff})

    def _relabelled(self, found: Detections) -> Detections:
        if isinstance(found, Segments):
            return found.relabelled(self.places)
        labels = self.places.to(found.labels.device)[found.labels]
        kept = labels >= 0
        queries = None if found.queries is None else found.queries[kept]
        return Detections(found.boxes[kept], found.scores[kept], labels[kept], queries)


def by_name(predictor: Any, source: DataSource) -> tuple[Postprocess, list[str]]:
    """The model's postprocess in terms of the data's classes, and what is to be said of it.

    Raises :class:`ZooError` that lists the data's classes that the model doesn't know.
    """
    own, wanted = list(predictor.class_names), list(source.class_names)
    if own == wanted:
        return predictor.postprocess, []
    place = {name.casefold(): n for n, name in enumerate(wanted)}
    if len(place) < len(wanted):
        raise ZooError(
            f"data {source.name} has two classes of one name, which can't be matched with the "
            "model's by name; rename one"
        )
    known = {name.casefold() for name in own}
    if missing := [name for name in wanted if name.casefold() not in known]:
        raise ZooError(
            f"the model does not know {len(missing)} of the data's {len(wanted)} classes: "
            f"{some(missing)} (it knows {some(own)}); fine-tune it on this data, or rename the "
            "data's categories"
        )
    places = [place.get(name.casefold(), -1) for name in own]
    notes = []
    if extra := [name for name, n in zip(own, places, strict=True) if n < 0]:
        notes.append(
            f"{len(extra)} classes of the model that the data does not have are left out: "
            f"{some(list(dict.fromkeys(extra)))}"
        )
    if own != wanted and not extra:
        notes.append("the model has the data's classes in another order; matched by name")
    return Relabelled(predictor.postprocess, torch.tensor(places)), notes


def some(names: Sequence[str], most: int = 8) -> str:
    """The first few of many names."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


# -- a file of results -------------------------------------------------------------------------


def evaluate_file(args: argparse.Namespace) -> Mapping[str, float]:
    """Score a results file, print, and write where --out asks for it."""
    distributed.init("cpu")
    written = ("metrics.json", "panoptic.json", *WRITTEN)
    if args.out is not None and args.results.resolve() in (
        (args.out / n).resolve() for n in written
    ):
        raise ZooError(f"the scores would overwrite {args.results}; give another --out")
    kind_of_file = kind_of(args.results)
    if kind_of_file == "answers":
        return evaluate_submission(args)
    if kind_of_file == "segmentations":
        return evaluate_segmentations(args)
    results = read_results(args.results)
    masks = bool(results) and "segmentation" in results[0]
    kind: IouType = "segm" if masks else "bbox"
    truth, origin = ground_truth(args.data, args.split, masks)
    backend: Backend = args.backend
    if distributed.is_main():
        print(
            f"{len(results)} {'segments' if masks else 'boxes'} of {args.results} | data {origin}: "
            f"{len(truth.sizes)} pictures, {len(truth)} objects, {len(truth.classes)} classes"
            + (f" | output {args.out}" if args.out else ""),
            flush=True,
        )
    found = found_of(results, truth, masks=masks, origin=str(args.results))
    scores = score(truth, found, kind, backend)
    if distributed.is_main():
        print(table(scores, truth))
        if args.out is not None:
            write_scores(args.out, scores)
            write_json(args.out / "metrics.json", scores.metrics())
            say_files(args.out, "metrics.json", *WRITTEN)
    return scores.metrics()


def kind_of(path: Path) -> str:
    """What a results file holds: ``answers``, ``segmentations`` or ``detections``.

    Answers are in DocVQA's form, segmentations in COCO's panoptic format. Whatever else there is
    goes for detections, whose reader says what is wrong with it.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return "detections"
    if _panoptic(content):
        return "segmentations"
    first = content[0] if isinstance(content, list) and content else None
    return "answers" if isinstance(first, dict) and "questionId" in first else "detections"


def _panoptic(content: Any) -> bool:
    """Whether a file's content is in COCO's panoptic format."""
    records = content.get("annotations") if isinstance(content, dict) else None
    first = records[0] if isinstance(records, list) and records else None
    return isinstance(first, dict) and "segments_info" in first


def evaluate_segmentations(args: argparse.Namespace) -> Mapping[str, float]:
    """Score a file in COCO's panoptic format, print, and write where --out asks for it."""
    truth = panoptic_truth(args.data, args.split)
    if truth is None:
        raise ZooError(
            f"{args.results} has panoptic segments, and data {args.data} has none; give a panoptic "
            "JSON, or coco_panoptic:FOLDER"
        )
    found = predictions(args.results, truth)
    check_maps(truth)
    check_maps(found)
    scores = evaluate_panoptic(truth, found)
    metrics = scores.metrics()
    if distributed.is_main():
        print(
            f"segmentations of {args.results} | data {truth.file}: {len(truth.image_ids())} "
            f"pictures, {len(truth.categories)} classes"
            + (f" | output {args.out}" if args.out else "")
        )
        print(scores.table())
        if args.out is not None:
            scores.write(args.out)
            write_json(args.out / "metrics.json", metrics)
            say_files(args.out, "metrics.json", "panoptic.json")
    return metrics


def panoptic_truth(data: str, split: str) -> PanopticTruth | None:
    """The panoptic ground truth that ``--data`` names, None where it is of another kind."""
    path = Path(data).expanduser()
    if path.is_file():
        return PanopticTruth.open(path) if kind_of(path) == "segmentations" else None
    name, colon, rest = data.partition(":")
    named = bool(colon) and name == "coco_panoptic"
    folder = Path(rest).expanduser() if named else path
    for file, maps, _ in panoptic_candidates(folder, split):
        # Of a file called val.json the name does not say its format.
        if file.is_file() and kind_of(file) == "segmentations":
            return PanopticTruth(file, maps, read_panoptic(file))
    if named:
        files = find_split(folder, split)  # tells what was looked for
        return PanopticTruth(files.annotations, files.maps, read_panoptic(files.annotations))
    return None


def evaluate_submission(args: argparse.Namespace) -> Mapping[str, float]:
    """Score a file of answers, print, and write metrics.json where --out asks for it."""
    name, given = data_settings(args.data)
    readers: dict[str, Callable[[Path, str], Sequence[Question]]] = {
        "docvqa": lambda folder, split: read_docvqa(folder, split, use_ocr=False),
        "jsonl": read_questions,
    }
    if name not in readers:
        raise ZooError(
            f"{args.results} has answers to questions, and data {args.data} has none; give a "
            f"folder of the format {' or '.join(readers)}"
        )
    questions = readers[name](Path(given["folder"]), args.split)
    metrics = score_submission(args.results, questions)
    if distributed.is_main():
        print(f"answers of {args.results} | data {args.data}: {len(questions)} questions")
        print(figures(metrics))
        if args.out is not None:
            write_json(args.out / "metrics.json", metrics)
            say_files(args.out, "metrics.json")
    return metrics


def ground_truth(data: str, split: str, masks: bool) -> tuple[Truth, str]:
    """What to score against, from an annotation file, a folder or a data source's name."""
    path = Path(data).expanduser()
    if path.is_file() and kind_of(path) != "segmentations":
        return Truth(read_json(path), masks=masks, origin=str(path)), str(path)
    if path.is_dir():
        # Of COCO's layouts the pictures are not needed here.
        known = [file for file, _ in candidates(path, split) if file.is_file()]
        if known:
            return Truth(read_json(known[0]), masks=masks, origin=str(known[0])), str(known[0])
    if (segments := panoptic_truth(data, split)) is not None:
        check_maps(segments)
        where = str(segments.file)
        return Truth(things_of(segments, masks=masks), masks=masks, origin=where), where
    if path.is_dir() or data.partition(":")[0] in FORMATS:
        files = open_set(data, [split]).splits[split]
        where = str(files.annotations)
        return Truth(files.read(), masks=masks, origin=where), where
    if data not in list_data():
        raise ZooError(
            f"there is no file or folder {data} and no data source of that name; give an "
            "annotation file, a folder, or one of " + ", ".join(list_data())
        )
    name, given = data_settings(data)
    evaluator = (
        data_spec(name).build(from_plain(data_spec(name).config, given, "data.")).evaluator()
    )
    if isinstance(evaluator, SegmentsEvaluator):
        return (evaluator.masks if masks else evaluator.boxes).truth, name
    if masks or not isinstance(evaluator, CocoEvaluator):
        raise ZooError(f"data {name} has no segments to score against; give results with boxes")
    return evaluator.truth, name


# -- what is said and written ------------------------------------------------------------------


def say_first_line(args: argparse.Namespace, predictor: Any, source: DataSource, out: Path) -> None:
    """Model, parameters, data, device and output folder, before anything takes long."""
    count = sum(p.numel() for p in predictor.model.parameters())
    device = predictor.device
    where = str(device) + f" x {distributed.world_size()}" * (distributed.world_size() > 1)
    if device.type == "cpu":
        where += f" ({torch.get_num_threads()} threads)"
    print(
        f"model {predictor.spec.name} of {args.weights}, {count / 1e6:.2f} M parameters | "
        f"data {args.data}: {args.split}, {len(source.val or ())} pictures, "
        f"{len(source.class_names)} classes | device {where}, "
        f"{'bf16' if predictor.autocast else 'float32'} | output {out}",
        flush=True,
    )


def default_folder(weights: str) -> Path:
    """Beside the weights, where they are a folder of the user's; else a new folder under runs/."""
    folder = Path(weights).expanduser()
    if folder.is_dir():
        return folder / "evaluation"
    number = 1
    while (out := Path("runs") / f"evaluation_{number}").exists():
        number += 1
    return out


def say_files(out: Path, *names: str) -> None:
    """Where everything is."""
    print("\n".join(f"wrote {out / name}" for name in names))


if __name__ == "__main__":
    raise SystemExit(main())
