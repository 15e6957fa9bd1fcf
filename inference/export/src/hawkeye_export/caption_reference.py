"""The plain way to a caption, which the exported modules are compared with: windows padded as Florence-2 pads them, and every
step computed from all tokens before it, without a cache.

Its answers on drawn crops go into the bundle, so that whoever loads the modules can tell whether they say the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hawkeye_export.caption_tokenizer import END, START
from hawkeye_export.florence2 import IMAGE_SIZE, Config, DecoderLayer, Modules, Vision, WindowAttention

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, per plane in RGB: Florence-2's preprocessor_config.json."""

DOUBTFUL_MARGIN = 1e-4
"""A step whose two best logits are closer than this may go either way when sums are taken in another order."""


@dataclass(frozen=True)
class Rules:
    """How OmniParser's captioner generates: generation_config.json of Florence-2, and its service's length."""

    start: int = END
    """BART begins with its end token."""
    forced_first: int = START
    forced_last: int = END
    end: int = END
    no_repeat_ngram: int = 3
    max_new_tokens: int = 20


@dataclass(frozen=True)
class Caption:
    """What was generated, without the start token; and the least margin between the two best logits of each step that chose."""

    tokens: list[int]
    doubtful: list[int]
    """Steps whose margin was under DOUBTFUL_MARGIN, counted from 0."""


class PaddedWindowAttention(nn.Module):
    """Florence-2's window attention as published: the map is padded with zeros to whole windows, and nothing is masked."""

    def __init__(self, dim: int, heads: int, window: int, side: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.heads, self.window, self.side = heads, window, side

    def forward(self, x: Tensor) -> Tensor:
        batch, places, dim = x.shape
        window, pad = self.window, -self.side % self.window
        whole = (self.side + pad) // window
        x = F.pad(x.view(batch, self.side, self.side, dim), (0, 0, 0, pad, 0, pad))
        x = x.view(batch, whole, window, whole, window, dim).permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, dim)
        qkv = self.qkv(x).view(x.shape[0], x.shape[1], 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].transpose(2, 3) * (dim // self.heads) ** -0.5
        x = self.proj((scores.softmax(3) @ qkv[2]).transpose(1, 2).reshape(x.shape))
        x = x.view(batch, whole, whole, window, window, dim).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, whole * window, whole * window, dim)[:, : self.side, : self.side].reshape(batch, places, dim)


def padded_vision(config: Config, vision: Vision) -> Vision:
    """The same weights with the padding computed."""
    plain = Vision(config, PaddedWindowAttention)
    plain.load_state_dict(vision.state_dict())
    return plain.eval().requires_grad_(False)


def plain_logits(modules: Modules, tokens: Tensor, cross: Tensor, last: int | None = None) -> Tensor:
    """(B, N) tokens → (B, N, vocabulary) logits, each from all tokens up to it; of the `last` places only, if given."""
    step = modules.step
    x = step.norm(step.embed(tokens) + step.positions[: tokens.shape[1]])
    for index, layer in enumerate(step.layers):
        x = _plain_layer(layer, x, cross[index])
    return F.linear(x if last is None else x[:, -last:], step.embedding.weight, step.bias)


def _plain_layer(layer: DecoderLayer, x: Tensor, cross: Tensor) -> Tensor:
    batch, length, width = x.shape
    split = (batch, length, -1, layer.heads, layer.size)

    def mixed(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        scores = query @ key.transpose(2, 3) * layer.size**-0.5
        scores = scores if mask is None else scores.masked_fill(mask, float("-inf"))
        return (scores.softmax(3) @ value).transpose(1, 2).reshape(batch, length, width)

    query, key, value = layer.qkv(x).view(split).permute(2, 0, 3, 1, 4)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    x = layer.norm1(x + layer.out(mixed(query, key, value, later)))
    query = layer.cross_query(x).view(split).permute(2, 0, 3, 1, 4)[0]
    x = layer.norm2(x + layer.cross_out(mixed(query, cross[0], cross[1], None)))
    return layer.norm3(x + layer.fc2(F.gelu(layer.fc1(x))))


def banned(history: list[int], size: int) -> set[int]:
    """Tokens that would repeat `size` tokens in a row that `history`, start token included, already has."""
    last = history[len(history) - size + 1 :]
    if len(last) < size - 1:
        return set()
    starts = range(len(history) - size + 1)
    return {history[at + size - 1] for at in starts if history[at : at + size - 1] == last}


def caption(config: Config, modules: Modules, crops: np.ndarray, prompt: list[int], rules: Rules) -> list[Caption]:
    """Greedy captions of (N, 64, 64, 3) crops."""
    with torch.no_grad():
        features = padded_vision(config, modules.vision)(normalised(crops))
        cross = modules.encode(features, modules.step.embed(torch.tensor(prompt)))
        histories = [[rules.start] for _ in crops]
        doubtful: list[list[int]] = [[] for _ in crops]
        for place in range(rules.max_new_tokens):
            forced = rules.forced_first if place == 0 else rules.forced_last if place == rules.max_new_tokens - 1 else None
            going = [row for row, history in enumerate(histories) if place == 0 or history[-1] != rules.end]
            if not going:
                break
            if forced is not None:
                for row in going:
                    histories[row].append(forced)
                continue
            logits = plain_logits(modules, torch.tensor([histories[row] for row in going]), cross[:, :, going], last=1)
            for row, scores in zip(going, logits[:, 0], strict=True):
                scores[list(banned(histories[row], rules.no_repeat_ngram))] = float("-inf")
                best = scores.topk(2)
                if best.values[0] - best.values[1] < DOUBTFUL_MARGIN:
                    doubtful[row].append(place)
                histories[row].append(int(best.indices[0]))
    return [Caption(history[1:], steps) for history, steps in zip(histories, doubtful, strict=True)]


def normalised(crops: np.ndarray) -> Tensor:
    """(N, 64, 64, 3) bytes → (N, 3, 64, 64), as the networks take them."""
    planes = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    return (planes - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def drawn_crops(count: int, seed: int) -> np.ndarray:
    """(count, 64, 64, 3) bytes: a few bars and spots on a plain ground with a little noise, each crop another."""
    choose = np.random.default_rng(seed)
    crops = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for crop in crops:
        crop[:] = choose.integers(0, 256, 3)
        for _ in range(choose.integers(1, 8)):
            x, y = choose.integers(0, IMAGE_SIZE - 4, 2)
            width, height = choose.integers(3, IMAGE_SIZE, 2)
            crop[y : y + height, x : x + width] = choose.integers(0, 256, 3)
        noise = choose.integers(-12, 13, crop.shape)
        crop[:] = np.clip(crop.astype(np.int16) + noise, 0, 255).astype(np.uint8)
    return crops


def as_json(captions: list[Caption]) -> list[dict[str, list[int]]]:
    return [asdict(item) for item in captions]
