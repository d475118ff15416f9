"""CV-GAN: a complex-valued GAN that classifies PolSAR pixels from a handful of labels.

Sun, Li, Li, Liu, Liu, Jiao, "Semi-Supervised Complex-Valued GAN for Polarimetric SAR Image
Classification", IGARSS 2019 (arXiv 1906.03605). A pixel is its coherency matrix T, Hermitian 3 x 3:
six complex numbers T11 T22 T33 T12 T13 T23 (the first three real). A generator G makes patches of
them out of complex noise; a discriminator D says for a patch which of K land covers its labelled
pixel has, or that it is generated: K+1 real outputs l. Both are complex up to D's last layer
(`foveate.nn.complex`). With ``s = logsumexp(l_1 .. l_K)``, the probability of being real is
``sigmoid(s - l_{K+1})``, and D minimises, in the stable form (P, eqs. 10-14)::

    L_lab = - log softmax(l_1 .. l_K)[y]           labelled patches, given that they are real
    L_unl = softplus(-(s - l_{K+1}))               real patches, labelled or not
    L_gen = softplus(  s - l_{K+1} )               generated patches

while G minimises ``softplus(-(s - l_{K+1}))`` on its own patches, plus the squared distance of D's
mean features on unlabelled and generated ones (D: the paper does not state G's loss; R: feature
matching is from Salimans et al., 2016). One step of D, one of G, in turn (P).

Also here: the same nets in real numbers (for RC and for a real-valued GAN), whose layers are
sqrt(2) times as wide so that the numbers of real parameters match. An *even* patch of n pixels has
its labelled pixel at row n/2, column n/2 (D). Marks: P paper, R secondary, D decided here.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.nn.complex import (
    CLeakyReLU,
    ComplexBatchNorm2d,
    ComplexConv2d,
    ComplexConvTranspose2d,
    ComplexLinear,
    CReLU,
    ctanh,
)

__all__ = [
    "ComplexDiscriminator",
    "ComplexGenerator",
    "RealDiscriminator",
    "RealGenerator",
    "SemiSupervisedGANLoss",
    "fit_classifier",
    "fit_ssgan",
    "real_channels",
]

Progress = Callable[[int, int], None]


def real_channels(patches: Tensor) -> Tensor:
    """``(B, 6, n, n)`` complex64 -> ``(B, 9, n, n)``: what the real-valued nets see."""
    if not patches.is_complex() or patches.dim() != 4 or patches.shape[1] != 6:
        raise FoveateError(
            f"expected complex patches (B, 6, n, n), got {patches.dtype} {tuple(patches.shape)}"
        )
    off = torch.view_as_real(patches[:, 3:].contiguous())  # (B, 3, n, n, 2)
    return torch.cat([patches[:, :3].real, off.permute(0, 1, 4, 2, 3).flatten(1, 2)], 1)


def _side(patch: int, halvings: int, where: str) -> int:
    """Side of the smallest map."""
    if halvings < 1 or patch < 2**halvings or patch % 2**halvings:
        raise FoveateError(
            f"{where}: a patch of {patch} pixels cannot be halved {halvings} times; give a "
            f"multiple of {2 ** max(halvings, 1)} or another number of widths"
        )
    return int(patch // 2**halvings)


Made = Callable[..., nn.Module]


def _halving(channels: Sequence[int], conv: Made, norm: Made, act: Made) -> nn.Sequential:
    """4 x 4 convolutions of stride 2; no normalisation behind the first (P)."""
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(channels):
        layers += [conv(i, o, 4, 2, 1), *([norm(o)] if layers else []), act(0.2)]
    return nn.Sequential(*layers)


def _doubling(channels: Sequence[int], conv: Made, norm: Made, act: Made) -> nn.Sequential:
    """Normalisation, activation and 4 x 4 transposed convolution of stride 2, in turn (P)."""
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(channels):
        layers += [norm(i), act(), conv(i, o, 4, 2, 1)]
    return nn.Sequential(*layers)


class _Discriminator(nn.Module):
    """Body of halving convolutions, then one real linear layer on all that is left."""

    body: nn.Sequential
    head: nn.Sequential
    classes: int
    fake: bool

    def _finish(self, classes: int, fake: bool, flat: int, dropout: float) -> None:
        if classes < 2:
            raise FoveateError(f"a classifier needs at least 2 classes, got {classes}")
        self.classes, self.fake = classes, fake
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(flat, classes + int(fake)))

    def features(self, x: Tensor) -> Tensor:
        """Last convolutional map ``(B, C, n', n')``, complex in the complex net."""
        return cast(Tensor, self.body(x))

    def logits(self, features: Tensor) -> Tensor:
        """Real outputs of what `features` gave; real and imaginary part are joined only here."""
        if features.is_complex():
            features = torch.cat([features.real, features.imag], 1)
        return cast(Tensor, self.head(features.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Real outputs of patches `x`."""
        return self.logits(self.features(x))


class ComplexDiscriminator(_Discriminator):
    """Complex patches to K+1 real outputs (K with ``fake=False``: the CV-CNN, "CC").

    Parameters
    ----------
    classes
        K >= 2.
    patch
        Side n of a patch; divisible by ``2 ** len(widths)``.
    widths
        Complex channels of the 4 x 4 convolutions of stride 2 (D). No CBN behind the first (P),
        whose input has purely real channels.
    dropout
        In front of the last layer (D).
    window
        Batches that `ComplexBatchNorm2d` averages over.
    fake
        Whether there is an output for generated patches.

    Notes
    -----
    ``forward``: ``(B, channels, n, n)`` complex64 -> ``(B, K+1)`` float32.
    """

    def __init__(
        self,
        classes: int,
        patch: int = 32,
        widths: Sequence[int] = (32, 64, 128),
        dropout: float = 0.5,
        window: int = 10,
        fake: bool = True,
        channels: int = 6,
    ) -> None:
        super().__init__()
        side = _side(patch, len(widths), "ComplexDiscriminator")
        norm = functools.partial(ComplexBatchNorm2d, window=window)
        self.body = _halving((channels, *widths), ComplexConv2d, norm, CLeakyReLU)
        self._finish(classes, fake, 2 * widths[-1] * side**2, dropout)


class ComplexGenerator(nn.Module):
    """Complex noise to complex patches.

    Parameters
    ----------
    patch
        Side n; divisible by ``2 ** len(widths)``.
    noise
        Complex numbers that one patch is made from (D: 64).
    widths
        Channels in front of each 4 x 4 transposed convolution of stride 2, falling towards the
        full size (D).

    Notes
    -----
    ``forward``: ``(B, noise)`` complex64 -> ``(B, channels, n, n)`` complex64, both parts of every
    channel generated (those of T11, T22, T33 too) and in (-1, 1).
    """

    def __init__(
        self,
        patch: int = 32,
        noise: int = 64,
        widths: Sequence[int] = (128, 64, 32),
        window: int = 10,
        channels: int = 6,
    ) -> None:
        super().__init__()
        side = _side(patch, len(widths), "ComplexGenerator")
        self.noise_size, self.shape = noise, (widths[0], side, side)
        self.dense = ComplexLinear(noise, widths[0] * side**2)
        norm = functools.partial(ComplexBatchNorm2d, window=window)
        self.body = _doubling((*widths, channels), ComplexConvTranspose2d, norm, CReLU)

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """``(count, noise)``: both parts N(0, 1/2), so that E|z|^2 = 1 (D)."""
        parts = torch.randn(count, self.noise_size, 2, generator=generator) / math.sqrt(2)
        return torch.view_as_complex(parts)

    def forward(self, z: Tensor) -> Tensor:
        """Patches of noise `z`."""
        return ctanh(cast(Tensor, self.body(self.dense(z).unflatten(1, self.shape))))


def _wider(widths: Sequence[int]) -> list[int]:
    """A complex layer from a to b channels has 2 a b real weights."""
    return [round(math.sqrt(2) * width) for width in widths]


class RealDiscriminator(_Discriminator):
    """`ComplexDiscriminator` in real numbers: ``(B, 9, n, n)`` float32 (K outputs: "RC").

    Layers are sqrt(2) wider than `widths`, which are those of the complex net (D); ordinary batch
    normalisation.
    """

    def __init__(
        self,
        classes: int,
        patch: int = 32,
        widths: Sequence[int] = (32, 64, 128),
        dropout: float = 0.5,
        fake: bool = True,
        channels: int = 9,
    ) -> None:
        super().__init__()
        side = _side(patch, len(widths), "RealDiscriminator")
        wider = _wider(widths)
        self.body = _halving((channels, *wider), nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU)
        self._finish(classes, fake, wider[-1] * side**2, dropout)


class RealGenerator(nn.Module):
    """`ComplexGenerator` in real numbers: noise ``(B, noise)`` to ``(B, 9, n, n)``, in (-1, 1)."""

    def __init__(
        self,
        patch: int = 32,
        noise: int = 64,
        widths: Sequence[int] = (128, 64, 32),
        channels: int = 9,
    ) -> None:
        super().__init__()
        side = _side(patch, len(widths), "RealGenerator")
        wider = _wider(widths)
        self.noise_size, self.shape = round(math.sqrt(2) * noise), (wider[0], side, side)
        self.dense = nn.Linear(self.noise_size, wider[0] * side**2)
        self.body = _doubling((*wider, channels), nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU)

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """``(count, noise)`` of N(0, 1)."""
        return torch.randn(count, self.noise_size, generator=generator)

    def forward(self, z: Tensor) -> Tensor:
        """Patches of noise `z`."""
        return torch.tanh(cast(Tensor, self.body(self.dense(z).unflatten(1, self.shape))))


class SemiSupervisedGANLoss:
    """The losses of a discriminator with K classes and one output for "generated" (eqs. 10-14).

    Parameters
    ----------
    classes
        K; outputs have K+1 columns, the last is "generated".
    fixed_fake_logit
        Take the last output as 0: softmax has one degree of freedom too many (R: Salimans et al.).
    """

    def __init__(self, classes: int, fixed_fake_logit: bool = False) -> None:
        if classes < 2:
            raise FoveateError(f"the loss needs at least 2 classes, got {classes}")
        self.classes, self.fixed_fake_logit = classes, fixed_fake_logit

    def real_logit(self, outputs: Tensor) -> Tensor:
        """``s - l_{K+1}``, the logit of being real, ``(B,)``."""
        if outputs.dim() != 2 or outputs.shape[1] != self.classes + 1:
            raise FoveateError(
                f"expected outputs of shape (B, {self.classes + 1}), {self.classes} classes and "
                f"'generated', got {tuple(outputs.shape)}"
            )
        s = torch.logsumexp(outputs[:, : self.classes], 1)
        return s if self.fixed_fake_logit else s - outputs[:, self.classes]

    def labelled(self, outputs: Tensor, target: Tensor) -> Tensor:
        """L_lab: cross-entropy over the first K outputs alone; `target` 0 .. K-1."""
        self.real_logit(outputs)  # checks the shape
        return F.cross_entropy(outputs[:, : self.classes], target)

    def unlabelled(self, outputs: Tensor) -> Tensor:
        """L_unl of real patches; of generated ones it is G's non-saturating loss."""
        return F.softplus(-self.real_logit(outputs)).mean()

    def generated(self, outputs: Tensor) -> Tensor:
        """L_gen of generated patches."""
        return F.softplus(self.real_logit(outputs)).mean()

    def discriminator(
        self, labelled: Tensor, target: Tensor, unlabelled: Tensor | None, generated: Tensor
    ) -> Tensor:
        """L_D = L_lab + L_unl + L_gen; labelled patches enter L_unl as well (D)."""
        real = labelled if unlabelled is None else torch.cat([labelled, unlabelled])
        return self.labelled(labelled, target) + self.unlabelled(real) + self.generated(generated)


def feature_distance(real: Tensor, generated: Tensor) -> Tensor:
    """``|| E f(x) - E f(G(z)) ||^2``, the sum over features of the squared difference of means."""
    difference = real.mean(0) - generated.mean(0)
    if difference.is_complex():
        difference = torch.view_as_real(difference)
    return difference.square().sum()


# ------------------------------------------------------------------------------ training


def _checked_labels(patches: Tensor, target: Tensor, classes: int) -> None:
    if patches.dim() != 4 or len(patches) != len(target) or not len(target):
        raise FoveateError(
            "expected labelled patches (N, C, n, n) and N labels, N at least 1; got "
            f"{tuple(patches.shape)} and {tuple(target.shape)}"
        )
    if target.is_floating_point() or int(target.min()) < 0 or int(target.max()) >= classes:
        raise FoveateError(f"labels must be integers from 0 to {classes - 1}")
    if int(target.min()) == int(target.max()):
        raise FoveateError("all labelled patches are of one class; give patches of two at least")


def _finite(loss: Tensor, step: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise FoveateError(
            f"the loss became {value} at step {step}; check the input's scaling or lower lr"
        )
    return value


def fit_classifier(
    net: ComplexDiscriminator | RealDiscriminator,
    labelled: Tensor,
    target: Tensor,
    *,
    steps: int,
    batch: int = 64,
    lr: float = 5e-4,
    betas: tuple[float, float] = (0.5, 0.999),
    seed: int = 0,
    progress: Progress | None = None,
) -> list[float]:
    """Train a K-output net on labelled patches alone, in place (the RC and CC baselines).

    Parameters
    ----------
    labelled, target
        Patches ``(N, C, n, n)`` and classes ``(N,)`` 0 .. K-1.
    seed
        Draws the same labelled batches as in `fit_ssgan`, and fixes dropout.

    Returns
    -------
    Cross-entropy of each step. The net is left in eval mode with its last weights.
    """
    _checked_labels(labelled, target, net.classes)
    device = next(net.parameters()).device
    optimizer = torch.optim.Adam(net.parameters(), lr, betas)
    draw = torch.Generator().manual_seed(seed)
    history = []
    net.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in range(steps):
            index = torch.randint(len(target), (batch,), generator=draw)
            outputs = net(labelled[index].to(device))
            loss = F.cross_entropy(outputs, target[index].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            history.append(_finite(loss, step))
            if progress is not None:
                progress(step + 1, steps)
    net.eval()
    return history


def fit_ssgan(
    discriminator: ComplexDiscriminator | RealDiscriminator,
    generator: ComplexGenerator | RealGenerator,
    labelled: Tensor,
    target: Tensor,
    unlabelled: Tensor | None,
    *,
    steps: int,
    batch: int = 64,
    lr: float = 5e-4,
    betas: tuple[float, float] = (0.5, 0.999),
    feature_matching: float = 1.0,
    fixed_fake_logit: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Train both nets in turn, in place: one step of D, one of G (P).

    A step of D puts labelled, unlabelled and generated patches through it *together*, so that they
    share the statistics of its normalisation; a step of G leaves these as they are (D in eval
    mode), so that generated patches alone do not shift them (both D).

    Parameters
    ----------
    labelled, target
        Patches ``(N, C, n, n)`` (complex64 for complex nets) and classes ``(N,)`` 0 .. K-1; drawn
        with replacement.
    unlabelled
        Real patches ``(M, C, n, n)``; None: the ablation in which labelled patches are all.
    batch
        Patches of each kind in a step (D: 64).
    lr, betas
        Of Adam for both nets (P: 5e-4, 0.5, 0.999).
    feature_matching
        Weight of the distance of mean features in G's loss; 0: none.
    seed
        Fixes batches, noise and dropout; labelled batches are those of `fit_classifier`.

    Returns
    -------
    ``labelled``, ``unlabelled``, ``generated`` (parts of L_D) and ``generator`` of each step. Both
    nets are left in eval mode with their last weights.

    Raises
    ------
    FoveateError
        Labels and patches do not fit, or a loss is not finite.
    """
    if not discriminator.fake:
        raise FoveateError("fit_ssgan needs a discriminator with an output for generated patches")
    _checked_labels(labelled, target, discriminator.classes)
    shape = labelled.shape[1:]
    if unlabelled is not None and (not len(unlabelled) or unlabelled.shape[1:] != shape):
        raise FoveateError(
            f"expected unlabelled patches (M, {', '.join(map(str, shape))}), M at least 1, got "
            f"{tuple(unlabelled.shape)}; give None for none"
        )
    device = next(discriminator.parameters()).device
    losses = SemiSupervisedGANLoss(discriminator.classes, fixed_fake_logit)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr, betas)
    g_optimizer = torch.optim.Adam(generator.parameters(), lr, betas)
    draw = torch.Generator().manual_seed(seed)
    draw_unlabelled = torch.Generator().manual_seed(seed + 1_000_003)
    draw_noise = torch.Generator().manual_seed(seed + 2_000_003)
    names = ("labelled", "unlabelled", "generated", "generator")
    history: dict[str, list[float]] = {name: [] for name in names}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in range(steps):
            index = torch.randint(len(target), (batch,), generator=draw)
            x, y = labelled[index].to(device), target[index].to(device)
            real = x
            if unlabelled is not None:
                other = torch.randint(len(unlabelled), (batch,), generator=draw_unlabelled)
                real = torch.cat([x, unlabelled[other].to(device)])

            discriminator.train()
            generator.train()
            fake = generator(generator.noise(batch, draw_noise).to(device))
            outputs = discriminator(torch.cat([real, fake.detach()]))
            parts = (
                losses.labelled(outputs[:batch], y),
                losses.unlabelled(outputs[: len(real)]),
                losses.generated(outputs[len(real) :]),
            )
            d_optimizer.zero_grad(set_to_none=True)
            torch.stack(parts).sum().backward()  # type: ignore[no-untyped-call]
            d_optimizer.step()

            discriminator.eval().requires_grad_(False)
            features = discriminator.features(fake)
            g_loss = losses.unlabelled(discriminator.logits(features))
            if feature_matching:
                wanted = discriminator.features(real if unlabelled is None else real[batch:])
                g_loss = g_loss + feature_matching * feature_distance(wanted, features)
            g_optimizer.zero_grad(set_to_none=True)
            g_loss.backward()  # type: ignore[no-untyped-call]
            g_optimizer.step()
            discriminator.requires_grad_(True)

            for name, part in zip(history, (*parts, g_loss), strict=True):
                history[name].append(_finite(part, step))
            if progress is not None:
                progress(step + 1, steps)
    discriminator.eval()
    generator.eval()
    return history
