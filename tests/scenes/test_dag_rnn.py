"""The walk against a scalar recursion written down here, vertex by vertex, and what it may see."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.errors import FoveateError
from foveate.scenes.dag_rnn import DAGRNNCell2d, PixelDAGRNN, influence_by_distance


def scalar_state(cell: DAGRNNCell2d, x: np.ndarray) -> np.ndarray:
    """State of the last vertex of (C, rows, columns): eqs. 6-7 in float64, from the end back."""
    U, V, S, a, b = (w.detach().double().numpy() for w in (cell.U, cell.V, cell.S, cell.a, cell.b))
    act = np.tanh if cell.activation == "tanh" else lambda v: np.maximum(v, 0)
    known: dict[tuple[int, int], np.ndarray] = {}

    def h(i: int, j: int) -> np.ndarray:
        if (i, j) not in known:
            total = np.zeros(len(a))
            steps = [(1, 0), (0, 1)] + ([(1, 1)] if cell.neighbours == 8 else [])
            for di, dj in steps:
                if i >= di and j >= dj:
                    total = total + act(S @ h(i - di, j - dj) + a)
            known[i, j] = act(U @ x[:, i, j] + V @ total + b)
        return known[i, j]

    return h(x.shape[1] - 1, x.shape[2] - 1)


def loud(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that are not small and biases that are not zero."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=draw)
    return module.eval()


def patches(count: int, channels: int, side: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


# --- the recurrence ------------------------------------------------------------------------


@given(
    rows=st.integers(1, 6), columns=st.integers(1, 6), neighbours=st.sampled_from([4, 8]),
    activation=st.sampled_from(["tanh", "relu"]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_two_stage_recurrence_on_any_grid(rows, columns, neighbours, activation, seed):
    """Checklist: G(S h + a) per predecessor, then the sum, then V, then H with U x; diagonal
    predecessor in the 8-variant only; missing ones add zero; one set of weights for all vertices.
    """
    cell = loud(DAGRNNCell2d(3, 4, neighbours, activation), seed)
    x = torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(seed))
    expected = np.stack([scalar_state(cell, each) for each in x.double().numpy()])
    scale = max(1.0, float(np.abs(expected).max()))
    for state in (cell(x), cell.forward_naive(x)):
        np.testing.assert_allclose(state.detach().numpy(), expected, atol=2e-5 * scale)


def test_missing_predecessors_add_zero_and_not_g_of_a():
    """Checklist: a source hears nothing, however large the bias a is."""
    cell = loud(DAGRNNCell2d(2, 3))
    cell.a.data.fill_(50.0)
    x = torch.randn(1, 2, 1, 1)
    alone = torch.tanh(x[:, :, 0, 0] @ cell.U.T + cell.b)
    torch.testing.assert_close(cell(x), alone)
    torch.testing.assert_close(cell.forward_naive(x), alone)
    # At the end of a row of two there is one predecessor, so one G(.) = 1 and not three.
    pair = torch.randn(1, 2, 1, 2)
    expected = torch.tanh(pair[:, :, 0, 1] @ cell.U.T + cell.V.sum(1) + cell.b)
    torch.testing.assert_close(cell(pair), expected)


@pytest.mark.parametrize("neighbours", [4, 8])
def test_diagonal_predecessor_is_there_with_8_neighbours_only(neighbours):
    """Checklist: both are selectable. In a 2 x 2 grid the sum counts the paths' last steps."""
    cell = DAGRNNCell2d(1, 1, neighbours, "relu")
    for name, value in (("U", 1.0), ("V", 1.0), ("S", 1.0), ("a", 0.0), ("b", 0.0)):
        getattr(cell, name).data.fill_(value)
    x = torch.zeros(1, 1, 2, 2)
    x[..., 0, 0] = 1  # reaches the end along (down, right), (right, down) and the diagonal
    assert float(cell(x).detach()) == (3 if neighbours == 8 else 2)


@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize("side", [5, 7])
@pytest.mark.parametrize("share", [False, True])
def test_wavefront_is_the_row_by_row_loop(side, neighbours, share):
    """Checklist: forward and gradients, n = 5 and 7, both neighbourhoods, below 1e-5."""
    net = loud(PixelDAGRNN(6, 5, 8, side, neighbours, share_directions=share, fc_hidden=7))
    grads = []
    for way in (net, net.forward_naive):
        x = patches(3, 6, side).requires_grad_(True)
        net.zero_grad()
        scores = way(x)
        scores.square().sum().backward()
        grads.append([scores.detach(), x.grad, *(p.grad.clone() for p in net.parameters())])
    for fast, slow in zip(*grads, strict=True):
        scale = max(1.0, float(slow.abs().max()))
        assert float((fast - slow).abs().max()) < 1e-5 * scale


# --- four quadrants ------------------------------------------------------------------------


def only(net: PixelDAGRNN, direction: int) -> None:
    """Let the scores hear one direction alone."""
    h = net.fc1.in_features // 4
    mask = torch.zeros(4, h)
    mask[direction] = 1
    net.fc1.weight.data *= mask.flatten()


@pytest.mark.parametrize(
    ("direction", "down", "right"),
    [(0, True, True), (1, True, False), (2, False, True), (3, False, False)],
)
def test_every_direction_sees_its_quadrant_and_nothing_else(direction, down, right):  # fmt: skip
    """Checklist: quadrants of side n//2 + 1 that end at the centre and share its row and column."""
    net = loud(PixelDAGRNN(2, 3, 4, 7, fc_hidden=64))
    only(net, direction)
    x = patches(2, 2, 7).requires_grad_(True)
    net(x).square().sum().backward()
    seen = (x.grad.abs().sum((0, 1)) > 0).numpy()
    expected = np.zeros((7, 7), bool)
    expected[slice(0, 4) if down else slice(3, 7), slice(0, 4) if right else slice(3, 7)] = True
    np.testing.assert_array_equal(seen, expected)


def test_readout_is_the_four_last_states_and_two_layers():
    """Checklist: only end-vertex states, concatenated to 4h, then exactly two FC layers."""
    net = loud(PixelDAGRNN(2, 3, 4, 5, fc_hidden=6))
    x = patches(3, 2, 5)
    views = [x, x.flip(3), x.flip(2), x.flip(2, 3)]
    states = [
        np.stack([scalar_state(cell, each) for each in view[..., :3, :3].double().numpy()])
        for cell, view in zip(net.cells, views, strict=True)
    ]
    z = np.concatenate(states, 1)
    assert z.shape == (3, 16)
    w1, b1, w2, b2 = (p.detach().double().numpy() for m in (net.fc1, net.fc2)
                      for p in (m.weight, m.bias))  # fmt: skip
    expected = np.maximum(z @ w1.T + b1, 0) @ w2.T + b2
    np.testing.assert_allclose(net(x).detach().numpy(), expected, atol=1e-5)
    assert sum(isinstance(m, nn.Linear) for m in net.modules()) == 2


def test_weights_are_one_set_per_direction_and_none_per_vertex():
    """Checklist: sharing; the published sizes (Indian Pines), and the option that ties them."""

    def count(net: nn.Module) -> int:
        return sum(p.numel() for p in net.parameters())

    net = PixelDAGRNN(200, 16)
    assert count(net) == 4 * (25_728 + 16_384 + 16_512) + 65_664 + 2_064
    assert count(PixelDAGRNN(200, 16, patch_size=5)) == count(net)
    tied = PixelDAGRNN(200, 16, share_directions=True)
    assert count(net) - count(tied) == 3 * (25_728 + 16_384 + 16_512)
    directions = [id(cell) for cell in net.directions()]
    assert len(set(directions)) == 4
    assert len({id(cell) for cell in tied.directions()}) == 1
    assert abs(count(PixelDAGRNN(30, 16, 32, 9, fc_hidden=64)) - 21_000) < 1_000


def test_defaults_are_the_papers():
    """Checklist: dropout 0.4, h = 128, n = 13, 8 neighbours, separate directions; documented."""
    given_ = {k: v.default for k, v in inspect.signature(PixelDAGRNN.__init__).parameters.items()}
    assert (given_["hidden"], given_["patch_size"], given_["dropout"]) == (128, 13, 0.4)
    assert (given_["neighbours"], given_["share_directions"]) == (8, False)
    for word in ("128", "13", "11", "0.4"):
        assert word in (PixelDAGRNN.__doc__ or "")


def test_dropout_is_before_both_layers_and_not_in_the_recurrence():
    net = PixelDAGRNN(2, 3, 50, 3, dropout=0.4, fc_hidden=50).train()
    dropped = []
    for layer in (net.fc1, net.fc2):
        layer.register_forward_pre_hook(lambda _, x: dropped.append(x[0]))
    net.fc1.bias.data.fill_(10.0)  # no ReLU is shut
    net(patches(64, 2, 3))
    for x in dropped:
        share = float((x == 0).float().mean())
        assert abs(share - 0.4) < 0.06
    net.eval()
    x = patches(4, 2, 3)
    assert torch.equal(net(x), net(x))


def test_first_weights_are_orthogonal_halves_and_glorot():
    torch.manual_seed(0)
    cell = DAGRNNCell2d(10, 6)
    for w in (cell.S, cell.V):
        torch.testing.assert_close(w @ w.T, 0.25 * torch.eye(6))
    assert float(cell.U.detach().abs().max()) <= math.sqrt(6 / 16)
    assert not cell.a.any()
    assert not cell.b.any()


# --- influence -----------------------------------------------------------------------------


def test_influence_of_a_linear_net_is_its_weights():
    """Closed form: the gradient of a linear score is its weight."""
    weight = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Flatten(), nn.Linear(50, 3))
    net[1].weight.data = weight.flatten(1)
    rings = influence_by_distance(net.train(), patches(4, 2, 5))
    size = weight.abs().mean((0, 1)).numpy()
    expected = [size[2, 2], size[1:4, 1:4].sum() - size[2, 2], size.sum() - size[1:4, 1:4].sum()]
    np.testing.assert_allclose(rings.numpy(), np.array(expected) / [1, 8, 16], rtol=1e-5)
    assert net.training


def test_influence_decays_with_distance_after_training():
    """Checklist: the ring at distance m - 1 weighs less than that at 1."""
    torch.manual_seed(0)
    net = PixelDAGRNN(3, 2, 8, 9, fc_hidden=16)
    x = patches(256, 3, 9)
    y = (x[:, 0, 3:6, 3:6].mean((1, 2)) > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rings = influence_by_distance(net, x[:64])
    assert len(rings) == 5
    assert float(rings[4]) < float(rings[1])


# --- refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"patch_size": 4},
        {"patch_size": 0},
        {"num_classes": 0},
        {"hidden": 0},
        {"in_channels": 0},
        {"neighbours": 6},
        {"dropout": 1.0},
        {"activation": "sine"},
        {"fc_hidden": 0},
    ],
)
def test_sizes_that_make_no_sense_are_one_sentence(wrong):  # fmt: skip
    sizes = {"in_channels": 2, "num_classes": 3, "hidden": 4, "patch_size": 5, **wrong}
    with pytest.raises(FoveateError, match="got") as error:
        PixelDAGRNN(**sizes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 4, 5, 5), (2, 3, 5, 7), (2, 3, 7, 7)])
def test_patches_of_another_shape_show_it(shape):
    net = PixelDAGRNN(3, 2, 4, 5)
    for way in (net, net.forward_naive):
        with pytest.raises(FoveateError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
            way(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 3, 4, 4), (2, 3, 5, 3), (3, 5, 5)])
def test_influence_wants_patches_with_a_centre(shape):
    with pytest.raises(FoveateError, match="influence is measured"):
        influence_by_distance(nn.Flatten(), torch.zeros(shape))
