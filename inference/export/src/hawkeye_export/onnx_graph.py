"""Reads an ONNX graph into plain steps and folds the patterns that PyTorch has one operator for.

Knows the operators of the PP-OCR networks; anything else is an error, never a guess.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from hawkeye_export.errors import UnsupportedGraphError

LAYER_NORM = ("ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add")


@dataclass
class Step:
    """One operator: names of its inputs (constants included), of its output, and its attributes."""

    op: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """Steps in the order of execution. `constants` holds weights and shape vectors by name."""

    input: str
    output: str
    steps: list[Step]
    constants: dict[str, np.ndarray]
    metadata: dict[str, str]

    def uses(self) -> Counter[str]:
        counts = Counter(name for step in self.steps for name in step.inputs)
        counts[self.output] += 1
        return counts


def read_graph(path: Path) -> Graph:
    """Loads the file, resolves `Identity` and `Constant` nodes, and folds patterns."""
    model = onnx.load(str(path))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    alias: dict[str, str] = {}
    steps: list[Step] = []
    for node in model.graph.node:
        inputs = [alias.get(name, name) for name in node.input]
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if len(node.output) != 1:
            raise UnsupportedGraphError(f"{node.op_type} with {len(node.output)} outputs")
        if node.op_type == "Identity":
            alias[node.output[0]] = inputs[0]
        elif node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(attributes["value"])
        elif node.op_type == "Resize":
            # Inputs are the image, a region that these modes ignore, and the scales.
            if len(inputs) != 3 or inputs[2] not in constants:
                raise UnsupportedGraphError("Resize without constant scales")
            attributes["scales"] = constants[inputs[2]].tolist()
            steps.append(Step(node.op_type, inputs[:1], node.output[0], attributes))
        else:
            steps.append(Step(node.op_type, inputs, node.output[0], attributes))
    names = [item.name for item in model.graph.input if item.name not in constants]
    if len(names) != 1 or len(model.graph.output) != 1:
        raise UnsupportedGraphError("expected one input and one output")
    output = model.graph.output[0].name
    metadata = {item.key: item.value for item in model.metadata_props}
    graph = Graph(names[0], alias.get(output, output), steps, constants, metadata)
    _fold_layer_norm(graph)
    _fold_gelu(graph)
    _fold_silu(graph)
    _fold_batch_norm(graph)
    _fold_bias(graph)
    return graph


def _scalar(graph: Graph, name: str) -> float | None:
    value = graph.constants.get(name)
    return float(value.reshape(())) if value is not None and value.size == 1 else None


def _consumers(graph: Graph) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, step in enumerate(graph.steps):
        for name in step.inputs:
            found.setdefault(name, []).append(index)
    return found


def _replace(graph: Graph, removed: set[int], placed: dict[int, Step]) -> None:
    kept = []
    for index, step in enumerate(graph.steps):
        if index in placed:
            kept.append(placed[index])
        elif index not in removed:
            kept.append(step)
    graph.steps = kept


def _fold_layer_norm(graph: Graph) -> None:
    steps, removed, placed = graph.steps, set(), {}
    for start in range(len(steps) - len(LAYER_NORM) + 1):
        window = steps[start : start + len(LAYER_NORM)]
        if tuple(step.op for step in window) != LAYER_NORM:
            continue
        mean, sub, power, variance, add, sqrt, divide, scale, shift = window
        x, centred = mean.inputs[0], sub.output
        chained = (
            sub.inputs == [x, mean.output]
            and power.inputs[0] == centred
            and variance.inputs == [power.output]
            and add.inputs[0] == variance.output
            and sqrt.inputs == [add.output]
            and divide.inputs == [centred, sqrt.output]
            and scale.inputs[0] == divide.output
            and shift.inputs[0] == scale.output
        )
        axes = [list(mean.attributes["axes"]), list(variance.attributes["axes"])]
        if chained and _scalar(graph, power.inputs[1]) == 2.0 and axes == [[-1], [-1]]:
            attributes = {"epsilon": _scalar(graph, add.inputs[1])}
            removed.update(range(start, start + len(LAYER_NORM)))
            last = start + len(LAYER_NORM) - 1
            placed[last] = Step("LayerNorm", [x, scale.inputs[1], shift.inputs[1]], shift.output, attributes)
    _replace(graph, removed, placed)


def _fold_gelu(graph: Graph) -> None:
    """x · (erf(x / √2) + 1) · ½ → Gelu(x)."""
    steps, removed, placed = graph.steps, set(), {}
    for start in range(len(steps) - 4):
        window = steps[start : start + 5]
        if [step.op for step in window] != ["Div", "Erf", "Add", "Mul", "Mul"]:
            continue
        divide, erf, add, product, half = window
        x = divide.inputs[0]
        root, one, factor = (_scalar(graph, step.inputs[1]) for step in (divide, add, half))
        chained = erf.inputs == [divide.output] and add.inputs[0] == erf.output and product.inputs == [x, add.output]
        if chained and half.inputs[0] == product.output and one == 1.0 and factor == 0.5:
            if root is None or abs(root - 2.0**0.5) > 1e-6:
                continue
            removed.update(range(start, start + 5))
            placed[start + 4] = Step("Gelu", [x], half.output)
    _replace(graph, removed, placed)


def _fold_silu(graph: Graph) -> None:
    """x · sigmoid(x) → Silu(x)."""
    uses, removed, placed = graph.uses(), set(), {}
    for index in range(len(graph.steps) - 1):
        gate, product = graph.steps[index : index + 2]
        if gate.op == "Sigmoid" and product.op == "Mul" and uses[gate.output] == 1:
            if product.inputs == [gate.inputs[0], gate.output]:
                removed.update((index, index + 1))
                placed[index + 1] = Step("Silu", [gate.inputs[0]], product.output)
    _replace(graph, removed, placed)


def _fold_batch_norm(graph: Graph) -> None:
    """Conv → BatchNormalization becomes one Conv with scaled weights and a bias."""
    consumers, producers = _consumers(graph), {step.output: index for index, step in enumerate(graph.steps)}
    removed, placed = set(), {}
    for index, norm in enumerate(graph.steps):
        if norm.op != "BatchNormalization":
            continue
        source = producers[norm.inputs[0]]
        conv = graph.steps[source]
        if conv.op != "Conv" or len(conv.inputs) != 2 or len(consumers[conv.output]) != 1:
            raise UnsupportedGraphError("a batch norm that does not follow a convolution of its own")
        gamma, beta, mean, variance = (graph.constants[name].astype(np.float64) for name in norm.inputs[1:])
        factor = gamma / np.sqrt(variance + norm.attributes["epsilon"])
        weight = graph.constants[conv.inputs[1]].astype(np.float64) * factor[:, None, None, None]
        names = [f"{norm.output}.weight", f"{norm.output}.bias"]
        graph.constants[names[0]] = weight.astype(np.float32)
        graph.constants[names[1]] = (beta - mean * factor).astype(np.float32)
        removed.update((source, index))
        placed[index] = Step("Conv", [conv.inputs[0], *names], norm.output, conv.attributes)
    _replace(graph, removed, placed)


def _fold_bias(graph: Graph) -> None:
    """Conv → Add of a (1, C, 1, 1) constant becomes a Conv with a bias; MatMul → Add of a (C,) constant a Linear."""
    consumers, producers = _consumers(graph), {step.output: index for index, step in enumerate(graph.steps)}
    removed, placed = set(), {}
    for index, add in enumerate(graph.steps):
        if add.op != "Add" or add.inputs[0] not in producers or add.inputs[1] not in graph.constants:
            continue
        source = producers[add.inputs[0]]
        step = graph.steps[source]
        bias = graph.constants[add.inputs[1]]
        if len(step.inputs) != 2 or len(consumers[step.output]) != 1 or step.inputs[1] not in graph.constants:
            continue
        if step.op in ("Conv", "ConvTranspose") and bias.shape == (1, bias.size, 1, 1):
            op = step.op
        elif step.op == "MatMul" and bias.ndim == 1:
            op = "Linear"
        else:
            continue
        name = f"{add.output}.bias"
        graph.constants[name] = bias.reshape(-1)
        removed.update((source, index))
        placed[index] = Step(op, [*step.inputs, name], add.output, step.attributes)
    _replace(graph, removed, placed)
