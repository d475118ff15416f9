"""Two numbers that show a dead binary network long before its accuracy does.

    flip rate     share of the 1-bit weights of a layer whose sign changed since the last look
    STE window    share of the inputs of a sign with |a| below the threshold of its estimator
                  (1 where it has none): these pass most of the gradient on

A flip rate near 0 from the start means that nothing is learnt, one that stays high that weights
only oscillate around 0; a window near 0 that no gradient passes, near 1 that BN spreads too little.

>>> flips = FlipRate(model)  # doctest: +SKIP
>>> train_one_epoch(model)  # doctest: +SKIP
>>> flips.update()  # doctest: +SKIP
{'layer1.0.conv1': 0.013}
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.errors import FoveateError
from foveate.quantization.layers import QuantLayer, quant_layers
from foveate.quantization.quantizers import SignSTE
from foveate.quantization.straight_through import window

__all__ = ["FlipRate", "SteWindow"]


class FlipRate:
    """Share of latent weights that changed sign between two calls of `update`.

    Looks at every quantised layer whose weight quantiser has 1 bit, in whatever stage it is: in
    W32A1 it tells what W1A1 would have seen.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = {
            path: (layer.weight_quantizer, layer.weight)
            for path, layer in quant_layers(model)
            if layer.weight_quantizer is not None and layer.weight_quantizer.format.bits == 1
        }
        if not self._weights:
            raise FoveateError(f"{type(model).__name__} has no layer with 1-bit weights")
        self._last = self._signs()

    @torch.no_grad()
    def _signs(self) -> dict[str, Tensor]:
        return {path: quantizer.integers(w) > 0 for path, (quantizer, w) in self._weights.items()}

    def update(self) -> dict[str, float]:
        """Shares in [0, 1] by path of the layer since the last call (or since the start)."""
        now, last = self._signs(), self._last
        self._last = now
        return {path: (now[path] != last[path]).float().mean().item() for path in now}


class SteWindow:
    """Share of the inputs of every sign that lie in the window of its estimator.

    A context: everything that runs through the model inside is counted.

    >>> with SteWindow(model) as window:  # doctest: +SKIP
    ...     model(images)
    >>> window.shares()  # doctest: +SKIP
    {'layer1.0.conv1': 0.71}
    """

    def __init__(self, model: nn.Module) -> None:
        self._signs: dict[str, tuple[nn.Module, SignSTE]] = {}
        inside = set()
        for path, module in model.named_modules():
            if isinstance(module, QuantLayer) and isinstance(module.act, SignSTE):
                self._signs[path] = (module, module.act)
                inside.add(id(module.act))
            elif isinstance(module, SignSTE) and id(module) not in inside:
                self._signs[path] = (module, module)
        if not self._signs:
            raise FoveateError(f"{type(model).__name__} has no sign of activations")
        self._counts = {path: [0, 0] for path in self._signs}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> SteWindow:
        for path, (module, act) in self._signs.items():
            self._handles.append(module.register_forward_pre_hook(self._counter(path, act)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _counter(self, path: str, act: SignSTE) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        limit = window(act.estimator, act.threshold)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            a = inputs[0].detach()
            self._counts[path][0] += int((a.abs() < limit).sum())
            self._counts[path][1] += a.numel()

        return hook

    def shares(self) -> dict[str, float]:
        """Shares in [0, 1] by path, of all that was seen; layers that did not run are left out."""
        return {path: part / total for path, (part, total) in self._counts.items() if total}
