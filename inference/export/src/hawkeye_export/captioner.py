"""The captioner of a bundle: three TorchScript modules per number format, a tokenizer, and what the plain network said about
drawn crops."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

from hawkeye_export import torchscript
from hawkeye_export.caption_reference import (
    MEAN,
    STD,
    Rules,
    as_json,
    caption,
    drawn_crops,
    normalised,
    padded_vision,
    plain_logits,
)
from hawkeye_export.caption_tokenizer import PROMPTS, prompts, seeded_tokenizer
from hawkeye_export.caption_weights import LICENCE_NOTE, TOKENIZER, Origin, read
from hawkeye_export.errors import ExportError, VerificationError
from hawkeye_export.florence2 import IMAGE_SIZE, Config, Modules, build
from hawkeye_export.progress import say
from hawkeye_export.quantised import quantise
from hawkeye_export.sources import sha256_of_file

PARTS = ("vision", "encode", "step")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.float32}
"""What the modules take and give: in `int8`, weights and the inputs of products have 8 bits, and only inside."""

TOLERANCE = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.3, "int8": 0.5}
"""Largest accepted difference from the plain network in float32, of features and of logits, as a share of their deviation."""

VERIFY_STEPS = 8
"""Steps of the decoder in that comparison."""

VOCABULARY_STEP = 8
"""Logits are a multiple of this, and those behind the vocabulary are never the best: GPUs multiply matrices of other widths several times
slower."""

REFERENCE_CROPS = 24
"""Drawn crops whose captions go into the bundle."""

REFERENCE = "captioner-reference"


@dataclass(frozen=True)
class Request:
    """What `--caption` and the options beside it ask for, located."""

    origin: Origin
    dtypes: tuple[str, ...] = ("float32",)

    def identity(self) -> dict[str, Any]:
        """What makes a captioner in a bundle the one asked for."""
        return {"source": self.origin.source(), "tokenizer": self.origin.sums.get(TOKENIZER), "dtypes": list(self.dtypes)}


def identity_of(model: dict[str, Any]) -> dict[str, Any]:
    """`Request.identity` of a captioner that a manifest lists."""
    made_up = "sha256" not in model["source"]
    dtypes = [entry["dtype"] for entry in model["files"] if entry["part"] == PARTS[0]]
    return {"source": model["source"], "tokenizer": None if made_up else model["tokenizer"]["sha256"], "dtypes": dtypes}


def parse_dtypes(text: str) -> tuple[str, ...]:
    """`float32,bfloat16` → the names, each once. Raises ExportError for others."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    strange = [name for name in names if name not in DTYPES]
    if strange:
        raise ExportError(f"{strange[0]!r} is no number format of a captioner: use {', '.join(DTYPES)}")
    return names


def export(folder: Path, request: Request, *, answers: bool = True) -> dict[str, Any]:
    """Writes the captioner's files into `folder` and returns its entry for bundle.json.

    Without `answers` the plain network is not asked about crops for later tests, which takes a minute at the published size. Raises VerificationError when a module as saved differs from the plain network.
    """
    origin, rules = request.origin, Rules()
    config, weights, bias = read(origin)
    say(f"captioner: {sum(tensor.numel() for tensor in weights.values()) / 1e6:.1f} M parameters, {origin.title}")
    tokenizer = seeded_tokenizer(config.vocabulary, origin.seed) if origin.tokenizer is None else origin.tokenizer.read_text("utf-8")
    questions = prompts(tokenizer, config.vocabulary)
    (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
    modules = build(config, weights, bias)
    del weights
    verifier = Verifier(config, modules, questions["caption"].tokens)
    files, verification = [], {}
    for dtype in request.dtypes:
        files += _save(folder, config, modules, dtype)
        device = _device_of(dtype)
        parts = {part: torch.jit.load(str(folder / _name(part, dtype)), map_location=device) for part in PARTS}
        verification[dtype] = verifier.compare(parts, dtype, device)
        say(f"captioner: {dtype} differs from the plain network by {verification[dtype]:.1e} of the deviation")
    listed = []
    if answers:
        say(f"captioner: what the plain network says about {REFERENCE_CROPS} drawn crops")
        listed = _reference(folder, config, modules, {name: prompt.tokens for name, prompt in questions.items()}, rules)
    return {
        "role": "captioner",
        "name": "random-captioner" if origin.test_only else "omniparser-v2-icon-caption" if origin.published else "florence-2-captioner",
        "architecture": "florence-2", "licence": origin.licence, "source": origin.source(),
        "imageSize": IMAGE_SIZE, "channelOrder": "RGB", "mean": list(MEAN), "std": list(STD),
        "captioner": {
            "imageTokens": config.image_tokens, "vocabulary": config.vocabulary, "width": config.width,
            "layers": config.decoder_layers, "heads": config.decoder_heads, "headSize": config.head_size,
            "positions": config.positions,
            "generation": {
                "startToken": rules.start, "forcedFirstToken": rules.forced_first, "forcedLastToken": rules.forced_last,
                "endToken": rules.end, "noRepeatNgram": rules.no_repeat_ngram, "maxNewTokens": rules.max_new_tokens,
            },
            "prompts": {name: {"text": prompt.text, "tokens": prompt.tokens} for name, prompt in questions.items()},
        },
        "tokenizer": _listed(folder / TOKENIZER), "files": files, "reference": listed,
        "verification": {"maxDifference": verification},
    }  # fmt: skip


def licence_row(origin: Origin) -> tuple[str, str, str]:
    """Source, sha256 and licence for LICENSES.md."""
    return origin.title, origin.source().get("sha256", ""), origin.licence


def licence_note(origin: Origin) -> str:
    if origin.test_only:
        return "Random numbers, for tests only: this bundle's captions mean nothing."
    return LICENCE_NOTE if origin.published else "Weights of your own; their licence is not known to this exporter."


def _device_of(dtype: str) -> str:
    """Where a number format is compared. No processor is ever given float16, and some compute not-a-number with it."""
    return "cuda" if dtype == "float16" and torch.cuda.is_available() else "cpu"


def _name(part: str, dtype: str) -> str:
    return f"captioner-{part}.{dtype}.pt"


def _listed(path: Path) -> dict[str, str]:
    return {"path": path.name, "sha256": sha256_of_file(path)}


def _save(folder: Path, config: Config, modules: Modules, dtype: str) -> list[dict[str, str]]:
    files = []
    for part in PARTS:
        # Scripted, not traced: a trace would keep the example's batch, device and number format. Not frozen: parameters of a
        # frozen module are constants, which do not follow to another device.
        module = _copy(getattr(modules, part), config).to(DTYPES[dtype])
        if dtype == "int8":
            module = quantise(module)
        module = torch.jit.script(module.eval())
        path = folder / _name(part, dtype)
        torchscript.save(module, path)
        files.append({"dtype": dtype, "part": part, **_listed(path)})
    return files


def _copy(module: torch.nn.Module, config: Config) -> torch.nn.Module:
    """A module of the same weights, a vocabulary of whole rows: changing a number format is in place."""
    rows = -config.vocabulary % VOCABULARY_STEP
    with torch.device("meta"):
        copy = type(module)(replace(config, vocabulary=config.vocabulary + rows))
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    if "embedding.weight" in state:
        state["embedding.weight"] = F.pad(state["embedding.weight"], (0, 0, 0, rows))
        state["bias"] = F.pad(state["bias"], (0, rows), value=float("-inf"))
    copy.load_state_dict(state, assign=True)
    return copy.requires_grad_(False)


class Verifier:
    """Compares saved modules with the plain network on drawn crops and random tokens."""

    def __init__(self, config: Config, modules: Modules, prompt: list[int]) -> None:
        self.config, self.prompt = config, torch.tensor(prompt)
        generator = torch.Generator().manual_seed(5)
        # Three rows, so that no size of the example is 1 or equals another.
        self.pixels = normalised(drawn_crops(3, seed=5))
        self.tokens = torch.randint(4, config.vocabulary, (3, VERIFY_STEPS), generator=generator)
        with torch.no_grad():
            self.features = padded_vision(config, modules.vision)(self.pixels)
            cross = modules.encode(self.features, modules.step.embed(self.prompt))
            self.logits = plain_logits(modules, self.tokens, cross)

    def compare(self, parts: dict[str, torch.jit.ScriptModule], dtype: str, device: str = "cpu") -> float:
        """Largest difference of features and logits, as a share of their deviation. Raises VerificationError past TOLERANCE."""
        # Optimising takes longer than these few calls.
        with torch.no_grad(), torch.jit.optimized_execution(False):
            features = parts["vision"](self.pixels.to(device, DTYPES[dtype]))
            cross = parts["encode"](features, parts["step"].embed(self.prompt.to(device)))
            logits = decode_given(parts["step"], self.config, self.tokens.to(device), cross)[..., : self.config.vocabulary]
        worst = max(_share(features, self.features), _share(logits, self.logits))
        if not worst <= TOLERANCE[dtype]:  # also rejects NaN
            raise VerificationError(f"the captioner in {dtype} differs from the plain network by {worst:.2e} of the deviation")
        return worst


def decode_given(step: Any, config: Config, tokens: Tensor, cross: Tensor) -> Tensor:
    """(B, N) tokens → (B, N, vocabulary) logits, one call of the step module for each column."""
    batch, length = tokens.shape
    cache = cross.new_zeros(config.decoder_layers, 2, batch, config.decoder_heads, length, config.head_size)
    seen = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
    places = torch.arange(length, device=tokens.device)
    columns = [step(tokens[:, at], places[at : at + 1], cache, cross, seen[at]) for at in range(length)]
    return torch.stack(columns, 1)


def _share(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float().cpu() - theirs).abs().max() / theirs.std())


def _reference(folder: Path, config: Config, modules: Modules, questions: dict[str, list[int]], rules: Rules) -> list[dict[str, str]]:
    crops = drawn_crops(REFERENCE_CROPS, seed=9)
    picture, document = folder / f"{REFERENCE}.png", folder / f"{REFERENCE}.json"
    # One column of crops; OpenCV writes BGR.
    cv2.imwrite(str(picture), crops.reshape(-1, IMAGE_SIZE, 3)[:, :, ::-1])
    answers = {name: as_json(caption(config, modules, crops, questions[name], rules)) for name in PROMPTS}
    rows = {name: ",\n".join("    " + json.dumps(item) for item in items) for name, items in answers.items()}
    parts = ",\n".join(f'  "{name}": [\n{text}\n  ]' for name, text in rows.items())
    document.write_text("{\n" + parts + "\n}\n", encoding="utf-8")
    return [_listed(document), _listed(picture)]
