"""What can be wrong with a folder in COCO's format, each done to a folder that is fine."""

import json
import shutil

from PIL import Image

from zoo.datasets.inspection import inspect, splits_of
from zoo.tools.check_data import main


def change(folder, edit, split="train"):
    path = folder / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def found(folder, **more):
    """Count of each kind of finding."""
    result = inspect(folder, splits_of(folder), **more)
    return {(f.code, f.split): f.count for f in result.findings()}


def run(folder, tmp_path, *more):
    return main([str(folder), "--out", str(tmp_path / "out"), *more])


def edit(key, place, **values):
    """Set values of a record; where one is the whole ... the key is removed."""

    def do(content):
        for name, value in values.items():
            if value is ...:
                del content[key][place][name]
            else:
                content[key][place][name] = value

    return lambda folder: change(folder, do)


def append(key, place=0, **values):
    """One more record like another."""
    return lambda folder: change(
        folder, lambda content: content[key].append({**content[key][place], **values})
    )


def first_picture(folder, split="train"):
    return folder / split / "000000.png"


def truncate(folder):
    path = first_picture(folder)
    path.write_bytes(path.read_bytes()[:-2000])


def resize(folder, factor):
    with Image.open(first_picture(folder)) as image:
        size = (image.width * 2, round(image.height * factor))
        image.resize(size).save(first_picture(folder))


def lie_down(folder, orientation=6, width=60, height=40):
    """A picture stored as 60 x 40 with an orientation, whose record says something else."""
    tags = Image.Exif()
    tags[274] = orientation
    with Image.open(first_picture(folder)) as image:
        image.crop((0, 0, 60, 40)).save(first_picture(folder).with_suffix(".jpg"), exif=tags)

    def do(content):
        content["images"][0] |= {"file_name": "000000.jpg", "width": width, "height": height}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 1]

    change(folder, do)
    first_picture(folder).unlink()


def copy(folder, to):
    shutil.copy(first_picture(folder), folder / to)


def recompress(folder):
    """The same picture in both splits, in other bytes and at another scale."""
    with Image.open(first_picture(folder)) as image:
        image.resize((image.width * 2, image.height * 2)).save(
            folder / "val/000000.jpg", quality=80
        )
        size = {"width": image.width * 2, "height": image.height * 2}

    def do(content):
        content["images"][0] |= {"file_name": "000000.jpg", **size}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 1_000_001]

    change(folder, do, "val")
    (folder / "val/000000.png").unlink()


def leak(folder):
    copy(folder, "val/000000.png")
    with Image.open(first_picture(folder)) as image:
        size = {"width": image.width, "height": image.height}

    def do(content):
        content["images"][0] |= size
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 1_000_001]

    change(folder, do, "val")


def duplicate(folder):
    copy(folder, "train/copy.png")
    append("images", id=999, file_name="copy.png")(folder)


def without_class(folder):
    def do(content):
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 21]

    change(folder, do)


DEFECTS = {
    "json": lambda f: (f / "annotations/instances_train.json").write_text('{"images": [}'),
    "lists": lambda f: change(f, lambda c: c.pop("categories")),
    "record": edit("images", 0, width="wide"),
    "record, not one": lambda f: change(f, lambda c: c["annotations"].append(3)),
    "record, outside": edit("images", 0, file_name="../val/000000.png"),
    "record, no id": edit("images", 29, id=...),
    "record, no name": edit("categories", 7, name=...),
    "image_id": append("images", file_name="000001.png"),
    "category_id": append("categories", name="twice"),
    "missing": lambda f: first_picture(f).unlink(),
    "unreadable": truncate,
    "unreadable, empty": lambda f: first_picture(f).write_bytes(b""),
    "unknown_image": edit("annotations", 0, image_id=77_777),
    "unknown_image, none": edit("annotations", 0, image_id=...),
    "unknown_category": edit("annotations", 0, category_id=4),
    "bad_box": edit("annotations", 0, bbox=[1, 2, float("nan"), 4]),
    "bad_box, negative": edit("annotations", 0, bbox=[1, 2, -3, 4]),
    "bad_box, short": edit("annotations", 0, bbox=[1, 2, 3]),
    "bad_box, none": edit("annotations", 0, bbox=...),
    "size": lambda f: resize(f, 3),
    "categories": edit("categories", 3, name="sun"),
    "leak": leak,
    "alike": recompress,
    "duplicate": duplicate,
    "listed_twice": append("images", id=999),
    "degenerate": edit("annotations", 0, bbox=[10, 10, 0, 20]),
    "outside": edit("annotations", 0, bbox=[5000, 10, 10, 20]),
    "clipped": edit("annotations", 0, bbox=[-5, 10, 20, 20]),
    "same_box": append("annotations", id=9999),
    "annotation_id": append("annotations", place=1, bbox=[3, 3, 9, 9]),
    "turned": lie_down,
    "scaled": lambda f: resize(f, 2),
    "unlisted": lambda f: Image.new("RGB", (5, 5)).save(f / "train/more.png"),
    "unlearnable": without_class,
    "empty_split": lambda f: change(f, lambda c: c["annotations"].clear(), "val"),
    "crowd": edit("annotations", 0, iscrowd=1),
    "oriented": lambda f: lie_down(f, 6, width=40, height=60),
    "oriented, half a turn": lambda f: lie_down(f, 3),
}
