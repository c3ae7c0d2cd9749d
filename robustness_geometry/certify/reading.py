"""A classifier as a list of the operations that certification knows, read by torch.fx."""

import math
import operator
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from robustness_geometry.certify.operations import (
    Concatenation,
    Convolution,
    Input,
    Linear,
    Maximum,
    Node,
    Operation,
    Pooling,
    Rectifier,
    Reshape,
    Scale,
    Shape,
    Sum,
)
from robustness_geometry.checks import Described, InputError, check_logits, refuse
from robustness_geometry.models.normalisation import Normalise
from robustness_geometry.types import Classifier

__all__ = ["read"]

KNOWN = (
    "a network of linear, convolution, batch norm, ReLU, leaky ReLU, pooling, dropout and reshaping"
    " layers, sums and concatenations"
)
PROBES = 2
"""Images in the pass that finds the shapes: two, so that mixing over the batch shows."""

_SUMS = {operator.add: 1, operator.iadd: 1, torch.add: 1, "add": 1, "add_": 1}
_SUMS |= {operator.sub: -1, operator.isub: -1, torch.sub: -1, "sub": -1, "sub_": -1}
_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_QUOTIENTS = {operator.truediv, operator.itruediv, torch.div, "div", "div_"}
_RESHAPES = {torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, "flatten", "view"}
_RESHAPES |= {"reshape", "squeeze", "unsqueeze", "contiguous", "clone", "detach"}
_MEANS: set[object] = {functional.avg_pool2d, functional.adaptive_avg_pool2d, functional.avg_pool1d}
_MEANS |= {functional.adaptive_avg_pool1d, torch.mean, "mean"}
_RECTIFIERS = {torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_"}
_NOTHING: tuple[type[nn.Module], ...] = (nn.Flatten, nn.Unflatten, nn.Identity)
_NOTHING += (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_DROPOUTS = {functional.dropout, functional.dropout2d}


def read(model: Classifier, shape: Shape) -> list[Node]:
    """The operations of a network in the order of their execution, in float64.

    Args:
        model: a classifier in evaluation mode.
        shape: shape of an image, (C, H, W).

    Returns:
        The nodes; the first is the image, the last the logits.

    Raises:
        InputError: the network cannot be traced, or has a layer that is not known; the text names
            it.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # a trace runs the model's code, which may raise anything
        _refuse_untraced(model, error)
    return _Reader(model, graph).read(shape)


class _Tracer(fx.Tracer):
    """Traces a network down to PyTorch's layers, and the layer that normalises images."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Normalise) or super().is_leaf_module(m, module_qualified_name)


def _refuse_untraced(model: nn.Module, error: Exception) -> NoReturn:
    """Name the innermost module that cannot be traced."""
    name, kind = "", type(model).__name__
    for inner, module in model.named_modules():
        try:
            _Tracer().trace(module)
        except Exception:  # the innermost module that fails comes last, behind its parents
            if inner.startswith(name):
                name, kind = inner, type(module).__name__
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    refuse(
        "model",
        Described(f"layer {name or 'model'!r} of type {kind}: {why}"),
        "a network that torch.fx can trace",
    )


class _Reader(fx.Interpreter):
    """Runs a traced network on black images and writes down what depends on them."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.extra_traceback = False  # an error's text is one line of our own
        self.nodes: list[Node] = []
        self.places: dict[fx.Node, int] = {}
        self.dtype = next(
            (p.dtype for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()),
            torch.float32,
        )
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def read(self, shape: Shape) -> list[Node]:
        """The nodes of the network for images of ``shape``."""
        probe = torch.zeros(PROBES, *shape, dtype=self.dtype, device=self.device)
        with torch.no_grad():
            logits = self.run(probe)
        if not isinstance(logits, Tensor):
            refuse("model.output", type(logits).__name__, "a tensor of logits")
        check_logits(logits, PROBES)
        (output,) = [node for node in self.graph.nodes if node.op == "output"]
        last = self.places.get(output.args[0])
        if last is None:
            refuse("model", Described("logits that do not depend on the input"), KNOWN)
        return self.nodes[: last + 1]

    def run_node(self, n: fx.Node) -> Any:
        """Run one node of the trace; what depends on the image becomes one or two nodes."""
        result = super().run_node(n)
        used = [self.places[source] for source in n.all_input_nodes if source in self.places]
        if n.op == "placeholder":
            self._append(n, Input(), (), result)
        elif n.op != "output" and used and isinstance(result, Tensor):
            if result.ndim < 2 or len(result) != PROBES or not result.is_floating_point():
                self._refuse(n, "mixes images, or makes no batch of vectors")
            operation, inputs = self._translate(n, result)
            self._append(n, operation, inputs, result)
        elif n.op != "output" and used and type(result) in (tuple, list, dict):
            self._refuse(n)
        return result

    def _append(
        self, n: fx.Node, operation: Operation, inputs: tuple[int, ...], result: Tensor
    ) -> None:
        self.places[n] = len(self.nodes)
        self.nodes.append(Node(operation, inputs, tuple(result.shape[1:])))

    def _refuse(self, n: fx.Node, why: str = "") -> NoReturn:
        if n.op == "call_module":
            name, kind = str(n.target), type(self.fetch_attr(str(n.target))).__name__
        else:
            name = next(reversed(n.meta.get("nn_module_stack", {})), "") or "model"
            kind = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "?")
        reason = f", which {why}" if why else ""
        refuse("model", Described(f"layer {name!r} of type {kind}{reason}"), KNOWN)

    def _translate(self, n: fx.Node, result: Tensor) -> tuple[Operation, tuple[int, ...]]:
        """The operation of a node of the trace, and the nodes that it takes."""
        try:
            if n.op == "call_module":
                return self._module(n, result)
            if n.op in ("call_function", "call_method"):
                return self._function(n, result)
        except InputError:
            raise
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            self._refuse(n, f"cannot be read: {(str(error).splitlines() or ['?'])[0]}")
        return self._refuse(n)

    def _only(self, n: fx.Node) -> tuple[int, ...]:
        """The one input of a node that has no other."""
        sources = [source for source in n.all_input_nodes if source in self.places]
        if len(sources) != 1 or n.args[:1] != (sources[0],):
            self._refuse(n)
        return (self.places[sources[0]],)

    def _module(self, n: fx.Node, result: Tensor) -> tuple[Operation, tuple[int, ...]]:
        layer = self.fetch_attr(str(n.target))
        inputs = self._only(n)
        shape, out = self.nodes[inputs[0]].shape, tuple(result.shape[1:])
        match layer:
            case nn.Linear() if len(shape) == 1:
                return Linear(_double(layer.weight), _bias(layer)), inputs
            case nn.Conv1d() | nn.Conv2d() | nn.Conv3d() if layer.padding_mode == "zeros":
                return self._convolution(n, layer), inputs
            case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
                if layer.running_mean is None or layer.running_var is None:
                    self._refuse(n, "normalises by the batch")
                return _batch_norm(layer, layer.running_mean, layer.running_var, shape), inputs
            case nn.ReLU() | nn.LeakyReLU():
                return self._rectifier(n, getattr(layer, "negative_slope", 0.0)), inputs
            case nn.MaxPool2d() if not layer.return_indices:
                options = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
                return _maximum(shape, out, *options), inputs
            case nn.AvgPool1d() | nn.AvgPool2d() | nn.AdaptiveAvgPool1d() | nn.AdaptiveAvgPool2d():
                return Pooling(layer), inputs
            case Normalise():
                mean, std = _per_channel(layer.mean, shape), _per_channel(layer.std, shape)
                return _scale(1 / std, -mean / std, out, result), inputs
            case _ if isinstance(layer, _NOTHING):
                return Reshape(out), inputs
            case _:
                return self._refuse(n)

    def _function(self, n: fx.Node, result: Tensor) -> tuple[Operation, tuple[int, ...]]:
        target, out = n.target, tuple(result.shape[1:])
        if target in _SUMS or target in _PRODUCTS or target in _QUOTIENTS:
            return self._arithmetic(n, out)
        if target is operator.neg or target in (torch.neg, "neg"):
            return _scale(torch.tensor(-1.0), torch.tensor(0.0), out, result), self._only(n)
        if target in (torch.cat, torch.concat):
            return self._concatenation(n, result)
        inputs = self._only(n)
        shape = self.nodes[inputs[0]].shape
        rest, named = self._values(n)
        if target in _RESHAPES:
            return Reshape(out), inputs
        if target in _RECTIFIERS:
            return Rectifier(0.0), inputs
        if target is functional.leaky_relu:
            return self._rectifier(n, *rest[:1], **named), inputs
        if target is functional.max_pool2d:
            return self._max_pool(n, shape, out, rest, named), inputs
        if target in _MEANS:
            return Pooling(self._call(n, rest, named)), inputs
        if target in _DROPOUTS and not named.get("training", True):
            return Reshape(out), inputs
        return self._refuse(n)

    def _values(self, n: fx.Node) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a node behind the first, as numbers."""
        args, named = self.fetch_args_kwargs_from_env(n)
        return list(args[1:]), dict(named)

    def _call(
        self, n: fx.Node, rest: list[Any], named: dict[str, Any]
    ) -> Callable[[Tensor], Tensor]:
        """The node's function of its first argument alone."""
        target = n.target
        if isinstance(target, str):
            return lambda x: getattr(x, target)(*rest, **named)
        return lambda x: target(x, *rest, **named)

    def _rectifier(
        self, n: fx.Node, negative_slope: float = 0.01, inplace: bool = False
    ) -> Rectifier:
        if not 0 <= negative_slope <= 1:
            self._refuse(n, f"has the slope {negative_slope}")
        return Rectifier(float(negative_slope))

    def _max_pool(
        self, n: fx.Node, shape: Shape, out: Shape, rest: list[Any], named: dict[str, Any]
    ) -> Maximum:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        given = {**dict(zip(names, rest, strict=False)), **named}
        kernel, stride = given["kernel_size"], given.get("stride")
        rests = (given.get("padding", 0), given.get("dilation", 1))
        return _maximum(shape, out, kernel, kernel if stride in (None, []) else stride, *rests)

    def _convolution(self, n: fx.Node, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Convolution:
        padding = layer.padding
        if isinstance(padding, str):
            both = layer._reversed_padding_repeated_twice[::-1]
            if both[::2] != both[1::2]:
                self._refuse(n, "has unequal padding on its two sides")
            padding = tuple(both[::2])
        return Convolution(
            _double(layer.weight), _bias(layer), layer.stride, padding, layer.dilation, layer.groups
        )

    def _arithmetic(self, n: fx.Node, out: Shape) -> tuple[Operation, tuple[int, ...]]:
        """A sum of two nodes, or a node and a constant added to it or multiplied by it."""
        if n.kwargs:
            self._refuse(n, f"is called with {', '.join(n.kwargs)}")
        given, _ = self.fetch_args_kwargs_from_env(n)
        left, right = (isinstance(a, fx.Node) and a in self.places for a in n.args)
        first, second = n.args
        if left and right:
            sources = (self.places[first], self.places[second])  # type: ignore[index]
            if n.target not in _SUMS or any(self.nodes[s].shape != out for s in sources):
                self._refuse(n)
            return Sum((1, _SUMS[n.target])), sources
        source = self.places[first if left else second]  # type: ignore[index]
        if self.nodes[source].shape != out:
            self._refuse(n, "repeats its input")
        like = torch.zeros(PROBES, *out, dtype=torch.float64, device=self.device)
        value = _double(torch.as_tensor(given[1] if left else given[0], device=self.device))
        one, zero = torch.ones_like(value), torch.zeros_like(value)
        if n.target in _SUMS:
            sign = _SUMS[n.target]
            scale = (one, sign * value) if left else (sign * one, value)
        elif n.target in _PRODUCTS:
            scale = (value, zero)
        elif left:
            scale = (1 / value, zero)
        else:
            self._refuse(n, "divides by its input")
        return _scale(*scale, out, like), (source,)

    def _concatenation(self, n: fx.Node, result: Tensor) -> tuple[Operation, tuple[int, ...]]:
        parts = n.args[0]
        if not isinstance(parts, list | tuple) or any(p not in self.places for p in parts):
            self._refuse(n)
        (dim,) = [*n.args[1:], *n.kwargs.values()] or [0]
        sources = tuple(self.places[part] for part in parts)  # type: ignore[index]
        dim = int(dim) % result.ndim  # type: ignore[arg-type]
        if dim == 0:
            self._refuse(n, "mixes images")
        return Concatenation(dim, tuple(self.nodes[s].shape[dim - 1] for s in sources)), sources


def _double(values: Tensor) -> Tensor:
    return values.detach().to(torch.float64)


def _per_channel(values: Tensor, shape: Shape) -> Tensor:
    """Values (1, C, 1, 1) or (1, C, H, W) of a layer, for inputs of ``shape``."""
    return _double(values if len(shape) == 3 else values.view(1, -1, *[1] * (len(shape) - 1)))


def _bias(layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Tensor:
    if layer.bias is None:
        return _double(layer.weight).new_zeros(len(layer.weight))
    return _double(layer.bias)


def _scale(factor: Tensor, shift: Tensor, shape: Shape, like: Tensor) -> Scale:
    """The map factor x + shift, its values spread over ``shape``; ``like`` has the device."""
    ones = torch.ones(1, *shape, dtype=torch.float64, device=like.device)
    spread = (_double(v).to(like.device) * ones for v in (factor, shift, shift.abs()))
    scale = Scale(*spread)
    if any(v.shape != ones.shape for v in (scale.factor, scale.shift)):
        raise ValueError("a constant per image")
    return scale


def _batch_norm(layer: Any, mean: Tensor, variance: Tensor, shape: Shape) -> Scale:
    """Batch normalisation by the running averages."""
    factor = 1 / (_double(variance) + layer.eps).sqrt()
    shift = torch.zeros_like(factor)
    if layer.affine:
        factor, shift = factor * _double(layer.weight), _double(layer.bias)
    view = (1, -1, *[1] * (len(shape) - 1))
    ones = factor.new_ones(1, *shape)
    return Scale(
        factor.view(view) * ones,
        (shift - _double(mean) * factor).view(view) * ones,
        (shift.abs() + (_double(mean) * factor).abs()).view(view) * ones,
    )


def _maximum(shape: Shape, out: Shape, *options: int | tuple[int, ...]) -> Maximum:
    """Max pooling by kernel, stride, padding and dilation, each one number or two."""
    pairs = [tuple(o) if isinstance(o, tuple | list) else (o, o) for o in options]
    if len(shape) != 3 or math.prod(out) == 0:
        raise ValueError("max pooling takes feature maps (C, H, W)")
    return Maximum.of(shape, out, *pairs)
