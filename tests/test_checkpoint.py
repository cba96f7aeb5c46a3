import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from zoo import checkpoint
from zoo.checkpoint import Card
from zoo.errors import ZooError


def card(step: int = 0) -> Card:
    return Card(
        name="m",
        config={"dim": 3},
        class_names=("a", "b"),
        class_ids=(1, 7),
        preprocess={"val_size": 10},
        step=step,
        metrics={"AP": 0.5},
    )


def save(folder, value: float, step: int = 0) -> None:
    weights = {"w": torch.full((3,), value)}
    checkpoint.save(folder, card=card(step), weights=weights, trainer={"step": step})


def test_round_trip(tmp_path):
    save(tmp_path / "last", 2.0, step=5)
    assert checkpoint.load_card(tmp_path / "last") == card(5)
    assert checkpoint.load_weights(tmp_path / "last")["w"].tolist() == [2.0] * 3
    assert checkpoint.load_trainer(tmp_path / "last") == {"step": 5}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]


def test_publish_leaves_the_trainer_state_out(tmp_path):
    save(tmp_path / "last", 1.0)
    for _ in range(2):
        checkpoint.publish(tmp_path / "last", tmp_path / "best")
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == [
        "model.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("stage", ["writing", "between the renames"])
def test_what_a_kill_leaves_behind_is_loadable(tmp_path, stage):
    last = tmp_path / "last"
    save(last, 1.0, step=1)
    half = tmp_path / ".last.new"
    half.mkdir()
    (half / "model.json").write_text("{")
    if stage == "between the renames":
        last.rename(tmp_path / ".last.old")
    assert checkpoint.exists(last)
    assert checkpoint.load_card(last).step == 1
    assert checkpoint.load_weights(last)["w"][0] == 1.0
    save(last, 2.0, step=2)
    assert checkpoint.load_card(last).step == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]


def test_sigkill_at_random_moments_of_saving(tmp_path):
    """A process that saves without pause is killed; what it leaves must load, weights and card
    of the same step."""
    code = textwrap.dedent(
        """
        import sys, torch
        from pathlib import Path
        from zoo import checkpoint
        from zoo.checkpoint import Card
        step = 0
        while True:
            step += 1
            c = Card(name="m", config={}, class_names=(), class_ids=(), preprocess={}, step=step)
            checkpoint.save(Path(sys.argv[1]), card=c, weights={"w": torch.full((50000,), step)},
                            trainer={"step": step})
            print(step, flush=True)
        """
    )
    last = tmp_path / "last"
    for delay in (0.0, 0.013, 0.031, 0.052):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(last)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for _ in range(3):
                process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            process.wait()
        step = checkpoint.load_card(last).step
        assert step >= 3
        assert checkpoint.load_weights(last)["w"][0] == step
        assert checkpoint.load_trainer(last)["step"] == step


def test_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    last = tmp_path / "last"
    save(last, 1.0, step=1)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ZooError, match=r"last could not be saved.*disk is full.*--resume"):
        save(last, 2.0, step=2)
    assert checkpoint.load_card(last).step == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_really_full_device(tmp_path):
    last = tmp_path / "last"
    save(last, 1.0, step=1)
    original = checkpoint._replace

    def onto_full(folder, fill):
        def fill_full(fresh):
            (fresh / "model.json").symlink_to("/dev/full")
            fill(fresh)

        original(folder, fill_full)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_replace", onto_full)
        with pytest.raises(ZooError, match="disk is full"):
            save(last, 2.0, step=2)
    assert checkpoint.load_card(last).step == 1


def test_broken_and_missing_checkpoints(tmp_path):
    folder = tmp_path / "last"
    with pytest.raises(ZooError, match=r"model\.json is missing"):
        checkpoint.load_card(folder)
    save(folder, 1.0)
    (folder / "model.safetensors").write_bytes(b"12")
    with pytest.raises(ZooError, match="not a readable safetensors"):
        checkpoint.load_weights(folder)
    (folder / "trainer.pt").write_bytes(b"12")
    with pytest.raises(ZooError, match=r"trainer\.pt is broken"):
        checkpoint.load_trainer(folder)
    plain = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**plain, "format": 99}))
    with pytest.raises(ZooError, match="update this package"):
        checkpoint.load_card(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(ZooError, match=r"model\.json is broken"):
        checkpoint.load_card(folder)


def test_names_of_files_mean_those_beside_the_weights_only(tmp_path) -> None:
    given = {"a": "checkpoint:x.json", "b": ["checkpoint:../../etc/x", "y"], "c": 3}
    found = checkpoint.resolved(given, tmp_path)
    assert found == {"a": str(tmp_path / "x.json"), "b": [str(tmp_path / "x"), "y"], "c": 3}
