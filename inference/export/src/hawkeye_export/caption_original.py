"""Hugging Face's own Florence-2, with the weights of one of our captioners: what captions are compared with, and timed beside.

Needs transformers, which exporting does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hawkeye_export.caption_reference import Rules
from hawkeye_export.florence2 import Config


def original(config: Config, weights: dict[str, Tensor], bias: Tensor | None = None) -> Any:
    """The network in float32, ready to generate. `weights` have `shapes`' names; `bias` is the logits', (vocabulary,)."""
    from transformers import Florence2Config, Florence2ForConditionalGeneration

    c = config
    vision = {
        "depths": c.depths, "patch_size": c.patch_sizes, "patch_stride": c.strides, "patch_padding": c.paddings,
        "patch_prenorm": c.prenorm, "embed_dim": c.dims, "num_heads": c.vision_heads, "num_groups": c.groups,
        "window_size": c.window, "projection_dim": c.width, "max_position_embeddings": c.image_positions,
        "max_temporal_embeddings": c.temporal_positions,
    }  # fmt: skip
    text = {
        "model_type": "bart", "vocab_size": c.vocabulary, "d_model": c.width, "encoder_layers": c.encoder_layers,
        "decoder_layers": c.decoder_layers, "encoder_attention_heads": c.encoder_heads, "decoder_attention_heads": c.decoder_heads,
        "encoder_ffn_dim": c.encoder_ffn, "decoder_ffn_dim": c.decoder_ffn, "max_position_embeddings": c.positions,
    }  # fmt: skip
    # Any token that no prompt has can mark the places of the image.
    model = Florence2ForConditionalGeneration(Florence2Config(vision_config=vision, text_config=text, image_token_id=c.vocabulary - 1))
    state = {f"model.{name}": tensor for name, tensor in weights.items()}
    state["lm_head.weight"] = state["model.language_model.shared.weight"]
    for part in ("encoder", "decoder"):
        state[f"model.language_model.{part}.embed_tokens.weight"] = state["lm_head.weight"]
    model.load_state_dict(state, strict=True)
    if bias is not None:
        # Hugging Face's form has no bias of the logits; one of the last layer is the same.
        model.lm_head.bias = torch.nn.Parameter(bias)
    return model.eval()


def generate(model: Any, pixels: Tensor, question: list[int], image_tokens: int, rules: Rules, **more: Any) -> Any:
    """Greedy captions of (N, 3, side, side) `pixels`, of which each has `image_tokens`: what `model.generate` returns, which `more`
    can shape. Its tokens begin with the start token."""
    prompt = [model.config.image_token_id] * image_tokens + question
    asked = torch.tensor([prompt] * len(pixels), device=pixels.device)
    return model.generate(
        input_ids=asked, pixel_values=pixels, attention_mask=torch.ones_like(asked), max_new_tokens=rules.max_new_tokens,
        num_beams=1, do_sample=False, no_repeat_ngram_size=rules.no_repeat_ngram, decoder_start_token_id=rules.start,
        forced_bos_token_id=rules.forced_first, forced_eos_token_id=rules.forced_last, bos_token_id=0, eos_token_id=rules.end,
        pad_token_id=1, **more,
    )  # fmt: skip
