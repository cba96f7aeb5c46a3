"""The layers against torch's and transformers' own, and their initialisation."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.models.layers import transformer
from zoo.models.layers.transformer import (
    MLP,
    Attention,
    DecoderLayer,
    EncoderLayer,
    PackedRows,
    PromptSlot,
    activation,
    attend,
    init_xavier,
)

DIM, HEADS = 24, 3
EXACT = {"rtol": 0.0, "atol": 1e-12}


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.5, 0.5)
    return module.double().eval()


def valid(batch: int, length: int) -> Tensor:
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[0, length // 2 :] = False
    return mask


def copy_attention(own: Attention, theirs: nn.MultiheadAttention) -> None:
    parts = zip(("q", "k", "v"), theirs.in_proj_weight.chunk(3), strict=True)
    with torch.no_grad():
        for (name, weight), bias in zip(parts, theirs.in_proj_bias.chunk(3), strict=True):
            linear = own.get_submodule(f"{name}_proj")
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
    own.o_proj.load_state_dict(theirs.out_proj.state_dict())


def test_attention_equals_torchs() -> None:
    theirs = randomised(nn.MultiheadAttention(DIM, HEADS, batch_first=True))
    own = Attention(DIM, HEADS).double()
    copy_attention(own, theirs)
    query, key, value = draw(2, 5, DIM), draw(2, 7, DIM), draw(2, 7, DIM)
    mask = valid(2, 7)
    expected, weights = theirs(
        query, key, value, key_padding_mask=~mask, average_attn_weights=False
    )
    torch.testing.assert_close(own(query, key, value, mask[:, None, None]), expected, **EXACT)
    torch.testing.assert_close(own.weights(query, key, mask[:, None, None]), weights, **EXACT)


def test_attend_splits_heads_of_any_width_and_takes_a_bias() -> None:
    q, k, v, bias = draw(2, 4, 6), draw(2, 5, 6), draw(2, 5, 9), draw(1, 3, 4, 5)
    out = attend(q, k, v, num_heads=3, mask=bias)
    for head in range(3):
        qh, kh, vh = q[..., 2 * head :][..., :2], k[..., 2 * head :][..., :2], v[..., 3 * head :]
        scores = qh @ kh.mT / math.sqrt(2) + bias[:, head]
        expected = scores.softmax(-1) @ vh[..., :3]
        torch.testing.assert_close(out[..., 3 * head :][..., :3], expected, **EXACT)


def test_weights_take_a_bias_like_attend() -> None:
    own = randomised(Attention(DIM, HEADS))
    query, bias = draw(2, 5, DIM), draw(2, 1, 5, 5)
    weights = own.weights(query, query, bias)
    value = own.v_proj(query).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    mixed = own.o_proj((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(own(query, query, query, bias), mixed, **EXACT)


def test_attention_drops_weights_in_training_only() -> None:
    own = randomised(Attention(DIM, HEADS, dropout=0.5))
    x = draw(1, 6, DIM)
    assert torch.equal(own(x, x, x), own(x, x, x))
    own.train()
    assert not torch.equal(own(x, x, x), own(x, x, x))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_encoder_layer_equals_torchs(norm_first: bool, name: str) -> None:
    theirs = randomised(
        nn.TransformerEncoderLayer(
            DIM, HEADS, 40, activation=name, batch_first=True, norm_first=norm_first
        )
    )
    own = EncoderLayer(DIM, HEADS, 40, activation=name, norm_first=norm_first).double().eval()
    copy_attention(own.self_attn, theirs.self_attn)
    for part in ("linear1", "linear2", "norm1", "norm2"):
        own.get_submodule(part).load_state_dict(theirs.get_submodule(part).state_dict())
    x, mask = draw(2, 6, DIM), valid(2, 6)
    with torch.enable_grad():  # torch's fast path would zero what is masked
        expected = theirs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(own(x, None, mask[:, None, None]), expected, **EXACT)


@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_layer_equals_torchs(norm_first: bool) -> None:
    theirs = randomised(
        nn.TransformerDecoderLayer(DIM, HEADS, 40, batch_first=True, norm_first=norm_first)
    )
    own = DecoderLayer(DIM, HEADS, 40, norm_first=norm_first).double().eval()
    copy_attention(own.self_attn, theirs.self_attn)
    copy_attention(own.cross_attn, theirs.multihead_attn)
    for part in ("linear1", "linear2", "norm1", "norm2", "norm3"):
        own.get_submodule(part).load_state_dict(theirs.get_submodule(part).state_dict())
    x, memory, mask = draw(2, 4, DIM), draw(2, 6, DIM), valid(2, 6)
    looks = torch.ones(4, 4, dtype=torch.bool).tril()
    expected = theirs(x, memory, tgt_mask=~looks, memory_key_padding_mask=~mask)
    mine = own(x, memory, memory_mask=mask[:, None, None], self_mask=looks)
    torch.testing.assert_close(mine, expected, **EXACT)


def test_positions_go_to_queries_and_keys_but_not_to_values() -> None:
    own = randomised(DecoderLayer(DIM, HEADS, 40))
    x, memory = draw(2, 4, DIM), draw(2, 6, DIM)
    place, spot = draw(2, 4, DIM), draw(2, 6, DIM)
    y = own.norm1(x + own.self_attn(x + place, x + place, x))
    y = own.norm2(y + own.cross_attn(y + place, memory + spot, memory))
    y = own.norm3(y + own.linear2(own.linear1(y).relu()))
    mine = own(x, memory, query_pos=place, memory_pos=spot)
    torch.testing.assert_close(mine, y, **EXACT)
    with_keys = own(x, memory, query_pos=place, keys=memory + spot)
    torch.testing.assert_close(with_keys, y, **EXACT)

    encoder = randomised(EncoderLayer(DIM, HEADS, 40))
    y = encoder.norm1(memory + encoder.self_attn(memory + spot, memory + spot, memory))
    y = encoder.norm2(y + encoder.linear2(encoder.linear1(y).relu()))
    torch.testing.assert_close(encoder(memory, spot), y, **EXACT)


def test_encoder_layer_is_berts() -> None:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    sizes = {"hidden_size": DIM, "num_attention_heads": HEADS, "intermediate_size": 40}
    config = BertConfig(**sizes, attn_implementation="eager")
    theirs = randomised(BertLayer(config))
    own = EncoderLayer(DIM, HEADS, 40, activation="gelu", eps=config.layer_norm_eps)
    names = {
        "self_attn.q_proj": "attention.self.query",
        "self_attn.k_proj": "attention.self.key",
        "self_attn.v_proj": "attention.self.value",
        "self_attn.o_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    own = own.double().eval()
    for mine, other in names.items():
        own.get_submodule(mine).load_state_dict(theirs.get_submodule(other).state_dict())
    x, mask = draw(2, 6, DIM), valid(2, 6)
    bias = torch.zeros(2, 1, 1, 6, dtype=torch.float64).masked_fill(~mask[:, None, None], -1e9)
    expected = theirs(x, attention_mask=bias)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(own(x, None, mask[:, None, None]), expected, **EXACT)


def test_mlp_has_relu_between_layers_only() -> None:
    mlp = randomised(MLP(4, 8, 3, 3))
    x = draw(5, 4)
    first, second, third = mlp.layers
    expected = third(second(first(x).relu()).relu())
    torch.testing.assert_close(mlp(x), expected, **EXACT)
    assert (expected < 0).any()


def test_activations() -> None:
    x = draw(100)
    for name, function in {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}.items():
        expected = function(x)
        torch.testing.assert_close(activation(name)(x.clone()), expected, **EXACT)
    assert [p.numel() for p in activation("prelu").parameters()] == [1]
    with pytest.raises(ValueError, match="no activation 'swish'"):
        activation("swish")
    with pytest.raises(ValueError, match="25 can't be split into 3 heads"):
        Attention(25, 3)


def test_xavier_bounds_are_those_of_a_fused_projection() -> None:
    """The release's layer, initialised its way, has the same largest weights as ours."""
    theirs = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    for parameter in theirs.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    own = EncoderLayer(128, 4, 512)
    init_xavier(own)
    fused = math.sqrt(6 / (4 * 128))
    for name in ("q_proj", "k_proj", "v_proj"):
        linear = own.self_attn.get_submodule(name)
        assert 0.99 < linear.weight.abs().max() / fused < 1.00001
        assert not linear.bias.any()
    pairs = [
        (own.self_attn.q_proj.weight, theirs.self_attn.in_proj_weight),
        (own.self_attn.o_proj.weight, theirs.self_attn.out_proj.weight),
        (own.linear1.weight, theirs.linear1.weight),
        (own.linear2.weight, theirs.linear2.weight),
    ]
    for mine, other in pairs:
        torch.testing.assert_close(mine.abs().max(), other.abs().max(), rtol=0.01, atol=0)
        torch.testing.assert_close(mine.std(), other.std(), rtol=0.03, atol=0)
    assert not own.self_attn.o_proj.bias.any()
    assert own.linear1.bias.any()


def test_a_prompt_slot_changes_nothing_by_itself() -> None:
    slot = PromptSlot()
    x, pos, mask = draw(1, 2, 3), draw(1, 2, 3), valid(1, 2)
    out = slot(x, pos, mask)
    assert out[0] is x
    assert out[1] is pos
    assert out[2] is mask
    assert slot.strip(x) is x
    assert not list(slot.parameters())


@pytest.mark.parametrize("kind", ["none", "boolean", "bias"])
def test_bfloat16_training_attends_like_float32(kind: str, monkeypatch) -> None:
    """On CPUs it goes another way than the fused kernel; values and gradients stay the same."""
    monkeypatch.setattr(transformer, "SMALL_SCORES", 0)  # without gradients: the fused kernel
    looks = torch.rand(2, 1, 5, 7) > 0.3
    looks[..., 0] = True
    mask = {"none": None, "boolean": looks, "bias": torch.randn(1, 3, 5, 7)}[kind]
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        q, k, v = (torch.randn(2, n, 24).to(dtype).requires_grad_() for n in (5, 7, 7))
        out = attend(q, k, v, num_heads=3, mask=mask)
        assert out.dtype == dtype
        with torch.no_grad():
            fused = attend(q, k, v, num_heads=3, mask=mask)
        torch.testing.assert_close(out, fused, rtol=0, atol=1e-6 if dtype.itemsize == 4 else 0.03)
        out.float().square().sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    for exact, rough in zip(*results, strict=True):
        assert (exact - rough.float()).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("kind", ["none", "boolean", "bias"])
def test_images_one_by_one_attend_like_all_at_once(kind: str, monkeypatch) -> None:
    """Where there are too many scores for the caches, in bfloat16."""
    looks = torch.rand(3, 1, 5, 7) > 0.3
    looks[..., 0] = True
    bias = torch.randn(1, 2, 5, 7, requires_grad=True)
    mask = {"none": None, "boolean": looks, "bias": bias}[kind]
    q, k, v = (torch.randn(3, n, 24).bfloat16().requires_grad_() for n in (5, 7, 7))
    results = []
    for scores in (2**24, 2 * 5 * 7):  # all three images, or one
        monkeypatch.setattr(transformer, "SMALL_SCORES", scores)
        out = attend(q, k, v, num_heads=2, mask=mask)
        inputs = [q, k, v, bias] if kind == "bias" else [q, k, v]
        results.append([out, *torch.autograd.grad(out.float().square().sum(), inputs)])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(whole, parts, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("has_bias", [False, True])
def test_packed_rows_attend_to_themselves_only(has_bias: bool) -> None:
    lengths = [4, 1, 6]
    q, k, v = (draw(1, sum(lengths), DIM).requires_grad_() for _ in range(3))
    biases = [draw(1, HEADS, n, n).requires_grad_() if has_bias else None for n in lengths]
    out = attend(q, k, v, num_heads=HEADS, mask=PackedRows(lengths, biases))
    rows = [
        attend(*row, num_heads=HEADS, mask=bias)
        for *row, bias in zip(*(t.split(lengths, 1) for t in (q, k, v)), biases, strict=True)
    ]
    torch.testing.assert_close(out, torch.cat(rows, 1), **EXACT)
    wanted = [q, k, v, *(bias for bias in biases if bias is not None)]
    own, others = (torch.autograd.grad(o.square().sum(), wanted) for o in (out, torch.cat(rows, 1)))
    torch.testing.assert_close(own, others, **EXACT)
