"""Write a trained model as one publishes it: the weights and the card, small.

    python tools/export.py runs/receipts published                 # as trained, in float32
    python tools/export.py runs/receipts published --dtype int8    # a quarter of the size

int8 stores every matrix as 8-bit integers with a scale for every row, and the rest in 16 bits; it
is turned back into floats where it is loaded. Measure what you publish: tools/evaluate.py
--weights published. Exit status: 0 done, 2 something in the input is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from zoo import checkpoint
from zoo.errors import ZooError
from zoo.quantize import pack
from zoo.weights import load, locate, own_checkpoint


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        prog="export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("weights", metavar="RUN", help="a run or checkpoint of ours")
    p.add_argument("out", type=Path, metavar="DIR", help="a new folder")
    p.add_argument("--dtype", choices=("float32", "float16", "int8"), default="float32")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        size = export(args.weights, args.out, args.dtype)
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


if __name__ == "__main__":
    raise SystemExit(main())
