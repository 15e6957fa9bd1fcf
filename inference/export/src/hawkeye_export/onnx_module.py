"""A graph of `onnx_graph` as a PyTorch module. Every size is read from the tensors, so a trace stays dynamic."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hawkeye_export.errors import UnsupportedGraphError
from hawkeye_export.onnx_graph import Graph, Step


class GraphModule(nn.Module):
    """Runs the steps one after the other. Weights are parameters, so `.to(device, dtype)` reaches them."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        uses = graph.uses()
        self.weights: dict[str, str] = {}
        """Constant name → parameter name. TorchScript allows no dots in the latter."""
        for name, value in graph.constants.items():
            if uses[name] and value.dtype == np.float32 and value.ndim > 0:
                attribute = f"w{len(self.weights)}"
                self.weights[name] = attribute
                self.register_parameter(attribute, nn.Parameter(torch.from_numpy(value.copy()), requires_grad=False))
        # Values that no later step reads are dropped, as memory would otherwise grow with the depth.
        self.last_use = {name: index for index, step in enumerate(graph.steps) for name in step.inputs}

    def _value(self, name: str, values: dict[str, Any]) -> Any:
        if name in values:
            return values[name]
        if name in self.weights:
            return getattr(self, self.weights[name])
        constant = self.graph.constants[name]
        # Shape vectors are lists; single numbers are Python numbers, which carry no device into the trace.
        return constant.tolist() if constant.ndim and constant.dtype == np.int64 else float(constant.reshape(()))

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Any] = {self.graph.input: x}
        for index, step in enumerate(self.graph.steps):
            # An empty constant (the shape of a scalar) is as good as an omitted input.
            names = [n for n in step.inputs if n not in self.graph.constants or self.graph.constants[n].size]
            run = OPERATORS.get(step.op)
            if run is None:
                raise UnsupportedGraphError(f"operator {step.op}")
            values[step.output] = run(step, *(self._value(name, values) for name in names))
            for name in names:
                if self.last_use[name] == index and name != self.graph.output:
                    values.pop(name, None)
        return values[self.graph.output]


def _padded(step: Step, x: Tensor, fill: float) -> tuple[Tensor, list[int]]:
    """The input and symmetric padding for a convolution or pooling. SAME_UPPER is made explicit: right and bottom."""
    kernel, strides = list(step.attributes["kernel_shape"]), list(step.attributes["strides"])
    if list(step.attributes.get("dilations", [1, 1])) != [1, 1]:
        raise UnsupportedGraphError("dilation")
    mode = step.attributes.get("auto_pad", b"NOTSET")
    if mode == b"SAME_UPPER":
        if strides != [1, 1]:
            raise UnsupportedGraphError("SAME_UPPER with a stride: its padding depends on the input's size")
        total = [size - 1 for size in kernel]
        begin = [size // 2 for size in total]
        pads = [begin[1], total[1] - begin[1], begin[0], total[0] - begin[0]]
        return F.pad(x, pads, value=fill), [0, 0]
    if mode != b"NOTSET":
        raise UnsupportedGraphError(f"auto_pad {mode!r}")
    top, left, bottom, right = step.attributes.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise UnsupportedGraphError("unequal padding")
    return x, [top, left]


def _conv(step: Step, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, padding = _padded(step, x, 0.0)
    return F.conv2d(x, weight, bias, step.attributes["strides"], padding, groups=step.attributes.get("group", 1))


def _conv_transpose(step: Step, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, padding = _padded(step, x, 0.0)
    if step.attributes.get("group", 1) != 1 or any(step.attributes.get("output_padding", [])):
        raise UnsupportedGraphError("ConvTranspose with groups or output padding")
    return F.conv_transpose2d(x, weight, bias, step.attributes["strides"], padding)


def _max_pool(step: Step, x: Tensor) -> Tensor:
    x, padding = _padded(step, x, float("-inf"))
    if step.attributes.get("ceil_mode", 0):
        raise UnsupportedGraphError("ceil_mode")
    return F.max_pool2d(x, step.attributes["kernel_shape"], step.attributes["strides"], padding)


def _average_pool(step: Step, x: Tensor) -> Tensor:
    x, padding = _padded(step, x, 0.0)
    if step.attributes.get("ceil_mode", 0) or padding != [0, 0]:
        raise UnsupportedGraphError("AveragePool with padding or ceil_mode")
    return F.avg_pool2d(x, step.attributes["kernel_shape"], step.attributes["strides"])


def _hard_sigmoid(step: Step, x: Tensor) -> Tensor:
    return torch.clamp(x * float(step.attributes["alpha"]) + float(step.attributes["beta"]), 0.0, 1.0)


def _resize(step: Step, x: Tensor) -> Tensor:
    modes = tuple(step.attributes[key] for key in ("mode", "coordinate_transformation_mode", "nearest_mode"))
    factors = step.attributes["scales"]
    # With whole factors these modes repeat every pixel, which is PyTorch's nearest.
    if modes != (b"nearest", b"asymmetric", b"floor") or factors[:2] != [1.0, 1.0] or any(f % 1 for f in factors):
        raise UnsupportedGraphError(f"Resize {modes} by {factors}")
    return F.interpolate(x, scale_factor=factors[2:], mode="nearest")


def _slice(step: Step, x: Any, starts: list[int], ends: list[int], axes: list[int], strides: list[int] | None = None) -> Any:
    if len(starts) != 1 or (strides or [1]) != [1]:
        raise UnsupportedGraphError("Slice over several axes or with a stride")
    if isinstance(x, list):
        return x[starts[0] : ends[0]]
    return x.narrow(axes[0], starts[0], ends[0] - starts[0])


def _squeeze(step: Step, x: Any) -> Any:
    (axis,) = step.attributes["axes"]
    return x[axis] if isinstance(x, list) else x.squeeze(axis)


def _unsqueeze(step: Step, x: Any) -> Any:
    (axis,) = step.attributes["axes"]
    return x.unsqueeze(axis) if isinstance(x, Tensor) and x.ndim else [x]


def _concat(step: Step, *parts: Any) -> Any:
    if all(isinstance(part, list) for part in parts):
        return [size for part in parts for size in part]
    return torch.cat(parts, step.attributes["axis"])


def _reshape(step: Step, x: Any, shape: list[Any] | None = None) -> Any:
    if shape is None:
        return x  # a shape vector's element, reshaped to a scalar, which it is already
    # A zero copies the input's size.
    sizes = [x.size(axis) if isinstance(size, int) and size == 0 else size for axis, size in enumerate(shape)]
    return x.reshape(sizes)


def _linear(step: Step, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.matmul(x, weight) + bias


OPERATORS = {
    "Add": lambda step, a, b: a + b,
    "AveragePool": _average_pool,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gelu": lambda step, x: F.gelu(x),
    "GlobalAveragePool": lambda step, x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "LayerNorm": lambda step, x, scale, shift: F.layer_norm(x, scale.shape, scale, shift, step.attributes["epsilon"]),
    "Linear": _linear,
    "MatMul": lambda step, a, b: torch.matmul(a, b),
    "MaxPool": _max_pool,
    "Mul": lambda step, a, b: a * b,
    "ReduceMean": lambda step, x: x.mean(list(step.attributes["axes"]), keepdim=bool(step.attributes.get("keepdims", 1))),
    "Relu": lambda step, x: F.relu(x),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": lambda step, x: [x.size(axis) for axis in range(x.ndim)],
    "Sigmoid": lambda step, x: x.sigmoid(),
    "Silu": lambda step, x: F.silu(x),
    "Slice": _slice,
    "Softmax": lambda step, x: x.softmax(step.attributes["axis"]),
    "Squeeze": _squeeze,
    "Transpose": lambda step, x: x.permute(step.attributes["perm"]),
    "Unsqueeze": _unsqueeze,
}
"""What each operator does: the step, then its inputs."""
