"""The training tool as a user runs it: whole processes, kills, several ranks, bad input."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zoo import checkpoint
from zoo.datasets.coco_panoptic_records import write_panoptic
from zoo.datasets.panoptic_eval import Segmentation
from zoo.log import read_log
from zoo.tools import train

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "data.train_images=16",
    "data.val_images=3",
    "data.augment.sizes=[64,80]",
    "data.augment.max_size=120",
    "data.augment.val_size=64",
    "data.augment.val_max_size=120",
    "loader.batch_size=4",
    "optim.autocast=float32",
    "run.device=cpu",
    "run.threads=1",
    "run.log_steps=1",
    "run.max_minutes=0",  # a schedule that follows the clock can't be repeated
]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}


def command(model: str, out: Path, *more: str, processes: int = 1) -> list[str]:
    tool = [str(ROOT / "tools" / "train.py"), "--model", model, "--out", str(out), *SMALL, *more]
    if processes == 1:
        return [sys.executable, *tool]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*run, "--nproc-per-node", str(processes), *tool]


def run(*args, **kwargs) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command(*args, **kwargs), env=ENV, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def end_state(out: Path) -> dict[str, torch.Tensor]:
    """Published and, where there is an average, plain weights at the end of a run."""
    state = checkpoint.load_weights(out / "last")
    plain = checkpoint.load_trainer(out / "last").get("model", {})
    return {**state, **{f"plain.{k}": v for k, v in plain.items()}}


def killed_at(step: int, arguments: list[str], out: Path) -> None:
    """Run the tool as a process of its own until its log has ``step``, then kill it there."""
    with subprocess.Popen(
        arguments, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        began = last_step(out)  # rows after the last save are dropped, and written again
        limit = time.monotonic() + 120
        while process.poll() is None and last_step(out) < max(step, began + 1):
            assert time.monotonic() < limit
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors[-3000:]


def last_step(out: Path) -> int:
    return max((r["step"] for r in read_log(out / "log.jsonl")), default=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kills"), [("dn_detr_nano", [3, 9]), ("panoptic_detr_nano", [3])]
)
def test_killed_within_an_epoch_and_resumed_it_ends_with_the_same_bits(
    model, kills, tmp_path, capsys
):
    """Denoising's draws, the averaged weights and the place in the epoch go on where they were."""
    settings = [
        "data.train_images=24", "run.epochs=2", "run.save_steps=2",  # of 12 steps in all
        "model.encoder_layers=1", "model.decoder_layers=2",
    ]  # fmt: skip
    status, err = tool(*command(model, tmp_path / "whole", *settings)[2:], capsys=capsys)
    assert status == 0, err
    out = tmp_path / "killed"
    for number, step in enumerate(kills):
        resume = ["--resume"] if number else []
        killed_at(step, command(model, out, *settings, *resume), out)
        state = checkpoint.load_trainer(out / "last")
        assert state["position"] > 0  # within an epoch, of which some steps are to be done again
        assert state["step"] < 12
    status, err = tool("--resume", "--out", out, capsys=capsys)
    assert status == 0, err
    whole, killed = end_state(tmp_path / "whole"), end_state(out)
    assert whole.keys() == killed.keys()
    for key, value in whole.items():
        assert torch.equal(value, killed[key]), key
    losses = [
        [(r["step"], r["loss"]) for r in read_log(d / "log.jsonl") if r["kind"] == "train"]
        for d in (tmp_path / "whole", out)
    ]
    assert [step for step, _ in losses[0]] == list(range(1, 13))
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    """With frozen norms and no dropout a step's loss does not depend on how it is split.

    Pictures of one size, since every process pads to its own and convolutions see the padding.
    Weights stand still, so that every step compares the same function (that ranks move alike is
    tested in test_trainer.py).
    """
    settings = [
        "model.backbone=resnet18", "model.backbone_weights=null", "model.dim=32",
        "model.encoder_layers=1", "model.decoder_layers=2", "model.ffn_dim=32",
        "model.num_queries=12", "model.dropout=0.0", "run.epochs=2", "optim.lr=0",
        "optim.backbone_lr=0",
        "loader.num_workers=0",
        "data.short_side=[64,64]", "data.augment.crop=0", "data.long_side=64",
        "data.augment.sizes=[64]",
    ]  # fmt: skip
    run("detr_r50", tmp_path / "two", *settings, "loader.batch_size=2", processes=2)
    run("detr_r50", tmp_path / "one", *settings, "loader.batch_size=4")
    one, two = (read_log(tmp_path / d / "log.jsonl") for d in ("one", "two"))
    assert [r["kind"] for r in one] == [r["kind"] for r in two]
    for a, b in zip(one, two, strict=True):
        for key in a:
            if key.startswith("loss") or key == "grad_norm":
                assert b[key] == pytest.approx(a[key], rel=2e-4, abs=1e-5), (a["step"], key)


def tool(*args: object, capsys) -> tuple[int, str]:
    status = train.main([str(a) for a in args])
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "detr_r5"], r"there is no model 'detr_r5'; did you mean detr_r50"),
        ([], "--model is missing; known: detr"),
        (["--model", "detr", "--data", "nowhere"], "there is no data folder nowhere"),
        (["--model", "detr", "run.epoch=3"], "'run.epoch'; did you mean epochs?"),
        (["--model", "detr", "model.dimm=3"], "'model.dimm'; did you mean dim"),
        (["--model", "detr", "run.epochs=many"], "run.epochs='many' has the wrong type"),
        (["--model", "detr", "--recipe", "nonesuch"], "there is no recipe 'nonesuch'"),
        (["--model", "detr", "--resume"], "--resume needs --out"),
    ],
)
def test_bad_input_is_one_sentence(args, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, err = tool(*args, capsys=capsys)
    assert status == 2
    [line] = [x for x in err.splitlines() if x.startswith("error: ")]
    assert message in line
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_no_known_format(capsys, tmp_path):
    status, err = tool("--model", "detr", "--data", tmp_path, capsys=capsys)
    assert status == 2
    assert "is of no known format (coco: " in err


def voc_set(folder: Path) -> None:
    """Two pictures with a cat in each, in VOC's format; both are train and val."""
    for below in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / below).mkdir(parents=True)
    box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
    for name in "ab":
        Image.new("RGB", (60, 40)).save(folder / f"JPEGImages/{name}.png")
        (folder / f"Annotations/{name}.xml").write_text(
            f"<annotation><object><name>cat</name>{box}</object></annotation>"
        )
    for split in ("train", "val"):
        (folder / f"ImageSets/Main/{split}.txt").write_text("a\nb\n")


def yolo_set(folder: Path) -> None:
    """A picture with a cat in YOLO's format."""
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        Image.new("RGB", (60, 40)).save(folder / f"images/{split}/a.png")
        (folder / f"labels/{split}/a.txt").write_text("0 0.3 0.3 0.4 0.4\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")


def panoptic_set(folder: Path) -> None:
    """And as segments, in COCO's panoptic format: a cat on a meadow."""
    ids = np.full((40, 60), 2, np.int32)
    ids[5:20, 5:30] = 1
    shown = Segmentation(ids, np.array([1, 2]), np.array([7, 200]), np.zeros(2, bool))
    images = [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}]
    categories = [
        {"id": 7, "name": "cat", "isthing": 1}, {"id": 200, "name": "meadow", "isthing": 0},
    ]  # fmt: skip
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        Image.new("RGB", (60, 40)).save(folder / split / "a.png")
        file = folder / "annotations" / f"panoptic_{split}.json"
        write_panoptic(file, [(1, "a.png", shown)], images=images, categories=categories)


SETS = {
    "voc": ("detr_nano", voc_set),
    "yolo": ("detr_nano", yolo_set),
    "coco_panoptic": ("panoptic_detr_nano", panoptic_set),
}


def text(name: str, old: str, new: str):
    """Replace text in a file of the set."""

    def change(folder: Path) -> None:
        content = (folder / name).read_text()
        assert old in content
        (folder / name).write_text(content.replace(old, new, 1))

    return change


JSON = "annotations/panoptic_train.json"

BAD_SETS = {
    "voc, broken XML": (text("Annotations/a.xml", "</name>", ""), "a.xml: broken XML in line 1"),
    "voc, a box of text": (text("Annotations/a.xml", ">30<", ">wide<"), "object 1 has a bndbox"),
    "voc, no picture": (lambda f: (f / "JPEGImages/a.png").unlink(), "lacks 1 of the 2 pictures"),
    "voc, a list that leads out": (
        text("ImageSets/Main/train.txt", "a", "../a"), "train.txt, line 1: '../a' leads out",
    ),
    "yolo, a class too high": (
        text("labels/train/a.txt", "0 ", "3 "), "a.txt, line 1: class 3 is not among 0..0",
    ),
    "yolo, too few columns": (text("labels/train/a.txt", " 0.4\n", "\n"), "line 1 has 4 values"),
    "yolo, no names": (text("data.yaml", "names", "nemes"), "data.yaml has no names"),
    "coco_panoptic, no map": (
        lambda f: (f / "annotations/panoptic_train/a.png").unlink(), "lacks 1 of the 1 maps",
    ),
    "coco_panoptic, not painted": (text(JSON, '"id": 2', '"id": 3'), "a.png lacks segment 3"),
    "coco_panoptic, a map that leads out": (
        text(JSON, '"image_id": 1,\n   "file_name": "a.png"', '"image_id": 1, "file_name": "../a"'),
        "the annotation of image id 1 has file_name '../a'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD_SETS))
def test_what_is_wrong_with_a_set_ends_the_tool_in_one_sentence(case, capsys, tmp_path):
    kind = case.partition(",")[0]
    model, write = SETS[kind]
    write(tmp_path / "data")
    change, words = BAD_SETS[case]
    change(tmp_path / "data")
    small = [item for item in SMALL if not item.startswith(("data.train", "data.val"))]
    status, err = tool(
        "--model", model, "--data", f"{kind}:{tmp_path / 'data'}", "--out", tmp_path / "run",
        *small, "run.epochs=1", "loader.num_workers=0", capsys=capsys,
    )  # fmt: skip
    assert status == 2
    (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
    assert words in line
    assert str(tmp_path / "data") in line
    assert "; " in line  # and what to do
    assert "Traceback" not in err


def test_the_folder_of_another_run_is_left_alone(capsys, tmp_path):
    out = tmp_path / "run"
    first = ["--model", "dab_detr_nano", "--out", out, *SMALL, "run.epochs=1"]
    status, err = tool(*first, capsys=capsys)
    assert status == 0, err
    before = (out / "last" / "model.safetensors").read_bytes()
    status, err = tool(*first, "optim.lr=0.5", capsys=capsys)
    assert status == 2
    assert "holds another run (optim.lr=" in err
    status, err = tool("--model", "detr_nano", "--out", out, *SMALL, capsys=capsys)
    assert status == 2
    assert "holds another run (model_name dab_detr_nano, not detr_nano" in err
    assert (out / "last" / "model.safetensors").read_bytes() == before
    # The same command goes on where the run is: here, at its end.
    status, err = tool(*first, capsys=capsys)
    assert status == 0
    # And weights of one model don't go into another.
    status, err = tool(
        "--model", "detr_nano", "--weights", out, "--out", tmp_path / "b", *SMALL, capsys=capsys
    )
    assert status == 2
    assert "(of model dab_detr_nano) does not fit this model: missing" in err


def test_overfit_mode_trains_and_scores_the_same_few_images(capsys, tmp_path):
    out = tmp_path / "few"
    status, err = tool(
        "--model", "dab_detr_nano", "--out", out, *SMALL, "run.epochs=2", "run.overfit=4",
        capsys=capsys,
    )  # fmt: skip
    assert status == 0, err
    evals = [r for r in read_log(out / "log.jsonl") if r["kind"] == "eval"]
    assert evals
    assert {"AP", "AP50", "AR100"} <= evals[-1].keys()


@pytest.mark.slow
@pytest.mark.data
def test_the_papers_model_trains_on_real_coco_and_goes_on(shared_data, tmp_path, capsys):
    """Gaps in the ids, crowds and pictures without objects; two epochs, stopped after the first."""
    out = tmp_path / "r50"
    args = [
        "--model", "detr_r50", "--data", shared_data / "tiny_coco", "--out", out,
        "model.backbone_weights=none", "model.encoder_layers=1", "model.decoder_layers=2",
        "data.augment.sizes=[64]", "data.augment.max_size=96", "data.augment.crop=0",
        "data.augment.val_size=64", "data.augment.val_max_size=96", "loader.batch_size=8",
        "loader.num_workers=0", "run.device=cpu", "run.eval_every=1", "run.log_steps=1",
    ]  # fmt: skip
    for epochs in (1, 2):
        status, err = tool(*args, f"run.epochs={epochs}", capsys=capsys)
        assert status == 0, err
    rows = read_log(out / "log.jsonl")
    assert [r["epoch"] for r in rows if r["kind"] == "eval"] == [1, 2]
    steps = [r["step"] for r in rows if r["kind"] == "train"]
    assert steps == list(range(1, 13))  # 50 pictures in batches of 8
    card = checkpoint.load_card(out / "last")
    assert len(card.class_names) == 80
    assert card.class_ids[-1] == 90


def test_overfit_mode_runs_long_enough_unless_told(tmp_path):
    def epochs(*overrides: str) -> int:
        args = ["--model", "detr", "--out", str(tmp_path), "run.overfit=4", *overrides]
        return train.resolved(train.parser().parse_intermixed_args(args)).run.epochs

    assert epochs() == 500
    assert epochs("run.epochs=7") == 7


def test_listing(capsys):
    assert train.main(["--list"]) == 0
    out = capsys.readouterr().out
    assert "dn_detr_nano" in out
    assert "shapes" in out
