"""The ONNX converter on small graphs of our own, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hawkeye_export.errors import UnsupportedGraphError
from hawkeye_export.ocr import export_graph
from hawkeye_export.onnx_graph import Graph, read_graph

RANDOM = np.random.default_rng(5)


def write(path: Path, nodes: list, constants: dict[str, np.ndarray], rank: int = 4) -> Path:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)
    model = helper.make_model(
        helper.make_graph(nodes, "test", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 11)], ir_version=8
    )
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def compare(path: Path, shapes: list[tuple[int, ...]]) -> Graph:
    """Exports with the first shape and compares at all of them."""
    graph = read_graph(path)
    module = export_graph(graph, torch.zeros(shapes[0]))
    session = onnxruntime.InferenceSession(str(path))
    for shape in shapes:
        x = RANDOM.normal(size=shape).astype(np.float32)
        theirs = session.run(None, {"x": x})[0]
        np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), theirs, rtol=0, atol=1e-5)
    return graph


def weights(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def test_same_upper_pads_right_and_bottom(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[2, 2], strides=[1, 1], auto_pad="SAME_UPPER"),
        helper.make_node("MaxPool", ["a"], ["y"], kernel_shape=[2, 2], strides=[1, 1], auto_pad="SAME_UPPER"),
    ]
    compare(write(tmp_path / "m.onnx", nodes, {"w": weights(4, 3, 2, 2)}), [(2, 3, 6, 9), (1, 3, 5, 4)])


def test_same_upper_with_a_stride_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER")
    graph = read_graph(write(tmp_path / "m.onnx", [node], {"w": weights(4, 3, 2, 2)}))
    with pytest.raises(UnsupportedGraphError, match="SAME_UPPER with a stride"):
        export_graph(graph, torch.zeros(1, 3, 8, 8))


def test_unknown_operators_are_refused(tmp_path: Path) -> None:
    graph = read_graph(write(tmp_path / "m.onnx", [helper.make_node("Elu", ["x"], ["y"])], {}))
    with pytest.raises(UnsupportedGraphError, match="Elu"):
        export_graph(graph, torch.zeros(1, 3, 8, 8))


def test_convolution_bias_and_batch_norm_are_folded(tmp_path: Path) -> None:
    norm = {name: weights(6) for name in ("gamma", "beta", "mean")} | {"var": np.abs(weights(6)) + 0.1}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[3, 3], strides=[2, 1], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Conv", ["c", "v"], ["d"], kernel_shape=[1, 1], strides=[1, 1]),
        helper.make_node("BatchNormalization", ["d", "gamma", "beta", "mean", "var"], ["e"], epsilon=1e-3),
        helper.make_node("Sigmoid", ["e"], ["s"]),
        helper.make_node("Mul", ["e", "s"], ["y"]),
    ]
    constants = {"w": weights(4, 3, 3, 3), "b": weights(1, 4, 1, 1), "v": weights(6, 4, 1, 1), **norm}
    graph = compare(write(tmp_path / "m.onnx", nodes, constants), [(2, 3, 8, 6), (1, 3, 16, 10)])
    assert [step.op for step in graph.steps] == ["Conv", "Conv", "Silu"]


def test_a_convolution_that_two_read_keeps_its_bias_apart(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[1, 1], strides=[1, 1]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Mul", ["c", "a"], ["y"]),
    ]
    graph = compare(write(tmp_path / "m.onnx", nodes, {"w": weights(4, 3, 1, 1), "b": weights(1, 4, 1, 1)}), [(1, 3, 4, 4)])
    assert [step.op for step in graph.steps] == ["Conv", "Add", "Mul"]


def gelu_nodes(divisor: str) -> list:
    return [
        helper.make_node("Div", ["x", divisor], ["a"]),
        helper.make_node("Erf", ["a"], ["b"]),
        helper.make_node("Add", ["b", "one"], ["c"]),
        helper.make_node("Mul", ["x", "c"], ["d"]),
        helper.make_node("Mul", ["d", "half"], ["y"]),
    ]


def test_gelu_is_folded_only_where_it_is_one(tmp_path: Path) -> None:
    scalar = lambda value: np.array(value, dtype=np.float32)  # noqa: E731
    constants = {"root": scalar(2**0.5), "two": scalar(2), "one": scalar(1), "half": scalar(0.5)}
    graph = compare(write(tmp_path / "m.onnx", gelu_nodes("root"), constants), [(2, 3, 4, 5)])
    assert [step.op for step in graph.steps] == ["Gelu"]
    other = read_graph(write(tmp_path / "n.onnx", gelu_nodes("two"), constants))
    assert [step.op for step in other.steps] == ["Div", "Erf", "Add", "Mul", "Mul"]


def test_layer_norm_is_folded(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[-1]),
        helper.make_node("Sub", ["x", "m"], ["s"]),
        helper.make_node("Pow", ["s", "two"], ["p"]),
        helper.make_node("ReduceMean", ["p"], ["v"], axes=[-1]),
        helper.make_node("Add", ["v", "eps"], ["e"]),
        helper.make_node("Sqrt", ["e"], ["r"]),
        helper.make_node("Div", ["s", "r"], ["d"]),
        helper.make_node("Mul", ["d", "scale"], ["k"]),
        helper.make_node("Add", ["k", "shift"], ["y"]),
    ]
    constants = {"two": np.array(2, np.float32), "eps": np.array(1e-5, np.float32), "scale": weights(7), "shift": weights(7)}
    graph = compare(write(tmp_path / "m.onnx", nodes, constants, rank=3), [(2, 5, 7), (3, 1, 7)])
    assert [step.op for step in graph.steps] == ["LayerNorm"]


def test_reshape_by_shape_arithmetic_stays_dynamic(tmp_path: Path) -> None:
    """The pattern that plain tracing bakes: flatten by Shape, and rebuild with a width taken from the input."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "two", "zero"], ["lead"]),
        helper.make_node("Concat", ["lead", "rest"], ["flat"], axis=0),
        helper.make_node("Reshape", ["x", "flat"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        helper.make_node("Slice", ["s", "three", "four", "zero"], ["w1"]),
        helper.make_node("Squeeze", ["w1"], ["w"], axes=[0]),
        helper.make_node("Unsqueeze", ["w"], ["w2"], axes=[0]),
        helper.make_node("Concat", ["zero", "one", "w2", "five"], ["back"], axis=0),
        helper.make_node("Reshape", ["b", "back"], ["y"]),
    ]
    vector = lambda value: np.array([value], dtype=np.int64)  # noqa: E731
    names = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "rest": -1}
    path = write(tmp_path / "m.onnx", nodes, {name: vector(value) for name, value in names.items()})
    compare(path, [(2, 5, 1, 8), (1, 5, 1, 3), (4, 5, 1, 40)])


def test_resize_by_whole_factors(tmp_path: Path) -> None:
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    node = helper.make_node("Resize", ["x", "roi", "scales"], ["y"], **attributes)
    constants = {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 4], np.float32)}
    compare(write(tmp_path / "m.onnx", [node], constants), [(1, 2, 3, 4), (2, 2, 5, 3)])
    constants["scales"][2] = 1.5
    graph = read_graph(write(tmp_path / "n.onnx", [node], constants))
    with pytest.raises(UnsupportedGraphError, match="Resize"):
        export_graph(graph, torch.zeros(1, 2, 4, 4))
