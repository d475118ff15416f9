"""SSD: one convolutional pass that gives boxes and classes at every place of several feature maps.

Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016 (arXiv 1512.02325). Every cell of every
map carries a few *prior boxes* of fixed sizes and shapes (:mod:`foveate.nn.prior_boxes`). Two 3x3
convolutions on each map say, for every prior, by what (l) the object's box differs from it and what
class it has. In training a prior belongs to an object if it is that object's best one, or if their
jaccard overlap (intersection over union) is at least 0.5; the others are background, of which only
the hardest, three to one, count::

    L = 1/N ( sum_pos smooth_L1(l - l_true) + sum_{pos, hard neg} cross_entropy ),   N positives

At test time: decode, drop scores below 0.01, non-maximum suppression in every class
at overlap 0.45, keep the best 200.

The published backbone is VGG-16. Here it is any net whose maps :class:`FeatureMaps` can take; with
ResNet-18 at 300x300 pixels, ``layer2``, ``layer3``, ``layer4`` have just the 38, 19 and 10 cells,
and three extra layers give 5, 3 and 1 (D). Every extra convolution has a batch normalisation (D),
so that it can have few bits; there is no rescaled L2 norm on the first map, which VGG needs (D).

>>> net = SSD(FeatureMaps(resnet18(), ("layer2", "layer3", "layer4")), 20, SSD300_VOC)
>>> locations, scores = net.gather(net(torch.zeros(1, 3, 300, 300)))
>>> locations.shape, scores.shape
(torch.Size([1, 8732, 4]), torch.Size([1, 8732, 21]))
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.nn.conv_factory import ConvFactory, plain_conv
from foveate.nn.prior_boxes import (
    SSD300_VOC,
    PriorGrid,
    decode,
    encode,
    jaccard,
    nms,
    to_corners,
)

__all__ = ["SSD", "Detected", "FeatureMaps", "MultiBoxLoss", "detect", "match"]


# --- training ------------------------------------------------------------------------------


@torch.no_grad()
def match(
    boxes: Tensor, labels: Tensor, priors: Tensor, threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Give every prior an object or the background.

    First the objects choose, in order of the best overlap that is left: each takes a prior that no
    other has. Then every other prior takes the object that it overlaps most, if by `threshold`.

    Parameters
    ----------
    boxes
        ``(N, 4)`` corners in units of the side, with an area; N may be 0.
    labels
        ``(N,)`` classes from 0.
    priors
        ``(P, 4)`` as from :func:`prior_boxes`.

    Returns
    -------
    classes
        ``(P,)`` int64: 0 background, else the object's class + 1.
    locations
        ``(P, 4)`` as from :func:`encode`; zeros for the background.

    Raises
    ------
    FoveateError
        A box is not finite or has no area, or there are not as many labels as boxes.
    """
    classes = torch.zeros(len(priors), dtype=torch.int64, device=priors.device)
    locations = torch.zeros_like(priors)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise FoveateError(
            "match expects boxes (N, 4) with labels (N,), got "
            f"{tuple(boxes.shape)} and {tuple(labels.shape)}"
        )
    if not len(boxes):
        return classes, locations
    if not bool(torch.isfinite(boxes).all()) or not bool((boxes[:, 2:] > boxes[:, :2]).all()):
        raise FoveateError(
            "match expects finite boxes (left, top, right, bottom) with an area; drop the others"
        )
    overlaps = jaccard(boxes, to_corners(priors))
    best, owner = overlaps.max(0)
    owner = torch.where(best >= threshold, owner, -1)
    left = overlaps.clone()
    for _ in range(min(len(boxes), len(priors))):
        chosen = int(left.argmax())
        thing, prior = divmod(chosen, len(priors))
        owner[prior] = thing
        left[thing], left[:, prior] = -1.0, -1.0
    found = owner >= 0
    mine = owner[found]
    classes[found] = labels[mine].long() + 1
    locations[found] = encode(boxes[mine].to(priors), priors[found])
    return classes, locations


class MultiBoxLoss(nn.Module):
    """Smooth L1 of the boxes and cross entropy of the classes, over the number of positives.

    Parameters
    ----------
    priors
        ``(P, 4)`` as from :func:`prior_boxes`.
    negatives
        Background priors that count for every positive one, in each picture: the hardest.
    threshold
        Least overlap of a positive prior, as in :func:`match`.
    """

    priors: Tensor

    def __init__(self, priors: Tensor, negatives: int = 3, threshold: float = 0.5) -> None:
        super().__init__()
        if negatives < 1 or not 0 < threshold <= 1:
            raise FoveateError(
                "MultiBoxLoss expects at least one negative and a threshold in (0, 1], got "
                f"{negatives=}, {threshold=}"
            )
        self.register_buffer("priors", priors, persistent=False)
        self.negatives, self.threshold = negatives, threshold

    def forward(
        self, locations: Tensor, scores: Tensor, targets: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """The loss, a scalar; 0 (with gradients 0) where no picture has an object.

        Parameters
        ----------
        locations, scores
            ``(B, P, 4)`` and ``(B, P, 1 + classes)``, logits with the background first.
        targets
            Boxes ``(N, 4)``, corners in units of the side, and labels ``(N,)`` of each picture.
        """
        if len(targets) != len(scores) or scores.shape[1] != len(self.priors):
            raise FoveateError(
                f"MultiBoxLoss expects one target for each picture and {len(self.priors)} priors, "
                f"got {len(targets)} targets and scores {tuple(scores.shape)}"
            )
        matched = [match(boxes, labels, self.priors, self.threshold) for boxes, labels in targets]
        classes = torch.stack([found for found, _ in matched])
        wanted = torch.stack([place for _, place in matched])
        positive = classes > 0
        place = F.smooth_l1_loss(locations[positive], wanted[positive], reduction="sum")
        losses = F.cross_entropy(scores.transpose(1, 2), classes, reduction="none")  # (B, P)
        with torch.no_grad():
            counts = positive.sum(1, keepdim=True)
            # Rank of every prior among the negatives of its picture, hardest first.
            hardness = losses.masked_fill(positive, -1.0)
            rank = hardness.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            hard = ~positive & (rank < self.negatives * counts)
        kind = losses[positive | hard].sum()
        loss: Tensor = (place + kind) / positive.sum().clamp(min=1)
        return loss


# --- reading the answer --------------------------------------------------------------------


@dataclass(frozen=True)
class Detected:
    """Objects found in one picture, best first.

    Attributes
    ----------
    boxes
        ``(N, 4)`` left, top, right, bottom, in units of the side, cut at the picture's edges.
    labels
        ``(N,)`` int64, classes from 0.
    scores
        ``(N,)`` in (0, 1].
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def agrees(
        self, other: Detected, sure: float = 0.5, score: float = 0.01, overlap: float = 0.99
    ) -> bool:
        """Whether each has the objects of which the other is sure.

        Same class, scores no more than `score` apart, boxes that overlap by `overlap` at least. For
        two ways to compute one network, whose roundings may change the order of equals.
        """
        for one, two in ((self, other), (other, self)):
            said = one.scores >= sure
            same = (
                (jaccard(one.boxes[said], two.boxes) >= overlap)
                & (one.labels[said][:, None] == two.labels[None])
                & ((one.scores[said][:, None] - two.scores[None]).abs() <= score)
            )
            if not bool(same.any(1).all()):
                return False
        return True


@torch.no_grad()
def detect(
    locations: Tensor,
    scores: Tensor,
    priors: Tensor,
    confidence: float = 0.01,
    overlap: float = 0.45,
    candidates: int = 400,
    keep: int = 200,
) -> list[Detected]:
    """Objects in each picture; the defaults are the published ones (`candidates`: R).

    Parameters
    ----------
    locations, scores
        ``(B, P, 4)`` and ``(B, P, 1 + classes)`` logits, as from :meth:`SSD.gather`.
    priors
        ``(P, 4)`` as from :func:`prior_boxes`.
    confidence
        Least probability of a class.
    overlap
        Of the suppression, within a class.
    candidates
        Best boxes of a class that go into the suppression.
    keep
        Most objects of a picture.

    Raises
    ------
    FoveateError
        The net's answer is not finite.
    """
    if not bool(torch.isfinite(scores).all()) or not bool(torch.isfinite(locations).all()):
        raise FoveateError(
            "the detector gave numbers that are not finite: it has diverged, train it with a "
            "smaller learning rate"
        )
    found = []
    boxes_of = decode(locations, priors).clamp(0, 1)
    for boxes, probability in zip(boxes_of, scores.softmax(-1), strict=True):
        parts = []
        for label in range(1, probability.shape[1]):
            of_class = probability[:, label]
            index = (of_class > confidence).nonzero()[:, 0]
            if not len(index):
                continue
            best = of_class[index].argsort(descending=True, stable=True)[:candidates]
            index = index[best]
            index = index[nms(boxes[index], of_class[index], overlap)]
            parts.append((boxes[index], torch.full_like(index, label - 1), of_class[index]))
        if not parts:
            parts.append(
                (boxes[:0], torch.zeros_like(boxes[:0, 0], dtype=torch.int64), boxes[:0, 0])
            )
        everything, labels, values = (torch.cat(part) for part in zip(*parts, strict=True))
        order = values.argsort(descending=True, stable=True)[:keep]
        found.append(Detected(everything[order], labels[order], values[order]))
    return found


# --- the network ---------------------------------------------------------------------------


class FeatureMaps(nn.Module):
    """A classifier's trunk that gives the outputs of some of its stages.

    Parameters
    ----------
    net
        A module whose children run one after the other in the order of registration, such as
        :class:`foveate.nn.resnet.ResNet` and :class:`foveate.nn.binary_resnet.BinaryResNet`. Its
        children are taken over, by the same names, up to the last stage named.
    stages
        Names of children, in order.
    in_channels
        Channels of the input.

    Attributes
    ----------
    channels
        Channels of each map.
    """

    def __init__(self, net: nn.Module, stages: Sequence[str], in_channels: int = 3) -> None:
        super().__init__()
        names = [name for name, _ in net.named_children()]
        if not stages or [name for name in names if name in stages] != list(stages):
            raise FoveateError(
                f"{type(net).__name__} has the children {', '.join(names)}; name stages among "
                f"them in this order, got {', '.join(stages) or 'none'}"
            )
        self.stages = tuple(stages)
        for name in names[: names.index(stages[-1]) + 1]:
            self.add_module(name, net.get_submodule(name))
        probe = next(self.parameters()).new_zeros(1, in_channels, 32, 32)
        training = self.training
        with torch.no_grad():
            self.channels: tuple[int, ...] = tuple(m.shape[1] for m in self.eval()(probe))
        self.train(training)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, in_channels, H, W)`` -> one ``(B, C, h, w)`` for each stage."""
        maps = []
        for name, child in self.named_children():
            x = child(x)
            if name in self.stages:
                maps.append(x)
        return tuple(maps)


class SSD(nn.Module):
    """Detector on any trunk that gives feature maps.

    Parameters
    ----------
    trunk
        Gives a tuple of maps, fine to coarse, and has `channels`, as :class:`FeatureMaps`.
    classes
        Number of classes without the background.
    grid
        Priors. Where it has more maps than the trunk, extra layers follow: a 1x1 convolution to
        `extra` / 2 channels, then a 3x3 one to `extra` that halves the map, or, from 5 cells down
        (the published nets' way to 3 and 1), takes one cell off each side.
    conv
        Makes the convolutions of the extra layers.
    activation
        Makes the activation after every BN.
    extra
        Width of the extra layers: 256 as published.

    Attributes
    ----------
    locators, classifiers
        The 3x3 convolutions that say boxes and classes, one per map.

    Notes
    -----
    ``forward``: ``(B, C, side, side)`` float -> a tuple of ``(B, 4 k, h, w)`` and
    ``(B, (1 + classes) k, h, w)`` for every map in turn, k priors a cell. It contains nothing but
    convolutions, normalisations and activations, so that it can be quantised and compiled as it is;
    :meth:`gather` makes tables of it.
    """

    def __init__(
        self,
        trunk: nn.Module,
        classes: int,
        grid: PriorGrid = SSD300_VOC,
        conv: ConvFactory = plain_conv,
        activation: Callable[[], nn.Module] = nn.ReLU,
        extra: int = 256,
    ) -> None:
        super().__init__()
        channels = [int(width) for width in getattr(trunk, "channels", ())]
        if not 1 <= len(channels) <= len(grid.cells) or classes < 1 or extra < 2:
            raise FoveateError(
                "SSD expects a trunk with `channels` of at most as many maps as the grid has "
                f"({len(grid.cells)}), a class and two extra channels, got channels={channels}, "
                f"{classes=}, {extra=}"
            )
        self.trunk, self.grid, self.classes = trunk, grid, classes
        self.extras = nn.ModuleList()
        for before, after in itertools.pairwise(grid.cells[len(channels) - 1 :]):
            stride, padding = _way(before, after)
            layers = [conv(channels[-1], extra // 2, 1, 1, 0), nn.BatchNorm2d(extra // 2)]
            layers += [activation(), conv(extra // 2, extra, 3, stride, padding)]
            self.extras.append(nn.Sequential(*layers, nn.BatchNorm2d(extra), activation()))
            channels.append(extra)
        self.locators, self.classifiers = nn.ModuleList(), nn.ModuleList()
        for width, priors in zip(channels, grid.per_cell, strict=True):
            self.locators.append(nn.Conv2d(width, 4 * priors, 3, padding=1))
            self.classifiers.append(nn.Conv2d(width, (1 + classes) * priors, 3, padding=1))
        for module in (*self.locators, *self.classifiers):
            nn.init.xavier_uniform_(module.weight)  # as the authors' (R)
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        maps = list(self.trunk(x))
        for layer in self.extras:
            maps.append(layer(maps[-1]))
        said = []
        for index, features in enumerate(maps):
            said += [self.locators[index](features), self.classifiers[index](features)]
        return tuple(said)

    def gather(self, said: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Tables ``(B, P, 4)`` and ``(B, P, 1 + classes)`` of what :meth:`forward` said.

        Raises
        ------
        FoveateError
            The maps are not those of the grid: the picture has another size.
        """
        seen = [tuple(part.shape[2:]) for part in said[::2]]
        if seen != [(cells, cells) for cells in self.grid.cells]:
            raise FoveateError(
                f"SSD expects maps of {self.grid.cells} cells a side, got {seen}; give pictures "
                f"of {self.grid.side}x{self.grid.side} pixels"
            )
        tables = [
            torch.cat([m.permute(0, 2, 3, 1).reshape(len(m), -1, width) for m in said[start::2]], 1)
            for start, width in ((0, 4), (1, 1 + self.classes))
        ]
        return tables[0], tables[1]


def _way(before: int, after: int) -> tuple[int, int]:
    """Stride and padding of a 3x3 convolution between maps of so many cells."""
    ways = [(2, 1), (1, 0)] if before > 5 else [(1, 0), (2, 1)]
    for stride, padding in ways:
        if (before + 2 * padding - 3) // stride + 1 == after and before + 2 * padding >= 3:
            return stride, padding
    raise FoveateError(
        f"no 3x3 convolution goes from {before} to {after} cells a side by halving or by taking "
        "one off each side; change the cells of the grid"
    )
