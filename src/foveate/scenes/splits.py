"""Which labelled pixels train, and which test: random pixels, or whole blocks and a guard.

Neighbouring pixels of a scene are nearly copies of each other. With random pixels and patches of
``n x n``, the spectrum of a test pixel lies inside some training patch, and accuracy measures
memory. Three splits:

*Random per class*: n pixels, or a share, of every class train and the rest test. The published
habit; it leaks.

*Checkerboard*: the scene is cut into blocks; those where ``row // b + column // b`` is even train
and the others test.

*Spatial blocks*: whole blocks are drawn for training, validation and test, so that every class
keeps its share on each side where its geography allows it.

The *guard* g drops a training pixel that has a labelled test pixel within Chebyshev distance g,

    max(|r - r'|, |c - c'|) <= g = n // 2 ,

after which no training patch contains a test pixel. Contexts of the two sides may still share
pixels that are unlabelled or dropped, up to a distance of n - 1. Classes that do not keep enough
pixels on both sides are left out and named; they are never averaged in.

>>> split = checkerboard_split(labels, 18, guard=4)  # doctest: +SKIP
>>> few = draw_per_class(labels, split.train, 30, seed=0)  # doctest: +SKIP
>>> print(leakage_report(labels, split, patch=9))  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from foveate.datasets.scene import Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError

__all__ = [
    "BlockGrid",
    "Leakage",
    "Split",
    "checkerboard_split",
    "draw_per_class",
    "leakage_report",
    "random_per_class_split",
    "spatial_block_split",
    "test_blocks",
]

Role = Literal["train", "validation", "test"]
Index = npt.NDArray[np.int64]
Hidden = Callable[[Window], npt.NDArray[np.bool_]]

_ROLES: tuple[Role, ...] = ("train", "validation", "test")
_RESTARTS = 32  # of the greedy assignment; it stops at the first that leaves no class short
_WANTED = 0.3  # of every class on the training and on the test side


@dataclass(frozen=True, eq=False)
class BlockGrid:
    """A scene cut into blocks, each with a role.

    Attributes
    ----------
    shape
        (H, W) of the scene.
    block
        Rows and columns of a block; blocks at the scene's edge are cut.
    offset
        Pixel (r, c) lies in block ``((r + offset[0]) // block[0], (c + offset[1]) // block[1])``.
    roles
        One number a block: 0 train, 1 validation, 2 test.
    """

    shape: tuple[int, int]
    block: tuple[int, int]
    offset: tuple[int, int]
    roles: npt.NDArray[np.int8] = field(repr=False)

    def role_of(self, coordinates: npt.ArrayLike) -> npt.NDArray[np.int8]:
        """Role of the block of every pixel (N, 2): 0 train, 1 validation, 2 test."""
        at = self._block_of(np.asarray(coordinates))
        return self.roles[at[:, 0], at[:, 1]]

    def hidden(self, *roles: Role) -> Hidden:
        """Where blocks of these roles lie: window -> (h, w), True inside them."""
        if not roles or not set(roles) <= set(_ROLES):
            raise FoveateError(f"hidden expects one or more of {', '.join(_ROLES)}, got {roles}")
        chosen = np.isin(self.roles, [_ROLES.index(role) for role in roles])

        def inside(window: Window) -> npt.NDArray[np.bool_]:
            row, column, height, width = window
            bottom, right = row + height, column + width
            if min(row, column) < 0 or bottom > self.shape[0] or right > self.shape[1]:
                raise FoveateError(
                    f"{window} lies outside the scene of {self.shape[0]} x {self.shape[1]} pixels"
                )
            rows = (np.arange(row, bottom) + self.offset[0]) // self.block[0]
            columns = (np.arange(column, right) + self.offset[1]) // self.block[1]
            return chosen[np.ix_(rows, columns)]

        return inside

    def clear_of(
        self, coordinates: npt.ArrayLike, guard: int, role: Role = "test"
    ) -> npt.NDArray[np.bool_]:
        """(N,) True where no pixel of a block of `role` lies within Chebyshev distance `guard`.

        Stricter than the guard of the splits, which asks for *labelled* pixels; meant for pixels
        without labels, whose patches must not touch test blocks either.
        """
        at = np.asarray(coordinates, np.int64)
        first = self._block_of(np.maximum(at - guard, 0))
        last = self._block_of(np.minimum(at + guard, np.subtract(self.shape, 1)))
        # table of sums: how many such blocks does the square around a pixel touch?
        table = np.zeros(np.add(self.roles.shape, 1), np.int64)
        table[1:, 1:] = (self.roles == _ROLES.index(role)).cumsum(0).cumsum(1)
        touched = (
            table[last[:, 0] + 1, last[:, 1] + 1]
            - table[first[:, 0], last[:, 1] + 1]
            - table[last[:, 0] + 1, first[:, 1]]
            + table[first[:, 0], first[:, 1]]
        )
        clear: npt.NDArray[np.bool_] = touched == 0
        return clear

    def _block_of(self, coordinates: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        return (coordinates.astype(np.int64) + self.offset) // self.block


@dataclass(frozen=True, eq=False)
class Split:
    """Indices into `SceneLabels`: which pixels train, validate and test.

    Attributes
    ----------
    train, validation, test
        int64, ascending, disjoint; indices of ``labels.coordinates`` and ``labels.codes``.
    kind
        ``random``, ``checkerboard`` or ``blocks``.
    guard
        Chebyshev distance that every training pixel exceeds to every labelled test pixel.
    left_out
        Class code -> why none of its pixels is in the split.
    blocks
        The blocks and their roles; None for random pixels.
    """

    train: Index
    validation: Index
    test: Index
    kind: str
    guard: int = 0
    left_out: Mapping[int, str] = field(default_factory=dict)
    blocks: BlockGrid | None = None

    def __post_init__(self) -> None:
        for role in _ROLES:
            index = np.asarray(getattr(self, role))
            if index.ndim != 1 or (index.size and not np.issubdtype(index.dtype, np.integer)):
                raise FoveateError(f"the {role} part of a split expects a list of indices")
            object.__setattr__(self, role, np.sort(index.astype(np.int64)))
        every = np.concatenate([self.train, self.validation, self.test])
        if np.unique(every).size != every.size:
            raise FoveateError("a pixel is used twice in this split; its parts must be disjoint")

    @property
    def hidden(self) -> Hidden | None:
        """Where test blocks lie, for nets that see whole tiles; None for random pixels."""
        return None if self.blocks is None else self.blocks.hidden("test")

    def counts(self, labels: SceneLabels) -> dict[int, tuple[int, int, int]]:
        """Pixels of every class in (train, validation, test); classes left out have zeros."""
        train, validation, test = (labels.codes[getattr(self, role)] for role in _ROLES)
        return {
            code: (
                int((train == code).sum()),
                int((validation == code).sum()),
                int((test == code).sum()),
            )
            for code in labels.classes
        }


def random_per_class_split(
    labels: SceneLabels,
    per_class: int | float,
    *,
    minimum: int = 1,
    at_most: float = 0.5,
    seed: int,
) -> Split:
    """Random pixels of every class train, the rest test: the published habit, which leaks.

    Parameters
    ----------
    labels
        Labelled pixels.
    per_class
        Pixels of each class (whole number) or their share (between 0 and 1, rounded half up).
    minimum
        A share gives at least so many pixels.
    at_most
        Never more than this share of a class, rounded down; a class for which that is none is
        left out.
    seed
        Draws the pixels.

    Raises
    ------
    FoveateError
        Fewer than two classes, or numbers out of their range.
    """
    _some_labels(labels)
    share = isinstance(per_class, float)
    if not (0 < per_class < 1 if share else per_class >= 1) or minimum < 1 or not 0 < at_most < 1:
        raise FoveateError(
            "random_per_class_split expects per_class as a whole number >= 1 or a share between 0 "
            f"and 1, minimum >= 1 and at_most between 0 and 1, got {per_class}, {minimum} and "
            f"{at_most}"
        )
    rng = np.random.default_rng(seed)
    train, test, left_out = [], [], {}
    for code in labels.classes:
        members = np.flatnonzero(labels.codes == code)
        wanted = max(minimum, int(per_class * members.size + 0.5)) if share else int(per_class)
        count = min(wanted, int(at_most * members.size))
        if not count:
            left_out[code] = f"{members.size} labelled pixel(s); at most {at_most:.0%} may train"
            continue
        order = rng.permutation(members)
        train.append(order[:count])
        test.append(order[count:])
    return Split(_joined(train), _joined([]), _joined(test), "random", 0, left_out)


def checkerboard_split(
    labels: SceneLabels,
    block: int | tuple[int, int],
    guard: int = 0,
    *,
    even_is_train: bool = True,
    offset: tuple[int, int] = (0, 0),
    least: int = 30,
) -> Split:
    """Blocks of a checkerboard: the even ones train, the odd ones test.

    Parameters
    ----------
    labels
        Labelled pixels.
    block
        Side of a block, or its rows and columns.
    guard
        A training pixel with a labelled test pixel within this Chebyshev distance is dropped;
        ``patch // 2`` for patches, the reach of the widest filter otherwise.
    even_is_train
        False swaps the roles: one checkerboard is one geometry.
    offset
        Shift of the board, rows and columns, each below the side of a block.
    least
        A class with fewer pixels on either side, after the guard, is left out. 0 keeps all.

    Returns
    -------
    Split
        Without validation pixels.

    Raises
    ------
    FoveateError
        Fewer than two classes, numbers out of their range, or nothing is left on a side.
    """
    _some_labels(labels)
    _sides(block, guard, least)
    grid = _checkerboard(labels.shape, block, even_is_train, offset)
    return _guarded(labels, grid, guard, least, "checkerboard")


def spatial_block_split(
    labels: SceneLabels,
    block: int | tuple[int, int],
    guard: int,
    *,
    fractions: tuple[float, float, float] = (0.4, 0.1, 0.5),
    seed: int,
    least: int = 30,
) -> Split:
    """Whole blocks for training, validation and test, so that every class keeps its share.

    Class by class, the rarest first, the blocks not yet given away go, the fullest first, to the
    side that is furthest below its share of the class; validation blocks are then taken out of
    the training side in the same way. Of up to 32 such draws the one that leaves the classes least
    below 30 % on both sides is kept (or the share of `fractions`, where that is less).

    Parameters
    ----------
    labels
        Labelled pixels.
    block
        Side of a block, or its rows and columns; twice the patch, or a seventh of the short side
        of the scene, are usual.
    guard
        As in `checkerboard_split`; training pixels keep it to validation and to test pixels,
        validation pixels to test pixels.
    fractions
        Wanted shares of train, validation and test; they sum to 1, train and test are above 0.
    seed
        Breaks ties and orders the blocks.
    least
        As in `checkerboard_split`.

    Raises
    ------
    FoveateError
        As `checkerboard_split`.
    """
    _some_labels(labels)
    sides = _sides(block, guard, least)
    train, validation, test = fractions
    if min(train, test) <= 0 or validation < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise FoveateError(
            "spatial_block_split expects fractions (train, validation, test) that sum to 1, train "
            f"and test above 0, got {fractions}"
        )
    shape = _grid_shape(labels.shape, sides, (0, 0))
    at = labels.coordinates.astype(np.int64) // sides
    used, where = np.unique(at[:, 0] * shape[1] + at[:, 1], return_inverse=True)
    codes = np.searchsorted(labels.classes, labels.codes)
    # pixels of every class in every block that has any, as shares of the class
    table = np.zeros((used.size, len(labels.classes)))
    np.add.at(table, (where.reshape(-1), codes), 1.0)
    table /= table.sum(0)
    rng = np.random.default_rng(seed)
    best, lowest = np.zeros(used.size, np.int8), np.inf
    for _ in range(_RESTARTS):
        is_test = _dealt(table, np.arange(used.size), test, rng)
        roles = np.where(is_test, 2, 0).astype(np.int8)
        if validation:
            inside = np.flatnonzero(~is_test)
            roles[inside[_dealt(table, inside, validation / (train + validation), rng)]] = 1
        shares = np.stack([table[roles == role].sum(0) for role in (0, 2)])
        wanted = np.minimum([[train], [test]], _WANTED)
        shortfall = float(np.maximum(wanted - shares, 0).sum())
        if shortfall < lowest:
            best, lowest = roles, shortfall
        if not shortfall:
            break
    # blocks without a label have no say; left to training, they are hidden from nobody
    every = np.zeros(shape, np.int8)
    every.reshape(-1)[used] = best
    grid = BlockGrid(labels.shape, sides, (0, 0), every)
    return _guarded(labels, grid, guard, least, "blocks")


def draw_per_class(labels: SceneLabels, index: npt.ArrayLike, per_class: int, seed: int) -> Index:
    """`per_class` pixels of every class out of `index`, at random; all where there are fewer.

    Returns ascending indices into `labels`. The draw of one class does not depend on the others.
    """
    chosen = np.asarray(index, np.int64)
    if per_class < 1 or chosen.ndim != 1 or not chosen.size:
        raise FoveateError(
            "draw_per_class expects at least one pixel per class and a list of indices that is "
            f"not empty, got {per_class} and shape {chosen.shape}"
        )
    codes = labels.codes[chosen]
    drawn = []
    for code in np.unique(codes):
        members = chosen[codes == code]
        rng = np.random.default_rng((seed, int(code)))
        drawn.append(rng.permutation(members)[:per_class])
    return np.sort(np.concatenate(drawn))


@dataclass(frozen=True)
class Leakage:
    """How much of the test pixels a training patch can see.

    Attributes
    ----------
    patch
        Side n of the patches.
    covered
        Share of test pixels that lie inside at least one training patch: 0 without leakage.
    test_in_training_patches, test
        Their number, and the number of all test pixels.
    overlapping
        Share of test pixels whose own patch shares pixels with a training patch. Above 0 also
        for guarded splits: context without labels, which is allowed and said.
    distance
        Smallest Chebyshev distance between a training and a test pixel, in pixels.
    """

    patch: int
    covered: float
    test_in_training_patches: int
    test: int
    overlapping: float
    distance: int

    def __str__(self) -> str:
        return (
            f"{self.covered:.1%} of {self.test} test pixels lie inside a training patch of "
            f"{self.patch} x {self.patch}; nearest training pixel: {self.distance} away"
        )


def leakage_report(
    labels: SceneLabels, split: Split | tuple[npt.ArrayLike, npt.ArrayLike], patch: int
) -> Leakage:
    """Say how many test pixels lie inside training patches.

    Parameters
    ----------
    labels
        Labelled pixels.
    split
        A `Split`, or training and test indices.
    patch
        Side n; a patch reaches n // 2 pixels up and left of its pixel and (n - 1) // 2 down and
        right. 1: only the pixel itself.
    """
    train, test = (
        (split.train, split.test)
        if isinstance(split, Split)
        else (np.asarray(split[0], np.int64), np.asarray(split[1], np.int64))
    )
    if patch < 1 or not train.size or not test.size:
        raise FoveateError(
            "leakage_report expects a patch of at least 1 and training and test pixels, got a "
            f"patch of {patch}, {train.size} and {test.size} pixels"
        )
    ours = labels.coordinates[train].astype(np.float64)
    theirs = labels.coordinates[test].astype(np.float64)
    tree, reach = _tree(ours), patch - 0.5  # farther than that nothing can overlap
    distance = tree.query(theirs, p=np.inf, distance_upper_bound=reach)[0]
    nearest = distance.min()
    if not np.isfinite(nearest):
        nearest = tree.query(theirs, p=np.inf)[0].min()
    if patch % 2:
        inside = distance <= patch // 2
    else:  # the middle of an even patch lies half a pixel up and left of its pixel
        middle = _tree(ours - 0.5).query(theirs, p=np.inf, distance_upper_bound=reach)[0]
        inside = middle <= (patch - 1) / 2
    return Leakage(
        patch=patch,
        covered=float(inside.mean()),
        test_in_training_patches=int(inside.sum()),
        test=test.size,
        overlapping=float((distance <= patch - 1).mean()),
        distance=int(nearest),
    )


def test_blocks(
    shape: tuple[int, int],
    block: int | tuple[int, int],
    *,
    even_is_train: bool = True,  # noqa: PT028
    offset: tuple[int, int] = (0, 0),  # noqa: PT028
) -> Hidden:
    """Where the test blocks of a checkerboard lie: window -> (h, w), True inside them.

    Nets that see whole tiles set these inputs to 0 in training; hiding only the labels would let
    them read the test pixels. The same as ``checkerboard_split(...).hidden``, without labels.
    """
    return _checkerboard(shape, block, even_is_train, offset).hidden("test")


test_blocks.__test__ = False  # type: ignore[attr-defined]  # not a test, though pytest would say so


def _checkerboard(
    shape: tuple[int, int],
    block: int | tuple[int, int],
    even_is_train: bool,
    offset: tuple[int, int],
) -> BlockGrid:
    sides = _sides(block, 0, 0)
    if not (0 <= offset[0] < sides[0] and 0 <= offset[1] < sides[1]):
        raise FoveateError(
            f"the offset of a checkerboard must lie inside a block of {sides[0]} x {sides[1]}, "
            f"got {offset}"
        )
    even = np.indices(_grid_shape(shape, sides, offset)).sum(0) % 2 == 0
    roles = np.where(even == even_is_train, 0, 2).astype(np.int8)
    return BlockGrid(shape, sides, offset, roles)


def _dealt(
    table: npt.NDArray[np.float64],
    blocks: npt.NDArray[np.integer],
    share: float,
    rng: np.random.Generator,
) -> npt.NDArray[np.bool_]:
    """Which of `blocks` go to the second side, that `share` of every class may lie there."""
    part = table[blocks]
    present = (part > 0).sum(0)
    taken = np.full(blocks.size, -1, np.int8)
    have = np.zeros((2, table.shape[1]))
    wanted = np.array([1 - share, share])[:, None] * part.sum(0)
    for column in np.lexsort((rng.random(present.size), present)):
        mine = np.flatnonzero((part[:, column] > 0) & (taken < 0))
        fullness = part[mine, column] * rng.uniform(0.5, 1.0, mine.size)  # restarts must differ
        for block in mine[np.argsort(-fullness)]:
            lack = (wanted - have)[:, column] / np.maximum(wanted[:, column], 1e-12)
            side = int(lack[1] > lack[0]) if lack[0] != lack[1] else int(rng.random() < share)
            taken[block] = side
            have[side] += part[block]
    second: npt.NDArray[np.bool_] = taken == 1
    return second


def _guarded(labels: SceneLabels, grid: BlockGrid, guard: int, least: int, kind: str) -> Split:
    """Indices by the roles of the blocks, after the guard, without the classes that are left."""
    role = grid.role_of(labels.coordinates)
    train, validation, test = (np.flatnonzero(role == value) for value in range(3))
    validation = _far(labels, validation, test, guard)
    train = _far(labels, train, np.concatenate([validation, test]), guard)
    left_out = {}
    for code in labels.classes:
        before = int((labels.codes[role == 0] == code).sum())
        ours = int((labels.codes[train] == code).sum())
        theirs = int((labels.codes[test] == code).sum())
        if min(ours, theirs) < least:
            left_out[code] = (
                f"{ours} training pixels ({before} before the guard of {guard}) and {theirs} test "
                f"pixels; at least {least} are needed on each side"
            )
    codes = np.array(list(left_out), labels.codes.dtype)
    parts = [part[~np.isin(labels.codes[part], codes)] for part in (train, validation, test)]
    if not parts[0].size or not parts[2].size:
        raise FoveateError(
            f"no class keeps {max(least, 1)} pixels in training and test blocks of "
            f"{grid.block[0]} x {grid.block[1]} with a guard of {guard}; use smaller blocks, a "
            "smaller patch or more labels"
        )
    return Split(parts[0], parts[1], parts[2], kind, guard, left_out, grid)


def _far(labels: SceneLabels, index: Index, others: Index, guard: int) -> Index:
    """Those of `index` that lie farther than `guard` from each of `others`."""
    if guard < 1 or not index.size or not others.size:
        return index
    tree = _tree(labels.coordinates[others])
    distance, _ = tree.query(labels.coordinates[index], p=np.inf, distance_upper_bound=guard + 0.5)
    kept: Index = index[~np.isfinite(distance)]
    return kept


def _tree(points: npt.NDArray[Any]) -> cKDTree:
    # trees that are not balanced are made faster, and pixels on a grid need no balance
    return cKDTree(points, balanced_tree=False, compact_nodes=False)


def _some_labels(labels: SceneLabels) -> None:
    if len(labels.classes) < 2:
        raise FoveateError(
            f"a split expects labelled pixels of at least two classes, got {len(labels.classes)}"
        )


def _sides(block: int | tuple[int, int], guard: int, least: int) -> tuple[int, int]:
    rows, columns = block if isinstance(block, tuple) else (block, block)
    if min(rows, columns) < 1 or min(guard, least) < 0:
        raise FoveateError(
            "a block split expects blocks of at least 1 x 1, a guard and a least number of pixels "
            f"that are not negative, got {rows} x {columns}, {guard} and {least}"
        )
    return int(rows), int(columns)


def _grid_shape(
    shape: tuple[int, int], block: tuple[int, int], offset: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of blocks that cover the scene."""
    return (
        -(-(shape[0] + offset[0]) // block[0]),
        -(-(shape[1] + offset[1]) // block[1]),
    )


def _joined(parts: list[npt.NDArray[np.int64]]) -> Index:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
