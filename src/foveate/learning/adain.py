"""Distillation by adaptive instance normalisation: the teacher judges the student's statistics.

Yang, Martinez, Bulat, Tzimiropoulos, "Knowledge distillation via adaptive instance normalization",
2020 (arXiv 2003.04289). Mean and standard deviation of a channel over space say much of what a
network has seen. To match them by a squared loss treats all channels alike. Here the *student's*
statistics are written into the *teacher's* features, and the teacher goes on from there:

    F_hat = sigma(r(F_S)) * (F_T - mu(F_T)) / sigma(F_T) + mu(r(F_S))
    L_ada = sum_l d( tail_l(F_hat_l), tail_l(F_T_l) ),      T = tail_l o head_l

``r`` is a `Connector` where the channels differ. The teacher is frozen; gradients pass through it
to F_hat and reach the student through mu and sigma alone. With G = dL/dF_hat and N the normalised
teacher feature,

    dL/dmu_c = sum_hw G_chw,   dL/dsigma_c = sum_hw G_chw N_chw

so a channel weighs as much as the teacher's answer depends on it. Places l are independent: F_hat
of one is not passed on to the next.

Where the tail is only a global average and a linear layer, sigma has no effect at all (the mean of
F_hat *is* mu): put at least one non-linear layer behind, as the last but one stage has.

Certainty: AdaIN towards the teacher and "evaluate via a loss" are published (abstract); connectors
and the squared difference of logits are those of the authors' successor SRRL (ICLR 2021); places,
weights and the independence of places are our decisions.

>>> distiller = AdaINDistiller(teacher, student, ("layer1", "layer2"), x)  # doctest: +SKIP
>>> optimizer = torch.optim.SGD(distiller.trained_parameters(), 0.05)  # doctest: +SKIP
>>> distiller(x, y)["loss"].backward()  # doctest: +SKIP
>>> student = distiller.student  # the network as it was, nothing added  # doctest: +SKIP
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.learning.distillation import (
    Connector,
    FrozenTeacher,
    LogitKD,
    StatLoss,
    channel_stats,
)
from foveate.nn.staged import HookedModel, StagedModel, in_eval_mode, layer_outputs

__all__ = ["AdaINDistiller", "adain", "channel_sensitivity"]

Judge = Literal["logits_mse", "logits_kl", "feature_l2", "ce"]
Statistics = Literal["both", "mean"]


def adain(content: Tensor, mu: Tensor, sigma: Tensor, eps: float = 1e-5) -> Tensor:
    """Give the channels of `content` another mean and standard deviation.

    ``sigma * (content - mu(content)) / sigma(content) + mu`` (Huang & Belongie, ICCV 2017).

    Parameters
    ----------
    content
        ``(B, C, H, W)``.
    mu, sigma
        ``(B, C, 1, 1)`` or what broadcasts to it, as `channel_stats` gives them: the *style*.
    eps
        Added to the variance of `content`.

    Returns
    -------
    Tensor
        ``(B, C, H, W)``; its statistics are mu and sigma (but for eps). Gradients pass to all three
        arguments; detach what is not to learn.
    """
    own_mu, own_sigma = channel_stats(content, eps)
    for name, value in (("mu", mu), ("sigma", sigma)):
        fits = value.ndim == 4 and all(
            have in (1, want) for have, want in zip(value.shape, own_mu.shape, strict=True)
        )
        if not fits:
            raise FoveateError(
                f"adain expects {name} of {tuple(own_mu.shape)} for a content of "
                f"{tuple(content.shape)}, got {tuple(value.shape)}"
            )
    return (sigma * ((content - own_mu) / own_sigma) + mu).to(content.dtype)


class AdaINDistiller(nn.Module):
    """Student, frozen teacher and connectors; its forward gives the losses of a step.

    Parameters
    ----------
    teacher
        A `StagedModel` (cheaper), a `HookedModel`, or any network, which then is hooked. It is
        frozen, not copied.
    student
        Any network. It is not changed: its features are read by hooks.
    layers
        Places of insertion: names of stages (modules) of the teacher, each the student's path of
        the same name, or ``{teacher's name: student's path}``. Features there are
        ``(B, C, H, W)``; neither C nor H, W need agree.
    example
        A few inputs ``(B, ...)``, to learn the channels from; ordinary ones, of the data. The
        networks run on them in eval mode.
    judge
        How the teacher's answer to F_hat is compared: ``logits_mse`` with its own logits, mean over
        batch and classes; ``logits_kl`` likewise by `LogitKD`; ``feature_l2`` with its own
        feature at `judge_layer`, mean over everything; ``ce`` with the label.
    beta, alpha_stat
        Weights of L_ada and of the plain `StatLoss` on the same features; 0: not computed. A
        fair start for beta is where ``beta * ada`` is 0.5 to 2 times the cross-entropy.
    statistics
        ``both``; ``mean``: sigma stays the teacher's, and `StatLoss` compares means only.
    connectors
        ``auto``: where channels differ; ``always``.
    temperature
        Of ``logits_kl``.
    judge_layer
        Name of the teacher's stage that ``feature_l2`` compares; behind all `layers`.
    eps
        Under the roots of the deviations.

    Attributes
    ----------
    student
        The network that was given: what is kept after training.
    connectors
        One module per layer, `nn.Identity` where none is needed. Not part of the student.

    Raises
    ------
    FoveateError
        A setting is out of its range, a name is unknown, or a feature is no ``(B, C, H, W)``.

    Warns
    -----
    UserWarning
        The answer of the teacher does not depend on sigma at a layer (its tail is linear in the
        means, as global average and classifier are): only means are transferred there.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        layers: Sequence[str] | Mapping[str, str],
        example: Tensor,
        *,
        judge: Judge = "logits_mse",
        beta: float = 1.0,
        alpha_stat: float = 0.0,
        statistics: Statistics = "both",
        connectors: Literal["auto", "always"] = "auto",
        temperature: float = 4.0,
        judge_layer: str | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        pairs = layers if isinstance(layers, Mapping) else {name: name for name in layers}
        if isinstance(layers, str) or not pairs:
            raise FoveateError(
                "AdaINDistiller expects the names of at least one layer, or a dict of teacher's "
                f"and student's names, got {layers!r}"
            )
        if judge not in ("logits_mse", "logits_kl", "feature_l2", "ce"):
            raise FoveateError(
                "AdaINDistiller expects judge 'logits_mse', 'logits_kl', 'feature_l2' or 'ce', "
                f"got {judge!r}"
            )
        if statistics not in ("both", "mean") or connectors not in ("auto", "always"):
            raise FoveateError(
                "AdaINDistiller expects statistics 'both' or 'mean' and connectors 'auto' or "
                f"'always', got {statistics!r} and {connectors!r}"
            )
        if not (0 <= beta < math.inf and 0 <= alpha_stat < math.inf and 0 < eps < math.inf):
            raise FoveateError(
                "AdaINDistiller expects weights beta and alpha_stat of at least 0 and eps > 0, all "
                f"finite, got {beta}, {alpha_stat} and {eps}"
            )
        if (judge == "feature_l2") != (judge_layer is not None) or judge_layer in pairs:
            raise FoveateError(
                "judge_layer goes with judge='feature_l2' and is a later stage than all layers, "
                f"got judge={judge!r}, {judge_layer=} and the layers {', '.join(pairs)}"
            )
        if not {id(p) for p in teacher.parameters()}.isdisjoint(map(id, student.parameters())):
            raise FoveateError(
                "student and teacher share weights, and those of the teacher are frozen; give "
                "copy.deepcopy(...) of one of them"
            )
        if not isinstance(teacher, (StagedModel, HookedModel)):
            teacher = HookedModel(teacher)
        self.teacher = FrozenTeacher(teacher)
        self.student = student
        self.layers = dict(pairs)
        self.judge, self.judge_layer = judge, judge_layer
        self.beta, self.alpha_stat, self.statistics, self.eps = beta, alpha_stat, statistics, eps
        self._kd = LogitKD(temperature)
        self._stat = StatLoss(sigma=statistics == "both", eps=eps)
        with torch.no_grad(), in_eval_mode(student):
            _, theirs, _ = self._look(example)
            _, ours = layer_outputs(student, example, list(self.layers.values()))
        if not all(bool(feature.isfinite().all()) for feature in (*ours, *theirs)):
            raise FoveateError(
                "features of the example are not finite; give ordinary inputs and networks whose "
                "weights are finite"
            )
        self.connectors = nn.ModuleList()
        for (name, path), f_s, f_t in zip(self.layers.items(), ours, theirs, strict=True):
            if f_s.ndim != 4 or f_t.ndim != 4:
                raise FoveateError(
                    f"AdaINDistiller expects features (B, C, H, W), got {tuple(f_t.shape)} from "
                    f"the teacher's {name!r} and {tuple(f_s.shape)} from the student's {path!r}"
                )
            c_s, c_t = f_s.shape[1], f_t.shape[1]
            if connectors == "always" or c_s != c_t:
                signed = bool((f_t < 0).any())
                connector: nn.Module = Connector(c_s, c_t, relu=not signed)
                self.connectors.append(connector.to(f_s))  # its device and type
            else:
                self.connectors.append(nn.Identity())
            if judge_layer is not None:
                mu, sigma = channel_stats(f_t, eps)
                if self._effects(f_t, name, example, (mu + sigma, 2 * sigma)) == [0.0]:
                    raise FoveateError(
                        f"the feature at judge_layer {judge_layer!r} does not depend on the layer "
                        f"{name!r}; name one that the teacher runs later"
                    )
            if beta > 0 and statistics == "both" and not self._sigma_matters(f_t, name, example):
                warnings.warn(
                    f"the teacher's answer does not depend on sigma at {name!r}, as behind a last "
                    "stage that only a global average and a linear layer follow: only means are "
                    "transferred there; name an earlier stage to transfer both",
                    stacklevel=2,
                )

    @property
    def _staged(self) -> StagedModel | HookedModel:
        return cast("StagedModel | HookedModel", self.teacher.network)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters of student and connectors, for one optimiser."""
        return [*self.student.parameters(), *self.connectors.parameters()]

    def _look(self, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """The teacher's logits, its features at the layers, and what its answers are held to."""
        extra = [] if self.judge_layer is None else [self.judge_layer]
        logits, features = self._staged.outputs(x, [*self.layers, *extra])
        return logits, features[: len(self.layers)], features[-1] if extra else logits

    def _answer(self, feature: Tensor, name: str, x: Tensor) -> Tensor:
        """What the teacher says when the output of its stage `name` is `feature`."""
        if self.judge_layer is None:
            answer: Tensor = self._staged.tail(feature, name, x)[0]
            return answer
        return self._staged.tail(feature, name, x, [self.judge_layer])[1][0]

    @torch.no_grad()
    def _sigma_matters(self, f_t: Tensor, name: str, x: Tensor) -> bool:
        """Whether twice the deviation changes the answer, beside what a shift of the mean does."""
        mu, sigma = channel_stats(f_t, self.eps)
        wider, shifted = self._effects(f_t, name, x, (mu, 2 * sigma), (mu + sigma, sigma))
        return wider > 1e-3 * shifted

    @torch.no_grad()
    def _effects(
        self, f_t: Tensor, name: str, x: Tensor, *styles: tuple[Tensor, Tensor]
    ) -> list[float]:
        """How far the answer moves, at most, when the feature is given these statistics."""
        usual = self._answer(f_t, name, x)
        answers = (self._answer(adain(f_t, *style, self.eps), name, x) for style in styles)
        return [float((answer - usual).abs().max()) for answer in answers]

    def _judged(self, answer: Tensor, held_to: Tensor, y: Tensor) -> Tensor:
        if self.judge == "logits_kl":
            return self._kd(answer, held_to)  # type: ignore[no-any-return]
        if self.judge == "ce":
            return F.cross_entropy(answer.float(), y)
        return F.mse_loss(answer, held_to)

    def intervention(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """F_hat: the teacher's feature with the statistics of the student's (connected) one.

        Both ``(B, C, ...)``; the teacher's is the content and is detached, the student's the style.
        """
        f_t = f_t.detach()
        mu, sigma = channel_stats(f_s, self.eps)
        if self.statistics == "mean":
            sigma = channel_stats(f_t, self.eps)[1]
        return adain(f_t, mu, sigma, self.eps)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Losses of one batch.

        Parameters
        ----------
        x
            Inputs; student and teacher see the same, augmented alike.
        y
            Labels ``(B,)`` int64 (or per place, for dense logits).

        Returns
        -------
        dict
            ``loss`` = ce + beta ada + alpha_stat stat, to be minimised; ``ce``, ``ada``,
            ``stat`` unweighted (0 where not computed); ``logits`` and ``teacher_logits``.
        """
        if len(x) != len(y) or not len(x):
            raise FoveateError(
                "AdaINDistiller expects as many labels as inputs and at least one, got "
                f"{len(x)} inputs and {len(y)} labels"
            )
        if any(module.training for module in self._staged.modules()):
            self._staged.eval()  # somebody has called train() on the network itself
        with torch.no_grad():
            taught, theirs, held_to = self._look(x)
        logits, ours = layer_outputs(self.student, x, list(self.layers.values()))
        matched = [connect(f_s) for connect, f_s in zip(self.connectors, ours, strict=True)]
        ce = F.cross_entropy(logits.float(), y)
        ada = stat = torch.zeros_like(ce)
        if self.beta:
            # Autograd is on here: the frozen teacher passes gradients to F_hat.
            judged = [
                self._judged(self._answer(self.intervention(f_s, f_t), name, x), held_to, y)
                for name, f_s, f_t in zip(self.layers, matched, theirs, strict=True)
            ]
            ada = torch.stack(judged).sum()
        if self.alpha_stat:
            stat = self._stat(matched, theirs)
        loss = ce + self.beta * ada + self.alpha_stat * stat
        return {
            "loss": loss,
            "ce": ce,
            "ada": ada,
            "stat": stat,
            "logits": logits,
            "teacher_logits": taught,
        }


def channel_sensitivity(
    teacher: StagedModel | HookedModel, batches: Sequence[tuple[Tensor, Tensor]], layer: str
) -> dict[str, list[float]]:
    """Which channels does L_ada hold on to, and which does the teacher need?

    Where student and teacher agree the gradient of L_ada is 0, so the mean of every channel is
    shifted, one channel at a time, by the standard deviation of its means over the samples.

    Parameters
    ----------
    teacher
        Runs in eval mode; its own mode is put back.
    batches
        Inputs ``(B, ...)`` and labels ``(B,)``, at least two samples in sum.
    layer
        Name of the stage.

    Returns
    -------
    dict
        Per channel: ``shift``, its size; ``ada``, L_ada of it (squared difference of logits);
        ``stat``, what `StatLoss` says of it; ``drop``, by how many percent points fewer samples
        are called by their label (negative: more).
    """
    count = sum(len(y) for _, y in batches)
    if count < 2:
        raise FoveateError(f"channel_sensitivity expects at least two samples, got {count}")
    with torch.no_grad(), in_eval_mode(teacher):
        return _sensitivity(teacher, batches, layer, count)


def _sensitivity(
    teacher: StagedModel | HookedModel,
    batches: Sequence[tuple[Tensor, Tensor]],
    layer: str,
    count: int,
) -> dict[str, list[float]]:
    seen = [(x, y, *teacher.outputs(x, [layer])) for x, y in batches]
    shifts = torch.cat([channel_stats(f)[0] for *_, (f,) in seen]).std(0)
    usual = sum(int((z.argmax(1) == y).sum()) for _, y, z, _ in seen)
    found: dict[str, list[float]] = {"shift": [], "ada": [], "stat": [], "drop": []}
    for channel, shift in enumerate(shifts.flatten().tolist()):
        moved = torch.zeros_like(shifts)
        moved[channel] = shift
        squares, right = 0.0, 0
        for x, y, z, (f,) in seen:
            mu, sigma = channel_stats(f)
            answer, _ = teacher.tail(adain(f, mu + moved, sigma), layer, x)
            squares += F.mse_loss(answer, z).item() * len(y)
            right += int((answer.argmax(1) == y).sum())
        found["shift"].append(shift)
        found["ada"].append(squares / count)
        found["stat"].append(shift**2 / len(shifts))
        found["drop"].append(100 * (usual - right) / count)
    return found
