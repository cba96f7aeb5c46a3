"""COCO's panoptic categories as the release's class rows have them: the index is COCO's own id.

Things are the 80 of detection, up to id 90; stuff are 53 from 92 to 200. The released class heads
have 250 rows (and one for "no object"); rows of gaps were never trained.
"""

from __future__ import annotations

from zoo.models.detr.coco_classes import COCO_80, NO_CATEGORY

STUFF_FROM = 91  # class indices from here on are stuff

COCO_STUFF: dict[int, str] = {
    92: "banner",
    93: "blanket",
    95: "bridge",
    100: "cardboard",
    107: "counter",
    109: "curtain",
    112: "door-stuff",
    118: "floor-wood",
    119: "flower",
    122: "fruit",
    125: "gravel",
    128: "house",
    130: "light",
    133: "mirror-stuff",
    138: "net",
    141: "pillow",
    144: "platform",
    145: "playingfield",
    147: "railroad",
    148: "river",
    149: "road",
    151: "roof",
    154: "sand",
    155: "sea",
    156: "shelf",
    159: "snow",
    161: "stairs",
    166: "tent",
    168: "towel",
    171: "wall-brick",
    175: "wall-stone",
    176: "wall-tile",
    177: "wall-wood",
    178: "water-other",
    180: "window-blind",
    181: "window-other",
    184: "tree-merged",
    185: "fence-merged",
    186: "ceiling-merged",
    187: "sky-other-merged",
    188: "cabinet-merged",
    189: "table-merged",
    190: "floor-other-merged",
    191: "pavement-merged",
    192: "mountain-merged",
    193: "grass-merged",
    194: "dirt-merged",
    195: "paper-merged",
    196: "food-other-merged",
    197: "building-other-merged",
    198: "rock-merged",
    199: "wall-other-merged",
    200: "rug-merged",
}

COCO_250 = tuple({**COCO_80, **COCO_STUFF}.get(number, NO_CATEGORY) for number in range(250))
