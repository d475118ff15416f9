"""Judging an embedding by its neighbours: weighted kNN vote, Recall@k, NMI; and finding them.

All of it uses the cosine similarity of features, which are made unit vectors here. Nothing stores
the matrix of all similarities: queries are compared in blocks.

*kNN vote* (Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
CVPR 2018, and its code): a test feature f asks its k most similar training features f_j,

    score(c) = sum over the k nearest j of class c of  exp( cos(f, f_j) / tau )

and takes the class of the highest score; k = 200 and tau = 0.1 for the whole of CIFAR-10.

*Recall@k*: the share of queries with at least one sample of their own class among their k nearest,
the query itself left out. *NMI*: the normalised mutual information of the classes and of a k-means
clustering into as many clusters.

>>> f = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]]), dim=1)
>>> knn_classify(f[:2], torch.tensor([3, 5]), f[2:], k=1)
tensor([3])
>>> nearest_neighbours(f)[0]
tensor([1, 0, 0])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.errors import FoveateError

__all__ = ["knn_classify", "mutual_neighbours", "nearest_neighbours", "nmi", "recall_at_k"]

_SIMILARITIES = 1 << 24  # held at a time: 64 MiB of float32


def _unit(features: Tensor, name: str) -> Tensor:
    if features.ndim != 2 or 0 in features.shape or not features.is_floating_point():
        raise FoveateError(
            f"{name} are floats of the shape (N, D), got {features.dtype} {tuple(features.shape)}"
        )
    features = features.detach().float()
    if not bool(torch.isfinite(features).all()):
        raise FoveateError(f"{name} hold NaN or infinity; look for divergence in the training")
    return F.normalize(features, dim=1)


def _classes(labels: Tensor, count: int, name: str) -> Tensor:
    if (
        labels.shape != (count,)
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype == torch.bool
        or int(labels.long().min()) < 0
    ):
        raise FoveateError(
            f"{name} are integers of at least 0, one for each of the {count} features, got "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    return labels.long()


def _blocks(queries: int, gallery: int) -> Iterator[slice]:
    """Slices of the queries, each of which makes `_SIMILARITIES` with the gallery at most."""
    step = max(1, _SIMILARITIES // gallery)
    for start in range(0, queries, step):
        yield slice(start, start + step)


@torch.no_grad()
def knn_classify(
    train_f: Tensor,
    train_y: Tensor,
    test_f: Tensor,
    k: int = 200,
    tau: float = 0.1,
    n_classes: int | None = None,
) -> Tensor:
    """Class of every test feature by a weighted vote of its nearest training features.

    Parameters
    ----------
    train_f, train_y
        ``(N, D)`` features and ``(N,)`` classes 0, 1, ...
    test_f
        ``(M, D)`` features, on the same device.
    k
        Voters, 1 to N. Which of several equally similar ones is the k-th is up to torch's `topk`.
    tau
        Temperature of the weights, above 0.
    n_classes
        One more than the largest class; from `train_y` when None.

    Returns
    -------
    Tensor
        ``(M,)`` int64; the lowest of classes with equal scores.

    Raises
    ------
    FoveateError
        Shapes do not fit, features are not finite, or k, tau or n_classes are out of range.
    """
    train, test = _unit(train_f, "training features"), _unit(test_f, "test features")
    classes = _classes(train_y, len(train), "training classes")
    if train.shape[1] != test.shape[1]:
        raise FoveateError(
            f"training features have {train.shape[1]} numbers and test features {test.shape[1]}; "
            "take both from the same network"
        )
    if not 1 <= k <= len(train) or not tau > 0:
        raise FoveateError(
            f"knn_classify expects k from 1 to the {len(train)} training features and tau above "
            f"0, got k={k} and tau={tau}"
        )
    largest = int(classes.max())
    if n_classes is not None and largest >= n_classes:
        raise FoveateError(f"class {largest} occurs where n_classes={n_classes} allows less")
    # Only classes that occur have a score: whatever their numbers are, the table stays small.
    known, place = torch.unique(classes, return_inverse=True)
    said = []
    for block in _blocks(len(test), len(train)):
        nearest = (test[block] @ train.T).topk(k, dim=1)
        # Divided by the largest weight: the scores keep their order and a small tau no overflow.
        weights = ((nearest.values - nearest.values[:, :1]) / tau).exp()
        scores = weights.new_zeros(len(weights), len(known))
        said.append(known[scores.scatter_add_(1, place[nearest.indices], weights).argmax(1)])
    return torch.cat(said)


@torch.no_grad()
def recall_at_k(f: Tensor, y: Tensor, ks: Sequence[int] = (1, 2, 4, 8)) -> dict[int, float]:
    """Share of samples that find their own class among their k most similar others.

    Parameters
    ----------
    f, y
        ``(N, D)`` features and ``(N,)`` classes; every sample is query and gallery.
    ks
        Each from 1 to N - 1.

    Returns
    -------
    dict
        k -> share in [0, 1]. A sample that is alone in its class is a miss.

    Raises
    ------
    FoveateError
        Shapes do not fit, features are not finite, or a k is out of range.
    """
    features = _unit(f, "features")
    classes = _classes(y, len(features), "classes")
    if not ks or min(ks) < 1 or max(ks) >= len(features):
        raise FoveateError(
            f"recall_at_k expects each k from 1 to {len(features) - 1}, one less than the number "
            f"of features, got {tuple(ks)}"
        )
    hits = dict.fromkeys(ks, 0)
    for block in _blocks(len(features), len(features)):
        similarities = features[block] @ features.T
        rows = torch.arange(len(similarities), device=f.device)
        similarities[rows, rows + block.start] = -torch.inf
        nearest = similarities.topk(max(ks), dim=1).indices
        same = classes[nearest] == classes[block, None]
        for k in hits:
            hits[k] += int(same[:, :k].any(1).sum())
    return {k: count / len(features) for k, count in hits.items()}


def nmi(f: Tensor, y: Tensor, seed: int = 0) -> float:
    """Normalised mutual information of the classes and a k-means clustering, by scikit-learn.

    Parameters
    ----------
    f, y
        ``(N, D)`` features and ``(N,)`` classes; as many clusters are made as classes occur.
    seed
        Of k-means (the best of 10 starts).

    Returns
    -------
    float
        In [0, 1]; normalised by the arithmetic mean of both entropies.

    Raises
    ------
    FoveateError
        Shapes do not fit, features are not finite, or there is one class only.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    features = _unit(f, "features").cpu().numpy()
    classes = _classes(y, len(features), "classes").cpu().numpy()
    count = len(set(classes.tolist()))
    if count < 2:
        raise FoveateError("nmi expects samples of at least two classes, got one class")
    clusters = KMeans(count, n_init=10, random_state=seed).fit_predict(features)
    return float(normalized_mutual_info_score(classes, clusters))


@torch.no_grad()
def nearest_neighbours(
    rows: Tensor, skip: Tensor | None = None, block: int = 1024
) -> tuple[Tensor, Tensor]:
    """The most similar *other* row of every row, with its inner product.

    The N x N similarities are computed in square tiles, each once for both of its sides: half the
    work, and s_ij and s_ji are the same number, so that "i and j are each other's nearest" does
    not hang on rounding. Memory: one tile, and nothing of the size of `rows`.

    Parameters
    ----------
    rows
        ``(N, D)``, unit vectors (not normalised here: that would be a copy).
    skip
        ``(N,)`` bool: rows that are nobody's neighbour and have none.
    block
        Edge of a tile.

    Returns
    -------
    index, similarity : Tensor
        ``(N,)`` int64, the lowest of equally similar ones, and ``(N,)``. A row without any
        neighbour has the similarity -inf; its index means nothing.

    Raises
    ------
    FoveateError
        `rows` is not ``(N, D)``, `skip` not ``(N,)`` bool, or `block` below 1.
    """
    count = len(rows) if rows.ndim == 2 else 0
    fits = skip is None or (skip.shape == (count,) and skip.dtype == torch.bool)
    if count < 1 or not fits or block < 1:
        raise FoveateError(
            "nearest_neighbours expects rows (N, D), skip (N,) of bool and block of at least 1, "
            f"got {tuple(rows.shape)}, {None if skip is None else tuple(skip.shape)} and {block}"
        )
    index = torch.zeros(count, dtype=torch.long, device=rows.device)
    best = torch.full((count,), -torch.inf, dtype=rows.dtype, device=rows.device)

    def offer(to: slice, values: Tensor, places: Tensor) -> None:
        """Keep what is better; an equal one came from lower rows and stays."""
        better = values > best[to]
        best[to] = torch.where(better, values, best[to])
        index[to] = torch.where(better, places, index[to])

    for top in range(0, count, block):
        for left in range(top, count, block):
            ours, theirs = slice(top, top + block), slice(left, left + block)
            tile = rows[ours] @ rows[theirs].T
            if skip is not None:
                tile.masked_fill_(skip[ours, None] | skip[None, theirs], -torch.inf)
            if left == top:
                tile = tile.triu_(1)
                tile += tile.T.clone()  # one number for both sides, whatever the product gave
                tile.fill_diagonal_(-torch.inf)
                values, places = tile.max(1)
                offer(ours, values, places + left)
                continue
            values, places = tile.max(1)
            offer(ours, values, places + left)
            values, places = tile.T.contiguous().max(1)  # four times as fast as max(0)
            offer(theirs, values, places + top)
    return index, best


def mutual_neighbours(
    rows: Tensor, skip: Tensor | None = None, block: int = 1024
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of rows that are each other's nearest neighbour, the most similar pair first.

    Such pairs are disjoint, as every row has one nearest neighbour. Parameters and errors are those
    of `nearest_neighbours`.

    Returns
    -------
    first, second, similarity : Tensor
        ``(P,)`` each, ``first < second``; equally similar pairs in the order of `first`.
    """
    nearest, similarity = nearest_neighbours(rows, skip, block)
    number = torch.arange(len(rows), device=rows.device)
    mutual = (nearest[nearest] == number) & (number < nearest) & (similarity > -torch.inf)
    first = number[mutual]
    first = first[similarity[first].argsort(descending=True, stable=True)]
    return first, nearest[first], similarity[first]
