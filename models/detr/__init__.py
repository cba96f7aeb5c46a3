"""The DETR family: detection as set prediction, without anchors or non-maximum suppression.

``DEFAULT_VARIANT`` is what the bare family name ``detr`` stands for: the variant that learns best
on small data in minutes. The paper's own model is ``detr_r50`` (``detr_nano`` in small).
"""

DEFAULT_VARIANT = "rt_detr_nano"
DEFAULT_NOTE = "what learns best on small data; the paper's: detr_r50"
