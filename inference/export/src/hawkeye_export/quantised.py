"""Linear layers with weights and inputs of 8 bits, for processors: the captioner in the number format `int8`.

Weights have one scale for each output. Inputs are scaled while they pass, each row by its own largest number, so that what a layer
makes of a row does not depend on the rows beside it. Sums are exact 32-bit integers; everything else stays float32.

libtorch's operator knows one scale for all rows. So each row is divided by its largest number first, and one more row, `edges`,
holds the ends of the scale, which makes it the same at every call.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn

from hawkeye_export.florence2 import TiedEmbedding

LEVELS = 127
"""Largest weight as an integer; the smallest is its negative."""


def _scaled(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) weights → (N, K) int8 and (N,) scales."""
    scales = weight.abs().amax(1).clamp_min(1e-12) / LEVELS
    return (weight / scales.unsqueeze(1)).round().to(torch.int8), scales


class Int8Matrix(nn.Module):
    """(…, K) times the transpose of (N, K), plus a bias → (…, N).

    The packed weights are stored as a quantised tensor, and each libtorch packs them for its processor while it loads them.
    `edges` is (1, K): -1 and 1 for 8 bits. The service puts 3 for the 1 on x86-64 without AVX512-VNNI, where two products are
    added in 16 bits: the scale is then twice as coarse and begins at 0, and nothing overflows. It is a parameter because those
    are what libtorch's C interface lists by name.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        values, scales = _scaled(weight.detach().float())
        zeros = torch.zeros(len(scales), dtype=torch.long)
        quantised = torch._make_per_channel_quantized_tensor(values, scales.double(), zeros, 0)
        self.packed = torch.ops.quantized.linear_prepack(quantised, None)
        edges = torch.zeros(1, weight.shape[1])
        edges[0, 0], edges[0, 1] = -1.0, 1.0
        self.edges = nn.Parameter(edges, requires_grad=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        rows = x.reshape(-1, x.size(-1))
        largest = rows.abs().amax(1, keepdim=True).clamp_min(1e-12)
        sums = torch.ops.quantized.linear_dynamic(torch.cat((rows / largest, self.edges)), self.packed, False)
        return torch.addcmul(bias, sums[:-1], largest).view(x.shape[:-1] + bias.shape)


class Int8Linear(nn.Module):
    """A linear layer: (…, K) → (…, N)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = Int8Matrix(layer.weight)
        self.register_buffer("bias", torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach().float().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.weight(x, self.bias)


class Int8Embedding(nn.Module):
    """The table of tokens, which is also the last layer: rows to look up beside the packed form to multiply by."""

    def __init__(self, embedding: TiedEmbedding) -> None:
        super().__init__()
        values, scales = _scaled(embedding.weight.detach().float())
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.weight = Int8Matrix(embedding.weight)

    def forward(self, token: Tensor) -> Tensor:
        return self.values.index_select(0, token).float() * self.scales.index_select(0, token).unsqueeze(1)

    def logits(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.weight(x, bias)


def quantise(module: nn.Module) -> nn.Module:
    """Puts every linear layer and table of a float32 module into 8 bits, in place."""
    if platform.machine() in ("aarch64", "arm64"):
        # torch 2.11 would choose an engine there that exists on x86-64 only (pytorch issue 177254). What is stored is the same.
        torch.backends.quantized.engine = "qnnpack"
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        elif isinstance(child, TiedEmbedding):
            setattr(module, name, Int8Embedding(child))
        else:
            quantise(child)
    return module
