"""signADAM and signADAM++: steps that only confident gradients take part in.

A *confidence function* F turns a gradient g into a multiplier that is not negative, and what is
averaged is F(g) g (algorithm 1 of the paper; delta is the learning rate and lives inside F):

    m_k = beta m_{k-1} + F(g_k) g_k,     theta_k = theta_{k-1} - m_k

    SIGN-SGD     F = delta / |g|, beta = 0
    signADAM     F = delta / |g|
    signADAM++   F = 0 where |g| <= alpha, else delta / |g|

so that signADAM++ (algorithm 3) codes every coordinate of the gradient in {-1, 0, +1}, most of
them 0, and averages the codes:

    s_k = sign(g_k) where |g_k| > alpha, else 0
    m_k = beta m_{k-1} + (1 - beta) s_k,     theta_k = theta_{k-1} - delta m_k

No coordinate moves by more than delta in a step (|m| <= 1, lemma 1), and there is one number of
state for each weight where Adam has two. SIGNUM is the other way round: the sign of the average.
A fixed alpha makes training stop late, when hardly any gradient is above it; the adaptive form
(section 6.3) takes a share of the smoothed standard deviation of each tensor's gradient:

    u_t = c1 u_{t-1} + (1 - c1) std(g_t),     alpha_t = c2 u_t / (1 - c1^t)

What is sparse is s, not the step: m forgets a code within about 1 / (1 - beta) steps, so that a
coordinate moves on for a while after its gradient fell below alpha.

alpha is compared with the gradient as it is found: of the *mean* of the losses, after clipping. Who
sums losses, accumulates n batches or scales the loss multiplies alpha by the same factor, or undoes
it first (``GradScaler.unscale_``). The theorem of the paper is about alpha = 0: its proof uses the
sign everywhere, so nothing is proved of the zeros.

Paper: Wang et al., "signADAM: Learning Confidences for Deep Neural Networks", ICDM Workshops 2019,
pp. 186-195 (arXiv 1907.09008).

>>> net = torch.nn.Linear(3, 1)
>>> optimizer = SignAdamPP(net.named_parameters(), lr=1e-3, alpha=1e-4)
>>> net(torch.ones(1, 3)).mean().backward()
>>> optimizer.step()
>>> optimizer.sparsity()
{'weight': 0.0, 'bias': 0.0}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.errors import FoveateError

__all__ = [
    "ConfidenceOptimizer",
    "SignAdam",
    "SignAdamPP",
    "SignSGD",
    "Signum",
    "sign_confidence",
    "threshold_confidence",
]

Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
Group = dict[str, Any]


def sign_confidence(g: Tensor) -> Tensor:
    """F = 1 / abs(g), so that F g is the sign: the confidence of SIGN-SGD and signADAM (table 1).

    0 where g is 0, or so small (subnormal) that it has no reciprocal; float32 of half precision.
    """
    return threshold_confidence(g, 0.0)


def threshold_confidence(g: Tensor, alpha: float) -> Tensor:
    """F = 0 where g is in [-alpha, alpha], else 1 / abs(g): the confidence of signADAM++ (table 1).

    Raises
    ------
    FoveateError
        alpha is negative or no number, or g holds no floats.
    """
    _number("alpha", alpha, infinite=True)
    if not g.is_floating_point():
        raise FoveateError(f"confidence is that of gradients in real floats, got {g.dtype}")
    size = _wide(g).abs()
    trusted = (size > alpha) & (size >= torch.finfo(size.dtype).tiny)
    return torch.where(trusted, 1 / size, torch.zeros_like(size))


def _wide(g: Tensor) -> Tensor:
    """Half precision as float32: 5e-4 is no number of bfloat16, and 1/g overflows in float16."""
    return g.float() if g.dtype in (torch.float16, torch.bfloat16) else g


def _number(name: str, value: object, below: float = math.inf, infinite: bool = False) -> None:
    """Refuse what is no number from 0 to `below`, excluded; infinity only if `infinite`."""
    x = float(value) if isinstance(value, Real) else math.nan
    if not (0 <= x < below or (infinite and x == math.inf)):
        most = "" if below == math.inf else f" and below {below:g}"
        finite = "" if infinite else "finite "
        raise FoveateError(f"{name} is {value!r}; expected a {finite}number of at least 0{most}")


def _pair(name: str, value: object) -> tuple[object, object]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise FoveateError(f"{name} is {value!r}; expected two numbers")
    return value[0], value[1]


class _SignOptimizer(torch.optim.Optimizer):
    """Closure, checks and the count of zeros; a subclass adds `_update`."""

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        listed: list[Any] = [] if isinstance(params, Tensor) else list(params)
        if not listed:
            raise FoveateError(
                f"{type(self).__name__} got no parameters; give a list that is not empty, such as "
                "list(model.parameters())"
            )
        self._nonzero: dict[Tensor, Tensor] = {}
        super().__init__(listed, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._nonzero = {}

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its own hyper-parameters are checked like the others."""
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def _check(self, group: Group) -> None:
        for name, below in (("lr", math.inf), ("weight_decay", math.inf), ("beta", 1.0)):
            if name in group:
                _number(name, group[name], below)

    def _update(self, group: Group, params: list[Tensor]) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def step(  # type: ignore[override]  # one signature in place of torch's two overloads
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Move the parameters that have a gradient; those without (frozen) stay, momentum or not.

        Parameters
        ----------
        closure
            Computes the loss anew, with gradients, and returns it.

        Raises
        ------
        FoveateError
            A gradient is sparse or complex; then no parameter was moved.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        jobs = [
            (group, [p for p in group["params"] if p.grad is not None and p.numel()])
            for group in self.param_groups
        ]
        for p in (p for _, params in jobs for p in params):
            if p.grad.layout != torch.strided or p.is_complex():
                raise FoveateError(
                    f"{type(self).__name__} got a {'complex' if p.is_complex() else 'sparse'} "
                    f"gradient for the parameter of shape {tuple(p.shape)}; expected a dense real "
                    "one (of an embedding: sparse=False)"
                )
        self._nonzero.clear()
        for group, params in jobs:
            if params:
                self._update(group, params)
        return loss

    def _count(self, p: Tensor, s: Tensor) -> None:
        s = _wide(s).reshape(-1)
        # Squares of -1, 0, 1: count_nonzero branches and takes ten times as long. Not read yet: it
        # stays on the device until somebody asks.
        self._nonzero[p] = torch.dot(s, s)

    def sparsity(self) -> dict[str | int, float]:
        """Share of zeros in the code s of the last step, of every parameter that had a gradient.

        Keys are names where the optimizer was given ``model.named_parameters()``, else positions,
        counted over all groups. It is s that is sparse, never the step.
        """
        found: dict[str | int, float] = {}
        index = 0
        for group in self.param_groups:
            names = group.get("param_names") or range(index, index + len(group["params"]))
            index += len(group["params"])
            for name, p in zip(names, group["params"], strict=True):
                if p in self._nonzero:
                    found[name] = (p.numel() - float(self._nonzero[p])) / p.numel()
        return found

    def total_sparsity(self) -> float:
        """Share of zeros in s over all coordinates together; NaN before the first step."""
        total = sum(p.numel() for p in self._nonzero)
        return (total - sum(map(float, self._nonzero.values()))) / total if total else math.nan

    def _buffer(self, p: Tensor, name: str) -> Tensor:
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        buffer: Tensor = state[name]
        return buffer


def _gradient(p: Tensor, l2: float = 0.0) -> Tensor:
    """Gradient with its L2 term, in float32 where it came in half precision."""
    assert p.grad is not None  # noqa: S101 - `step` has seen to it
    g = _wide(p.grad)
    return g.add(p, alpha=l2) if l2 else g


# ------------------------------------------------------------------------------ baselines


class SignSGD(_SignOptimizer):
    """theta <- theta - lr sign(g)   (Bernstein et al., ICML 2018); `weight_decay` is L2, in g."""

    def __init__(self, params: Params, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def _update(self, group: Group, params: list[Tensor]) -> None:
        for p in params:
            s = _gradient(p, group["weight_decay"]).sign()
            self._count(p, s)
            p.add_(s, alpha=-group["lr"])


class Signum(_SignOptimizer):
    """m <- beta m + (1 - beta) g,  theta <- theta - lr sign(m): the sign of the average.

    Bernstein et al., ICML 2018; `weight_decay` is L2, in g. A NaN in g stays in m: it never moves.
    """

    def __init__(
        self, params: Params, lr: float = 1e-3, beta: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})

    def _update(self, group: Group, params: list[Tensor]) -> None:
        for p in params:
            m = self._buffer(p, "momentum_buffer")
            m.lerp_(_gradient(p, group["weight_decay"]).to(m.dtype), 1 - group["beta"])
            s = m.sign()
            self._count(p, s)
            p.add_(s, alpha=-group["lr"])


class ConfidenceOptimizer(_SignOptimizer):
    """Algorithm 1 for any confidence: m <- beta m + lr F(g) g,  theta <- theta - m.

    Parameters
    ----------
    params
        Parameters, named parameters or groups.
    lr
        The delta in F. It enters m: a changed rate works its way in within 1 / (1 - beta) steps.
    confidence_fn
        Gradient -> multiplier F(g) / delta of the same shape, not negative; e.g.
        `sign_confidence`, or ``lambda g: threshold_confidence(g, 5e-4)``.
    beta
        In [0, 1), without a factor 1 - beta: with ``lr = delta (1 - beta)`` this is signADAM++.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        confidence_fn: Callable[[Tensor], Tensor],
        beta: float = 0.9,
    ) -> None:
        if not callable(confidence_fn):
            raise FoveateError(f"confidence_fn is {confidence_fn!r}; expected a function of g")
        self.confidence_fn = confidence_fn
        super().__init__(params, {"lr": lr, "beta": beta})

    def _update(self, group: Group, params: list[Tensor]) -> None:
        for p in params:
            g = _gradient(p)
            confidence = self.confidence_fn(g)
            if confidence.shape != g.shape:
                raise FoveateError(
                    f"confidence_fn made {tuple(confidence.shape)} of a gradient of shape "
                    f"{tuple(g.shape)}; expected the same shape"
                )
            code = torch.where(confidence == 0, 0.0, confidence * g)  # 0 * inf is NaN
            self._count(p, code.sign())
            m = self._buffer(p, "momentum_buffer")
            m.mul_(group["beta"]).add_(code, alpha=group["lr"])
            p.sub_(m)


class SignAdam(_SignOptimizer):
    """signADAM (algorithm 2): Adam on the signs of the gradient.

        s = sign(g),  m <- b1 m + (1 - b1) s,  v <- b2 v + (1 - b2) s^2
        theta <- theta - lr m / (sqrt(v) + eps)

    Parameters
    ----------
    params
        Parameters, named parameters or groups.
    lr
        Learning rate.
    betas
        b1 and b2 in [0, 1).
    eps
        Outside the root, above 0: a coordinate that never had a gradient has v = 0.
    weight_decay
        L2, added to g before its sign.
    bias_correction
        The paper has none, which lets the first steps exceed lr: where g is never 0,
        v = 1 - b2^k, and the step is 3.2 lr at k = 1, up to 6.6 lr near k = 12 and 1.26 lr at
        k = 1000. True divides m by 1 - b1^k and v by 1 - b2^k.

    Notes
    -----
    State: two tensors for each parameter, ``exp_avg`` and ``exp_avg_sq``, as Adam.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "bias_correction": bias_correction})

    def _check(self, group: Group) -> None:
        super()._check(group)
        for beta in _pair("betas", group["betas"]):
            _number("one of betas", beta, below=1)
        _number("eps", group["eps"])
        if group["eps"] == 0:
            raise FoveateError("eps is 0; expected a number above 0, such as 1e-8")

    def _update(self, group: Group, params: list[Tensor]) -> None:
        b1, b2 = group["betas"]
        for p in params:
            m, v = self._buffer(p, "exp_avg"), self._buffer(p, "exp_avg_sq")
            state = self.state[p]
            k = state["step"] = state.get("step", 0) + 1
            s = _gradient(p, group["weight_decay"]).sign().to(m.dtype)
            self._count(p, s)
            m.lerp_(s, 1 - b1)
            v.lerp_(s.square_(), 1 - b2)
            lr, root = group["lr"], 1.0
            if group["bias_correction"]:
                lr, root = lr / (1 - b1**k), math.sqrt(1 - b2**k)
            p.addcdiv_(m, v.sqrt().div_(root).add_(group["eps"]), value=-lr)


# ------------------------------------------------------------------------------ signADAM++


class SignAdamPP(_SignOptimizer):
    """signADAM++ (algorithm 3), its adaptive form (section 6.3) and the released code's.

    Parameters
    ----------
    params
        Parameters, named parameters or groups.
    lr
        Learning rate, and the most that a coordinate moves in a step (``variant="paper"``, no
        decoupled decay). The default is the run script's for CIFAR-100.
    beta
        Of the average of codes, in [0, 1).
    alpha
        Codes of gradients in [-alpha, alpha] are 0; from 0 (signs) to infinity (no step). The
        default is the released code's.
    adaptive
        Take alpha from the gradient instead, one for each tensor: ``c2`` times its standard
        deviation over the coordinates, smoothed over steps by ``c1``. A tensor of one element has
        alpha 0. The standard deviations of all tensors go to the host together, once a step.
    adapt_betas
        ``(c1, c2)``; c1 in [0, 1). Not published: with c2 = 0.5, about two thirds of the codes
        are 0.
    weight_decay
        L2 unless `decoupled`.
    decoupled
        False: ``weight_decay * theta`` is added to g *before* the threshold, so that a weight above
        alpha / weight_decay is pulled by decay alone. True: theta shrinks by the factor
        ``1 - lr weight_decay`` beside the step, as in AdamW; with `adaptive` this is
        "signADAM++-AW".
    variant
        ``paper``: the step is ``lr m``. ``release``: the step is ``lr s``, as in the code that the
        authors published, which is SIGN-SGD with a threshold: `beta` has no effect on its weights,
        and the buffer that it fills in vain is left out here.
    foreach
        Work on lists of tensors (``torch._foreach_*``), with the same numbers; None: where all
        parameters are on a GPU. On a CPU one tensor after the other stays in the cache.

    Notes
    -----
    State: one tensor for each parameter, ``momentum_buffer``; `adaptive` adds the two numbers
    ``step`` and ``spread`` (u). A NaN in the gradient has the code 0, and a tensor whose standard
    deviation is not finite keeps its last alpha.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 3e-4,
        beta: float = 0.9,
        alpha: float = 5e-4,
        adaptive: bool = False,
        adapt_betas: tuple[float, float] = (0.9, 0.5),
        weight_decay: float = 0.0,
        decoupled: bool = False,
        variant: Literal["paper", "release"] = "paper",
        foreach: bool | None = None,
    ) -> None:
        step = {"lr": lr, "beta": beta, "variant": variant, "foreach": foreach}
        threshold = {"alpha": alpha, "adaptive": adaptive, "adapt_betas": adapt_betas}
        decay = {"weight_decay": weight_decay, "decoupled": decoupled}
        super().__init__(params, {**step, **threshold, **decay})

    def _check(self, group: Group) -> None:
        super()._check(group)
        _number("alpha", group["alpha"], infinite=True)
        c1, c2 = _pair("adapt_betas", group["adapt_betas"])
        _number("the first of adapt_betas", c1, below=1)
        _number("the second of adapt_betas", c2)
        if group["variant"] not in ("paper", "release"):
            raise FoveateError(
                f"variant is {group['variant']!r}; expected 'paper' (steps with the average) or "
                "'release' (steps with the code)"
            )
        if group["variant"] == "release" and (group["adaptive"] or group["decoupled"]):
            raise FoveateError(
                "the released code is neither adaptive nor decoupled; use variant='paper' with them"
            )

    def _update(self, group: Group, params: list[Tensor]) -> None:
        grads = [_gradient(p, 0.0 if group["decoupled"] else group["weight_decay"]) for p in params]
        alphas = self._alphas(group, params, grads)
        together = group["foreach"]
        if together or (together is None and all(p.is_cuda for p in params)):
            self._update_lists(group, params, grads, alphas)
            return
        for p, g, alpha in zip(params, grads, alphas, strict=True):
            s = F.hardshrink(g, alpha).sign_()  # hardshrink: 0 on the closed [-alpha, alpha]
            self._count(p, s)
            s = step = s.to(p.dtype)
            if group["variant"] == "paper":
                step = self._buffer(p, "momentum_buffer").lerp_(s, 1 - group["beta"])
            if group["decoupled"] and group["weight_decay"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(step, alpha=-group["lr"])

    def _update_lists(
        self, group: Group, params: list[Tensor], grads: list[Tensor], alphas: list[float]
    ) -> None:
        """The same in lists of tensors."""
        # No list form of hardshrink exists; clamping and subtracting lists takes more passes.
        codes = [F.hardshrink(g, alpha) for g, alpha in zip(grads, alphas, strict=True)]
        torch._foreach_sign_(codes)
        for p, s in zip(params, codes, strict=True):
            self._count(p, s)
        codes = [s.to(p.dtype) for p, s in zip(params, codes, strict=True)]
        steps = codes
        if group["variant"] == "paper":
            steps = [self._buffer(p, "momentum_buffer") for p in params]
            torch._foreach_lerp_(steps, codes, 1 - group["beta"])
        if group["decoupled"] and group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, steps, alpha=-group["lr"])

    def _alphas(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> list[float]:
        """The alpha of every tensor, from its gradient."""
        if not group["adaptive"]:
            return [group["alpha"]] * len(params)
        c1, c2 = group["adapt_betas"]
        device = grads[0].device
        spreads = torch.stack([g.std(correction=0).to(device) for g in grads]).tolist()
        alphas = []
        for p, spread in zip(params, spreads, strict=True):
            state = self.state[p]
            u, t = state.get("spread", 0.0), state.get("step", 0)
            last = u / (1 - c1**t) if t else 0.0
            now = spread if math.isfinite(spread) else last
            u = state["spread"] = c1 * u + (1 - c1) * now
            state["step"] = t + 1
            alphas.append(c2 * u / (1 - c1 ** (t + 1)))
        return alphas
