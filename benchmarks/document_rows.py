"""The document half's rows: our encoder, OCR and answering beside transformers and pytesseract.

Random weights, moved away from where biases are zero; equal outputs are required before timing.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from rows import Row, Work, alternate, compare, require, shown
from torch import Tensor, nn

from zoo.inference import prepare
from zoo.models.document.config import LayoutConfig
from zoo.models.document.keys import LAYOUTS, fit
from zoo.models.document.layoutlm import layoutlm_base
from zoo.models.document.layoutlmv3 import layoutlmv3_base
from zoo.models.document.model import DocumentModel
from zoo.weights import Loaded, initialise

SMALL = {
    "hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 32,
    "coordinate_size": 4, "shape_size": 4,
}  # fmt: skip
OURS = {
    "dim": 24, "num_heads": 4, "num_layers": 2, "ffn_dim": 32, "coordinate_size": 4, "shape_size": 4
}  # fmt: skip


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter moved a little, so that tables which begin at zero count."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.02)
    return model


def loaded(config: LayoutConfig, theirs: nn.Module) -> DocumentModel:
    """Our model with the reference's weights, through its published names."""
    model = DocumentModel(config, 0)
    state = theirs.state_dict()
    [layout] = [known for known in LAYOUTS if known.recognises(state)]
    fitted, _ = fit(
        model, Loaded(state=layout.convert(state), origin="reference", layout=layout.name)
    )
    initialise(model, fitted)
    return model


def layoutlmv3_sides(quick: bool) -> tuple[nn.Module, DocumentModel]:
    """transformers' LayoutLMv3 for questions as it comes, and ours with its weights."""
    from dataclasses import replace

    from transformers import LayoutLMv3Config, LayoutLMv3ForQuestionAnswering

    torch.manual_seed(0)
    settings: dict[str, Any] = {"max_position_embeddings": 514, "type_vocab_size": 1}
    config = layoutlmv3_base().config
    if quick:
        settings |= SMALL
        config = replace(config, **OURS)
    theirs = randomised(LayoutLMv3ForQuestionAnswering(LayoutLMv3Config(**settings)))
    return theirs, loaded(config, theirs)


def rows_of(lengths: list[int]) -> dict[str, Tensor]:
    """Rows of random words and boxes, padded to the longest, with a picture each."""
    draw = torch.Generator().manual_seed(11)
    count, longest = len(lengths), max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    corners = torch.randint(0, 1001, (count, longest, 2, 2), generator=draw).sort(2).values
    ids = torch.randint(5, 1000, (count, longest), generator=draw)
    return {
        "input_ids": ids.masked_fill(~mask, 1),
        "bbox": corners.flatten(2),
        "attention_mask": mask,
        "pixel_values": torch.randn(count, 3, 224, 224, generator=draw),
    }


def encoder(quick: bool, lengths: list[int], half: bool, target: float) -> Row:
    """LayoutLMv3-base in inference, at 196 patches and a class token beside the text."""
    theirs, model = layoutlmv3_sides(quick)
    theirs, model = theirs.eval(), prepare(model, half=half)
    given = rows_of([min(n, 24) for n in lengths] if quick else lengths)
    mask, length = given["attention_mask"], given["input_ids"].shape[1]
    their_given = {**given, "attention_mask": mask.long()}

    @torch.inference_mode()
    def run() -> Any:
        with torch.autocast("cpu", torch.bfloat16, half):
            return model(**given)

    @torch.inference_mode()
    def their_run() -> Any:
        return theirs(**their_given)

    mine, other = run(), their_run()
    starts, ends = other.start_logits[:, :length], other.end_logits[:, :length]
    if half:
        for a, b in ((mine["start_logits"], starts), (mine["end_logits"], ends)):
            best = b.masked_fill(~mask, -torch.inf).argmax(1)
            require(bool((a.argmax(1) == best).all()), "another best position in bf16")
        note = "the same best start and end"
    else:
        pairs = ((mine["start_logits"], starts), (mine["end_logits"], ends))
        worst = max(float((a - b)[mask].abs().max()) for a, b in pairs)
        require(worst <= 1e-4, f"logits differ by {worst:.1e}")
        note = f"logits equal to {worst:.0e}"
    said = f"{lengths[0]}" if len(lengths) == 1 else f"{min(lengths)}..{max(lengths)}"
    name = (
        f"LayoutLMv3-base encoder, {said} + 197 tokens, batch {len(lengths)}, "
        f"{'bf16' if half else 'float32'}"
    )
    return compare(name, target, {"ours": run, "theirs": their_run}, 2 if quick else 7, note)


def encoder_training(quick: bool) -> Row:
    """A training step with the biases trained (transformers leaves theirs out of the gradient)."""
    theirs, model = layoutlmv3_sides(quick)
    for net in (theirs, model):
        net.train()
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
    lengths = [24, 20] if quick else [512, 512]
    given = rows_of(lengths)
    their_given = {**given, "attention_mask": given["attention_mask"].long()}
    at = torch.tensor([5, 7])

    def step(net: nn.Module, call: Work, optimizer: torch.optim.Optimizer) -> float:
        optimizer.zero_grad(set_to_none=True)
        starts, ends = call()
        cross = nn.functional.cross_entropy
        loss = (cross(starts, at) + cross(ends, at)) / 2
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    longest = max(lengths)

    def mine() -> Any:
        out = model(**given)
        return out["start_logits"], out["end_logits"]

    def other() -> Any:
        out = theirs(**their_given)
        hidden = ~given["attention_mask"]
        pair = (out.start_logits[:, :longest], out.end_logits[:, :longest])
        return tuple(x.masked_fill(hidden, -1e8) for x in pair)

    def optimizer(net: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(net.parameters(), lr=1e-7)

    with torch.no_grad():
        pairs = zip(mine(), other(), strict=True)
        worst = max(float((a - b)[given["attention_mask"]].abs().max()) for a, b in pairs)
    require(worst <= 1e-4, f"logits differ by {worst:.1e}")
    one, two = optimizer(model), optimizer(theirs)
    sides: dict[str, Work] = {
        "ours": lambda: step(model, mine, one),
        "theirs": lambda: step(theirs, other, two),
    }
    name = "LayoutLMv3-base training step, 512 + 197 tokens, batch 2, float32"
    note = "ours trains the relative biases, the reference does not; dropout off"
    return compare(name, 1.5, sides, 2 if quick else 5, note)


def scan(quick: bool) -> Image.Image:
    """A drawn page of an A4 sheet's size at 200 dpi (120 for ``quick``)."""
    from zoo.datasets.papers.document import draw_document, paint

    document = draw_document(3, 17, "letter", ocr_noise=0.0)
    picture = paint(document, 3, wear=0.0).convert("L")
    width = 1000 if quick else 1654
    return picture.resize((width, round(picture.height * width / picture.width)))


def ocr(quick: bool) -> Row:
    """One page read by Tesseract: processor time, ours against pytesseract's default call."""
    import pytesseract

    from zoo.datasets.ocr.tesseract import Tesseract

    page, engine = scan(quick), Tesseract()
    words: dict[str, list[str]] = {}

    def mine() -> None:
        words["ours"] = list(engine(page, 200).words)

    def other() -> None:
        found = pytesseract.image_to_data(page, output_type=pytesseract.Output.DICT)
        words["theirs"] = [text for text in found["text"] if text.strip()]

    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(1 if quick else 3):
        for side, work in (("ours", mine), ("theirs", other)):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            work()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            seconds[side].append(used)
    common = len(set(words["ours"]) & set(words["theirs"]))
    whole = max(1, len(set(words["theirs"])))
    require(common >= 0.95 * whole, f"only {common} of {whole} words are the same")
    ratio = median(seconds["theirs"]) / median(seconds["ours"])
    note = f"processor seconds of the child; {common} of {whole} different words are the same"
    return Row(
        "OCR of one page, processor time", 2.5, ratio, shown(seconds["ours"]),
        shown(seconds["theirs"]), note,
    )  # fmt: skip


def ten_questions(quick: bool) -> Row:
    """Ten questions on one scan: LayoutLM's shape, the same weights, the same OCR engine."""
    from dataclasses import replace

    from transformers import (
        LayoutLMConfig,
        LayoutLMForQuestionAnswering,
        PreTrainedTokenizerFast,
        pipeline,
    )

    from zoo.datasets.tokens import ASSETS
    from zoo.models.document.predictor import DocumentReader
    from zoo.registry import model_spec

    torch.manual_seed(0)
    small = {k: v for k, v in SMALL.items() if k not in ("coordinate_size", "shape_size")}
    theirs = randomised(LayoutLMForQuestionAnswering(LayoutLMConfig(**(small if quick else {}))))
    settings = {k: v for k, v in OURS.items() if k not in ("coordinate_size", "shape_size")}
    config = replace(layoutlm_base().config, **(settings if quick else {}))
    spec = replace(model_spec("layoutlm_base"), config=config)
    reader = DocumentReader(
        loaded(config, theirs), spec, preprocess={"encoding": {"sep_box": 1000}}
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(ASSETS / "bert_uncased" / "tokenizer.json"), unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", model_max_length=512,
    )  # fmt: skip
    theirs_asks = pipeline("document-question-answering", model=theirs.eval(), tokenizer=tokenizer)
    page = scan(quick).convert("RGB")
    questions = [f"What is written beside number {n}?" for n in range(10)]

    def mine() -> Any:
        return reader.ask(page, questions, cache=False)

    def other() -> Any:
        return [theirs_asks(image=page, question=q) for q in questions]

    times = alternate({"ours": mine, "theirs": other}, 1 if quick else 3, warm=0)
    ratio = median(times["theirs"]) / median(times["ours"])
    note = "OCR included on both sides, once on ours; the pipeline reads the page for each question"
    return Row(
        "ten questions on one scan", 8.0, ratio, shown(times["ours"]), shown(times["theirs"]), note
    )


def answer_times(quick: bool) -> list[str]:
    """What a user waits for on a scan of an A4 sheet: the first answer, and each further one.

    The whole tool is run, from the start of Python to the end, with the bundled model and
    nothing kept from earlier runs.
    """
    count, repeats = (3, 1) if quick else (11, 5)
    tool = Path(__file__).resolve().parents[1] / "tools" / "ask.py"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.png"
        scan(quick).save(path, dpi=(200, 200))
        seconds: dict[int, list[float]] = {1: [], count: []}
        for _ in range(repeats):
            for asked, times in seconds.items():
                questions = [f"What is written beside number {n}?" for n in range(asked)]
                began = time.perf_counter()
                subprocess.run(
                    [sys.executable, str(tool), str(path), *questions, "--no-ocr-cache"],
                    check=True, capture_output=True,
                )  # fmt: skip
                times.append(time.perf_counter() - began)
    first, all_of_them = median(seconds[1]), median(seconds[count])
    further = (all_of_them - first) / (count - 1)
    return [
        f"first answer on a scan of an A4 sheet at 200 dpi, from the command to its end: "
        f"{first:.2f} s ({min(seconds[1]):.2f} .. {max(seconds[1]):.2f}; at most 6 s asked)",
        f"every further question in the same call: {further:.3f} s (at most 0.5 s asked)",
    ]
