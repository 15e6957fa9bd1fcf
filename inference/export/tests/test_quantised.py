"""The number format `int8`: what its layers compute, and that rows do not see one another."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from hawkeye_export import captioner, torchscript
from hawkeye_export.caption_reference import drawn_crops, normalised
from hawkeye_export.caption_weights import locate
from hawkeye_export.florence2 import TiedEmbedding
from hawkeye_export.quantised import Int8Embedding, Int8Linear, quantise


@pytest.fixture(params=["x86", "qnnpack"])
def engine(request: pytest.FixtureRequest):
    """The one of x86-64 and the one that the service sets on arm64; libtorch for x86-64 has both."""
    before = torch.backends.quantized.engine
    if request.param not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this torch has no {request.param}")
    torch.backends.quantized.engine = request.param
    yield request.param
    torch.backends.quantized.engine = before


def by_hand(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """The same rounding in float64: weights to 127 levels a row, inputs to 255 levels between -1 and 1 of their row's largest."""
    weight, x = layer.weight.double(), x.double()
    scale = weight.abs().amax(1, keepdim=True) / 127
    largest = x.abs().amax(1, keepdim=True)
    step = 2 / 255
    # 0 is at 127 or 128 of 0 to 255; which of them depends on how an engine rounds.
    levels = (x / largest / step).round().clamp(-128, 127)
    return (levels * step * largest) @ ((weight / scale).round() * scale).T + layer.bias.double()


def layer_and_rows(seed: int = 1) -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(seed)
    layer = nn.Linear(96, 40)
    # Rows of very different size: one scale for all of them would leave nothing of the small ones.
    return layer, torch.randn(7, 96) * torch.logspace(-3, 3, 7).unsqueeze(1)


@torch.no_grad()
def test_a_layer_rounds_as_it_says(engine: str) -> None:
    layer, x = layer_and_rows()
    found, exact = Int8Linear(layer)(x), layer(x)
    size = (exact - layer.bias).std(1, keepdim=True)
    assert ((found - by_hand(layer, x)).abs() / size).max() < 0.02
    assert 0.001 < ((found - exact).abs() / size).max() < 0.06
    assert Int8Linear(layer)(torch.zeros(2, 96)).equal(layer.bias.expand(2, -1))


@torch.no_grad()
def test_a_row_is_the_same_whatever_is_beside_it(engine: str) -> None:
    layer, x = layer_and_rows()
    ours = Int8Linear(layer)
    together = ours(x)
    for at in range(len(x)):
        assert ours(x[at : at + 1]).equal(together[at : at + 1])
    assert ours(x.view(1, 7, 96)).equal(together.unsqueeze(0)), "as many dimensions as there are"


@torch.no_grad()
def test_seven_bits_begin_at_zero(engine: str) -> None:
    """What the service sets on x86-64 without AVX512-VNNI: the upper edge 3."""
    layer, x = layer_and_rows()
    ours = Int8Linear(layer)
    fine = (ours(x) - layer(x)).pow(2).mean()
    edges = dict(ours.named_parameters())["weight.edges"]
    edges[0, 1] = 3.0
    coarse = (ours(x) - layer(x)).pow(2).mean()
    assert fine < coarse < 9 * fine
    scale, zero = torch.ops.aten._choose_qparams_per_tensor(edges)
    # -1 and 1, as 8 bits without a sign.
    assert round(-1 / scale) + zero >= 0 and round(1 / scale) + zero <= 128


@torch.no_grad()
def test_the_table_of_tokens_and_the_last_layer_are_the_same_numbers(engine: str) -> None:
    torch.manual_seed(2)
    table = TiedEmbedding(30, 64)
    ours = Int8Embedding(table)
    tokens = torch.tensor([29, 0, 7])
    assert (ours(tokens) - table(tokens)).abs().max() < table.weight.abs().max() / 127
    assert torch.ops.quantized.linear_unpack(ours.weight.packed)[0].int_repr().equal(ours.values)
    assert (ours.logits(table(tokens), torch.zeros(30)) - table.logits(table(tokens), torch.zeros(30))).abs().max() < 1.0


def test_every_product_of_the_captioner_is_in_eight_bits(tmp_path: Path) -> None:
    entry = captioner.export(tmp_path, captioner.Request(locate("random"), ("float32", "int8")), answers=False)
    paths = {(file["dtype"], file["part"]): tmp_path / file["path"] for file in entry["files"]}
    assert set(paths) == {(dtype, part) for dtype in ("float32", "int8") for part in captioner.PARTS}
    parts = {part: torch.jit.load(str(paths["int8", part])) for part in captioner.PARTS}
    for part, module in parts.items():
        text = str(module.inlined_graph)
        assert "quantized::linear_dynamic" in text and "aten::linear" not in text, part
        assert any(name.endswith(".edges") for name, _ in module.named_parameters()), "the service looks for them by this name"
        for name in ("aten::item", "aten::Int(", "aten::Bool(", "aten::nonzero"):
            assert name not in text, (part, name)
    # At the published size the files are a quarter; here norms, convolutions and positions weigh more.
    size = {dtype: paths[dtype, "step"].stat().st_size for dtype in ("float32", "int8")}
    assert size["int8"] < 0.62 * size["float32"]
    pixels = normalised(drawn_crops(3, seed=4))
    with torch.no_grad():
        together = parts["vision"](pixels)
        # A last digit of a convolution, which depends on the size of the batch, can become a step of 8 bits.
        assert (parts["vision"](pixels[1:2]) - together[1:2]).abs().max() < 0.1 * together.std()
    assert 0.01 < entry["verification"]["maxDifference"]["int8"] < captioner.TOLERANCE["int8"]


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    layer, _ = layer_and_rows()
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        torchscript.save(torch.jit.script(quantise(nn.Sequential(copy.deepcopy(layer).requires_grad_(False)))), folder / "m.pt")
        written.append((folder / "m.pt").read_bytes())
    assert written[0] == written[1]
