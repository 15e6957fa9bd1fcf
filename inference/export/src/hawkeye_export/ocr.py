"""PP-OCRv6 detection and recognition: ONNX → TorchScript, each verified against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from hawkeye_export.errors import UnsupportedGraphError, VerificationError
from hawkeye_export.onnx_graph import Graph, read_graph
from hawkeye_export.onnx_module import GraphModule

REC_HEIGHT = 48

# Batch, height and width (for the recogniser, batch and width) of the inputs that an export is verified with.
DET_SHAPES = ((1, 736, 992), (2, 320, 480), (3, 416, 224))
REC_SHAPES = ((1, 320), (6, 320), (3, 517), (1, 1600), (1, 48))

PROBABILITY_TOLERANCE = 1e-4
"""Largest accepted difference of a probability between TorchScript and ONNX Runtime."""


def characters(graph: Graph) -> list[str]:
    """The recogniser's characters in class order without the CTC blank; rapidocr puts a space last."""
    if "character" not in graph.metadata:
        raise UnsupportedGraphError("the recogniser names no characters")
    found = [*graph.metadata["character"].splitlines(), " "]
    if any("\n" in item or "\r" in item or not item for item in found):
        raise UnsupportedGraphError("the character list cannot be written one per line")
    return found


def export_graph(graph: Graph, example: torch.Tensor) -> torch.jit.ScriptModule:
    """Traces the graph. All sizes come from the input's, so batch, height and width stay free."""
    module: nn.Module = GraphModule(graph).eval()
    with torch.no_grad():
        return torch.jit.trace(module, example, check_trace=False)


def export_detector(path: Path) -> torch.jit.ScriptModule:
    """(B, 3, H, W) normalised, H and W multiples of 32 → (B, 1, H, W) probability of text."""
    return export_graph(read_graph(path), torch.rand(2, 3, 320, 448))


def export_recognizer(path: Path) -> tuple[torch.jit.ScriptModule, list[str]]:
    """(B, 3, 48, W) normalised → (B, T, classes) logits. The final softmax is left to the reader of few winners."""
    graph = read_graph(path)
    last = graph.steps[-1]
    if last.op != "Softmax" or last.output != graph.output:
        raise UnsupportedGraphError("the recogniser does not end in a softmax")
    graph.steps.pop()
    graph.output = last.inputs[0]
    names = characters(graph)
    module = export_graph(graph, torch.rand(2, 3, REC_HEIGHT, 328))
    classes = module(torch.zeros(1, 3, REC_HEIGHT, 64)).shape[2]
    if classes != len(names) + 1:
        raise UnsupportedGraphError(f"{classes} classes but {len(names)} characters and a blank")
    return module, names


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _largest_difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        raise VerificationError(f"{name}: shape {ours.shape}, not {theirs.shape}")
    worst = float(np.abs(ours - theirs).max())
    if not worst <= PROBABILITY_TOLERANCE:  # also rejects NaN
        raise VerificationError(f"{name} at {ours.shape} differs from ONNX Runtime by {worst:.2e}")
    return worst


def verify_detector(module: torch.jit.ScriptModule, path: Path) -> float:
    """Largest difference over DET_SHAPES; VerificationError past the tolerance."""
    session, random, worst = _session(path), np.random.default_rng(11), 0.0
    for batch, height, width in DET_SHAPES:
        image = random.uniform(-1, 1, (batch, 3, height, width)).astype(np.float32)
        with torch.no_grad():
            ours = module(torch.from_numpy(image)).numpy()
        worst = max(worst, _largest_difference("OCR detector", ours, session.run(None, {"x": image})[0]))
    return worst


def verify_recognizer(module: torch.jit.ScriptModule, path: Path) -> float:
    """Largest difference of probabilities over REC_SHAPES; VerificationError past the tolerance."""
    session, random, worst = _session(path), np.random.default_rng(13), 0.0
    for batch, width in REC_SHAPES:
        image = random.uniform(-1, 1, (batch, 3, REC_HEIGHT, width)).astype(np.float32)
        with torch.no_grad():
            ours = module(torch.from_numpy(image)).softmax(2).numpy()
        worst = max(worst, _largest_difference("OCR recogniser", ours, session.run(None, {"x": image})[0]))
    return worst
