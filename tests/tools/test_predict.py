from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.datasets.coco_results import Truth
from zoo.errors import ZooError
from zoo.models.detr.detector import Detection
from zoo.tools import predict, predict_files
from zoo.tools.predict import PictureJob, Record, main, merge, read_parts, write_part

Make = Callable[..., Path]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def run(*args: Any, status: int = 0) -> None:
    assert main([*map(str, args), "--device", "cpu"]) == status


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five pictures in a folder and two below it, of several kinds and shapes."""
    folder = tmp_path / "photos"
    (folder / "more" / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name: str, size: tuple[int, int], mode: str = "RGB", **options: Any) -> None:
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).convert(mode).save(folder / name, **options)

    write("a.jpg", (80, 60))
    write("b one \u00fc.PNG", (60, 80), "LA")
    write("c.gif", (64, 64), "P")
    write("more/d.tiff", (90, 40), "CMYK")
    write("more/deep/e.jpeg", (50, 50), "L")
    exif = Image.Exif()
    exif[274] = 6
    write("turned.jpg", (90, 50), exif=exif)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.jpg").write_text("no picture")
    return folder


ALL = ["a.jpg", "b one \u00fc.PNG", "c.gif", "turned.jpg", "more/d.tiff", "more/deep/e.jpeg"]


def test_a_folder_becomes_a_coco_file_and_pictures(
    make_run: Make, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = make_run(), tmp_path / "out"
    run(pictures, "--weights", weights, "--out", out, "--threshold", 0.3, "--float32")
    found = read(out / "predictions.json")
    assert [im["file_name"] for im in found["images"]] == ALL
    assert [im["id"] for im in found["images"]] == [1, 2, 3, 4, 5, 6]
    assert (found["images"][3]["height"], found["images"][3]["width"]) == (90, 50)  # upright
    assert found["categories"] == [
        {"id": 3, "name": "apple"},
        {"id": 7, "name": "pear"},
        {"id": 20, "name": "fig"},
    ]
    assert found["info"]["folder"] == str(pictures)
    assert [a["id"] for a in found["annotations"]] == list(range(1, len(found["annotations"]) + 1))
    assert Truth(found).counts().keys() == {3, 7, 20}  # it is a valid ground truth
    # The same as in Python, each picture alone.
    model = zoo.load_model(weights, device="cpu", fast=False)
    for image in found["images"]:
        expected = model.predict(pictures / image["file_name"], threshold=0.3)
        own = [a for a in found["annotations"] if a["image_id"] == image["id"]]
        assert [a["category_id"] for a in own] == [d.class_id for d in expected]
        for a, d in zip(own, expected, strict=True):
            assert a["score"] == pytest.approx(d.score, abs=1e-5)
            assert a["bbox"][:2] == pytest.approx(d.box[:2], abs=1e-3)
            assert 0 <= a["bbox"][0] <= a["bbox"][0] + a["bbox"][2] <= image["width"] + 1e-6
            assert a["area"] == pytest.approx(a["bbox"][2] * a["bbox"][3])
    assert found["annotations"]
    drawn = sorted(p.relative_to(out / "pictures").as_posix() for p in out.rglob("*.jp*g"))
    assert drawn == sorted(
        [
            "a.jpg",
            "b one \u00fc.PNG.jpg",
            "c.gif.jpg",
            "more/d.tiff.jpg",
            "more/deep/e.jpeg",
            "turned.jpg",
        ]
    )
    assert size_of(out / "pictures" / "turned.jpg") == (267, 480)
    assert sorted(p.name for p in out.iterdir()) == ["pictures", "predictions.json"]
    printed = capsys.readouterr().out
    first = printed.splitlines()[0]
    for part in ("detr_nano", "M parameters", "6 pictures", "cpu", str(out)):
        assert part in first
    assert "6 pictures in " in printed
    assert str(out / "predictions.json") in printed


def test_bad_files_are_named_counted_and_end_nothing(
    make_run: Make, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "b bad.jpg").write_bytes((pictures / "a.jpg").read_bytes()[:300])
    (pictures / "z empty.png").write_bytes(b"")
    weights, out = make_run(), tmp_path / "out"
    run(pictures, "--weights", weights, "--out", out, "--threshold", 0.3, status=1)
    found = read(out / "predictions.json")
    assert [im["file_name"] for im in found["images"]] == ALL
    assert {a["image_id"] for a in found["annotations"]} <= {im["id"] for im in found["images"]}
    lines = (out / "failed.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [
        str(pictures / "b bad.jpg"),
        str(pictures / "z empty.png"),
    ]
    assert "truncated" in lines[0]
    assert "0 bytes" in lines[1]
    captured = capsys.readouterr()
    assert "2 files could not be read" in captured.err
    assert "b bad.jpg is truncated" in captured.err
    assert "6 pictures in" in captured.out
    # Mended, the same command ends well and leaves no old word of failures.
    (pictures / "b bad.jpg").unlink()
    (pictures / "z empty.png").unlink()
    run(pictures, "--weights", weights, "--out", out, "--threshold", 0.3)
    assert not (out / "failed.txt").exists()


def test_a_single_bad_picture_is_status_one(make_run: Make, tmp_path: Path) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(b"text")
    run(path, "--weights", make_run(), "--out", tmp_path / "out", status=1)
    assert read(tmp_path / "out" / "predictions.json")["images"] == []


def test_objects_of_few_pictures_are_printed(
    make_run: Make, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(pictures / "a.jpg", "--weights", make_run(), "--out", out, "--threshold", 0.3)
    found = read(out / "predictions.json")["annotations"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("a.jpg: ")]
    assert len(lines) == len(found) > 0
    assert f"{found[0]['score']:.0%} at (" in lines[0]


def test_patterns_files_and_folders_mix_and_count_once(
    make_run: Make, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = [pictures / "**" / "*.tif*", pictures / "more", pictures / "a.jpg", pictures / "a.jpg"]
    run(*given, "--weights", make_run(), "--out", out, "--no-pictures")
    names = [im["file_name"] for im in read(out / "predictions.json")["images"]]
    assert names == ["more/d.tiff", "more/deep/e.jpeg", "a.jpg"]
    assert sorted(p.name for p in out.iterdir()) == ["predictions.json"]


def test_output_inside_the_folder_is_not_read_again(make_run: Make, pictures: Path) -> None:
    weights, out = make_run(), pictures / "labelled"
    for _ in range(2):
        run(pictures, "--weights", weights, "--out", out)
        images = read(out / "predictions.json")["images"]
        assert sorted(im["file_name"] for im in images) == sorted(ALL)


def test_threshold_classes_and_limit_are_kept_to(
    make_run: Make, pictures: Path, tmp_path: Path
) -> None:
    weights = make_run()

    def found(*options: Any) -> list[dict[str, Any]]:
        out = tmp_path / "out"
        run(pictures, "--weights", weights, "--out", out, "--no-pictures", *options)
        return read(out / "predictions.json")["annotations"]

    everything = found("--threshold", 0)
    assert len(everything) == 6 * 12
    high = found("--threshold", 0.5)
    assert 0 < len(high) < len(everything)
    assert min(a["score"] for a in high) >= 0.5
    chosen = next(n for n in (3, 7, 20) if any(a["category_id"] == n for a in everything))
    name = {3: "apple", 7: "pear", 20: "fig"}[chosen]
    only = found("--threshold", 0, "--classes", name)
    assert {a["category_id"] for a in only} == {chosen}
    assert len(only) == sum(a["category_id"] == chosen for a in everything)
    assert len(found("--threshold", 0, "--max-detections", 2)) == 12
    assert len(found("--threshold", 0, "--batch-size", 1)) == 6 * 12


def test_attention_is_drawn_for_objects_and_points(
    make_run: Make, pictures: Path, tmp_path: Path
) -> None:
    weights = make_run()
    for name, options in (("a", ["--attention"]), ("b", ["--points", "0.5,0.5", "0,1"])):
        out = tmp_path / name
        run(pictures, "--weights", weights, "--out", out, "--threshold", 0.3, *options)
        found = read(out / "predictions.json")
        seen = {a["image_id"] for a in found["annotations"]}
        sheets = list((out / "attention").rglob("*.jp*g"))
        assert len(sheets) == (len(seen) if name == "a" else 6)
        assert all(min(size_of(sheet)) > 100 for sheet in sheets)


BAD = {
    "no such picture": (["nothing.jpg"], "no picture or folder nothing.jpg"),
    "no such pattern": (["*.xyz"], "no file matches *.xyz"),
    "no pictures": (["EMPTY"], "no picture in EMPTY (looked for .avif"),
    "unknown class": (["photos", "--classes", "aple,pear"], "no class 'aple'; did you mean apple"),
    "threshold": (["photos", "--threshold", "50"], "threshold of 50.0 is not in 0..1"),
    "batch of none": (["photos", "--batch-size", "0"], "batch_size"),
    "unwritable": (["photos", "--out", "photos/a.jpg"], "can't be written"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_status_two(
    name: str,
    make_run: Make,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    args, message = BAD[name]
    run(*args, "--weights", make_run(), status=2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert message in lines[0]


def test_bad_weights_are_status_two(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(pictures, "--weights", tmp_path / "nothing", status=2)
    assert "no weights at" in capsys.readouterr().err


@pytest.mark.parametrize("points", ["0.5", "1,2", "a,b", "0.1,0.2,0.3"])
def test_points_are_parts_of_the_picture(points: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["x.jpg", "--weights", "y", "--points", points])
    assert caught.value.code == 2
    assert "--points" in capsys.readouterr().err


def test_models_of_another_kind_are_refused(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Reader:
        class spec:  # noqa: N801
            name = "layout"

    monkeypatch.setattr(predict, "load_model", lambda *_, **__: Reader())
    run(pictures, "--weights", "run", status=2)
    assert "run is layout, which does not find objects" in capsys.readouterr().err


def test_a_picture_that_goes_away_is_a_bad_file(
    make_run: Make, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: Path) -> Any:
        raise ZooError(f"there is no picture {path}")

    monkeypatch.setattr(predict, "read_image", gone)
    run(pictures / "a.jpg", "--weights", make_run(), "--out", tmp_path / "out", status=1)
    assert "a.jpg" in (tmp_path / "out" / "failed.txt").read_text()


def test_the_parts_of_several_processes_become_one_file(make_run: Make, tmp_path: Path) -> None:
    model = zoo.load_model(make_run(), device="cpu")
    paths = [f"{n}.jpg" for n in range(7)]

    def record(n: int) -> Record:
        if n == 4:
            return Record(n, None, [], "broken")
        box = Detection("pear", n / 10, (1.0, 2.0, 4.0, 6.0 + n), class_id=7, index=1, query=0)
        return Record(n, (30, 40), [box] * (n % 3))

    for rank in range(3):
        write_part(tmp_path, rank, (record(n) for n in range(rank, 7, 3)))
    parts = [predict_files.part_of(tmp_path, rank) for rank in range(3)]
    assert [r[0] for r in read_parts(parts)] == list(range(7))
    args = predict.parser().parse_args(["x", "--weights", "run"])
    job = PictureJob(args, model, predict_files.Files(tmp_path, Path("/photos"), paths))
    counts, failed = merge(parts, job)
    assert (dict(counts), failed) == ({"pear": 5}, 1)
    found = read(tmp_path / "predictions.json")
    assert [im["id"] for im in found["images"]] == [1, 2, 3, 4, 6, 7]
    assert [a["image_id"] for a in found["annotations"]] == [2, 3, 3, 6, 6]
    assert found["annotations"][1]["bbox"] == [1.0, 2.0, 3.0, 6.0]
    assert (tmp_path / "failed.txt").read_text() == "/photos/4.jpg\tbroken\n"


def test_help_shows_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "torchrun --nproc-per-node 8 tools/predict.py" in capsys.readouterr().out
