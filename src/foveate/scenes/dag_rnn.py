"""Pixel DAG-RNN: walk from the four corners of a patch to its centre, and label the centre.

Paper: Li, Sun, Li, Ren, Liu, Jiao, "Pixel DAG-Recurrent Neural Network for Spectral-Spatial
Hyperspectral Image Classification", 2019 (arXiv 1906.03607). No official code is known.

The pixels of an n x n patch (n odd) and their neighbourhoods form a graph with loops. It is taken
as four graphs without loops: the quadrants of side m = n // 2 + 1 (the *memory length*), which
share the centre row and column. In every quadrant d a recurrent net walks from the patch's corner
to the centre, where all four walks end. With P(v) the direct predecessors of vertex v inside the
quadrant (walking south-east: above, left, and of 8 neighbours also above left; eqs. 6-7):

    hhat_d(v) = sum_{p in P(v)} G(S_d h_d(p) + a_d)
    h_d(v)    = H(U_d x(v) + V_d hhat_d(v) + b_d)

A predecessor outside the quadrant adds zero, not G(a). The weights are shared by all vertices of a
direction. Only the four states at the centre are read: two fully connected layers turn
z = concat_d h_d(centre) into class scores. A pixel's word reaches the centre through as many
squashings as it is steps away, so near pixels weigh more.

The text walks row by row. Vertices of one anti-diagonal i + j = s do not depend on each other, so
2m - 1 steps do what m^2 do there, with the same numbers; and all four quadrants, turned so that
they walk south-east, go together. :meth:`DAGRNNCell2d.forward_naive` is the literal loop.

From the paper (P): the graphs, both equations, the sharing, 4 and 8 neighbours, two FC layers,
softmax, dropout 0.4, hidden width 128, n = 13 (Indian Pines, KSC) and 11 (Pavia University).
Not stated there, decided here (D): G = H = tanh; FC1 of 128 with ReLU; dropout on z and behind FC1,
none in the recurrence; first weights: U as Glorot and Bengio, S and V orthogonal times 0.5 (a sum
over three predecessors would else grow along the walk), biases 0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = ["DAGRNNCell2d", "PixelDAGRNN", "influence_by_distance"]

Activation = Literal["tanh", "relu"]
DIRECTIONS = ("southeast", "southwest", "northeast", "northwest")
RECURRENT_GAIN = 0.5


def squash(x: Tensor, activation: Activation) -> Tensor:
    """G and H."""
    return torch.tanh(x) if activation == "tanh" else torch.relu(x)


class DAGRNNCell2d(nn.Module):
    """The recurrence of one direction, walking south-east over a grid of vertices.

    Parameters
    ----------
    in_channels
        C, channels of a pixel.
    hidden
        h, width of a state.
    neighbours
        8: the predecessors are above, left and above left; 4: above and left.
    activation
        G and H: ``tanh`` or ``relu``.

    Attributes
    ----------
    U, V, S
        (h, C), (h, h), (h, h).
    a, b
        (h,).

    Raises
    ------
    FoveateError
        A size below 1, or an unknown neighbourhood or activation.
    """

    def __init__(
        self, in_channels: int, hidden: int, neighbours: int = 8, activation: Activation = "tanh"
    ) -> None:
        super().__init__()
        if min(in_channels, hidden) < 1:
            raise FoveateError(
                f"a DAG-RNN takes at least one channel and one hidden unit, got {in_channels} and "
                f"{hidden}"
            )
        if neighbours not in (4, 8):
            raise FoveateError(f"a DAG-RNN has 4 or 8 neighbours, got {neighbours}")
        if activation not in ("tanh", "relu"):
            raise FoveateError(f"a DAG-RNN squashes by tanh or relu, got {activation!r}")
        self.in_channels, self.hidden = in_channels, hidden
        self.neighbours, self.activation = neighbours, activation
        self.U = nn.Parameter(torch.empty(hidden, in_channels))
        self.V = nn.Parameter(torch.empty(hidden, hidden))
        self.S = nn.Parameter(torch.empty(hidden, hidden))
        self.a = nn.Parameter(torch.zeros(hidden))
        self.b = nn.Parameter(torch.zeros(hidden))
        nn.init.xavier_uniform_(self.U)
        nn.init.orthogonal_(self.V, RECURRENT_GAIN)
        nn.init.orthogonal_(self.S, RECURRENT_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (B, C, rows, columns) -> state of the last vertex, bottom right (B, h).

        Raises
        ------
        FoveateError
            Another number of axes or channels, or no vertex.
        """
        _check(x, self.in_channels, "(B, C, rows, columns)")
        batch, channels, rows, columns = x.shape
        order = torch.from_numpy(_by_diagonal(rows, columns)).to(x.device)
        vertices = x.flatten(2).permute(2, 0, 1)[order].reshape(1, -1, channels)
        return _walk([self], vertices, rows, columns, batch)[0]

    def forward_naive(self, x: Tensor) -> Tensor:
        """The same as :meth:`forward`, as the paper words it: row by row, pixel by pixel."""
        _check(x, self.in_channels, "(B, C, rows, columns)")
        rows, columns = x.shape[2:]
        states: dict[tuple[int, int], Tensor] = {}
        for i in range(rows):
            for j in range(columns):
                before = [(i - 1, j), (i, j - 1)]
                if self.neighbours == 8:
                    before.append((i - 1, j - 1))
                total = x.new_zeros(len(x), self.hidden)
                for vertex in before:
                    if vertex in states:
                        total = total + squash(states[vertex] @ self.S.T + self.a, self.activation)
                states[i, j] = squash(
                    x[:, :, i, j] @ self.U.T + total @ self.V.T + self.b, self.activation
                )
        return states[rows - 1, columns - 1]

    def extra_repr(self) -> str:
        """Sizes, for ``print(net)``."""
        return (
            f"{self.in_channels}, {self.hidden}, neighbours={self.neighbours}, "
            f"activation={self.activation!r}"
        )


class PixelDAGRNN(nn.Module):
    """Scores of the class of a patch's centre pixel.

    Parameters
    ----------
    in_channels
        C, bands or features of a pixel.
    num_classes
        K.
    hidden
        h, width of a state; the paper's is 128.
    patch_size
        n, odd; the paper's is 13 (Indian Pines, KSC) or 11 (Pavia University).
    neighbours
        8 or 4.
    dropout
        Of z and of the first FC layer's output; the paper's is 0.4.
    activation
        G and H.
    share_directions
        One set of weights for all four directions; the paper has one for each.
    fc_hidden
        Width of the first FC layer.

    Raises
    ------
    FoveateError
        A size that makes no sense, e.g. an even patch.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden: int = 128,
        patch_size: int = 13,
        neighbours: int = 8,
        dropout: float = 0.4,
        activation: Activation = "tanh",
        share_directions: bool = False,
        fc_hidden: int = 128,
    ) -> None:
        super().__init__()
        if patch_size < 1 or patch_size % 2 == 0:
            raise FoveateError(
                f"a Pixel DAG-RNN labels the centre of a patch: its side is odd, got {patch_size}"
            )
        if num_classes < 1 or fc_hidden < 1 or not 0 <= dropout < 1:
            raise FoveateError(
                "a Pixel DAG-RNN takes at least one class, one unit in its first FC layer and "
                f"dropout in [0, 1), got {num_classes}, {fc_hidden} and {dropout}"
            )
        self.in_channels, self.num_classes, self.patch_size = in_channels, num_classes, patch_size
        self.memory = patch_size // 2 + 1
        self.cells = nn.ModuleList(
            DAGRNNCell2d(in_channels, hidden, neighbours, activation)
            for _ in range(1 if share_directions else len(DIRECTIONS))
        )
        self.fc1 = nn.Linear(len(DIRECTIONS) * hidden, fc_hidden)
        self.fc2 = nn.Linear(fc_hidden, num_classes)
        self.dropout = nn.Dropout(dropout)
        order = torch.from_numpy(_quadrants(patch_size))
        self.register_buffer("order", order, persistent=False)
        self.order: Tensor

    def directions(self) -> list[DAGRNNCell2d]:
        """The recurrences in the order of `DIRECTIONS`; one and the same if they are shared."""
        cells = [cell for cell in self.cells if isinstance(cell, DAGRNNCell2d)]
        return cells if len(cells) > 1 else cells * len(DIRECTIONS)

    def forward(self, x: Tensor) -> Tensor:
        """Patches (B, C, n, n) -> scores (B, K).

        Raises
        ------
        FoveateError
            Patches of another size or number of channels.
        """
        self._check(x)
        # (n n, B, C) -> every quadrant, turned and in the order of its walk: (4, m m B, C)
        pixels = x.flatten(2).permute(2, 0, 1)
        vertices = pixels[self.order].reshape(len(DIRECTIONS), -1, self.in_channels)
        last = _walk(self.directions(), vertices, self.memory, self.memory, len(x))
        return self.readout(last.transpose(0, 1).flatten(1))

    def forward_naive(self, x: Tensor) -> Tensor:
        """The same as :meth:`forward`, by the literal loop over every quadrant."""
        self._check(x)
        quadrants = _turned(x, self.memory)
        return self.readout(
            torch.cat(
                [
                    cell.forward_naive(q)
                    for cell, q in zip(self.directions(), quadrants, strict=True)
                ],
                1,
            )
        )

    def readout(self, z: Tensor) -> Tensor:
        """Concatenated states of the centre (..., 4h) -> scores (..., K)."""
        hidden = torch.relu(self.fc1(self.dropout(z)))
        scores: Tensor = self.fc2(self.dropout(hidden))
        return scores

    def _check(self, x: Tensor) -> None:
        _check(x, self.in_channels, f"(B, C, {self.patch_size}, {self.patch_size})")
        if x.shape[2:] != (self.patch_size, self.patch_size):
            raise FoveateError(
                f"this Pixel DAG-RNN takes patches of {self.patch_size} x {self.patch_size} pixels"
                f", got a tensor of shape {tuple(x.shape)}"
            )


def influence_by_distance(net: nn.Module, patches: Tensor) -> Tensor:
    """Mean ``|d score / d x(v)|`` of pixels v at Chebyshev distance 0, 1, ..., n // 2.

    The mean runs over patches, classes, channels and the pixels of a ring. Any network from patches
    to scores will do; it is put into evaluation mode for the time.

    Parameters
    ----------
    patches
        (B, C, n, n), n odd.

    Returns
    -------
    Tensor
        (n // 2 + 1,), from the centre outwards.

    Raises
    ------
    FoveateError
        Patches that have no centre, or none at all.
    """
    if patches.ndim != 4 or not len(patches) or patches.shape[2] != patches.shape[3]:
        raise FoveateError(
            f"influence is measured on patches of shape (B, C, n, n), got {tuple(patches.shape)}"
        )
    side = patches.shape[-1]
    if side % 2 == 0:
        raise FoveateError(f"influence is measured from the centre: an odd side, got {side}")
    was_training = net.training
    net.eval()
    try:
        with torch.enable_grad():
            x = patches.detach().clone().requires_grad_(True)
            scores = net(x)
            total = torch.zeros(side, side, device=x.device)
            for k in range(scores.shape[1]):
                (gradient,) = torch.autograd.grad(scores[:, k].sum(), x, retain_graph=True)
                total += gradient.abs().mean((0, 1))
    finally:
        net.train(was_training)
    total /= scores.shape[1]
    away = (torch.arange(side, device=x.device) - side // 2).abs()
    rings = torch.maximum(away[:, None], away[None, :])
    return torch.stack([total[rings == r].mean() for r in range(side // 2 + 1)]).detach()


# ------------------------------------------------------------------------------ the walk


def _walk(
    cells: list[DAGRNNCell2d], vertices: Tensor, rows: int, columns: int, batch: int
) -> Tensor:
    """Walk D grids at once, anti-diagonal by anti-diagonal.

    Parameters
    ----------
    vertices
        (D, rows columns B, C): pixels of the vertices, one anti-diagonal after the other, from its
        first row down; all patches of a vertex lie together.

    Returns
    -------
    Tensor
        (D, B, h): states of the last vertex.
    """
    activation, eight = cells[0].activation, cells[0].neighbours == 8
    S = torch.stack([cell.S for cell in cells]).transpose(1, 2)
    V = torch.stack([cell.V for cell in cells]).transpose(1, 2)
    U = torch.stack([cell.U for cell in cells]).transpose(1, 2)
    a, b = (torch.stack([getattr(cell, n) for cell in cells])[:, None] for n in "ab")
    ux = torch.baddbmm(b, vertices, U)
    groups, hidden = len(cells), ux.shape[-1]
    # Messages G(S h + a) of the last two diagonals with a row of zeros at either end: what reaches
    # over the edge of the grid finds those zeros.
    last = before = ux.new_zeros(0)
    last_top = before_top = start = 0
    h = ux
    for s in range(rows + columns - 1):
        top, bottom = max(0, s - columns + 1), min(s, rows - 1)
        count = bottom - top + 1
        ux_s = ux[:, start : start + count * batch]
        start += count * batch
        if s:
            up = top - last_top
            total = last[:, up : up + count] + last[:, up + 1 : up + 1 + count]
            if eight and s > 1:
                up = top - before_top
                total = total + before[:, up : up + count]
            ux_s = torch.baddbmm(ux_s, total.reshape(groups, -1, hidden), V)
        h = squash(ux_s, activation)
        if s < rows + columns - 2:  # nobody hears the last one
            messages = squash(torch.baddbmm(a, h, S), activation)
            messages = messages.view(groups, count, batch, hidden)
            before, before_top = last, last_top
            last, last_top = F.pad(messages, (0, 0, 0, 0, 1, 1)), top
    return h


def _by_diagonal(rows: int, columns: int) -> npt.NDArray[np.int64]:
    """Flat indices of a grid, one anti-diagonal after the other, from its first row down."""
    i, j = np.divmod(np.arange(rows * columns), columns)
    return np.lexsort((i, i + j)).astype(np.int64)


def _quadrants(side: int) -> npt.NDArray[np.int64]:
    """(4, m m) flat indices into a patch: its quadrants, turned, in the order of the walk."""
    m = side // 2 + 1
    grid = np.arange(side * side).reshape(side, side)
    order = _by_diagonal(m, m)
    # Walking west is walking east in the mirrored patch; likewise north and south.
    turned = [grid, grid[:, ::-1], grid[::-1], grid[::-1, ::-1]]
    return np.stack([view[:m, :m].reshape(-1)[order] for view in turned])


def _turned(x: Tensor, m: int) -> list[Tensor]:
    """The quadrants of patches (B, C, n, n), turned so that every walk goes south-east."""
    return [x.flip(axes)[..., :m, :m] for axes in ((), (3,), (2,), (2, 3))]


def _check(x: Tensor, channels: int, shape: str) -> None:
    if x.ndim != 4 or x.shape[1] != channels or not x.shape[2] or not x.shape[3]:
        raise FoveateError(
            f"this DAG-RNN takes pixels of shape {shape} with C = {channels}, got a tensor of "
            f"shape {tuple(x.shape)}"
        )
