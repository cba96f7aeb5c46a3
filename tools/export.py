"""Write a trained model as one publishes it: the weights and the card, small.

    python tools/export.py runs/receipts published                 # as trained, in float32
    python tools/export.py runs/receipts published --dtype int8    # a quarter of the size
    python tools/export.py runs/cells graph --format onnx          # a detector for onnxruntime
    python tools/export.py runs/cells graph --format program       # or for torch.export.load

int8 stores every matrix as 8-bit integers with a scale for every row, and the rest in 16 bits; it
is turned back into floats where it is loaded. Measure what you publish: tools/evaluate.py
--weights published.

A graph takes batches and pictures of any size: pixel_values [B, 3, H, W] uint8 and pixel_mask
[B, H, W], True where valid, give pred_logits and pred_boxes (cxcywh in 0..1 of the picture); the
card beside it has the classes and the size that pictures are brought to. It is compared with the
model before the tool ends, and nothing is left where it differs. Panoptic models are refused.
Exit status: 0 done, 2 something in the input is wrong.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from zoo import checkpoint
from zoo.config import to_plain
from zoo.errors import ZooError
from zoo.inference import find, prepare, restore
from zoo.quantize import pack
from zoo.weights import load, locate, own_checkpoint

GRAPHS = {"onnx": "model.onnx", "program": "model.pt2"}
COMPARED = [(1, 224, 320), (4, 256, 200)]  # batches that a graph has to agree on: images, h, w
TOLERANCE = 1e-4


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        prog="export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("weights", metavar="RUN", help="a run or checkpoint of ours")
    p.add_argument("out", type=Path, metavar="DIR", help="a new folder")
    p.add_argument("--dtype", choices=("float32", "float16", "int8"), default="float32")
    p.add_argument("--format", choices=("checkpoint", *GRAPHS), default="checkpoint")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        if args.format == "checkpoint":
            size = export(args.weights, args.out, args.dtype)
        else:
            size = export_graph(args.weights, args.out, args.format, args.dtype)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out}, {size / 1e6:.1f} MB")
    return 0


def export(source: str, out: Path, dtype: str) -> int:
    """Write the checkpoint into ``out``; returns the size of its weights in bytes."""
    if out.exists():
        raise ZooError(f"{out} is there already; give a new folder")
    loaded = load(source)
    if loaded.card is None:
        raise ZooError(f"{source} is no checkpoint of ours; train from it with tools/train.py")
    state = loaded.state
    if dtype == "int8":
        state = pack(state)
    elif dtype == "float16":
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    own = own_checkpoint(locate(source))
    assert own is not None  # it has a card
    files, card = checkpoint.extra_files(own), checkpoint.load_card(own)
    checkpoint.save(out, card=replace(card, metrics=None), weights=state, files=files)
    return (out / checkpoint.WEIGHTS).stat().st_size


def export_graph(source: str, out: Path, kind: str, dtype: str = "float32") -> int:
    """Write a detector as a graph with its card; returns the size of the graph in bytes."""
    from zoo.models.detr import graph

    if out.exists():
        raise ZooError(f"{out} is there already; give a new folder")
    if dtype != "float32":
        raise ZooError(f"a graph is written in float32, not in {dtype}; leave --dtype out")
    spec, loaded = find(source)
    model = prepare(restore(spec, loaded))
    program = graph.to_program(model)
    out.mkdir(parents=True)
    path = out / GRAPHS[kind]
    try:
        if kind == "onnx":
            names, ids = loaded.class_names, loaded.class_ids
            graph.to_onnx(program, path, class_names=names, class_ids=ids)
            far = graph.differences(model, path, COMPARED)
        else:
            torch.export.save(program, path)
            far = graph.distance(model, program.module(), COMPARED)
        if far > TOLERANCE:
            raise ZooError(
                f"the graph differs from the model by {far:.1e} (at most {TOLERANCE:g}); export "
                "the weights alone, with --format checkpoint"
            )
    except BaseException:
        shutil.rmtree(out)
        raise
    card = checkpoint.Card(
        name=spec.name,
        config=to_plain(spec.config),
        class_names=loaded.class_names,
        class_ids=loaded.class_ids,
        preprocess=loaded.card.preprocess if loaded.card else spec.preprocess,
    )
    (out / checkpoint.CARD).write_text(card.to_json(), encoding="utf-8")
    return path.stat().st_size


if __name__ == "__main__":
    raise SystemExit(main())
