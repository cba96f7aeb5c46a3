"""Compare with the reference implementations, side by side: ``make bench``.

    python benchmarks/run.py                       # all rows, about 20 minutes on two cores
    python benchmarks/run.py --rows matching evaluation
    python benchmarks/run.py --quick               # does it run? its figures mean nothing

Writes RESULTS.md beside this file. Both sides run in one process and take turns, with the same
weights, inputs and threads; a row whose sides do not compute the same is an error. Exit status: 0
done (whatever the ratios), 1 a row could not be measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no row downloads anything
sys.path.insert(0, str(Path(__file__).resolve().parent))

import attention_rows
import denoising_rows
import document_rows
import family_rows
import memory_rows
import rows
import torch

from zoo.engine import has_bfloat16

ROOT = Path(__file__).resolve().parents[1]
MIXED = [60, 125, 190, 254, 319, 383, 448, 512]  # tokens of a batch's rows
ROWS: dict[str, Callable[[bool], rows.Row]] = {
    "inference": lambda quick: rows.inference(quick, half=False),
    "inference_bf16": lambda quick: rows.inference(quick, half=True),
    "training": lambda quick: rows.training(quick, half=False),
    "training_bf16": lambda quick: rows.training(quick, half=True),
    "training_frozen": lambda quick: rows.training(quick, half=False, frozen=True),
    "training_frozen_bf16": lambda quick: rows.training(quick, half=True, frozen=True),
    "matching": rows.matching,
    "evaluation": rows.evaluation,
    "memory": memory_rows.detr,
    "deformable": lambda quick: family_rows.deformable_inference(quick, half=False),
    "deformable_bf16": lambda quick: family_rows.deformable_inference(quick, half=True),
    "deformable_training": family_rows.deformable_training,
    "sampling": lambda quick: attention_rows.sampling(quick, cells=False),
    "sampling_cells": lambda quick: attention_rows.sampling(quick, cells=True),
    "rt_detr": lambda quick: family_rows.rt_detr_inference(quick, half=False),
    "rt_detr_bf16": lambda quick: family_rows.rt_detr_inference(quick, half=True),
    "focal_matching": rows.focal_matching,
    "denoising": denoising_rows.noised_groups,
    "contrastive": denoising_rows.contrastive_pairs,
    "deformable_memory": memory_rows.deformable,
    "mask_memory": memory_rows.masks,
    "encoder": lambda quick: document_rows.encoder(quick, [512], half=False, target=2.0),
    "encoder_batch": lambda quick: document_rows.encoder(quick, MIXED, half=False, target=3.0),
    "encoder_bf16": lambda quick: document_rows.encoder(quick, [512], half=True, target=4.0),
    "encoder_training": document_rows.encoder_training,
    "ocr": document_rows.ocr,
    "ten_questions": document_rows.ten_questions,
}
ALONE = ("answers", "data")  # figures without a peer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rows; returns the exit status."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--rows", nargs="+", choices=[*ROWS, *ALONE], default=[*ROWS, *ALONE])
    p.add_argument("--quick", action="store_true", help="tiny work, for a test of the benchmark")
    p.add_argument("--out", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    args = p.parse_args(argv)
    lines = [
        "# Results",
        "",
        f"`python benchmarks/run.py {' '.join(argv if argv is not None else sys.argv[1:])}`, "
        f"{date.today()}, {machine()}. Method: [README.md](README.md). Times are medians (least .. "
        "greatest) of alternating repeats; the ratio is the reference's median over ours.",
        "",
        "| row | ours | reference | ratio | target | | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    failed = 0
    for name in args.rows:
        if name in ALONE:
            continue
        print(f"{name} ...", flush=True)
        try:
            row = ROWS[name](args.quick)
        except (rows.WorkDiffersError, RuntimeError, OSError) as error:
            traceback.print_exc()
            lines.append(f"| {name} | not measured: {error} | | | | | |")
            failed += 1
            continue
        line = f"{row.ours} | {row.theirs} | {row.ratio:.2f} x | {row.target:g} x | {row.verdict}"
        lines.append(f"| {row.name} | {line} | {row.note} |")
        print("  ", line, flush=True)
    if set(ALONE) & set(args.rows):
        lines += ["", "Without a peer:", ""]
    if "answers" in args.rows:
        found = document_rows.answer_times(args.quick)
        lines += [f"- {x}" for x in found]
        print(*found, sep="\n")
    if "data" in args.rows:
        folder = ROOT.parent / "shared" / "data" / "tiny_coco"
        if folder.is_dir():
            found = rows.data_loading(folder, args.quick)
            lines += [f"- {x}" for x in found]
            print(*found, sep="\n")
        else:
            lines.append("- data loading was not measured: the real pictures are not here")
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {args.out}")
    return 1 if failed else 0


def machine() -> str:
    """Processor, threads and versions."""
    names = ("torch", "torchvision", "transformers", "timm", "pycocotools", "faster-coco-eval")
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)
    half = "bf16 in hardware" if has_bfloat16(torch.device("cpu")) else "no bf16 in hardware"
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        processor = found[0].split(":")[1].strip() if found else processor
    return f"{processor}, {torch.get_num_threads()} threads, {half}, {versions}"


if __name__ == "__main__":
    raise SystemExit(main())
