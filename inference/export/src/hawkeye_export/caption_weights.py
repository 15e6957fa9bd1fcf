"""Where a captioner's weights and tokenizer come from: a folder, a Hugging Face repository, or a seed.

Only safetensors files are read, which hold numbers and run no code; a folder that has nothing but a pickle is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hawkeye_export.caption_tokenizer import END
from hawkeye_export.errors import FetchError, UnsupportedGraphError, UntrustedWeightsError
from hawkeye_export.florence2 import BASE, SMALL, Config, parse_config, shapes
from hawkeye_export.progress import say
from hawkeye_export.sources import sha256_of_file

OMNIPARSER_CAPTION = "omniparser-v2"
"""Short for the published captioner on the command line."""

ENDLESS = "random-endless"
"""As wide as the published weights, and never the end token by choice: every caption has the full length, for measurements."""

RANDOM = {"random": SMALL, "random-base": BASE, ENDLESS: BASE}
"""Seeded weights without meaning: narrow, or as wide as the published ones."""

PUBLISHED_REPOSITORY = "microsoft/OmniParser-v2.0"
PUBLISHED_FOLDER = "icon_caption"
PUBLISHED_SHA256 = "01b934b0fe2d07b181e2d07752f16ae27c9d0ea88ddffe13a9a003aa9680f233"
"""Of `icon_caption/model.safetensors` of OmniParser-v2.0, as its publisher lists it."""

TOKENIZER_REPOSITORY = "microsoft/Florence-2-base"
"""OmniParser's repository has no tokenizer; its service takes this one's."""

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"

LICENCE_NOTE = "Florence-2-base by Microsoft, fine-tuned for icons by the OmniParser authors; weights and tokenizer are MIT."

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)*")


@dataclass(frozen=True)
class Origin:
    """Files of a captioner, found but not read. `test_only` has neither: `seed` makes it."""

    title: str
    weights: Path | None = None
    config: Path | None = None
    tokenizer: Path | None = None
    test_config: Config | None = None
    endless: bool = False
    seed: int = 0
    sums: dict[str, str] = field(default_factory=dict)

    @property
    def test_only(self) -> bool:
        return self.test_config is not None

    @property
    def published(self) -> bool:
        return self.sums.get(WEIGHTS) == PUBLISHED_SHA256

    @property
    def licence(self) -> str:
        if self.test_only:
            return "CC0-1.0"
        return "MIT" if self.published else "LicenseRef-unknown"

    def source(self) -> dict[str, str]:
        """The model's `source` in bundle.json."""
        if self.test_only:
            return {"path": self.title}
        return {"path": self.title, "sha256": self.sums[WEIGHTS]}


def locate(caption: str, tokenizer: str | None = None, seed: int = 0) -> Origin:
    """Finds and sums the files; a Hugging Face repository is downloaded into that library's own cache.

    Raises FetchError when something is not there, UntrustedWeightsError when the published repository holds another file.
    """
    if caption in RANDOM:
        if tokenizer is not None:
            raise FetchError("random weights come with a tokenizer of their own")
        return Origin(title=f"{caption} weights, seed {seed}", test_config=RANDOM[caption], endless=caption == ENDLESS, seed=seed)
    if Path(caption).is_dir():
        weights, config, title = _local(Path(caption), WEIGHTS), _local(Path(caption), CONFIG), WEIGHTS
        beside = Path(caption) / TOKENIZER
        found = beside if beside.is_file() else None
    else:
        name = PUBLISHED_REPOSITORY if caption == OMNIPARSER_CAPTION else caption
        if not _HUB_ID.fullmatch(name):
            raise FetchError(f"{caption} is neither a folder nor the name of a Hugging Face repository")
        owner, repository, *folders = name.split("/")
        name = f"{owner}/{repository}"
        if name == PUBLISHED_REPOSITORY and not folders:
            folders = [PUBLISHED_FOLDER]
        folder = "/".join(folders)
        weights, config = _download(name, folder, WEIGHTS), _download(name, folder, CONFIG)
        found = None if name == PUBLISHED_REPOSITORY else _download(name, folder, TOKENIZER, missing_is_fine=True)
        title = "/".join((name, *folders, WEIGHTS))
    sums = {WEIGHTS: sha256_of_file(weights)}
    if title.startswith(f"{PUBLISHED_REPOSITORY}/") and sums[WEIGHTS] != PUBLISHED_SHA256:
        raise UntrustedWeightsError(
            f"{title} is not the published file.\n  expected sha256 {PUBLISHED_SHA256}\n  found    sha256 {sums[WEIGHTS]}"
        )
    if tokenizer is not None:
        path = Path(tokenizer)
        found = path if path.is_file() else _download(tokenizer, "", TOKENIZER)
    elif found is None:
        say(f"the captioner has no {TOKENIZER}; taking that of {TOKENIZER_REPOSITORY}")
        found = _download(TOKENIZER_REPOSITORY, "", TOKENIZER)
    sums[TOKENIZER] = sha256_of_file(found)
    origin = Origin(title=title, weights=weights, config=config, tokenizer=found, sums=sums)
    if not origin.published:
        say("NOTICE: these are not the published OmniParser v2 captioner's weights; their licence is for you to know")
    return origin


def _local(folder: Path, name: str) -> Path:
    path = folder / name
    if path.is_file():
        return path
    if name == WEIGHTS and any(folder.glob("*.bin")):
        raise UntrustedWeightsError(
            f"{folder} holds its weights as a pickle, which can run any code when it is loaded. It was not opened; only {WEIGHTS} is read."
        )
    raise FetchError(f"{folder} has no {name}")


def _download(repository: str, folder: str, name: str, *, missing_is_fine: bool = False) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    say(f"fetching {name} of {repository} from Hugging Face, unless it is in that library's cache")
    try:
        return Path(hf_hub_download(repository, name, subfolder=folder or None))
    except LocalEntryNotFoundError as error:
        hint = f"download {name} yourself and give its folder" if name == WEIGHTS else f"give your own copy of {name}"
        raise FetchError(f"cannot reach Hugging Face for {name} of {repository}; {hint}") from error
    except EntryNotFoundError as error:
        if missing_is_fine:
            return None
        raise FetchError(f"{repository} has no {'/'.join(part for part in (folder, name) if part)}") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise FetchError(f"cannot fetch {name} of {repository}: {error}") from error


_BLOCK_NAMES = {
    ".fn.dw.": ".",
    ".window_attn.norm.": ".norm1.",
    ".channel_attn.norm.": ".norm1.",
    ".ffn.norm.": ".norm2.",
    ".fn.net.": ".",
    ".fn.": ".",
}


def native_name(name: str) -> str | None:
    """A checkpoint's own name for a weight → ours; None for what a captioner does not need.

    Checkpoints come in two spellings: Microsoft's, which OmniParser's has, and Hugging Face's with a leading `model.`.
    """
    if name == "image_projection":
        return "multi_modal_projector.image_projection.weight"
    renamed = {
        "image_proj_norm.": "multi_modal_projector.image_proj_norm.",
        "image_pos_embed.": "multi_modal_projector.image_position_embed.",
        "visual_temporal_embed.": "multi_modal_projector.visual_temporal_embed.",
        "language_model.model.": "language_model.",
        "model.": "",
    }
    for theirs, ours in renamed.items():
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    if name.startswith("vision_tower.convs."):
        name = name.replace(".proj.", ".conv.")
    elif name.startswith("vision_tower.blocks."):
        for theirs, ours in _BLOCK_NAMES.items():
            name = name.replace(theirs, ours)
    # Tied to the shared table, under whichever names a checkpoint repeats it; and what Microsoft's code keeps but never uses.
    tied = ("lm_head.weight", "language_model.lm_head.weight")
    if name in tied or name.endswith("coder.embed_tokens.weight") or name.startswith(("vision_tower.norms.", "vision_tower.head.")):
        return None
    return name


def read(origin: Origin) -> tuple[Config, dict[str, Tensor], Tensor | None]:
    """Sizes, weights by `shapes`' names in float32, and the logits' bias if the checkpoint has one.

    Raises UnsupportedGraphError when names or shapes are not those of the Florence-2 that config.json describes.
    """
    if origin.test_config is not None:
        bias = endless_bias(origin.test_config) if origin.endless else None
        return origin.test_config, seeded(origin.test_config, origin.seed), bias
    assert origin.config is not None and origin.weights is not None
    try:
        document: dict[str, Any] = json.loads(origin.config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedGraphError(f"{origin.config} cannot be read: {error}") from error
    config = parse_config(document)
    found, bias, tied = _tensors(origin.weights)
    wanted = shapes(config)
    if "language_model.shared.weight" not in found and tied is not None:
        found["language_model.shared.weight"] = tied
    missing, strange = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or strange:
        raise UnsupportedGraphError(
            f"{origin.weights.name} is not the network of its config.json: {len(missing)} weights are missing {missing[:3]}, "
            f"{len(strange)} are not known {strange[:3]}"
        )
    for name, shape in wanted.items():
        if tuple(found[name].shape) != shape:
            raise UnsupportedGraphError(f"{name} has the shape {tuple(found[name].shape)}, config.json says {shape}")
    return config, found, bias


def _tensors(path: Path) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None]:
    """Weights by our names, the logits' bias, and the table under one of its other names."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    bias = tied = None
    try:
        with safe_open(str(path), framework="pt") as file:
            for theirs in file.keys():  # noqa: SIM118 - not a mapping
                if theirs.endswith("final_logits_bias"):
                    bias = file.get_tensor(theirs).float().flatten()
                    continue
                ours = native_name(theirs)
                if ours is None:
                    tied = file.get_tensor(theirs) if theirs.endswith(("lm_head.weight", "embed_tokens.weight")) else tied
                    continue
                tensor = file.get_tensor(theirs).float()
                # Microsoft's code multiplies by it from the right; it is no linear layer there.
                found[ours] = tensor.T.contiguous() if theirs == "image_projection" else tensor
    except (SafetensorError, OSError) as error:
        raise UnsupportedGraphError(f"{path} is no safetensors file: {error}") from error
    return found, bias, tied


def endless_bias(config: Config) -> Tensor:
    """(vocabulary,) bias of the logits under which the end token is never the best.

    `seeded`'s logits deviate by about 2, the end token's by 5. A larger number would lose their digits in bfloat16.
    """
    bias = torch.zeros(config.vocabulary)
    bias[END] = -32
    return bias


def seeded(config: Config, seed: int) -> dict[str, Tensor]:
    """Weights without meaning under which every part of the network matters: signals keep their size from layer to layer, biases
    are not zero, and the end token's row is longer than others, so that captions end at different lengths."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, shape in shapes(config).items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            values = values * 0.1 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        elif "embed" in name or "shared" in name:
            values = values * (2.0 / shape[1] ** 0.5)
        else:
            values = values / (values[0].numel() ** 0.5)
        if shape[1:] == (1, 3, 3):
            # What these give is added to what they take, 48 times in a row: doubled each time it would pass the largest float16.
            values = values * 0.25
        weights[name] = values
    weights["language_model.shared.weight"][END] *= 2.6
    return weights
