"""Layers in parts against PyTorch's own, and surgery on networks that other people wrote."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.errors import FoveateError
from foveate.learning.modular import (
    GroupedConv2d,
    GroupedMLP,
    MATExpert,
    MATMultiheadAttention,
    MATSelfAttention,
    ModulePartition,
    ModuleSpec,
)


def close(a: torch.Tensor, b: torch.Tensor, tol: float = 1e-5) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=tol, atol=tol)


def set_active(layer: nn.Module, active: set[int], mode: str) -> None:
    layer.mode = mode
    for index, unit in enumerate(layer.units()):
        unit.active = index in active
        unit.requires_grad_(unit.active)


# --- equal to PyTorch's own ----------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 999),
    heads=st.sampled_from([1, 2, 4]),
    batch=st.integers(1, 3),
    t=st.integers(1, 5),
    s=st.integers(1, 5),
    crossed=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    weights=st.booleans(),
    mask=st.sampled_from([None, "bool", "float", "per head"]),
    padded=st.booleans(),
)
def test_attention_is_pytorchs(
    seed, heads, batch, t, s, crossed, batch_first, bias, weights, mask, padded
):
    torch.manual_seed(seed)
    sizes = {"kdim": 6, "vdim": 10} if crossed else {}
    plain = nn.MultiheadAttention(8, heads, bias=bias, batch_first=batch_first, **sizes)
    for p in plain.parameters():
        nn.init.normal_(p, std=0.5)  # its biases start at zero
    ours = MATMultiheadAttention.from_plain(plain)
    shape = (batch, t) if batch_first else (t, batch)
    query = torch.randn(*shape, 8)
    key = value = query
    if crossed:
        shape = (batch, s) if batch_first else (s, batch)
        key, value = torch.randn(*shape, 6), torch.randn(*shape, 10)
    else:
        s = t
    settings_of = {"need_weights": weights, "average_attn_weights": bool(seed % 2)}
    if mask == "per head":
        settings_of["attn_mask"] = torch.randn(batch * heads, t, s)
    elif mask is not None:
        allowed = torch.rand(t, s) < 0.7
        allowed[:, 0] = True
        settings_of["attn_mask"] = ~allowed if mask == "bool" else torch.randn(t, s)
    if padded:
        padding = torch.rand(batch, s) < 0.3
        padding[:, 0] = False
        if mask in ("float", "per head"):
            padding = torch.zeros(batch, s).masked_fill(padding, -math.inf)
        settings_of["key_padding_mask"] = padding
    expected = plain(query, key, value, **settings_of)
    for active in (set(range(heads)), {0}):
        set_active(ours, active, "cut")
        found = ours(query, key, value, **settings_of)
        assert close(found[0], expected[0])
        assert (found[1] is None) == (expected[1] is None)
        assert found[1] is None or close(found[1], expected[1])


def test_single_sequences_and_the_causal_hint():
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    ours, x = MATMultiheadAttention.from_plain(plain), torch.randn(5, 8)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    for found, expected in zip(
        ours(x, x, x, attn_mask=causal, is_causal=True),
        plain(x, x, x, attn_mask=causal),
        strict=True,
    ):
        assert close(found, expected)
    with pytest.raises(FoveateError, match="attn_mask"):
        ours(x, x, x, is_causal=True)
    fresh = MATMultiheadAttention(8, 2)
    assert fresh(x, x, x, need_weights=False)[0].shape == (5, 8)


def test_self_attention_of_separate_maps_is_the_formula():
    """softmax(q k^T / sqrt(d_h)) v head by head, written out."""
    torch.manual_seed(0)
    query, key, value = (nn.Linear(6, 8) for _ in range(3))
    out = nn.Linear(8, 6)
    ours = MATSelfAttention.from_linears(query, key, value, out, 2)
    x, mask = torch.randn(3, 5, 6), torch.rand(5, 5) < 0.6
    mask[:, 0] = True
    for seen in (None, mask, mask[None, None]):
        joined = []
        for h in (slice(0, 4), slice(4, 8)):
            scores = query(x)[..., h] @ key(x)[..., h].transpose(1, 2) / 2
            if seen is not None:
                scores = scores.masked_fill(~mask, -math.inf)
            joined.append(scores.softmax(-1) @ value(x)[..., h])
        assert close(ours(x, seen), out(torch.cat(joined, -1)))
    dense = ours.to_plain()
    assert torch.equal(dense["query"], query.weight)
    assert torch.equal(dense["out"], out.weight)
    assert torch.equal(dense["value_bias"], value.bias)


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 999),
    groups=st.sampled_from([1, 2, 4]),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, (0, 2), "same"]),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    active=st.sets(st.integers(0, 3)),
)
def test_convolution_is_pytorchs_whatever_is_active(
    seed, groups, stride, padding, dilation, bias, active
):
    """Checklist 6: channels are back at their places, forward has all of them."""
    torch.manual_seed(seed)
    stride = 1 if padding == "same" else stride
    plain = nn.Conv2d(3, 8, 3, stride, padding, dilation, bias=bias)
    ours = GroupedConv2d.from_plain(plain, groups)
    x = torch.randn(2, 3, 9, 8)
    set_active(ours, active, "cut")
    assert close(ours(x), plain(x))
    assert torch.equal(ours.to_plain()["weight"], plain.weight)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 999), groups=st.sampled_from([1, 2, 3, 6]), bias=st.booleans())
def test_mlp_is_the_sum_of_its_groups(seed, groups, bias):
    torch.manual_seed(seed)
    first, second = nn.Linear(4, 6, bias), nn.Linear(6, 5, bias)
    ours = GroupedMLP.from_plain(first, second, groups, activation=torch.tanh, out=5)
    x = torch.randn(2, 3, 4)
    for active in (set(range(groups)), {0}, set()):
        set_active(ours, active, "exact")
        assert close(ours(x), second(torch.tanh(first(x))))


# --- what gets a gradient ------------------------------------------------------------------


def some_layers() -> list[tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    return [
        (MATSelfAttention.from_linears(*(nn.Linear(8, 8) for _ in range(4)), 4),
         torch.randn(2, 3, 8)),
        (GroupedMLP(8, 12, 4), torch.randn(2, 3, 8)),
        (GroupedConv2d(3, 8, 3, 4, padding=1), torch.randn(2, 3, 5, 5)),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("mode", ["cut", "exact"])
def test_gradients_of_partial_back_propagation(number, mode):
    """Checklist 11 and the meaning of both modes, against full back-propagation.

    The units of a layer are computed apart with all others at zero, so that the gradient which
    each sends to the input is known by itself.
    """
    layer, x = some_layers()[number]
    x.requires_grad_()
    weight = torch.randn_like(layer(x))
    layer.zero_grad()
    (layer(x) * weight).sum().backward()
    full = {name: p.grad.clone() for name, p in layer.named_parameters()}
    full_x, x.grad = x.grad.clone(), None

    active = {1, 3}
    of_active = torch.zeros_like(x)
    for index in active:
        alone = copy.deepcopy(layer)
        for other, unit in enumerate(alone.units()):
            if other != index:
                for p in unit.parameters():
                    nn.init.zeros_(p)
        (alone(x) * weight).sum().backward()
        of_active += x.grad
        x.grad = None

    set_active(layer, active, mode)
    layer.zero_grad(set_to_none=True)
    (layer(x) * weight).sum().backward()
    frozen = {f".{index}." for index in range(4) if index not in active}
    for name, p in layer.named_parameters():
        if any(part in f".{name}" for part in frozen):
            assert p.grad is None, name
        else:
            assert close(p.grad, full[name], 1e-6), name
    assert close(x.grad, full_x if mode == "exact" else of_active, 1e-5)
    assert (mode == "cut") == (not close(x.grad, full_x, 1e-3))
    assert not x.requires_grad or layer.eval()(x).requires_grad


def test_a_frozen_layer_without_a_skip_still_lets_gradients_through():
    """A plain stack would stop learning below: such a layer turns exact by itself."""
    torch.manual_seed(0)
    for layer, shape in ((GroupedConv2d(3, 8, 3, 4), (2, 3, 5, 5)),
                         (MATExpert(nn.Linear(4, 4), residual=False), (2, 4)),
                         (GroupedMLP(4, 8, 2, residual=False), (2, 4))):  # fmt: skip
        x = torch.randn(*shape, requires_grad=True)
        (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
        set_active(layer, set(), "cut")
        assert close(torch.autograd.grad(layer(x).square().sum(), x)[0], expected)
        layer.residual = True
        y = layer(x)
        assert not y.requires_grad or torch.autograd.grad(y.sum(), x, allow_unused=True)[0] is None


def test_no_mask_after_the_fact_frozen_units_are_not_in_the_graph():
    """Checklist 5: nothing of a frozen unit is kept for the backward pass."""
    for layer, x in some_layers():
        kept: dict[bool, int] = {}
        for everything in (True, False):
            set_active(layer, set(range(4)) if everything else {0}, "cut")
            sizes: list[int] = []

            def pack(t: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
                sizes.append(t.numel())
                return t

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                layer(x.clone().requires_grad_())
            kept[everything] = sum(sizes)
        assert kept[False] < 0.7 * kept[True], type(layer)


# --- surgery -------------------------------------------------------------------------------


class TimmAttention(nn.Module):
    """As timm writes it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = self.k_norm = nn.Identity()
        self.attn_drop = nn.Dropout(0.2)
        self.proj, self.proj_drop = nn.Linear(dim, dim), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        x = self.attn_drop((q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(B, N, C)))


class TimmMlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.drop1 = nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.1)
        self.norm, self.fc2, self.drop2 = nn.Identity(), nn.Linear(hidden, dim), nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))


class TimmBlock(nn.Module):
    def __init__(self, dim: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), TimmAttention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), TimmMlp(dim, 4 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionBlock(nn.Module):
    """As torchvision writes it: PyTorch's attention, an MLP that is a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(8, 2, 0.1, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 8), nn.Dropout(0.1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.self_attention(x, x, x, need_weights=False)
        return x + y + self.mlp(x + y)


def torch_encoder(norm_first: bool, batch_first: bool, activation="gelu") -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, activation=activation, batch_first=batch_first, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first and batch_first)


STRANGERS = {
    "timm": (lambda: nn.Sequential(TimmBlock(), TimmBlock()), 12),
    "torchvision": (lambda: nn.Sequential(VisionBlock(), VisionBlock()), 12),
    "torch, post-norm": (lambda: torch_encoder(False, True), 12),
    "torch, pre-norm": (lambda: torch_encoder(True, True, F.silu), 12),
    "torch, time first": (lambda: torch_encoder(False, False, nn.ReLU()), 12),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_a_strangers_vit_is_swapped_in_place_with_equal_outputs(who):
    """The layers of somebody else's model become units; outputs agree to 1e-5."""
    make, units = STRANGERS[who]
    torch.manual_seed(0)
    net = make().eval()
    x = torch.randn(3, 5, 8)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    expected, names = net(x), {n: p.shape for n, p in net.named_parameters()}
    state = copy.deepcopy(net.state_dict())
    partition = ModulePartition.from_model(net, ModuleSpec())
    assert len(partition) == units
    assert not partition.skipped
    assert not net.training
    assert close(net(x), expected)
    assert sum(p.numel() for p in net.parameters()) == sum(map(math.prod, names.values()))

    net.train()  # dropout now: the same rates as before
    partition.apply(list(partition)[::3])
    net(x).square().sum().backward()
    for name, params in partition.items():
        for p in params:
            assert (net.get_parameter(p).grad is None) == (name not in list(partition)[::3]), p
    net.eval()
    assert close(net(x), expected)

    partition.restore()
    assert {n: p.shape for n, p in net.named_parameters()} == names
    assert all(torch.equal(v, state[n]) for n, v in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())
    assert close(net(x), expected)
    again = ModulePartition.from_model(net, ModuleSpec(heads=False))
    assert len(again) == 8


def test_dropout_is_taken_along():
    torch.manual_seed(0)
    net = nn.Sequential(TimmBlock())
    ModulePartition.from_model(net, ModuleSpec())
    assert (net[0].attn.dropout, net[0].attn.output_dropout) == (0.2, 0.1)
    assert (net[0].mlp.dropout, net[0].mlp.output_dropout) == (0.1, 0.3)
    layer = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.4, batch_first=True))
    ModulePartition.from_model(layer, ModuleSpec())
    assert (layer[0].self_attn.dropout, layer[0].linear1.dropout) == (0.4, 0.4)
    x = torch.ones(200, 4, 8)
    for part in (net[0].attn, net[0].mlp):
        y = part.train()(x)
        assert 0.02 < float((y == 0).float().mean()) < 0.5, "zeros of the output's dropout"
        assert not torch.equal(part(x), part(x))


def test_padding_masks_and_decoders():
    torch.manual_seed(0)
    net = torch_encoder(False, True).eval()
    x, padding = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = padding[2, 4:] = True
    expected = net(x, src_key_padding_mask=padding)
    partition = ModulePartition.from_model(net, ModuleSpec())
    found = net(x, src_key_padding_mask=padding)
    assert close(found[~padding], expected[~padding])
    partition.restore()
    assert close(net(x, src_key_padding_mask=padding), expected)

    decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True).eval()
    memory = torch.randn(3, 4, 8)
    expected = decoder(x, memory)
    partition = ModulePartition.from_model(decoder, ModuleSpec())
    assert [name for name in partition if "multihead" in name] == [
        "multihead_attn.heads.0", "multihead_attn.heads.1",
    ]  # fmt: skip
    assert close(decoder(x, memory), expected)


class Windowed(TimmAttention):
    """Looks like timm's, adds a learned bias to the scores."""

    def __init__(self) -> None:
        super().__init__(8, 2)
        self.table = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != 5:
            raise ValueError("a window has five tokens")
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * self.scale + self.table
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, N, C))


class Normed(TimmMlp):
    """Normalises its hidden units: they do not stand by themselves."""

    def __init__(self) -> None:
        super().__init__(8, 16)
        self.norm = nn.LayerNorm(16)


def test_what_only_looks_right_is_left_alone_and_named():
    torch.manual_seed(0)
    net = nn.ModuleDict({
        "window": Windowed(),
        "normed": Normed(),
        "classifier": nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)),
        "odd": TimmMlp(8, 10),
        "biased": nn.MultiheadAttention(8, 2, add_bias_kv=True),
        "depthwise": nn.Conv2d(8, 8, 3, groups=8),
        "circular": nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
        "good": nn.Conv2d(8, 8, 3),
        "kept": nn.Conv2d(8, 8, 3),
    })  # fmt: skip
    before = {name: type(module) for name, module in net.items()}
    partition = ModulePartition.from_model(net, ModuleSpec(filter_groups=4, exclude=("kep?",)))
    assert set(partition.skipped) == set(net) - {"good", "kept"}
    assert [name for name, module in net.items() if type(module) is not before[name]] == ["good"]
    assert list(partition) == [f"good.filters.{i}" for i in range(4)]
    assert net["window"](torch.randn(1, 5, 8)).shape == (1, 5, 8)
    assert net["normed"].training


def test_one_module_at_two_places_stays_one():
    torch.manual_seed(0)
    block = TimmMlp(8, 16)
    net = nn.Sequential(block, nn.LayerNorm(8), block).eval()
    x = torch.randn(2, 5, 8)
    expected = net(x)
    partition = ModulePartition.from_model(net, ModuleSpec())
    assert net[0] is net[2]
    assert len(partition) == 4
    assert close(net(x), expected)
    partition.restore()
    assert net[0] is block
    assert net[2] is block
    assert close(net(x), expected)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "kind", ["layer", "weight", "embedding", "attention", "norm", "expert", "pytorch"]
)
def test_shared_and_computed_weights_are_left_alone_and_named(kind):
    """A swap copies: what was one weight would be two that part in training."""
    torch.manual_seed(0)
    net = nn.ModuleDict({
        "a": nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
        "b": nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
        "words": nn.Embedding(16, 8),
        "first": nn.MultiheadAttention(8, 2),
        "second": nn.MultiheadAttention(8, 2),
        "layer": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        "experts": nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]),
    })  # fmt: skip
    net["b"][1] = net["a"][1]  # an activation without weights may be shared
    left = {"layer": {"a", "b"}, "weight": {"a", "b"}, "embedding": {"a"}, "norm": {"a"},
            "expert": {"a", "experts.1"}, "attention": {"first", "second"},
            "pytorch": {"a", "layer.linear1"}}[kind]  # fmt: skip
    if kind == "layer":
        net["b"][0] = net["a"][0]
    elif kind == "weight":
        net["b"][2].weight = net["a"][2].weight
    elif kind == "embedding":
        net["a"][0].weight = net["words"].weight
    elif kind == "attention":
        net["second"].in_proj_weight = net["first"].in_proj_weight
    elif kind == "expert":
        net["experts"][1].weight = nn.Parameter(torch.zeros(16, 8))
        net["a"][0].weight = net["experts"][1].weight
    elif kind == "norm":
        nn.utils.weight_norm(net["a"][0])
    else:
        net["layer"].linear2.weight = net["a"][2].weight
    count = sum(p.numel() for p in net.parameters())
    partition = ModulePartition.from_model(net, ModuleSpec())
    assert set(partition.skipped) == left
    assert all("weights" in why for why in partition.skipped.values())
    assert sum(p.numel() for p in net.parameters()) == count
    assert not any(
        name == path or name.startswith(f"{path}.") for name in partition for path in left
    )


class Moe(nn.Module):
    """Top-1 mixture beside a skip, as in a Switch Transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.experts = nn.ModuleList(TimmMlp(8, 16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, chosen = self.router(x).softmax(-1).max(-1)
        y = x
        for number, expert in enumerate(self.experts):
            at = (chosen == number).nonzero()[:, 0]
            y = y.index_add(0, at, gate[at, None] * expert(x[at]))
        return y


def test_experts_are_units():
    """Checklist 3: an expert is a module; frozen ones let the router learn."""
    torch.manual_seed(0)
    net = Moe().eval()
    x = torch.randn(30, 8)
    expected = net(x)
    partition = ModulePartition.from_model(net, ModuleSpec())
    assert list(partition) == [f"experts.{i}" for i in range(3)]
    assert all(len(params) == 4 for params in partition.values())
    partition.apply(["experts.1"])
    net.train()
    net(x).square().sum().backward()
    assert net.router.weight.grad.abs().sum() > 0
    grads = [e.module.fc1.weight.grad is not None for e in net.experts]
    assert grads == [False, True, False]
    net.eval()
    assert close(net(x), expected)
    partition.restore()
    assert isinstance(net.experts[0], TimmMlp)
    assert close(net(x), expected)


def test_what_the_user_froze_stays_frozen():
    torch.manual_seed(0)
    net = nn.Sequential(TimmBlock(), TimmBlock())
    net[0].attn.requires_grad_(False)
    partition = ModulePartition.from_model(net, ModuleSpec())
    assert not any(name.startswith("0.attn") for name in partition)
    assert len(partition) == 4 + 6
    partition.apply(set(partition))
    partition.restore()
    assert not any(p.requires_grad for p in net[0].attn.parameters())
    assert all(p.requires_grad for p in net[1].parameters())


def test_precision_of_the_model_is_kept():
    net = nn.Sequential(TimmBlock()).double()
    partition = ModulePartition.from_model(net, ModuleSpec())
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    partition.restore()
    assert {p.dtype for p in net.parameters()} == {torch.float64}


def test_bad_sizes_are_one_sentence():
    for call, word in (
        (lambda: MATMultiheadAttention(8, 3), "8 and 3"),
        (lambda: GroupedMLP(8, 10, 4), "10 and 4"),
        (lambda: GroupedConv2d(3, 10, 3, 4), "10 and 4"),
        (lambda: MATSelfAttention({}, 2), "query"),
        (lambda: GroupedConv2d.from_plain(nn.Conv2d(4, 4, 3, groups=2)), "groups=2"),
        (lambda: ModuleSpec(ffn_groups=-1), "-1"),
        (lambda: ModuleSpec(exclude="stem"), "'stem'"),
    ):
        with pytest.raises(FoveateError, match=word) as error:
            call()
        assert "\n" not in str(error.value)
