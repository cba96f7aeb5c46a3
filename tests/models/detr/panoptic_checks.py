"""What the tests of panoptic models share: weights, a batch and targets with masks."""

import torch
from torch import Tensor, nn

CLASSES = 5
WIDTHS, DEPTHS = (16, 24, 32, 40), (1, 1, 1, 1)


def randomise(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.rand(tensor.shape, generator=draw)
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.copy_(noise + 0.5)
            elif tensor.ndim == 1:
                tensor.copy_(noise * 0.6 - 0.3)
            elif "embed" in name and tensor.ndim == 2:
                tensor.copy_(noise * 2 - 1)
            elif name.startswith(("mask_head", "bbox_attention")):
                tensor.mul_(2).add_(0.05 * noise)  # far from a uniform attention


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(2)
    mask = torch.ones(2, 70, 101, dtype=torch.bool)
    mask[1, 50:] = False
    mask[1, :, 64:] = False
    pixels = torch.randn(2, 3, 70, 101, generator=draw, dtype=torch.float64)
    return (pixels * mask[:, None]).to(dtype), mask


def target(image_id: int, masks: bool = True) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(image_id)
    found = {
        "labels": torch.tensor([0, 3]),
        "boxes": torch.tensor([[0.3, 0.4, 0.3, 0.5], [0.7, 0.6, 0.4, 0.4]]),
        "image_id": torch.tensor([image_id]),
    }
    size = (18, 26) if image_id == 0 else (13, 16)
    if masks:
        found["masks"] = torch.rand(2, *size, generator=draw) > 0.5
    return found
