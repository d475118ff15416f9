"""Mining against plain loops."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from foveate.errors import FoveateError
from foveate.learning import triplets as mining
from foveate.learning.triplets import triplets
from metric_oracles import draw, mined_by_hand, table


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 2)), min_size=2,
        max_size=14,
    ),
    k_target=st.integers(1, 4),
    k_impostor=st.integers(1, 6),
    block=st.sampled_from([1, 20, 1 << 22]),
)  # fmt: skip
def test_triplets_by_brute_force(rows, k_target, k_impostor, block):
    """Small integers: duplicates and ties, classes of one row, fewer rows than neighbours."""
    x, y = np.array([r[:2] for r in rows], float), np.array([r[2] for r in rows])
    if len(set(y.tolist())) < 2:
        with pytest.raises(FoveateError, match="one class"):
            triplets(x, y)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mining, "_BLOCK", block)
        found = triplets(x, y, k_target, k_impostor)
    assert found.dtype == np.int64
    assert found.shape[1:] == (3,)
    expected = mined_by_hand(x, y, k_target, k_impostor)
    assert [row[0] for row in found.tolist()] == [row[0] for row in expected]
    # rows at equal distances may stand for each other: compare distances, not names
    D = cdist(x, x, "sqeuclidean")
    for ours, theirs in zip(found.tolist(), expected, strict=True):
        i, j, f = ours
        assert y[i] == y[j] != y[f]
        assert i != j
        assert (D[i, j], D[i, f]) == (D[theirs[0], theirs[1]], D[theirs[0], theirs[2]])
    assert len({tuple(row) for row in found.tolist()}) == len(found)


def test_triplets_under_a_metric_and_of_any_labels():
    x, y = table(3)
    L = draw(1, (2, 4))[0].numpy()
    assert np.array_equal(triplets(x, y, 2, 4, L), triplets(x @ L.T, y, 2, 4))
    assert np.array_equal(triplets(x, np.array(["a", "b", "c"])[y], 2, 4), triplets(x, y, 2, 4))


@pytest.mark.parametrize(
    ("x", "y", "other"),
    [
        (np.ones(3), [0, 1, 1], {}),
        (np.ones((3, 2)), [0, 1], {}),
        (np.empty((0, 2)), [], {}),
        (np.array([[0, np.nan], [1, 2], [1, 2]]), [0, 1, 1], {}),
        (np.ones((3, 2)), [1, 1, 1], {}),
        (np.ones((3, 2)), [0, 1, 1], {"k_target": 0}),
        (np.ones((3, 2)), [0, 1, 1], {"k_impostor": 0}),
        (np.ones((3, 2)), [0, 1, 1], {"L": np.ones((2, 3))}),
    ],
)
def test_bad_tables_are_refused(x, y, other):
    with pytest.raises(FoveateError) as error:
        triplets(x, y, **other)
    assert "\n" not in str(error.value)


def test_the_example_runs():
    assert doctest.testmod(mining).failed == 0


@pytest.mark.parametrize(
    ("y", "L", "word"),
    [
        ([0.0, 1.0, math.nan, 1.0], None, "label"),
        (np.array([None, "a", "a", "b"], object), None, "label"),
        (np.array([1, "a", "a", 1], object), None, "label"),
        ([0, 1, 0, 1], np.full((2, 2), math.nan), "L has a NaN"),
        ([0, 1, 0, 1], np.full((2, 2), 1e200), "too large"),
    ],
)
def test_what_would_mine_nonsense_is_refused(y, L, word):
    """A NaN label is no class, a NaN metric has no neighbours, distances may not overflow."""
    with pytest.raises(FoveateError, match=word) as error:
        triplets(np.arange(8.0).reshape(4, 2), y, 1, 2, L)
    assert "\n" not in str(error.value)


def test_rows_whose_distances_overflow_are_refused():
    """With all distances infinite a row was mined as its own neighbour."""
    x, y = table(0, n=12)
    with pytest.raises(FoveateError, match="too large"):
        triplets(x * 1e200, y, 1, 2)


def test_more_neighbours_than_rows_take_no_memory():
    x, y = table(1, n=12)
    assert np.array_equal(triplets(x, y, 10**12, 10**12), triplets(x, y, 12, 12))
    with pytest.raises(FoveateError, match="lower k_target or k_impostor"):
        triplets(np.zeros((4000, 1)), np.arange(4000) % 2, 4000, 4000)
