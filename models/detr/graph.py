"""A detector as a graph: for ``torch.export`` and ONNX, with any batch and any picture size.

The graph has two inputs, ``pixel_values`` [B, 3, H, W] uint8 (as read, RGB, resized; it normalises
them itself) and ``pixel_mask`` [B, H, W] bool (True where valid), and two outputs, ``pred_logits``
[B, Q, C] and ``pred_boxes`` [B, Q, 4], cxcywh in 0..1 of the image without its padding. The mask
is an input, not a constant: what is seen in a picture does not depend on the batch's size. Models
that make masks of objects, too, are refused: their mask head works in as many parts as there are
images and queries.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from zoo.errors import ZooError

INPUTS = ("pixel_values", "pixel_mask")
OUTPUTS = ("pred_logits", "pred_boxes")
NEEDED = ("onnx", "onnxscript", "onnxruntime")
EXAMPLE = (2, 192, 256)  # images, height and width that the graph is traced with


class DetectorGraph(nn.Module):
    """A detector whose output is a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, Q, C] and boxes [B, Q, 4]."""
        out = self.model(pixel_values=pixel_values, pixel_mask=pixel_mask)
        if "pred_masks" in out:
            raise ZooError(
                f"{type(self.model).__name__} makes masks, which a graph can't have yet; export it "
                "with --format checkpoint"
            )
        return out["pred_logits"], out["pred_boxes"]


def example(batch: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random pixels and a mask that pads every image but the first: the graph's inputs."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (batch, 3, height, width), generator=draw, dtype=torch.uint8)
    mask = torch.ones(batch, height, width, dtype=torch.bool)
    mask[1:, :, width - width // 5 :] = False
    return pixels * mask[:, None], mask


def to_program(model: nn.Module) -> ExportedProgram:
    """The model in evaluation mode, in float32 on the CPU, as ``torch.export`` sees it.

    Raises :class:`ZooError` where the model is no detector, makes masks, or can't be traced.
    """
    graph = DetectorGraph(model.float().cpu().eval())
    size = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    shapes = (size, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC})
    with _quiet(), torch.no_grad():
        try:
            return torch.export.export(graph, example(*EXAMPLE), dynamic_shapes=shapes)
        except (TypeError, KeyError) as error:
            kind = type(model).__name__
            raise ZooError(f"{kind} is no detector, and only those become graphs") from error
        except (RuntimeError, ValueError) as error:  # torch's own errors are of these kinds
            kind, reason = type(model).__name__, _reason(error)
            raise ZooError(f"{kind} can't be traced for every size: {reason}") from error


def to_onnx(
    program: ExportedProgram,
    path: Path,
    *,
    class_names: Sequence[str] = (),
    class_ids: Sequence[int] = (),
) -> None:
    """Write the program as an ONNX file, all in one, with its classes in the file's metadata.

    Raises :class:`ZooError` where the packages that it takes are not installed, or where the
    program has something that ONNX lacks.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ZooError(
            f"ONNX needs {' and '.join(missing)}; run: pip install 'layout-detr-zoo[onnx]'"
        )
    import onnx

    shapes = ({0: "batch", 2: "height", 3: "width"}, {0: "batch", 1: "height", 2: "width"})
    with _quiet():
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=list(INPUTS),
                output_names=list(OUTPUTS),
                dynamic_shapes=shapes,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ZooError(
                f"the model can't be written as ONNX ({_reason(error)}); export it with "
                "--format program"
            ) from error
    assert made is not None
    file = made.model_proto
    facts = {"class_names": json.dumps(list(class_names)), "class_ids": json.dumps(list(class_ids))}
    onnx.helper.set_model_props(file, facts)
    onnx.save(file, str(path))


def differences(model: nn.Module, path: Path, sizes: Sequence[tuple[int, int, int]]) -> float:
    """How far a model and its ONNX file under onnxruntime are from each other.

    See :func:`distance`; ``sizes`` are the batches (images, height, width) to compare.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        feed = {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)}
        return [torch.from_numpy(found) for found in session.run(list(OUTPUTS), feed)]

    return distance(model, run, sizes)


def distance(
    model: nn.Module,
    run: Callable[..., Sequence[Tensor]],
    sizes: Sequence[tuple[int, int, int]],
) -> float:
    """How far a model and ``run``, another form of it, are from each other: see :func:`apart`.

    ``run`` takes the graph's inputs; ``sizes``: the batches (images, height, width) to compare.
    """
    graph, worst = DetectorGraph(model.eval()), 0.0
    for n, size in enumerate(sizes):
        inputs = example(*size, seed=n)
        with torch.no_grad():
            worst = max(worst, apart(graph(*inputs), run(*inputs)))
    return worst


def apart(ours: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest difference of a number between queries and their likest of the other outputs.

    Both are logits [B, Q, C] and boxes [B, Q, 4]. The order of queries does not count: where cells
    of nearly equal scores become queries, rounding decides which comes first.
    """
    far = torch.cdist(torch.cat(list(ours), -1), torch.cat(list(others), -1), p=math.inf)
    return max(float(far.amin(dim).max()) for dim in (1, 2))


def _reason(error: Exception) -> str:
    """What an exporter has to say, in one line: the first that names something, else the first."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    named = [line for line in lines if line.startswith("You marked")]
    return (named or lines or [type(error).__name__])[0].partition(". ")[0].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters talk a lot, of their own affairs."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
