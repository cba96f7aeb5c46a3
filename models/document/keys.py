"""Published document models' names of our tensors, and what of a checkpoint fits a model.

A :class:`DocumentLayout` renames the encoder's tensors. Published heads become parts of their own
(``qa.``, ``classifier.``, ``pooler.``, ``other.``), as a name alone does not say whether a
classifier was for tokens or for pages; :func:`fit` puts them in place for a model's task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zoo.models.document.model import DocumentModel
from zoo.weights import KeyLayout, Loaded, State, initialise


@dataclass(frozen=True, kw_only=True)
class DocumentLayout(KeyLayout):
    """A layout that is told from its relatives also by keys that it lacks (``without``)."""

    without: str = ""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the marker is among the keys and nothing of ``without`` is."""
        if not super().recognises(state):
            return False
        return not self.without or not any(re.search(self.without, key) for key in state)


def turn_biases(state: State) -> State:
    """Tables of relative biases from [heads, bins] to ours, [bins, heads]."""
    return {k: v.T.contiguous() if k.startswith("encoder.bias.") else v for k, v in state.items()}


def with_counters(state: State) -> State:
    """The batch norms' counters, which not all frameworks keep, added where they are missing."""
    out = dict(state)
    for key in state:
        if key.endswith(".running_mean"):
            out.setdefault(key.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return out


def from_port(state: State) -> State:
    """What renaming can't do for the public PyTorch port of ERNIE-Layout."""
    return with_counters(turn_biases(state))


def from_paddle(state: State) -> State:
    """What renaming can't do for Paddle: its linear layers' weights are [inputs, outputs]."""

    def is_linear(key: str, value: Tensor) -> bool:
        table = key.startswith("encoder.embeddings.")
        return value.ndim == 2 and key.endswith(".weight") and not table

    turned = {k: v.T.contiguous() if is_linear(k, v) else v for k, v in state.items()}
    return with_counters(turned)


_Rules = tuple[tuple[str, str], ...]

_HEADS: _Rules = (
    (r"^(cls|mlm_score|rank_output|linear_start|linear_end)\.", r"other.\1."),
    (r"^qa_outputs\.(out_proj\.)?(weight|bias)$", r"qa.spans.\2"),
    (r"^qa_outputs\.dense\.", "qa.dense."),
    (r"^classifier\.(out_proj\.|3\.)?(weight|bias)$", r"classifier.out.\2"),
    (r"^classifier\.0\.", "classifier.dense."),
    (r"^classifier\.1\.", "classifier.norm."),
    (r"^pooler\.dense\.", "pooler."),
)

_EMBEDDINGS: _Rules = (
    (r"^embeddings\.(position|token_type)_ids$", ""),
    (r"^embeddings\.([xyhw])_position_embeddings\.", r"encoder.embeddings.boxes.\1."),
    (r"^embeddings\.(word|position)_embeddings\.", r"encoder.embeddings.\1."),
    (r"^embeddings\.token_type_embeddings\.", "encoder.embeddings.segment."),
    (r"^embeddings\.LayerNorm\.", "encoder.embeddings.norm."),
)

_LAYERS: _Rules = (
    (r"^encoder\.layer\.", "encoder.layers."),
    *((rf"\.attention\.(?:self|attention)\.{n}\.", f".self_attn.{n[0]}_proj.")
      for n in ("query", "key", "value")),
    (r"\.attention\.output\.dense\.", ".self_attn.o_proj."),
    (r"\.attention\.output\.LayerNorm\.", ".norm1."),
    (r"\.intermediate\.dense\.", ".linear1."),
    (r"\.output\.dense\.", ".linear2."),
    (r"\.output\.LayerNorm\.", ".norm2."),
)  # fmt: skip

_BIASES: _Rules = (
    (r"^encoder\.rel_pos_bias(\.weight)?$", "encoder.bias.position"),
    (r"^encoder\.rel_pos_([xy])_bias(\.weight)?$", r"encoder.bias.\1"),
)

_BERT: _Rules = (
    # Names of checkpoints that came from TensorFlow.
    (r"\.LayerNorm\.gamma$", ".LayerNorm.weight"),
    (r"\.LayerNorm\.beta$", ".LayerNorm.bias"),
    *_HEADS,
    *_EMBEDDINGS,
    *_LAYERS,
)

_LAYOUTLMV3: _Rules = (
    (r"^layoutlmv3\.", ""),
    *_HEADS,
    *_EMBEDDINGS,
    *_LAYERS,
    *_BIASES,
    (r"^visual_bbox$", ""),
    (r"^(cls_token|pos_embed)$", r"encoder.vision.\1"),
    (r"^patch_embed\.proj\.", "encoder.vision.proj."),
    (r"^norm\.", "encoder.vision.norm."),
    (r"^LayerNorm\.", "encoder.joint_norm."),
)

_VILT: _Rules = (
    (r"^vilt\.", ""),
    *_HEADS,
    (r"^embeddings\.cls_token$", "encoder.vision.cls_token"),
    (r"^embeddings\.position_embeddings$", "encoder.vision.pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "encoder.vision.proj."),
    (r"^embeddings\.token_type_embeddings\.", "encoder.modality."),
    (r"^embeddings\.text_embeddings\.", "embeddings."),
    *_EMBEDDINGS,
    *_LAYERS,
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "encoder.norm."),
)

_ERNIE: _Rules = (
    (r"^ernie_layout\.", ""),
    *_HEADS,
    *_EMBEDDINGS,
    *_LAYERS,
    *_BIASES,
    (r"^visual\.pixel_(mean|std)$", ""),  # constants, ours too
    (r"^visual_proj\.", "encoder.vision.proj."),
    (r"^visual_LayerNorm\.", "encoder.vision.norm."),
    (r"^visual\.backbone\.", "encoder.vision.backbone."),
)

_PORT: _Rules = (
    *_ERNIE,
    (r"\.backbone\.resnet\.layer0\.", ".backbone.layer1."),
    (r"(\.backbone\..*)\.shortcut\.", r"\1.downsample."),
    (r"(\.backbone\..*)batch_norm(\d)\.", r"\1bn\2."),
)

_PADDLE: _Rules = (
    *_ERNIE,
    (r"\.backbone\.conv\._conv\.", ".backbone.conv1."),
    (r"\.backbone\.conv\._batch_norm\.", ".backbone.bn1."),
    *((rf"\.backbone\.res2{letter}\.", f".backbone.layer1.{n}.")
      for n, letter in enumerate("abc")),
    *((rf"(\.layer1\.\d)\.conv{n}\._conv\.", rf"\1.conv{n + 1}.") for n in range(3)),
    *((rf"(\.layer1\.\d)\.conv{n}\._batch_norm\.", rf"\1.bn{n + 1}.") for n in range(3)),
    (r"\.short\._conv\.", ".downsample.0."),
    (r"\.short\._batch_norm\.", ".downsample.1."),
    (r"(\.backbone\..*)\._mean$", r"\1.running_mean"),
    (r"(\.backbone\..*)\._variance$", r"\1.running_var"),
)  # fmt: skip

# Of relatives that have what LayoutLM and BERT have, and more.
_MORE = r"rel_pos|visual|patch_embed|text_embeddings|^layoutlmv[23]\."

LAYOUTLM = DocumentLayout(
    name="LayoutLM's",
    marker=r"^(layoutlm\.)?embeddings\.x_position_embeddings\.weight$",
    without=_MORE,
    rules=((r"^layoutlm\.", ""), *_BERT),
)
LAYOUTLMV3 = DocumentLayout(
    name="LayoutLMv3's",
    marker=r"^(layoutlmv3\.)?patch_embed\.proj\.weight$",
    rules=_LAYOUTLMV3,
    fix=turn_biases,
)
VILT = DocumentLayout(
    name="ViLT's",
    marker=r"^(vilt\.)?embeddings\.text_embeddings\.word_embeddings\.weight$",
    rules=_VILT,
)
ERNIE_PORT = DocumentLayout(
    name="ERNIE-Layout's (PyTorch port)",
    marker=r"^(ernie_layout\.)?visual\.backbone\.resnet\.layer0\.0\.conv1\.weight$",
    rules=_PORT,
    fix=from_port,
)
ERNIE_PADDLE = DocumentLayout(
    name="ERNIE-Layout's (Paddle)",
    marker=r"^(ernie_layout\.)?visual\.backbone\.res2a\.conv0\._conv\.weight$",
    rules=_PADDLE,
    fix=from_paddle,
)
BERT = DocumentLayout(
    name="BERT's",
    marker=r"^(bert\.)?embeddings\.token_type_embeddings\.weight$",
    without=rf"_position_embeddings|{_MORE}",
    rules=((r"^bert\.", ""), *_BERT),
)
LAYOUTS: tuple[KeyLayout, ...] = (LAYOUTLM, LAYOUTLMV3, VILT, ERNIE_PORT, ERNIE_PADDLE, BERT)

# Rows of a class each; a span head's two rows have another name.
CLASS_ROWS = ("head.out.weight", "head.out.bias")

# Published parts that are no part of the encoder.
_PARTS = ("qa", "classifier", "pooler", "other")
# What a text model lacks. Each is new as a whole or not at all.
_OPTIONAL = (
    "encoder.embeddings.boxes.",
    "encoder.bias.",
    "encoder.places.",
    "encoder.vision.",
    "encoder.joint_norm.",
    "encoder.modality.",
)


def fit(model: DocumentModel, loaded: Loaded) -> tuple[Loaded, str]:
    """The checkpoint as ``model`` can take it, and a note of what was left out and what is new.

    Its head is used where it is of the model's task. Tensors that the model has and the checkpoint
    lacks are the model's own, as initialised, for the head and for whole parts that a text model
    lacks. Where a checkpoint of ours has such a part and the model's settings switch it off
    (``model.boxes=none``), it is left out. All other differences stay, for
    :func:`zoo.weights.initialise` to refuse.
    """
    own = model.state_dict()
    state: State = {}
    left_out = []
    for key, value in loaded.state.items():
        place = _place(key, model)
        if place is None:
            left_out.append(key)
        else:
            state[place] = value
    head = [key for key in state if key.startswith("head.")]
    if any(key not in own for key in head):  # another task's
        left_out += head
        for key in head:
            del state[key]
    new = []
    for part in _OPTIONAL if loaded.card else ():
        extra = [key for key in state if key.startswith(part)]
        if extra and not any(key.startswith(part) for key in own):
            left_out.append(f"other.{part.removesuffix('.').replace('.', ' ')}")
            for key in extra:
                del state[key]
    for part in ("head.", *_OPTIONAL):
        lacking = [key for key in own if key.startswith(part) and key not in state]
        whole = not any(key.startswith(part) for key in state)
        if lacking and (whole or part == "head."):
            state.update({key: own[key] for key in lacking})
            new.append(part.removesuffix("."))
    notes = []
    if left_out:
        notes.append(f"left out {', '.join(sorted({_part(key) for key in left_out}))}")
    if new:
        notes.append(f"new {', '.join(new)}")
    return replace(loaded, state=state), "; ".join(notes)


def start_from(model: DocumentModel, loaded: Loaded, class_names: Sequence[str] = ()) -> str:
    """Load what of a checkpoint fits into ``model``, and say what was done.

    Raises :class:`zoo.errors.ZooError` where the encoder does not fit.
    """
    fitted, note = fit(model, loaded)
    rows = () if model.config.task == "qa" else CLASS_ROWS
    done = initialise(model, fitted, class_rows=rows, class_names=class_names)
    return f"{done}; {note}" if note else done


def _place(key: str, model: DocumentModel) -> str | None:
    """Where a converted tensor belongs in ``model``; None: it has no use for it."""
    part, _, rest = key.partition(".")
    if part not in _PARTS:
        return key
    task, kind = model.config.task, model.config.heads
    if part == "qa" and task == "qa":
        return f"head.{rest}"
    if part == "classifier" and task != "qa":
        return f"head.{rest}"
    if part == "pooler" and task == "classify" and kind in ("bert", "vilt"):
        return f"head.{'dense' if kind == 'bert' else 'pooler'}.{rest}"
    return None


def _part(key: str) -> str:
    part, _, rest = key.partition(".")
    return rest.partition(".")[0] if part == "other" else part
