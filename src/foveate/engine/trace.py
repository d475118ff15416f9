"""From a PyTorch module to a list of operations that the engine has.

``torch.fx`` records which layers and functions a model calls; one forward pass in eval mode gives
every shape and folds what does not depend on the input. Each recorded call is then *lowered* to
operations of :mod:`foveate.engine.graph` on values ``(C, H, W)``: a quantised convolution, for
instance, becomes

    x -> quant -> conv -> affine (alpha) [-> gate] [-> affine (bias)]

and a batch normalisation one ``affine``. An element-wise operation also keeps the *torch* function
it stands for: :mod:`foveate.engine.compile` searches thresholds with it.

Whatever has no counterpart is refused with the name of the operation and the path of the module
that called it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.fx
from torch import Tensor, nn

from foveate.engine.lowering import Lowering
from foveate.engine.operations import Trace
from foveate.errors import FoveateError
from foveate.quantization.layers import ChannelGate, QuantLayer, SpatialScale
from foveate.quantization.quantizers import QuantAct, SoftSign

__all__ = ["trace"]


def trace(model: nn.Module, example: Tensor) -> Trace:
    """Lower a model.

    Parameters
    ----------
    model
        Left as it is; a copy on the CPU in eval mode is traced.
    example
        Input ``(N, C, H, W)`` or ``(N, C)``, any batch size.

    Raises
    ------
    FoveateError
        The model cannot be traced, takes several inputs, or calls something the engine lacks.
    """
    if not isinstance(example, Tensor) or example.ndim not in (2, 4) or not len(example):
        raise FoveateError(
            "an example input is one tensor (N, C, H, W) or (N, C), got "
            f"{tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__}"
        )
    model = copy.deepcopy(model).cpu().float().eval()
    x = example.detach().to("cpu", torch.float32, copy=True)  # the model may change it
    try:
        with torch.no_grad():
            wanted = model(x.clone())
    except FoveateError:
        raise
    except Exception as error:  # whatever the model's own code raises
        raise FoveateError(
            f"{type(model).__name__} does not run on an example of shape {tuple(x.shape)}: "
            f"{_first_line(error)}"
        ) from error
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except FoveateError:
        raise
    except Exception as error:  # ... or raises on a placeholder
        raise FoveateError(
            f"cannot trace {type(model).__name__}, at {tracer.place}: {_first_line(error)}; the "
            "forward of a model to compile must not branch on the values or shapes of tensors"
        ) from error
    module = torch.fx.GraphModule(tracer.root, graph)
    run = _Run(module)
    with torch.no_grad():
        found = run.run(x)
        lowered = Lowering(module, run.results, run.memory, run.changed).lower()
    if not _alike(wanted, found):
        raise FoveateError(
            f"cannot compile {type(model).__name__}: the calls that torch.fx recorded give another "
            "result on the example than its forward does; write y = y + x where it has y += x, "
            "and give F.dropout training=self.training"
        )
    return lowered


def _alike(wanted: object, found: object) -> bool:
    """Whether two runs gave the same; torch.fx takes `y += x` for a sum and leaves y as it was."""
    pairs = zip(
        torch.utils._pytree.tree_leaves(wanted),
        torch.utils._pytree.tree_leaves(found),
        strict=True,
    )
    return all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in pairs
        if isinstance(a, Tensor) and isinstance(b, Tensor)
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class _Tracer(torch.fx.Tracer):
    """Does not look into layers of torch and of the quantisation room."""

    place = "its forward"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (QuantLayer, QuantAct, ChannelGate, SpatialScale, SoftSign)):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        before, self.place = self.place, f"{self.path_of_module(m)!r} ({type(m).__name__})"
        result = super().call_module(m, forward, args, kwargs)
        self.place = before  # an error keeps the innermost place
        return result


class _Run(torch.fx.Interpreter):
    """Runs the recorded calls and keeps what each returned; of the model's tensors the shape.

    Torch changes tensors in place and makes views of them, so two results may be one memory.
    ``memory`` names that of each result: the result that it was made for, and which part of a
    sequence it is. Two results share memory if one name is the beginning of the other.
    ``changed`` holds the arguments that a call wrote to.
    """

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.results: dict[torch.fx.Node, object] = {}
        self.memory: dict[torch.fx.Node, tuple[object, ...]] = {}
        self.changed: dict[torch.fx.Node, list[torch.fx.Node]] = {}
        self._dynamic: set[torch.fx.Node] = set()

    def run_node(self, n: torch.fx.Node) -> object:
        sources = {source: self.env[source] for source in n.all_input_nodes}
        versions = {
            source: value._version for source, value in sources.items() if isinstance(value, Tensor)
        }
        result = super().run_node(n)
        kept = result
        if n.op == "placeholder" or not self._dynamic.isdisjoint(n.all_input_nodes):
            self._dynamic.add(n)
            kept = torch.utils._pytree.tree_map(
                lambda part: part.to("meta") if isinstance(part, Tensor) else part, result
            )
        self.results[n] = kept
        self.memory[n] = (n,)
        for source, value in sources.items():
            if not _storages(value).isdisjoint(_storages(result)):
                part = () if isinstance(value, Tensor) else (n.args[1:],)
                self.memory[n] = self.memory[source] + part
                break
        self.changed[n] = [
            source for source, version in versions.items() if sources[source]._version != version
        ]
        return result


def _storages(value: object) -> set[int]:
    """Identities of the memory that tensors lie in."""
    leaves = torch.utils._pytree.tree_leaves(value)
    return {leaf.untyped_storage()._cdata for leaf in leaves if isinstance(leaf, Tensor)}
