"""Florence-2's captioner for 64×64 crops in plain torch: what `captioner` turns into three TorchScript modules.

Weights go by the names of Hugging Face's own Florence-2 without their leading `model.`; `shapes` lists them all. Nothing here
copies to the host or takes a shape from data, so that a CUDA graph can capture each call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hawkeye_export.errors import UnsupportedGraphError

IMAGE_SIZE = 64
"""Sides of a crop in pixels, on every device. OmniParser's service feeds 64 on CUDA and scales to 768 elsewhere."""

POSITION_OFFSET = 2
"""BART's table of positions begins with two rows that are never used."""


@dataclass(frozen=True)
class Config:
    """Sizes of a Florence-2. Vision values are per stage."""

    depths: tuple[int, ...]
    patch_sizes: tuple[int, ...]
    strides: tuple[int, ...]
    paddings: tuple[int, ...]
    prenorm: tuple[bool, ...]
    dims: tuple[int, ...]
    vision_heads: tuple[int, ...]
    groups: tuple[int, ...]
    window: int
    image_positions: int
    temporal_positions: int
    vocabulary: int
    width: int
    encoder_layers: int
    decoder_layers: int
    encoder_heads: int
    decoder_heads: int
    encoder_ffn: int
    decoder_ffn: int
    positions: int
    scale_embedding: bool

    @property
    def sides(self) -> tuple[int, ...]:
        """Side of the square map in each stage: 16, 8, 4, 2 for Florence-2."""
        side, found = IMAGE_SIZE, []
        for size, stride, padding in zip(self.patch_sizes, self.strides, self.paddings, strict=True):
            side = (side + 2 * padding - size) // stride + 1
            found.append(side)
        return tuple(found)

    @property
    def image_tokens(self) -> int:
        """Tokens of one crop: the mean over the last map, then each of its places."""
        return 1 + self.sides[-1] ** 2

    @property
    def head_size(self) -> int:
        return self.width // self.decoder_heads


BASE = Config(
    depths=(1, 1, 9, 1), patch_sizes=(7, 3, 3, 3), strides=(4, 2, 2, 2), paddings=(3, 1, 1, 1), prenorm=(False, True, True, True),
    dims=(128, 256, 512, 1024), vision_heads=(4, 8, 16, 32), groups=(4, 8, 16, 32), window=12, image_positions=50,
    temporal_positions=100, vocabulary=51289, width=768, encoder_layers=6, decoder_layers=6, encoder_heads=12, decoder_heads=12,
    encoder_ffn=3072, decoder_ffn=3072, positions=1024, scale_embedding=False,
)  # fmt: skip
"""Florence-2-base, OmniParser's captioner: config.json of its `icon_caption`."""

SMALL = Config(
    depths=(1, 1, 2, 1), patch_sizes=(7, 3, 3, 3), strides=(4, 2, 2, 2), paddings=(3, 1, 1, 1), prenorm=(False, True, True, True),
    dims=(16, 32, 48, 64), vision_heads=(1, 2, 3, 4), groups=(1, 2, 3, 4), window=12, image_positions=50,
    temporal_positions=100, vocabulary=51289, width=64, encoder_layers=2, decoder_layers=2, encoder_heads=4, decoder_heads=4,
    encoder_ffn=128, decoder_ffn=128, positions=1024, scale_embedding=False,
)  # fmt: skip
"""The same network, maps, windows and vocabulary, but narrow: for tests."""


def parse_config(document: dict[str, Any]) -> Config:
    """From a config.json of Microsoft's Florence-2 code or of Hugging Face's. Raises UnsupportedGraphError for other networks."""
    try:
        vision, text = document["vision_config"], document["text_config"]
        embedding = vision.get("image_pos_embed", {}).get("max_pos_embeddings", vision.get("max_position_embeddings", 50))
        temporal = vision.get("visual_temporal_embedding", {}).get("max_temporal_embeddings")
        config = Config(
            depths=tuple(vision["depths"]), patch_sizes=tuple(vision["patch_size"]), strides=tuple(vision["patch_stride"]),
            paddings=tuple(vision["patch_padding"]), prenorm=tuple(vision["patch_prenorm"]),
            dims=tuple(vision.get("dim_embed") or vision["embed_dim"]), vision_heads=tuple(vision["num_heads"]),
            groups=tuple(vision["num_groups"]), window=vision["window_size"], image_positions=embedding,
            temporal_positions=temporal or vision.get("max_temporal_embeddings", 100), vocabulary=text["vocab_size"],
            width=text["d_model"], encoder_layers=text["encoder_layers"], decoder_layers=text["decoder_layers"],
            encoder_heads=text["encoder_attention_heads"], decoder_heads=text["decoder_attention_heads"],
            encoder_ffn=text["encoder_ffn_dim"], decoder_ffn=text["decoder_ffn_dim"],
            positions=text.get("max_position_embeddings", 1024), scale_embedding=bool(text.get("scale_embedding", False)),
        )  # fmt: skip
        activations = {text.get("activation_function", "gelu"), vision.get("activation_function", "gelu")}
        sources = vision.get("image_feature_source", ["spatial_avg_pool", "temporal_avg_pool"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UnsupportedGraphError(f"config.json is not that of a Florence-2: {error!r}") from error
    if vision.get("projection_dim", config.width) != config.width:
        raise UnsupportedGraphError("the image projection is not as wide as the language model")
    if activations != {"gelu"} or sources != ["spatial_avg_pool", "temporal_avg_pool"]:
        raise UnsupportedGraphError("config.json asks for another activation or other image features than Florence-2's")
    if len({len(values) for values in (config.depths, config.dims, config.vision_heads, config.groups, config.prenorm)}) != 1:
        raise UnsupportedGraphError("config.json does not give the same number of stages everywhere")
    return config


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight."""
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> None:
        found[f"{name}.weight"] = (outputs, inputs)
        if bias:
            found[f"{name}.bias"] = (outputs,)

    def norm(name: str, dim: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (dim,), (dim,)

    before = 3
    for stage, dim in enumerate(config.dims):
        head, size = f"vision_tower.convs.{stage}", config.patch_sizes[stage]
        found[f"{head}.conv.weight"], found[f"{head}.conv.bias"] = (dim, before, size, size), (dim,)
        norm(f"{head}.norm", before if config.prenorm[stage] else dim)
        for block in range(config.depths[stage]):
            for kind, attention in (("spatial_block", "window_attn"), ("channel_block", "channel_attn")):
                name = f"vision_tower.blocks.{stage}.{block}.{kind}"
                for conv in ("conv1", "conv2"):
                    found[f"{name}.{conv}.weight"], found[f"{name}.{conv}.bias"] = (dim, 1, 3, 3), (dim,)
                norm(f"{name}.norm1", dim)
                norm(f"{name}.norm2", dim)
                linear(f"{name}.{attention}.qkv", dim, 3 * dim)
                linear(f"{name}.{attention}.proj", dim, dim)
                linear(f"{name}.ffn.fc1", dim, 4 * dim)
                linear(f"{name}.ffn.fc2", 4 * dim, dim)
        before = dim
    last = config.dims[-1]
    linear("multi_modal_projector.image_projection", last, config.width, bias=False)
    norm("multi_modal_projector.image_proj_norm", config.width)
    found["multi_modal_projector.image_position_embed.row_embeddings.weight"] = (config.image_positions, last // 2)
    found["multi_modal_projector.image_position_embed.column_embeddings.weight"] = (config.image_positions, last - last // 2)
    found["multi_modal_projector.visual_temporal_embed.pos_idx_to_embed"] = (config.temporal_positions, last)
    found["language_model.shared.weight"] = (config.vocabulary, config.width)
    parts = (("encoder", config.encoder_layers, config.encoder_ffn), ("decoder", config.decoder_layers, config.decoder_ffn))
    for part, layers, ffn in parts:
        head = f"language_model.{part}"
        found[f"{head}.embed_positions.weight"] = (config.positions + POSITION_OFFSET, config.width)
        norm(f"{head}.layernorm_embedding", config.width)
        for layer in range(layers):
            name = f"{head}.layers.{layer}"
            for attention in ("self_attn",) if part == "encoder" else ("self_attn", "encoder_attn"):
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    linear(f"{name}.{attention}.{projection}", config.width, config.width)
                norm(f"{name}.{attention}_layer_norm", config.width)
            linear(f"{name}.fc1", config.width, ffn)
            linear(f"{name}.fc2", ffn, config.width)
            norm(f"{name}.final_layer_norm", config.width)
    return found


class ConvEmbed(nn.Module):
    """The strided convolution at the head of a stage: (B, C, H, W) → (B, D, H / stride, W / stride)."""

    def __init__(self, config: Config, stage: int) -> None:
        super().__init__()
        inputs, outputs = (3, *config.dims)[stage], config.dims[stage]
        self.conv = nn.Conv2d(inputs, outputs, config.patch_sizes[stage], config.strides[stage], config.paddings[stage])
        self.prenorm = config.prenorm[stage]
        self.norm = nn.LayerNorm(inputs if self.prenorm else outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.prenorm:
            return self.conv(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class WindowAttention(nn.Module):
    """Attention within square windows of a square map, (B, side², D) → the same shape.

    Florence-2 pads the map with zeros to whole windows and attends to the padding too. Behind the projection every padded place
    has the same key and value, the projection's bias; so one key whose logit is raised by ln(number of padded places) stands
    for all of them. This is exact, and the padding is never computed: at 64×64 it would be 80 of 144, 128 of 144 and 140 of
    144 places in the later stages.
    """

    def __init__(self, dim: int, heads: int, window: int, side: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.heads, self.size, self.window, self.side = heads, dim // heads, window, side
        self.spans: list[tuple[int, int]] = [(start, min(start + window, side)) for start in range(0, side, window)]

    def forward(self, x: Tensor) -> Tensor:
        batch, places, dim = x.shape
        qkv = self.qkv(x).view(batch, self.side, self.side, 3 * dim)
        rows: list[Tensor] = []
        for top, bottom in self.spans:
            row: list[Tensor] = []
            for left, right in self.spans:
                row.append(self.attend(qkv[:, top:bottom, left:right]))
            rows.append(torch.cat(row, 2))
        return self.proj(torch.cat(rows, 1).view(batch, places, dim))

    def attend(self, qkv: Tensor) -> Tensor:
        """One window without its padding: (B, H, W, 3·D) → (B, H, W, D)."""
        batch, height, width, _ = qkv.shape
        places = height * width
        query, key, value = qkv.reshape(batch, places, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        scores = torch.matmul(query, key.transpose(2, 3)) * self.size**-0.5
        padded = self.window * self.window - places
        if padded > 0:
            bias = self.qkv.bias.view(3, self.heads, 1, self.size)
            score = (query * bias[1]).sum(3, keepdim=True) * self.size**-0.5
            # In float32: the logarithm would lose its digits in bfloat16.
            weights = torch.cat((scores.float(), score.float() + math.log(float(padded))), 3).softmax(3).to(qkv.dtype)
            mixed = torch.matmul(weights[..., :places], value) + weights[..., places:] * bias[2]
        else:
            mixed = torch.matmul(scores.float().softmax(3).to(qkv.dtype), value)
        return mixed.transpose(1, 2).reshape(batch, height, width, self.heads * self.size)


class ChannelAttention(nn.Module):
    """Attention between channels of a group, over all places of the map: (B, N, D) → the same shape."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, places, dim = x.shape
        qkv = self.qkv(x).reshape(batch, places, 3, self.groups, dim // self.groups).permute(2, 0, 3, 4, 1)
        query, key, value = qkv.unbind(0)
        scores = torch.matmul(query, key.transpose(2, 3)) * float(places) ** -0.5
        mixed = torch.matmul(scores.float().softmax(3).to(x.dtype), value)
        return self.proj(mixed.permute(0, 3, 1, 2).reshape(batch, places, dim))


class Block(nn.Module):
    """Depthwise convolution and attention, depthwise convolution and two linear layers, each added to its input."""

    def __init__(self, dim: int, attention: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attention = attention
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        x = (self.conv1(x) + x).flatten(2).transpose(1, 2)
        x = x + self.attention(self.norm1(x))
        x = x.transpose(1, 2).reshape(batch, dim, height, width)
        x = (self.conv2(x) + x).flatten(2).transpose(1, 2)
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x.transpose(1, 2).reshape(batch, dim, height, width)


class Vision(nn.Module):
    """(B, 3, 64, 64), normalised → (B, image tokens, width): DaViT, image positions, projection."""

    def __init__(self, config: Config, attention: type[nn.Module] = WindowAttention) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvEmbed(config, stage) for stage in range(len(config.dims)))
        self.stages = nn.ModuleList()
        for stage, dim in enumerate(config.dims):
            blocks: list[nn.Module] = []
            for _ in range(config.depths[stage]):
                blocks.append(Block(dim, attention(dim, config.vision_heads[stage], config.window, config.sides[stage])))
                blocks.append(Block(dim, ChannelAttention(dim, config.groups[stage])))
            self.stages.append(nn.Sequential(*blocks))
        self.projection = nn.Linear(config.dims[-1], config.width, bias=False)
        self.norm = nn.LayerNorm(config.width)
        self.register_buffer("positions", torch.empty(config.sides[-1] ** 2, config.dims[-1]))

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels
        for conv, blocks in zip(self.convs, self.stages):  # noqa: B905 - TorchScript knows no strict=
            x = blocks(conv(x))
        x = x.flatten(2).transpose(1, 2) + self.positions
        return self.norm(self.projection(torch.cat((x.mean(1, keepdim=True), x), 1)))


class EncoderLayer(nn.Module):
    """BART's encoder layer, norms behind each sum: (B, S, D) → the same shape."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)
        self.norm2 = nn.LayerNorm(width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = self.norm1(x + self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x))))


class Encode(nn.Module):
    """Image features (B, image tokens, D) and one prompt's embeddings (P, D), the same for all, → keys and values for the
    decoder's cross-attention, (layers, 2, B, heads, image tokens + P, head size)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.register_buffer("positions", torch.empty(config.positions, config.width))
        self.norm = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(
            EncoderLayer(config.width, config.encoder_heads, config.encoder_ffn) for _ in range(config.encoder_layers)
        )
        self.cross = nn.Linear(config.width, config.decoder_layers * 2 * config.width)
        self.decoder_layers, self.heads, self.size = config.decoder_layers, config.decoder_heads, config.head_size

    def forward(self, features: Tensor, prompt: Tensor) -> Tensor:
        batch = features.size(0)
        x = torch.cat((features, prompt.unsqueeze(0).expand(batch, -1, -1)), 1)
        length = x.size(1)
        x = self.norm(x + self.positions[:length])
        for layer in self.layers:
            x = layer(x)
        cross = self.cross(x).view(batch, length, self.decoder_layers, 2, self.heads, self.size)
        return cross.permute(2, 3, 0, 4, 1, 5).contiguous()


class DecoderLayer(nn.Module):
    """BART's decoder layer for one token a row: (B, D) → the same shape. Writes its key and value into the cache."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.cross_query = nn.Linear(width, width)
        self.cross_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)
        self.norm3 = nn.LayerNorm(width)
        self.heads, self.size = heads, width // heads

    def forward(self, x: Tensor, position: Tensor, cache: Tensor, cross: Tensor, mask: Tensor) -> Tensor:
        batch, width = x.shape
        qkv = self.qkv(x).view(batch, 3, self.heads, 1, self.size)
        cache[0].index_copy_(2, position, qkv[:, 1])
        cache[1].index_copy_(2, position, qkv[:, 2])
        mixed = F.scaled_dot_product_attention(qkv[:, 0], cache[0], cache[1], attn_mask=mask)
        x = self.norm1(x + self.out(mixed.reshape(batch, width)))
        query = self.cross_query(x).view(batch, self.heads, 1, self.size)
        mixed = F.scaled_dot_product_attention(query, cross[0], cross[1])
        x = self.norm2(x + self.cross_out(mixed.reshape(batch, width)))
        return self.norm3(x + self.fc2(F.gelu(self.fc1(x))))


class TiedEmbedding(nn.Embedding):
    """The table of tokens, (vocabulary, D), which is also the last layer."""

    def logits(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, D) → (B, vocabulary)."""
        return F.linear(x, self.weight, bias)


class Step(nn.Module):
    """One token further: (B,) tokens at (1,) position → (B, vocabulary) logits.

    `cache` is (layers, 2, B, heads, T, head size), zeros at first, and is written at `position`; `cross` is what `Encode` gives;
    `mask` is (T,), true where a place of the cache may be looked at: up to and including `position`.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = TiedEmbedding(config.vocabulary, config.width)
        self.scale = math.sqrt(config.width) if config.scale_embedding else 1.0
        self.register_buffer("positions", torch.empty(config.positions, config.width))
        self.register_buffer("bias", torch.empty(config.vocabulary))
        self.norm = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(
            DecoderLayer(config.width, config.decoder_heads, config.decoder_ffn) for _ in range(config.decoder_layers)
        )

    def forward(self, token: Tensor, position: Tensor, cache: Tensor, cross: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.embed(token) + self.positions.index_select(0, position))
        seen = mask.view(1, 1, 1, -1)
        for index, layer in enumerate(self.layers):
            x = layer(x, position, cache[index], cross[index], seen)
        return self.embedding.logits(x, self.bias)

    @torch.jit.export
    def embed(self, token: Tensor) -> Tensor:
        """(N,) tokens → (N, D). The prompts take this way into `Encode`, so that the table is in one file only."""
        return self.embedding(token) * self.scale


@dataclass(frozen=True)
class Modules:
    """The captioner's three parts, with weights."""

    vision: Vision
    encode: Encode
    step: Step


def _vision_state(config: Config, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.startswith("vision_tower.convs."):
            state[name.removeprefix("vision_tower.")] = tensor
        elif name.startswith("vision_tower.blocks."):
            _, _, stage, block, kind, rest = name.split(".", 5)
            # A stage here is one row of blocks: spatial, channel, spatial, channel …
            place = 2 * int(block) + (kind == "channel_block")
            rest = rest.replace("window_attn.", "attention.").replace("channel_attn.", "attention.").removeprefix("ffn.")
            state[f"stages.{stage}.{place}.{rest}"] = tensor
    head = "multi_modal_projector"
    state["projection.weight"] = weights[f"{head}.image_projection.weight"]
    state["norm.weight"], state["norm.bias"] = weights[f"{head}.image_proj_norm.weight"], weights[f"{head}.image_proj_norm.bias"]
    side = config.sides[-1]
    columns = weights[f"{head}.image_position_embed.column_embeddings.weight"][:side]
    rows = weights[f"{head}.image_position_embed.row_embeddings.weight"][:side]
    grid = torch.cat((columns.unsqueeze(0).expand(side, -1, -1), rows.unsqueeze(1).expand(-1, side, -1)), 2)
    # One picture is a film of one frame: the temporal position is always the first.
    state["positions"] = grid.flatten(0, 1) + weights[f"{head}.visual_temporal_embed.pos_idx_to_embed"][0]
    return state


def _joined(weights: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Several linear layers of one input as one."""
    return {kind: torch.cat([weights[f"{name}.{kind}"] for name in names]) for kind in ("weight", "bias")}


def _text_state(weights: dict[str, Tensor], part: str, layers: int, norms: dict[str, str]) -> dict[str, Tensor]:
    head = f"language_model.{part}"
    state = {"positions": weights[f"{head}.embed_positions.weight"][POSITION_OFFSET:]}

    def put(target: str, source: str) -> None:
        for kind in ("weight", "bias"):
            state[f"{target}.{kind}"] = weights[f"{source}.{kind}"]

    put("norm", f"{head}.layernorm_embedding")
    for layer in range(layers):
        name, target = f"{head}.layers.{layer}", f"layers.{layer}"
        joined = _joined(weights, [f"{name}.self_attn.{which}_proj" for which in "qkv"])
        state[f"{target}.qkv.weight"], state[f"{target}.qkv.bias"] = joined["weight"], joined["bias"]
        for ours, theirs in {"out": "self_attn.out_proj", "fc1": "fc1", "fc2": "fc2", **norms}.items():
            put(f"{target}.{ours}", f"{name}.{theirs}")
    return state


def build(config: Config, weights: dict[str, Tensor], bias: Tensor | None = None) -> Modules:
    """The three parts from `shapes`' weights, and the bias of the logits, which Microsoft's checkpoints carry as zeros."""
    with torch.device("meta"):
        modules = Modules(Vision(config), Encode(config), Step(config))
    norms = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"}
    encode = _text_state(weights, "encoder", config.encoder_layers, norms)
    names = [
        f"language_model.decoder.layers.{layer}.encoder_attn.{which}_proj" for layer in range(config.decoder_layers) for which in "kv"
    ]
    cross = _joined(weights, names)
    encode["cross.weight"], encode["cross.bias"] = cross["weight"], cross["bias"]
    norms = {
        "norm1": "self_attn_layer_norm", "norm2": "encoder_attn_layer_norm", "norm3": "final_layer_norm",
        "cross_query": "encoder_attn.q_proj", "cross_out": "encoder_attn.out_proj",
    }  # fmt: skip
    step = _text_state(weights, "decoder", config.decoder_layers, norms)
    step["embedding.weight"] = weights["language_model.shared.weight"]
    step["bias"] = torch.zeros(config.vocabulary) if bias is None else bias
    states = ((modules.vision, _vision_state(config, weights)), (modules.encode, encode), (modules.step, step))
    for module, state in states:
        copies = {name: tensor.detach().float().clone() for name, tensor in state.items()}
        module.load_state_dict(copies, strict=True, assign=True)
        module.eval().requires_grad_(False)
    return modules
