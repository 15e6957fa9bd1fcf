"""The captioner: token for token what Hugging Face's Florence-2 generates, and its parts as a service loads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from hawkeye_export import bundle as bundles
from hawkeye_export import caption_original, captioner, cli
from hawkeye_export.caption_reference import (
    DOUBTFUL_MARGIN,
    Rules,
    banned,
    drawn_crops,
    normalised,
    padded_vision,
)
from hawkeye_export.caption_tokenizer import PROMPTS, prompts, seeded_tokenizer
from hawkeye_export.caption_weights import locate, seeded
from hawkeye_export.errors import ExportError, VerificationError
from hawkeye_export.florence2 import BASE, SMALL, WindowAttention, build, parse_config, shapes
from hawkeye_export.sources import OMNIPARSER_V2, sha256_of_file

RULES = Rules()
SEED = 0


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A narrow captioner in every number format: folder, manifest entry, and a loader of its parts."""
    folder = tmp_path_factory.mktemp("captioner")
    model = captioner.export(folder, captioner.Request(locate("random", seed=SEED), tuple(captioner.DTYPES)))
    paths = {(entry["dtype"], entry["part"]): folder / entry["path"] for entry in model["files"]}

    def parts(dtype: str = "float32") -> dict[str, torch.jit.ScriptModule]:
        return {part: torch.jit.load(str(paths[dtype, part])) for part in captioner.PARTS}

    return SimpleNamespace(folder=folder, model=model, parts=parts)


@pytest.fixture(scope="module")
def original():
    """Hugging Face's own Florence-2 with the same weights."""
    return caption_original.original(SMALL, seeded(SMALL, SEED))


def generate_original(model, crops: np.ndarray, question: list[int]) -> tuple[list[list[int]], list[list[float]]]:
    """Tokens without the start token up to the first end, and the margin of the two best scores at each of them."""
    more = {"return_dict_in_generate": True, "output_scores": True}
    out = caption_original.generate(model, normalised(crops), question, SMALL.image_tokens, RULES, **more)
    tokens = [until_end(row) for row in out.sequences[:, 1:].tolist()]
    best = torch.stack([scores.topk(2).values for scores in out.scores], 1)
    margins = (best[..., 0] - best[..., 1]).tolist()
    return tokens, [row[: len(kept)] for row, kept in zip(margins, tokens, strict=True)]


def until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(RULES.end) + 1] if RULES.end in tokens else tokens


def generate_exported(parts: dict, crops: np.ndarray, question: list[int]) -> list[list[int]]:
    """As a service does it: a cache, one call of `step` a token."""
    with torch.no_grad(), torch.jit.optimized_execution(False):
        cross = parts["encode"](parts["vision"](normalised(crops)), parts["step"].embed(torch.tensor(question)))
        length = RULES.max_new_tokens
        cache = torch.zeros(SMALL.decoder_layers, 2, len(crops), SMALL.decoder_heads, length, SMALL.head_size)
        histories = [[RULES.start] for _ in crops]
        for place in range(length - 1):
            token = torch.tensor([history[-1] for history in histories])
            logits = parts["step"](token, torch.tensor([place]), cache, cross, torch.arange(length) <= place)
            for row, history in enumerate(histories):
                logits[row, list(banned(history, RULES.no_repeat_ngram))] = float("-inf")
                history.append(RULES.forced_first if place == 0 else int(logits[row].argmax()))
    return [until_end([*history[1:], RULES.forced_last]) for history in histories]


def differing(ours: list[list[int]], theirs: list[list[int]], margins: list[list[float]]) -> tuple[list[str], list[str]]:
    """Crops whose tokens differ before any doubtful step, and those that differ from one on."""
    wrong, doubtful = [], []
    for crop, (a, b, margin) in enumerate(zip(ours, theirs, margins, strict=True)):
        if a == b:
            continue
        place = next(at for at in range(max(len(a), len(b))) if a[at : at + 1] != b[at : at + 1])
        close = [at for at in range(min(place + 1, len(margin))) if margin[at] < DOUBTFUL_MARGIN]
        (doubtful if close else wrong).append(f"crop {crop}, token {place}: {a} is not {b}, margins {margin}")
    return wrong, doubtful


@pytest.mark.parametrize(("name", "count"), [("caption", 200), ("detailedCaption", 40)])
def test_tokens_are_those_of_hugging_face(name: str, count: int, exported, original) -> None:
    question = exported.model["captioner"]["prompts"][name]["tokens"]
    crops = drawn_crops(count, seed=21)
    parts = exported.parts()
    ours, theirs, margins = [], [], []
    for start in range(0, count, 40):
        batch = crops[start : start + 40]
        ours += generate_exported(parts, batch, question)
        tokens, gaps = generate_original(original, batch, question)
        theirs, margins = theirs + tokens, margins + gaps
    wrong, doubtful = differing(ours, theirs, margins)
    close = sum(margin < DOUBTFUL_MARGIN for row in margins for margin in row)
    print(f"{count} crops, {sum(map(len, theirs))} tokens, {close} of them chosen by less than {DOUBTFUL_MARGIN}; differ: {doubtful}")
    assert not wrong, "\n".join(wrong)
    # The comparison would be worth little if all crops said the same, or if no caption ended by itself.
    assert len({tuple(tokens) for tokens in theirs}) > count / 2
    assert any(len(tokens) == RULES.max_new_tokens for tokens in theirs)
    assert name != "caption" or any(len(tokens) < RULES.max_new_tokens for tokens in theirs)


def test_the_comparison_notices_a_wrong_token() -> None:
    margins = [[1.0, 1.0, 1.0]]
    assert differing([[0, 5, 2]], [[0, 5, 2]], margins) == ([], [])
    assert len(differing([[0, 6, 2]], [[0, 5, 2]], margins)[0]) == 1
    assert len(differing([[0, 5]], [[0, 5, 2]], margins)[0]) == 1
    assert len(differing([[0, 6, 2]], [[0, 5, 2]], [[1.0, 1e-5, 1.0]])[1]) == 1
    assert len(differing([[0, 6, 2]], [[0, 5, 2]], [[1.0, 1.0, 1e-5]])[0]) == 1, "doubt afterwards excuses nothing"


def test_the_reference_in_the_bundle_is_what_hugging_face_says(exported, original) -> None:
    import cv2

    document = json.loads((exported.folder / "captioner-reference.json").read_text(encoding="utf-8"))
    picture = cv2.imread(str(exported.folder / "captioner-reference.png"))
    crops = np.ascontiguousarray(picture[:, :, ::-1]).reshape(-1, 64, 64, 3)
    assert len(crops) == captioner.REFERENCE_CROPS and set(document) == set(PROMPTS)
    for name, answers in document.items():
        tokens, margins = generate_original(original, crops, exported.model["captioner"]["prompts"][name]["tokens"])
        wrong, _ = differing([answer["tokens"] for answer in answers], tokens, margins)
        assert not wrong, "\n".join(wrong)


def test_collapsed_padding_is_exact(original) -> None:
    modules = build(SMALL, seeded(SMALL, SEED))
    pixels = normalised(drawn_crops(6, seed=3))
    with torch.no_grad():
        ours, plain = modules.vision(pixels), padded_vision(SMALL, modules.vision)(pixels)
        theirs = original.get_image_features(pixels).pooler_output
        assert ours.shape == (6, 5, SMALL.width)
        assert (ours - plain).abs().max() < 2e-5 and (ours - theirs).abs().max() < 2e-5
        # The padding has a say: without it the features are others.
        for attention in (block.attention for stage in modules.vision.stages for block in stage):
            if isinstance(attention, WindowAttention) and attention.side < attention.window:
                attention.window = attention.side
        assert (modules.vision(pixels) - plain).abs().max() > 1e-2


def test_verification_fails_for_a_module_that_differs(exported) -> None:
    modules = build(SMALL, seeded(SMALL, SEED))
    verifier = captioner.Verifier(SMALL, modules, exported.model["captioner"]["prompts"]["caption"]["tokens"])
    parts = exported.parts()
    assert verifier.compare(parts, "float32") < captioner.TOLERANCE["float32"]
    with torch.no_grad():
        dict(parts["step"].named_parameters())["layers.1.fc2.bias"][:8] += 0.5
    with pytest.raises(VerificationError):
        verifier.compare(parts, "float32")


@pytest.mark.parametrize("dtype", [name for name in captioner.DTYPES if name != "int8"])
def test_nothing_is_baked_and_nothing_waits_for_the_host(dtype: str, exported) -> None:
    for part, module in exported.parts(dtype).items():
        kinds = {value.dtype for value in module.state_dict().values()}
        assert kinds == {captioner.DTYPES[dtype]}, part
        text = str(module.inlined_graph)
        assert "aten::linear" in text
        # A device, or a call that copies to the host or whose result's size depends on values.
        for name in ('value="cpu"', 'value="cuda', "aten::item", "aten::Int(", "aten::Bool(", "aten::nonzero", "aten::masked_select"):
            assert name not in text, (part, name)


def test_rows_do_not_depend_on_their_batch(exported) -> None:
    parts, crops = exported.parts(), drawn_crops(5, seed=8)
    question = exported.model["captioner"]["prompts"]["caption"]["tokens"]
    together = generate_exported(parts, crops, question)
    assert together == [tokens for crop in crops for tokens in generate_exported(parts, crop[None], question)]


def test_entry_for_the_manifest(exported) -> None:
    model = exported.model
    assert (model["role"], model["imageSize"], model["source"]) == ("captioner", 64, {"path": f"random weights, seed {SEED}"})
    spec = model["captioner"]
    assert (spec["imageTokens"], spec["vocabulary"], spec["layers"], spec["heads"], spec["headSize"]) == (5, 51289, 2, 4, 16)
    assert spec["generation"] == {
        "startToken": 2, "forcedFirstToken": 0, "forcedLastToken": 2, "endToken": 2, "noRepeatNgram": 3, "maxNewTokens": 20,
    }  # fmt: skip
    assert {name: prompt["text"] for name, prompt in spec["prompts"].items()} == PROMPTS
    assert len(spec["prompts"]["caption"]["tokens"]) == 8
    assert {(entry["dtype"], entry["part"]) for entry in model["files"]} == {
        (dtype, part) for dtype in captioner.DTYPES for part in captioner.PARTS
    }
    for entry in [*model["files"], model["tokenizer"], *model["reference"]]:
        assert sha256_of_file(exported.folder / entry["path"]) == entry["sha256"]


def test_repeats_are_banned_as_hugging_face_bans_them() -> None:
    from transformers import NoRepeatNGramLogitsProcessor

    process, choose = NoRepeatNGramLogitsProcessor(3), np.random.default_rng(2)
    some = 0
    for length in [1, 2, 3, *choose.integers(3, 21, 200)]:
        history = choose.integers(0, 4, length).tolist()
        theirs = process(torch.tensor([history]), torch.zeros(1, 6))[0]
        assert banned(history, 3) == set(theirs.isinf().nonzero().flatten().tolist()), history
        some += bool(banned(history, 3))
    assert some > 50


def test_the_seeded_tokenizer_has_the_form_and_size_of_the_real_one() -> None:
    text = seeded_tokenizer(51289, seed=4)
    loaded = Tokenizer.from_str(text)
    assert loaded.get_vocab_size() == 51289
    assert len({loaded.id_to_token(place) for place in range(51289)}) == 51289
    assert {loaded.decode([0, place, 2], skip_special_tokens=True) for place in (3, 50265, 51288)} == {""}
    spoken = loaded.decode(list(range(1000, 1010)), skip_special_tokens=True)
    assert spoken.strip() and "Ġ" not in spoken
    assert text == seeded_tokenizer(51289, seed=4) != seeded_tokenizer(51289, seed=5)
    with pytest.raises(ExportError, match="does not know"):
        prompts(text, vocabulary=200)
    with pytest.raises(ExportError, match="cannot be loaded"):
        prompts("{}", vocabulary=51289)
    other = json.loads(text)
    other["added_tokens"][2]["content"] = other["model"]["vocab"].pop("</s>") and "</end>"
    with pytest.raises(ExportError, match="</s>"):
        prompts(json.dumps(other), vocabulary=51289)


def test_the_published_size() -> None:
    """OmniParser's file has 231,414,016 different numbers, the table of temporal positions, which is computed, not among them."""
    count = {name: int(np.prod(shape)) for name, shape in shapes(BASE).items()}
    assert sum(count.values()) - count["multi_modal_projector.visual_temporal_embed.pos_idx_to_embed"] == 231_414_016
    assert (BASE.sides, BASE.image_tokens, BASE.head_size) == ((16, 8, 4, 2), 5, 64)
    assert (SMALL.sides, SMALL.vocabulary, SMALL.window) == (BASE.sides, BASE.vocabulary, BASE.window)


def test_a_bundle_with_random_captions_is_marked_and_made_once(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioner, "REFERENCE_CROPS", 1)  # what they say is looked at elsewhere
    out = tmp_path / "captions"
    arguments = ["bundle", "--out", str(out), "--reuse", str(bundle), "--caption", "random", "--caption-seed", "3"]
    assert cli.main(arguments) == 0
    manifest = bundles.check_bundle(out)
    assert (manifest["name"], manifest["testOnly"]) == ("captions", True)
    assert [model["role"] for model in manifest["models"]] == ["detector", "ocr-detector", "ocr-recognizer", "captioner"]
    assert manifest["models"][:3] == json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["models"]
    listed = {entry["path"] for model in manifest["models"] for entry in bundles._listed_files(model)}
    assert {path.name for path in out.iterdir()} == listed | {"bundle.json", "LICENSES.md"}
    licences = (out / "LICENSES.md").read_text(encoding="utf-8")
    assert "Random numbers" in licences and "AGPL-3.0" in licences

    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert cli.main(arguments) == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    for more in (["--caption-seed", "4"], ["--caption-dtypes", "float32,bfloat16"]):
        assert cli.main([*arguments, *more]) == 0
        assert (out / "bundle.json").stat().st_mtime_ns != before["bundle.json"], more
    assert cli.main(["bundle", "--out", str(out), "--reuse", str(bundle)]) == 0
    manifest = bundles.check_bundle(out)
    assert not manifest["testOnly"] and len(manifest["models"]) == 3
    assert not (out / "tokenizer.json").exists()


def test_only_this_exporters_bundles_are_reused(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "bundle.json").read_text(encoding="utf-8"))
    (copy / "bundle.json").write_text(json.dumps(manifest | {"exporter": "0" * 64}), encoding="utf-8")
    assert cli.main(["bundle", "--out", str(tmp_path / "out"), "--reuse", str(copy), "--caption", "random"]) == 1
    assert "another exporter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_config_of_both_spellings() -> None:
    microsoft = {
        "vision_config": {
            "model_type": "davit", "patch_size": [7, 3, 3, 3], "patch_stride": [4, 2, 2, 2], "patch_padding": [3, 1, 1, 1],
            "patch_prenorm": [False, True, True, True], "dim_embed": [128, 256, 512, 1024], "num_heads": [4, 8, 16, 32],
            "num_groups": [4, 8, 16, 32], "depths": [1, 1, 9, 1], "window_size": 12, "projection_dim": 768,
            "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 100},
            "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 50},
            "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
        },
        "text_config": {
            "vocab_size": 51289, "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 12,
            "decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072, "max_position_embeddings": 1024,
            "scale_embedding": False, "activation_function": "gelu",
        },
    }  # fmt: skip
    assert parse_config(microsoft) == BASE
    vision = microsoft["vision_config"]
    del vision["visual_temporal_embedding"], vision["image_pos_embed"]
    vision |= {"embed_dim": vision.pop("dim_embed"), "max_temporal_embeddings": 100, "max_position_embeddings": 50}
    assert parse_config(microsoft) == BASE
    with pytest.raises(ExportError, match="another activation"):
        parse_config(microsoft | {"text_config": microsoft["text_config"] | {"activation_function": "relu"}})
    for damaged in ({}, {"vision_config": {}, "text_config": {}}, {"vision_config": 1, "text_config": 2}):
        with pytest.raises(ExportError, match="not that of a Florence-2"):
            parse_config(damaged)
