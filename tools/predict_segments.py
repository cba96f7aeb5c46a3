"""What ``predict.py`` writes of masks: of each object, and of each picture in segments.

Every process writes a picture's map when the picture is done, so that no two maps need be in
memory; what is known of their segments goes through the parts of
:mod:`zoo.tools.predict_files`, and the first process makes panoptic.json of them.

The result is in COCO's panoptic format: ``OUT/panoptic.json`` and the maps in ``OUT/panoptic/``,
in the folders of their pictures. Pictures have the numbers that they have in predictions.json.
Categories have ``isthing`` by what the model knows (:attr:`Detector.stuff`): where its checkpoint
does not say which classes are stuff, all are written as things, and that is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import IO, Any

from PIL import Image
from torch import Tensor

from zoo.datasets.coco_panoptic_records import save_map, segments_info
from zoo.models.detr.detector import Detection, Detector, Seen
from zoo.tools.predict_files import no_room, read_parts, write_results
from zoo.visualize_masks import draw_masks


class Maps:
    """The maps of all pictures, in ``folder``, written one at a time by any process.

    ``paths`` are the pictures relative to their common folder, ``names`` their maps in ``folder``:
    of the picture's name with the suffix ``.png`` in its place, as COCO's are, or, if two pictures
    differ in nothing but their suffix, after it. Segments get the ids in ``class_ids``.
    """

    def __init__(self, out: Path, paths: Sequence[str], class_ids: Sequence[int]) -> None:
        self.folder, self.class_ids = out / "panoptic", class_ids
        names = [PurePath(path).with_suffix(".png").as_posix() for path in paths]
        if len(set(names)) < len(names):
            names = [PurePath(path).as_posix() + ".png" for path in paths]
        self.names = names

    def write(self, number: int, seen: Seen) -> list[dict[str, Any]] | None:
        """Write the map of the picture of this number; what COCO's format says of its segments.

        None of a picture without a panoptic map. Raises :class:`~zoo.errors.ZooError` where the
        file can't be written.
        """
        if seen.panoptic is None:
            return None
        path = self.folder / self.names[number]
        try:
            save_map(path, seen.panoptic)
        except OSError as error:
            raise no_room(path, error) from None
        return segments_info(seen.panoptic, self.class_ids, seen.panoptic_scores)


def of_mask(mask: Mapping[str, Any] | None) -> dict[str, Any]:
    """``area`` and ``segmentation`` of an object with this mask in predictions.json, if it has."""
    if mask is None:
        return {}
    from pycocotools import mask as rle

    return {"area": int(rle.area(mask)), "segmentation": mask}


def masked(image: Tensor, found: Sequence[Detection]) -> Tensor | Image.Image:
    """A picture uint8 [3, H, W] with the masks of what was found, best first, if there are any.

    Better ones lie over worse ones.
    """
    shown = [d for d in reversed(found) if d.mask is not None]
    if not shown:
        return image
    return draw_masks(image, (d.mask_array() for d in shown), [d.index for d in shown])


def merge_panoptic(
    parts: Sequence[Path],
    out: Path,
    maps: Maps,
    model: Detector,
    info: Mapping[str, Any],
    images: Iterator[Mapping[str, Any]],
) -> None:
    """Write panoptic.json of all parts' segments, a line of each in memory.

    ``info`` and ``images`` are those of predictions.json.
    """
    about = {**info, "description": f"segments found by {model.spec.name}"}
    about["threshold"] = model.spec.config.threshold
    stuff = set(model.stuff or ())
    categories = [
        {"id": number, "name": name, "isthing": int(index not in stuff)}
        for index, (number, name) in enumerate(zip(model.class_ids, model.class_names, strict=True))
    ]

    def annotations() -> Iterator[dict[str, Any]]:
        for number, _, _, _, segments in read_parts(parts):
            if segments is not None:
                name = maps.names[number]
                yield {"image_id": number + 1, "file_name": name, "segments_info": segments}

    def write(file: IO[str]) -> None:
        file.write(f'{{"info": {json.dumps(about)},\n"images": [')
        write_lines(file, images)
        file.write('],\n"annotations": [')
        write_lines(file, annotations())
        file.write(f'],\n"categories": {json.dumps(categories)}}}\n')

    write_results(out / "panoptic.json", write)


def write_lines(file: IO[str], records: Iterator[Mapping[str, Any]]) -> None:
    """The items of a JSON list, one a line."""
    separator = "\n"
    for record in records:
        file.write(separator + json.dumps(record))
        separator = ",\n"


def words_of_stuff(model: Detector) -> str:
    """What is to be said of a model with masks that does not know which classes are stuff."""
    if not model.has_masks or model.stuff is not None:
        return ""
    return (
        "the checkpoint does not say which classes are stuff: their segments are not merged, and "
        'panoptic.json calls all things; name their class indices in its model.json, as "stuff" '
        'in "preprocess"'
    )
