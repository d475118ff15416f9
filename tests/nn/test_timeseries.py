"""Networks of time series against loops over time, plain convolutions and sums written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.errors import FoveateError
from foveate.nn.timeseries import (
    DESK_NETS,
    PAPER_NETS,
    LSTMClassifier,
    MultiBranchTCN,
    RNNClassifier,
    SeriesTransformer,
    series_net,
    series_pool,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# --- sizes ---------------------------------------------------------------------------------


def tcn_count(f: int, channels: int, kernels: tuple[int, ...]) -> int:
    """Weights and biases, BN scale and shift, PReLU slopes; 1x1 shortcut of either block."""
    width, total = channels * len(kernels), 0
    for into in (f, width):
        for source in (into, width):
            total += sum(source * channels * k + channels + 3 * channels for k in kernels)
        total += into * width + width + width
    return total + width + 1


def transformer_count(f: int, depth: int, inner: int, ff: int, hidden: int, token: bool) -> int:
    attention = 2 * f + 3 * f * inner + inner * f + f
    forward = 2 * f + f * ff + ff + ff * f + f
    return depth * (attention + forward) + token * f + 2 * f + f * hidden + hidden + hidden + 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TCN-a", tcn_count(44, 64, (3, 5, 7))),
        ("TCN-b", tcn_count(44, 64, (3,))),
        ("TCN-c", tcn_count(44, 128, (3, 5))),
        ("TCN-desk", tcn_count(44, 16, (3, 5, 7))),
        ("LSTM-a", 4 * 256 * (44 + 256 + 2) + 257),
        ("LSTM-b", 4 * 128 * (44 + 128 + 2) + 129),
        ("LSTM-desk", 4 * 64 * (44 + 64 + 2) + 65),
        ("RNN-a", 256 * (44 + 256 + 2) + 257),
        ("RNN-b", 128 * (44 + 128 + 2) + 129),
        ("RNN-desk", 64 * (44 + 64 + 2) + 65),
        ("ViT-a", transformer_count(44, 4, 16 * 64, 16, 128, True)),
        ("ViT-b", transformer_count(44, 4, 4 * 256, 16, 128, True)),
        ("ViT-desk", transformer_count(44, 2, 4 * 16, 32, 128, True)),
        ("TRSF-a", transformer_count(44, 2, 16 * 64, 16, 64, False)),
        ("TRSF-b", transformer_count(44, 2, 4 * 256, 16, 128, False)),
    ],
)
def test_the_architecture_table_by_number_of_parameters(name, expected):
    with torch.device("meta"):
        assert parameters(series_net(name, 44)) == expected
        assert name in PAPER_NETS + DESK_NETS
    assert len(PAPER_NETS) == 11


@settings(deadline=None, max_examples=20)
@given(
    name=st.sampled_from(DESK_NETS),
    batch=st.integers(1, 3),
    steps=st.integers(2, 9),
    features=st.integers(1, 7),  # not a multiple of the four heads either
    classes=st.integers(1, 3),
)
def test_any_series_becomes_logits(name, batch, steps, features, classes):
    net = series_net(name, features, classes).eval()
    x = torch.randn(batch, steps, features, requires_grad=True)
    z = net(x)
    assert z.shape == (batch, classes)
    torch.testing.assert_close(net.head(net.embed(x)), z)
    z.sum().backward()
    assert x.grad.isfinite().all()
    torch.testing.assert_close(net(x[:1]), z[:1], rtol=1e-4, atol=1e-5)  # rows on their own


# --- convolution ---------------------------------------------------------------------------


def conv_by_hand(x: torch.Tensor, conv: nn.Conv1d, dilation: int) -> torch.Tensor:
    """``(B, C, T)`` with (k-1)d zeros at either end, tap by tap."""
    k = conv.kernel_size[0]
    pad = (k - 1) * dilation
    padded = torch.cat([x.new_zeros(*x.shape[:2], pad), x, x.new_zeros(*x.shape[:2], pad)], 2)
    length = x.shape[2] + pad
    taps = [
        torch.einsum(
            "oc,bct->bot", conv.weight[:, :, j], padded[:, :, j * dilation :][..., :length]
        )
        for j in range(k)
    ]
    return sum(taps) + conv.bias[:, None]


@pytest.mark.parametrize("training", [True, False])
def test_tcn_by_hand_and_its_statistics_see_the_uncropped_length(training):
    net = MultiBranchTCN(3, channels=4, kernels=(3, 5), dropout=0.0).double().train(training)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    x = torch.randn(5, 11, 3, dtype=torch.double)
    y = x.transpose(1, 2)
    for block, dilation in zip(net.body, (1, 2), strict=True):
        inner = y
        for branches in (block.first, block.second):
            parts = []
            for branch in branches:
                z = conv_by_hand(inner, branch.conv, dilation)
                norm, crop = branch.norm, (branch.conv.kernel_size[0] - 1) * dilation // 2
                if training:  # over batch and all T + (k-1)d positions
                    mean, var = z.mean((0, 2)), z.var((0, 2), correction=0)
                else:
                    mean, var = norm.running_mean, norm.running_var
                z = (z - mean[:, None]) / (var[:, None] + norm.eps).sqrt()
                z = (z * norm.weight[:, None] + norm.bias[:, None])[..., crop : z.shape[2] - crop]
                parts.append(torch.where(z > 0, z, branch.act.weight[:, None] * z))
            inner = torch.cat(parts, 1)
            assert inner.shape[2] == 11
        z = inner + torch.einsum("oc,bct->bot", block.shortcut.weight[..., 0], y)
        z = z + block.shortcut.bias[:, None]
        y = torch.where(z > 0, z, block.act.weight[:, None] * z)
    expected = y.mean(2) @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(x), expected)


def test_group_norm_does_not_couple_rows_and_batch_norm_does():
    x = torch.randn(6, 8, 5)
    for norm, alone in (("group", True), ("batch", False)):
        net = MultiBranchTCN(5, channels=32, dropout=0.0, norm=norm).train()
        same = torch.allclose(net(x)[:1], net(x[:1]), atol=1e-5)
        assert same == alone
    assert all(not isinstance(m, nn.BatchNorm1d)
               for m in series_net("TCN-a", 5, norm="group").modules())  # fmt: skip


# --- recurrence ----------------------------------------------------------------------------


def test_lstm_is_its_cell_unrolled():
    net = LSTMClassifier(5, hidden=7)
    cell = nn.LSTMCell(5, 7)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in net.body.state_dict().items()})
    x = torch.randn(4, 6, 5)
    h = c = torch.zeros(4, 7)
    for step in range(6):
        h, c = cell(x[:, step], (h, c))
    torch.testing.assert_close(net(x), net.head(h))


def test_rnn_by_hand():
    net = RNNClassifier(5, hidden=7)
    w = net.body
    x, h = torch.randn(4, 6, 5), torch.zeros(4, 7)
    for step in range(6):
        h = torch.tanh(
            x[:, step] @ w.weight_ih_l0.T + w.bias_ih_l0 + h @ w.weight_hh_l0.T + w.bias_hh_l0
        )
    torch.testing.assert_close(net(x), net.head(h))


# --- attention -----------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_transformer_by_hand(pool):
    net = SeriesTransformer(5, depth=2, heads=3, head_dim=4, feed_forward=6, pool=pool,
                            head_hidden=8).double().eval()  # fmt: skip
    x = torch.randn(2, 7, 5, dtype=torch.double)
    y = x if pool == "mean" else torch.cat([net.token.expand(2, 1, 5), x], 1)
    for attention, forward in zip(net.body[::2], net.body[1::2], strict=True):
        z = F.layer_norm(y, (5,), attention.norm.weight, attention.norm.bias)
        q, k, v = (z @ attention.to_qkv.weight.T).split(12, 2)
        heads = []
        for n in range(3):
            a, b, c = (part[..., 4 * n : 4 * n + 4] for part in (q, k, v))
            weights = (a @ b.transpose(1, 2) / math.sqrt(4)).softmax(2)
            heads.append(weights @ c)
        y = y + torch.cat(heads, 2) @ attention.out.weight.T + attention.out.bias
        norm, up, _, _, down, _ = forward.body
        z = F.layer_norm(y, (5,), norm.weight, norm.bias) @ up.weight.T + up.bias
        z = 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
        y = y + z @ down.weight.T + down.bias
    read = y.mean(1) if pool == "mean" else y[:, 0]
    norm, last = net.neck[0], net.neck[1]
    z = F.layer_norm(read, (5,), norm.weight, norm.bias) @ last.weight.T + last.bias
    z = 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
    torch.testing.assert_close(net(x), z @ net.head.weight.T + net.head.bias)


def test_there_is_no_position_encoding():
    x = torch.randn(2, 9, 5)
    for name in ("ViT-desk", "TRSF-a"):
        net = series_net(name, 5).eval()
        torch.testing.assert_close(net(x), net(x[:, torch.randperm(9)]), rtol=1e-4, atol=1e-5)
    lstm = series_net("LSTM-desk", 5)
    assert not torch.allclose(lstm(x), lstm(x.flip(1)))


@pytest.mark.parametrize("name", ["TCN-a", "ViT-a", "TRSF-a"])
def test_dropout_is_a_half_and_off_in_eval_mode(name):
    with torch.device("meta"):
        rates = {m.p for m in series_net(name, 5).modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.5}
    net = series_net(name.replace("-a", "-desk") if name != "TRSF-a" else name, 5)
    x = torch.randn(2, 9, 5)
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


# --- by name -------------------------------------------------------------------------------


def test_pool_makes_new_weights_each_time_and_none_beforehand():
    state = torch.random.get_rng_state()
    pool = series_pool(("LSTM-desk", "TCN-desk"), 5, classes=2, norm="group")
    assert torch.equal(state, torch.random.get_rng_state())
    one, other = pool["LSTM-desk"](), pool["LSTM-desk"]()
    assert not torch.equal(one.head.weight, other.head.weight)
    assert one.head.out_features == 2
    assert any(isinstance(m, nn.GroupNorm) for m in pool["TCN-desk"]().modules())


def test_bad_input_is_named():
    for make, sentence in (
        (lambda: series_net("GRU", 5), "no network is named 'GRU'; there are: TCN-a"),
        (lambda: series_pool(("TCN-a",), 0), "features of at least 1, got 0"),
        (lambda: MultiBranchTCN(5, kernels=(2,)), "odd kernel sizes"),
        (lambda: MultiBranchTCN(5, norm="layer"), "'batch' or 'group'"),
        (lambda: SeriesTransformer(5, pool="max"), "'token' or 'mean'"),
        (lambda: SeriesTransformer(5, heads=0), "heads of at least 1"),
        (lambda: LSTMClassifier(5, hidden=0), "hidden of at least 1"),
        (lambda: RNNClassifier(0), "features of at least 1"),
        *((lambda n=name: series_net(n, 5)(torch.zeros(2, 9, 4)), r"of 5 features, got \(2, 9, 4\)")
          for name in DESK_NETS),
        (lambda: RNNClassifier(5)(torch.zeros(9, 5)), r"\(B, T, F\)"),
    ):  # fmt: skip
        with pytest.raises(FoveateError, match=sentence):
            make()
