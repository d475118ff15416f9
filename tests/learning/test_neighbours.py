"""kNN vote, Recall@k, NMI and nearest neighbours against scikit-learn, numpy and counting."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from foveate.errors import FoveateError
from foveate.learning import neighbours
from foveate.learning.neighbours import (
    knn_classify,
    mutual_neighbours,
    nearest_neighbours,
    nmi,
    recall_at_k,
)


def features(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(seed: int, count: int, kinds: int = 3) -> torch.Tensor:
    return torch.randint(kinds, (count,), generator=torch.Generator().manual_seed(seed))


def unit_np(x: torch.Tensor) -> np.ndarray:
    x = x.double().numpy()
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(params=[1, 40, 1 << 24])
def blocks(request, monkeypatch):
    """Everything must come out the same in small blocks."""
    monkeypatch.setattr(neighbours, "_SIMILARITIES", request.param)


@pytest.mark.parametrize(("k", "tau"), [(1, 0.1), (5, 0.1), (20, 0.01), (60, 1.0)])
def test_knn_is_scikit_learns_with_our_weights(blocks, k, tau):
    """Line 10 of the method's list: cosine, weights exp(sim / tau), k as stated."""
    train, labels, test = features(0, 60, 4), classes(1, 60), features(2, 25, 4)
    peer = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / tau)
    ).fit(unit_np(train), labels.numpy())
    said = knn_classify(3 * train, labels, 0.2 * test, k, tau)  # lengths do not matter
    assert said.tolist() == peer.predict(unit_np(test)).tolist()


def test_knn_weights_decide_not_only_counts():
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    labels, query = torch.tensor([4, 2, 2]), torch.tensor([[1.0, 0.05]])
    assert knn_classify(train, labels, query, 3, tau=0.1).tolist() == [4]
    assert knn_classify(train, labels, query, 3, tau=100.0).tolist() == [2]
    assert knn_classify(train, labels, query, 3, tau=1e-3, n_classes=9).tolist() == [4]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), count=st.integers(3, 20), kinds=st.integers(1, 4))
def test_recall_by_counting(seed, count, kinds):
    f, y = features(seed, count, 3), classes(seed, count, kinds)
    ks = (1, 2, count - 1)
    s = unit_np(f) @ unit_np(f).T
    np.fill_diagonal(s, -np.inf)
    order = np.argsort(-s, axis=1)
    found = recall_at_k(f, y, ks)
    for k in ks:
        hits = sum(bool((y[order[i, :k].copy()] == y[i]).any()) for i in range(count))
        assert found[k] == hits / count


def test_recall_in_blocks(blocks):
    f, y = features(0, 50, 5), classes(0, 50)
    s = unit_np(f) @ unit_np(f).T
    np.fill_diagonal(s, -np.inf)
    assert recall_at_k(f, y, (1,))[1] == float(np.mean(y.numpy() == y.numpy()[s.argmax(1)]))


def test_nmi_by_counting():
    """k-means finds four tight clusters; two classes share one of them."""
    centres = torch.eye(4)
    of = torch.arange(40) % 4
    f = centres[of] + 0.01 * features(0, 40, 4)
    y = torch.where((of == 3) & (torch.arange(40) < 20), 2, of)

    def entropy(values: list) -> float:
        return -sum(n / 40 * math.log(n / 40) for n in Counter(values).values())

    a, b = of.tolist(), y.tolist()
    mutual = entropy(a) + entropy(b) - entropy(list(zip(a, b, strict=True)))
    assert nmi(f, y) == pytest.approx(2 * mutual / (entropy(a) + entropy(b)), abs=1e-9)
    assert nmi(5 * f, of) == pytest.approx(1)


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 9999),
    count=st.integers(1, 30),
    block=st.integers(1, 40),
    whole=st.booleans(),
    skipping=st.booleans(),
)
def test_nearest_neighbours_by_counting(seed, count, block, whole, skipping):
    """Ties (rows of small whole numbers have many) go to the lowest index."""
    rows = features(seed, count, 4)
    rows = rows.round().clamp(-1, 1) if whole else F.normalize(rows, dim=1)
    skip = features(seed + 1, count) > 0.5 if skipping else None
    s = (rows.double() @ rows.double().T).numpy()
    np.fill_diagonal(s, -np.inf)
    if skip is not None:
        s[skip.numpy()] = s[:, skip.numpy()] = -np.inf
    index, similarity = nearest_neighbours(rows, skip, block)
    assert np.allclose(similarity.double(), s.max(1), atol=1e-6)
    known = np.isfinite(s.max(1))
    assert (index.numpy()[known] == s.argmax(1)[known]).all()
    pairs = [
        (i, int(s[i].argmax()))
        for i in range(count)
        if known[i] and s[s[i].argmax()].argmax() == i and i < s[i].argmax()
    ]
    pairs.sort(key=lambda pair: -s[pair])
    first, second, between = mutual_neighbours(rows, skip, block)
    found = list(zip(first.tolist(), second.tolist(), strict=True))
    assert found == pairs if whole else set(found) == set(pairs)
    assert np.allclose(between.double(), [s[pair] for pair in found], atol=1e-6)
    assert bool((between.diff() <= 0).all())


def test_class_numbers_may_be_any():
    """Scores are kept for classes that occur: numbers such as 10^12 take no memory."""
    f, y = features(0, 30, 4), torch.arange(30) % 3
    odd = torch.tensor([7, 10**12, 10**15])
    expected = odd[knn_classify(f[:20], y[:20], f[20:], k=5)]
    assert torch.equal(knn_classify(f[:20], odd[y[:20]], f[20:], k=5), expected)
    small = knn_classify(f[:20], y[:20].to(torch.uint16), f[20:], k=5)
    assert torch.equal(odd[small], expected)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda f, y: knn_classify(f, y, f, k=0), "k from 1 to the 6"),
        (lambda f, y: knn_classify(f, y, f, k=7), "k from 1 to the 6"),
        (lambda f, y: knn_classify(f, y, f, 1, tau=0), "tau above"),
        (lambda f, y: knn_classify(f, y, f[:, :2], 1), "the same network"),
        (lambda f, y: knn_classify(f, y, f, 1, n_classes=2), "class 2 occurs"),
        (lambda f, y: knn_classify(f, y[:3], f, 1), "one for each of the 6"),
        (lambda f, y: knn_classify(f, y.float(), f, 1), "are integers"),
        (lambda f, y: knn_classify(f, y - 1, f, 1), "at least 0"),
        (lambda f, y: knn_classify(f, y, f * float("nan"), 1), "NaN or infinity"),
        (lambda f, y: knn_classify(f[:0], y[:0], f, 1), r"of the shape \(N, D\)"),
        (lambda f, y: recall_at_k(f, y, (1, 6)), "from 1 to 5"),
        (lambda f, y: recall_at_k(f, y, ()), "from 1 to 5"),
        (lambda f, y: recall_at_k(f.long(), y), "are floats"),
        (lambda f, y: nmi(f, y * 0), "at least two classes"),
        (lambda f, y: nearest_neighbours(f[0]), "expects rows"),
        (nearest_neighbours, "expects rows"),
        (lambda f, y: nearest_neighbours(f, block=0), "expects rows"),
    ],
)
def test_bad_input_is_one_sentence(call, said):
    with pytest.raises(FoveateError, match=said):
        call(features(0, 6, 3), torch.arange(6) % 3)
