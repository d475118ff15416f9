"""The plain ViT against a transformer of PyTorch's own, published counts, and bad sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foveate.errors import FoveateError
from foveate.nn.vision_transformer import SelfAttention, VisionTransformer


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_desk_size_has_the_macs_of_the_specification():
    """About 10.8 M multiply-adds forward and 0.2 M weights for a picture of 28 x 28."""
    net = VisionTransformer()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(torch.randn(1, 1, 28, 28))
    assert counter.get_total_flops() / 2 == pytest.approx(10.8e6, rel=0.02)
    assert parameters(net) == pytest.approx(0.2e6, rel=0.05)


def test_size_of_vit_small():
    """ViT-S/16: 22.05 M parameters with its class token (384) and position of it (384)."""
    with torch.device("meta"):
        net = VisionTransformer(224, 16, 3, 1000, width=384, depth=12, heads=6, hidden=1536)
    assert parameters(net) + 2 * 384 == 22_050_664


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 99), batch=st.integers(1, 3), heads=st.sampled_from([1, 2, 4]))
def test_blocks_are_pytorchs_pre_norm_layers(seed, batch, heads):
    torch.manual_seed(seed)
    net = VisionTransformer(8, 4, 2, 3, width=8, depth=2, heads=heads, hidden=12).eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.4)
    x = torch.randn(batch, 2, 8, 8)
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4)  # (B, C, rows, columns, 4, 4)
    tokens = patches.permute(0, 2, 3, 1, 4, 5).reshape(batch, 4, 32)
    y = tokens @ net.patch_embed.weight.reshape(8, 32).T + net.patch_embed.bias + net.positions
    for block in net.blocks:
        layer = nn.TransformerEncoderLayer(
            8, heads, 12, 0.0, "gelu", batch_first=True, norm_first=True
        ).eval()
        layer.self_attn.in_proj_weight.data = block.attn.qkv.weight.data
        layer.self_attn.in_proj_bias.data = block.attn.qkv.bias.data
        layer.self_attn.out_proj.load_state_dict(block.attn.proj.state_dict())
        layer.linear1.load_state_dict(block.mlp.fc1.state_dict())
        layer.linear2.load_state_dict(block.mlp.fc2.state_dict())
        layer.norm1.load_state_dict(block.norm1.state_dict())
        layer.norm2.load_state_dict(block.norm2.state_dict())
        y = layer(y)
    expected = net.head(net.norm(y).mean(1))
    assert torch.allclose(net(x), expected, rtol=1e-4, atol=1e-4)


def test_factories_decide_what_stands_in_a_block():
    made = []

    def attention(width: int, heads: int) -> nn.Module:
        made.append(("attention", width, heads))
        return nn.Identity()

    def mlp(width: int, hidden: int) -> nn.Module:
        made.append(("mlp", width, hidden))
        layer = nn.Linear(width, width)
        nn.init.zeros_(layer.weight)
        return nn.Sequential(layer)

    net = VisionTransformer(8, 4, width=6, depth=2, heads=3, hidden=7, attention=attention, mlp=mlp)
    assert made == [("attention", 6, 3), ("mlp", 6, 7)] * 2
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_every_weight_learns_from_the_first_step():
    torch.manual_seed(0)
    net = VisionTransformer(8, 4, width=8, depth=2, heads=2, hidden=8)
    net(torch.randn(4, 1, 8, 8)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_bad_sizes_and_pictures_are_one_sentence():
    net = VisionTransformer(8, 4, width=8, depth=1, heads=2, hidden=8)
    for call, word in (
        (lambda: VisionTransformer(30, 4), "size=30"),
        (lambda: VisionTransformer(depth=0), "depth=0"),
        (lambda: VisionTransformer(2048, 2), "65536"),
        (lambda: SelfAttention(8, 3), "8 and 3"),
        (lambda: net(torch.zeros(2, 1, 9, 8)), r"\(B, 1, 8, 8\), got \(2, 1, 9, 8\)"),
        (lambda: net(torch.zeros(1, 8, 8)), r"\(1, 8, 8\)"),
    ):
        with pytest.raises(FoveateError, match=word) as error:
            call()
        assert "\n" not in str(error.value)
