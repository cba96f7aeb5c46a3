"""The hybrid encoder against transformers' and its parts against what they are to equal."""

import pytest
import torch
from torch import nn
from transformers import RTDetrV2Config
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import (
    RTDetrV2HybridEncoder,
    build_2d_sinusoidal_position_embedding,
)

from zoo.models.layers.hybrid_encoder import CspRepBlock, HybridEncoder, RepBlock, plain_sines

CPU = torch.device("cpu")


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(6)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.ndim > 0:
            positive = tensor.ndim == 1 and name.endswith(("weight", "var"))
            low, high = (0.5, 1.5) if positive else (-0.3, 0.3)
            tensor.copy_(torch.rand(tensor.shape, generator=draw) * (high - low) + low)


def maps(channels: tuple[int, ...], height: int, width: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    made = []
    for c in channels:
        made.append(torch.randn(2, c, height, width, generator=draw, dtype=torch.float64))
        height, width = -(-height // 2), -(-width // 2)
    return made


@pytest.mark.parametrize("expansion", [0.5, 1.0])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_equals_transformers(expansion, layers):
    config = RTDetrV2Config(
        encoder_hidden_dim=16, encoder_ffn_dim=20, encoder_attention_heads=4,
        encoder_layers=layers, hidden_expansion=expansion, encoder_in_channels=[16, 16, 16],
    )  # fmt: skip
    reference = RTDetrV2HybridEncoder(config).double().eval()
    randomise(reference)
    model = HybridEncoder(
        (16, 16, 16), 16, num_heads=4, ffn_dim=20, num_layers=layers, expansion=expansion
    )
    model = model.double().eval()
    model.input_proj = nn.ModuleList(nn.Identity() for _ in range(3))
    state = {}
    for key, value in reference.state_dict().items():
        key = key.replace("aifi.0.layers.", "layers.").replace(".mlp.fc", ".linear")
        key = key.replace("self_attn_layer_norm", "norm1").replace("final_layer_norm", "norm2")
        state[key] = value
    model.load_state_dict(state)
    features = maps((16, 16, 16), 8, 12)
    with torch.no_grad():
        wanted = reference(inputs_embeds=list(features)).last_hidden_state
        found = model(features)
    for x, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("trains", [False, True])
def test_a_merged_block_is_the_sum_of_its_two(trains):
    block = RepBlock(6).double()
    randomise(block)
    block.train(trains)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        y = block.conv1.norm(block.conv1.conv(x)) + block.conv2.norm(block.conv2.conv(x))
        torch.testing.assert_close(block(x), nn.functional.silu(y), rtol=0, atol=1e-12)
    block.eval()
    separate = block(x)  # with gradients, both convolutions run
    assert separate.requires_grad
    block.fuse()
    merged = block(x)
    torch.testing.assert_close(merged, separate, rtol=0, atol=1e-12)
    weight = block.merged.weight
    block.fuse()
    assert block.merged.weight is weight
    assert not list(block.conv1.parameters() if hasattr(block, "conv1") else [])


def test_a_block_whose_convolutions_are_fused_already():
    block = RepBlock(4).double().eval()
    randomise(block)
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        before = block(x)
        block.conv1.fuse()
        block.conv2.fuse()
        torch.testing.assert_close(block(x), before, rtol=0, atol=1e-12)


def test_fusing_blocks_keep_the_size():
    for expansion in (0.5, 1.0):
        block = CspRepBlock(8, 6, expansion, depth=2)
        assert block(torch.randn(2, 8, 5, 3)).shape == (2, 6, 5, 3)
        assert len(block.bottlenecks) == 2


@pytest.mark.parametrize("size", [(8, 12), (7, 5), (9, 3)])
def test_any_size(size):
    model = HybridEncoder((4, 5, 6), 8, num_heads=2, ffn_dim=8).double().eval()
    features = maps((4, 5, 6), *size)
    found = model(features)
    assert [x.shape[2:] for x in found] == [x.shape[2:] for x in features]


def test_padded_cells_are_ignored_by_attention():
    model = HybridEncoder((4,), 8, num_heads=2, ffn_dim=8).double().eval()
    randomise(model)
    [x] = maps((4,), 4, 6)
    mask = torch.ones(2, 4, 6, dtype=torch.bool)
    mask[1, :, 4:] = False
    noisy = torch.where(mask[:, None], x, 9.0)
    with torch.no_grad():
        [one], [other] = model([x], [mask]), model([noisy], [mask])
        [alone] = model([x[1:, :, :, :4]])
        [free] = model([noisy])
    assert torch.equal(one, other)
    # One level: nothing but attention, which sees the valid cells only.
    torch.testing.assert_close(one[1:, :, :, :4], alone, rtol=0, atol=1e-12)
    assert (free[1:, :, :, :4] - alone).abs().max() > 1e-3


def test_positions_are_transformers():
    found = plain_sines(3, 5, 16, 10000.0, CPU, torch.float64)
    wanted = build_2d_sinusoidal_position_embedding(3, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
    assert plain_sines(3, 5, 16, 10000.0, CPU, torch.float64) is found
    assert not plain_sines(5, 3, 16, 10000.0, CPU, torch.float64).equal(found)
    with pytest.raises(ValueError, match="multiple of 4"):
        plain_sines(3, 5, 18, 10000.0, CPU, torch.float64)


def test_tokens_pass_the_prompt_slot():
    class Doubled(nn.Module):
        def forward(self, x, pos, mask):
            assert mask is None
            return torch.cat([x, x], 1), torch.cat([pos, pos], 1), mask

        def strip(self, x):
            return x[:, : x.shape[1] // 2]

    model = HybridEncoder((4, 4), 8, num_heads=2, ffn_dim=8).double().eval()
    features = maps((4, 4), 4, 6)
    with torch.no_grad():
        plain = model(features)
        model.prompt = Doubled()
        again = model(features)
    # Twice the same keys: the softmax's result is the same.
    for x, other in zip(plain, again, strict=True):
        torch.testing.assert_close(x, other, rtol=0, atol=1e-12)
