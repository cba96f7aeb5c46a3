"""ERNIE-LayoutX against the released formulas, written out slowly here: no library has it.

The reference works on Paddle's names and shapes; the PyTorch port's are derived from them.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models.document.ernie_layout import ernie_layout_disentangled, ernie_layout_x_base
from zoo.models.document.keys import LAYOUTS, start_from
from zoo.models.document.model import DocumentModel
from zoo.weights import Loaded

DIM, HEADS, LAYERS, FFN, WORDS, STEM = 24, 4, 2, 40, 50, 4
CLASSES = 5
TINY = replace(
    ernie_layout_x_base().config,
    dim=DIM,
    num_heads=HEADS,
    num_layers=LAYERS,
    ffn_dim=FFN,
    vocab_size=WORDS,
    max_positions=60,
    segment_types=3,
    grid_width=4 * STEM,
)
DTYPES = [(torch.float32, 1e-5), (torch.float64, 1e-11)]
LENGTHS = (9, 4)


def paddle_state(task: str) -> dict[str, Tensor]:
    """Random tensors with the names and shapes of a Paddle checkpoint of a task's model."""
    generator = torch.Generator().manual_seed(3)
    state: dict[str, Tensor] = {}

    def add(name: str, *shape: int, around: float = 0.0, spread: float = 0.25) -> None:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        state[name] = around + spread * drawn

    def linear(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}.weight", inputs, outputs)  # Paddle's order
        add(f"{name}.bias", outputs)

    def norm(name: str, size: int) -> None:
        add(f"{name}.weight", size, around=1.0)
        add(f"{name}.bias", size)

    def conv(name: str, inputs: int, outputs: int, kernel: int) -> None:
        add(f"{name}._conv.weight", outputs, inputs, kernel, kernel)
        norm(f"{name}._batch_norm", outputs)
        add(f"{name}._batch_norm._mean", outputs)
        state[f"{name}._batch_norm._variance"] = 0.5 + torch.rand(
            outputs, generator=generator, dtype=torch.float64
        )

    e = "ernie_layout.embeddings"
    add(f"{e}.word_embeddings.weight", WORDS, DIM)
    add(f"{e}.position_embeddings.weight", 60, DIM)
    for axis in "xyhw":
        add(f"{e}.{axis}_position_embeddings.weight", 1024, DIM)
    add(f"{e}.token_type_embeddings.weight", 3, DIM)
    norm(f"{e}.LayerNorm", DIM)
    v = "ernie_layout.visual"
    state[f"{v}.pixel_mean"] = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    state[f"{v}.pixel_std"] = torch.tensor([57.375, 57.12, 58.395]).view(3, 1, 1)
    conv(f"{v}.backbone.conv", 3, STEM, 7)
    inputs = STEM
    for letter in "abc":
        block = f"{v}.backbone.res2{letter}"
        conv(f"{block}.conv0", inputs, STEM, 1)
        conv(f"{block}.conv1", STEM, STEM, 3)
        conv(f"{block}.conv2", STEM, 4 * STEM, 1)
        if letter == "a":
            conv(f"{block}.short", inputs, 4 * STEM, 1)
        inputs = 4 * STEM
    linear("ernie_layout.visual_proj", 4 * STEM, DIM)
    norm("ernie_layout.visual_LayerNorm", DIM)
    add("ernie_layout.encoder.rel_pos_bias", 32, HEADS, spread=1.0)
    add("ernie_layout.encoder.rel_pos_x_bias", 64, HEADS, spread=1.0)
    add("ernie_layout.encoder.rel_pos_y_bias", 64, HEADS, spread=1.0)
    for n in range(LAYERS):
        layer = f"ernie_layout.encoder.layer.{n}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", DIM, DIM)
        linear(f"{layer}.attention.output.dense", DIM, DIM)
        norm(f"{layer}.attention.output.LayerNorm", DIM)
        linear(f"{layer}.intermediate.dense", DIM, FFN)
        linear(f"{layer}.output.dense", FFN, DIM)
        norm(f"{layer}.output.LayerNorm", DIM)
    linear("ernie_layout.pooler.dense", DIM, DIM)
    if task == "qa":
        linear("qa_outputs", DIM, 2)
    else:
        linear("classifier", 3 * DIM if task == "classify" else DIM, CLASSES)
    return state


def port_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as the public PyTorch port has them."""
    out = {"ernie_layout.embeddings.position_ids": torch.arange(60)[None]}
    for key, value in state.items():
        if re.search(r"rel_pos_(x_|y_)?bias$", key):
            out[f"{key}.weight"] = value.T
            continue
        if value.ndim == 2 and "embeddings" not in key:
            value = value.T
        key = key.replace("backbone.conv._conv", "backbone.conv1")
        key = key.replace("backbone.conv._batch_norm", "backbone.batch_norm1")
        key = re.sub(r"res2([abc])", lambda m: f"resnet.layer0.{ord(m[1]) - ord('a')}", key)
        key = re.sub(r"conv(\d)\._conv", lambda m: f"conv{int(m[1]) + 1}", key)
        key = re.sub(r"conv(\d)\._batch_norm", lambda m: f"batch_norm{int(m[1]) + 1}", key)
        key = key.replace("short._conv", "shortcut.0").replace("short._batch_norm", "shortcut.1")
        key = key.replace("._mean", ".running_mean").replace("._variance", ".running_var")
        out[key] = value
    return out


# ---- The slow reference (document.md a.2) -------------------------------------------------------


def bucket(distance: int, bins: int, reach: int) -> int:
    half, size = bins // 2, abs(distance)
    exact = half // 2
    if size >= exact:
        ratio = np.log(np.float32(size / exact)) / np.float32(math.log(reach / exact))
        size = min(half - 1, exact + int(ratio * np.float32(half - exact)))
    return size + (half if distance > 0 else 0)


class Reference:
    """Paddle's model, one step a line, nothing shared and nothing batched but the image."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {k.removeprefix("ernie_layout."): v for k, v in state.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}._conv.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        n = f"{name}._batch_norm"
        mean, variance = self.state[f"{n}._mean"], self.state[f"{n}._variance"]
        return F.batch_norm(x, mean, variance, self.state[f"{n}.weight"], self.state[f"{n}.bias"])

    def boxed(self, bbox: list[int]) -> Tensor:
        x1, y1, x2, y2 = bbox
        table = {a: self.state[f"embeddings.{a}_position_embeddings.weight"] for a in "xyhw"}
        both = table["x"][x1] + table["y"][y1] + table["x"][x2] + table["y"][y2]
        return both + table["h"][y2 - y1] + table["w"][x2 - x1]

    def image(self, pixels: Tensor) -> tuple[Tensor, list[list[int]]]:
        """49 tokens and their boxes of one image [3, H, W] of bytes."""
        x = (pixels - self.state["visual.pixel_mean"]) / self.state["visual.pixel_std"]
        x = F.relu(self.conv("visual.backbone.conv", x[None], 2))
        x = F.max_pool2d(x, 3, 2, 1)
        for letter in "abc":
            block = f"visual.backbone.res2{letter}"
            y = F.relu(self.conv(f"{block}.conv0", x))
            y = F.relu(self.conv(f"{block}.conv1", y))
            y = self.conv(f"{block}.conv2", y)
            x = F.relu(y + (self.conv(f"{block}.short", x) if letter == "a" else x))
        x = F.adaptive_avg_pool2d(x, 7)[0]
        edges = (np.arange(8) * 1000 // 7).tolist()
        tokens, boxes = [], []
        for k in range(49):
            row, column = divmod(k, 7)
            box = [edges[column], edges[row], edges[column + 1], edges[row + 1]]
            token = F.gelu(self.linear("visual_proj", x[:, row, column]))
            token = token + self.state["embeddings.position_embeddings.weight"][k]
            tokens.append(self.norm("visual_LayerNorm", token + self.boxed(box)))
            boxes.append(box)
        return torch.stack(tokens), boxes

    def encode(
        self, ids: list[int], bbox: list[list[int]], places: list[int], kinds: list[int],
        pixels: Tensor, masked: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """All tokens of a row after the last layer, and the visual ones before the first.

        The last ``masked`` words are padding.
        """
        e = "embeddings"
        text = [
            self.state[f"{e}.word_embeddings.weight"][ids[n]]
            + self.state[f"{e}.position_embeddings.weight"][places[n]]
            + self.boxed(bbox[n])
            + self.state[f"{e}.token_type_embeddings.weight"][kinds[n]]
            for n in range(len(ids))
        ]
        seen, cells = self.image(pixels)
        x = torch.cat((self.norm(f"{e}.LayerNorm", torch.stack(text)), seen))
        bbox, places = bbox + cells, places + list(range(49))
        size = len(x)
        bias = torch.zeros(HEADS, size, size, dtype=x.dtype)
        for i in range(size):
            for j in range(size):
                bias[:, i, j] = (
                    self.state["encoder.rel_pos_bias"][bucket(places[j] - places[i], 32, 128)]
                    + self.state["encoder.rel_pos_x_bias"][bucket(bbox[j][0] - bbox[i][0], 64, 256)]
                    + self.state["encoder.rel_pos_y_bias"][bucket(bbox[j][3] - bbox[i][3], 64, 256)]
                )
        dead = range(len(ids) - masked, len(ids))
        width = DIM // HEADS
        for n in range(LAYERS):
            layer = f"encoder.layer.{n}"
            q, k, v = (self.linear(f"{layer}.attention.self.{p}", x)
                       for p in ("query", "key", "value"))  # fmt: skip
            mixed = []
            for head in range(HEADS):
                part = slice(head * width, (head + 1) * width)
                scores = (q[:, part] / math.sqrt(width)) @ k[:, part].T + bias[head]
                scores[:, list(dead)] = -1e10
                mixed.append(scores.softmax(-1) @ v[:, part])
            out = self.linear(f"{layer}.attention.output.dense", torch.cat(mixed, -1))
            x = self.norm(f"{layer}.attention.output.LayerNorm", x + out)
            hidden = F.gelu(self.linear(f"{layer}.intermediate.dense", x))
            out = self.linear(f"{layer}.output.dense", hidden)
            x = self.norm(f"{layer}.output.LayerNorm", x + out)
        return x, seen


# ---- Comparison ---------------------------------------------------------------------------------


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    length = max(LENGTHS)
    corners = torch.randint(0, 1001, (2, length, 2, 2), generator=generator)
    bbox = corners.sort(2).values.flatten(2)
    bbox[0, 0], bbox[0, 1], bbox[0, 2] = 0, 1000, torch.tensor([0, 0, 1000, 1000])
    mask = torch.arange(length) < torch.tensor(LENGTHS)[:, None]
    positions = torch.arange(length).repeat(2, 1)
    positions[0, 6:] = torch.arange(3)  # positions begin anew at the question
    return {
        "input_ids": torch.randint(0, WORDS, (2, length), generator=generator),
        "bbox": bbox,
        "attention_mask": mask,
        "position_ids": positions,
        "segment_ids": torch.randint(0, 3, (2, length), generator=generator),
        "pixel_values": torch.randint(
            0, 256, (2, 3, 70, 66), generator=generator, dtype=torch.uint8
        ),
    }


def load(
    task: str, state: dict[str, Tensor], layout: str, dtype: torch.dtype
) -> tuple[DocumentModel, str]:
    found = [known for known in LAYOUTS if known.recognises(state)]
    assert [known.name for known in found] == [layout]
    model = DocumentModel(replace(TINY, task=task), CLASSES).to(dtype).eval()
    note = start_from(model, Loaded(state=found[0].convert(state), origin="test", layout=layout))
    return model, note


NAMES: dict[str, tuple[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = {
    "paddle": ("ERNIE-Layout's (Paddle)", dict),
    "port": ("ERNIE-Layout's (PyTorch port)", port_state),
}


@pytest.mark.parametrize("task", ["qa", "ser", "classify"])
@pytest.mark.parametrize("names", list(NAMES))
@torch.no_grad()
def test_equals_the_released_formulas(names: str, task: str) -> None:
    layout, rename = NAMES[names]
    state = paddle_state(task)
    given = inputs()
    reference = Reference(state)
    rows = [
        reference.encode(
            *(given[k][b].tolist() for k in ("input_ids", "bbox", "position_ids", "segment_ids")),
            given["pixel_values"][b].double(),
            max(LENGTHS) - LENGTHS[b],
        )
        for b in range(2)
    ]
    for dtype, limit in DTYPES:
        model, note = load(task, rename(state), layout, dtype)
        assert "left out pooler" in note
        assert "new" not in note
        encoded = model.encoder(**given)
        out = model(**given)
        for b, (x, seen) in enumerate(rows):
            size = LENGTHS[b]
            text, visual = x[: max(LENGTHS)][:size], x[max(LENGTHS) :]
            assert text.std() > 0.3
            pairs = [
                (encoded.text[b, :size], text),
                (encoded.visual[b], visual),
                (encoded.visual_start[b], seen),
            ]
            if task == "qa":
                logits = reference.linear("qa_outputs", text)
                pairs.append((out["start_logits"][b, :size], logits[:, 0]))
                pairs.append((out["end_logits"][b, :size], logits[:, 1]))
            elif task == "ser":
                pairs.append((out["logits"][b, :size], reference.linear("classifier", text)))
            else:
                features = torch.cat((text[0], seen.mean(0), visual.mean(0)))
                pairs.append((out["logits"][b], reference.linear("classifier", features)))
            for mine, wanted in pairs:
                assert mine.shape == wanted.shape
                assert (mine - wanted).abs().max().item() <= limit


def test_an_encoder_alone_starts_every_task() -> None:
    state = {
        k.removeprefix("ernie_layout."): v
        for k, v in paddle_state("qa").items()
        if k.startswith("ernie_layout.")
    }
    for task in ("qa", "ser", "classify"):
        _, note = load(task, state, "ERNIE-Layout's (Paddle)", torch.float32)
        assert "left out pooler; new head" in note


def test_classification_needs_the_image() -> None:
    model, _ = load("classify", paddle_state("classify"), *(NAMES["paddle"][0], torch.float32))
    given = inputs()
    del given["pixel_values"]
    with pytest.raises(ZooError, match="pass pixel_values"):
        model(**given)


def test_the_papers_model_has_the_released_ones_layers() -> None:
    """Its tables of places take the place of the biases; all else is the same, also in name."""
    toy = ("dim", "num_heads", "num_layers", "ffn_dim", "vocab_size", "max_positions", "grid_width")
    shape = {name: getattr(TINY, name) for name in toy}
    paper = DocumentModel(replace(ernie_layout_disentangled().config, **shape), 1).state_dict()
    released = DocumentModel(replace(ernie_layout_x_base().config, **shape), 1).state_dict()
    assert paper.keys() ^ released.keys() == {
        f"encoder.{part}.{name}" for part in ("bias", "places") for name in ("position", "x", "y")
    }
