"""How well a part of a network learns: the largest eigenvalue of its own tangent kernel.

A network f maps n inputs X to n k numbers. Of a part l of it, a set of parameters theta^l,

    J_l      = d f(X) / d theta^l          (n k, p_l)
    Theta^l  = J_l J_l^T                   (n k, n k), the modular neural tangent kernel
    lambda^l = largest eigenvalue of Theta^l = sigma_max(J_l)^2

Under gradient flow the loss falls by ``sum_l sum_i lambda_i^l <u_i^l, dL/df>^2``, so a part with a
large lambda^l is what moves the loss now. Disjoint parts add up, ``Theta = sum_l Theta^l``, and as
all are positive semidefinite

    max_l lambda^l  <=  lambda_max(Theta)  <=  sum_l lambda^l

Three ways to lambda^l, all divided by n:

``pntk`` (default)
    The n x n kernel of one number per input, ``g_i = k^(-1/2) sum_c r_c f_c(x_i)``, averaged over
    a few fixed random sign vectors r. Over all r the mean is ``(1/k) sum_c Theta_cc``, the mean of
    the diagonal blocks. ``signs="ones"`` is the plain sum of logits, along which a cross-entropy
    residual, whose entries sum to 0, never pushes.
``exact``
    Theta^l itself, for small networks and few outputs.
``power``
    Lanczos iteration on ``v -> J_l (J_l^T v)``, for parts of very many parameters: nothing of the
    size n x p_l is stored.

Sources: the modular kernel is that of Modular Adaptive Training (arXiv 2405.07527), by its abstract
(P); how the paper approximates it is not known here. The sum of logits is remembered (M) of
Mohamadi and Sutherland (2023); sign vectors, Lanczos and the division by n are our decision (D).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from foveate.errors import FoveateError

__all__ = ["evaluating", "module_lambda", "module_ntk", "outputs_of", "target_log_likelihood"]

Method = Literal["pntk", "exact", "power"]
Signs = int | Literal["ones"] | Tensor
Probe = Tensor | tuple[Tensor, ...]
Readout = Callable[..., Tensor]
Weights = dict[str, Tensor]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, every module's own mode again afterwards; attention in differentiable steps.

    The fused attention of CPUs has neither forward derivatives nor a rule for many samples at once,
    and counters of operations do not see it.
    """
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes:
            module.training = mode


def module_lambda(
    model: nn.Module,
    probe: Probe,
    modules: Mapping[str, Sequence[str]],
    method: Method = "pntk",
    signs: Signs = 4,
    chunk: int = 8,
    *,
    seed: int = 0,
    per_param: bool = False,
    readout: Readout | None = None,
    iterations: int = 20,
    tol: float = 1e-3,
    max_floats: int = 200_000_000,
) -> dict[str, float]:
    """Largest eigenvalue of the tangent kernel of every module, divided by the number of inputs.

    Parameters
    ----------
    model
        Any network; it is run in eval mode (no dropout, running statistics) and left as it was.
    probe
        ``(n, ...)`` inputs, or a tuple: inputs, and what `readout` needs besides, ``(n, ...)``
        each. 32 to 128 fixed training inputs do.
    modules
        Name of a module -> names of its parameters: a `ModulePartition`, or any mapping.
    method
        ``pntk``, ``exact`` or ``power``.
    signs
        Of ``pntk``: number of random sign vectors, ``"ones"``, or the vectors themselves
        ``(R, k)``.
    chunk
        Inputs that are differentiated at once. 1 goes one by one in plain autograd, for networks
        that `torch.func.vmap` cannot take (a router that picks experts, say).
    seed
        Of the sign vectors, or of the first vector of ``power``.
    per_param
        Divide by the number of parameters too. The paper ranks raw eigenvalues (M).
    readout
        Makes the numbers of a prediction, ``(B, k)``, out of what the network returns (and the rest
        of the probe). For language models see `target_log_likelihood`.
    iterations, tol
        Of ``power``: most steps, and the relative change of the eigenvalue that ends it.
    max_floats
        Gradients that are held at a time; where all would be more, sign vectors are taken one after
        the other, then modules too. A single module may exceed it.

    Raises
    ------
    FoveateError
        Unknown parameters or method, a probe or output of the wrong shape, values that are not
        finite, or a network that cannot be vectorised.
    """
    names = _check(model, modules)
    inputs = _probe(probe)
    n = len(inputs[0])
    if method not in ("pntk", "exact", "power") or min(chunk, iterations, max_floats) < 1:
        raise FoveateError(
            "module_lambda expects method pntk, exact or power and chunk, iterations and "
            f"max_floats of at least 1, got {method!r}, {chunk}, {iterations} and {max_floats}"
        )
    found: dict[str, float] = {}
    with evaluating(model):
        if method == "power":
            for name, params in names.items():
                found[name] = _lanczos(model, inputs, params, chunk, readout, iterations, tol, seed)
        else:
            directions = _directions(model, inputs, method, signs, seed, readout)
            size = {
                name: sum(model.get_parameter(p).numel() for p in params)
                for name, params in names.items()
            }
            exact, room = method == "exact", max_floats // n
            at_once = len(directions)
            if not exact:
                at_once = max(1, min(at_once, room // sum(size.values())))
            for bundle in _bundles(size, room // at_once):
                part = {name: names[name] for name in bundle}
                totals: Weights = {}
                for few in torch.split(directions, at_once):
                    grams = _grams(model, inputs, part, few, chunk, readout, exact)
                    totals = {name: g + totals.get(name, 0) for name, g in grams.items()}
                for name, gram in totals.items():
                    found[name] = float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0))
    for name, value in found.items():
        if not value < float("inf"):
            raise FoveateError(
                f"the tangent kernel of {name} has the eigenvalue {value}: network or probe hold "
                "values that are not finite; a lower learning rate may keep training from diverging"
            )
        params_of = sum(model.get_parameter(p).numel() for p in names[name]) if per_param else 1
        found[name] = value / (n * params_of)
    return found


def module_ntk(
    model: nn.Module,
    probe: Probe,
    params: Sequence[str],
    exact: bool = True,
    *,
    signs: Signs = 4,
    chunk: int = 8,
    seed: int = 0,
    readout: Readout | None = None,
) -> Tensor:
    """Tangent kernel of the parameters named, float64, not divided by n.

    Returns
    -------
    Tensor
        ``(n k, n k)``, the k outputs of an input side by side; ``(n, n)`` of ``pntk`` if not
        `exact`. Other parameters, errors: as of `module_lambda`.
    """
    names = _check(model, {"module": params})
    inputs = _probe(probe)
    if chunk < 1:
        raise FoveateError(f"module_ntk expects chunk of at least 1, got {chunk}")
    with evaluating(model):
        method: Method = "exact" if exact else "pntk"
        directions = _directions(model, inputs, method, signs, seed, readout)
        return _grams(model, inputs, names, directions, chunk, readout, exact)["module"]


def target_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Readout of language models: mean log-probability of a sequence's target words, ``(B, 1)``.

    All logits of a vocabulary would be ruled by words that do not matter (D).

    Parameters
    ----------
    logits
        ``(B, T, V)``.
    targets
        ``(B, T)`` integers; -100 marks positions that do not count.
    """
    if logits.ndim != 3 or targets.shape != logits.shape[:2]:
        raise FoveateError(
            "target_log_likelihood expects logits (B, T, V) and targets (B, T), got "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    counts = targets != -100
    said = F.log_softmax(logits, -1).gather(-1, targets.where(counts, 0)[..., None])[..., 0]
    return (said * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp(min=1)


# ------------------------------------------------------------------------------ checks


def _check(model: nn.Module, modules: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    known = dict(model.named_parameters())
    for name, params in modules.items():
        unknown = [p for p in params if p not in known]
        if unknown or not params or isinstance(params, str):
            raise FoveateError(
                f"module {name!r} expects names of the network's parameters, got "
                f"{unknown[0] if unknown and not isinstance(params, str) else params!r}"
            )
    if not modules:
        raise FoveateError("there is no module to look at; give names and their parameters")
    return {name: tuple(dict.fromkeys(params)) for name, params in modules.items()}


def _probe(probe: Probe) -> tuple[Tensor, ...]:
    inputs = probe if isinstance(probe, tuple) else (probe,)
    if (
        not inputs
        or any(t.ndim < 1 or len(t) != len(inputs[0]) for t in inputs)
        or not len(inputs[0])
    ):
        raise FoveateError(
            "a probe is one tensor (n, ...) or a tuple of tensors of the same n of at least 1, got "
            f"{', '.join(str(tuple(t.shape)) for t in inputs) or 'nothing'}"
        )
    return inputs


def outputs_of(model: nn.Module, weights: Weights, readout: Readout | None, batch: Any) -> Tensor:
    """Outputs ``(B, k)`` of a batch (inputs, rest...) with `weights` at the place of its own."""
    y: Any = functional_call(model, weights, (batch[0],))
    if readout is not None:
        y = readout(y, *batch[1:])
    if not isinstance(y, Tensor) or y.ndim != 2 or len(y) != len(batch[0]):
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise FoveateError(
            f"tangent kernels take (B, k) numbers of {len(batch[0])} inputs, got {shape}; pass a "
            "readout that makes them out of what the network returns"
        )
    return y


def _directions(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    method: Method,
    signs: Signs,
    seed: int,
    readout: Readout | None,
) -> Tensor:
    """Vectors ``(R, k)`` along which outputs are differentiated; the Gram sums over them."""
    with torch.no_grad():
        y = outputs_of(model, {}, readout, [t[:1] for t in inputs])
    k = y.shape[1]
    if method == "exact":
        return torch.eye(k, dtype=y.dtype, device=y.device)
    if isinstance(signs, Tensor):
        rows = signs
    elif signs == "ones":
        rows = torch.ones(1, k)
    elif isinstance(signs, int) and signs > 0:
        draw = torch.Generator().manual_seed(seed)
        rows = 2 * torch.randint(2, (signs, k), generator=draw) - 1
    else:
        rows = torch.empty(0)
    if rows.ndim != 2 or rows.shape[1] != k or not len(rows):
        raise FoveateError(
            f"signs is a number of at least 1, 'ones' or vectors (R, {k}), got "
            f"{tuple(signs.shape) if isinstance(signs, Tensor) else repr(signs)}"
        )
    return rows.to(y) / math.sqrt(k * len(rows))


def _bundles(size: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in order, as many at a time as stay below `limit`."""
    bundles: list[list[str]] = []
    room = 0
    for name, count in size.items():
        if not bundles or count > room:
            bundles.append([])
            room = limit
        bundles[-1].append(name)
        room -= count
    return bundles


# ------------------------------------------------------------------------------ Gram matrices


def _grams(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    names: Mapping[str, tuple[str, ...]],
    directions: Tensor,
    chunk: int,
    readout: Readout | None,
    exact: bool,
) -> dict[str, Tensor]:
    """Gram matrix of every module, float64: ``(n R, n R)`` if exact, else ``(n, n)``, R summed."""
    wanted = list(dict.fromkeys(p for params in names.values() for p in params))
    own = {name: p.detach() for name, p in model.named_parameters()}
    weights = {name: own[name] for name in wanted}

    def slope(sample: tuple[Tensor, ...]) -> Weights:
        """Gradients ``(R, ...)`` of one input."""

        def answer(chosen: Weights) -> Tensor:
            batch = [t[None] for t in sample]
            return outputs_of(model, {**own, **chosen}, readout, batch)[0]

        slopes: Weights = vmap(vjp(answer, weights)[1])(directions)[0]
        return slopes

    n = len(inputs[0])
    rows = {  # filled piece by piece: they may be large
        name: value.new_empty(n, len(directions), *value.shape) for name, value in weights.items()
    }
    for at in range(0, n, chunk):
        batch = tuple(t[at : at + chunk] for t in inputs)
        if chunk == 1:
            slopes = _slope_by_autograd(model, own, weights, readout, batch, directions)
        else:
            try:
                slopes = vmap(slope, in_dims=(0,))(batch)
            except (RuntimeError, NotImplementedError) as error:
                raise FoveateError(
                    f"the network cannot take many samples at once ({str(error).splitlines()[0]}); "
                    "pass chunk=1, which goes one by one"
                ) from error
        for name, value in slopes.items():
            rows[name][at : at + chunk] = value
    grams = {}
    for name, params in names.items():
        total = torch.zeros((), dtype=torch.float64, device=directions.device)
        for p in params:
            flat = rows[p].flatten(2).flatten(0, 1) if exact else rows[p].flatten(1)
            flat = flat.float() if flat.element_size() < 4 else flat  # sums of squares overflow
            total = total + (flat @ flat.T).double()
        grams[name] = total
    for name, gram in grams.items():
        if not gram.isfinite().all():
            raise FoveateError(
                f"the tangent kernel of {name} is not finite: network or probe hold values that "
                "are not; a lower learning rate may keep training from diverging"
            )
    return grams


def _slope_by_autograd(
    model: nn.Module,
    own: Weights,
    weights: Weights,
    readout: Readout | None,
    batch: tuple[Tensor, ...],
    directions: Tensor,
) -> Weights:
    """Gradients ``(1, R, ...)`` of a batch of one; zeros where it does not reach."""
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    with torch.enable_grad():
        y = outputs_of(model, {**own, **leaves}, readout, batch)[0]
    rows: dict[str, list[Tensor]] = {name: [] for name in leaves}
    for r in directions:
        slopes: Sequence[Tensor | None] = [None] * len(leaves)
        if y.requires_grad:
            slopes = torch.autograd.grad(
                y, list(leaves.values()), r, retain_graph=True, allow_unused=True
            )
        for (name, leaf), slope in zip(leaves.items(), slopes, strict=True):
            rows[name].append(torch.zeros_like(leaf) if slope is None else slope)
    return {name: torch.stack(of_name)[None] for name, of_name in rows.items()}


# ------------------------------------------------------------------------------ Lanczos


def _lanczos(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    params: Sequence[str],
    chunk: int,
    readout: Readout | None,
    iterations: int,
    tol: float,
    seed: int,
) -> float:
    """Largest eigenvalue of ``J J^T`` of one module.

    Lanczos with full orthogonalisation: as many products as power iteration, and its eigenvalue is
    the best in their whole span instead of the last one's.
    """
    own = {name: p.detach() for name, p in model.named_parameters()}
    weights = {name: own[name] for name in params}
    batches = [tuple(t[at : at + chunk] for t in inputs) for at in range(0, len(inputs[0]), chunk)]

    def answers(batch: tuple[Tensor, ...]) -> Callable[[Weights], Tensor]:
        return lambda chosen: outputs_of(model, {**own, **chosen}, readout, batch)

    with torch.no_grad():
        sizes = [answers(batch)(weights) for batch in batches]

    def product(v: Tensor) -> Tensor:
        parts = torch.split(v.to(sizes[0].dtype), [y.numel() for y in sizes])
        slope = {name: torch.zeros_like(value) for name, value in weights.items()}
        for batch, part, y in zip(batches, parts, sizes, strict=True):
            pull = vjp(answers(batch), weights)[1]
            for name, value in pull(part.view_as(y))[0].items():
                slope[name] += value
        moved = [jvp(answers(batch), (weights,), (slope,))[1].flatten() for batch in batches]
        return torch.cat(moved).double()

    count = sum(y.numel() for y in sizes)
    draw = torch.Generator().manual_seed(seed)
    v = torch.randn(count, generator=draw, dtype=torch.float64).to(sizes[0].device)
    basis = (v / v.norm())[None]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    top = 0.0
    for _ in range(min(iterations, count)):
        w = product(basis[-1])
        diagonal.append(w @ basis[-1])
        matrix = torch.diag(torch.stack(diagonal))
        for at, value in enumerate(beside):
            matrix[at, at + 1] = matrix[at + 1, at] = value
        if not matrix.isfinite().all():
            return float("nan")
        last, top = top, float(torch.linalg.eigvalsh(matrix)[-1])
        for _ in range(2):  # twice: once leaves rounding errors that grow
            w = w - basis.T @ (basis @ w)
        size = w.norm()
        if abs(top - last) <= tol * abs(top) or size <= 1e-12 * max(abs(top), 1e-300):
            break
        beside.append(size)
        basis = torch.cat([basis, (w / size)[None]])
    return max(top, 0.0)
